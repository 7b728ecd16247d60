"""Filters: search, and count, only what matches conditions on metadata and texts.

python examples/filters.py [URL]    URL of a running service, http://127.0.0.1:8000 if left out
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import requests

HERE = Path(__file__).resolve().parent
URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
COLLECTION = "example_filters"


def call(path: str, **body: Any) -> Any:
    """Send a request about the collection and return the JSON of the answer."""
    answer = requests.post(URL + path, json={"collection_name": COLLECTION, **body}, timeout=60)
    if not answer.ok:
        sys.exit(answer.text)
    return answer.json()


texts = json.loads((HERE / "sentences.json").read_bytes())
sentences, queries = texts["sentences"], [query["text"] for query in texts["queries"]]
with np.load(HERE / "minilm_sentences.npz") as vectors:
    embeddings, query_embeddings = vectors["sentences"].tolist(), vectors["queries"].tolist()
call(
    "/items",
    ids=[sentence["id"] for sentence in sentences],
    documents=[sentence["text"] for sentence in sentences],
    metadatas=[{"topic": sentence["topic"], "year": sentence["year"]} for sentence in sentences],
    embeddings=embeddings,
)

filters: dict[str, dict[str, Any]] = {
    "no filter": {},
    "a topic": {"where": {"topic": "climate"}},
    "years from 2020 on": {"where": {"year": {"$gte": 2020}}},
    "two topics, not of 2025": {"where": {"topic": {"$in": ["travel", "law"]}, "year": {"$ne": 2025}}},
    "either of two conditions": {"where": {"$or": [{"topic": "music"}, {"year": {"$lt": 2017}}]}},
    "a piece of the text": {"where_document": {"$icontains": "night"}},
    "the words of the text": {"where_document": {"$matches": "star or planets"}},
}
print(f"The nearest sentence to: {queries[6]}")
for name, filter in filters.items():
    count = call("/items/count", **filter)["count"]
    hits = call("/search/vector", query_embedding=query_embeddings[6], n_results=1, **filter)
    print(f"  {name:<25}{count:4} match  {hits['ids'][0]:<14}{hits['documents'][0]}")

requests.delete(f"{URL}/collections/{COLLECTION}", timeout=60)
