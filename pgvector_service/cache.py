"""Which collections are in memory, kept equal to the database and within a budget of bytes.

Every search compares its collection's row (epoch, version) with what memory holds. When they differ, what happened in
between is read in the search's own snapshot and a new matrix is published in one step; a matrix is never changed.
Whoever comes while a collection is being read waits without holding a connection.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from psycopg2.extensions import cursor

from pgvector_service import queries
from pgvector_service.codec import Keys, RowReader, Rows
from pgvector_service.matrix import Builder, Matrix, rankable
from pgvector_service.ranking import Block, Metric


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

    def follows(self, other: "Collection") -> bool:
        """Whether the rows and tombstones since the version of `other` tell all that happened since."""
        return self.epoch == other.epoch and self.tombstone_floor <= other.version < self.version


class Superseded(Exception):
    """Memory is ahead of the snapshot; another snapshot will do."""


class Loading(Exception):
    """Another thread is reading the collection; `done` is the lock that it holds."""

    def __init__(self, done: threading.Lock) -> None:
        self.done = done


@dataclass(frozen=True, slots=True)
class _Loaded:
    collection: Collection
    matrix: Matrix
    at: float  # time.monotonic() after the snapshot that it was read from was taken


@dataclass(slots=True)
class _Entry:
    reading: threading.Lock = field(default_factory=threading.Lock)
    loaded: _Loaded | None = None
    # The last look found memory up to date, so the next search may rank first and look afterwards.
    trusted: bool = False
    expected_bytes: int = 0

    @property
    def nbytes(self) -> int:
        return max(self.expected_bytes, self.loaded.matrix.nbytes if self.loaded else 0)


class Cache:
    """Matrices of collections by name, at most `max_bytes` in all; the least recently used go first.

    `still_alive` is called with the cursor after each piece that a long read has brought.
    """

    def __init__(self, max_bytes: int, still_alive: Callable[[cursor], None]) -> None:
        self._max_bytes = max_bytes
        self._still_alive = still_alive
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def collections(self) -> int:
        """Collections in memory."""
        with self._lock:
            return sum(entry.loaded is not None for entry in self._entries.values())

    @property
    def nbytes(self) -> int:
        """Bytes of vectors, norms and keys in memory."""
        with self._lock:
            return sum(entry.nbytes for entry in self._entries.values())

    def forget(self, name: str) -> None:
        """Drop a collection that is gone."""
        with self._lock:
            self._entries.pop(name, None)

    def holds(self, name: str) -> bool:
        """Whether some version of the collection is in memory."""
        with self._lock:
            entry = self._entries.get(name)
            return entry is not None and entry.loaded is not None

    def current(self, collection: Collection) -> Matrix | None:
        """The rows of `collection`, if memory holds just this version."""
        with self._lock:
            entry = self._entries.get(collection.name)
            if entry is None or not _equals(entry.loaded, collection):
                return None
            self._entries.move_to_end(collection.name)
        return entry.loaded.matrix if entry.loaded else None

    def trusted(self, name: str) -> tuple[Collection, Matrix] | None:
        """What memory holds of a collection, if it is likely to be up to date; the caller finds out whether it is."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or entry.loaded is None or not entry.trusted:
                return None
            self._entries.move_to_end(name)
            return entry.loaded.collection, entry.loaded.matrix

    def distrust(self, name: str) -> None:
        """Note that memory was found to be out of date."""
        with self._lock:
            entry = self._entries.get(name)
            if entry:
                entry.trusted = False

    def matrix(self, cur: cursor, collection: Collection, since: float) -> Matrix | None:
        """The rows of `collection` as the transaction of `cur` sees them, or None when they exceed the budget.

        `since` is a time (time.monotonic) before the transaction took its snapshot. Raises Superseded or Loading: end
        the transaction and begin another one, in the second case when `done` can be had.
        """
        with self._lock:
            entry = self._entries.setdefault(collection.name, _Entry())
            self._entries.move_to_end(collection.name)
        loaded = entry.loaded
        if _equals(loaded, collection):
            entry.trusted = True
        else:
            entry.trusted = False
            if not entry.reading.acquire(blocking=False):
                raise Loading(entry.reading)
            try:
                loaded = entry.loaded
                if not _equals(loaded, collection):
                    if loaded and loaded.at >= since:
                        raise Superseded
                    loaded = self._read(cur, collection, entry)
            finally:
                entry.expected_bytes = 0
                entry.reading.release()
        return loaded.matrix if loaded else None

    def stream(self, cur: cursor, collection: Collection, sink: Callable[[Block], None]) -> None:
        """Read all rows of the collection piece by piece, a few MB at a time."""
        self._copy(cur, queries.copy_all, collection, lambda keys, rows: sink(rankable(keys, rows, collection.metric)))

    def _read(self, cur: cursor, collection: Collection, entry: _Entry) -> _Loaded | None:
        """Bring `entry` to the version of `collection` and publish the result."""
        before, at = entry.loaded, time.monotonic()
        if before and collection.follows(before.collection):
            matrix = self._with_changes(cur, collection, before)
        else:
            entry.loaded = None
            cur.execute(queries.count, {"name": collection.name})
            (count,) = _row(cur)
            entry.expected_bytes = count * (4 * (collection.dimension or 0) + 12)
            if entry.expected_bytes > self._max_bytes:
                return None
            self._make_room()
            builder = Builder()
            self.stream(cur, collection, builder.add)
            matrix = builder.matrix()
        entry.loaded = loaded = _Loaded(collection, matrix, at)
        self._make_room()
        return loaded

    def _with_changes(self, cur: cursor, collection: Collection, before: _Loaded) -> Matrix:
        """The matrix of `before` brought to the version of `collection`."""
        cur.execute(queries.tombstones_since, {"name": collection.name, "version": before.collection.version})
        gone = [key for (key,) in cur.fetchall()]
        written: list[tuple[Keys, Rows]] = []
        gone += self._copy(
            cur,
            queries.copy_since,
            collection,
            lambda keys, rows: written.append((keys, rows)),
            before.collection.version,
        )
        matrix = before.matrix.without(np.concatenate([np.array(gone, np.int64), *(keys for keys, _ in written)]))
        for keys, rows in written:
            matrix = matrix.plus(rankable(keys, rows, collection.metric))
        return matrix

    def _copy(
        self, cur: cursor, sql: str, collection: Collection, sink: Callable[[Keys, Rows], None], version: int = 0
    ) -> list[int]:
        """Pass the rows that `sql` selects to `sink` in pieces; returns the keys of those that do not fit."""

        def take(keys: Keys, rows: Rows) -> None:
            self._still_alive(cur)
            sink(keys, rows)

        # The statement may take as long as rows keep coming; the pool hangs up on a server that falls silent.
        cur.execute("SET LOCAL statement_timeout = 0")
        reader = RowReader(collection.dimension or 1, take)
        cur.copy_expert(cur.mogrify(sql, {"name": collection.name, "version": version}), reader)
        reader.close()
        return reader.misfits

    def _make_room(self) -> None:
        """Drop least recently used collections until the rest is within the budget."""
        with self._lock:
            total = sum(entry.nbytes for entry in self._entries.values())
            for name, entry in list(self._entries.items()):
                if total <= self._max_bytes:
                    break
                if entry.loaded and not entry.expected_bytes:
                    total -= entry.nbytes
                    del self._entries[name]


def _equals(loaded: _Loaded | None, collection: Collection) -> bool:
    if loaded is None:
        return False
    held = loaded.collection
    return (held.epoch, held.version) == (collection.epoch, collection.version)


def _row(cur: cursor) -> tuple[Any, ...]:
    row = cur.fetchone()
    assert row is not None
    return row
