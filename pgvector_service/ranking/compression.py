"""Compressed rows of a block: a few hundred candidates found in a twentieth of the time that a scan takes.

Product quantization (Jégou, Douze and Schmid 2011) with 16 centroids for every few dimensions, scanned in registers of
the processor (André, Kermarrec and Le Scouarnec 2017) by faiss, an optional dependency. The codes only name candidates,
which top_k.py measures exactly; how many it takes is found out by asking for the neighbours of stored vectors and
comparing with the exact ranking. In each search top_k.py looks at the errors of the codes, and asks for more when
they could hide a neighbour: on MiniLM embeddings that raised the recall of random queries, which lie far from all of
them, from 0.64 to 0.994.

Measured on 100,000 x 384 MiniLM embeddings, one thread, unit rows: 4 dimensions a code take 0.21 ms and reach a
recall@10 of 0.9954 with 200 candidates and 0.9994 with 400, 3 dimensions 0.27 ms and 0.9994 with 200, 2 dimensions
0.40 ms and 1.0 with 200. Measuring a candidate takes 0.2 us.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgvector_service.arrays import Keys, Positions, Rows
from pgvector_service.ranking.blocks import Block
from pgvector_service.ranking.distances import Metric
from pgvector_service.ranking.top_k import TopK

try:
    faiss: Any = import_module("faiss")
except ImportError:
    faiss = None

# A scan of less than this takes a fraction of a millisecond.
MIN_ROWS = 4_096
MIN_BYTES = 4 * 2**20
# Dimensions to a code: the coarser first, which is half as large and twice as fast.
WIDTHS = (3, 2)
# Recall is measured for so many results; whoever wants more than the last gets a scan.
DEPTHS = (10, 100)
# Never more candidates than this: a scan is not much slower.
MOST = 3_200
# Queries lie further from their neighbours than stored vectors do, so they get more candidates than these needed.
MARGIN = 2.0
SAMPLES = 256
TRAINING_ROWS = 4_096
TRAINING_ROUNDS = 10
ROWS_AT_ONCE = 8_192


class CompressedRows:
    """The codes of all rows of one block, with the number of candidates that each depth needs.

    `recall` is what was measured for each of DEPTHS; a depth for which no number of candidates will do is not in
    `needed`.
    """

    def __init__(self, index: Any, metric: Metric, threads: int) -> None:
        self._index = index
        self._metric = metric
        self._threads = threads
        self.needed: dict[int, int] = {}
        self.recall: dict[int, float] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return int(self._index.ntotal * self._index.code_size) if self.needed else 0

    def wanted(self, k: int) -> int | None:
        """How many candidates the k nearest rows take, or None when only a scan will do."""
        return next((count for depth, count in self.needed.items() if k <= depth), None)

    def candidates(self, queries: Rows, count: int) -> tuple[Positions, Rows]:
        """Positions of the rows that are probably the nearest `count` to each query, and guesses: (queries, count).

        A guess is the score of `TopK._scores` but for a random error; under manhattan it is something else.
        """
        self._limit_threads(queries)
        guesses, found = self._index.search(_prepared(queries, self._metric, self._index.d), count)
        # The squared distance of unit vectors is twice their cosine distance.
        return found, guesses / 2 if self._metric == "cosine" else 1 - guesses if self._metric == "ip" else guesses

    def products(self, rows: Rows, queries: Rows, positions: Positions) -> Rows:
        """The float32 dot product of each query with its candidates, anything for position -1: (queries, count)."""
        self._limit_threads(queries)
        dots = np.empty(positions.shape, np.float32)
        arrays = dots, np.ascontiguousarray(queries), rows, np.ascontiguousarray(positions)
        faiss.fvec_inner_products_by_idx(*map(faiss.swig_ptr, arrays), queries.shape[1], *positions.shape)
        return dots

    def _limit_threads(self, queries: Rows) -> None:
        # OpenMP keeps this for each thread of ours, and would start as many for one query as for many.
        faiss.omp_set_num_threads(min(self._threads, len(queries)))


def worthwhile(block: Block) -> bool:
    """Whether a block is large and ordinary enough to be compressed."""
    return faiss is not None and block.safe and block.rows.nbytes >= MIN_BYTES and len(block.keys) >= MIN_ROWS


def expected_bytes(block: Block) -> int:
    """How large the codes of a block may become: 4 bits for every 2 dimensions."""
    return block.rows.size // 4


def compressed(block: Block, samples: Rows, metric: Metric, target: float, threads: int) -> CompressedRows:
    """Codes for a block with the least number of candidates that reaches a recall of `target`.

    Recall is measured with `samples`, some vectors of the collection: the share of the nearest 10, and 100, others that
    are among the candidates. When nothing reaches the target the result wants no candidates. Takes about 2 s for
    100,000 x 384.
    """
    # One more than the depth: the nearest of all is the sample itself.
    exact = TopK(samples, DEPTHS[-1] + 1, metric, exact=True)
    exact.offer(block)
    for dimensions in WIDTHS:
        codes = CompressedRows(_index(block, dimensions, metric, threads), metric, threads)
        found = block.keys[codes.candidates(samples, min(MOST, len(block.keys)))[0]]
        for depth in DEPTHS:
            neighbours = [exact.hits(i, depth + 1)[0][1:] for i in range(len(samples))]
            places = _places(found, neighbours, depth)
            needed = int(np.quantile(places, target, method="higher")) + 1
            if needed <= found.shape[1]:
                wanted = min(found.shape[1], round(MARGIN * needed))
                codes.needed[depth] = wanted
                codes.recall[depth] = float((places < wanted).mean())
        if DEPTHS[0] in codes.needed:
            return codes
    return CompressedRows(None, metric, threads)


def report(blocks: Sequence[Block]) -> dict[str, Any]:
    """How blocks are searched for ten results: the method, candidates to a block, and the recall that was measured."""
    parts = [block.codes for block in blocks if isinstance(block.codes, CompressedRows) and block.codes.needed]
    if not parts:
        return {"method": "exact", "candidates": None, "recall": 1.0}
    depth = DEPTHS[0]
    return {
        "method": "compressed",
        "candidates": max(part.needed[depth] for part in parts),
        "recall": round(min(part.recall[depth] for part in parts), 6),
    }


def _places(found: Keys, exact: Sequence[Keys], depth: int) -> NDArray[np.intp]:
    """Where among the candidates each of the nearest `depth` others stands; equals count, beyond the end if nowhere."""
    places = np.full((len(exact), depth), found.shape[1], np.intp)
    for i, keys in enumerate(exact):
        hits = np.flatnonzero(np.isin(found[i], keys))[:depth]
        places[i, : len(hits)] = hits
    return places.reshape(-1)


def _index(block: Block, dimensions: int, metric: Metric, threads: int) -> Any:
    """A faiss index over all rows of the block."""
    padded = -(-block.rows.shape[1] // dimensions) * dimensions
    kind = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
    index = faiss.IndexPQFastScan(padded, padded // dimensions, 4, kind)
    index.pq.cp.niter = TRAINING_ROUNDS
    # Searches go on beside this.
    faiss.omp_set_num_threads(max(1, threads // 2))
    step = max(1, len(block.keys) // TRAINING_ROWS)
    index.train(_prepared(block.rows[::step][:TRAINING_ROWS], metric, padded))
    for start in range(0, len(block.keys), ROWS_AT_ONCE):
        index.add(_prepared(block.rows[start : start + ROWS_AT_ONCE], metric, padded))
    return index


def _prepared(rows: Rows, metric: Metric, padded: int) -> Rows:
    """The rows as the index wants them: of length 1 under cosine, and zeros at the end."""
    if metric == "cosine":
        # float32 will do: it moves a row by less than its code does.
        rows = rows / np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    if padded > rows.shape[1]:
        rows = np.pad(rows, ((0, 0), (0, padded - rows.shape[1])))
    return np.ascontiguousarray(rows)
