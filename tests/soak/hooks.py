"""What schemathesis is told of this service: data to meet, and refusals that a JSON schema cannot foresee."""

import re
from typing import Any

import requests
import schemathesis
from schemathesis.core.failures import Failure

# Of what exists more can be asked than that it be not found. Bodies ask for this collection.
COLLECTION: dict[str, Any] = {"name": "soak", "dimension": 1, "metric": "euclidean"}
# Paths ask for this one, and may delete it.
SPARE: dict[str, Any] = {"collection_name": "spare", "ids": ["spare"], "embeddings": [[1]]}
COLUMNS = ("ids", "documents", "metadatas", "embeddings", "uris", "media_types", "query_embeddings", "query_texts")

# What is valid by the schema may be refused for these reasons and no others.
BEYOND_THE_SCHEMA = [
    # what must agree with the collection, or with another field
    r"expected \d+ numbers, the dimension of the collection",
    r"has \d+ (numbers|entries) where",
    r"must be at least n_results and offset together",
    r"the difference does not fit into float32",
    r"cancel out with the other examples",
    r"is (NaN|infinite); every number must be finite",  # of a base64 text
    # what only the service or the database knows
    r"MAX_RESULTS",
    r"^cursor: is not one that this service gave",
    r"regular expression",
]


@schemathesis.hook
def before_call(_context: Any, case: schemathesis.Case[Any], _kwargs: Any) -> None:
    """Ask for what exists, and let a valid request say what the schema cannot: what agrees."""
    if case.path_parameters and _may_exist(case.path_parameters.get("name")):
        requests.post(f"{str(case.operation.base_url).rstrip('/')}/items", json=SPARE, timeout=30)
        case.path_parameters["name"] = SPARE["collection_name"]
        if _may_exist(case.path_parameters.get("item_id")):
            case.path_parameters["item_id"] = SPARE["ids"][0]
    if isinstance(case.body, dict):
        if _may_exist(case.body.get("collection_name")) and case.operation.path != "/collections":
            case.body["collection_name"] = COLLECTION["name"]
        if case.meta and case.meta.generation.mode.is_positive:
            _make_agree(case.body)


def _may_exist(name: Any) -> bool:
    return isinstance(name, str) and bool(re.fullmatch(r"[^/\0]{1,128}", name)) and name not in (".", "..")


def _make_agree(body: dict[str, Any]) -> None:
    """Cut lists to one length, and embeddings to the dimension of the collection; name a language that there is."""
    if isinstance(body.get("language"), str):
        body["language"] = "simple"
    columns = [name for name in COLUMNS if isinstance(body.get(name), list)]
    if "ids" in columns or "query_texts" in columns:
        shortest = min(len(body[name]) for name in columns)
        body.update({name: body[name][:shortest] for name in columns})
    width = COLLECTION["dimension"]
    if isinstance(body.get("query_embedding"), list):
        body["query_embedding"] = body["query_embedding"][:width]
    for holder in (body, body.get("negative")):
        for name in ("embeddings", "query_embeddings"):
            if isinstance(holder, dict) and isinstance(holder.get(name), list):
                holder[name] = [row[:width] if isinstance(row, list) else row for row in holder[name]]


@schemathesis.check
def valid_data_is_refused_only_beyond_the_schema(
    _context: Any, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """In place of positive_data_acceptance, which takes no 422 at all."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 422:
        return
    detail = response.json()["detail"]
    if not any(re.search(reason, detail) for reason in BEYOND_THE_SCHEMA):
        raise Failure(operation=case.operation.label, title="Valid data should have been accepted", message=detail)


@schemathesis.serializer("application/x-ndjson")
def as_lines(_context: Any, value: Any) -> bytes:
    """Lines are sent as they were made."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")
