"""Filters: search, and count, only what matches conditions on metadata and texts.

python examples/filters.py [URL]    URL of a running service, http://127.0.0.1:8000 if left out
"""

from typing import Any

from sentences import call, items, queries, query_embeddings, remove_collection

call("/items", **items)

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

remove_collection()
