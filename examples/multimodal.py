"""Images, sounds and texts in one collection, told apart by their media types.

A model such as CLIP or ImageBind embeds all of them in one space; here sentences play the parts.

    python examples/multimodal.py [URL]    URL of a running service, http://127.0.0.1:8000 if left out
"""

from sentences import call, embeddings, queries, query_embeddings, remove_collection, sentences

media = {"animals": ("image/jpeg", "jpg"), "music": ("audio/ogg", "ogg")}
kinds = [media.get(sentence["topic"], ("text/plain", "txt")) for sentence in sentences]
ids = [sentence["id"] for sentence in sentences]
call(
    "/items",
    ids=ids,
    documents=[sentence["text"] for sentence in sentences],
    uris=[f"https://example.org/{id_}.{ending}" for id_, (_, ending) in zip(ids, kinds, strict=True)],
    media_types=[media_type for media_type, _ in kinds],
    embeddings=embeddings,
)

found = call("/items/count", where={"#kind": "image"})["count"]
print(f"{len(sentences)} items, {found} of them images. The nearest to: {queries[4]}")
for kind in ("image", "audio", "text"):
    hits = call(
        "/search/vector",
        query_embedding=query_embeddings[4],
        n_results=2,
        where={"#kind": kind},
        include=["documents", "uris", "media_types"],
    )
    for row in zip(hits["similarities"], hits["media_types"], hits["uris"], hits["documents"], strict=True):
        print("  {:5.2f}  {:<11}  {}  {}".format(*row))

hits = call("/search/vector", query_embedding=query_embeddings[4], n_results=1, where={"#media_type": "audio/ogg"})
print(f"The exact media type works too: {hits['ids'][0]}")

remove_collection()
