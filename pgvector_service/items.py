"""The gate for all that is stored or asked: what passes it can be written, ranked and read back by every route."""

import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import ArrayLike

from pgvector_service.codec import Rows
from pgvector_service.errors import InvalidInput
from pgvector_service.ranking import row_norms

MAX_NAME_BYTES = 512
MAX_DIMENSION = 16_384
MAX_DEPTH = 32
MAX_NUMBER = 2**53
# orjson.dumps gives up at 255 levels.
ORJSON_DEPTH = 250


@dataclass(frozen=True, slots=True)
class Batch:
    """Items that passed the gate; metadatas are JSON texts, embeddings a (len(ids), dimension) float32 matrix."""

    ids: Sequence[str]
    documents: Sequence[str | None]
    metadatas: Sequence[bytes | None]
    embeddings: Rows


def checked_batch(
    ids: Sequence[str],
    documents: Sequence[str | None] | None,
    metadatas: Sequence[Mapping[str, Any] | None] | None,
    embeddings: ArrayLike,
) -> Batch:
    """The batch, or InvalidInput that names the field and position of the first fault.

    Under cosine the caller also refuses zero vectors (`refuse_zeros`): the metric is the collection's.
    """
    check_ids(ids)
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        for i, id_ in enumerate(ids):
            if id_ in seen:
                raise InvalidInput(f"ids[{i}]", "appears twice in this batch.")
            seen.add(id_)
    count = len(ids)
    if not count:
        raise InvalidInput("ids", "must name at least one item.")
    documents = [None] * count if documents is None else documents
    metadatas = [None] * count if metadatas is None else metadatas
    matrix = checked_matrix("embeddings", embeddings)
    for field, values in (("documents", documents), ("metadatas", metadatas), ("embeddings", matrix)):
        if len(values) != count:
            raise InvalidInput(field, f"has {len(values)} entries where ids has {count}.")
    for i, document in enumerate(documents):
        if document is not None:
            _check_text(f"documents[{i}]", document)
    texts = [None if data is None else checked_json(f"metadatas[{i}]", data) for i, data in enumerate(metadatas)]
    return Batch(ids, documents, texts, matrix)


def check_ids(ids: Sequence[str]) -> None:
    """Refuse ids that cannot be stored."""
    for i, id_ in enumerate(ids):
        check_name(f"ids[{i}]", id_)


def check_name(field: str, name: str) -> None:
    """Refuse an id or a collection name that is empty, over 512 bytes of UTF-8, or not storable text."""
    _check_text(field, name)
    if not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
        raise InvalidInput(field, f"must have 1 to {MAX_NAME_BYTES} bytes.")


def check_collection_name(field: str, name: str) -> None:
    """Refuse what could not stand in the path of a URL, beside what `check_name` refuses."""
    check_name(field, name)
    if "/" in name or name in (".", ".."):
        raise InvalidInput(field, "must not contain '/', nor be '.' or '..'.")


def checked_json(field: str, data: Mapping[str, Any]) -> bytes:
    """The object as JSON text, if PostgreSQL and every JSON reader can hold it."""
    if not isinstance(data, Mapping):
        raise InvalidInput(field, "must be an object.")
    _check_value(field, data, 1)
    return orjson.dumps(data)


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


def checked_matrix(field: str, rows: ArrayLike) -> Rows:
    """The rows as one C-contiguous float32 matrix: 1 to 16,384 finite numbers each, all of one width.

    Takes an array of numbers of shape (n, d), or a sequence of n rows: sequences of d numbers, or base64 texts of d
    little-endian float32 (what OpenAI sends for `encoding_format: base64`).
    """
    wide = _from_array(field, np.asarray(rows)) if hasattr(rows, "__array__") else _from_lists(field, rows)
    if not 1 <= wide.shape[1] <= MAX_DIMENSION:
        raise InvalidInput(f"{field}[0]", f"must have 1 to {MAX_DIMENSION} numbers.")
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(wide, dtype=np.float32)
    finite = np.isfinite(narrow)
    if not finite.all():
        i, j = np.argwhere(~finite)[0]
        value = wide[i, j]
        problem = "is NaN" if np.isnan(value) else "is infinite" if np.isinf(value) else "does not fit into float32"
        raise InvalidInput(f"{field}[{i}][{j}]", f"{problem}; every number must be finite.")
    return narrow


def refuse_zeros(field: str, matrix: Rows) -> None:
    """Refuse rows of zeros, which have no cosine similarity to anything."""
    zero = np.flatnonzero(row_norms(matrix) == 0)
    if len(zero):
        raise InvalidInput(
            f"{field}[{zero[0]}]", "is all zeros, which has no direction; use another metric or leave the item out."
        )


def _from_array(field: str, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        raise InvalidInput(field, "must be a two-dimensional array of numbers.")
    return rows


def _from_lists(field: str, rows: Any) -> np.ndarray[Any, Any]:
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        raise InvalidInput(field, "must be a list of embeddings, each a list of numbers or base64 text.")
    if not len(rows):
        raise InvalidInput(field, "must hold at least one embedding.")
    if any(isinstance(row, str) for row in rows):
        return _from_texts(field, rows)
    if all(isinstance(row, np.ndarray) and row.ndim == 1 for row in rows):
        rows = [row.tolist() for row in rows]
    for i, row in enumerate(rows):
        if not isinstance(row, list | tuple):
            raise InvalidInput(f"{field}[{i}]", "must be a list of numbers or base64 text.")
        _check_width(field, i, len(row), len(rows[0]))
        # numpy would take "1.5", true and null for numbers.
        if not set(map(type, row)) <= {float, int}:
            for j, value in enumerate(row):
                if isinstance(value, bool) or not isinstance(value, float | int | np.floating | np.integer):
                    raise InvalidInput(f"{field}[{i}][{j}]", "must be a number.")
    try:
        return np.array(rows, dtype=np.float64)
    except OverflowError:
        raise InvalidInput(field, "holds a number that does not fit into float32.") from None


def _from_texts(field: str, rows: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Rows of which some are base64."""
    decoded: list[bytes] = []
    for i, row in enumerate(rows):
        if isinstance(row, str):
            try:
                data = binascii.a2b_base64(row, strict_mode=True)
            except ValueError:
                raise InvalidInput(f"{field}[{i}]", "is neither a list of numbers nor base64.") from None
            if len(data) % 4:
                raise InvalidInput(f"{field}[{i}]", "is base64, but not of whole float32 numbers of 4 bytes.")
        else:
            data = checked_matrix(field, [row]).astype("<f4").tobytes()
        decoded.append(data)
        _check_width(field, i, len(data) // 4, len(decoded[0]) // 4)
    return np.frombuffer(b"".join(decoded), "<f4").reshape(len(rows), -1)


def _check_width(field: str, i: int, width: int, first: int) -> None:
    if width != first:
        raise InvalidInput(f"{field}[{i}]", f"has {width} numbers where {field}[0] has {first}.")


def _check_value(field: str, value: Any, depth: int) -> None:
    if isinstance(value, str):
        _check_text(field, value)
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
            _check_text(field, key)
            _check_value(field, inner, depth + 1)
    else:
        for inner in value:
            _check_value(field, inner, depth + 1)


def _check_text(field: str, text: str) -> None:
    if not isinstance(text, str):
        raise InvalidInput(field, "must be a string.")
    if "\0" in text:
        raise InvalidInput(field, "holds a NUL character, which PostgreSQL cannot store.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(field, "holds half of a surrogate pair, which is not Unicode text.") from None
