"""Distances between vectors, measured in float64, and the similarities that belong to them."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pgvector_service.arrays import Floats, Mask, Rows

Metric = Literal["cosine", "euclidean", "manhattan", "ip"]
# What others call them.
MetricName = Literal["cosine", "euclidean", "manhattan", "ip", "l2", "l1", "dot"]
ALIASES: dict[str, Metric] = {"l2": "euclidean", "l1": "manhattan", "dot": "ip"}

# Between these norms no float32 product of two rows overflows, and none is lost to underflow that the error bound
# would notice. Outside them (data that no embedding model makes) every row is measured in float64.
SAFE_NORMS = (1e-12, 1e18)
# Rows measured in float64 at a time: 1,000 x 384 take 3 MB.
EXACT_ROWS = 1_000


def row_norms(rows: Rows) -> Floats:
    """The Euclidean norm of each row, in float64 (a float32 sum of squares overflows from 1.8e19 on)."""
    norms: Floats = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return norms


def are_safe(norms: NDArray[np.floating]) -> Mask:
    """For each norm whether a float32 scan of a row of this length keeps within its error bound."""
    safe: Mask = (norms == 0) | (norms >= SAFE_NORMS[0]) & (norms <= SAFE_NORMS[1])
    return safe


def similarities(distances: Floats, metric: Metric) -> Floats:
    """The similarity that belongs to each distance: 1 - distance for cosine and ip, else 1 / (1 + distance)."""
    if metric == "cosine":
        return np.round(1.0 - distances, 12)
    return 1.0 - distances if metric == "ip" else 1.0 / (1.0 + distances)


def exact_distances(rows: Rows, queries: Rows, metric: Metric) -> Floats:
    """The distance of each row to its query in float64, smaller is nearer.

    `queries` is one query (d,) for all rows, or one for each: (n, d). cosine: 1 - cosine similarity; euclidean,
    manhattan: the distance; ip: 1 - dot product. Cosine distances are rounded to 12 decimals, so that a vector and its
    multiples tie although their float64 quotients differ in the last bits. Sums run along a contiguous row, so equal
    rows give equal results.
    """
    queries = np.broadcast_to(queries, rows.shape)
    result = np.empty(len(rows))
    for start in range(0, len(rows), EXACT_ROWS):
        part = slice(start, start + EXACT_ROWS)
        result[part] = _DISTANCES[metric](rows[part].astype(np.float64), queries[part].astype(np.float64))
    return result


def _cosine(rows: Floats, queries: Floats) -> Floats:
    lengths = np.sqrt((rows * rows).sum(axis=1)) * np.sqrt((queries * queries).sum(axis=1))
    similarity = np.clip((rows * queries).sum(axis=1) / lengths, -1.0, 1.0)
    distances: Floats = np.round(1.0 - similarity, 12)
    return distances


def _euclidean(rows: Floats, queries: Floats) -> Floats:
    distances: Floats = np.sqrt(((rows - queries) ** 2).sum(axis=1))
    return distances


def _manhattan(rows: Floats, queries: Floats) -> Floats:
    distances: Floats = np.abs(rows - queries).sum(axis=1)
    return distances


def _ip(rows: Floats, queries: Floats) -> Floats:
    distances: Floats = 1.0 - (rows * queries).sum(axis=1)
    return distances


_DISTANCES: dict[Metric, Callable[[Floats, Floats], Floats]] = {
    "cosine": _cosine,
    "euclidean": _euclidean,
    "manhattan": _manhattan,
    "ip": _ip,
}
