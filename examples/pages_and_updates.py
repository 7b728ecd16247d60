"""Writing with care and reading in pages: modes, updates, if_version, cursors, deletion by filter.

python examples/pages_and_updates.py [URL]    URL of a running service, http://127.0.0.1:8000 if left out
"""

from sentences import call, items, remove_collection

remove_collection()
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

remove_collection()
