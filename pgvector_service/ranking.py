"""Nearest neighbours over blocks of float32 rows.

A block is scanned in float32, which is as fast as memory allows but rounds. The rounding error of such a scan has a
known bound, so every row that could belong to the top k in truth is kept and measured again in float64, row by row.
The result is therefore that of a float64 computation over all rows, equal rows score equally wherever they lie, and a
scan costs what `rows @ query` costs.

A block that carries codes (codes.py) is not scanned: the codes name a few hundred candidates, and these are measured in
the same way. What they miss is the difference between their measured recall and 1.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from pgvector_service.codec import Keys, Rows

Metric = Literal["cosine", "euclidean", "manhattan", "ip"]
# What others call them.
MetricName = Literal["cosine", "euclidean", "manhattan", "ip", "l2", "l1", "dot"]
ALIASES: dict[str, Metric] = {"l2": "euclidean", "l1": "manhattan", "dot": "ip"}
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Positions = NDArray[np.int64]

# Between these norms no float32 product of two rows overflows, and none is lost to underflow that the error bound
# would notice. Outside them (data that no embedding model makes) every row is measured in float64.
SAFE_NORMS = (1e-12, 1e18)
# Scores of several queries that are held at a time: 16 MB.
SCORES_AT_ONCE = 4 * 2**20
# Of these, so many are looked at together: what is made of them stays in the processor's cache.
SCORES_IN_CACHE = 2**17
# A product of fewer multiplications takes less than a millisecond, and is made by one thread.
SMALL_PRODUCT = 2**24
# A larger product lets others in after so many bytes of rows, a few milliseconds.
PRODUCT_BYTES = 32 * 2**20
# Rows measured in float64 at a time: 1,000 x 384 take 3 MB.
EXACT_ROWS = 1_000
# Of a block of which at most this share is alive, the living rows are copied to be scanned: a row takes 0.3 us to copy
# and 0.07 us to scan (384 numbers). Codes are quicker than a copy that is larger than FEW_BYTES.
FEW_SHARE = 0.2
FEW_BYTES = 6 * 2**20
# The rows that match a filter are not spread evenly over the nearest ones, so more candidates are asked for, and MORE
# times more if they are not enough. Measured for the ten nearest of 100,000 MiniLM embeddings and of 5,000 clustered
# rows: no query above 3.1 deviations missed a row (one above 3.7 under manhattan) of 1,680, whether the nearest rows,
# far ones or any were dead; with no row dead, or half of them at random, 95 % were above 3.5.
SPREAD = 1.3
MORE = 4
TRUST = 3.5
FITTED = 50
# Scores looked at for a first bound on the k-th.
SAMPLE = 4_096
# Rows of a float32 Manhattan scan at a time, so that the differences stay in the processor's cache.
MANHATTAN_ROWS = 256


class _Blas:
    """The threads that numpy makes a product with, for one product at a time.

    Several at a time fight for the cores: with 20,000 x 128 rows on 2 cores, 16 threads did 40 searches/s, and 600 to
    720 in turn (one thread alone 1,560). And threads that have helped spin for a while afterwards, which took 0.45 ms
    of a core from each search of 1,000 rows.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self._most = max((library.get_num_threads() for library in self._libraries), default=1)

    def limit(self, threads: int) -> None:
        """Use at most so many threads from now on."""
        with self._lock:
            self._most = threads

    def product(self, queries: Rows, rows: Rows) -> Rows:
        """queries @ rows.T"""
        threads = 1 if len(queries) * rows.size < SMALL_PRODUCT else self._most
        step = max(1, PRODUCT_BYTES // (4 * rows.shape[1]))
        parts = [self._part(queries, rows[start : start + step], threads) for start in range(0, len(rows), step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _part(self, queries: Rows, rows: Rows, threads: int) -> Rows:
        # Products that overflow belong to norms that are not safe, and are not looked at.
        with self._lock, np.errstate(over="ignore", invalid="ignore"):
            for library in self._libraries:
                # Asked each time, for half a microsecond: others in the process may set it too.
                if library.get_num_threads() != threads:
                    library.set_num_threads(threads)
            dots: Rows = queries @ rows.T
            return dots


_blas = _Blas()
limit_threads, product = _blas.limit, _blas.product


def row_norms(rows: Rows) -> Floats:
    """The Euclidean norm of each row, in float64 (a float32 sum of squares overflows from 1.8e19 on)."""
    norms: Floats = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return norms


def are_safe(norms: NDArray[np.floating]) -> Mask:
    """For each norm whether a float32 scan of a row of this length keeps within its error bound."""
    safe: Mask = (norms == 0) | (norms >= SAFE_NORMS[0]) & (norms <= SAFE_NORMS[1])
    return safe


class Codes(Protocol):
    """What the ranking needs of the compressed rows of a block; codes.py makes them."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""

    def wanted(self, k: int) -> int | None:
        """How many candidates the k nearest rows take, or None when only a scan will do."""

    def candidates(self, queries: Rows, count: int) -> tuple[Positions, Rows]:
        """Positions of the rows that are probably the nearest `count` to each query, and guesses: (queries, count).

        A guess is the score of `TopK._scores` but for a random error; under manhattan it is something else.
        """

    def products(self, rows: Rows, queries: Rows, positions: Positions) -> Rows:
        """The float32 dot product of each query with its candidates, anything for position -1: (queries, count)."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a collection, never changed once made.

    keys (n,) int64, rows (n, d) float32, norms (n,) float32, safe: whether all norms `are_safe`, alive (n,) bool or
    None for all, codes of all rows, alive or not, or None.
    """

    keys: Keys
    rows: Rows
    norms: NDArray[np.float32]
    safe: bool
    alive: Mask | None = None
    codes: Codes | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        more = (part.nbytes for part in (self.alive, self.codes) if part is not None)
        return self.keys.nbytes + self.rows.nbytes + self.norms.nbytes + sum(more)

    @property
    def count(self) -> int:
        """Rows that are alive."""
        return len(self.keys) if self.alive is None else int(np.count_nonzero(self.alive))

    def compacted(self) -> "Block":
        """A copy of the rows that are alive, without codes; the block itself if all are."""
        if self.alive is None:
            return self
        alive = np.flatnonzero(self.alive)
        return Block(self.keys[alive], self.rows[alive], self.norms[alive], self.safe)


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


class TopK:
    """The nearest `k` keys to each of several queries, over all blocks offered so far.

    After the last block `hits(i)` gives the keys and distances for query i, nearest first. All rows as near as the
    k-th are among them, so there may be more than k: the caller decides between equals. With `exact`, codes are not
    used, and nothing is missed.
    """

    def __init__(self, queries: Rows, k: int, metric: Metric, *, exact: bool = False) -> None:
        self._queries = queries
        self._k = k
        self._metric = metric
        self._norms = row_norms(queries)
        self._safe = are_safe(self._norms)
        self._exact = exact or not self._safe.all()
        # What was found so far, sorted by query and distance; the rows of query i begin at _starts[i].
        self._found: tuple[Positions, Keys, Floats] = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
        self._starts = np.zeros(len(queries) + 1, np.int64)
        # The distance of the k-th row of each query, infinite while there are fewer.
        self._worst: Floats = np.full(len(queries), np.inf)

    def offer(self, block: Block) -> None:
        """Take the rows of `block` that may be among the nearest."""
        count = block.count
        if not count:
            return
        wanted = block.codes.wanted(self._k) if block.codes and not self._exact else None
        few = count <= len(block.keys) * FEW_SHARE and count * block.rows.shape[1] * 4 <= FEW_BYTES
        if block.codes and wanted and not few:
            self._look_up(block, block.codes, wanted)
        else:
            self._scan(block, np.arange(len(self._queries)))

    def hits(self, i: int, k: int | None = None) -> tuple[Keys, Floats]:
        """Keys and distances of query `i`, nearest first; of a smaller `k` only those as near as the k-th."""
        own = slice(self._starts[i], self._starts[i + 1])
        keys, distances = self._found[1][own], self._found[2][own]
        end = None if k is None or len(keys) <= k else np.searchsorted(distances, distances[k - 1], side="right")
        return keys[:end], distances[:end]

    def _look_up(self, block: Block, codes: Codes, wanted: int) -> None:
        """Measure the candidates that the codes name for each query."""
        count, length = block.count, len(block.keys)
        queries = np.arange(len(self._queries))
        # Rows that a filter leaves out lie anywhere, deleted ones perhaps all in one place.
        spread = wanted + min(length - count, wanted), ceil(wanted * length / count * SPREAD)
        asked = wanted if count == length else min(length, max(spread))
        while len(queries):
            positions, guesses = codes.candidates(self._queries[queries], asked)
            alive = None if block.alive is None else block.alive[positions]
            bounds = self._bounds()[queries]
            if self._metric == "manhattan":
                pairs = zip(positions, self._queries[queries], strict=True)
                score = np.stack([_manhattan_scan(block.rows[some], query) for some, query in pairs])
                error: Rows | np.float32 = score * self._unit
            else:
                measured = positions if alive is None else np.where(alive, positions, -1)
                dots = codes.products(block.rows, self._queries[queries], measured)
                score, error = self._scores(dots, block.norms[positions], self._norms[queries])
            near = self._near(score, error, alive, bounds)
            enough = self._are_enough(score, guesses, alive, bounds) | (asked == length)
            near &= enough[:, None]
            self._measure(block, queries[np.nonzero(near)[0]], positions[near])
            queries, asked = queries[~enough], MORE * asked
            if asked > length // MORE:
                break
        self._scan(block, queries)

    def _are_enough(self, score: Rows, guesses: Rows, alive: Mask | None, bounds: NDArray[np.float32]) -> Mask:
        """For each query whether a row beyond its candidates is hardly among the k nearest.

        The number of candidates was found out for queries like the stored rows, whose nearest rows are alive. Far from
        the data, or where those rows are dead, the next ones lie closer together, and the errors of the codes weigh
        more. So the scores of the candidates are fitted to the guesses by a line: a row that was missed would have to
        be guessed as far as the last one and yet be as near as the k-th, TRUST standard deviations below the line.
        """
        if score.shape[1] < max(self._k, FITTED):
            return np.zeros(len(score), np.bool_)
        last = guesses.max(axis=1)
        if alive is None:
            count: Any = score.shape[1]
        else:
            count = np.maximum(alive.sum(axis=1), 1)
            score, guesses = np.where(alive, score, 0), np.where(alive, guesses, 0)
        wide, guessed = score.astype(np.float64), guesses.astype(np.float64)
        mean, middle = wide.sum(axis=1) / count, guessed.sum(axis=1) / count
        of_scores = np.einsum("ij,ij->i", wide, wide) / count - mean**2
        of_guesses = np.einsum("ij,ij->i", guessed, guessed) / count - middle**2
        of_both = np.einsum("ij,ij->i", wide, guessed) / count - mean * middle
        slope = of_both / np.maximum(of_guesses, np.finfo(np.float64).tiny)
        deviation = np.sqrt(np.maximum(of_scores - slope * of_both, 0))
        if alive is not None:
            score = np.where(alive, score, np.inf)
        kth = np.minimum(np.partition(score, self._k - 1, axis=1)[:, self._k - 1], bounds)
        far_enough = mean + slope * (last - middle) - kth >= TRUST * deviation
        enough: Mask = far_enough & (count >= max(self._k, FITTED))
        return enough

    def _scan(self, block: Block, queries: Positions) -> None:
        """Look at all rows of `block` for those queries."""
        if not len(queries):
            return
        if block.count <= len(block.keys) * FEW_SHARE:
            block = block.compacted()
        safe = self._safe[queries] & block.safe
        for i in queries[~safe]:
            alive = np.arange(len(block.keys)) if block.alive is None else np.flatnonzero(block.alive)
            self._measure(block, np.full(len(alive), i), alive)
        queries = queries[safe]
        at_once = max(1, SCORES_AT_ONCE // len(block.keys))
        in_cache = 1 if self._metric == "manhattan" else max(1, SCORES_IN_CACHE // len(block.keys))
        for start in range(0, len(queries), at_once):
            part = queries[start : start + at_once]
            dots = None if self._metric == "manhattan" else product(self._queries[part], block.rows)
            found = []
            for first in range(0, len(part), in_cache):
                some = part[first : first + in_cache]
                if dots is None:
                    score = _manhattan_scan(block.rows, self._queries[some[0]])[None, :]
                    error: Rows | np.float32 = score * self._unit
                else:
                    score, error = self._scores(dots[first : first + in_cache], block.norms, self._norms[some])
                near = self._near(score, error, block.alive, self._bounds()[some])
                which, positions = np.divmod(np.flatnonzero(near), len(block.keys))
                found.append((some[which], positions))
            self._measure(block, *map(np.concatenate, zip(*found, strict=True)))

    def _near(self, score: Rows, error: Rows | np.float32, alive: Mask | None, bounds: NDArray[np.float32]) -> Mask:
        """Which of the scores (queries, rows) may be among the k smallest of their query."""
        if alive is not None:
            score = np.where(alive, score, np.float32(np.inf))
        count = score.shape[1]
        if count > self._k and np.isinf(bounds).any():
            # A bound on the k-th smallest: that of a sample, found in a fifth of the time.
            step = max(1, count // max(SAMPLE, 16 * self._k))
            sample = score[:, ::step] + np.broadcast_to(error, score.shape)[:, ::step]
            bounds = np.minimum(bounds, np.partition(sample, self._k - 1, axis=1)[:, self._k - 1])
        near: Mask = score - error <= bounds[:, None]
        return near if alive is None else near & alive

    def _bounds(self) -> NDArray[np.float32]:
        """A bound on the score of a row that is still of interest, for each query."""
        worst = self._worst**2 if self._metric == "euclidean" else self._worst
        # The comparison is made in float32; far beyond its range the distances are not safe ones.
        bounds = np.clip(worst + np.abs(worst) * 2.0**-23, -3e38, 3e38)
        return np.where(np.isfinite(worst), bounds, np.inf).astype(np.float32)

    @property
    def _unit(self) -> np.float32:
        """A bound on the relative error of a float32 score.

        A sum of d float32 products is off by at most d * 2**-24 * |a| * |b| in any order of summation (Higham, Accuracy
        and Stability of Numerical Algorithms, 3.1); the 8 more are for norms, differences and quotients.
        """
        return np.float32((self._queries.shape[1] + 8) * 2.0**-24)

    def _scores(self, dots: Rows, norms: Rows, own: Floats) -> tuple[Rows, Rows | np.float32]:
        """Float32 scores (queries, rows), smaller is nearer, and a bound on their error.

        From dot products, the norms of the rows and those of the queries. The score is the distance, but for euclidean
        its square.
        """
        unit, norm = self._unit, own.astype(np.float32)[:, None]
        if self._metric == "cosine":
            return 1 - dots / (norms * norm), unit
        if self._metric == "ip":
            return 1 - dots, norms * (norm * unit) + unit
        return norms**2 - 2 * dots + norm**2, (norms + norm) ** 2 * unit

    def _measure(self, block: Block, which: Positions, positions: Positions) -> None:
        """Add rows of `block`, those at `positions` for the queries `which`, as far as they are among the nearest."""
        if not len(positions):
            return
        distances = np.empty(len(positions))
        for start in range(0, len(positions), EXACT_ROWS):
            part = slice(start, start + EXACT_ROWS)
            rows, queries = block.rows[positions[part]], self._queries[which[part]]
            distances[part] = exact_distances(rows, queries, self._metric)
        which = np.concatenate((self._found[0], which))
        keys = np.concatenate((self._found[1], block.keys[positions]))
        distances = np.concatenate((self._found[2], distances))
        order = np.lexsort((distances, which))
        which, keys, distances = which[order], keys[order], distances[order]
        starts = np.searchsorted(which, np.arange(len(self._queries) + 1))
        full = np.diff(starts) >= self._k
        self._worst[full] = distances[starts[:-1][full] + self._k - 1]
        kept = distances <= self._worst[which]
        self._found = which[kept], keys[kept], distances[kept]
        self._starts = np.searchsorted(self._found[0], np.arange(len(self._queries) + 1))


def _manhattan_scan(rows: Rows, query: Rows) -> Rows:
    sums = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), MANHATTAN_ROWS):
        differences = rows[start : start + MANHATTAN_ROWS] - query
        np.abs(differences, out=differences)
        differences.sum(axis=1, out=sums[start : start + MANHATTAN_ROWS])
    return sums
