"""Nearest neighbours over blocks of float32 rows.

A block is scanned in float32, which is as fast as memory allows but rounds. The rounding error of such a scan has a
known bound, so every row that could belong to the top k in truth is kept and measured again in float64, row by row.
The result is therefore that of a float64 computation over all rows, equal rows score equally wherever they lie, and a
scan costs what `rows @ query` costs.

A block that carries codes (compression.py) is not scanned: the codes name a few hundred candidates, and these are
measured in the same way. What they miss is the difference between their measured recall and 1.
"""

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgvector_service.arrays import Floats, Keys, Mask, Positions, Rows
from pgvector_service.ranking.blas import product
from pgvector_service.ranking.blocks import Block, Codes
from pgvector_service.ranking.distances import EXACT_ROWS, Metric, are_safe, exact_distances, row_norms

# Scores of several queries that are held at a time: 16 MB.
SCORES_AT_ONCE = 4 * 2**20
# Of these, so many are looked at together: what is made of them stays in the processor's cache.
SCORES_IN_CACHE = 2**17
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
            enough = _line_rules_out_more(score, guesses, alive, self._k, bounds) | (asked == length)
            near &= enough[:, None]
            self._measure(block, queries[np.nonzero(near)[0]], positions[near])
            queries, asked = queries[~enough], MORE * asked
            if asked > length // MORE:
                break
        self._scan(block, queries)

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


def _line_rules_out_more(score: Rows, guesses: Rows, alive: Mask | None, k: int, bounds: NDArray[np.float32]) -> Mask:
    """For each query whether a row beyond its candidates is hardly among the k nearest: (queries,).

    `score` and `guesses` (queries, candidates) belong together, `alive` says which candidates count, `bounds` are known
    bounds on the k-th score. The number of candidates was found out for queries like the stored rows, whose nearest
    rows are alive. Far from the data, or where those rows are dead, the next ones lie closer together, and the errors
    of the codes weigh more. So the scores of the candidates are fitted to the guesses by a line: a row that was missed
    would have to be guessed as far as the last one and yet be as near as the k-th, TRUST standard deviations below the
    line.
    """
    if score.shape[1] < max(k, FITTED):
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
    kth = np.minimum(np.partition(score, k - 1, axis=1)[:, k - 1], bounds)
    far_enough = mean + slope * (last - middle) - kth >= TRUST * deviation
    enough: Mask = far_enough & (count >= max(k, FITTED))
    return enough


def _manhattan_scan(rows: Rows, query: Rows) -> Rows:
    sums = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), MANHATTAN_ROWS):
        differences = rows[start : start + MANHATTAN_ROWS] - query
        np.abs(differences, out=differences)
        differences.sum(axis=1, out=sums[start : start + MANHATTAN_ROWS])
    return sums
