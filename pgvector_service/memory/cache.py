"""Which collections are in memory, kept equal to the database and within a budget of bytes.

Every search compares its collection's row (epoch, version) with what memory holds. When they differ, what happened in
between is read in the search's own snapshot and a new matrix is published in one step; a matrix is never changed.
Whoever comes while a collection is being read waits without holding a connection.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from psycopg2.extensions import cursor

from pgvector_service.memory import loading
from pgvector_service.memory.filtered import FilteredRows
from pgvector_service.memory.loading import Collection, StillAlive
from pgvector_service.ranking.blocks import Block
from pgvector_service.ranking.matrix import Matrix
from pgvector_service.storage import statements


class Superseded(Exception):
    """Memory is ahead of the snapshot; another snapshot will do."""


class Loading(Exception):
    """Another thread is reading the collection; `done` is the lock that it holds."""

    def __init__(self, done: threading.Lock) -> None:
        self.done = done


@dataclass(frozen=True, slots=True)
class Loaded:
    """The rows of one version of a collection."""

    collection: Collection
    filtered: FilteredRows
    at: float  # time.monotonic() after the snapshot that it was read from was taken

    @property
    def matrix(self) -> Matrix:
        """All of them."""
        return self.filtered.matrix

    def is_of(self, collection: Collection) -> bool:
        """Whether these are the rows of just this version."""
        return (self.collection.epoch, self.collection.version) == (collection.epoch, collection.version)


@dataclass(slots=True)
class _Entry:
    reading: threading.Lock = field(default_factory=threading.Lock)
    loaded: Loaded | None = None
    # The last look found memory up to date, so the next search may rank first and look afterwards.
    trusted: bool = False
    # The version that did not fit into memory.
    too_large: Collection | None = None
    expected_bytes: int = 0

    @property
    def nbytes(self) -> int:
        loaded = self.loaded
        return max(self.expected_bytes, loaded.matrix.nbytes + loaded.filtered.nbytes if loaded else 0)


class Cache:
    """Matrices of collections by name, at most `max_bytes` in all; the least recently used go first.

    `generation` changes when all that was in memory has lost its worth (`forget_all`). `still_alive` is called with the
    cursor after each piece that a long read has brought, `changed` with the name of a collection that was read.
    """

    def __init__(self, max_bytes: int, still_alive: StillAlive, changed: Callable[[str], None]) -> None:
        self._max_bytes = max_bytes
        self._still_alive = still_alive
        self._changed = changed
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

    def trusted(self, name: str) -> Loaded | None:
        """What memory holds of a collection, if it is likely to be up to date; the caller finds out whether it is."""
        with self._lock:
            entry = self._entries.get(name)
            loaded = entry.loaded if entry and entry.trusted else None
            if loaded is None:
                return None
            self._entries.move_to_end(name)
        return loaded

    def peek(self, name: str) -> tuple[Collection, Matrix] | None:
        """What memory holds of a collection, up to date or not; this is no use of it."""
        with self._lock:
            entry = self._entries.get(name)
        loaded = entry.loaded if entry else None
        return (loaded.collection, loaded.matrix) if loaded else None

    def replace(self, name: str, old: Sequence[Block], new: Block) -> bool:
        """Put `new` in the place of `old`, blocks of a collection; False when they are gone or it does not fit."""
        with self._lock:
            entry = self._entries.get(name)
        if entry is None:
            return False
        with entry.reading:
            loaded = entry.loaded
            matrix = loaded.matrix.replaced(old, new) if loaded else None
            if loaded is None or matrix is None:
                # What has taken their place was announced by `changed`.
                return False
            fits = self._reserve(entry, matrix.nbytes)
            entry.expected_bytes = 0
            if fits:
                entry.loaded = replace(loaded, filtered=FilteredRows(matrix))
            return fits

    def has_room(self, more_bytes: int) -> bool:
        """Whether so many bytes fit beside what is in memory."""
        return self.nbytes + more_bytes <= self._max_bytes

    def distrust(self, name: str) -> None:
        """Note that memory was found to be out of date."""
        with self._lock:
            entry = self._entries.get(name)
            if entry:
                entry.trusted = False

    def loaded(self, cur: cursor, collection: Collection, since: float) -> Loaded | None:
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
            return loaded
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
        return loaded

    def _read(self, cur: cursor, collection: Collection, entry: _Entry) -> Loaded | None:
        """Bring `entry` to the version of `collection` and publish the result."""
        before, at = entry.loaded, time.monotonic()
        row_bytes = 4 * (collection.dimension or 0) + 12
        if before and collection.follows(before.collection):
            cur.execute(statements.count_since, {"name": collection.name, "version": before.collection.version})
            expected = before.matrix.nbytes + cur.fetchall()[0][0] * row_bytes
        else:
            before = entry.loaded = None
            cur.execute(statements.count, {"name": collection.name, "ids": None})
            count = cur.fetchall()[0][0]
            expected = count * row_bytes
        if not self._reserve(entry, expected):
            entry.loaded = None
            if expected > self._max_bytes:
                entry.too_large = collection
            return None
        if before:
            matrix = loading.changed(cur, collection, before.collection, before.matrix, self._still_alive)
        else:
            matrix = loading.whole(cur, collection, count, self._still_alive)
        entry.loaded = loaded = Loaded(collection, FilteredRows(matrix), at)
        self._changed(collection.name)
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
