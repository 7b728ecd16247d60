"""Restores under a running service: with maintenance nobody sees half of one, and memory never outlives one."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import psycopg2
import pytest
from test_schema import run

from conftest import ROOT, Service, wait_until

Sql = Callable[..., list[tuple[Any, ...]]]


def maintain(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `pgvector-api maintenance`."""
    return subprocess.run(
        [sys.executable, "-m", "pgvector_cli", "maintenance", *command],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def item(number: int) -> dict[str, Any]:
    return {"collection_name": "c", "ids": [f"id{number}"], "embeddings": [[1.0, float(number)]]}


def search(service: Service, number: int) -> Any:
    query = {"collection_name": "c", "query_embedding": [1.0, float(number)], "n_results": 1}
    return httpx.post(f"{service.url}/search/vector", json=query, timeout=60)


class Clients:
    """Threads that write and search until told to stop, and note what they were answered."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.answers: list[tuple[str, int, str | None]] = []
        self.written: list[int] = []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._write, args=(i,)) for i in range(3)]
        self.threads += [threading.Thread(target=self._read) for _ in range(3)]
        for thread in self.threads:
            thread.start()

    def _write(self, number: int) -> None:
        with httpx.Client(base_url=self.service.url, timeout=60) as client:
            while not self.stopped.is_set():
                number += 3
                answer = client.post("/items", json=item(1000 + number))
                self._note(answer)
                if answer.status_code == 201:
                    self.written.append(1000 + number)

    def _read(self) -> None:
        with httpx.Client(base_url=self.service.url, timeout=60) as client:
            number = 0
            while not self.stopped.is_set():
                number = (number + 7) % 100
                query = {"collection_name": "c", "query_embedding": [1.0, float(number)], "n_results": 1}
                path = ("/search/vector", "/items/get")[number % 2]
                self._note(client.post(path, json=query if number % 2 == 0 else {"collection_name": "c"}))

    def _note(self, answer: httpx.Response) -> None:
        self.answers.append((answer.text[:200], answer.status_code, answer.headers.get("retry-after")))
        if answer.status_code == 503:
            time.sleep(0.02)

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


def test_a_restore_during_maintenance_meets_writers_and_readers(data_dir: Path, tmp_path: Path) -> None:
    dump = str(tmp_path / "backup.dump")
    with Service("--workers", "2", DATA_DIR=str(data_dir)) as service:
        assert service.client.post("/collections", json={"name": "c", "metric": "euclidean"}).status_code == 201
        for number in range(100):
            assert service.client.post("/items", json=item(number)).status_code == 201
        run("pg_dump", "-Fc", "-h", str(data_dir / "postgres"), "-U", "postgres", "-f", dump, "postgres")
        for number in range(100):
            # Memory of both workers now holds what the restore takes back.
            assert service.client.post("/items", json=item(2000 + number)).status_code == 201
            assert search(service, 2000 + number).json()["ids"] == [f"id{2000 + number}"]

        clients = Clients(service)
        wait_until(lambda: len(clients.written) > 20)
        command = ("pg_restore", "--clean", "--if-exists", "--single-transaction", "--dbname", "postgres", dump)
        result = maintain("--", *command, DATA_DIR=str(data_dir))
        assert result.returncode == 0, result.stderr
        before = len(clients.written)
        wait_until(lambda: len(clients.written) > before + 20)
        clients.stop()

        assert {status for _, status, _ in clients.answers} == {200, 201, 503}
        refused = [(text, after) for text, status, after in clients.answers if status == 503]
        assert all(after and int(after) >= 1 for _, after in refused)
        assert all('"code":"maintenance"' in text for text, _ in refused), {text for text, _ in refused}
        stored = set(service.client.post("/items/get", json={"collection_name": "c", "limit": 10_000}).json()["ids"])
        after_restore = {f"id{number}" for number in clients.written[before:]}
        assert {f"id{number}" for number in range(100)} | after_restore <= stored
        assert stored <= {f"id{number}" for number in (*range(100), *clients.written)}
        for number in (*range(0, 100, 7), *clients.written[before:][:10], 2007, 2093):
            for _ in range(4):  # new connections: either worker
                nearest = search(service, number).json()["ids"]
                assert nearest == [f"id{number}"] if f"id{number}" in stored else nearest[0] in stored


def test_maintenance_waits_for_what_is_under_way_and_says_when_that_takes_too_long(database: str, sql: Sql) -> None:
    with Service(DATABASE_URL=database) as service:
        assert service.client.post("/items", json=item(1)).status_code == 201
        assert service.client.get("/health").json()["maintenance"] is False
        writer = psycopg2.connect(database)
        with writer.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock_shared(7163384623)")
            late = maintain("--wait", "0.3", "--", "true", DATABASE_URL=database)
        writer.close()
        assert late.returncode == 1
        assert "did not end within 0.3 s" in late.stderr
        # A service may have noticed that maintenance was waiting.
        wait_until(lambda: service.client.post("/items", json=item(2)).status_code == 201, seconds=5)

        touched = urlsplit(database).path.strip("/")
        script = "import os; assert os.environ['PGDATABASE'] == %r; raise SystemExit(7)"
        assert maintain("--", sys.executable, "-c", script % touched, DATABASE_URL=database).returncode == 7
        wait_until(lambda: service.client.post("/items", json=item(3)).status_code == 201, seconds=5)
    assert maintain(DATABASE_URL=database).stderr.startswith("pgvector-api: maintenance: give the command")
    assert "no program /no/such" in maintain("--", "/no/such", DATABASE_URL=database).stderr


def test_whoever_ends_maintenance_ends_its_command_first(database: str, tmp_path: Path) -> None:
    began = tmp_path / "began"
    command = [sys.executable, "-m", "pgvector_cli", "maintenance", "--", "sh", "-c", f"touch {began}; exec sleep 60"]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "DATABASE_URL": database}) as maintenance:
        wait_until(began.exists)
        maintenance.terminate()
        assert maintenance.wait(10) != 0
    running = [" ".join(process.cmdline()) for process in psutil.process_iter() if process.name() == "sleep"]
    assert "sleep 60" not in running


FORGETS_THE_TABLE = """
from pgvector_service.storage import statements
for name, statement in list(statements._STATEMENTS.items()):
    statement = statement.replace("(tableoid, epoch)", "epoch").replace("(c.tableoid, c.epoch)", "c.epoch")
    statements._STATEMENTS[name] = statement
"""


@pytest.mark.parametrize("prelude", ["", FORGETS_THE_TABLE], ids=["as it is", "planted fault"])
def test_memory_does_not_outlive_a_restore_without_maintenance(
    prelude: str, database: str, sql: Sql, tmp_path: Path
) -> None:
    dump = str(tmp_path / "backup.dump")
    with Service(prelude=prelude, DATABASE_URL=database) as service:
        for number in range(10):
            assert service.client.post("/items", json=item(number)).status_code == 201
        run("pg_dump", "-Fc", "-f", dump, database)
        for number in range(10, 15):
            assert service.client.post("/items", json=item(number)).status_code == 201
        for _ in range(2):
            assert search(service, 14).json()["ids"] == ["id14"]
        run("pg_restore", "--clean", "--if-exists", "--single-transaction", "--dbname", database, dump)
        # As many versions as the restore has taken back, with other rows: their numbers do not tell.
        for number in range(20, 25):
            sql(
                "INSERT INTO vector_documents (id, collection_name, embedding) VALUES (%s, 'c', %s)",
                (f"id{number}", [1.0, float(number)]),
            )
        rows = sql("SELECT id, embedding FROM vector_documents WHERE collection_name = 'c'")
        assert len(rows) == 15
        right = []
        for number in range(25):
            query = np.array([1.0, float(number)])
            nearest = max(rows, key=lambda row, q=query: q @ row[1] / np.linalg.norm(row[1]))  # type: ignore[misc]
            right.append(search(service, number).json()["ids"] == [nearest[0]])
        assert all(right) is (prelude == "")


def test_a_restore_of_data_alone_gives_collections_a_new_history(database: str, sql: Sql, tmp_path: Path) -> None:
    dump = str(tmp_path / "data.sql")
    with Service(DATABASE_URL=database) as service:
        assert service.client.post("/items", json=item(1)).status_code == 201
        (epoch,) = sql("SELECT epoch FROM vector_collections")
        run("pg_dump", "--data-only", "-f", dump, database)
        sql("TRUNCATE vector_collections, vector_documents, vector_tombstones, vector_incarnation")
        run("psql", "--quiet", "--set", "ON_ERROR_STOP=1", "--single-transaction", "--file", dump, database)
        assert sql("SELECT epoch FROM vector_collections") != [epoch]
        assert search(service, 1).json()["ids"] == ["id1"]


def test_statements_that_meet_a_schema_in_the_middle_of_a_change_are_503(database: str, sql: Sql) -> None:
    with Service(DATABASE_URL=database) as service:
        assert service.client.post("/items", json=item(1)).status_code == 201
        broken = (
            "ALTER TABLE vector_documents DROP CONSTRAINT vector_documents_pkey",
            "DROP FUNCTION vector_bump CASCADE",
            "ALTER TABLE vector_collections DROP COLUMN language",
            "DROP TABLE vector_tombstones",
        )
        for statement in broken:
            sql(statement)
            answer = service.client.post("/items", json=item(2))
            assert answer.status_code == 503, (statement, answer.text)
            assert int(answer.headers["retry-after"]) >= 1
