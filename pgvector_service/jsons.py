"""JSON as text: what the service writes, and what it reads back from the database."""

import json
from typing import Any

import orjson

# orjson.dumps gives up at 255 levels.
ORJSON_DEPTH = 250


def dumped(value: Any) -> bytes:
    """What has passed `check_value` as JSON text; numpy's floats are floats too."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def read_json(text: str) -> Any:
    """What a JSONB value holds, in a form that can be written as JSON again.

    Only plain SQL can write what would not be: numbers beyond the range of floats become infinite, and a value nested
    so deeply that JSON libraries give up becomes None.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(text, parse_int=float)
        except RecursionError:
            return None
    if text.count("{") + text.count("[") > ORJSON_DEPTH:
        try:
            orjson.dumps([[[[value]]]])  # as deep as in an answer
        except TypeError:
            return None
    return value
