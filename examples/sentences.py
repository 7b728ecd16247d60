"""What the examples share: a way to ask the service, and 154 sentences with their embeddings (made by embed.py).

The URL of the service is the first argument of the example, http://127.0.0.1:8000 if left out. Each example has a
collection of its own, which it removes at the end.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import requests

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
    answer = requests.post(URL + path, json={"collection_name": COLLECTION, **body}, timeout=60)
    if not answer.ok and answer.status_code != 409:
        sys.exit(answer.text)
    return answer.json()


def change_collection(**body: Any) -> None:
    """PATCH /collections/{name}"""
    requests.patch(f"{URL}/collections/{COLLECTION}", json=body, timeout=60).raise_for_status()


def remove_collection() -> None:
    """DELETE /collections/{name}, if it is there"""
    requests.delete(f"{URL}/collections/{COLLECTION}", timeout=60)
