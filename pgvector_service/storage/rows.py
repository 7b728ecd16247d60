"""Rows of items as the lists of an answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from pgvector_service.arrays import Rows
from pgvector_service.jsons import read_json

# A number that no float can hold has more digits, and JSON that is nested too deeply has more brackets.
SHORT_JSON = 240


def columns(
    rows: Sequence[tuple[Any, ...]],
    include: Sequence[str],
    vectors: Mapping[int, Rows | None],
    *,
    as_json: bool = False,
) -> dict[str, Any]:
    """Rows of (key, id, document, metadata as text, uri, media type) as the list `ids` and those that `include` names.

    `vectors` has the embeddings by key. With `as_json` metadata may come as an orjson.Fragment.
    """
    answer: dict[str, Any] = {"ids": [row[1] for row in rows]}
    if "documents" in include:
        answer["documents"] = [row[2] for row in rows]
    if "metadatas" in include:
        answer["metadatas"] = [read_metadata(row[3], as_json) for row in rows]
    if "embeddings" in include:
        answer["embeddings"] = [vectors.get(row[0]) for row in rows]
    if "uris" in include:
        answer["uris"] = [row[4] for row in rows]
    if "media_types" in include:
        answer["media_types"] = [row[5] for row in rows]
    return answer


def read_metadata(text: str | None, as_json: bool = False) -> Any:
    """The metadata; as JSON that need not be parsed only if it is short: see read_json for what else it may hold."""
    if text is None:
        return None
    return orjson.Fragment(text) if as_json and len(text) <= SHORT_JSON else read_json(text)
