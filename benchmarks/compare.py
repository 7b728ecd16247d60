"""The service beside `chroma run`, pgvector's HNSW index over SQL, and bare numpy: same rows, same queries, same run.

    make bench                                              100,000 x 384 of seeded clusters
    .venv/bin/python -m benchmarks.compare --data FILE.npz  real embeddings instead (see benchmarks/data.py)

All servers are up at once and idle but for the one that is asked; they take turns, several rounds, and medians count.
Each has its default settings. Every answer holds ids, documents, metadata and distances of ten items. Recall is that of
the default search, against float64, rows as far as the tenth counted as hits. Ingest includes what the client does to
make the bodies: Chroma's own client, and orjson for the service. A cold load is the first search by a VectorDB that has
just been opened. Prints a table and JSON, which it also writes to benchmarks/results/compare.json.
"""

import argparse
import base64
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import psycopg2
from numpy.typing import NDArray

from benchmarks import load, pgvector_load
from benchmarks.data import documents, metadatas, vectors
from benchmarks.servers import PEERS, Client, chroma, database, install_peers, service
from pgvector_db import VectorDB
from pgvector_service.arrays import Rows
from pgvector_service.ranking import compression

BATCH = 1_000
QUERIES = 500
LOADS = 3
CLIENTS = (1, 32)
EF_SEARCH = (40, 100)
RESULTS = Path(__file__).parent / "results"


def items(rows: Rows, start: int, *, base64_text: bool, collection: str = "bench") -> bytes:
    """A POST /items body of up to 1,000 rows from `start` on, with a text and metadata each."""
    part = rows[start : start + BATCH]
    numbers = range(start, start + len(part))
    return orjson.dumps(
        {
            "collection_name": collection,
            "ids": [f"doc_{i}" for i in numbers],
            "documents": documents(numbers),
            "metadatas": metadatas(numbers),
            "embeddings": [base64.b64encode(row).decode() for row in part] if base64_text else part.tolist(),
        }
    )


def ingest(client: Client, rows: Rows, *, base64_text: bool, collection: str = "bench") -> float:
    """Vectors a second, from arrays to the last answer."""
    begin = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        client.send("POST", "/items", items(rows, start, base64_text=base64_text, collection=collection))
    return len(rows) / (time.perf_counter() - begin)


def search_bodies(queries: Rows, file: Path) -> Path:
    """A file of POST /search/vector bodies."""
    bodies = ({"collection_name": "bench", "query_embedding": query, "n_results": 10} for query in queries.tolist())
    file.write_bytes(b"\n".join(map(orjson.dumps, bodies)))
    return file


def wait_until_compressed(client: Client, queries: Rows) -> dict[str, Any]:
    """Search once, then wait until the service has made its codes; how it searches."""
    body = {"collection_name": "bench", "query_embedding": queries[0].tolist(), "n_results": 10}
    client.send("POST", "/search/vector", orjson.dumps(body))
    deadline = time.monotonic() + 300
    while True:
        client.send("POST", "/search/vector", orjson.dumps(body))
        collection = client.send("GET", "/collections/bench")
        how: dict[str, Any] = collection["search"] or {}
        count, width = collection["count"], collection["dimension"]
        small = count < compression.MIN_ROWS or 4 * count * width < compression.MIN_BYTES
        if small or how.get("method") == "compressed" or time.monotonic() > deadline:
            # Blocks are made one after the other.
            time.sleep(1 if small else 1 + count / 50_000)
            return how
        time.sleep(0.2)


def settle(url: str) -> None:
    """Do now what autovacuum would do in the middle of the measurements."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    connection.cursor().execute("VACUUM ANALYZE")
    connection.close()


def fill_chroma(peer: Client, rows: Path) -> tuple[str, float]:
    """The same items in Chroma: the path to search them, and vectors a second."""
    command = [str(PEERS / "bin/python"), "-m", "benchmarks.chroma_client", peer.url.rsplit(":", 1)[1], str(rows)]
    filled = json.loads(subprocess.check_output(command))
    path = f"/api/v2/tenants/default_tenant/databases/default_database/collections/{filled['id']}/query"
    return path, filled["vectors_per_s"]


def fill_pgvector(url: str, rows: Rows) -> float:
    """A table of pgvector with the same items and an HNSW index of default parameters; seconds for the index."""
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cur:
        cur.execute(
            f"CREATE TABLE pgvector_peer (id TEXT, document TEXT, metadata JSONB, embedding vector({rows.shape[1]}))"
        )
        cur.execute(
            """
            INSERT INTO pgvector_peer
            SELECT id, document, metadata, embedding::vector FROM vector_documents WHERE collection_name = 'bench'
            """
        )
        begin = time.perf_counter()
        cur.execute("SET maintenance_work_mem = '1GB'")
        cur.execute("CREATE INDEX ON pgvector_peer USING hnsw (embedding vector_cosine_ops)")
        seconds = time.perf_counter() - begin
    connection.close()
    return seconds


def recall(found: Callable[[list[float]], list[str]], rows: Rows, queries: Rows) -> float:
    """The share of the ten nearest that is found, in float64; rows as far as the tenth count as hits."""
    wide = unit(rows.astype(np.float64))
    hits = 0
    for query in queries:
        scores = wide @ (query.astype(np.float64) / np.linalg.norm(query))
        tenth = np.partition(scores, -10)[-10]
        near = [int(id_.removeprefix("doc_")) for id_ in found(query.tolist())]
        hits += min(10, int((scores[near] >= tenth - 1e-12).sum()))
    return hits / (10 * len(queries))


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows of length 1."""
    made: NDArray[Any] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return made


def by_numpy(rows: Rows, queries: Rows) -> float:
    """Milliseconds for what an exact search costs at least: one product with all rows, and the best ten."""
    wide = unit(rows).astype(np.float32)
    took = []
    for query in queries[:50]:
        begin = time.perf_counter()
        scores = wide @ query
        best = np.argpartition(-scores, 10)[:10]
        best[np.argsort(-scores[best])]
        took.append(time.perf_counter() - begin)
    return float(np.median(took)) * 1e3


def health_p99(client: Client, while_running: "subprocess.Popen[str]") -> float:
    """Milliseconds of /health, asked 50 times a second by a client of its own until the load has ended."""
    took = []
    while while_running.poll() is None:
        begin = time.perf_counter()
        client.send("GET", "/health")
        took.append(time.perf_counter() - begin)
        time.sleep(0.02)
    return float(np.percentile(took[5:-5], 99)) * 1e3


def one_write_a_second(client: Client, rows: Rows, stop: threading.Event) -> None:
    """Ten changed rows each second."""
    number = 0
    while not stop.wait(1.0):
        number = (number + 10) % len(rows)
        client.send("POST", "/items", items(rows[number : number + 10], 0, base64_text=True))


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(np.median(values))


def measure(rows: Rows, queries: Rows, rounds: int, seconds: float, folder: Path) -> dict[str, Any]:
    """All figures."""
    bodies = search_bodies(queries, folder / "service.ndjson")
    np.save(folder / "rows.npy", rows)
    np.save(folder / "queries.npy", queries)
    figures: dict[str, Any] = {"rows": len(rows), "width": rows.shape[1], "numpy_ms": by_numpy(rows, queries)}

    with database() as url, chroma() as chroma_client:
        with service(url) as (client, _):
            lists, texts = [], []
            half = rows[: max(BATCH, len(rows) // 2)]
            for name in ("a", "b"):
                lists.append(ingest(client, half, base64_text=False, collection=f"lists_{name}"))
                texts.append(ingest(client, half, base64_text=True, collection=f"texts_{name}"))
            for collection in ("lists_a", "lists_b", "texts_a", "texts_b"):
                client.send("DELETE", f"/collections/{collection}")
            texts.append(ingest(client, rows, base64_text=True))
        figures["ingest"] = {"service base64": median(texts), "service lists": median(lists)}
        path, figures["ingest"]["chroma"] = fill_chroma(chroma_client, folder / "rows.npy")
        chroma_bodies = folder / "chroma.ndjson"
        asked = ({"query_embeddings": [query], "n_results": 10, "include": CHROMA_FIELDS} for query in queries.tolist())
        chroma_bodies.write_bytes(b"\n".join(map(orjson.dumps, asked)))
        figures["pgvector_index_s"] = fill_pgvector(url, rows)
        settle(url)

        loads = []
        for _ in range(LOADS):
            with VectorDB(url, recall_target=1) as db:
                begin = time.perf_counter()
                db.query_by_vector("bench", queries[:1])
                loads.append(time.perf_counter() - begin)
        figures["cold_load_s"] = median(loads)

        with service(url) as (client, process):
            base = process.memory_info().rss
            figures["search"] = wait_until_compressed(client, queries)
            memory = client.send("GET", "/health")["memory_bytes"]
            figures["memory_counted_over_raw"] = memory / rows.nbytes
            figures["memory_resident_over_raw"] = (process.memory_info().rss - base) / rows.nbytes

            one = ("benchmarks.load", "benchmarks.pgvector_load")
            turns: dict[str, Callable[[int], dict[str, Any]]] = {
                "chroma": lambda n: load.run(one[0], chroma_client.url + path, chroma_bodies, n, seconds),
                "service": lambda n: load.run(one[0], f"{client.url}/search/vector", bodies, n, seconds),
            }
            for ef in EF_SEARCH:
                turns[f"pgvector ef {ef}"] = lambda n, ef=ef: load.run(  # type: ignore[misc]
                    one[1], url, folder / "queries.npy", n, seconds, "--ef-search", str(ef)
                )
            measured: dict[str, list[dict[str, Any]]] = {f"{name} {n}": [] for n in CLIENTS for name in turns}
            for _ in range(rounds):
                for n in CLIENTS:
                    for name, turn in turns.items():
                        measured[f"{name} {n}"].append(turn(n))
                        print(f"{name}, {n} clients: {measured[f'{name} {n}'][-1]}", flush=True)
            figures["loads"] = {
                name: {key: median([run[key] for run in runs]) for key in ("queries_per_s", "median_ms", "p99_ms")}
                for name, runs in measured.items()
            }
            figures["ratios"] = {
                str(n): median(
                    [
                        ours["queries_per_s"] / theirs["queries_per_s"]
                        for ours, theirs in zip(measured[f"service {n}"], measured[f"chroma {n}"], strict=True)
                    ]
                )
                for n in CLIENTS
            }
            figures["recall"] = all_recalls(client, chroma_client, path, url, rows, queries)

            health, quiet, busy = [], [], []
            for _ in range(rounds):
                begun = load.start(one[0], f"{client.url}/search/vector", bodies, 32, seconds)
                health.append(health_p99(Client(client.url), begun))
                load.finish(begun)
                quiet.append(turns["service"](32)["queries_per_s"])
                stop = threading.Event()
                writer = threading.Thread(target=one_write_a_second, args=(Client(client.url), rows, stop))
                writer.start()
                busy.append(turns["service"](32)["queries_per_s"])
                stop.set()
                writer.join()
            figures["health_p99_ms"] = median(health)
            figures["with_writes_over_without"] = median([b / q for b, q in zip(busy, quiet, strict=True)])

        with service(url, WEB_CONCURRENCY="2") as (client, _):
            for _ in range(6):
                wait_until_compressed(Client(client.url), queries)
            figures["two_workers"] = {
                str(n): load.run(one[0], f"{client.url}/search/vector", bodies, n, seconds)["queries_per_s"]
                for n in CLIENTS
            }
    return figures


CHROMA_FIELDS = ["documents", "metadatas", "distances"]


def all_recalls(client: Client, peer: Client, path: str, url: str, rows: Rows, queries: Rows) -> dict[str, float]:
    """Recall of each server, and of the service's exact search."""

    def of_service(exact: bool) -> Callable[[list[float]], list[str]]:
        def found(query: list[float]) -> list[str]:
            body = {"collection_name": "bench", "query_embedding": query, "n_results": 10, "exact": exact}
            ids: list[str] = client.send("POST", "/search/vector", orjson.dumps(body))["ids"]
            return ids

        return found

    def of_chroma(query: list[float]) -> list[str]:
        body = {"query_embeddings": [query], "n_results": 10, "include": CHROMA_FIELDS}
        ids: list[str] = peer.send("POST", path, orjson.dumps(body))["ids"][0]
        return ids

    recalls = {
        "service": recall(of_service(False), rows, queries),
        "service exact": recall(of_service(True), rows, queries[:100]),
        "chroma": recall(of_chroma, rows, queries),
    }
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cur:
        for ef in EF_SEARCH:
            cur.execute("SET hnsw.ef_search = %s", (ef,))

            def of_pgvector(query: list[float]) -> list[str]:
                cur.execute(pgvector_load.SEARCH, {"query": str(query)})
                return [row[0] for row in cur.fetchall()]

            recalls[f"pgvector ef {ef}"] = recall(of_pgvector, rows, queries)
    connection.close()
    return recalls


def table(figures: dict[str, Any]) -> str:
    """The figures beside the targets, for people."""
    loads, ingested, found = figures["loads"], figures["ingest"], figures["recall"]
    lines = [f"{figures['rows']:,} x {figures['width']}, {psutil.cpu_count()} cores", ""]
    lines.append(f"{'':24}{'queries/s, 1':>14}{'p99 ms':>9}{'queries/s, 32':>15}{'p99 ms':>9}{'recall@10':>11}")
    for name in ("service", "chroma", *(f"pgvector ef {ef}" for ef in EF_SEARCH)):
        one, many = loads[f"{name} 1"], loads[f"{name} 32"]
        lines.append(
            f"{name:24}{one['queries_per_s']:14,.0f}{one['p99_ms']:9.1f}{many['queries_per_s']:15,.0f}"
            f"{many['p99_ms']:9.1f}{found[name]:11.4f}"
        )
    lines += [
        f"{'service / chroma':24}{figures['ratios']['1']:14.2f}{'':9}{figures['ratios']['32']:15.2f}",
        f"{'service, two workers':24}{figures['two_workers']['1']:14,.0f}{'':9}{figures['two_workers']['32']:15,.0f}",
        "",
        f"service exact recall@10             {found['service exact']:.4f}",
        f"bare numpy, one query               {figures['numpy_ms']:.2f} ms",
        f"ingest, base64                      {ingested['service base64']:,.0f} vectors/s"
        f" = {ingested['service base64'] / ingested['chroma']:.1f} x chroma",
        f"ingest, JSON lists                  {ingested['service lists']:,.0f} vectors/s"
        f" = {ingested['service lists'] / ingested['chroma']:.1f} x chroma",
        f"ingest, chroma with its client      {ingested['chroma']:,.0f} vectors/s",
        f"cold load                           {figures['cold_load_s']:.2f} s",
        f"memory as counted / resident        {figures['memory_counted_over_raw']:.3f}"
        f" / {figures['memory_resident_over_raw']:.2f} x raw float32",
        f"with a write a second / without     {figures['with_writes_over_without']:.2f}",
        f"p99 of /health under 32 clients     {figures['health_p99_ms']:.1f} ms",
        f"how it is searched                  {figures['search']}",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="an .npz file with int8 vectors, their scale, and queries")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    os.chdir(Path(__file__).parent.parent)
    install_peers()
    with tempfile.TemporaryDirectory() as folder:
        rows, queries = vectors(options.rows, QUERIES, options.data)
        figures = measure(rows, queries, options.rounds, options.seconds, Path(folder))
    print(table(figures))
    print(json.dumps(figures))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "compare.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
