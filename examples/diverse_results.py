"""Diverse results: not five times the same, by mmr or by groups.

python examples/diverse_results.py [URL]    URL of a running service, http://127.0.0.1:8000 if left out
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import requests

HERE = Path(__file__).resolve().parent
URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
COLLECTION = "example_diverse_results"


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
# As in collections that are gathered from many places, some sentences are there twice.
copies = [{**sentence, "id": f"{sentence['id']}-copy"} for sentence in sentences if sentence["topic"] == "climate"]
again = [row for sentence, row in zip(sentences, embeddings, strict=True) if sentence["topic"] == "climate"]
call(
    "/items",
    ids=[sentence["id"] for sentence in sentences + copies],
    documents=[sentence["text"] for sentence in sentences + copies],
    metadatas=[{"topic": sentence["topic"]} for sentence in sentences + copies],
    embeddings=embeddings + again,
)

print(queries[6])
searches: dict[str, dict[str, Any]] = {
    "The nearest": {},
    # Each next one is a compromise between near to the query and unlike those before it.
    "With mmr": {"mmr": {"diversity": 0.6, "candidates": 30}},
    "The best of each topic": {"group_by": "topic"},
    "At most two of each topic": {"group_by": "topic", "group_size": 2},
}
for name, options in searches.items():
    hits = call("/search/vector", query_embedding=query_embeddings[6], n_results=5, **options)
    topics = {metadata["topic"] for metadata in hits["metadatas"]}
    print(f"{name}: {len(set(hits['documents']))} different sentences, {len(topics)} topics")
    for similarity, id_, document in zip(hits["similarities"], hits["ids"], hits["documents"], strict=True):
        print(f"  {similarity:5.2f}  {id_:<16}{document}")

requests.delete(f"{URL}/collections/{COLLECTION}", timeout=60)
