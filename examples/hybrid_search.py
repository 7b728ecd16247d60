"""Hybrid search: what the embedding finds and what the words find, in one ranking.

python examples/hybrid_search.py [URL]    URL of a running service, http://127.0.0.1:8000 if left out
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import requests

HERE = Path(__file__).resolve().parent
URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
COLLECTION = "example_hybrid_search"


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

# What is meant comes from the embedding of one question, names and numbers from the words.
embedding, text = query_embeddings[5], "influenza or viruses"
searches = {
    f"by vector: {queries[5]}": call("/search/vector", query_embedding=embedding, n_results=3),
    f"by text: {text}": call("/search/text", query_text=text, n_results=3),
    "by both, fused by rank": call("/search/hybrid", query_embedding=embedding, query_text=text, n_results=3),
    "by both, fused by score, the vectors counting more": call(
        "/search/hybrid", query_embedding=embedding, query_text=text, n_results=3, alpha=0.6
    ),
}
for name, hits in searches.items():
    print(name)
    for i, document in enumerate(hits["documents"]):
        ranks = ""
        if "vector_ranks" in hits:
            ranks = f"(vector {hits['vector_ranks'][i] or '-'}, text {hits['text_ranks'][i] or '-'})"
        print(f"  {hits['ids'][i]:<14}{document} {ranks}")

requests.delete(f"{URL}/collections/{COLLECTION}", timeout=60)
