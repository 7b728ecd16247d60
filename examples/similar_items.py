"""Similar items: more like these, and less like those, without any query.

python examples/similar_items.py [URL]    URL of a running service, http://127.0.0.1:8000 if left out
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import requests

HERE = Path(__file__).resolve().parent
URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
COLLECTION = "example_similar_items"


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


def show(what: str, **examples: Any) -> None:
    """Print the three best."""
    hits = call("/search/similar", n_results=3, **examples)
    print(what)
    for similarity, id_, document in zip(hits["similarities"], hits["ids"], hits["documents"], strict=True):
        print(f"  {similarity:5.2f}  {id_:<14}{document}")


documents = {sentence["id"]: sentence["text"] for sentence in sentences}
print(documents["medicine-03"])
show("More like this:", ids=["medicine-03"])
show("Less about germs and infections:", ids=["medicine-03"], negative={"ids": ["medicine-02", "medicine-07"]})
show("Outside medicine:", ids=["medicine-03"], where={"topic": {"$ne": "medicine"}})
print(documents["history-03"], documents["history-04"], sep="\n")
show("What these two have in common:", ids=["history-03", "history-04"])

requests.delete(f"{URL}/collections/{COLLECTION}", timeout=60)
