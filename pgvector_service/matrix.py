"""The rows of one collection in memory, as a value: a change makes a new matrix that shares what stayed the same."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from pgvector_service.codec import Keys, Rows
from pgvector_service.ranking import Block, Metric, is_safe, row_norms

# A block takes at most 32 MiB: large enough that a scan of many blocks costs what a scan of one does (measured from
# 8 MiB on), small enough that copying one to drop its dead rows is no event.
BLOCK_BYTES = 32 * 2**20
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

    def plus(self, block: Block) -> "Matrix":
        """This matrix with the rows of `block` added.

        Small blocks at the end are merged as long as the last is at least half as long as the one before it, so n rows
        that come one by one are copied log n times and lie in about log n blocks.
        """
        blocks = [*self.blocks, block] if len(block.keys) else list(self.blocks)
        while len(blocks) > 1 and _should_merge(blocks[-2], blocks[-1]):
            blocks[-2:] = [_merged(blocks[-2:])]
        return Matrix(tuple(blocks))


def rankable(keys: Keys, rows: Rows, metric: Metric) -> Block:
    """The block of those rows that have a distance to every query: finite, and under cosine not zero."""
    norms = row_norms(rows)
    good = np.isfinite(norms) & (norms > 0 if metric == "cosine" else True)
    if not good.all():
        keys, rows, norms = keys[good], rows[good], norms[good]
    with np.errstate(over="ignore"):
        narrow = norms.astype(np.float32)
    return Block(keys, rows, narrow, is_safe(narrow))


class Builder:
    """Gathers pieces of a few MB, as they are read from the database, into a matrix of large blocks."""

    def __init__(self) -> None:
        self._pieces: list[Block] = []
        self._blocks: list[Block] = []

    def add(self, piece: Block) -> None:
        """Take the next rows."""
        if sum(p.nbytes for p in self._pieces) + piece.nbytes > BLOCK_BYTES:
            self._close_block()
        self._pieces.append(piece)

    def matrix(self) -> Matrix:
        """All rows taken so far."""
        self._close_block()
        return Matrix(tuple(self._blocks))

    def _close_block(self) -> None:
        if self._pieces:
            self._blocks.append(_merged(self._pieces))
        self._pieces = []


def _should_merge(left: Block, right: Block) -> bool:
    return left.nbytes + right.nbytes <= BLOCK_BYTES and len(right.keys) * 2 >= len(left.keys)


def _merged(blocks: Iterable[Block]) -> Block:
    living = [_compact(block) for block in blocks]
    return Block(
        np.concatenate([block.keys for block in living]),
        np.concatenate([block.rows for block in living]),
        np.concatenate([block.norms for block in living]),
        all(block.safe for block in living),
    )


def _compact(block: Block) -> Block:
    if block.alive is None:
        return block
    return Block(block.keys[block.alive], block.rows[block.alive], block.norms[block.alive], block.safe)


def _without(block: Block, keys: Keys) -> Block | None:
    """`block` with `keys` marked dead, copied when many are; None when no row is left."""
    gone = np.isin(block.keys, keys)
    if not gone.any():
        return block
    alive = ~gone if block.alive is None else block.alive & ~gone
    count = int(np.count_nonzero(alive))
    if not count:
        return None
    marked = replace(block, alive=alive)
    return _compact(marked) if count < len(alive) * (1 - DEAD_SHARE) else marked
