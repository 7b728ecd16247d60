"""Writing with care and reading in pages: modes, updates, if_version, cursors, deletion by filter.

python examples/pages_and_updates.py [URL]    URL of a running service, http://127.0.0.1:8000 if left out
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import requests

HERE = Path(__file__).resolve().parent
URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
COLLECTION = "example_pages_and_updates"


def call(path: str, **body: Any) -> Any:
    """Send a request about the collection and return the JSON of the answer, also of a refusal (409)."""
    answer = requests.post(URL + path, json={"collection_name": COLLECTION, **body}, timeout=60)
    if not answer.ok and answer.status_code != 409:
        sys.exit(answer.text)
    return answer.json()


sentences = json.loads((HERE / "sentences.json").read_bytes())["sentences"]
with np.load(HERE / "minilm_sentences.npz") as vectors:
    embeddings = vectors["sentences"].tolist()
items = {
    "ids": [sentence["id"] for sentence in sentences],
    "documents": [sentence["text"] for sentence in sentences],
    "metadatas": [{"topic": sentence["topic"], "year": sentence["year"]} for sentence in sentences],
    "embeddings": embeddings,
}
requests.delete(f"{URL}/collections/{COLLECTION}", timeout=60)
print("insert:", call("/items", **items, mode="insert")["added"], "added")
print("insert again:", call("/items", **items, mode="insert")["code"])
print("ignore:", call("/items", **items, mode="ignore")["ignored"], "left as they were")

# An update changes only what it names; the metadata are merged, and null takes a key away.
seen = call("/items/get", ids=["music-01"])["version"]
call("/items/update", ids=["music-01"], metadatas=[{"rating": 5, "year": None}], if_version=seen)
print("update:", call("/items/get", ids=["music-01"])["metadatas"][0])
late = call("/items/update", ids=["music-01"], metadatas=[{"rating": 1}], if_version=seen)
print("update of what has changed since:", late["code"])

pages: list[list[int]] = []
cursor = None
while cursor or not pages:
    page = call("/items/get", where={"topic": "law"}, order_by="year", descending=True, limit=4, cursor=cursor)
    cursor = page["next_cursor"]
    pages.append([metadata["year"] for metadata in page["metadatas"]])
print("pages, the latest first:", *pages)

old = {"year": {"$lt": 2017}}
print("would delete:", call("/items/delete", where=old, dry_run=True)["deleted"])
print("deleted:", call("/items/delete", where=old)["deleted"], "and left", call("/items/count")["count"])

requests.delete(f"{URL}/collections/{COLLECTION}", timeout=60)
