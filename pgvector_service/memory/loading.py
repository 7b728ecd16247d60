"""How the rows of a collection come from the database into memory: all of them, what has changed, or piece by piece."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import psycopg2
from psycopg2.extensions import cursor

from pgvector_service.arrays import Keys, Rows
from pgvector_service.ranking.blocks import Block
from pgvector_service.ranking.distances import Metric
from pgvector_service.ranking.matrix import Builder, Matrix, rankable
from pgvector_service.storage import statements
from pgvector_service.storage.codec import RowReader, VectorReader

# Called after each piece that a long read has brought.
StillAlive = Callable[[cursor], None]

# The widest vector of pgvector.
MAX_VECTOR = 16_000
# Rows that are asked for by key in one statement.
KEYS_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Collection:
    """The row of a collection in one snapshot, in the order of the statement `collection`."""

    name: str
    dimension: int | None
    metric: Metric
    version: int
    epoch: str
    tombstone_floor: int
    metadata: dict[str, Any]
    created_at: datetime
    language: str

    def follows(self, other: "Collection") -> bool:
        """Whether the rows and tombstones since the version of `other` tell all that happened since."""
        return self.epoch == other.epoch and self.tombstone_floor <= other.version < self.version


def whole(cur: cursor, collection: Collection, count: int, still_alive: StillAlive) -> Matrix:
    """All rows of the collection, `count` in the database; as vectors if pgvector is there and takes every one."""
    dimension = collection.dimension or 1
    cur.execute(statements.has_vector_type)
    if cur.fetchall()[0][0] and dimension <= MAX_VECTOR:
        builder = Builder(count, dimension)
        cur.execute("SAVEPOINT vectors")
        try:
            sink = _rankable(cur, collection, builder.add, still_alive)
            _copy(cur, statements.copy_all_as_vectors, collection, VectorReader(dimension, sink))
            return builder.matrix()
        except psycopg2.DataError:
            # Plain SQL has written what is no vector of this width.
            cur.execute("ROLLBACK TO SAVEPOINT vectors")
    builder = Builder(count, dimension)
    stream(cur, collection, builder.add, still_alive)
    return builder.matrix()


def stream(cur: cursor, collection: Collection, sink: Callable[[Block], None], still_alive: StillAlive) -> None:
    """Pass all rows of the collection to `sink`, a few MB at a time."""
    taken = _rankable(cur, collection, sink, still_alive)
    _copy(cur, statements.copy_all, collection, RowReader(collection.dimension or 1, taken, lambda *_: None))


def stream_keys(
    cur: cursor, collection: Collection, keys: Keys, sink: Callable[[Block], None], still_alive: StillAlive
) -> None:
    """Pass the rows with these keys to `sink`, a few MB at a time."""
    taken = _rankable(cur, collection, sink, still_alive)
    for start in range(0, len(keys), KEYS_AT_ONCE):
        reader = RowReader(collection.dimension or 1, taken, lambda *_: None)
        _copy(cur, statements.copy_keys, collection, reader, keys=keys[start : start + KEYS_AT_ONCE].tolist())


def changed(cur: cursor, collection: Collection, before: Collection, matrix: Matrix, still_alive: StillAlive) -> Matrix:
    """`matrix`, the rows of the collection when it was `before`, brought to what it is now."""
    cur.execute(statements.tombstones_since, {"name": collection.name, "version": before.version})
    gone = [key for (key,) in cur.fetchall()]
    written: list[tuple[Keys, Rows]] = []

    def take(keys: Keys, rows: Rows) -> None:
        still_alive(cur)
        written.append((keys, rows))

    reader = RowReader(collection.dimension or 1, take, lambda key, _: gone.append(key))
    _copy(cur, statements.copy_since, collection, reader, version=before.version)
    matrix = matrix.without(np.concatenate([np.array(gone, np.int64), *(keys for keys, _ in written)]))
    for keys, rows in written:
        matrix = matrix.plus(rankable(keys, rows, collection.metric))
    return matrix


def _rankable(
    cur: cursor, collection: Collection, sink: Callable[[Block], None], still_alive: StillAlive
) -> Callable[[Keys, Rows], None]:
    def take(keys: Keys, rows: Rows) -> None:
        still_alive(cur)
        sink(rankable(keys, rows, collection.metric))

    return take


def _copy(cur: cursor, sql: str, collection: Collection, reader: VectorReader, **more: object) -> None:
    # The statement may take as long as rows keep coming; the pool hangs up on a server that falls silent.
    cur.execute(statements.statement_timeout)
    limit = cur.fetchall()[0][0]
    cur.execute(statements.unbounded)
    values = {"name": collection.name, "dimension": collection.dimension or 1, **more}
    cur.copy_expert(cur.mogrify(sql, values), reader)
    cur.execute(statements.limited, {"statement_timeout": limit})
    reader.close()
