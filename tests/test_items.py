"""What can be done with items beside writing and deleting them by id."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from pgvector_db import VectorDB
from pgvector_service.errors import DimensionMismatch, InvalidInput, ItemsExist, VersionMismatch
from pgvector_service.input.items import Mode
from pgvector_service.input.pages import Order

Sql = Callable[..., list[tuple[Any, ...]]]
ALL = ("documents", "metadatas", "embeddings", "uris", "media_types")
RNG = np.random.default_rng(0)


def stored(db: VectorDB, name: str = "c") -> dict[str, tuple[Any, ...]]:
    """All items of a collection by id."""
    items = db.get_items(name, limit=1000, include=ALL)
    vectors = [vector.tolist() for vector in items["embeddings"]]
    rows = zip(items["documents"], items["metadatas"], vectors, items["uris"], items["media_types"], strict=True)
    return dict(zip(items["ids"], rows, strict=True))


# Modes


def test_insert_refuses_existing_ids_by_name_and_writes_nothing(db: VectorDB) -> None:
    db.add_with_embeddings("c", ["a", "b"], None, None, [[1.0, 0.0], [0.0, 1.0]])
    before = stored(db)
    with pytest.raises(ItemsExist, match="'b', 'a'"):
        db.add_with_embeddings("c", ["new", "b", "a"], None, None, [[1.0, 1.0]] * 3, mode="insert")

    assert stored(db) == before
    assert db.count_items("c") == {"count": 2, "version": 1}
    written = db.add_with_embeddings("c", ["new"], None, None, [[1.0, 1.0]], mode="insert")
    assert written == {"collection_name": "c", "added": 1, "updated": 0, "version": 2}


def test_ignore_keeps_existing_items_as_they_are(db: VectorDB) -> None:
    db.add_with_embeddings("c", ["a"], ["old"], [{"n": 1}], [[1.0, 0.0]])
    written = db.add_with_embeddings("c", ["a", "b"], ["x", "y"], None, [[0.0, 1.0]] * 2, mode="ignore")

    assert written == {"collection_name": "c", "added": 1, "updated": 0, "version": 2, "ignored": 1}
    assert stored(db) == {
        "a": ("old", {"n": 1}, [1, 0], None, None),
        "b": ("y", None, [0, 1], None, None),
    }


def test_a_refusal_that_names_many_ids_is_short() -> None:
    message = str(ItemsExist([f"{'x' * 500}{i}\n" for i in range(1000)]))
    assert len(message) < 1200
    assert message.endswith("and 990 more.")
    assert message.isprintable()


@pytest.mark.parametrize("mode", ["upsert", "insert", "ignore"])
def test_every_mode_checks_the_batch(db: VectorDB, mode: Mode) -> None:
    db.create_collection("c", 2)
    with pytest.raises(DimensionMismatch):
        db.add_with_embeddings("c", ["a"], None, None, [[1.0]], mode=mode)
    with pytest.raises(InvalidInput, match=r"embeddings\[1\]: is all zeros"):
        db.add_with_embeddings("c", ["a", "b"], None, None, [[1.0, 0.0], [0.0, 0.0]], mode=mode)
    assert db.count_items("c")["count"] == 0


def test_what_stands_beside_an_embedding_is_read_back_by_every_route(db: VectorDB) -> None:
    uris, kinds = ["s3://bucket/a.png", None], ["image/png", None]
    db.add_with_embeddings("c", ["a", "b"], None, None, [[1.0, 0.0], [0.0, 1.0]], uris=uris, media_types=kinds)

    assert [row[3:] for row in stored(db).values()] == list(zip(uris, kinds, strict=True))
    assert [(item["uri"], item["media_type"]) for item in db.export_collection("c")] == [
        ("s3://bucket/a.png", "image/png"),
        (None, None),
    ]
    for _ in range(2):
        (hits,) = db.query_by_vector("c", [[1, 0]], include=["uris", "media_types"], where={"#kind": "image"})
        assert (hits["ids"], hits["uris"], hits["media_types"]) == (["a"], uris[:1], kinds[:1])
    db.add_with_embeddings("c", ["a"], None, None, [[1.0, 0.0]])
    assert stored(db)["a"] == (None, None, [1, 0], None, None)


# Updates

VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab'\\%", max_size=3) | st.just({"x": 1, "y": None})
METADATA = st.none() | st.dictionaries(st.sampled_from(["a", "b", "c", "it's"]), VALUES, max_size=4)
TEXT = st.none() | st.text("ab'", max_size=3)
VECTOR = st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda pair: [float(x) for x in pair])
ITEM = st.tuples(TEXT, METADATA, VECTOR, TEXT, TEXT)
CHANGE = st.tuples(TEXT, METADATA, st.none() | VECTOR, TEXT, TEXT)


@settings(max_examples=60)
@given(
    items=st.dictionaries(st.sampled_from("abcdef"), ITEM, min_size=1),
    changes=st.dictionaries(st.sampled_from("abcdefgh"), CHANGE, min_size=1),
)
def test_an_update_changes_what_is_given_and_nothing_else(
    db: VectorDB, items: dict[str, Any], changes: dict[str, Any]
) -> None:
    for listed in db.list_collections()["collections"]:
        db.delete_collection(listed["name"])
    documents, metadatas, vectors, uris, kinds = map(list, zip(*items.values(), strict=True))
    db.add_with_embeddings("c", list(items), documents, metadatas, vectors, uris=uris, media_types=kinds)
    before = stored(db)
    documents, metadatas, vectors, uris, kinds = map(list, zip(*changes.values(), strict=True))
    answer = db.update_items(
        "c",
        list(changes),
        documents=documents,
        metadatas=metadatas if any(metadatas) else None,
        embeddings=vectors,
        uris=uris,
        media_types=kinds,
    )

    expected = dict(before)
    for id_ in before.keys() & changes.keys():
        given = [old if new is None else new for old, new in zip(before[id_], changes[id_], strict=True)]
        if changes[id_][1] is not None and any(metadatas):
            merged = {**(before[id_][1] or {}), **changes[id_][1]}
            given[1] = {key: value for key, value in merged.items() if changes[id_][1].get(key, 0) is not None}
        else:
            given[1] = before[id_][1]
        expected[id_] = tuple(given)
    assert stored(db) == expected
    changed = [
        id_
        for id_ in before.keys() & changes.keys()
        if any(one is not None for one in (*changes[id_][:1], *changes[id_][2:]))
        or (changes[id_][1] is not None and any(metadatas))
    ]
    assert answer == {
        "collection_name": "c",
        "updated": len(changed),
        "missing": [id_ for id_ in changes if id_ not in before],
        "version": 2 if changed else 1,
    }
    assert set(db.query_by_vector("c", [[1, 1]], 100)[0]["ids"]) == set(before)


def test_an_updated_item_is_found_as_it_is_now(db: VectorDB) -> None:
    db.add_with_embeddings("c", ["a", "b"], ["one fish", "two"], [{"n": 1}, {"n": 1}], [[1.0, 0.0], [0.0, 1.0]])
    assert db.query_by_vector("c", [[1, 0]], 1, where={"n": 1})[0]["ids"] == ["a"]
    db.update_items("c", ["b", "a"], embeddings=[[1.0, 0.0], None], metadatas=[None, {"n": 2}], documents=[None, "cat"])

    assert db.query_by_vector("c", [[1, 0]], 1, where={"n": 1})[0]["ids"] == ["b"]
    assert db.query_by_vector("c", [[1, 0]], 2)[0]["distances"] == [0, 0]
    assert db.query_by_text("c", ["fish"])[0]["ids"] == []
    assert db.query_by_text("c", ["cats"])[0]["ids"] == ["a"]


def test_an_update_is_refused_by_position_and_changes_nothing(db: VectorDB) -> None:
    db.add_with_embeddings("c", ["a", "b", "c"], None, None, [[1.0, 0.0]] * 3)
    before = stored(db)
    for embeddings, problem in (
        ([None, [1.0, 2.0], [1.0]], r"embeddings\[2\]: has 1 numbers"),
        ([None, None, [1.0]], r"embeddings\[2\]: expected 2 numbers"),
        ([None, None, [0.0, 0.0]], r"embeddings\[2\]: is all zeros"),
        ([None, [1.0, float("nan")], None], r"embeddings\[1\]\[1\]: is NaN"),
        ([None, "x", None], r"embeddings\[1\]: is neither"),
        ([[1.0, 0.0]], "embeddings: has 1 entries where ids has 3"),
        ("abc", "embeddings: must be a list"),
    ):
        with pytest.raises(InvalidInput, match=problem):
            db.update_items("c", ["a", "b", "c"], embeddings=embeddings, documents=["x", "y", "z"])
    assert stored(db) == before


def test_an_update_that_finds_nothing_fixes_no_dimension(db: VectorDB) -> None:
    db.create_collection("c")
    answer = db.update_items("c", ["nobody"], embeddings=[[1.0, 2.0]])
    assert (answer["updated"], answer["missing"]) == (0, ["nobody"])
    assert db.get_collection("c")["dimension"] is None
    db.add_with_embeddings("c", ["a"], None, None, [[1.0, 2.0, 3.0]])


# Versions


def test_a_write_that_changes_nothing_counts_nothing_and_raises_no_version(db: VectorDB) -> None:
    db.add_with_embeddings("c", ["a", "b"], ["x", "y"], None, [[1.0, 0.0]] * 2)
    assert db.query_by_vector("c", [[1, 0]])[0]["version"] == 1
    nothing = {"collection_name": "c", "updated": 0, "version": 1}
    assert db.update_items("c", ["a", "b"]) == {**nothing, "missing": []}
    assert db.update_items("c", ["a", "z"], documents=[None, "z"]) == {**nothing, "missing": ["z"]}
    assert db.delete_items("c", ["nobody"]) == {"deleted": 0, "version": 1}
    assert db.delete_items("c", where={"k": 1}, if_version=1) == {"deleted": 0, "version": 1}
    ignored = db.add_with_embeddings("c", ["a"], ["new"], None, [[0.0, 1.0]], mode="ignore")
    assert ignored == {"collection_name": "c", "added": 0, "updated": 0, "version": 1, "ignored": 1}
    assert db.get_collection("c")["version"] == 1
    # The next write takes the number that was not used, and every search sees it.
    assert db.update_items("c", ["a", "b"], documents=[None, "z"])["version"] == 2
    assert db.query_by_vector("c", [[1, 0]])[0]["documents"] == ["x", "z"]


def test_of_writers_who_have_read_the_same_version_one_wins(db: VectorDB) -> None:
    db.add_with_embeddings("c", ["counter"], None, [{"n": 0}], [[1.0]])

    def add_one(_: int) -> int:
        lost = 0
        while True:
            read = db.get_items("c", ["counter"])
            try:
                metadata = {"n": read["metadatas"][0]["n"] + 1}
                db.update_items("c", ["counter"], metadatas=[metadata], if_version=read["version"])
                return lost
            except VersionMismatch:
                lost += 1

    with ThreadPoolExecutor(6) as threads:
        lost = sum(threads.map(add_one, range(30)))
    assert db.get_items("c", ["counter"])["metadatas"] == [{"n": 30}]
    assert db.get_collection("c")["version"] == 31
    assert lost > 0


def test_every_write_can_be_bound_to_a_version(client: TestClient) -> None:
    item: dict[str, Any] = {"collection_name": "c", "ids": ["a"], "embeddings": [[1, 2]]}
    writes: list[tuple[str, dict[str, Any]]] = [
        ("/items", item),
        ("/items/update", {"collection_name": "c", "ids": ["a"], "documents": ["x"]}),
        ("/items/delete", {"collection_name": "c", "ids": ["a"]}),
    ]
    assert client.post("/items", json=item | {"if_version": 1}).json()["code"] == "version_mismatch"
    assert client.post("/items", json=item | {"if_version": 0}).json()["version"] == 1
    for version, (route, body) in enumerate(writes, 1):
        refused = client.post(route, json=body | {"if_version": version - 1})
        assert (refused.status_code, refused.json()["code"]) == (409, "version_mismatch")
        assert f"if_version is {version - 1}, and the collection is at {version}" in refused.json()["detail"]
        assert client.post(route, json=body | {"if_version": version}).json()["version"] == version + 1
    dry: dict[str, Any] = {"collection_name": "c", "ids": ["a"], "dry_run": True}
    assert client.post("/items/delete", json=dry | {"if_version": 3}).status_code == 409
    assert client.post("/items/delete", json=dry | {"if_version": 4}).json() == {
        "deleted": 0,
        "version": 4,
        "dry_run": True,
    }


# Pages

SORTED = [3, 1, 2, 2.5, -1, "b", "a", "B", "é", "", True, False, None, [1], [], {"x": 1}, {}, 10**15, 1e-9]


@pytest.mark.parametrize("by", ["id", "created_at", "v", "deep.v", "nowhere"])
@pytest.mark.parametrize("descending", [False, True])
def test_pages_in_any_order_are_what_postgresql_sorts(db: VectorDB, sql: Sql, by: str, descending: bool) -> None:
    ids = [f"i{i:03}" for i in RNG.permutation(3 * len(SORTED))]
    for start in range(0, len(ids), 10):  # several writes, or all would be created at once
        metadatas = [{"v": SORTED[int(id_[1:]) % len(SORTED)]} for id_ in ids[start : start + 10]]
        metadatas = [{**metadata, "deep": metadata} if metadata["v"] != "" else {} for metadata in metadatas]
        db.add_with_embeddings("c", ids[start : start + 10], None, metadatas, [[1.0]] * len(metadatas))
    direction = "DESC" if descending else "ASC"
    value = {"id": "id", "created_at": "created_at"}.get(by, f"metadata #> '{{{by.replace('.', ',')}}}'")
    expected = sql(f"SELECT id FROM vector_documents ORDER BY {value} {direction} NULLS LAST, id")

    found: list[str] = []
    cursor = None
    while cursor or not found:
        page = db.get_items("c", limit=7, cursor=cursor, order=Order(by, descending))
        found += page["ids"]
        cursor = page["next_cursor"]
    assert found == [id_ for (id_,) in expected]


def test_a_page_begins_after_the_last_row_whatever_was_written_since(db: VectorDB) -> None:
    ids = [f"i{i:02}" for i in range(20)]
    db.add_with_embeddings("c", ids, None, [{"n": i // 3} for i in range(20)], [[1.0]] * 20)
    first = db.get_items("c", limit=8, order=Order("n"))
    db.delete_items("c", ["i07", "i09"])  # the last row of the page is gone
    db.add_with_embeddings("c", ["i00x", "i19x"], None, [{"n": 0}, {"n": 6}], [[1.0]] * 2)
    rest = db.get_items("c", limit=100, cursor=first["next_cursor"], order=Order("n"))

    assert first["ids"] == ids[:8]
    assert rest["ids"] == ["i08", *ids[10:], "i19x"]
    assert rest["next_cursor"] is None


def test_a_key_that_is_called_like_a_field_is_written_with_a_backslash(db: VectorDB) -> None:
    metadatas = [{"id": 2, "a.b": 1}, {"id": 1, "a.b": 2}]
    db.add_with_embeddings("c", ["a", "b"], None, metadatas, [[1.0]] * 2)
    assert db.get_items("c", order=Order("id"))["ids"] == ["a", "b"]
    assert db.get_items("c", order=Order(r"\id"))["ids"] == ["b", "a"]
    assert db.get_items("c", order=Order(r"a\.b", descending=True))["ids"] == ["b", "a"]


def test_a_cursor_of_another_order_is_refused(client: TestClient) -> None:
    items = {"collection_name": "c", "ids": ["a", "b"], "embeddings": [[1], [1]], "metadatas": [{"n": 1}, {"n": 2}]}
    client.post("/items", json=items)
    page = {"collection_name": "c", "limit": 1, "order_by": "n"}
    cursor = client.post("/items/get", json=page).json()["next_cursor"]
    for change in ({"order_by": "id"}, {"descending": True}, {"order_by": None}):
        refused = client.post("/items/get", json=page | {"cursor": cursor} | change)
        assert refused.status_code == 422
        assert refused.json()["detail"].startswith("cursor: belongs to pages in another order")
    for forged in ("x", "e30=", "WzFd", "WyJuIixmYWxzZSwie3siLCJhIl0="):
        refused = client.post("/items/get", json=page | {"cursor": forged})
        assert refused.json()["detail"].startswith("cursor: is not one that this service gave"), forged
    refused = client.post("/items/get", json={"collection_name": "c", "ids": ["a"], "order_by": "n"})
    assert refused.json()["detail"].startswith("order_by or descending: is for pages")


# Filters and ids together


def test_ids_and_filters_narrow_each_other(client: TestClient) -> None:
    ids = ["a", "b", "c", "d"]
    items = {
        "collection_name": "c",
        "ids": ids,
        "documents": ["one", "two", "three", None],
        "metadatas": [{"n": i} for i in range(4)],
        "embeddings": [[1, i] for i in range(4)],
    }
    client.post("/items", json=items)
    some = {"collection_name": "c", "ids": ["d", "b", "a", "x"], "where": {"n": {"$gt": 0}}}
    assert client.post("/items/get", json=some).json()["ids"] == ["d", "b"]
    assert client.post("/items/count", json=some).json() == {"count": 2, "version": 1}
    dry = client.post("/items/delete", json=some | {"dry_run": True}).json()
    assert dry == {"deleted": 2, "version": 1, "dry_run": True}
    both = some | {"where_document": {"$contains": "w"}}
    assert client.post("/items/delete", json=both).json() == {"deleted": 1, "version": 2}
    left = client.post("/items/get", json={"collection_name": "c", "where": {"n": {"$gte": 0}}, "limit": 2}).json()
    assert left["ids"] == ["a", "c"]
    assert json.loads(client.get("/collections/c/export").text.splitlines()[-1])["id"] == "d"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, "ids: or where or where_document must say what to delete"),
        ({"where": {}}, "where: has no condition"),
        ({"where_document": {}}, "where_document: has no condition"),
        ({"where": {"n": {"$gt": None}}}, "where.n.$gt: must be a number or a string"),
    ],
)
def test_a_deletion_that_does_not_say_of_what_is_refused(client: TestClient, body: Any, problem: str) -> None:
    client.post("/items", json={"collection_name": "c", "ids": ["a"], "embeddings": [[1]]})
    refused = client.post("/items/delete", json={"collection_name": "c", **body})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith(problem)
    assert client.post("/items/count", json={"collection_name": "c"}).json()["count"] == 1
