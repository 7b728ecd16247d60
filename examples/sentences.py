"""What the examples share: a way to ask the service, and 154 sentences with their embeddings (made by embed.py).

The URL of the service is the first argument of the example, http://127.0.0.1:8000 if left out. Each example has a
collection of its own, which it removes at the end.
"""

import json
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

HERE = Path(__file__).resolve().parent
URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
COLLECTION = f"example_{Path(sys.argv[0]).stem}"

_texts = json.loads((HERE / "sentences.json").read_bytes())
sentences, queries = _texts["sentences"], [query["text"] for query in _texts["queries"]]
with np.load(HERE / "minilm_sentences.npz") as _vectors:
    embeddings, query_embeddings = _vectors["sentences"].tolist(), _vectors["queries"].tolist()
items: dict[str, Any] = {
    "ids": [sentence["id"] for sentence in sentences],
    "documents": [sentence["text"] for sentence in sentences],
    "metadatas": [{"topic": sentence["topic"], "year": sentence["year"]} for sentence in sentences],
    "embeddings": embeddings,
}


def call(path: str, **body: Any) -> Any:
    """Send a request about the collection and return the JSON of the answer, also that of a refusal with 409."""
    return _send("POST", path, {"collection_name": COLLECTION, **body}, and_accept=409)


def change_collection(**body: Any) -> None:
    """PATCH /collections/{name}"""
    _send("PATCH", f"/collections/{COLLECTION}", body)


def remove_collection() -> None:
    """DELETE /collections/{name}, if it is there"""
    _send("DELETE", f"/collections/{COLLECTION}", and_accept=404)


def _send(method: str, path: str, body: dict[str, Any] | None = None, and_accept: int = 200) -> Any:
    data = None if body is None else json.dumps(body).encode()
    try:
        request = Request(URL + path, data, {"Content-Type": "application/json"}, method=method)
        with urlopen(request, timeout=60) as response:
            return json.loads(response.read() or "null")
    except HTTPError as error:
        answer = error.read().decode()
        if error.code != and_accept:
            sys.exit(f"{error.url} answered {error.code}: {answer}")
        return json.loads(answer)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        sys.exit(f"No answer from {URL} ({reason}). Start the service with `make run`, or name its URL as an argument.")
