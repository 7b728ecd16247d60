"""The same load on a table of pgvector with an HNSW index, over SQL: each client is a connection and a thread.

    python -m benchmarks.pgvector_load DATABASE_URL queries.npy --clients 32 --seconds 5 --ef-search 40

Prints what benchmarks.load prints.
"""

import argparse
import json
import threading
import time

import numpy as np
import psycopg2

from benchmarks.load import summary

SEARCH = """
SELECT id, document, metadata, embedding <=> %(query)s::vector AS distance
FROM pgvector_peer ORDER BY embedding <=> %(query)s::vector LIMIT 10
"""


def main() -> None:
    """Run one load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("queries")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--ef-search", type=int, default=40)
    options = parser.parse_args()
    queries = ["[" + ",".join(map(str, query)) + "]" for query in np.load(options.queries).tolist()]
    took: list[list[float]] = [[] for _ in range(options.clients)]
    begin = threading.Barrier(options.clients + 1)

    def ask(number: int) -> None:
        connection = psycopg2.connect(options.url)
        connection.autocommit = True
        with connection.cursor() as cur:
            cur.execute("SET hnsw.ef_search = %s", (options.ef_search,))
            begin.wait()
            deadline = time.perf_counter() + options.seconds
            i = number * len(queries) // options.clients
            while (sent := time.perf_counter()) < deadline:
                cur.execute(SEARCH, {"query": queries[i % len(queries)]})
                cur.fetchall()
                took[number].append(time.perf_counter() - sent)
                i += 1
        connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(options.clients)]
    for thread in threads:
        thread.start()
    begin.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    print(json.dumps(summary([second for one in took for second in one], time.perf_counter() - started)))


if __name__ == "__main__":
    main()
