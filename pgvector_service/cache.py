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

    def is_of(self, collection: Collection) -> bool:
        """Whether these are the rows of just this version."""
        return (self.collection.epoch, self.collection.version) == (collection.epoch, collection.version)


@dataclass(slots=True)
class _Entry:
    reading: threading.Lock = field(default_factory=threading.Lock)
    loaded: _Loaded | None = None
    # The last look found memory up to date, so the next search may rank first and look afterwards.
    trusted: bool = False
    # The version that did not fit into memory.
    too_large: Collection | None = None
    expected_bytes: int = 0

    @property
    def nbytes(self) -> int:
        loaded = self.loaded
        return max(self.expected_bytes, loaded.matrix.nbytes if loaded else 0)


class Cache:
    """Matrices of collections by name, at most `max_bytes` in all; the least recently used go first.

    `generation` changes when all that was in memory has lost its worth (`forget_all`). `still_alive` is called with the
    cursor after each piece that a long read has brought.
    """

    def __init__(self, max_bytes: int, still_alive: Callable[[cursor], None]) -> None:
        self._max_bytes = max_bytes
        self._still_alive = still_alive
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self.generation = 0

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

    def forget_all(self) -> None:
        """Drop everything, and trust nothing that anybody took from here before."""
        with self._lock:
            self._entries.clear()
            self.generation += 1

    def holds(self, name: str) -> bool:
        """Whether some version of the collection is in memory."""
        with self._lock:
            entry = self._entries.get(name)
            return entry is not None and entry.loaded is not None

    def current(self, collection: Collection) -> Matrix | None:
        """The rows of `collection`, if memory holds just this version."""
        with self._lock:
            entry = self._entries.get(collection.name)
        loaded = entry.loaded if entry else None
        return loaded.matrix if loaded and loaded.is_of(collection) else None

    def trusted(self, name: str) -> tuple[Collection, Matrix] | None:
        """What memory holds of a collection, if it is likely to be up to date; the caller finds out whether it is."""
        with self._lock:
            entry = self._entries.get(name)
            loaded = entry.loaded if entry and entry.trusted else None
            if loaded is None:
                return None
            self._entries.move_to_end(name)
        return loaded.collection, loaded.matrix

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
        if loaded and loaded.is_of(collection):
            entry.trusted = True
            return loaded.matrix
        entry.trusted = False
        if entry.too_large == collection:
            return None
        if not entry.reading.acquire(blocking=False):
            raise Loading(entry.reading)
        try:
            loaded = entry.loaded
            if loaded is None or not loaded.is_of(collection):
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
        row_bytes = 4 * (collection.dimension or 0) + 12
        if before and collection.follows(before.collection):
            cur.execute(queries.count_since, {"name": collection.name, "version": before.collection.version})
            expected = before.matrix.nbytes + cur.fetchall()[0][0] * row_bytes
        else:
            before = entry.loaded = None
            cur.execute(queries.count, {"name": collection.name})
            expected = cur.fetchall()[0][0] * row_bytes
        if not self._reserve(entry, expected):
            entry.loaded = None
            if expected > self._max_bytes:
                entry.too_large = collection
            return None
        if before:
            matrix = self._with_changes(cur, collection, before)
        else:
            builder = Builder()
            self.stream(cur, collection, builder.add)
            matrix = builder.matrix()
        entry.loaded = loaded = _Loaded(collection, matrix, at)
        return loaded

    def _reserve(self, entry: _Entry, expected_bytes: int) -> bool:
        """Make room for an entry about to be read; False when it does not fit beside what else is being read."""
        with self._lock:
            reading = sum(other.expected_bytes for other in self._entries.values() if other is not entry)
            if reading + expected_bytes > self._max_bytes:
                return False
            entry.expected_bytes = expected_bytes
            total = sum(other.nbytes for other in self._entries.values())
            for name, other in list(self._entries.items()):
                if total <= self._max_bytes:
                    break
                if not other.expected_bytes:
                    total -= other.nbytes
                    del self._entries[name]
            return True

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
        cur.execute(queries.unbounded)
        misfits: list[int] = []
        reader = RowReader(collection.dimension or 1, take, lambda key, _: misfits.append(key))
        cur.copy_expert(cur.mogrify(sql, {"name": collection.name, "version": version}), reader)
        reader.close()
        return misfits
