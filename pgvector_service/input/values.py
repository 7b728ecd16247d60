"""Texts, names, numbers and metadata that can be stored and read back by every route."""

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from pgvector_service.errors import InvalidInput
from pgvector_service.jsons import dumped
from pgvector_service.ranking.distances import ALIASES, Metric, MetricName

MAX_NAME_BYTES = 512
MAX_DEPTH = 32
MAX_NUMBER = 2**53


def check_ids(ids: Sequence[str], field: str = "ids") -> None:
    """Refuse ids that cannot be stored."""
    for i, id_ in enumerate(ids):
        check_name(f"{field}[{i}]", id_)


def check_name(field: str, name: str) -> None:
    """Refuse an id or a collection name that is empty, over 512 bytes of UTF-8, or not storable text."""
    check_text(field, name)
    if not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
        raise InvalidInput(field, f"must have 1 to {MAX_NAME_BYTES} bytes.")


def check_collection_name(field: str, name: str) -> None:
    """Refuse for a new collection what gets lost in the path of a URL on its way through proxies and clients.

    Plain SQL, and the crash course, may have made collections of such names; those can be used and renamed.
    """
    check_name(field, name)
    if "/" in name or name in (".", ".."):
        raise InvalidInput(field, "must not contain '/', nor be '.' or '..'.")


def checked_metric(field: str, name: str) -> Metric:
    """The metric of this name or alias."""
    metric = ALIASES.get(name, name) if isinstance(name, str) else None
    if metric not in get_args(Metric):
        raise InvalidInput(field, f"must be one of {', '.join(get_args(MetricName))}.")
    return cast(Metric, metric)


def checked_json(field: str, data: Mapping[str, Any]) -> bytes:
    """The object as JSON text, if PostgreSQL and every JSON reader can hold it."""
    if not isinstance(data, Mapping):
        raise InvalidInput(field, "must be an object.")
    check_value(field, data)
    return dumped(data)


def check_value(field: str, value: Any, depth: int = 1) -> None:
    """Refuse what PostgreSQL or a JSON reader could not hold; `depth` is how many levels it lies deep."""
    if isinstance(value, str):
        check_text(field, value)
    elif value is None or isinstance(value, bool):
        pass
    elif isinstance(value, int | float):
        # Also true of NaN. Floats this large are whole numbers too: a JSON parser makes one of 2^64.
        if not abs(value) <= MAX_NUMBER:
            raise InvalidInput(field, "holds a number beyond 2^53, which JSON readers round; send it as a string.")
    elif not isinstance(value, Mapping | list | tuple):
        raise InvalidInput(field, "holds something that is not JSON.")
    elif depth > MAX_DEPTH:
        raise InvalidInput(field, f"is nested deeper than {MAX_DEPTH} levels.")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InvalidInput(field, "has a key that is not a string.")
            check_text(field, key)
            check_value(field, inner, depth + 1)
    else:
        for inner in value:
            check_value(field, inner, depth + 1)


def check_text(field: str, text: str) -> None:
    """Refuse what is no text that PostgreSQL can store."""
    if not isinstance(text, str):
        raise InvalidInput(field, "must be a string.")
    if "\0" in text:
        raise InvalidInput(field, "holds a NUL character, which PostgreSQL cannot store.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(field, "holds half of a surrogate pair, which is not Unicode text.") from None
