"""kill -9 of the service and of the database during a write load: nothing acknowledged is lost, and it recovers."""

import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg2
import pytest

from conftest import Service, postgres_processes, wait_until

BATCH = 20


class Load:
    """Threads that write batches until told to stop, and remember which were acknowledged."""

    def __init__(self, service: Service, collection: str, writers: int = 3) -> None:
        self.service, self.collection = service, collection
        self.acknowledged: dict[int, None] = {}
        self.refused: set[int] = set()
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._write, args=(writer, writers)) for writer in range(writers)]
        for thread in self.threads:
            thread.start()

    def _write(self, writer: int, writers: int) -> None:
        with httpx.Client(base_url=self.service.url, timeout=30) as client:
            number = writer
            while not self.stopped.is_set():
                try:
                    status = client.post("/items", json=batch(self.collection, number)).status_code
                except httpx.TransportError:
                    time.sleep(0.02)
                else:
                    if status == 201:
                        self.acknowledged[number] = None
                    else:
                        self.refused.add(status)
                number += writers

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


def batch(collection: str, number: int) -> dict[str, Any]:
    return {
        "collection_name": collection,
        "ids": [f"{number}-{i}" for i in range(BATCH)],
        "documents": [f"batch {number}"] * BATCH,
        "embeddings": [[1.0, float(number), float(i)] for i in range(BATCH)],
    }


def check(service: Service, load: Load) -> None:
    """All that was acknowledged is there, batches are whole, and searches see just what is stored."""
    stored: dict[int, int] = {}
    cursor = None
    while True:
        page: dict[str, Any] = {"collection_name": load.collection, "limit": 10_000, "cursor": cursor, "include": []}
        answer = service.client.post("/items/get", json=page).json()
        for id_ in answer["ids"]:
            number = int(id_.split("-")[0])
            stored[number] = stored.get(number, 0) + 1
        cursor = answer["next_cursor"]
        if cursor is None:
            break
    assert set(load.acknowledged) <= set(stored)
    assert set(stored.values()) == {BATCH}
    for number in random.sample(sorted(load.acknowledged), 5):
        query = {"collection_name": load.collection, "query_embedding": [1.0, float(number), 7.0], "n_results": 1}
        found = service.client.post("/search/vector", json=query).json()
        assert (found["ids"], found["documents"]) == ([f"{number}-7"], [f"batch {number}"])
    query = {"collection_name": load.collection, "query_embedding": [1.0, 0.0, 0.0], "n_results": 10_000}
    found = service.client.post("/search/vector", json=query).json()
    assert len(found["ids"]) == min(10_000, BATCH * len(stored))


def test_a_killed_service_loses_nothing_that_it_acknowledged(data_dir: Path) -> None:
    for round_ in range(4):
        with Service(DATA_DIR=str(data_dir)) as service:
            load = Load(service, f"c{round_}")
            wait_until(lambda load=load: len(load.acknowledged) > 10)  # type: ignore[misc]
            time.sleep(random.uniform(0, 0.3))
            service.stop(signal.SIGKILL)
            load.stop()
        with Service(DATA_DIR=str(data_dir)) as service:
            check(service, load)


def test_a_crash_of_the_database_loses_nothing_that_was_acknowledged(data_dir: Path) -> None:
    with Service(DATA_DIR=str(data_dir)) as service:
        for round_ in range(4):
            load = Load(service, f"c{round_}")
            wait_until(lambda load=load: len(load.acknowledged) > 10)  # type: ignore[misc]
            # One killed backend makes PostgreSQL restart all of them and recover from its log.
            random.choice(backends(data_dir)).kill()
            before = len(load.acknowledged)
            wait_until(lambda load=load, before=before: len(load.acknowledged) > before + 20)  # type: ignore[misc]
            load.stop()
            assert load.refused <= {503}
            check(service, load)


@pytest.mark.parametrize("looks_at_the_incarnation", [True, False])
def test_commits_that_a_crash_takes_back_do_not_stay_in_memory(data_dir: Path, looks_at_the_incarnation: bool) -> None:
    prelude = (
        ""
        if looks_at_the_incarnation
        else "from pgvector_service.memory.store import Store; Store._greet = lambda *_: None"
    )
    query: dict[str, Any] = {"collection_name": "c", "query_embedding": [1.0, 0.0, 0.0], "n_results": 1000}
    with Service(prelude=prelude, DATA_DIR=str(data_dir)) as service:
        assert service.client.post("/items", json=batch("c", 0)).status_code == 201
        writer = psycopg2.connect(f"postgresql://postgres:@/postgres?host={data_dir}/postgres")
        writer.autocommit = True
        with writer.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
            cursor.execute("SELECT pg_reload_conf()")
            time.sleep(0.5)
            cursor.execute("SET synchronous_commit = off")
            for number in range(5):
                cursor.execute(
                    "INSERT INTO vector_documents (id, collection_name, embedding) VALUES (%s, 'c', '{-1,-2,-3}')",
                    (f"lost{number}",),
                )
        for _ in range(2):
            assert len(service.client.post("/search/vector", json=query).json()["ids"]) == BATCH + 5
        random.choice(backends(data_dir)).kill()
        writer.close()
        # As many versions as were lost, before the next search: their numbers do not tell.
        number = 1
        while number <= 5:
            if service.client.post("/items", json=batch("c", number)).status_code == 201:
                number += 1
        page = {"collection_name": "c", "limit": 1000, "include": []}
        stored = service.client.post("/items/get", json=page).json()["ids"]
        assert len(stored) == 6 * BATCH  # the five were lost indeed
        nearest = query | {"query_embedding": [1.0, 5.0, 7.0], "n_results": 1}
        found = service.client.post("/search/vector", json=nearest).json()["ids"]
        assert (found == ["5-7"]) is looks_at_the_incarnation


def backends(data_dir: Path) -> list[psutil.Process]:
    """The database's processes that serve connections."""
    return [process for process in postgres_processes(data_dir) if "[local] " in " ".join(process.cmdline())]
