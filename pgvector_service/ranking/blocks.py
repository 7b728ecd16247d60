"""Some rows of a collection in memory, and what codes of them can do."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pgvector_service.arrays import Keys, Mask, Positions, Rows


class Codes(Protocol):
    """What the ranking needs of the compressed rows of a block; compression.py makes them."""

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
