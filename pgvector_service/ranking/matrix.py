"""The rows of one collection in memory, as a value: a change makes a new matrix that shares what stayed the same."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from pgvector_service.arrays import Keys, Rows
from pgvector_service.ranking.blocks import Block
from pgvector_service.ranking.distances import Metric, are_safe, row_norms

# A block takes at most 256 MiB: few enough of them that each can be asked for its own candidates, small enough that
# there is room for a second one while it is made anew.
BLOCK_BYTES = 256 * 2**20
# What a search may copy on its way, in about a millisecond; larger blocks are left to upkeep.py.
SMALL_BYTES = 4 * 2**20
# A block with more dead rows than this share is copied without them.
DEAD_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Matrix:
    """Blocks of rows of one collection; each key is alive in one place at most."""

    blocks: tuple[Block, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(block.nbytes for block in self.blocks)

    @property
    def count(self) -> int:
        """Rows that are alive."""
        return sum(block.count for block in self.blocks)

    def without(self, keys: Keys) -> "Matrix":
        """This matrix with the rows of `keys` gone; keys that it does not hold are passed over."""
        return Matrix(tuple(kept for block in self.blocks if (kept := _without(block, keys)) is not None))

    def among(self, keys: Keys) -> "Matrix":
        """This matrix with only the rows of `keys` alive."""
        blocks = []
        for block in self.blocks:
            alive = np.isin(block.keys, keys)
            if block.alive is not None:
                alive &= block.alive
            if alive.any():
                blocks.append(replace(block, alive=alive))
        return Matrix(tuple(blocks))

    def plus(self, block: Block) -> "Matrix":
        """This matrix with the rows of `block` added, merged with small blocks at the end."""
        blocks = [*self.blocks, block] if len(block.keys) else list(self.blocks)
        while len(blocks) > 1 and _should_merge(blocks[-2], blocks[-1], SMALL_BYTES):
            blocks[-2:] = [merged(blocks[-2:])]
        return Matrix(tuple(blocks))

    def untidy(self) -> tuple[Block, ...]:
        """Blocks that `merged` should make one of: two neighbours, or one with many dead rows; none when all is well.

        Neighbours are merged when the second is at least half as long as the first, so n rows that come one by one are
        copied log n times and lie in about log n blocks.
        """
        for block in self.blocks:
            if block.count < len(block.keys) * (1 - DEAD_SHARE):
                return (block,)
        for left, right in pairwise(self.blocks):
            if _should_merge(left, right, BLOCK_BYTES):
                return left, right
        return ()

    def replaced(self, old: Sequence[Block], new: Block) -> "Matrix | None":
        """This matrix with `new`, which was made of `old`, in their place; rows that have died since are dead in `new`.

        None when one of `old` is no longer here.
        """
        now = [next((block for block in self.blocks if block.rows is was.rows), None) for was in old]
        died = [np.empty(0, np.int64)]
        for was, block in zip(old, now, strict=True):
            if block is None:
                return None
            if block.alive is not None:
                died.append(block.keys[~block.alive if was.alive is None else was.alive & ~block.alive])
        rest = [block for block in self.blocks if not any(block is one for one in now)]
        at = next(i for i, block in enumerate(self.blocks) if block is now[0])
        kept = _without(new, np.concatenate(died))
        return Matrix((*rest[:at], *([] if kept is None else [kept]), *rest[at:]))

    def sample(self, count: int) -> Rows:
        """At most `count` living rows, chosen evenly."""
        total = self.count
        chosen = np.arange(0, total, max(1, -(-total // count)))
        picked = []
        for block in self.blocks:
            here = chosen[(chosen >= 0) & (chosen < block.count)]
            picked.append(block.rows[here if block.alive is None else np.flatnonzero(block.alive)[here]])
            chosen = chosen - block.count
        return np.concatenate(picked)


def rankable(keys: Keys, rows: Rows, metric: Metric) -> Block:
    """The block of those rows that have a distance to every query: finite, and under cosine not zero."""
    norms = row_norms(rows)
    good = np.isfinite(norms) & (norms > 0 if metric == "cosine" else True)
    if not good.all():
        keys, rows, norms = keys[good], rows[good], norms[good]
    with np.errstate(over="ignore"):
        narrow = norms.astype(np.float32)
    return Block(keys, rows, narrow, bool(are_safe(narrow).all()))


class Builder:
    """Gathers pieces of a few MB, as they are read from the database, into large blocks, without a second copy of all.

    `count` is how many rows of `dimension` numbers are expected.
    """

    def __init__(self, count: int, dimension: int) -> None:
        blocks = max(1, -(-count * (4 * dimension + 12) // BLOCK_BYTES))
        self._length = max(1, -(-count // blocks))
        self._dimension = dimension
        self._blocks: list[Block] = []
        self._begin_block()

    def add(self, piece: Block) -> None:
        """Take the next rows."""
        start = 0
        while start < len(piece.keys):
            if self._filled == self._length:
                self._close_block()
            source = slice(start, start + self._length - self._filled)
            count = len(piece.keys[source])
            target = slice(self._filled, self._filled + count)
            self._keys[target], self._rows[target] = piece.keys[source], piece.rows[source]
            self._norms[target] = piece.norms[source]
            self._safe &= piece.safe
            self._filled += count
            start += count

    def matrix(self) -> Matrix:
        """All rows taken so far."""
        if self._filled:
            self._close_block()
        return Matrix(tuple(self._blocks))

    def _begin_block(self) -> None:
        # Memory that nothing is written to is not taken from the system.
        self._keys = np.empty(self._length, np.int64)
        self._rows = np.empty((self._length, self._dimension), np.float32)
        self._norms = np.empty(self._length, np.float32)
        self._filled, self._safe = 0, True

    def _close_block(self) -> None:
        own = slice(self._filled)
        self._blocks.append(Block(self._keys[own], self._rows[own], self._norms[own], self._safe))
        self._begin_block()


def merged(blocks: Iterable[Block]) -> Block:
    """One block of the living rows of `blocks`."""
    living = [block.compacted() for block in blocks]
    if len(living) == 1:
        return living[0]
    return Block(
        np.concatenate([block.keys for block in living]),
        np.concatenate([block.rows for block in living]),
        np.concatenate([block.norms for block in living]),
        all(block.safe for block in living),
    )


def _should_merge(left: Block, right: Block, most_bytes: int) -> bool:
    return left.nbytes + right.nbytes <= most_bytes and len(right.keys) * 2 >= len(left.keys)


def _without(block: Block, keys: Keys) -> Block | None:
    """`block` with `keys` marked dead, copied when it is small and many are; None when no row is left."""
    gone = np.isin(block.keys, keys) if len(keys) else np.zeros(1, np.bool_)
    if not gone.any():
        return block
    alive = ~gone if block.alive is None else block.alive & ~gone
    count = int(np.count_nonzero(alive))
    if not count:
        return None
    marked = replace(block, alive=alive)
    return marked.compacted() if marked.nbytes <= SMALL_BYTES and count < len(alive) * (1 - DEAD_SHARE) else marked
