"""Full text search: words in any form, phrases, or, -without; and where in the text they stand.

python examples/text_search.py [URL]    URL of a running service, http://127.0.0.1:8000 if left out
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import requests

HERE = Path(__file__).resolve().parent
URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
COLLECTION = "example_text_search"


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

# Texts are searched by their words alone: no model, no embedding of the query.
searches = ["transactions", '"solar eclipse"', "violin or metronome", "bacteria -yeast", "the of and"]
for text in searches:
    hits = call("/search/text", query_text=text, n_results=3, snippets=True)
    print(f"{text}: {len(hits['ids'])} found")
    for score, id_, snippet in zip(hits["scores"], hits["ids"], hits["snippets"], strict=True):
        print(f"  {score:.2f}  {id_:<14}{snippet}")

# "transactions" has found "transaction": words are compared by their stems, in the language of the collection.
requests.patch(f"{URL}/collections/{COLLECTION}", json={"language": "simple"}, timeout=60)
hits = call("/search/text", query_text="transactions")
print(f"transactions, in the language simple: {len(hits['ids'])} found")

requests.delete(f"{URL}/collections/{COLLECTION}", timeout=60)
