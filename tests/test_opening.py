"""How a VectorDB comes to its database: connection strings, the first use, and what is told when there is no way in."""

import re
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from fastapi.testclient import TestClient

from conftest import wait_until
from pgvector_api import create_app
from pgvector_db import VectorDB
from pgvector_service.errors import DatabaseUnavailable, InvalidInput
from pgvector_service.settings import Settings, SettingsError

UNUSABLE = [
    "postgresql://u:se%cret@h/d",
    "postgresql://u:w:rd%1@h/d",
    "postgresql://u:pass@secret@h/d",
    "postgresql://u:12/secret@h/d",
    "postgresql://u:secret/1@h/d",
    "postgresql://u:secret@h:0/d",
    "postgresql://u:secret@h:99999/d",
    "postgresql://u:secret@h/d?sslmode=foo",
    "postgresql://u:secret@h/d?foo=1",
    "postgresql://u:secret@h/d?keepalives=foo",
    "postgresql://u:secret@h/d?target_session_attrs=foo",
    "host=h user=u password=my secret",
    "mysql://u:secret@h/d",
]


@pytest.mark.parametrize("dsn", UNUSABLE)
def test_a_dsn_that_can_never_work_is_refused_and_no_part_of_it_is_shown(dsn: str) -> None:
    with pytest.raises(InvalidInput) as of_python:
        VectorDB(dsn)
    with pytest.raises(SettingsError) as of_service:
        Settings.load(database_url=dsn)
    for error, field in ((of_python.value, "dsn"), (of_service.value, "DATABASE_URL")):
        assert str(error).startswith(f"{field}: must be like postgresql://user:password@host:5432/database, the ")
        shown = "".join(traceback.format_exception(error))
        assert "\n" not in str(error)
        assert not re.search("se%?cret|w:rd|foo", shown)


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "host=/tmp,localhost port=5432,5433 dbname=d user=u password='p://ss@@' sslmode=require",
        "postgresql://u:p%40ss%2F@[::1]:5433,other/d?sslmode=verify-full&target_session_attrs=read-write",
        "postgres:///d?host=/tmp&user=me@home&keepalives_idle=5&gssencmode=require",
    ],
)
def test_any_dsn_that_libpq_can_use_is_taken(dsn: str) -> None:
    VectorDB(dsn)


def test_the_first_use_opens_the_database_once_whatever_the_number_of_threads(database: str) -> None:
    db = VectorDB(database, pool_size=4)
    before = watchdogs()
    start = threading.Barrier(8)

    def use(number: int) -> object:
        start.wait()
        return db.add_with_embeddings("c", [f"{number}"], None, None, [[1.0]]) if number else db.check_health()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(8)))
    assert len(db.query_by_vector("c", [[1.0]])[0]["ids"]) == 7
    assert watchdogs() == before + 2  # of one pool, and of the one for health
    db.close()


def watchdogs() -> int:
    return sum(thread.name == "pool-watchdog" for thread in threading.enumerate())


def test_without_a_dsn_the_database_is_that_of_the_environment(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"dsn: is missing\. Give a connection string, or set DATABASE_URL"):
        VectorDB()
    monkeypatch.setenv("DATABASE_URL", database)
    with VectorDB() as db:
        assert db.list_collections() == {"collections": [], "total": 0}


def test_a_search_may_be_the_first_use(db: VectorDB, database: str) -> None:
    db.add_with_embeddings("c", ["a"], None, None, [[1.0]])
    other = VectorDB(f"{database}&application_name=other")
    assert other.query_by_vector("c", [[1.0]])[0]["ids"] == ["a"]
    other.close()


def test_a_database_that_was_closed_says_so_until_it_is_opened_again(database: str) -> None:
    db = VectorDB(database)
    db.add_with_embeddings("c", ["a"], None, None, [[1.0]])
    db.close()
    uses: list[Callable[[], object]] = [
        lambda: db.count_items("c"),
        lambda: db.query_by_vector("c", [[1.0]]),
        lambda: list(db.export_collection("c")),
    ]
    for use in uses:
        with pytest.raises(DatabaseUnavailable, match=r"closed\. open\(\) opens it again"):
            use()
    assert "open() opens it again" in db.check_health()["reason"]
    with db:
        assert db.count_items("c")["count"] == 1


def test_no_use_opens_what_is_to_be_opened_by_hand(database: str) -> None:
    db = VectorDB(database, open_on_use=False)
    with pytest.raises(DatabaseUnavailable, match=r"open\(\) has not been called"):
        db.list_collections()
    assert not db.check_health()["database"]
    with db:
        assert db.list_collections()["total"] == 0


def test_python_is_told_why_there_is_no_way_in(database: str, sql: Callable[..., Any], tmp_path: Path) -> None:
    sql("CREATE ROLE barred LOGIN CONNECTION LIMIT 0")
    try:
        for url, reason in (
            (re.sub(r"/test_\w+", "/nowhere", database), 'database "nowhere" does not exist'),
            (re.sub(r"//\w+:?", "//nobody:", database), 'role "nobody" does not exist'),
            (re.sub(r"//\w+:?", "//barred:secret", database), 'too many connections for role "barred"'),
            (f"postgresql:///d?host={tmp_path}", "No such file or directory"),
            ("postgresql://u:secret@no.such.host.invalid/d", "could not translate host name"),
        ):
            with pytest.raises(DatabaseUnavailable, match=reason) as failed:
                VectorDB(url).count_items("c")
            assert "secret" not in str(failed.value)
            assert "\n" not in str(failed.value)
    finally:
        sql("DROP ROLE barred")


@pytest.mark.parametrize("kind", [psycopg2.OperationalError, psycopg2.ProgrammingError, RuntimeError])
def test_whatever_connecting_raises_no_log_line_and_no_answer_holds_the_password(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def connect(dsn: str, **_: object) -> None:
        raise kind(f"cannot parse {dsn}\n\tpassword=p@ss w:rd, p%40ss%20w%3Ard")

    app = create_app(Settings(database_url="postgresql://u:p%40ss%20w%3Ard@localhost/d"))
    monkeypatch.setattr("psycopg2.connect", connect)
    with caplog.at_level("DEBUG"), TestClient(app) as client:
        wait_until(lambda: bool(caplog.records))
        answer = client.get("/collections")
    assert answer.status_code == 503
    assert "cannot parse" not in answer.text
    assert "the database is away: cannot parse *** password=***, ***" in caplog.text
    assert not re.search("p@ss|p%40ss|w:rd|w%3Ard", caplog.text + answer.text)
