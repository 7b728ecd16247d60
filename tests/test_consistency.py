"""After each acknowledged write, every worker's next search equals a recomputation from the database."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from conftest import Service, wait_until

WIDTH = 3
Sql = Callable[..., list[tuple[Any, ...]]]


class History:
    """Random writes, by two workers and by somebody with psql, and a look at every worker's memory after each."""

    def __init__(self, workers: list[Service], sql: Sql, seed: int) -> None:
        self.workers, self.sql, self.rng = workers, sql, np.random.default_rng(seed)
        self.comparisons = 0

    def run(self, steps: int) -> None:
        """Check after each of `steps` random writes; AssertionError names the writes so far."""
        self.sql("INSERT INTO vector_collections (collection_name) VALUES ('c'), ('other') ON CONFLICT DO NOTHING")
        writes: list[Callable[[], object]] = [self.post, self.post, self.remove, self.insert, self.insert, self.update]
        writes += [
            self.change,
            self.change,
            self.turn,
            self.remove_even,
            self.delete,
            self.several,
            self.roll_back,
            self.move,
            self.rename,
            self.truncate,
            self.recreate,
        ]
        done: list[str] = []
        for _ in range(steps):
            write = writes[self.rng.integers(len(writes))]
            write()
            done.append(write.__name__)
            for worker in self.workers:
                self.check(worker, done)
                self.check(worker, done)  # now memory is trusted, and ranked before a look at the version

    def check(self, worker: Service, done: list[str]) -> None:
        rows = self.sql("SELECT id, embedding, metadata FROM vector_documents WHERE collection_name = 'c'")
        self.compare(worker, done, [(id_, embedding) for id_, embedding, _ in rows], {})
        even = [(id_, embedding) for id_, embedding, metadata in rows if metadata == {"even": True}]
        self.compare(worker, done, even, {"where": {"even": True}})
        self.comparisons += 1

    def compare(self, worker: Service, done: list[str], rows: list[tuple[str, Any]], options: dict[str, Any]) -> None:
        query = self.vectors(1)[0]
        body = {"collection_name": "c", "query_embedding": query, "n_results": 1000, **options}
        response = worker.client.post("/search/vector", json=body)
        assert response.status_code == 200, response.text
        found = list(zip(response.json()["distances"], response.json()["ids"], strict=True))
        expected = []
        for id_, embedding in rows:
            cosine = np.dot(embedding, query) / (np.linalg.norm(embedding) * np.linalg.norm(query))
            expected.append((round(1 - cosine, 12), id_))
        assert [id_ for _, id_ in found] == [id_ for _, id_ in sorted(expected)], done
        np.testing.assert_allclose([d for d, _ in found], [d for d, _ in sorted(expected)], atol=3e-12)

    # Small integers: sums are exact, so the order of the ranking is not a matter of rounding.

    def vectors(self, count: int) -> list[list[float]]:
        return [[float(x) for x in row] for row in self.rng.integers(1, 6, (count, WIDTH))]

    def ids(self, count: int) -> list[str]:
        return [f"id{i}" for i in self.rng.choice(40, count, replace=False)]

    def worker(self) -> Service:
        return self.workers[self.rng.integers(len(self.workers))]

    def post(self) -> None:
        ids = self.ids(int(self.rng.integers(1, 12)))
        body = {
            "collection_name": "c",
            "ids": ids,
            "embeddings": self.vectors(len(ids)),
            "metadatas": [{"even": bool(even)} for even in self.rng.integers(0, 2, len(ids))],
        }
        assert self.worker().client.post("/items", json=body).status_code == 201

    def remove(self) -> None:
        body = {"collection_name": "c", "ids": self.ids(4)}
        assert self.worker().client.post("/items/delete", json=body).status_code == 200

    def change(self) -> None:
        ids = self.ids(5)
        metadatas = [{"even": True}, {"even": False}, {"even": None}, {}, None]
        body = {"collection_name": "c", "ids": ids, "metadatas": metadatas}
        assert self.worker().client.post("/items/update", json=body).status_code == 200

    def remove_even(self) -> None:
        if self.rng.random() < 0.3:
            body = {"collection_name": "c", "where": {"even": True}}
            assert self.worker().client.post("/items/delete", json=body).status_code == 200

    def turn(self) -> None:
        self.sql("UPDATE vector_documents SET metadata = '{\"even\": true}' WHERE id = ANY(%s)", (self.ids(5),))

    def insert(self) -> None:
        for id_, vector in zip(self.ids(3), self.vectors(3), strict=True):
            self.sql(
                "INSERT INTO vector_documents (id, collection_name, embedding) VALUES (%s, 'c', %s)"
                "ON CONFLICT (collection_name, id) DO UPDATE SET embedding = excluded.embedding",
                (id_, vector),
            )

    def update(self) -> None:
        self.sql("UPDATE vector_documents SET embedding = %s WHERE id = ANY(%s)", (*self.vectors(1), self.ids(9)))

    def delete(self) -> None:
        self.sql("DELETE FROM vector_documents WHERE id = ANY(%s)", (self.ids(5),))

    def several(self) -> None:
        self.sql(
            "BEGIN; DELETE FROM vector_documents WHERE id = ANY(%s); SAVEPOINT s;"
            "UPDATE vector_documents SET embedding = %s; ROLLBACK TO s;"
            "INSERT INTO vector_documents (id, collection_name, embedding) VALUES (%s, 'c', %s) ON CONFLICT DO NOTHING;"
            "COMMIT",
            (self.ids(2), *self.vectors(1), *self.ids(1), *self.vectors(1)),
        )

    def roll_back(self) -> None:
        self.sql("BEGIN; DELETE FROM vector_documents; ROLLBACK")

    def move(self) -> None:
        self.sql(
            "BEGIN; DELETE FROM vector_documents WHERE collection_name = 'other';"
            "UPDATE vector_documents SET collection_name = 'other' WHERE id = ANY(%s); COMMIT",
            (self.ids(3),),
        )

    def rename(self) -> None:
        self.sql(
            "UPDATE vector_collections SET collection_name = 'x' WHERE collection_name = 'c';"
            "UPDATE vector_collections SET collection_name = 'c' WHERE collection_name = 'other';"
            "UPDATE vector_collections SET collection_name = 'other' WHERE collection_name = 'x'"
        )

    def truncate(self) -> None:
        if self.rng.random() < 0.3:
            self.sql("TRUNCATE vector_documents")

    def recreate(self) -> None:
        if self.rng.random() < 0.3:
            # As many versions as before, and other rows: only the epoch tells.
            ((version,),) = self.sql("SELECT version FROM vector_collections WHERE collection_name = 'c'")
            self.worker().client.delete("/collections/c")
            self.sql("INSERT INTO vector_collections (collection_name) VALUES ('c')")
            self.insert()
            self.sql(
                "UPDATE vector_collections SET version = greatest(version, %s) WHERE collection_name = 'c'", (version,)
            )


def test_every_worker_sees_every_write_at_once(database: str, sql: Sql) -> None:
    with Service(DATABASE_URL=database) as first, Service(DATABASE_URL=database) as second:
        history = History([first, second], sql, seed=1)
        history.run(400)
        assert history.comparisons == 1600


FAULTS = {
    "the version is not checked": """
from pgvector_service.storage import statements
statements._STATEMENTS["items_by_key_if_unchanged"] = statements.items_by_key_if_unchanged.replace("c.version =", "0 <")
cache.Loaded.is_of = lambda self, _: True""",
    "the version is not checked after ranking": """
from pgvector_service.storage import statements
statement = statements.items_by_key_if_unchanged.replace("c.version =", "0 <")
statements._STATEMENTS["items_by_key_if_unchanged"] = statement""",
    "the epoch is not checked": """
from pgvector_service.storage import statements
statement = statements.items_by_key_if_unchanged.replace("(c.tableoid, c.epoch)::TEXT =", "''<>")
statements._STATEMENTS["items_by_key_if_unchanged"] = statement
cache.Loaded.is_of = lambda self, now: self.collection.version == now.version
cache.Collection.follows = lambda self, other: other.version < self.version""",
    "what a filter matched is remembered for longer than its version": """
from collections import OrderedDict
from pgvector_service.memory import filtered
shared, begin = OrderedDict(), filtered.FilteredRows.__init__
filtered.FilteredRows.__init__ = lambda self, matrix: (begin(self, matrix), setattr(self, "_by_filter", shared))[0]""",
    "deletions are not applied": "matrix.Matrix.without = lambda self, keys: self",
    "the service does not stamp its rows": """
from pgvector_service.storage import statements
statements._STATEMENTS["upsert"] = statements.upsert.replace("version = excluded.version,", "")""",
    "the tombstones of the next version are overlooked": """
from pgvector_service.storage import statements
statement = statements.tombstones_since.replace("> %(version)s", "> %(version)s + 1")
statements._STATEMENTS["tombstones_since"] = statement""",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault: str, database: str, sql: Sql) -> None:
    prelude = "from pgvector_service.memory import cache\nfrom pgvector_service.ranking import matrix\n" + FAULTS[fault]
    with (
        Service(prelude=prelude, DATABASE_URL=database) as first,
        Service(prelude=prelude, DATABASE_URL=database) as second,
        pytest.raises(AssertionError),
    ):
        History([first, second], sql, seed=1).run(300)


def test_two_workers_on_one_port_agree(database: str) -> None:
    with Service("--workers", "2", DATABASE_URL=database) as service:
        ready = f"{service.url}/health/ready"  # of whichever worker takes the new connection
        wait_until(lambda: all(httpx.get(ready, timeout=30).status_code == 200 for _ in range(10)))
        for step in range(40):
            body: dict[str, Any] = {"collection_name": "c", "ids": [f"id{step}"], "embeddings": [[1.0, step + 1.0]]}
            assert service.client.post("/items", json=body).status_code == 201
            query = {"collection_name": "c", "query_embedding": [1.0, step + 1.0], "n_results": 1}
            for _ in range(3):
                # A new connection goes to whichever worker takes it.
                response = httpx.post(f"{service.url}/search/vector", json=query, timeout=30)
                assert response.status_code == 200, (step, response.text, service.log()[-3000:])
                assert response.json()["ids"] == [f"id{step}"]
