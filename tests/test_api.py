import base64
import gzip
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema_rs
import numpy as np
import pytest
import requests
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from conftest import Service
from pgvector_api import create_app
from pgvector_service.settings import Settings
from pgvector_service.web import models

NAN, INFINITE = float("nan"), float("inf")
ITEMS: dict[str, Any] = {
    "collection_name": "research_papers",
    "ids": ["doc1", "doc2", "doc3"],
    "documents": ["Document 1", "Document 2", None],
    "metadatas": [{"source": "arxiv", "year": 2024}, {"source": "arxiv"}, None],
    "embeddings": [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.1, 0.2, 0.31]],
}
QUERY = {"collection_name": "research_papers", "query_embedding": [0.1, 0.2, 0.3]}


@pytest.fixture
def filled(client: TestClient) -> TestClient:
    assert client.post("/items", json=ITEMS).status_code == 201
    return client


def body(response: Any, status: int, model: type[BaseModel]) -> dict[str, Any]:
    """The answer, after a check that it is what the documentation says."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    model.model_validate_json(response.content)
    answer: dict[str, Any] = response.json()
    return answer


def refusal(response: Any, status: int, code: str | None = None) -> str:
    """The detail of an error, after a check of its shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) <= 2048
    problem = models.Problem.model_validate_json(response.content)
    assert problem.status == status
    assert problem.request_id == response.headers["x-request-id"]
    assert problem.type.endswith(f":{problem.code}")
    assert code in (None, problem.code)
    return problem.detail


# Routes


def test_collections(client: TestClient) -> None:
    new = {"name": "c", "dimension": 3, "metric": "euclidean", "metadata": {"a": 1}}
    created = body(client.post("/collections", json=new), 201, models.Collection)
    assert created | new == created
    assert body(client.get("/collections/c"), 200, models.Collection) == created
    refusal(client.post("/collections", json=new), 409, "collection_exists")
    assert body(client.post("/collections", json=new | {"get_or_create": True}), 200, models.Collection) == created
    again = {"collection_name": "c", "metric": "ip", "get_or_create": True}
    assert "another metric: euclidean" in refusal(client.post("/collections", json=again), 409, "conflict")

    body(client.post("/collections", json={"collection_name": "b"}), 201, models.Collection)
    listed = body(client.get("/collections"), 200, models.Collections)
    assert ([c["name"] for c in listed["collections"]], listed["total"]) == (["b", "c"], 2)
    paged = body(client.get("/collections?limit=1&offset=1"), 200, models.Collections)
    assert ([c["name"] for c in paged["collections"]], paged["total"]) == (["c"], 2)
    refusal(client.get("/collections?limit=0"), 422)

    changed = client.patch("/collections/c", json={"new_name": "d", "metadata": {}})
    assert body(changed, 200, models.Collection) | {"name": "d", "metadata": {}} == changed.json()
    refusal(client.get("/collections/c"), 404, "collection_not_found")
    refusal(client.patch("/collections/b", json={"new_name": "d"}), 409, "collection_exists")
    assert client.delete("/collections/d").status_code == 204
    refusal(client.delete("/collections/d"), 404, "collection_not_found")


def test_items(filled: TestClient) -> None:
    again = body(filled.post("/items", json=ITEMS), 201, models.Written)
    assert again == {"collection_name": "research_papers", "added": 0, "updated": 3, "version": 2}

    page = body(
        filled.post("/items/get", json={"collection_name": "research_papers", "limit": 2}), 200, models.ItemsPage
    )
    assert (page["ids"], page["documents"]) == (["doc1", "doc2"], ["Document 1", "Document 2"])
    rest = {"collection_name": "research_papers", "limit": 2, "cursor": page["next_cursor"], "include": ["embeddings"]}
    page = body(filled.post("/items/get", json=rest), 200, models.ItemsPage)
    assert page == {"ids": ["doc3"], "embeddings": [[0.1, 0.2, 0.31]], "next_cursor": None, "version": 2}

    item = body(filled.get("/collections/research_papers/items/doc1"), 200, models.Item)
    assert item == {
        "id": "doc1",
        "document": "Document 1",
        "metadata": {"source": "arxiv", "year": 2024},
        "embedding": [0.1, 0.2, 0.3],
        "uri": None,
        "media_type": None,
        "version": 2,
    }
    deletion = {"collection_name": "research_papers", "ids": ["doc1", "nope"]}
    assert body(filled.post("/items/delete", json=deletion), 200, models.Deleted) == {"deleted": 1, "version": 3}
    refusal(filled.get("/collections/research_papers/items/doc1"), 404, "item_not_found")
    assert filled.delete("/collections/research_papers/items/doc2").status_code == 204
    refusal(filled.delete("/collections/research_papers/items/doc2"), 404, "item_not_found")
    refusal(filled.get("/collections/nope/items/doc2"), 404, "collection_not_found")


def test_search(filled: TestClient) -> None:
    hits = body(filled.post("/search/vector", json=QUERY), 200, models.Hits)
    assert list(hits) == ["ids", "documents", "metadatas", "distances", "similarities", "version"]
    assert hits["ids"] == ["doc1", "doc3", "doc2"]
    assert hits["documents"] == ["Document 1", None, "Document 2"]
    assert hits["metadatas"] == [{"source": "arxiv", "year": 2024}, None, {"source": "arxiv"}]
    assert (hits["distances"][0], hits["similarities"][0]) == (0, 1)

    two = QUERY | {"n_results": 2, "include": ["embeddings"]}
    hits = body(filled.post("/search/vector", json=two), 200, models.Hits)
    assert list(hits) == ["ids", "embeddings", "distances", "similarities", "version"]
    assert hits["embeddings"] == [[0.1, 0.2, 0.3], [0.1, 0.2, 0.31]]

    many = {"collection_name": "research_papers", "query_embeddings": ITEMS["embeddings"], "n_results": 1}
    results = body(filled.post("/search/vector/batch", json=many), 200, models.HitsOfMany)["results"]
    assert [result["ids"] for result in results] == [["doc1"], ["doc2"], ["doc3"]]


def test_export(filled: TestClient) -> None:
    response = filled.get("/collections/research_papers/export")
    assert response.headers["content-type"] == "application/x-ndjson"
    items = [models.ExportedItem.model_validate_json(line) for line in response.text.splitlines()]

    assert [item.id for item in items] == ["doc1", "doc2", "doc3"]
    assert [item.embedding for item in items] == ITEMS["embeddings"]
    refusal(filled.get("/collections/nope/export"), 404, "collection_not_found")
    filled.post("/collections", json={"name": "empty"})
    assert filled.get("/collections/empty/export").content == b""


def test_health(filled: TestClient) -> None:
    filled.post("/search/vector", json=QUERY)
    time.sleep(1.2)
    health = body(filled.get("/health"), 200, models.Health)
    assert (health["status"], health["database"], health["collections_in_memory"]) == ("healthy", True, 1)
    assert health["memory_bytes"] == 3 * (3 * 4 + 4 + 8)
    assert health["pgvector"] is None  # the test databases are made without it
    assert body(filled.get("/health/live"), 200, models.Status) == {"status": "live"}
    assert body(filled.get("/health/ready"), 200, models.Status) == {"status": "ready"}


def test_the_version_of_pgvector_is_reported_when_it_is_there(
    client: TestClient, sql: Callable[..., list[tuple[Any, ...]]]
) -> None:
    sql("CREATE EXTENSION vector")
    time.sleep(1.2)
    assert re.fullmatch(r"\d+\.\d+\.\d+", client.get("/health").json()["pgvector"])


def test_every_listed_collection_can_be_used_whatever_its_name(
    database: str, sql: Callable[..., list[tuple[Any, ...]]]
) -> None:
    with Service(DATABASE_URL=database) as service:
        use_every_collection(service.client, sql)


def use_every_collection(client: httpx.Client, sql: Callable[..., list[tuple[Any, ...]]]) -> None:
    names = ["a/b", "/", "a//items/x", "ü/日本", "a%2Fb", "x/export"]
    for name in names:
        sql("INSERT INTO vector_collections (collection_name) VALUES (%s)", (name,))
    assert {one["name"] for one in client.get("/collections").json()["collections"]} == set(names)
    for name in names:
        new = {"collection_name": name, "ids": ["i/d"], "embeddings": [[1, 0]]}
        assert client.post("/items", json=new).status_code == 201
        path = f"/collections/{quote(name, safe='')}"
        assert client.get(path).json()["name"] == name
        for id_ in ("i/d", quote("i/d", safe="")):
            assert client.get(f"{path}/items/{id_}").json()["id"] == "i/d"
        assert json.loads(client.get(f"{path}/export").text)["id"] == "i/d"
        query = {"collection_name": name, "query_embedding": [1, 0]}
        assert client.post("/search/vector", json=query).json()["ids"] == ["i/d"]
        refusal(client.patch(path, json={"new_name": "b/c"}), 422, "invalid_input")
        assert client.patch(path, json={"new_name": "plain"}).json()["name"] == "plain"
        assert client.get("/collections/plain/items/i%2fd").status_code == 200
        assert client.delete("/collections/plain").status_code == 204
    refusal(client.post("/collections", json={"name": "a/b"}), 422)
    refusal(client.get("/collections/a%2Fb/"), 404)


def test_a_metric_can_be_changed_and_has_the_names_that_others_use(client: TestClient) -> None:
    new = {"name": "c", "metric": "l2"}
    assert body(client.post("/collections", json=new), 201, models.Collection)["metric"] == "euclidean"
    assert client.post("/collections", json=new | {"get_or_create": True}).status_code == 200
    items = {"collection_name": "c", "ids": ["long", "near", "zero"], "embeddings": [[9, 9], [1, 0], [0, 0]]}
    assert client.post("/items", json=items).status_code == 201
    query = {"collection_name": "c", "query_embedding": [1, 1]}
    for _ in range(2):
        assert client.post("/search/vector", json=query).json()["ids"] == ["near", "zero", "long"]
    orders = {"dot": ["long", "near", "zero"], "cosine": ["long", "near"], "l1": ["near", "zero", "long"]}
    for version, (metric, order) in enumerate(orders.items(), start=2):
        changed = body(client.patch("/collections/c", json={"metric": metric}), 200, models.Collection)
        assert changed["metric"] == {"dot": "ip", "l1": "manhattan"}.get(metric, metric)
        assert changed["version"] == version
        for _ in range(2):
            answer = client.post("/search/vector", json=query).json()
            assert (answer["ids"], answer["version"]) == (order, version)
        assert client.get("/collections/c").json()["skipped"] == (1 if metric == "cosine" else 0)
    assert "'l2', 'l1' or 'dot'" in refusal(client.patch("/collections/c", json={"metric": "chebyshev"}), 422)


STRANGE_IDS = [
    "a/b",
    "/",
    "a//b/",
    "ü",
    "日本",
    "a b",
    "a\nb\n",
    "?x=1#y",
    "%2F",
    "%",
    "items",
    "\\",
    '"',
    "'; DROP TABLE",
]


def test_an_id_may_be_any_text(database: str) -> None:
    with Service(DATABASE_URL=database) as service:
        client = service.client
        for id_ in [*STRANGE_IDS, "🂡", "e\u0301", "x" * 512]:
            written = {"collection_name": "c", "ids": [id_, "other"], "embeddings": [[1, 0], [0, 1]]}
            assert client.post("/items", json=written).status_code == 201
            path = f"/collections/c/items/{quote(id_, safe='')}"

            assert client.get(path).json()["id"] == id_
            query = {"collection_name": "c", "query_embedding": [1, 0]}
            assert client.post("/search/vector", json=query).json()["ids"] == [id_, "other"]
            got = client.post("/items/get", json={"collection_name": "c", "ids": [id_]}).json()
            assert got["ids"] == [id_]
            exported = [json.loads(line)["id"] for line in client.get("/collections/c/export").text.splitlines()]
            assert exported == sorted([id_, "other"])
            assert client.delete(path).status_code == 204
            assert client.post("/items/get", json={"collection_name": "c"}).json()["ids"] == ["other"]


# Wrong input


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def items(**changes: Any) -> dict[str, Any]:
    return {**ITEMS, "collection_name": "new", **changes}


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (
            items(embeddings=[[1, 2, 3], [1, 2], [1, 2, 3]]),
            r"embeddings\[1\]: has 2 numbers where embeddings\[0\] has 3",
        ),
        (
            items(embeddings=[[1, 2, 3], [1, NAN, 3], [1, 2, 3]]),
            r"embeddings\[1\]\[1\]: is NaN; every number must be finite",
        ),
        (
            items(embeddings=[[1, 2, 3], [1, -INFINITE, 3], [1, 2, 3]]),
            r"embeddings\[1\]\[1\]: is infinite; every number",
        ),
        (items(embeddings=[[1, 2, 3], [1, 1e39, 3], [1, 2, 3]]), r"embeddings\[1\]\[1\]: does not fit into float32"),
        (
            items(embeddings=[[1, 2, 3], [1, -(10**400), 3], [1, 2, 3]]),
            r"embeddings\[1\]\[1\]: is too large; every number",
        ),
        (items(embeddings=[[1, 2, 3], [1, 2, 3], [0, 0, 0]]), r"embeddings\[2\]: is all zeros"),
        (items(embeddings=[[1, 2, 3], [1, 2, 3], [1e-46] * 3]), r"embeddings\[2\]: is all zeros"),
        (items(embeddings=[[1, 2, 3], [1, "2", 3], [1, 2, 3]]), r"embeddings\[1\]\[1\]: must be a number"),
        (items(embeddings=[[1, 2, 3], [1, True, 3], [1, 2, 3]]), r"embeddings\[1\]\[1\]: must be a number"),
        (items(embeddings=[[1, 2, 3], [1, None, 3], [1, 2, 3]]), r"embeddings\[1\]\[1\]: must be a number"),
        (items(embeddings=[[1, 2, 3], [1, [2], 3], [1, 2, 3]]), r"embeddings\[1\]\[1\]: must be a number"),
        (items(embeddings=[[1, 2, 3], None, [1, 2, 3]]), r"embeddings\[1\]: must be a list of numbers"),
        (items(embeddings=[[], [], []]), r"embeddings\[0\]: must have 1 to 16384 numbers"),
        (items(embeddings=[[1] * 16385] * 3), r"embeddings\[0\]: must have 1 to 16384 numbers"),
        (items(embeddings=[]), "embeddings: must hold at least one"),
        (items(embeddings="x"), "embeddings: must be a list"),
        (items(embeddings=None), "embeddings: must be a list"),
        (items(embeddings=[[1, 2, 3]] * 2), "embeddings: has 2 entries where ids has 3"),
        (items(documents=["x"]), "documents: has 1 entries where ids has 3"),
        (items(metadatas=[{}] * 4), "metadatas: has 4 entries where ids has 3"),
        (items(ids=["a", "b", "a"]), r"ids\[2\]: appears twice"),
        (items(ids=["a", "", "c"]), r"ids\[1\]: must have 1 to 512 bytes"),
        (items(ids=["a", "é" * 257, "c"]), r"ids\[1\]: must have 1 to 512 bytes"),
        (items(ids=["a", 1, "c"]), r"ids\[1\]: input should be a valid string"),
        (items(ids=["a", "b\0", "c"]), r"ids\[1\]: holds a NUL"),
        (items(ids=[]), "ids: must name at least one"),
        (items(documents=["a", "b\0", "c"]), r"documents\[1\]: holds a NUL"),
        (items(documents=["a", "\ud800", "c"]), r"documents\[1\]: holds half of a surrogate pair"),
        (
            items(metadatas=[{"a": {"\ud800": 1}}, {}, {}]),
            r"metadatas\[0\]\.a: has a key that holds half of a surrogate",
        ),
        (items(metadatas=[{}, [], {}]), r"metadatas\[1\]: input should be a valid dictionary"),
        (items(metadatas=[{}, {"a": {"b\0": 1}}, {}]), r"metadatas\[1\]: holds a NUL"),
        (items(metadatas=[{}, {"a": 2**53 + 1}, {}]), r"metadatas\[1\]: holds a number beyond 2\^53"),
        (items(metadatas=[{}, {"a": [2**64]}, {}]), r"metadatas\[1\]: holds a number beyond 2\^53"),
        (items(metadatas=[{}, {"a": -(10**4000)}, {}]), r"metadatas\[1\]\.a: is too large"),
        (items(metadatas=[{}, {"path": NAN}, {}]), r"metadatas\[1\]\.path: is NaN"),
        (
            items(metadatas=[{}, nested(33), {}]),
            r"metadatas\[1\]: is nested deeper than 32",
        ),
        (items(metadatas=[{}, nested(600), {}]), "nested deeper"),
        (items(collection_name="a/b"), "collection_name: must not contain '/'"),
        (items(collection_name=".."), "collection_name: must not"),
        (items(collection_name=""), "collection_name: must have 1 to 512 bytes"),
        (items(extra=1), "extra: is not a field of this request;"),
        (items(path=1), "path: is not a field of this request;"),
        (items(if_version=10**30), "if_version: input should be less than or equal to 9007199254740992"),
        ({"colection_name": "new"}, r"colection_name: is not a field of this request \(3 more\)"),
        ({"collection_name": "new"}, r"ids: field required \(1 more\)"),
        ([], "body: must be a JSON object"),
        (None, "body: must be a JSON object"),
    ],
)
def test_a_wrong_batch_is_refused_by_field_and_position(client: TestClient, wrong: Any, where: str) -> None:
    content = json.dumps(wrong).encode()
    response = client.post("/items", content=content, headers={"content-type": "application/json"})

    assert re.search(where, refusal(response, 422))
    assert client.get("/collections").json()["total"] == 0


@pytest.mark.parametrize(
    "good",
    [2**53, -(2**53), 0.1 + 0.2, 1e-320, -0.0, [1, "1", True, None, {"": []}], "\u2028\\u0000", {"__proto__": 1}],
)
def test_what_is_accepted_is_read_back(client: TestClient, good: Any) -> None:
    deep = nested(31)
    new = {
        "collection_name": "c",
        "ids": ["a"],
        "metadatas": [{"good": good, "deep": deep}],
        "embeddings": [[3.4028235e38, 1e-45]],
    }
    assert client.post("/items", json=new).status_code == 201

    item = client.get("/collections/c/items/a").json()
    assert (item["metadata"], item["embedding"]) == (new["metadatas"][0], [3.4028235e38, 1e-45])
    assert json.loads(client.get("/collections/c/export").text) | {"version": 1} == item
    hits = client.post("/search/vector", json={"collection_name": "c", "query_embedding": [1, 1]}).json()
    assert hits["metadatas"] == new["metadatas"]


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (
            {"query_embedding": [1, 2]},
            "query_embedding: expected 3 numbers, the dimension of the collection, and got 2",
        ),
        ({"query_embedding": [0, 0, 0]}, "query_embedding: is all zeros"),
        ({"query_embedding": [1, 1e39, 0]}, r"query_embedding\[1\]: does not fit into float32"),
        ({"query_embedding": [[1, 2, 3]]}, r"query_embedding\[0\]: must be a number"),
        ({"query_embedding": "abc"}, "query_embedding: is neither a list of numbers nor base64"),
        ({"query_embedding": []}, "query_embedding: must have 1 to 16384"),
        ({"n_results": 0}, "n_results: input should be greater than or equal to 1"),
        ({"n_results": 10_001}, r"n_results: must be at most 10000 \(MAX_RESULTS\)"),
        ({"n_results": 2**63}, "n_results: must be at most 10000"),
        ({"n_results": 10**30}, "n_results: must be at most 10000"),
        ({"n_results": -(10**30)}, "n_results: input should be greater than or equal to 1"),
        ({"offset": 10**30}, "n_results and offset together: must be at most 10000"),
        ({"offset": 1e30}, "n_results and offset together: must be at most 10000"),
        ({"mmr": {"candidates": 10**30}}, "queries times mmr.candidates: must be at most 100000"),
        ({"n_results": "10"}, "n_results: input should be a valid integer"),
        ({"n_results": 1.5, "group_size": 1.0}, r"^n_results: input should be a valid integer\.$"),
        ({"n_results": None}, "n_results: input should be a valid integer"),
        ({"include": ["everything"]}, r"include\[0\]: input should be 'documents'"),
        ({"collection_name": "x\0"}, "collection_name: holds a NUL"),
    ],
)
def test_a_wrong_search_is_refused_by_field_and_position(filled: TestClient, wrong: dict[str, Any], where: str) -> None:
    assert re.search(where, refusal(filled.post("/search/vector", json=QUERY | wrong), 422))


def test_a_query_of_another_width_has_a_code_of_its_own(filled: TestClient) -> None:
    wrong = filled.post("/search/vector", json=QUERY | {"query_embedding": [1, 2]})
    assert refusal(wrong, 422, "dimension_mismatch").startswith("query_embedding: expected 3")
    assert refusal(filled.patch("/collections/research_papers", json={}), 422).startswith(
        "new_name: metadata, language or metric"
    )


def test_a_wrong_batch_search_is_refused(filled: TestClient) -> None:
    many: dict[str, Any] = {"collection_name": "research_papers", "query_embeddings": [[1, 2, 3], [1, 2]]}
    assert "query_embeddings[1]: has 2 numbers" in refusal(filled.post("/search/vector/batch", json=many), 422)
    many = many | {"query_embeddings": [[1, 2, 3]] * 11, "n_results": 10_000}
    assert "times n_results" in refusal(filled.post("/search/vector/batch", json=many), 422)


@pytest.mark.parametrize("name", ["%00", "a%00b", "%2E%2E", "x" * 513, "a%ED%A0%80"])
def test_a_wrong_name_in_a_path_is_refused(client: TestClient, name: str) -> None:
    response = client.get(f"/collections/{name}")
    assert response.status_code in (404, 422)
    refusal(response, response.status_code)


def test_unknown_routes_and_methods_have_the_same_shape(client: TestClient) -> None:
    refusal(client.get("/nope"), 404, "no_such_route")
    response = client.put("/items")
    refusal(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/collections", "GET, POST"),
        ("/collections/c", "DELETE, GET, PATCH"),
        ("/collections/c/items/a/b", "DELETE, GET"),
        ("/search/vector", "POST"),
        ("/health", "GET, HEAD"),
    ],
)
def test_the_methods_of_a_path_are_told(client: TestClient, path: str, methods: str) -> None:
    told = client.options(path)
    assert (told.status_code, told.headers["allow"], told.content) == (204, methods, b"")
    refused = client.put(path)
    refusal(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == methods
    refusal(client.options("/nope"), 404, "no_such_route")


def test_a_query_parameter_that_the_route_does_not_know_is_refused(filled: TestClient) -> None:
    for method, path in (
        ("GET", "/collections?limits=1"),
        ("GET", "/health?limits=1"),
        ("DELETE", "/collections/research_papers?limits=1"),
        ("DELETE", "/collections/research_papers/items/doc1?limits="),
        ("PATCH", "/collections/research_papers?limits=1"),
        ("POST", "/search/vector?limit=1&limits=1"),
    ):
        detail = refusal(filled.request(method, path, json=QUERY), 422, "invalid_input")
        assert re.match(r"limits?: is not a query parameter of this route", detail), (path, detail)
    twice = refusal(filled.get("/collections?limit=1&limit=2"), 422)
    assert twice == "limit: is given more than once."
    outside = refusal(filled.get(f"/collections?offset={10**30}"), 422)
    assert outside == "offset: input should be less than or equal to 2147483648."
    assert filled.get("/collections/research_papers").json()["count"] == 3


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_without_its_type_is_explained(client: TestClient, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = client.post("/items", content=json.dumps(ITEMS).encode(), headers=headers)
    assert "Content-Type: application/json" in refusal(response, 422)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty; send a JSON object"),
        (b" \n", "is empty; send a JSON object"),
        (b"{", "is not valid JSON at character 1: "),
        (b"{'a': 1}", "is not valid JSON at character 1: "),
        (b"[1,]", "is not valid JSON at character 2: trailing comma"),
        (b"[NaN,]", "is not valid JSON at character 1: "),
        (b"NaN", "is NaN; every number must be finite"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8 text"),
        (b'{"a": "\xff"}', "is not UTF-8 text"),
        (gzip.compress(b"{}", mtime=0), "is not UTF-8 text"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "is nested too deeply"),
        (b"9" * 5_000, "is too large; every number"),
        (b"1e400", "is too large; every number"),
    ],
)
def test_a_body_that_is_no_json_is_refused_with_the_reason(client: TestClient, content: bytes, problem: str) -> None:
    response = client.post("/items", content=content, headers={"content-type": "application/json"})
    assert refusal(response, 422).startswith(f"body: {problem}")


def test_a_long_list_of_wrong_entries_is_one_fault(client: TestClient) -> None:
    for field in ("ids", "documents", "metadatas"):
        detail = refusal(client.post("/items", json=items() | {field: [0] * 300_000}), 422)
        assert re.fullmatch(rf"{field}\[0\]: input should be a valid \w+\.", detail)


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(0, size, 2**16):
        yield b" " * 2**16


def test_a_body_over_the_limit_is_refused_also_in_chunks(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    for content in (b" " * (2**20 + 1), chunks(2**20 + 2**16), chunks(2**23)):
        detail = refusal(client.post("/items", content=content, headers=headers), 413, "payload_too_large")
        assert "1048576 bytes (MAX_BODY_BYTES)" in detail
    full = json.dumps(ITEMS).encode().ljust(2**20)
    assert client.post("/items", content=full, headers=headers).status_code == 201


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NUMBERS = st.lists(st.floats(width=32) | st.integers(-5, 5) | JSON, min_size=0, max_size=4)
OPERATORS = st.sampled_from(["$eq", "$ne", "$gt", "$in", "$contains", "$regex", "$matches", "$not", "$and", "$x"])
WHERE = st.dictionaries(
    st.text(max_size=3) | OPERATORS, JSON | st.dictionaries(OPERATORS, JSON, max_size=2), max_size=3
)
BODIES = st.fixed_dictionaries(
    {"collection_name": st.sampled_from(["c", "d", "", "é", "a\0"]) | JSON},
    optional={
        "ids": st.lists(st.text(max_size=4) | JSON, max_size=4) | JSON,
        "documents": st.lists(st.none() | st.text(max_size=4), max_size=4) | JSON,
        "metadatas": st.lists(st.none() | st.dictionaries(st.text(max_size=4), JSON, max_size=3), max_size=4) | JSON,
        "embeddings": st.lists(NUMBERS, max_size=4) | JSON,
        "query_embedding": NUMBERS,
        "query_embeddings": st.lists(NUMBERS, max_size=3),
        "n_results": st.integers(-1, 20) | JSON,
        "include": st.lists(st.sampled_from(["documents", "metadatas", "embeddings", "uris", "x"]), max_size=3) | JSON,
        "uris": st.lists(st.none() | st.text(max_size=4), max_size=4) | JSON,
        "media_types": st.lists(st.none() | st.text(max_size=4), max_size=4) | JSON,
        "mode": st.sampled_from(["upsert", "insert", "ignore", "x"]) | JSON,
        "if_version": st.integers(-1, 3) | JSON,
        "where": WHERE | JSON,
        "where_document": st.dictionaries(OPERATORS, st.text(max_size=4) | JSON, max_size=2) | JSON,
        "order_by": st.sampled_from(["id", "created_at", "a.b", "\\", ""]) | JSON,
        "descending": st.booleans(),
        "dry_run": st.booleans(),
        "offset": st.integers(-1, 5) | JSON,
        "group_by": st.text(max_size=3) | JSON,
        "group_size": st.integers(-1, 3) | JSON,
        "min_similarity": st.floats(-2, 2) | JSON,
        "max_distance": st.floats(-2, 2) | JSON,
        "mmr": st.fixed_dictionaries({"diversity": st.floats(-1, 2)}) | JSON,
        "query_text": st.text(max_size=8) | JSON,
        "query_texts": st.lists(st.text(max_size=8), max_size=3) | JSON,
        "snippets": st.booleans(),
        "k": st.floats(-1, 100) | JSON,
        "alpha": st.floats(-1, 2) | JSON,
        "negative": st.fixed_dictionaries({"ids": st.lists(st.text(max_size=4), max_size=2)}) | JSON,
        "language": st.sampled_from(["english", "simple", "klingon"]) | JSON,
        "limit": st.integers(-1, 20) | JSON,
        "cursor": st.text(max_size=6) | JSON,
        "name": st.text(max_size=6),
        "dimension": st.integers(-1, 5) | JSON,
        "metric": st.sampled_from(["cosine", "ip", "euclidean", "manhattan", "dot"]) | JSON,
    },
)
ROUTE_MODELS: dict[str, type[BaseModel]] = {
    "/collections": models.NewCollection,
    "/items": models.Items,
    "/items/get": models.ItemsQuery,
    "/items/count": models.ItemsCount,
    "/items/update": models.ItemsUpdate,
    "/items/delete": models.ItemsDeletion,
    "/search/vector": models.VectorQuery,
    "/search/vector/batch": models.VectorQueries,
    "/search/text": models.TextQuery,
    "/search/text/batch": models.TextQueries,
    "/search/hybrid": models.HybridQuery,
    "/search/hybrid/batch": models.HybridQueries,
    "/search/similar": models.SimilarQuery,
}


@settings(max_examples=500)
@given(route=st.sampled_from(sorted(ROUTE_MODELS)), sent=BODIES | JSON, keep=st.booleans())
def test_no_body_brings_the_service_down(client: TestClient, route: str, sent: Any, keep: bool) -> None:
    if keep and isinstance(sent, dict):  # mostly fields that the route knows, or nothing but refusals is tested
        fields = ROUTE_MODELS[route].model_fields.keys()
        sent = {name: value for name, value in sent.items() if name in fields}
    content = json.dumps(sent).encode(errors="surrogatepass")
    response = client.post(route, content=content, headers={"content-type": "application/json"})

    if response.status_code >= 300:
        refusal(response, response.status_code)
        assert response.status_code in (404, 409, 422)
    for listed in client.get("/collections?limit=1000").json()["collections"]:
        lines = client.get(f"/collections/{quote(listed['name'], safe='')}/export").text.splitlines()
        assert len([models.ExportedItem.model_validate_json(line) for line in lines]) == listed["count"]


# Around every request


def test_every_answer_has_a_request_id(client: TestClient) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", client.get("/health/live").headers["x-request-id"])
    assert client.get("/nope", headers={"x-request-id": "mine-1.2_3"}).headers["x-request-id"] == "mine-1.2_3"
    forged = client.get("/nope", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", forged)


def test_every_request_leaves_one_line_in_the_log(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pgvector_service.requests"):
        response = client.get("/collections/a%0d%0aforged")
    (record,) = [record for record in caplog.records if record.name == "pgvector_service.requests"]

    pattern = r"GET /collections/\{name\} 404 [0-9.]+ ms " + response.headers["x-request-id"]
    assert re.fullmatch(pattern, record.getMessage())
    assert record.levelno == logging.INFO


def test_a_slow_request_is_a_warning(
    client: TestClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgvector_service.web.middleware.SLOW_S", 0.0)
    client.get("/health/live")
    (record,) = [record for record in caplog.records if record.name == "pgvector_service.requests"]
    assert record.levelno == logging.WARNING


def test_a_fault_of_the_service_shows_nothing_but_an_id(
    client: TestClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgvector_db.VectorDB.get_collection", lambda *_: 1 / 0)
    response = client.get("/collections/c")

    assert "division" not in refusal(response, 500, "internal_error")
    assert "ZeroDivisionError" in caplog.text
    assert response.headers["x-request-id"] in [getattr(record, "request_id", "") for record in caplog.records]


def test_a_database_that_refuses_shows_no_sql(client: TestClient, sql: Callable[..., list[tuple[Any, ...]]]) -> None:
    sql("ALTER TABLE vector_documents ADD CHECK (id <> 'secret')")
    new = {"collection_name": "c", "ids": ["secret"], "embeddings": [[1, 2]]}
    detail = refusal(client.post("/items", json=new), 422)
    assert "secret" not in detail
    assert "INSERT" not in detail
    assert client.get("/collections").json()["total"] == 0


def test_the_documentation_works_without_the_internet(client: TestClient) -> None:
    page = client.get("/docs").text
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert links
    for link in links:
        assert link.startswith("/")
        assert client.get(link).status_code == 200
    assert client.get("/", follow_redirects=False).headers["location"] == "docs"


def post_lines(client: TestClient, path: str, lines: str) -> Any:
    headers = {"content-type": "application/x-ndjson"}
    return client.post(path, params={"collection_name": "imported"}, content=lines, headers=headers)


def test_every_route_has_a_tag_a_description_and_examples_that_are_valid(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert operation["tags"], path
            for status, answer in operation["responses"].items():
                is_problem = (status >= "400" and not path.startswith("/health")) or status in ("413", "422", "500")
                assert list(answer.get("content", {})) == ["application/problem+json"] or not is_problem, (path, status)
            assert operation["description"], path
            content = operation.get("requestBody", {}).get("content", {})
            if "application/x-ndjson" in content:
                assert post_lines(client, path, content["application/x-ndjson"]["example"]).json()["failed"] == 0
            elif content:
                reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                name = reference.rsplit("/", 1)[1]
                (example,) = schema["components"]["schemas"][name]["examples"]
                getattr(models, name).model_validate(example)
                jsonschema_rs.validate({"$ref": reference, "components": schema["components"]}, example)
                if "{" not in path:
                    assert client.request(method, path, json=example).status_code in (200, 201), (path, example)
    for name, model in schema["components"]["schemas"].items():
        for example in model.get("examples", []):
            getattr(models, name).model_validate_json(json.dumps(example))


SEARCH: dict[str, Any] = QUERY | {"collection_name": "c"}


@pytest.mark.parametrize(
    ("route", "wrong"),
    [
        ("/collections", {"name": ""}),
        ("/collections", {"name": "a/b"}),
        ("/collections", {"name": ".."}),
        ("/collections", {"name": "a", "collection_name": "b"}),
        ("/collections", {}),
        ("/collections", {"name": "a", "dimension": 0}),
        ("/collections", {"name": "a", "dimension": 16_385}),
        ("/collections", {"name": "a", "metadata": {"n": [2**53 + 2]}}),
        ("/items", ITEMS | {"collection_name": "x" * 513}),
        ("/items", ITEMS | {"ids": []}),
        ("/items", ITEMS | {"ids": ["a", "b", "a"]}),
        ("/items", ITEMS | {"ids": ["a", "", "c"]}),
        ("/items", ITEMS | {"embeddings": []}),
        ("/items", ITEMS | {"embeddings": [[], [], []]}),
        ("/items", ITEMS | {"embeddings": [[1e39]] * 3}),
        ("/items", ITEMS | {"embeddings": ["AAAA"] * 3}),
        ("/items", ITEMS | {"uris": []}),
        ("/items", ITEMS | {"documents": ["a\0", "b", "c"]}),
        ("/items", ITEMS | {"if_version": -1}),
        ("/items/update", {"collection_name": "c", "ids": ["a"], "embeddings": []}),
        ("/items/get", {"collection_name": "c", "where": {}}),
        ("/items/get", {"collection_name": "c", "where_document": {}}),
        ("/items/get", {"collection_name": "c", "ids": ["a"], "order_by": "id"}),
        ("/items/get", {"collection_name": "c", "ids": ["a"], "descending": True}),
        ("/items/get", {"collection_name": "c", "ids": ["a"], "cursor": ""}),
        ("/items/get", {"collection_name": "c", "order_by": "#uri"}),
        ("/items/get", {"collection_name": "c", "order_by": "a\\"}),
        ("/items/get", {"collection_name": "c", "limit": 10_001}),
        ("/items/count", {"collection_name": "c", "where": {"$and": []}}),
        ("/items/count", {"collection_name": "c", "where": {"$x": 1}}),
        ("/items/count", {"collection_name": "c", "where": {"#x": 1}}),
        ("/items/count", {"collection_name": "c", "where": {"a": {}}}),
        ("/items/count", {"collection_name": "c", "where": {"a": {"$gt": None}}}),
        ("/items/count", {"collection_name": "c", "where": {"#uri": {"$contains": "a"}}}),
        ("/items/count", {"collection_name": "c", "where": {"$not": {"a": [1]}}}),
        ("/items/count", {"collection_name": "c", "where_document": {"$contains": 1}}),
        ("/items/delete", {"collection_name": "c"}),
        ("/items/delete", {"collection_name": "c", "ids": None}),
        ("/search/vector", SEARCH | {"mmr": {}, "group_by": "a"}),
        ("/search/vector", SEARCH | {"mmr": {"diversity": 2}}),
        ("/search/vector", SEARCH | {"mmr": {"candidates": 1_001}}),
        ("/search/text", {"collection_name": "c", "query_text": " "}),
        ("/search/text", {"collection_name": "c", "query_text": "a" * 10_001}),
        ("/search/similar", {"collection_name": "c"}),
        ("/search/similar", {"collection_name": "c", "ids": []}),
    ],
)
def test_what_is_refused_is_refused_by_the_schema(client: TestClient, route: str, wrong: Any) -> None:
    schema = client.get("/openapi.json").json()
    body = schema["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert not jsonschema_rs.is_valid({**body, "components": schema["components"]}, wrong)
    refusal(client.post(route, json=wrong), 422, "invalid_input")


# The seed's own client code, over a real socket


class Model:
    """Stands for SentenceTransformer('all-MiniLM-L6-v2'): equal texts have equal embeddings, and no others."""

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.array(
            [np.random.default_rng(list(text.encode())).standard_normal(384).astype(np.float32) for text in texts]
        )


def test_the_client_code_of_the_crash_course_works_unchanged(database: str) -> None:
    with Service(DATABASE_URL=database) as service:
        model = Model()

        def store_embeddings(collection_name: str, documents: list[str], embeddings: np.ndarray) -> Any:
            data = {
                "collection_name": collection_name,
                "ids": [f"doc_{i}" for i in range(len(documents))],
                "documents": documents,
                "metadatas": [{"source": "generated"} for _ in documents],
                "embeddings": embeddings.tolist(),
            }
            response = requests.post(f"{service.url}/items", json=data, timeout=30)
            return response.json()

        def search_documents(query_text: str, collection_name: str, n_results: int = 10) -> Any:
            query_embedding = model.encode([query_text])[0]
            search_data = {
                "collection_name": collection_name,
                "query_embedding": query_embedding.tolist(),
                "n_results": n_results,
            }
            response = requests.post(f"{service.url}/search/vector", json=search_data, timeout=30)
            return response.json()

        def import_large_dataset(documents: list[str], batch_size: int = 1000) -> None:
            for i in range(0, len(documents), batch_size):
                batch = documents[i : i + batch_size]
                embeddings = model.encode(batch)
                store_embeddings(collection_name=f"large_dataset_{i}", documents=batch, embeddings=embeddings)

        def stream_document_updates(stream: list[tuple[str, str]]) -> None:
            for id_, content in stream:
                embedding = model.encode([content])[0]
                data = {
                    "collection_name": "streaming",
                    "ids": [id_],
                    "documents": [content],
                    "metadatas": [{"n": 1}],
                    "embeddings": [embedding.tolist()],
                }
                requests.post(f"{service.url}/items", json=data, timeout=30)
                assert search_documents(content, "streaming", 1)["ids"] == [id_]

        documents = [f"text number {i}" for i in range(2500)]
        written = store_embeddings("research_papers", documents[:5], model.encode(documents[:5]))
        assert written == {"collection_name": "research_papers", "added": 5, "updated": 0, "version": 1}
        import_large_dataset(documents)
        found = search_documents("text number 1234", "large_dataset_1000")
        assert (found["ids"][0], found["documents"][0]) == ("doc_234", "text number 1234")
        assert found["similarities"] == sorted(found["similarities"], reverse=True)
        assert len(found["ids"]) == 10
        stream_document_updates([(str(i % 3), f"update {i}") for i in range(9)])
        health = requests.get(f"{service.url}/health", timeout=30).json()
        assert (health["status"], health["database"]) == ("healthy", True)


def test_a_service_without_its_database_says_so() -> None:
    away = Settings(database_url="postgresql://postgres@127.0.0.1:1/postgres")
    with TestClient(create_app(away), raise_server_exceptions=False) as client:
        health = client.get("/health")
        assert health.status_code == 503
        assert (health.json()["status"], health.json()["database"]) == ("unhealthy", False)
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        response = client.post("/search/vector", json=QUERY)
        refusal(response, 503, "database_unavailable")
        assert int(response.headers["retry-after"]) >= 1


def in_base64(row: list[float]) -> str:
    return base64.b64encode(np.array(row, "<f4").tobytes()).decode()


def test_base64_is_the_same_as_a_list(filled: TestClient) -> None:
    embeddings = [[0.1, 0.2, 0.3], [0.5, -0.25, 1e-3]]
    for name, sent in (("lists", embeddings), ("texts", [in_base64(row) for row in embeddings])):
        response = filled.post("/items", json={"collection_name": name, "ids": ["a", "b"], "embeddings": sent})
        assert response.status_code == 201, response.text
    mixed = {"collection_name": "lists", "ids": ["c"], "embeddings": [in_base64(embeddings[1])]}
    filled.post("/items", json=mixed)
    filled.post("/items", json=mixed | {"collection_name": "texts", "embeddings": embeddings[1:]})

    answers = []
    for name in ("lists", "texts"):
        for query in ([0.3, 0.1, 0.1], in_base64([0.3, 0.1, 0.1])):
            one = {"collection_name": name, "query_embedding": query, "include": ["embeddings"]}
            several = {"collection_name": name, "query_embeddings": [query, query], "include": ["embeddings"]}
            first = filled.post("/search/vector", json=one).json()
            assert filled.post("/search/vector/batch", json=several).json() == {"results": [first, first]}
            answers.append(first)
    assert answers[0]["ids"] == ["b", "c", "a"]
    assert answers[1:] == answers[:1] * 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("!!!!", "is neither a list of numbers nor base64"),
        ("AAAA", "not of whole float32 numbers"),
        ("", "must have 1 to 16384 numbers"),
        (in_base64([1, 2]), "expected 3 numbers"),
        (in_base64([1, float("nan"), 2]), r"\[1\]: is NaN"),
        (in_base64([0, 0, 0]), "is all zeros"),
        (in_base64([0.1, 0.2, 0.3]) + "\n", "nor base64"),
    ],
)
def test_wrong_base64_is_refused_by_field_and_position(filled: TestClient, text: str, problem: str) -> None:
    batch = {"collection_name": "research_papers", "ids": ["x"], "embeddings": [text]}
    assert re.search(rf"^embeddings\[0\].*{problem}", refusal(filled.post("/items", json=batch), 422))
    search = refusal(filled.post("/search/vector", json=QUERY | {"query_embedding": text}), 422)
    assert re.search(rf"^query_embedding.*{problem}", search)


def test_a_search_may_be_exact(filled: TestClient) -> None:
    usual = filled.post("/search/vector", json=QUERY).json()
    assert filled.post("/search/vector", json=QUERY | {"exact": True}).json() == usual
    assert refusal(filled.post("/search/vector", json=QUERY | {"exact": "yes"}), 422).startswith("exact: ")
