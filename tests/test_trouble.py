"""What the service does while its database hangs or has no connection to spare."""

import json
import re
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest

from conftest import Service, postgres_processes, wait_until

QUERY = {"collection_name": "c", "query_embedding": [1.0, 0.0]}
ITEM = {"collection_name": "c", "ids": ["a"], "embeddings": [[1.0, 0.0]]}


def seconds_of_health(service: Service) -> float:
    """The median of 50 calls."""
    service.client.get("/health")
    taken = []
    for _ in range(50):
        begin = time.perf_counter()
        assert service.client.get("/health").status_code in (200, 503)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


@contextmanager
def in_threads(count: int, work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run `work` in `count` threads beside the block; what they return is complete after it."""
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield results
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_an_exhausted_pool_is_a_503_and_health_answers_at_once(database: str) -> None:
    settings = {"DB_POOL_SIZE": "2", "DB_POOL_TIMEOUT_S": "0.3", "STATEMENT_TIMEOUT_S": "4"}
    with Service(DATABASE_URL=database, **settings) as service:
        assert service.client.post("/items", json=ITEM).status_code == 201
        blocker = psycopg2.connect(database)
        with blocker.cursor() as cursor:
            cursor.execute("LOCK TABLE vector_documents IN ACCESS EXCLUSIVE MODE")

            def read() -> Any:
                return httpx.post(f"{service.url}/items/get", json={"collection_name": "c"}, timeout=30)

            with in_threads(12, read) as responses:
                time.sleep(0.5)
                assert seconds_of_health(service) < 0.02
        blocker.close()
        codes = sorted(response.json()["code"] for response in responses)
        assert codes == ["database_busy"] * 2 + ["pool_exhausted"] * 10
        assert all(response.headers["retry-after"] == "1" for response in responses)
        assert service.client.post("/search/vector", json=QUERY).json()["ids"] == ["a"]


@pytest.mark.parametrize("stalled", ["postmaster and all", "backends"])
def test_a_database_that_hangs_is_hung_up_on_and_health_says_so(data_dir: Path, stalled: str) -> None:
    with Service(DATA_DIR=str(data_dir), STATEMENT_TIMEOUT_S="1", DB_POOL_TIMEOUT_S="0.5") as service:
        assert service.client.post("/items", json=ITEM).status_code == 201
        assert service.client.post("/search/vector", json=QUERY).status_code == 200
        processes = postgres_processes(data_dir)[0 if stalled == "postmaster and all" else 1 :]
        for process in processes:
            process.suspend()
        try:
            begin = time.monotonic()
            with in_threads(1, lambda: service.client.post("/search/vector", json=QUERY)) as responses:
                assert seconds_of_health(service) < 0.02
                wait_until(lambda: service.client.get("/health").status_code == 503, seconds=6)
                assert service.client.get("/health").json()["database"] is False
            assert responses[0].status_code == 503
            assert time.monotonic() - begin < 1 + 5 + 5
        finally:
            for process in processes:
                process.send_signal(signal.SIGCONT)
        wait_until(lambda: service.client.get("/health").status_code == 200)
        assert service.client.post("/search/vector", json=QUERY).json()["ids"] == ["a"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_outage_under_load_is_two_lines_in_the_log(data_dir: Path, log_format: str) -> None:
    url = f"postgresql://postgres@/postgres?host={data_dir}/postgres"
    big = {"collection_name": "c", "ids": [f"{i}" for i in range(5000)], "embeddings": [[1.0] * 200] * 5000}
    requests = [
        ("POST", "/search/vector", {**QUERY, "query_embedding": [1.0] * 200}),
        ("POST", "/items/get", {"collection_name": "c"}),
        ("GET", "/health/ready", None),
        ("GET", "/collections", None),
    ]
    stopped = threading.Event()
    plain = {"accept-encoding": "identity"}  # compressed, all of it would be under way already

    def ask() -> int:
        refused = 0
        with httpx.Client(timeout=30) as client:
            while not stopped.is_set():
                for method, path, body in requests:
                    status = client.request(method, service.url + path, json=body).status_code
                    assert status in (200, 503)
                    refused += status == 503 and path != "/health/ready"
        return refused

    with Service(DATA_DIR=str(data_dir)) as postgres, Service(DATABASE_URL=url, LOG_FORMAT=log_format) as service:
        assert service.client.post("/items", json=big).status_code == 201
        with (
            service.client.stream("GET", "/collections/c/export", headers=plain) as export,
            in_threads(7, ask) as refusals,
        ):
            lines = export.iter_lines()
            next(lines)
            time.sleep(0.5)
            postgres.stop()
            time.sleep(3)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
            with Service(DATA_DIR=str(data_dir)):
                wait_until(lambda: "database is back" in service.log())
                stopped.set()
        log = service.log()
    assert sum(refusals) > 100
    assert "Traceback" not in log
    loggers = "refusals|probe|problems|pool|store|search|uvicorn"
    told = [line for line in log.splitlines() if re.search(loggers, line) and "service.requests" not in line]
    # On a machine that is busy some wait too long for a connection, which is another kind of refusal.
    busy = [line for line in told if re.search(r"requests are (refused|served again), ", line)]
    assert len(busy) <= 4
    away, cut, back = (line for line in told if line not in busy)
    assert "the database is away: " in away
    assert re.search(r"terminating connection|Connection refused|No such file|shutting down|closed the conn", away)
    assert "without completing response" in cut  # the export: no answer can be taken back
    counted = re.search(r"the database is back: (\d+) requests were refused in \d\.\d s", back)
    assert counted
    elsewhere = sum(int(found[1]) for line in busy if (found := re.search(r"(\d+) requests were refused", line)))
    assert int(counted[1]) + elsewhere == sum(refusals) + 1  # and the export
    assert " 503 " not in log
    assert '"status": 503' not in log


def test_clients_that_hang_up_do_not_disturb_the_others_in_their_batch(database: str) -> None:
    content = json.dumps(QUERY).encode()
    head = (
        f"POST /search/vector HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    request = head.encode() + b"\r\n\r\n" + content
    with Service(DATABASE_URL=database) as service:
        assert service.client.post("/items", json=ITEM).status_code == 201
        address = service.url.removeprefix("http://").split(":")

        def hang_up() -> None:
            for _ in range(50):
                with socket.create_connection((address[0], int(address[1]))) as connection:
                    connection.sendall(request)

        def search() -> list[Any]:
            with httpx.Client() as client:
                return [client.post(f"{service.url}/search/vector", json=QUERY, timeout=30).json() for _ in range(50)]

        with in_threads(3, hang_up), in_threads(3, search) as answers:
            pass
        assert len(answers) == 3
        assert all(answer["ids"] == ["a"] for several in answers for answer in several)
