"""Embeddings as one float32 matrix, from lists, numpy arrays or base64."""

import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pgvector_service.arrays import Rows
from pgvector_service.errors import InvalidInput
from pgvector_service.ranking.distances import row_norms

MAX_DIMENSION = 16_384


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
