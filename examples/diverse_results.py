"""Diverse results: not five times the same, by mmr or by groups.

python examples/diverse_results.py [URL]    URL of a running service, http://127.0.0.1:8000 if left out
"""

from typing import Any

from sentences import call, embeddings, queries, query_embeddings, remove_collection, sentences

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

remove_collection()
