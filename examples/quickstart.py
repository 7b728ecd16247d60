"""A first client: store 154 sentences with their embeddings, then search them by meaning.

    python examples/quickstart.py           asks the service at http://127.0.0.1:8000, or at --url
    python examples/quickstart.py --fresh   starts a service of its own, and removes it again

The embeddings were made with all-MiniLM-L6-v2 (examples/embed.py); no model is needed here. The
collection "quickstart" stays, for you to go on with.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np

HERE = Path(__file__).resolve().parent
COLLECTION = "quickstart"
BATCH = 50
START_TIMEOUT_S = 60.0


def call(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    """Send a request, with `body` as JSON, and return the JSON of the answer."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urlopen(request, timeout=60) as response:
        return json.loads(response.read() or "null")


def run(url: str) -> None:
    """Store the sentences, search, print what was found."""
    texts = json.loads((HERE / "sentences.json").read_bytes())
    sentences, queries = texts["sentences"], [query["text"] for query in texts["queries"]]
    with np.load(HERE / "minilm_sentences.npz") as vectors:
        embeddings, query_embeddings = vectors["sentences"].tolist(), vectors["queries"].tolist()

    for start in range(0, len(sentences), BATCH):
        batch = sentences[start : start + BATCH]
        items = {
            "collection_name": COLLECTION,
            "ids": [sentence["id"] for sentence in batch],
            "documents": [sentence["text"] for sentence in batch],
            "metadatas": [{"topic": sentence["topic"], "year": sentence["year"]} for sentence in batch],
            "embeddings": embeddings[start : start + BATCH],
        }
        call("POST", f"{url}/items", items)
    count = call("GET", f"{url}/collections/{COLLECTION}")["count"]
    print(f"{count} sentences in the collection {COLLECTION}. The nearest three to each query:")

    best = []
    for query, embedding in zip(queries, query_embeddings, strict=True):
        search = {"collection_name": COLLECTION, "query_embedding": embedding, "n_results": 3}
        hits = call("POST", f"{url}/search/vector", search)
        best.append(hits["ids"][0])
        print(f"\n{query}")
        for row in zip(hits["similarities"], hits["metadatas"], hits["documents"], strict=True):
            similarity, metadata, document = row
            print(f"  {similarity:5.2f}  {metadata['topic']:<11}  {document}")

    searches = {"collection_name": COLLECTION, "query_embeddings": query_embeddings, "n_results": 1}
    results = call("POST", f"{url}/search/vector/batch", searches)["results"]
    agree = sum(hits["ids"] == [first] for hits, first in zip(results, best, strict=True))
    print(f"\nThe {len(queries)} queries again, in one request: {agree} of {len(queries)} best sentences are the same.")


@contextmanager
def fresh_service() -> Iterator[str]:
    """Start a service with a new, empty database and give its URL; stop and remove both in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        # Started in the new folder, so that no .env of yours leads it to another database.
        environment = {**os.environ, "DATA_DIR": folder, "API_HOST": "127.0.0.1", "LOG_LEVEL": "WARNING"}
        environment["PYTHONPATH"] = str(HERE.parent)
        environment.pop("DATABASE_URL", None)
        command = [sys.executable, "-m", "pgvector_cli", "serve", "--port", str(port)]
        service = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not is_healthy(url):
                if service.poll() is not None or time.monotonic() > deadline:
                    sys.exit("The service did not start.")
                time.sleep(0.1)
            yield url
        finally:
            service.terminate()
            service.wait(timeout=30)


def is_healthy(url: str) -> bool:
    """Whether GET /health answers 200."""
    try:
        call("GET", f"{url}/health")
    except OSError:
        return False
    return True


def main() -> None:
    """Run against --url, or against a fresh service."""
    parser = argparse.ArgumentParser(description="Store sentences and search them by meaning.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="a running service (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="start a service for this run instead")
    options = parser.parse_args()
    try:
        with fresh_service() if options.fresh else nullcontext(options.url.rstrip("/")) as url:
            run(url)
    except HTTPError as error:
        sys.exit(f"{error.url} answered {error.code}: {error.read().decode()}")
    except URLError as error:
        sys.exit(f"No answer ({error.reason}). Is the service running? --fresh starts one.")


if __name__ == "__main__":
    main()
