"""Exact nearest neighbours over blocks of float32 rows.

A block is scanned in float32, which is as fast as memory allows but rounds. The rounding error of such a scan has a
known bound, so every row that could belong to the top k in truth is kept and measured again in float64, row by row.
The result is therefore that of a float64 computation over all rows, equal rows score equally wherever they lie, and a
scan costs what `rows @ query` costs.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pgvector_service.codec import Keys, Rows

Metric = Literal["cosine", "euclidean", "manhattan", "ip"]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Between these norms no float32 product of two rows overflows, and none is lost to underflow that the error bound
# would notice. Outside them (data that no embedding model makes) every row is measured in float64.
SAFE_NORMS = (1e-12, 1e18)
# Scores of several queries that are held at a time: 16 MB.
SCORES_AT_ONCE = 4 * 2**20
# BLAS uses all cores for one product. Several at a time fight for them: with 20,000 x 128 rows on 2 cores, 16 threads
# did 40 searches/s, and 600 to 720 in turn (one thread alone 1,560).
_one_product = threading.Lock()
# Rows measured in float64 at a time: 1,000 x 384 take 3 MB.
EXACT_ROWS = 1_000
# Scores looked at for a first bound on the k-th.
SAMPLE = 4_096
# Rows of a float32 Manhattan scan at a time, so that the differences stay in the processor's cache.
MANHATTAN_ROWS = 256


def row_norms(rows: Rows) -> Floats:
    """The Euclidean norm of each row, in float64 (a float32 sum of squares overflows from 1.8e19 on)."""
    norms: Floats = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return norms


def is_safe(norms: NDArray[np.floating]) -> bool:
    """Whether a float32 scan of rows with these norms keeps within its error bound."""
    nonzero = norms[norms != 0]
    return not len(nonzero) or bool(SAFE_NORMS[0] <= nonzero.min() and nonzero.max() <= SAFE_NORMS[1])


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a collection, never changed once made.

    keys (n,) int64, rows (n, d) float32, norms (n,) float32, safe: see `is_safe`, alive (n,) bool or None for all.
    """

    keys: Keys
    rows: Rows
    norms: NDArray[np.float32]
    safe: bool
    alive: Mask | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        alive = 0 if self.alive is None else self.alive.nbytes
        return self.keys.nbytes + self.rows.nbytes + self.norms.nbytes + alive

    @property
    def count(self) -> int:
        """Rows that are alive."""
        return len(self.keys) if self.alive is None else int(np.count_nonzero(self.alive))


def similarities(distances: Floats, metric: Metric) -> Floats:
    """The similarity that belongs to each distance: 1 - distance for cosine and ip, else 1 / (1 + distance)."""
    if metric == "cosine":
        return np.round(1.0 - distances, 12)
    return 1.0 - distances if metric == "ip" else 1.0 / (1.0 + distances)


def exact_distances(rows: Rows, query: Rows, metric: Metric) -> Floats:
    """The distance of each row to `query` in float64, smaller is nearer.

    cosine: 1 - cosine similarity; euclidean, manhattan: the distance; ip: 1 - dot product. Cosine distances are
    rounded to 12 decimals, so that a vector and its multiples tie although their float64 quotients differ in the last
    bits. Sums run along a contiguous row, so equal rows give equal results.
    """
    result = np.empty(len(rows))
    target = query.astype(np.float64)
    for start in range(0, len(rows), EXACT_ROWS):
        part = rows[start : start + EXACT_ROWS].astype(np.float64)
        result[start : start + EXACT_ROWS] = _DISTANCES[metric](part, target)
    return result


def _cosine(rows: Floats, query: Floats) -> Floats:
    lengths = np.sqrt((rows * rows).sum(axis=1)) * np.sqrt((query * query).sum())
    similarity = np.clip((rows * query).sum(axis=1) / lengths, -1.0, 1.0)
    distances: Floats = np.round(1.0 - similarity, 12)
    return distances


def _euclidean(rows: Floats, query: Floats) -> Floats:
    distances: Floats = np.sqrt(((rows - query) ** 2).sum(axis=1))
    return distances


def _manhattan(rows: Floats, query: Floats) -> Floats:
    distances: Floats = np.abs(rows - query).sum(axis=1)
    return distances


def _ip(rows: Floats, query: Floats) -> Floats:
    distances: Floats = 1.0 - (rows * query).sum(axis=1)
    return distances


_DISTANCES: dict[Metric, Callable[[Floats, Floats], Floats]] = {
    "cosine": _cosine,
    "euclidean": _euclidean,
    "manhattan": _manhattan,
    "ip": _ip,
}


class TopK:
    """The nearest `k` keys to each of several queries, over all blocks offered so far.

    After the last block `hits(i)` gives the keys and distances for query i, nearest first. All rows as near as the
    k-th are among them, so there may be more than k: the caller decides between equals.
    """

    def __init__(self, queries: Rows, k: int, metric: Metric) -> None:
        self._queries = queries
        self._k = k
        self._metric = metric
        self._norms = row_norms(queries)
        self._safe = [is_safe(self._norms[i : i + 1]) for i in range(len(queries))]
        self._keys: list[Keys] = [np.empty(0, np.int64) for _ in queries]
        self._distances: list[Floats] = [np.empty(0) for _ in queries]

    def offer(self, block: Block) -> None:
        """Take the rows of `block` that may be among the nearest."""
        if not block.count:
            return
        step = max(1, SCORES_AT_ONCE // len(block.keys))
        for start in range(0, len(self._queries), step):
            queries = self._queries[start : start + step]
            # Products that overflow belong to norms that are not safe, and are not looked at.
            with np.errstate(over="ignore", invalid="ignore"), _one_product:
                dots = [None] * len(queries) if self._metric == "manhattan" else queries @ block.rows.T
            for i, dot in enumerate(dots, start):
                near = self._candidates(block, i, dot)
                if len(near):
                    distances = exact_distances(block.rows[near], self._queries[i], self._metric)
                    self._merge(i, block.keys[near], distances)

    def hits(self, i: int) -> tuple[Keys, Floats]:
        """Keys and distances of query `i`, nearest first."""
        return self._keys[i], self._distances[i]

    def _candidates(self, block: Block, i: int, dots: Rows | None) -> NDArray[np.intp]:
        """Positions of the rows of `block` that may be among the k nearest to query `i`."""
        if not (block.safe and self._safe[i]):
            return np.arange(len(block.keys)) if block.alive is None else np.flatnonzero(block.alive)
        score, error = self._scan(block, i, dots)
        if block.alive is not None:
            score = np.where(block.alive, score, np.float32(np.inf))
        bound = np.inf
        if len(self._distances[i]) >= self._k:
            worst = float(self._distances[i][-1])
            bound = worst**2 if self._metric == "euclidean" else worst
            # The comparison below is made in float32; far beyond its range the distances are not safe ones.
            bound = max(-3e38, min(bound + abs(bound) * 2.0**-23, 3e38))
        elif len(score) > self._k:
            bound = self._kth(score + error)
        near = score - error <= np.float32(bound)
        return np.flatnonzero(near if block.alive is None else near & block.alive)

    def _kth(self, upper: Rows) -> float:
        """A bound on the k-th smallest of `upper`: that of a sample, found in a fifth of the time."""
        sample = upper[:: max(1, len(upper) // max(SAMPLE, 16 * self._k))]
        return float(np.partition(sample, self._k - 1)[self._k - 1])

    def _scan(self, block: Block, i: int, dots: Rows | None) -> tuple[Rows, Rows | np.float32]:
        """A float32 score for each row of `block`, smaller is nearer, and a bound on its error.

        The score is the distance, but for euclidean its square. A sum of d float32 products is off by at most
        d * 2**-24 * |a| * |b| in any order of summation (Higham, Accuracy and Stability of Numerical Algorithms, 3.1);
        the 8 more are for norms, differences and quotients.
        """
        norm = np.float32(self._norms[i])
        unit = np.float32((len(self._queries[i]) + 8) * 2.0**-24)
        if dots is None:
            score = _manhattan_scan(block.rows, self._queries[i])
            return score, score * unit
        if self._metric == "cosine":
            return 1 - dots / (block.norms * norm), unit
        if self._metric == "ip":
            return 1 - dots, block.norms * (norm * unit) + unit
        return block.norms**2 - 2 * dots + norm**2, (block.norms + norm) ** 2 * unit

    def _merge(self, i: int, keys: Keys, distances: Floats) -> None:
        keys = np.concatenate((self._keys[i], keys))
        distances = np.concatenate((self._distances[i], distances))
        order = np.argsort(distances, kind="stable")
        if len(order) > self._k:
            worst = distances[order[self._k - 1]]
            order = order[: np.searchsorted(distances[order], worst, side="right")]
        self._keys[i], self._distances[i] = keys[order], distances[order]


def _manhattan_scan(rows: Rows, query: Rows) -> Rows:
    sums = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), MANHATTAN_ROWS):
        differences = rows[start : start + MANHATTAN_ROWS] - query
        np.abs(differences, out=differences)
        differences.sum(axis=1, out=sums[start : start + MANHATTAN_ROWS])
    return sums
