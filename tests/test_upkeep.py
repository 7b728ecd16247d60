"""Large collections: compressed beside the searches, and read the quick way when pgvector is there."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pgvector_db import VectorDB
from pgvector_service.memory import loading
from pgvector_service.ranking import compression
from pgvector_service.storage.codec import VectorReader

pytest.importorskip("faiss")
Sql = Callable[..., list[tuple[Any, ...]]]
WIDTH = 24


def rows(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).standard_normal((30, WIDTH))
    return (centers[rng.integers(0, 30, count)] + 0.4 * rng.standard_normal((count, WIDTH))).astype(np.float32)


def ids(count: int, start: int = 0) -> list[str]:
    return [f"i{i:06}" for i in range(start, start + count)]


def wait_until_compressed(db: VectorDB) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        db.query_by_vector("c", [[1.0] * WIDTH], 1)
        how: dict[str, Any] = db.get_collection("c")["search"]
        if how["method"] == "compressed":
            return how
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes for collections that are small enough for a test."""
    monkeypatch.setattr(compression, "MIN_ROWS", 700)
    monkeypatch.setattr(compression, "MIN_BYTES", 0)


@pytest.mark.usefixtures("early")
def test_a_large_collection_comes_to_be_searched_by_codes(database: str) -> None:
    data = rows(3_000)
    with VectorDB(database) as db:
        db.add_with_embeddings("c", ids(3_000), ids(3_000), [{"n": i} for i in range(3_000)], data)
        how = wait_until_compressed(db)
        assert how["recall"] >= 0.999
        assert how["candidates"] > 10

        queries = rows(100, seed=5)
        found = db.query_by_vector("c", queries)
        exact = db.query_by_vector("c", queries, exact=True)
        same = sum(len(set(f["ids"]) & set(e["ids"])) for f, e in zip(found, exact, strict=True))
        assert same >= 997
        for result in found:
            assert result["documents"] == result["ids"]
            assert [metadata["n"] for metadata in result["metadatas"]] == [int(id_[1:]) for id_ in result["ids"]]

    with VectorDB(database, recall_target=1) as db:
        assert db.query_by_vector("c", queries) == exact
        time.sleep(0.5)
        db.query_by_vector("c", queries[:1])
        assert db.get_collection("c")["search"] == {"method": "exact", "candidates": None, "recall": 1.0}


@pytest.mark.usefixtures("early")
def test_a_write_is_found_by_the_next_search_while_codes_are_made(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    compressed = compression.compressed

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.1)
        made.append(compressed(*arguments))
        return made[-1]

    monkeypatch.setattr(compression, "compressed", slowly)
    rng = np.random.default_rng(1)
    stored: dict[str, np.ndarray] = {}
    with VectorDB(database) as db:
        for step in range(60):
            fresh = rows(200, seed=100 + step)
            names = ids(150, start=150 * step) + [str(i) for i in rng.permutation(sorted(stored))[:50]]
            db.add_with_embeddings("c", names, None, None, fresh[: len(names)])
            stored.update(zip(names, fresh, strict=False))
            asked = rng.choice(len(names), 5)
            for hits, i in zip(db.query_by_vector("c", fresh[asked], 3), asked, strict=True):
                assert hits["ids"][0] == names[i], step
            gone = [str(name) for name in rng.choice(sorted(stored), 30, replace=False)]
            db.delete_items("c", gone)
            for hits in db.query_by_vector("c", [stored[name] for name in gone], 3):
                assert len(hits["ids"]) == 3
                assert not set(hits["ids"]) & set(gone), step
            for name in gone:
                del stored[name]
        assert len(made) > 2
        wait_until_compressed(db)
        (everything,) = db.query_by_vector("c", [[1.0] * WIDTH], 100_000)
        assert set(everything["ids"]) == set(stored)


@pytest.mark.usefixtures("early")
def test_upkeep_that_fails_leaves_the_collection_as_it_was(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(compression, "compressed", fail)
    with VectorDB(database) as db:
        db.add_with_embeddings("c", ids(1_000), None, None, rows(1_000))
        for _ in range(2):
            assert len(db.query_by_vector("c", [[1.0] * WIDTH], 7)[0]["ids"]) == 7
            time.sleep(0.2)
    assert "the upkeep of a collection failed" in caplog.text


def test_without_faiss_all_searches_are_exact(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "faiss", None)
    with VectorDB(database) as db:
        data = np.repeat(rows(8_192), 6, axis=1)
        db.add_with_embeddings("c", ids(8_192), None, None, data)
        assert db.query_by_vector("c", data[5:6], 1)[0]["ids"] == ["i000005"]
        time.sleep(0.3)
        assert db.query_by_vector("c", data[5:6], 1)[0]["ids"] == ["i000005"]
        assert db.get_collection("c")["search"] == {"method": "exact", "candidates": None, "recall": 1.0}


def test_a_collection_is_the_same_read_as_vectors_and_as_arrays(
    database: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = []

    class Watched(VectorReader):
        def __init__(self, *arguments: Any) -> None:
            readers.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(loading, "VectorReader", Watched)
    data, queries = rows(3_000), rows(5, seed=1)

    def answers() -> list[dict[str, Any]]:
        readers.clear()
        with VectorDB(database) as db:
            return [*db.query_by_vector("c", queries, 4_000), db.get_collection("c")]

    with VectorDB(database) as db:
        db.add_with_embeddings("c", ids(3_000), None, None, data)
    as_arrays = answers()
    assert not readers
    sql("CREATE EXTENSION vector")
    assert answers() == as_arrays
    assert len(readers) == 1

    # NULL is no obstacle; what is no vector of this width makes it arrays again.
    for i, (bad, skipped) in enumerate([(None, 1), ("{1,2}", 2), ("{" + "NaN," * (WIDTH - 1) + "1}", 3)]):
        sql("INSERT INTO vector_documents (id, collection_name, embedding) VALUES (%s, 'c', %s)", (f"bad{i}", bad))
        assert [result["ids"] for result in answers()[:-1]] == [result["ids"] for result in as_arrays[:-1]]
        assert answers()[-1]["skipped"] == skipped
        assert len(readers) == 1
