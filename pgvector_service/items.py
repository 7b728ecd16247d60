"""The gate for all that is stored or asked: what passes it can be written, ranked and read back by every route."""

import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal, cast, get_args

import numpy as np
import orjson
from numpy.typing import ArrayLike

from pgvector_service.codec import NULL, Fields, Rows, encode_arrays, encode_items
from pgvector_service.errors import DimensionMismatch, InvalidInput
from pgvector_service.ranking import ALIASES, Metric, MetricName, row_norms

# What happens to an item that exists: it is replaced, its batch is refused, or it is left as it is.
Mode = Literal["upsert", "insert", "ignore"]
MAX_NAME_BYTES = 512
MAX_DIMENSION = 16_384
MAX_DEPTH = 32
MAX_NUMBER = 2**53
# orjson.dumps gives up at 255 levels.
ORJSON_DEPTH = 250


@dataclass(frozen=True, slots=True)
class Batch:
    """Items that passed the gate: lists as long as `ids`, or None where nothing was given for any of them.

    metadatas are JSON texts; embeddings is a float32 matrix, one row for each of `positions`.
    """

    ids: Sequence[str]
    documents: Sequence[str | None] | None
    metadatas: Sequence[bytes | None] | None
    uris: Sequence[str | None] | None
    media_types: Sequence[str | None] | None
    embeddings: Rows | None
    positions: Sequence[int]

    def encoded(self) -> bytes:
        """A COPY file of (id, document, uri, media_type, metadata, embedding) rows."""
        fields: Fields = repeat(NULL)
        if self.embeddings is not None:
            fields = encode_arrays(self.embeddings)
            if len(fields) < len(self.ids):
                by_position = dict(zip(self.positions, fields, strict=True))
                fields = [by_position.get(i, NULL) for i in range(len(self.ids))]
        return encode_items((self.ids, self.documents, self.uris, self.media_types), self.metadatas, fields)

    def check_against(self, dimension: int | None, metric: Metric) -> None:
        """Refuse embeddings that do not fit into a collection."""
        if self.embeddings is None:
            return
        if self.embeddings.shape[1] != dimension:
            raise DimensionMismatch(f"embeddings[{self.positions[0]}]", dimension or 0, self.embeddings.shape[1])
        if metric == "cosine":
            with _at(self.positions):
                refuse_zeros("embeddings", self.embeddings)


def checked_batch(
    ids: Sequence[str],
    documents: Sequence[str | None] | None,
    metadatas: Sequence[Mapping[str, Any] | None] | None,
    embeddings: ArrayLike | Sequence[Any] | None,
    uris: Sequence[str | None] | None = None,
    media_types: Sequence[str | None] | None = None,
    *,
    partial: bool = False,
) -> Batch:
    """The batch, or InvalidInput that names the field and position of the first fault.

    With `partial` embeddings may be None, all or some. Whether they fit into a collection is for `Batch.check_against`.
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
    positions, matrix = _embeddings(embeddings, partial)
    columns: dict[str, Any] = {
        "documents": documents,
        "metadatas": metadatas,
        "uris": uris,
        "media_types": media_types,
    }
    for field, values in {**columns, "embeddings": embeddings}.items():
        if values is not None and len(values) != count:
            raise InvalidInput(field, f"has {len(values)} entries where ids has {count}.")
    for field in ("documents", "uris", "media_types"):
        for i, text in enumerate(columns[field] or ()):
            if text is not None:
                check_text(f"{field}[{i}]", text)
    texts = None
    if metadatas is not None:
        texts = [None if data is None else checked_json(f"metadatas[{i}]", data) for i, data in enumerate(metadatas)]
    return Batch(ids, documents, texts, uris, media_types, matrix, positions)


def _embeddings(embeddings: ArrayLike | Sequence[Any] | None, partial: bool) -> tuple[Sequence[int], Rows | None]:
    """The matrix of the embeddings that are given, and their positions."""
    if not partial or isinstance(embeddings, np.ndarray):
        matrix = checked_matrix("embeddings", embeddings)  # type: ignore[arg-type]
        return range(len(matrix)), matrix
    if embeddings is not None and not isinstance(embeddings, list | tuple):
        raise InvalidInput("embeddings", "must be a list.")
    positions = [i for i, embedding in enumerate(embeddings or ()) if embedding is not None]
    if not positions:
        return (), None
    with _at(positions):
        return positions, checked_matrix("embeddings", [embeddings[i] for i in positions])  # type: ignore[index]


@contextmanager
def _at(positions: Sequence[int]) -> Iterator[None]:
    """Faults of the rows of a matrix, named by the positions that these rows have in the request."""
    try:
        yield
    except InvalidInput as error:
        raise error.of_field(
            re.sub(r"\[(\d+)\]", lambda found: f"[{positions[int(found[1])]}]", error.field, count=1)
        ) from None


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
