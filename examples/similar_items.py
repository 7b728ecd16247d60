"""Similar items: more like these, and less like those, without any query.

python examples/similar_items.py [URL]    URL of a running service, http://127.0.0.1:8000 if left out
"""

from typing import Any

from sentences import call, items, remove_collection, sentences

call("/items", **items)


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

remove_collection()
