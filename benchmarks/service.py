"""Ingest, cold load, latency and memory of the service over HTTP, beside bare numpy on the same rows in the same run.

    make bench                                              100,000 rows of seeded clusters
    .venv/bin/python -m benchmarks.service --data FILE.npz  real embeddings instead (see benchmarks/data.py)

Latency is that of one client that waits for each answer: HTTP, JSON, version check, ranking, texts and metadata of the
ten winners. Bare numpy (product, argpartition, sort) and the service take turns, 50 searches each, with a pause in
between: the threads of OpenBLAS go on spinning after a product and would take a core from the other process. A cold
load is the first search by a VectorDB that has just been opened.
"""

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
from numpy.typing import NDArray

from benchmarks.data import vectors
from pgvector_db import VectorDB
from pgvector_service.codec import Rows
from pgvector_service.embedded import EmbeddedPostgres

BATCH = 1_000
SEARCHES = 400
TURN = 50
PAUSE_S = 0.3
CHECKED = 50
LOADS = 3


class Client:
    """One keep-alive connection, with as little of its own work as the standard library allows."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=120)

    def send(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The JSON answer; raises when the status is an error."""
        self.connection.request(method, path, body, {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        content = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {content.decode()}")
        return orjson.loads(content)


@contextmanager
def database() -> Iterator[str]:
    """A new PostgreSQL, gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        postgres = EmbeddedPostgres(Path(folder))
        try:
            yield postgres.start()
        finally:
            postgres.stop()


@contextmanager
def service(database_url: str) -> Iterator[tuple[Client, psutil.Process]]:
    """The service over a database, as a process of its own, with a client."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "DATABASE_URL": database_url, "LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "pgvector_cli", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            client = Client(f"http://127.0.0.1:{port}")
            try:
                client.send("GET", "/health")
                break
            except (OSError, RuntimeError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield client, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def bodies(rows: Rows) -> list[bytes]:
    """POST /items bodies of 1,000 rows with a text and metadata each."""
    made = []
    for start in range(0, len(rows), BATCH):
        numbers = range(start, min(start + BATCH, len(rows)))
        body = {
            "collection_name": "bench",
            "ids": [f"doc_{i}" for i in numbers],
            "documents": [f"Text number {i}, about as long as the title of a paper." for i in numbers],
            "metadatas": [{"source": "arxiv", "year": 2000 + i % 25} for i in numbers],
            "embeddings": rows[numbers.start : numbers.stop].tolist(),
        }
        made.append(orjson.dumps(body))
    return made


def by_numpy(rows: NDArray[Any], query: NDArray[Any], k: int = 10) -> list[int]:
    """What a search costs at least: one product with all rows (unit vectors, as models make them) and the best k."""
    scores = rows @ query
    best = np.argpartition(-scores, k)[:k]
    found: list[int] = best[np.argsort(-scores[best])].tolist()
    return found


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(rows: Rows, queries: Rows) -> dict[str, Any]:
    """All figures, as one flat dictionary."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    asked = [
        orjson.dumps({"collection_name": "bench", "query_embedding": query.tolist(), "n_results": 10})
        for query in queries
    ]
    batches = bodies(rows)
    with database() as url, service(url) as (client, process):
        base = process.memory_info().rss
        ingest = sum(seconds(lambda body=body: client.send("POST", "/items", body)) for body in batches)  # type: ignore[misc]
        loads = []
        for _ in range(LOADS):
            with VectorDB(url) as db:
                loads.append(seconds(lambda db=db: db.query_by_vector("bench", queries[:1])))  # type: ignore[misc]
        client.send("POST", "/search/vector", asked[0])
        bare: list[float] = []
        served: list[float] = []
        for start in range(0, SEARCHES, TURN):
            turn = range(start, start + TURN)
            time.sleep(PAUSE_S)
            bare += [seconds(lambda i=i: by_numpy(unit, queries[i])) for i in turn]  # type: ignore[misc]
            time.sleep(PAUSE_S)
            served += [seconds(lambda i=i: client.send("POST", "/search/vector", asked[i])) for i in turn]  # type: ignore[misc]
        wide = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        agree = 0
        for i in range(CHECKED):
            query = queries[i].astype(np.float64)
            best = wide[by_numpy(wide, query)] @ query / np.linalg.norm(query)
            agree += np.allclose(
                client.send("POST", "/search/vector", asked[i])["similarities"], best, rtol=0, atol=1e-9
            )
        held = client.send("GET", "/health")["memory_bytes"]
        resident = process.memory_info().rss - base
    return {
        "rows": len(rows),
        "width": rows.shape[1],
        "body_megabytes": round(len(batches[0]) / 1e6, 2),
        "ingest_vectors_per_s": round(len(rows) / ingest),
        "cold_load_s": round(float(np.median(loads)), 2),
        "search_ms": round(float(np.median(served)) * 1e3, 2),
        "search_ms_p99": round(float(np.percentile(served, 99)) * 1e3, 2),
        "numpy_ms": round(float(np.median(bare)) * 1e3, 2),
        "search_minus_numpy_ms": round(float(np.median(served) - np.median(bare)) * 1e3, 2),
        f"same_as_float64_of_{CHECKED}": agree,
        "memory_in_cache_over_raw": round(held / rows.nbytes, 3),
        "memory_resident_over_raw": round(resident / rows.nbytes, 3),
    }


def main() -> None:
    """Measure and print, one figure a line, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="an .npz file with int8 vectors, their scale, and queries")
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    figures = measure(*vectors(options.rows, SEARCHES, options.data))
    for name, value in figures.items():
        print(f"{name:28}{value:>12,}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
