"""What a filter, a text, or a choice among the best adds to a search: each beside the plain search, in one run.

    .venv/bin/python -m benchmarks.ways [--data FILE.npz] [--rows 100000]

One service with its default settings and, for the filters that it knows too, `chroma run`, with the same items; median
latency and searches a second of one client, and of 32. "New" filters are others in every request, so that none is
remembered. Prints a table and writes benchmarks/results/ways.json.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks import load
from benchmarks.compare import CHROMA_FIELDS, CLIENTS, QUERIES, RESULTS, fill_chroma, median, wait_until_compressed
from benchmarks.data import vectors, words
from benchmarks.servers import Client, chroma, database, install_peers, service
from benchmarks.sizes import fill
from pgvector_service.arrays import Rows

MANY = 50
# Words of which a handful to some ten thousand documents have each one.
WORDS = (10, 300)


def requests(queries: Rows, rows: int) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """For each way to search its route and some bodies."""
    never = count(-1, -1)
    texts = [words()[i % (WORDS[1] - WORDS[0]) + WORDS[0]] for i in range(len(queries))]

    def vector(more: Callable[[int], dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
        return "vector", [{"query_embedding": query, **more(i)} for i, query in enumerate(queries.tolist())]

    def new(i: int, key: str, value: int) -> dict[str, Any]:
        return {"where": {key: {"$in": [value, next(never)]}}}

    both = [{"query_embedding": query, "query_text": text} for query, text in zip(queries.tolist(), texts, strict=True)]
    return {
        "plain": vector(lambda i: {}),
        "1 %, remembered": vector(lambda i: {"where": {"cent": 7}}),
        "1 %, new": vector(lambda i: new(i, "cent", i % 100)),
        "50 %, remembered": vector(lambda i: {"where": {"half": 1}}),
        "50 %, new": vector(lambda i: new(i, "half", i % 2)),
        "where_document, new": vector(lambda i: {"where_document": {"$matches": f"{texts[i]} -nothing{i}"}}),
        "mmr": vector(lambda i: {"mmr": {"diversity": 0.5, "candidates": 100}}),
        "group_by": vector(lambda i: {"group_by": "year"}),
        "similar": ("similar", [{"ids": [f"doc_{i * 97 % rows}"]} for i in range(len(queries))]),
        "text": ("text", [{"query_text": text} for text in texts]),
        "hybrid": ("hybrid", both),
        "hybrid, 1 %": ("hybrid", [{**body, "where": {"cent": 7}} for body in both]),
    }


def recalls(client: Client, queries: Rows) -> dict[str, float]:
    """The share of what an exact filtered search finds that the default one finds too."""
    found: dict[str, float] = {}
    for name, where in (("1 %", {"cent": 7}), ("50 %", {"half": 1}), ("4 %", {"year": 2004})):
        same = 0
        for query in queries[:100].tolist():
            body = {"collection_name": "bench", "query_embedding": query, "where": where}
            ids = [
                client.send("POST", "/search/vector", orjson.dumps({**body, "exact": exact}))["ids"]
                for exact in (False, True)
            ]
            same += len(set(ids[0]) & set(ids[1]))
        found[name] = same / (10 * len(queries[:100]))
    return found


def batch_ms(client: Client, queries: Rows) -> dict[str, float]:
    """Milliseconds for one request with many queries, and for as many requests."""
    took: dict[str, list[float]] = {"one request": [], "many requests": []}
    common = {"collection_name": "bench", "where": {"half": 1}}
    many = orjson.dumps({**common, "query_embeddings": queries[:MANY].tolist()})
    singles = [orjson.dumps({**common, "query_embedding": query}) for query in queries[:MANY].tolist()]
    for _ in range(9):
        begin = time.perf_counter()
        client.send("POST", "/search/vector/batch", many)
        took["one request"].append((time.perf_counter() - begin) * 1e3)
        begin = time.perf_counter()
        for body in singles:
            client.send("POST", "/search/vector", body)
        took["many requests"].append((time.perf_counter() - begin) * 1e3)
    return {name: median(values) for name, values in took.items()}


def measure(rows: Rows, queries: Rows, rounds: int, seconds: float, folder: Path) -> dict[str, Any]:
    """All figures."""
    np.save(folder / "rows.npy", rows)
    figures: dict[str, Any] = {"rows": len(rows)}
    turns: dict[str, Callable[[int], dict[str, Any]]] = {}

    def add(name: str, url: str, bodies: list[dict[str, Any]]) -> None:
        file = folder / f"{len(turns)}.ndjson"
        file.write_bytes(b"\n".join(map(orjson.dumps, bodies)))
        turns[name] = lambda n: load.run("benchmarks.load", url, file, n, seconds)

    with database() as url, chroma() as peer:
        fill(url, rows)
        path, _ = fill_chroma(peer, folder / "rows.npy")
        with service(url) as (client, _):
            figures["search"] = wait_until_compressed(client, queries)
            for name, (route, bodies) in requests(queries, len(rows)).items():
                add(name, f"{client.url}/search/{route}", [{"collection_name": "bench", **body} for body in bodies])
            asked = [{"query_embeddings": [query], "include": CHROMA_FIELDS} for query in queries.tolist()]
            for name, where in (("plain", None), ("1 %", {"cent": 7}), ("50 %", {"half": 1})):
                add(f"chroma, {name}", peer.url + path, [{**body, "where": where} for body in asked])
            figures["recall"] = recalls(client, queries)
            figures["batch_ms"] = batch_ms(client, queries)
            measured: dict[str, list[dict[str, Any]]] = {}
            for _ in range(rounds):
                for name, turn in turns.items():
                    for n in CLIENTS:
                        measured.setdefault(f"{name} {n}", []).append(turn(n))
                        print(f"{name}, {n} clients: {measured[f'{name} {n}'][-1]}", flush=True)
    figures["loads"] = {
        name: {key: median([run[key] for run in runs]) for key in ("queries_per_s", "median_ms", "p99_ms")}
        for name, runs in measured.items()
    }
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    loads = figures["loads"]
    lines = [f"{figures['rows']:,} rows", f"{'':24}{'median ms, 1':>13}{'more than plain':>17}{'queries/s, 32':>15}"]
    for name in [name[:-2] for name in loads if name.endswith(" 1")]:
        one, plain = loads[f"{name} 1"]["median_ms"], loads["plain 1"]["median_ms"]
        lines.append(f"{name:24}{one:13.2f}{one - plain:17.2f}{loads[f'{name} 32']['queries_per_s']:15,.0f}")
    batch = figures["batch_ms"]
    lines += [
        "",
        f"recall of filtered searches   {figures['recall']}",
        f"{MANY} queries in one request      {batch['one request']:.1f} ms; in {MANY}: {batch['many requests']:.1f} ms",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="an .npz file with int8 vectors, their scale, and queries")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    os.chdir(Path(__file__).parent.parent)
    install_peers()
    rows, queries = vectors(options.rows, QUERIES, options.data)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(rows, queries, options.rounds, options.seconds, Path(folder))
    print(table(figures))
    print(json.dumps(figures))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "ways.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
