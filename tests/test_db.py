import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import psycopg2
import pytest

from conftest import wait_until
from pgvector_db import VectorDB
from pgvector_service.errors import (
    CollectionExists,
    CollectionNotFound,
    DatabaseUnavailable,
    DimensionMismatch,
    InvalidInput,
    PoolExhausted,
    Unavailable,
)
from pgvector_service.memory import loading
from pgvector_service.web.health import Probe
from pgvector_service.web.refusals import Refusals

Sql = Callable[..., list[tuple[Any, ...]]]
RNG = np.random.default_rng(0)


def unit(*numbers: float) -> list[list[float]]:
    return [list(numbers)]


def found(db: VectorDB, query: list[float], n_results: int = 10, name: str = "c") -> list[str]:
    ids: list[str] = db.query_by_vector(name, [query], n_results)[0]["ids"]
    return ids


def fill(db: VectorDB, count: int, width: int = 4, name: str = "c") -> np.ndarray:
    rows = RNG.standard_normal((count, width)).astype(np.float32)
    db.add_with_embeddings(name, [f"i{i:05}" for i in range(count)], None, None, rows)
    return rows


# Items


def test_items_can_be_written_found_and_read_back(db: VectorDB) -> None:
    written = db.add_with_embeddings(
        "c", ["a", "b"], ["eins", None], [{"n": 1, "deep": {"x": [1.5, None, "é"]}}, None], [[1.0, 0.0], [0.6, 0.8]]
    )
    assert written == {"collection_name": "c", "added": 2, "updated": 0, "version": 1}

    (hits,) = db.query_by_vector("c", [[1, 0.1]], 5)
    assert hits["ids"] == ["a", "b"]
    assert hits["documents"] == ["eins", None]
    assert hits["metadatas"] == [{"n": 1, "deep": {"x": [1.5, None, "é"]}}, None]
    assert list(hits) == ["ids", "documents", "metadatas", "distances", "similarities", "version"]
    items = db.get_items("c", ["b", "nope", "a", "b"], include=["embeddings"])
    assert items["ids"] == ["b", "a"]
    assert [row.tolist() for row in items["embeddings"]] == [np.array([0.6, 0.8], np.float32).tolist(), [1, 0]]


def test_writing_an_existing_id_replaces_the_whole_item(db: VectorDB) -> None:
    db.add_with_embeddings("c", ["a", "b"], ["x", "y"], [{"k": 1}, {}], [[1, 0], [0, 1]])
    written = db.add_with_embeddings("c", ["b", "z"], None, None, [[1, 0.1], [1, 0.2]])

    assert (written["added"], written["updated"], written["version"]) == (1, 1, 2)
    items = db.get_items("c")
    assert (items["ids"], items["documents"], items["metadatas"]) == (
        ["a", "b", "z"],
        ["x", None, None],
        [{"k": 1}, None, None],
    )
    assert found(db, [1, 0]) == ["a", "b", "z"]


def test_a_refused_batch_changes_nothing(db: VectorDB) -> None:
    db.add_with_embeddings("c", ["a"], None, None, unit(1, 0))
    for ids, rows in (
        (["b", "a"], [*unit(1, 0), *unit(0, 0)]),
        (["b"], unit(1, 0, 0)),
        (["b", "b"], [*unit(1, 0), *unit(1, 1)]),
    ):
        with pytest.raises(InvalidInput):
            db.add_with_embeddings("c", ids, None, None, rows)
    with pytest.raises(InvalidInput):
        db.add_with_embeddings("new", ["b"], None, None, unit(0, 0))

    assert db.count_items("c")["count"] == 1
    assert db.get_collection("c")["version"] == 1
    assert db.list_collections()["total"] == 1


def test_the_first_write_fixes_the_dimension(db: VectorDB) -> None:
    assert db.create_collection("c")["dimension"] is None
    assert found(db, [1, 2, 3]) == []
    db.add_with_embeddings("c", ["a"], None, None, unit(1, 0))

    with pytest.raises(DimensionMismatch, match=r"embeddings\[0\]: expected 2 numbers.* got 3"):
        db.add_with_embeddings("c", ["b"], None, None, unit(1, 0, 0))
    with pytest.raises(DimensionMismatch, match=r"query_embeddings\[0\]: expected 2 numbers.* got 3"):
        found(db, [1, 2, 3])


def test_deleted_items_are_gone_from_the_next_search(db: VectorDB) -> None:
    fill(db, 50)
    assert len(found(db, [1, 0, 0, 0], 100)) == 50

    assert db.delete_items("c", ["i00007", "i00008", "nope"]) == {"deleted": 2, "version": 2}
    assert set(found(db, [1, 0, 0, 0], 100)) == {f"i{i:05}" for i in range(50)} - {"i00007", "i00008"}
    with pytest.raises(CollectionNotFound):
        db.delete_items("nope", ["a"])


def test_pages_are_stable_and_complete(db: VectorDB) -> None:
    fill(db, 25)
    seen, cursor = [], None
    while True:
        page = db.get_items("c", limit=10, cursor=cursor, include=[])
        seen += page["ids"]
        db.add_with_embeddings("c", [f"a{len(seen)}"], None, None, RNG.standard_normal((1, 4)))  # sorts before
        cursor = page["next_cursor"]
        if cursor is None:
            break

    assert seen == [f"i{i:05}" for i in range(25)]
    with pytest.raises(InvalidInput, match="cursor"):
        db.get_items("c", cursor="?")
    with pytest.raises(InvalidInput, match="limit"):
        db.get_items("c", limit=0)


def test_an_export_is_one_snapshot(db: VectorDB) -> None:
    rows = fill(db, 2500)
    items = db.export_collection("c")
    first = next(items)
    db.delete_collection("c")
    exported = [first, *items]

    assert [item["id"] for item in exported] == [f"i{i:05}" for i in range(2500)]
    assert np.array([item["embedding"] for item in exported]).tobytes() == rows.tobytes()


# Collections


def test_collections_have_a_life_of_their_own(db: VectorDB) -> None:
    created = db.create_collection("b", 3, "ip", {"team": "x"})
    assert created | {"created_at": None} == {
        "name": "b", "dimension": 3, "metric": "ip", "language": "english", "metadata": {"team": "x"},
        "count": 0, "skipped": None, "search": None, "version": 0, "created_at": None,
    }  # fmt: skip
    with pytest.raises(CollectionExists):
        db.create_collection("b")
    db.create_collection("a")
    assert [c["name"] for c in db.list_collections()["collections"]] == ["a", "b"]
    assert [c["name"] for c in db.list_collections(limit=1, offset=1)["collections"]] == ["b"]
    assert db.update_collection("a", metadata={"k": [1]})["metadata"] == {"k": [1]}
    with pytest.raises(CollectionExists):
        db.update_collection("a", new_name="b")
    db.delete_collection("a")
    with pytest.raises(CollectionNotFound):
        db.delete_collection("a")
    assert db.list_collections()["total"] == 1


def test_a_renamed_collection_keeps_its_items_and_frees_its_name(db: VectorDB) -> None:
    fill(db, 20)
    before = db.query_by_vector("c", unit(1, 2, 3, 4), 20)
    assert db.update_collection("c", "d")["count"] == 20
    db.add_with_embeddings("c", ["other"], None, None, unit(1, 0))

    assert db.query_by_vector("d", unit(1, 2, 3, 4), 20) == before
    assert found(db, [1, 0]) == ["other"]
    db.delete_items("d", [before[0]["ids"][0]])
    assert found(db, [1, 2, 3, 4], 20, "d") == before[0]["ids"][1:]


def test_results_tie_break_by_id_also_at_the_last_place(db: VectorDB) -> None:
    ids = [f"{c}{i}" for i in range(9) for c in "zAé"]
    db.add_with_embeddings("c", ids, None, None, np.ones((27, 3)))
    db.add_with_embeddings("c", ["best"], None, None, [[1, 1, 0.9]])

    for n_results in (1, 4, 20, 28, 100):
        assert found(db, [1, 1, 0.9], n_results) == ["best", *sorted(ids)][:n_results]


# Other writers


def test_rows_of_plain_sql_are_found_by_the_next_search(db: VectorDB, sql: Sql) -> None:
    sql("INSERT INTO vector_collections (collection_name) VALUES ('c')")
    assert found(db, [1, 0]) == []
    sql(
        "INSERT INTO vector_documents (id, collection_name, document, metadata, embedding) "
        "VALUES ('a', 'c', 'text', '{\"source\": \"psql\"}', '{1,0}'), ('b', 'c', NULL, NULL, '{0,1}')"
    )
    assert found(db, [1, 0]) == ["a", "b"]
    sql("UPDATE vector_documents SET embedding = '{-1,0}' WHERE id = 'a'")
    assert found(db, [1, 0]) == ["b", "a"]
    sql("DELETE FROM vector_documents WHERE id = 'b'")
    assert found(db, [1, 0]) == ["a"]
    sql("TRUNCATE vector_documents RESTART IDENTITY")
    assert found(db, [1, 0]) == []
    sql("INSERT INTO vector_documents (id, collection_name, embedding) VALUES ('new', 'c', '{1,0}')")
    assert found(db, [1, 0]) == ["new"]
    sql("DELETE FROM vector_collections; INSERT INTO vector_collections (collection_name) VALUES ('c')")
    assert found(db, [1, 0]) == []
    assert db.get_collection("c")["dimension"] is None


def test_a_row_that_moves_leaves_one_collection_and_enters_the_other(db: VectorDB, sql: Sql) -> None:
    for name in ("c", "d"):
        db.add_with_embeddings(name, [f"{name}1", f"{name}2"], None, None, [[1, 0], [0, 1]])
        assert len(found(db, [1, 0], name=name)) == 2
    sql("UPDATE vector_documents SET collection_name = 'd', id = 'moved' WHERE id = 'c1'")

    assert found(db, [1, 0]) == ["c2"]
    assert found(db, [1, 0], name="d") == ["d1", "moved", "d2"]


def test_a_savepoint_that_is_rolled_back_hides_nothing(db: VectorDB, sql: Sql) -> None:
    db.add_with_embeddings("c", ["a"], None, None, unit(1, 0))
    assert found(db, [1, 0]) == ["a"]
    sql(
        "BEGIN; SAVEPOINT s; DELETE FROM vector_documents; ROLLBACK TO SAVEPOINT s;"
        "INSERT INTO vector_documents (id, collection_name, embedding) VALUES ('b', 'c', '{0,1}'); COMMIT"
    )
    assert found(db, [1, 0]) == ["a", "b"]


def test_bad_rows_of_plain_sql_are_skipped_and_counted(db: VectorDB, sql: Sql) -> None:
    db.add_with_embeddings("c", ["good", "later"], None, None, [[1, 0], [0, 1]])
    assert found(db, [1, 0]) == ["good", "later"]
    bad = ["{1,2,3}", None, "{}", "{NaN,1}", "{1,-Infinity}", "{0,0}", "{1,NULL}", "{{1,2}}"]
    for i, embedding in enumerate(bad):
        sql(
            "INSERT INTO vector_documents (id, collection_name, embedding) VALUES (%s, 'c', %s)", (f"bad{i}", embedding)
        )
    sql("UPDATE vector_documents SET embedding = '{NaN,NaN}' WHERE id = 'later'")

    assert found(db, [1, 0]) == ["good"]
    assert db.get_collection("c") | {"created_at": None, "metadata": None} == {
        "name": "c", "dimension": 2, "metric": "cosine", "language": "english", "metadata": None,
        "count": 10, "skipped": 9, "search": {"method": "exact", "candidates": None, "recall": 1.0},
        "version": 10, "created_at": None,
    }  # fmt: skip
    embeddings = dict(
        zip(*(db.get_items("c", include=["embeddings"])[key] for key in ("ids", "embeddings")), strict=True)
    )
    assert [None if e is None else e.tolist() for e in map(embeddings.get, ("bad0", "bad1", "bad5"))] == [
        [1, 2, 3],
        None,
        [0, 0],
    ]
    assert len(list(db.export_collection("c"))) == 10


def test_metadata_that_only_plain_sql_can_write_is_readable(db: VectorDB, sql: Sql) -> None:
    db.add_with_embeddings("c", ["a"], None, None, unit(1, 0))
    sql('UPDATE vector_documents SET metadata = \'{"huge": 1e5000, "long": 123456789012345678901234567890}\'')

    assert db.get_items("c")["metadatas"] == [{"huge": float("inf"), "long": 1.2345678901234568e29}]


def test_a_reader_far_behind_reads_everything_anew(db: VectorDB, sql: Sql) -> None:
    fill(db, 10)
    assert len(found(db, [1, 0, 0, 0])) == 10
    # As if 11,000 versions had passed: the tombstone is pruned by the last write.
    sql("DELETE FROM vector_documents WHERE id = 'i00003'")
    sql("UPDATE vector_collections SET version = 11999")
    sql("DELETE FROM vector_documents WHERE id = 'i00004'")

    assert sql("SELECT version FROM vector_tombstones") == [(12000,)]
    assert sorted(found(db, [1, 0, 0, 0])) == [f"i{i:05}" for i in (0, 1, 2, 5, 6, 7, 8, 9)]


def test_commits_that_a_crash_took_back_are_noticed(db: VectorDB, sql: Sql) -> None:
    fill(db, 10)
    assert len(found(db, [1, 0, 0, 0])) == 10
    # As after a crash that lost commits of synchronous_commit = off: the version stands where memory has it, the rows
    # are others. What tells is that PostgreSQL cuts all connections and empties unlogged tables.
    sql("BEGIN; SET LOCAL vector.stamped = on; UPDATE vector_documents SET embedding = '{-1,0,0,0}'; COMMIT")
    assert len({*db.query_by_vector("c", unit(1, 0, 0, 0))[0]["distances"]}) == 10
    sql("TRUNCATE vector_incarnation")
    sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgvector-service'")

    assert db.query_by_vector("c", unit(1, 0, 0, 0))[0]["distances"] == [2.0] * 10
    assert db.list_collections()["collections"][0]["count"] == 10


@pytest.mark.parametrize("n_results", [1, 3, 10])
def test_rows_deleted_past_the_triggers_are_missed_when_they_would_be_shown(
    db: VectorDB, sql: Sql, n_results: int
) -> None:
    db.add_with_embeddings("c", list("abcdef"), None, None, np.ones((6, 4)))  # all equally near
    for _ in range(3):
        assert found(db, [1, 0, 0, 0], n_results) == list("abcdef")[:n_results]
    sql("BEGIN; SET LOCAL vector.stamped = on; DELETE FROM vector_documents WHERE id < 'e'; COMMIT")

    assert found(db, [1, 0, 0, 0], n_results) == list("ef")[:n_results]


def test_a_collection_rebuilt_in_one_transaction_is_found(db: VectorDB, sql: Sql) -> None:
    fill(db, 5)
    assert len(found(db, [1, 0, 0, 0])) == 5
    insert = "INSERT INTO vector_documents (id, collection_name, embedding) VALUES ('new', %s, '{1,0}');"
    sql(
        "BEGIN; DELETE FROM vector_documents; DELETE FROM vector_collections;"
        "INSERT INTO vector_collections (collection_name) VALUES ('c');" + insert + "COMMIT",
        ("c",),
    )
    assert found(db, [1, 0]) == ["new"]
    sql(
        "BEGIN; UPDATE vector_documents SET document = 'x'; UPDATE vector_collections SET collection_name = 'd';"
        "INSERT INTO vector_collections (collection_name) VALUES ('c');" + insert + "COMMIT",
        ("c",),
    )
    assert found(db, [1, 0]) == found(db, [1, 0], name="d") == ["new"]
    assert db.get_collection("c")["dimension"] == 2


def test_a_transaction_is_one_version(db: VectorDB, sql: Sql) -> None:
    fill(db, 5)
    sql("BEGIN; UPDATE vector_documents SET document = 'x'; DELETE FROM vector_documents WHERE id = 'i00001'; COMMIT")
    sql("UPDATE vector_documents SET document = 'y'")
    assert db.get_collection("c")["version"] == 3


def test_a_metric_changed_by_plain_sql_counts_at_once(db: VectorDB, sql: Sql) -> None:
    db.add_with_embeddings("c", ["short", "long"], None, None, [[1, 0], [9, 9]])
    for _ in range(3):
        assert found(db, [1, 0]) == ["short", "long"]
    sql("UPDATE vector_collections SET metric = 'ip'")
    for _ in range(3):
        assert found(db, [1, 0]) == ["long", "short"]


def test_the_triggers_work_under_any_search_path(db: VectorDB, sql: Sql) -> None:
    fill(db, 5)
    sql("SET search_path = ''; DELETE FROM public.vector_documents WHERE id = 'i00001'; RESET search_path")
    assert len(found(db, [1, 0, 0, 0])) == 4


def test_a_row_may_move_there_and_back_and_go_in_one_transaction(db: VectorDB, sql: Sql) -> None:
    for name in ("c", "d"):
        db.add_with_embeddings(name, [name], None, None, unit(1, 0))
        assert found(db, [1, 0], name=name) == [name]
    move = "UPDATE vector_documents SET collection_name = '{}' WHERE id = 'c';"
    sql("BEGIN;" + move.format("d") + move.format("c") + "DELETE FROM vector_documents WHERE id = 'c'; COMMIT")
    assert found(db, [1, 0]) == []
    assert found(db, [1, 0], name="d") == ["d"]


def test_ids_and_metadata_that_the_gate_would_refuse_are_listed_all_the_same(db: VectorDB, sql: Sql) -> None:
    db.add_with_embeddings("c", ["a"], None, None, unit(1, 0))
    for id_ in ("", "x" * 600, "z"):
        sql("INSERT INTO vector_documents (id, collection_name, embedding) VALUES (%s, 'c', '{1,0}')", (id_,))
    sql("UPDATE vector_documents SET metadata = %s::jsonb WHERE id = 'z'", ("[" * 3000 + "]" * 3000,))
    sql("UPDATE vector_documents SET metadata = %s::jsonb WHERE id = 'a'", ("[" * 300 + "]" * 300,))
    seen, cursor = [], None
    for _ in range(4):
        page = db.get_items("c", limit=1, cursor=cursor)
        assert page["metadatas"] == [None]
        seen += page["ids"]
        cursor = page["next_cursor"]
    assert (seen, cursor) == (["", "a", "x" * 600, "z"], None)


# Memory


def test_the_least_recently_used_collection_makes_room(database: str) -> None:
    with VectorDB(database, cache_max_bytes=50_000) as db:
        for name in ("a", "b", "d"):
            fill(db, 1000, name=name)  # 28 kB each
        for name in ("a", "b", "a", "d"):
            assert len(found(db, [1, 0, 0, 0], 1000, name)) == 1000
            health = db.check_health()
            assert health["collections_in_memory"] == 1
            assert health["memory_bytes"] <= 50_000


def test_a_collection_that_outgrows_the_budget_is_still_searched(database: str) -> None:
    with VectorDB(database, cache_max_bytes=50_000) as db:
        fill(db, 1000)
        assert len(found(db, [1, 0, 0, 0], 5000)) == 1000
        db.add_with_embeddings("c", [f"more{i}" for i in range(2000)], None, None, RNG.standard_normal((2000, 4)))

        for _ in range(2):
            assert len(found(db, [1, 0, 0, 0], 5000)) == 3000
        assert db.check_health()["memory_bytes"] <= 50_000


def test_a_collection_that_has_grown_past_the_budget_is_not_read_into_memory(database: str, sql: Sql) -> None:
    with VectorDB(database, cache_max_bytes=50_000) as db:
        fill(db, 10)
        assert len(found(db, [1, 0, 0, 0])) == 10
        sql(
            "INSERT INTO vector_documents (id, collection_name, embedding)"
            "SELECT 'n' || i, 'c', ARRAY[i, 1, 2, 3] FROM generate_series(1, 20000) i"
        )
        assert len(found(db, [1, 0, 0, 0], 30_000)) == 20_010
        assert db.check_health()["memory_bytes"] <= 50_000


def test_collections_read_at_once_share_the_budget(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with VectorDB(database, cache_max_bytes=70_000) as db:
        for i in range(8):
            fill(db, 1000, name=f"c{i}")  # 28 kB each
        most = []
        stream = loading.stream

        def watched(*arguments: Any) -> None:
            most.append(db.check_health()["memory_bytes"])
            time.sleep(0.1)
            stream(*arguments)

        monkeypatch.setattr(loading, "stream", watched)
        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(lambda i: len(found(db, [1, 0, 0, 0], 2000, f"c{i}")), range(8))) == {1000}
        assert max(most) <= 70_000
        # Those that found no room then were streamed, and find some now.
        for i in range(8):
            assert len(found(db, [1, 0, 0, 0], 2000, f"c{i}")) == 1000
            assert db.get_collection(f"c{i}")["skipped"] == 0
        assert db.check_health()["memory_bytes"] <= 70_000


# Connections


def test_first_writers_of_a_collection_get_versions_of_their_own(db: VectorDB) -> None:
    for round_ in range(25):
        name = f"c{round_}"
        start = threading.Barrier(6)

        def write(i: int, name: str = name, start: threading.Barrier = start) -> int:
            start.wait()
            if i == 5:
                with suppress(CollectionExists):
                    db.create_collection(name)
                return 0
            return int(db.add_with_embeddings(name, [f"i{i}"], None, None, unit(1, i))["version"])

        with ThreadPoolExecutor(6) as threads:
            assert sorted(threads.map(write, range(6))) == [0, 1, 2, 3, 4, 5]
        assert len(found(db, [1, 0], name=name)) == 5


def test_a_writer_that_waits_while_its_collection_is_replaced_writes_to_the_new_one(
    db: VectorDB, database: str
) -> None:
    db.add_with_embeddings("c", ["old"], None, None, unit(1, 0))
    other = psycopg2.connect(database)
    with other.cursor() as cursor, ThreadPoolExecutor(1) as thread:
        cursor.execute("DELETE FROM vector_collections; INSERT INTO vector_collections (collection_name) VALUES ('c')")
        written = thread.submit(db.add_with_embeddings, "c", ["new"], None, None, unit(1, 0))
        time.sleep(0.3)
        other.commit()
        assert written.result(20)["version"] == 1
    other.close()
    assert found(db, [1, 0]) == ["new"]


def test_an_export_may_be_read_slowly(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgvector_service.storage.pool.STALL_GRACE_S", 0.2)
    with VectorDB(database, statement_timeout_s=0.5) as db:
        fill(db, 2500)
        export = db.export_collection("c")
        next(export)
        time.sleep(3)
        assert len(list(export)) == 2499


def test_exports_leave_connections_to_others(database: str) -> None:
    with VectorDB(database, pool_size=4) as db:
        fill(db, 5)
        export = db.export_collection("c")
        next(export)
        with pytest.raises(PoolExhausted, match="exports"):
            next(db.export_collection("c"))
        assert db.count_items("c")["count"] == 5
        export.close()
        assert len(list(db.export_collection("c"))) == 5


def test_a_database_that_accepts_no_writes_is_searched(database: str, sql: Sql) -> None:
    with VectorDB(database) as db:
        fill(db, 5)
    sql("TRUNCATE vector_incarnation")
    name = database.split("/")[3].split("?")[0]
    sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with VectorDB(database) as db:
        for _ in range(3):
            assert len(found(db, [1, 0, 0, 0])) == 5
        with pytest.raises(Unavailable, match="accepts no writes"):
            db.delete_items("c", ["i00001"])


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "UTF8"])
def test_texts_are_the_same_in_a_database_of_any_encoding(server: str, encoding: str) -> None:
    admin = psycopg2.connect(server)
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE encoded ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
        try:
            with VectorDB(server.replace("/postgres?", "/encoded?")) as db:
                db.add_with_embeddings("cé", ["é"], ["naïve"], [{"ß": "ü"}], unit(1, 0))
                items = db.get_items("cé", ["é"])
                assert (items["ids"], items["documents"], items["metadatas"]) == (["é"], ["naïve"], [{"ß": "ü"}])
                assert found(db, [1, 0], name="cé") == ["é"]
                assert [c["name"] for c in db.list_collections()["collections"]] == ["cé"]
        finally:
            cursor.execute("DROP DATABASE encoded WITH (FORCE)")
    admin.close()


def test_searches_and_writes_of_many_threads_agree(db: VectorDB) -> None:
    fill(db, 200)

    def work(thread: int) -> None:
        for step in range(25):
            id_ = f"t{thread}-{step}"
            db.add_with_embeddings("c", [id_], None, None, unit(1, thread, step, 1))
            assert found(db, [1, thread, step, 1], 1) == [id_]
            if step % 3 == 0:
                db.delete_items("c", [id_])
                assert id_ not in found(db, [1, thread, step, 1], 5)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert db.count_items("c")["count"] == 200 + 8 * 16
    assert len(found(db, [1, 0, 0, 0], 1000)) == 200 + 8 * 16


def test_a_wait_for_a_connection_is_bounded(database: str) -> None:
    with VectorDB(database, pool_size=1, pool_timeout_s=0.2) as db:
        fill(db, 5)
        export = db.export_collection("c")
        next(export)
        begin = time.monotonic()
        with pytest.raises(PoolExhausted):
            db.count_items("c")
        assert 0.15 < time.monotonic() - begin < 2
        assert db.check_health()["database"]
        export.close()
        assert db.count_items("c")["count"] == 5


def test_connections_that_the_server_has_cut_are_replaced(db: VectorDB, sql: Sql) -> None:
    fill(db, 5)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: db.count_items("c"), range(20)))
    sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgvector-service'")

    assert len(found(db, [1, 0, 0, 0])) == 5
    db.add_with_embeddings("c", ["x"], None, None, unit(1, 0, 0, 0))
    assert found(db, [1, 0, 0, 0], 1) == ["x"]


def test_nothing_is_left_behind_by_errors(db: VectorDB, sql: Sql) -> None:
    fill(db, 5)
    for _ in range(30):
        with pytest.raises(DimensionMismatch):
            db.add_with_embeddings("c", ["x"], None, None, unit(1, 2))
        with pytest.raises(CollectionNotFound):
            found(db, [1], name="nope")

    states = sql("SELECT state, count(*) FROM pg_stat_activity WHERE application_name = 'pgvector-service' GROUP BY 1")
    assert len(states) == 1
    assert states[0][0] == "idle"
    assert states[0][1] <= 2


def test_writers_that_deadlock_try_again(db: VectorDB, database: str) -> None:
    for name in ("c", "d"):
        db.add_with_embeddings(name, ["a"], None, None, unit(1, 0))
    other = psycopg2.connect(database)
    with other.cursor() as cursor:
        cursor.execute("SET deadlock_timeout = '10s'")  # so that the service is the one to be undone
        cursor.execute("BEGIN; SELECT 1 FROM vector_documents WHERE id = 'a' AND collection_name = 'c' FOR UPDATE")
        writer = threading.Thread(target=db.add_with_embeddings, args=("c", ["a"], None, None, unit(0, 1)))
        writer.start()
        time.sleep(0.3)  # it holds the collection's row now and waits for the document's
        cursor.execute("SELECT vector_bump('c')")
        other.commit()
    writer.join(20)
    other.close()

    assert not writer.is_alive()
    assert found(db, [0, 1], 1) == ["a"]
    assert db.query_by_vector("c", unit(0, 1))[0]["distances"] == [0.0]


def test_memory_survives_the_growth_of_the_pool(db: VectorDB) -> None:
    fill(db, 10)
    assert len(found(db, [1, 0, 0, 0])) == 10
    held = [db.export_collection("c") for _ in range(3)]
    for export in held:
        next(export)  # each takes another connection
    assert db.check_health()["collections_in_memory"] == 1
    for export in held:
        export.close()


def test_the_log_says_once_that_the_database_is_away_and_once_that_it_is_back(
    make_database: Callable[..., str], sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    database = make_database()
    name = database.split("/")[3].split("?")[0]
    refusals = Refusals()
    with VectorDB(database) as db, caplog.at_level("INFO", "pgvector_service"):
        assert db.check_health()["reason"] is None
        sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        probe = Probe(db, refusals)
        probe.start()
        wait_until(lambda: bool(caplog.records))
        for _ in range(3):
            health = db.check_health()
            assert not health["database"]
            assert f'database "{name}" is not currently accepting connections' in health["reason"]
        for _ in range(5):
            with pytest.raises(DatabaseUnavailable) as refused:
                db.count_items("c")
            refusals.add(refused.value)
        sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        wait_until(lambda: len(caplog.records) > 1)
        probe.stop()
        assert db.check_health()["database"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.messages[0].startswith("the database is away: ")
    assert caplog.messages[1].startswith("the database is back: 5 requests were refused in ")


def test_without_a_server_the_error_says_so() -> None:
    with pytest.raises(DatabaseUnavailable, match="Connection refused"):
        VectorDB("postgresql://postgres@127.0.0.1:1/postgres").open()
    with pytest.raises(DatabaseUnavailable, match="Connection refused"):
        VectorDB("postgresql://postgres@127.0.0.1:1/postgres").count_items("c")


# Schema


def test_eight_processes_may_open_an_empty_database_at_once(make_database: Callable[..., str]) -> None:
    database = make_database("template1")
    dbs = [VectorDB(database) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(VectorDB.open, dbs))
    fill(dbs[0], 3)
    for db in dbs:
        assert db.count_items("c")["count"] == 3
        db.close()


def test_rows_equally_near_at_the_last_place_come_by_id_however_many(db: VectorDB) -> None:
    for name, equals in (("few", 30), ("many", 300)):
        ids = [f"{i:03}" for i in RNG.permutation(equals)]
        db.add_with_embeddings(name, ["near", *ids], None, None, [[1.0, 0.0], *[[0.6, 0.8]] * equals])
        for _ in range(2):  # the second time memory is trusted, and ranked before a look at the version
            (hits,) = db.query_by_vector(name, [[1, 0]], 6)
            assert hits["ids"] == ["near", "000", "001", "002", "003", "004"]
            assert len(hits["documents"]) == len(hits["distances"]) == len(hits["similarities"]) == 6
