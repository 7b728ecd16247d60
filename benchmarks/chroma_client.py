"""Chroma's side of the ingest, run by the Python of the peers: its own client, batches of 1,000.

Arguments: the server's port and an .npy file. Prints JSON: the collection's id and vectors a second.
"""

import json
import sys
import time

import chromadb
import numpy as np

from benchmarks.data import documents, metadatas

BATCH = 1_000


def main() -> None:
    """Fill a collection with the same texts and metadata as that of the service."""
    port, file = sys.argv[1:]
    rows = np.load(file)
    client = chromadb.HttpClient(host="127.0.0.1", port=int(port))
    collection = client.create_collection("bench", configuration={"hnsw": {"space": "cosine"}})
    begin = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        numbers = range(start, min(start + BATCH, len(rows)))
        collection.upsert(
            ids=[f"doc_{i}" for i in numbers],
            documents=documents(numbers),
            metadatas=metadatas(numbers),
            embeddings=rows[numbers.start : numbers.stop],
        )
    seconds = time.perf_counter() - begin
    print(json.dumps({"id": str(collection.id), "vectors_per_s": len(rows) / seconds}))


if __name__ == "__main__":
    main()
