"""Searches a second and their latency from a thousand vectors to a million, with one client and with 32.

    .venv/bin/python -m benchmarks.sizes [--data FILE.npz] [--sizes 1000 10000 100000 1000000]

Prints a table, writes benchmarks/results/sizes.json, and draws benchmarks/results/sizes.png with the peers' Python.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks import load
from benchmarks.compare import BATCH, CLIENTS, QUERIES, RESULTS, by_numpy, search_bodies, settle, wait_until_compressed
from benchmarks.data import documents, metadatas, vectors
from benchmarks.servers import PEERS, Client, database, install_peers, service
from pgvector_db import VectorDB
from pgvector_service.arrays import Rows

SIZES = (1_000, 10_000, 100_000, 1_000_000)


def fill(url: str, rows: Rows) -> None:
    """The collection `bench`, without HTTP."""
    with VectorDB(url) as db:
        for start in range(0, len(rows), BATCH):
            numbers = range(start, min(start + BATCH, len(rows)))
            db.add_with_embeddings(
                "bench",
                [f"doc_{i}" for i in numbers],
                documents(numbers),
                metadatas(numbers),
                rows[numbers.start : numbers.stop],
            )
    settle(url)


def exact_ms(client: Client, queries: Rows) -> float:
    """The median latency of an exact search, one client."""
    took = []
    for query in queries[:50].tolist():
        body = orjson.dumps({"collection_name": "bench", "query_embedding": query, "exact": True})
        begin = time.perf_counter()
        client.send("POST", "/search/vector", body)
        took.append(time.perf_counter() - begin)
    return float(np.median(took)) * 1e3


def measure(rows: Rows, queries: Rows, seconds: float, folder: Path) -> dict[str, Any]:
    """The figures for one size."""
    bodies = search_bodies(queries, folder / "service.ndjson")
    figures: dict[str, Any] = {"rows": len(rows), "numpy_ms": by_numpy(rows, queries)}
    with database() as url:
        fill(url, rows)
        with service(url) as (client, _):
            begin = time.perf_counter()
            figures["search"] = wait_until_compressed(client, queries)
            figures["ready_s"] = time.perf_counter() - begin
            figures["exact_ms"] = exact_ms(client, queries)
            for n in CLIENTS:
                runs = [
                    load.run("benchmarks.load", f"{client.url}/search/vector", bodies, n, seconds) for _ in range(3)
                ]
                for key in ("queries_per_s", "median_ms", "p99_ms"):
                    figures[f"{key} {n}"] = float(np.median([run[key] for run in runs]))
    return figures


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="an .npz file with int8 vectors, their scale, and queries")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    os.chdir(Path(__file__).parent.parent)
    install_peers()
    rows, queries = vectors(max(options.sizes), QUERIES, options.data)
    found = []
    print(f"{'rows':>10}{'q/s, 1':>9}{'median ms':>11}{'q/s, 32':>9}{'exact ms':>10}{'numpy ms':>10}  how")
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            one = measure(rows[:size], queries, options.seconds, Path(folder))
            found.append(one)
            print(
                f"{size:10,}{one['queries_per_s 1']:9,.0f}{one['median_ms 1']:11.2f}{one['queries_per_s 32']:9,.0f}"
                f"{one['exact_ms']:10.2f}{one['numpy_ms']:10.2f}  {one['search']}",
                flush=True,
            )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sizes.json").write_text(json.dumps(found, indent=1) + "\n")
    subprocess.run([str(PEERS / "bin/python"), "benchmarks/plot.py", RESULTS / "sizes.json"], check=True)


if __name__ == "__main__":
    main()
