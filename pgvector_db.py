"""Door 2, Python: vectors in PostgreSQL, ranked in memory, without HTTP.

with VectorDB("postgresql://localhost/postgres") as db:
    db.add_with_embeddings("papers", ["a", "b"], ["first", "second"], None, [[1.0, 0.0], [0.6, 0.8]])
    db.query_by_vector("papers", [[1.0, 0.1]], n_results=1)
"""

import base64
import binascii
import io
import logging
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, get_args

import numpy as np
import psycopg2.errors
from numpy.typing import ArrayLike
from psycopg2.extensions import cursor

from pgvector_service import queries, schema
from pgvector_service.cache import Cache, Collection, Loading, Superseded
from pgvector_service.codec import Keys, RowReader, Rows, encode_items
from pgvector_service.errors import (
    CollectionExists,
    CollectionNotFound,
    DatabaseBusy,
    DatabaseUnavailable,
    DimensionMismatch,
    InvalidInput,
    PoolExhausted,
    Unavailable,
)
from pgvector_service.items import (
    MAX_DIMENSION,
    Batch,
    check_collection_name,
    check_ids,
    checked_batch,
    checked_json,
    checked_matrix,
    refuse_zeros,
)
from pgvector_service.pool import ConnectionPool
from pgvector_service.ranking import Floats, Metric, TopK, similarities

log = logging.getLogger(__name__)

FIELDS = ("documents", "metadatas", "embeddings")
EXPORT_PAGE = 1_000
TRIES = 5
PROBE_TIMEOUT_S = 2.0
GREETING_TIMEOUT_MS = 2_000
# An export keeps its connection at the pace of its reader, so no more than one connection in four does that.
EXPORTS_SHARE = 4

P = ParamSpec("P")
T = TypeVar("T")


def _retried(method: Callable[Concatenate["VectorDB", P], T]) -> Callable[Concatenate["VectorDB", P], T]:
    """Run a method again, in a new transaction, when the cause that undid it has passed."""

    @wraps(method)
    def run(self: "VectorDB", /, *args: P.args, **kwargs: P.kwargs) -> T:
        tries = TRIES
        deadline = time.monotonic() + self._statement_timeout_s
        while True:
            try:
                return method(self, *args, **kwargs)
            except Superseded:
                pass
            except Loading as loading:
                if not loading.done.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    raise DatabaseBusy("The collection is being read into memory. Try again later.") from None
                loading.done.release()
            except Unavailable as error:
                tries -= 1
                if not error.undone or not tries:
                    raise
                time.sleep(random.uniform(0, 0.05) * (TRIES - tries))
            if time.monotonic() > deadline:
                raise DatabaseBusy

    return run


class VectorDB:
    """Collections of documents with embeddings in the PostgreSQL database at `dsn`; safe to share between threads.

    Opens at most `pool_size` connections and one for `check_health`; waits for one at most `pool_timeout_s` seconds.
    Keeps up to `cache_max_bytes` of vectors in memory; a larger collection is read from the database for every search.
    Every method raises a `VectorDBError` (pgvector_service/errors.py draws the tree) and nothing else on purpose;
    DatabaseUnavailable, PoolExhausted and DatabaseBusy can come from any of them.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int = 20,
        pool_timeout_s: float = 2.0,
        statement_timeout_s: float = 30.0,
        cache_max_bytes: int = 2**30,
    ) -> None:
        self._dsn = dsn
        self._pool_size = pool_size
        self._pool_timeout_s = pool_timeout_s
        self._statement_timeout_s = statement_timeout_s
        self._cache = Cache(cache_max_bytes, self._still_alive)
        self._incarnation: str | None = None
        self._was_alive = True
        self._exports = threading.BoundedSemaphore(max(1, pool_size // EXPORTS_SHARE))
        self._pool: ConnectionPool | None = None
        self._probe: ConnectionPool | None = None

    def __enter__(self) -> "VectorDB":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Opening, closing, health

    def open(self) -> None:
        """Connect, and bring the tables to the state of schema.sql. Several processes may do so at once."""
        pool = ConnectionPool(self._dsn, self._pool_size, self._pool_timeout_s, self._statement_timeout_s)
        try:
            schema.apply(pool)
            pool.greet = self._greet
            # The connection that has applied the schema is there already and is not greeted by the pool.
            with pool.connection() as conn, conn.cursor() as cur:
                self._greet(cur)
        except BaseException:
            pool.close()
            raise
        self._probe = ConnectionPool(self._dsn, 1, 0.0, PROBE_TIMEOUT_S)
        self._pool = pool

    def _greet(self, cur: cursor) -> None:
        """Find out on a new connection whether the database has been through a crash, which cuts all older ones."""
        cur.execute(queries.one_statement + queries.incarnation, {"statement_timeout_ms": GREETING_TIMEOUT_MS})
        found = cur.fetchall()
        if not found:
            with suppress(psycopg2.errors.ReadOnlySqlTransaction):
                cur.execute(
                    queries.one_statement + queries.name_incarnation, {"statement_timeout_ms": GREETING_TIMEOUT_MS}
                )
                cur.execute(queries.incarnation)
                found = cur.fetchall()
        incarnation = found[0][0] if found else None
        if incarnation is None or incarnation != self._incarnation:
            self._incarnation = incarnation
            self._cache.forget_all()

    def close(self) -> None:
        """Close all connections. The object may be opened again."""
        pools = [self._pool, self._probe]
        self._pool = self._probe = None
        for pool in pools:
            if pool:
                pool.close()

    def check_health(self) -> dict[str, Any]:
        """Ask the database for a sign of life, on a connection of its own.

        Returns database (bool), pgvector (the version of the extension or None), collections_in_memory, memory_bytes.
        """
        alive, pgvector = False, None
        if self._probe:
            try:
                with self._probe.connection() as conn, conn.cursor() as cur:
                    cur.execute(queries.pgvector_version)
                    row = cur.fetchone()
                    alive, pgvector = True, row[0] if row else None
            except Unavailable as error:
                if self._was_alive:
                    log.warning("the database is away: %s", error.__cause__ or error)
        if alive and not self._was_alive:
            log.info("the database is back")
        self._was_alive = alive or self._probe is None
        return {
            "database": alive,
            "pgvector": pgvector,
            "collections_in_memory": self._cache.collections,
            "memory_bytes": self._cache.nbytes,
        }

    # Collections

    @_retried
    def create_collection(
        self,
        name: str,
        dimension: int | None = None,
        metric: Metric = "cosine",
        metadata: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Create an empty collection; without `dimension` the first write fixes it. Raises CollectionExists."""
        check_collection_name("name", name)
        if metric not in get_args(Metric):
            raise InvalidInput("metric", f"must be one of {', '.join(get_args(Metric))}.")
        if dimension is not None and not 1 <= dimension <= MAX_DIMENSION:
            raise InvalidInput("dimension", f"must be 1 to {MAX_DIMENSION}.")
        with self._transaction(queries.begin_write) as cur:
            if not _create(cur, name, dimension, metric, checked_json("metadata", metadata or {})):
                raise CollectionExists
            cur.execute(queries.collection, {"name": name})
            return self._describe(Collection(*cur.fetchall()[0]), 0)

    @_retried
    def list_collections(self, limit: int = 100, offset: int = 0) -> dict[str, Any]:
        """`{"collections": [...], "total": n}`: `limit` of them by name, from `offset` on, and how many there are."""
        with self._transaction(queries.begin_read) as cur:
            cur.execute(queries.collections, {"limit": limit, "offset": offset})
            rows = cur.fetchall()
            cur.execute(queries.collection_total)
            total = _value(cur)
        return {"collections": [self._describe(Collection(*row[:-1]), row[-1]) for row in rows], "total": total}

    @_retried
    def get_collection(self, name: str) -> dict[str, Any]:
        """name, dimension (None before the first write), metric, metadata, count, skipped, version and created_at.

        `skipped` counts rows that searches leave out: they were written by plain SQL and have no embedding, one of
        another width or one that is not finite (or all zeros, under cosine). None when the collection is not in memory.
        """
        with self._snapshot(name) as (cur, collection, since):
            if self._cache.holds(name):
                self._cache.matrix(cur, collection, since)
            cur.execute(queries.count, {"name": name})
            return self._describe(collection, _value(cur))

    @_retried
    def update_collection(
        self, name: str, new_name: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Rename a collection (which rewrites all its rows) or replace its metadata, or both.

        Raises CollectionNotFound, and CollectionExists when `new_name` is taken.
        """
        check_collection_name("name", name)
        if new_name is None and metadata is None:
            raise InvalidInput("new_name", "or metadata must be given, or there is nothing to change.")
        if new_name is not None:
            check_collection_name("new_name", new_name)
        text = None if metadata is None else checked_json("metadata", metadata).decode()
        with self._transaction(queries.begin_write) as cur:
            if new_name is not None:
                self._open_pool.be_patient(cur)
            cur.execute(queries.update_collection, {"name": name, "new_name": new_name, "metadata": text})
            if not cur.rowcount:
                raise CollectionNotFound
            cur.execute(queries.collection, {"name": new_name or name})
            collection = Collection(*cur.fetchall()[0])
            cur.execute(queries.count, {"name": collection.name})
            description = self._describe(collection, _value(cur))
        if new_name is not None:
            self._cache.forget(name)
        return description

    @_retried
    def delete_collection(self, name: str) -> None:
        """Delete a collection and all its items. Raises CollectionNotFound."""
        check_collection_name("name", name)
        with self._transaction(queries.begin_write) as cur:
            self._open_pool.be_patient(cur)
            cur.execute(queries.delete_collection, {"name": name})
            if not cur.rowcount:
                raise CollectionNotFound
        self._cache.forget(name)

    # Items

    def add_with_embeddings(
        self,
        name: str,
        ids: Sequence[str],
        documents: Sequence[str | None] | None,
        metadatas: Sequence[Mapping[str, Any] | None] | None,
        embeddings: ArrayLike,
    ) -> dict[str, Any]:
        """Store items, replacing those whose id exists, all or none; creates the collection if it is missing.

        `embeddings` is an array of shape (len(ids), dimension) or a list of lists; stored as float32.
        Returns `{"collection_name", "added", "updated", "version"}`. Raises InvalidInput and DimensionMismatch, naming
        field and position, and CommitUnknown.
        """
        check_collection_name("collection_name", name)
        batch = checked_batch(ids, documents, metadatas, embeddings)
        return self._store(name, batch, encode_items(batch.ids, batch.documents, batch.metadatas, batch.embeddings))

    @_retried
    def _store(self, name: str, batch: Batch, encoded: bytes) -> dict[str, Any]:
        with self._transaction(queries.begin_write) as cur:
            # All that takes time comes before `bump` locks the collection's row.
            cur.execute(queries.stage)
            cur.copy_expert(queries.copy_stage, io.BytesIO(encoded))
            width = batch.embeddings.shape[1]
            bumped = _bump(cur, name, width)
            if bumped is None:
                _create(cur, name, width, "cosine", b"{}")
                bumped = _bump(cur, name, width)
            if bumped is None:
                raise CollectionNotFound  # somebody has dropped it in between
            version, dimension, metric = bumped
            if width != dimension:
                raise DimensionMismatch("embeddings[0]", dimension, width)
            if metric == "cosine":
                refuse_zeros("embeddings", batch.embeddings)
            cur.execute(queries.upsert, {"name": name, "version": version, "now": datetime.now(UTC)})
            added, updated = cur.fetchall()[0]
        return {"collection_name": name, "added": added, "updated": updated, "version": version}

    @_retried
    def get_items(
        self,
        name: str,
        ids: Sequence[str] | None = None,
        limit: int = 100,
        cursor: str | None = None,
        include: Sequence[str] = ("documents", "metadatas"),
    ) -> dict[str, Any]:
        """Items by id, in the order asked for and without those that do not exist, or else page by page in id order.

        Returns lists `ids` and those of `include`, and `next_cursor`: pass it as `cursor` for the next page; None at
        the end. An embedding is a float32 vector, or None where plain SQL has written something else.
        """
        if ids is not None:
            check_ids(ids)
        if limit < 1:
            raise InvalidInput("limit", "must be 1 or more.")
        after = None if cursor is None else _decode_cursor(cursor)
        with self._snapshot(name) as (cur, collection, _):
            if ids is not None:
                cur.execute(queries.items_by_id, {"name": name, "ids": list(ids)})
                found = {row[1]: row for row in cur.fetchall()}
                rows, more = [found[id_] for id_ in dict.fromkeys(ids) if id_ in found], False
            else:
                cur.execute(queries.items_after, {"name": name, "after": after, "limit": limit + 1})
                rows = cur.fetchall()
                rows, more = rows[:limit], len(rows) > limit
            answer = self._columns(cur, collection, rows, include)
        return {**answer, "next_cursor": _encode_cursor(rows[-1][1]) if more else None}

    @_retried
    def delete_items(self, name: str, ids: Sequence[str]) -> dict[str, Any]:
        """Delete items by id; ids that do not exist are passed over. Returns `{"deleted": n, "version"}`."""
        check_collection_name("collection_name", name)
        check_ids(ids)
        with self._transaction(queries.begin_write) as cur:
            bumped = _bump(cur, name, None)
            if bumped is None:
                raise CollectionNotFound
            cur.execute(queries.delete_items, {"name": name, "ids": list(ids), "version": bumped[0]})
            return {"deleted": _value(cur), "version": bumped[0]}

    @_retried
    def count(self, name: str) -> int:
        """The number of items in a collection."""
        with self._snapshot(name) as (cur, _, _):
            cur.execute(queries.count, {"name": name})
            return int(_value(cur))

    def export_collection(self, name: str) -> Generator[dict[str, Any], None, None]:
        """All items in id order as id, document, metadata, embedding (float32 vector or None), from one snapshot.

        Holds a thousand items in memory at a time, and a connection until it is exhausted or closed; one connection in
        four may be taken by exports, PoolExhausted after that.
        """
        if not self._exports.acquire(blocking=False):
            raise PoolExhausted("Too many exports are running. Try again when one has ended, or raise DB_POOL_SIZE.")
        try:
            with self._snapshot(name) as (cur, collection, _):
                after = None
                while True:
                    cur.execute(queries.items_after, {"name": name, "after": after, "limit": EXPORT_PAGE})
                    rows = cur.fetchall()
                    embeddings = self._embeddings(cur, collection, [row[0] for row in rows])
                    for key, id_, document, metadata in rows:
                        yield {"id": id_, "document": document, "metadata": metadata, "embedding": embeddings.get(key)}
                    if len(rows) < EXPORT_PAGE:
                        return
                    after = rows[-1][1]
        finally:
            self._exports.release()

    # Search

    def query_by_vector(
        self,
        name: str,
        query_embeddings: ArrayLike,
        n_results: int = 10,
        include: Sequence[str] = ("documents", "metadatas"),
    ) -> list[dict[str, Any]]:
        """For each query the `n_results` nearest items, best first; equally near ones in id order.

        `query_embeddings` is an array of shape (queries, dimension) or a list of lists. Each result has the lists ids,
        those of `include`, distances and similarities (see `ranking.exact_distances` and `ranking.similarities`).
        Ranks, texts and metadata come from one snapshot, which holds all that was committed before. Raises
        CollectionNotFound, InvalidInput and DimensionMismatch.
        """
        check_collection_name("collection_name", name)
        embeddings = checked_matrix("query_embeddings", query_embeddings)
        if n_results < 1:
            raise InvalidInput("n_results", "must be 1 or more.")
        return self._query(name, embeddings, n_results, include)

    @_retried
    def _query(self, name: str, embeddings: Rows, n_results: int, include: Sequence[str]) -> list[dict[str, Any]]:
        answers = None if "embeddings" in include else self._query_memory(name, embeddings, n_results, include)
        return self._query_snapshot(name, embeddings, n_results, include) if answers is None else answers

    def _query_memory(
        self, name: str, embeddings: Rows, n_results: int, include: Sequence[str]
    ) -> list[dict[str, Any]] | None:
        """The usual search: rank what memory holds, then read texts and metadata if it was the latest version.

        One statement and no transaction, so no connection is held while rows are ranked. None when the collection is
        not in memory, has moved on, does not suit the queries (it may be another one by now), or when several rows
        compete for the last place.
        """
        generation = self._cache.generation
        known = self._cache.trusted(name)
        if known is None:
            return None
        collection, matrix = known
        try:
            top = _top(collection, embeddings, n_results)
        except InvalidInput:
            return None
        for block in matrix.blocks:
            top.offer(block)
        hits = [top.hits(i) for i in range(len(embeddings))]
        if any(len(keys) > n_results for keys, _ in hits):
            return None
        keys = _all_keys(hits)
        state = {"name": name, "version": collection.version, "epoch": collection.epoch, "keys": keys}
        rows = self._open_pool.fetch(queries.items_by_key_if_unchanged, state)
        outdated = not rows or generation != self._cache.generation
        if outdated or not {key for key, *_ in rows} >= set(keys):
            self._cache.distrust(name)
            return None
        return _answers(rows, {}, hits, collection.metric, include)

    def _query_snapshot(
        self, name: str, embeddings: Rows, n_results: int, include: Sequence[str]
    ) -> list[dict[str, Any]]:
        """A search of any kind, within one snapshot; brings memory up to date first."""
        with self._snapshot(name) as (cur, collection, since):
            top = _top(collection, embeddings, n_results)
            matrix = self._cache.matrix(cur, collection, since)
            if matrix is None:
                self._cache.stream(cur, collection, top.offer)
            else:
                for block in matrix.blocks:
                    top.offer(block)
            hits = [_cut(cur, *top.hits(i), n_results) for i in range(len(embeddings))]
            keys = _all_keys(hits)
            cur.execute(queries.items_by_key, {"keys": keys})
            rows = cur.fetchall()
            wanted = sum(min(n_results, len(top.hits(i)[0])) for i in range(len(embeddings)))
            if len(rows) < len(keys) or sum(len(found) for found, _ in hits) < wanted:
                # Somebody has deleted rows past the triggers. Memory is wrong, so read it anew.
                self._cache.forget(name)
                raise Superseded
            vectors = self._embeddings(cur, collection, keys) if "embeddings" in include else {}
        return _answers(rows, vectors, hits, collection.metric, include)

    # Shared by the above

    @property
    def _open_pool(self) -> ConnectionPool:
        if self._pool is None:
            raise DatabaseUnavailable
        return self._pool

    def _transaction(self, begin: str, first: str = "", **parameters: object) -> AbstractContextManager[cursor]:
        return self._open_pool.transaction(begin, first, parameters)

    @contextmanager
    def _snapshot(self, name: str) -> Iterator[tuple[cursor, Collection, float]]:
        """A cursor in a read-only snapshot, the collection in it, and a time before it was taken."""
        check_collection_name("collection_name", name)
        since = time.monotonic()
        with self._transaction(queries.begin_read, queries.collection, name=name) as cur:
            row = cur.fetchone()
            if row is None:
                self._cache.forget(name)
                raise CollectionNotFound
            yield cur, Collection(*row), since

    def _still_alive(self, cur: cursor) -> None:
        if self._pool:
            self._pool.still_alive(cur.connection)

    def _describe(self, collection: Collection, count: int) -> dict[str, Any]:
        matrix = self._cache.current(collection)
        return {
            "name": collection.name,
            "dimension": collection.dimension,
            "metric": collection.metric,
            "metadata": collection.metadata,
            "count": count,
            "skipped": None if matrix is None else count - matrix.count,
            "version": collection.version,
            "created_at": collection.created_at.astimezone(UTC),
        }

    def _columns(
        self, cur: cursor, collection: Collection, rows: Sequence[tuple[Any, ...]], include: Sequence[str]
    ) -> dict[str, Any]:
        """Rows of (key, id, document, metadata) as lists: ids and what `include` names."""
        keys = [row[0] for row in rows]
        vectors = self._embeddings(cur, collection, keys) if "embeddings" in include else {}
        columns = {
            "ids": [row[1] for row in rows],
            "documents": [row[2] for row in rows],
            "metadatas": [row[3] for row in rows],
            "embeddings": [vectors.get(key) for key in keys],
        }
        return {name: column for name, column in columns.items() if name == "ids" or name in include}

    def _embeddings(self, cur: cursor, collection: Collection, keys: Sequence[int]) -> dict[int, Rows | None]:
        """The embeddings of the rows with these keys; None for what is no list of numbers."""
        found: dict[int, Rows | None] = {}

        def take(keys: Keys, rows: Rows) -> None:
            found.update(zip(keys.tolist(), rows, strict=True))

        if keys:
            reader = RowReader(collection.dimension or 1, take, found.__setitem__)
            cur.copy_expert(cur.mogrify(queries.copy_keys, {"keys": list(keys)}), reader)
            reader.close()
        return found


def _create(cur: cursor, name: str, dimension: int | None, metric: Metric, metadata: bytes) -> bool:
    values = {"name": name, "dimension": dimension, "metric": metric, "metadata": metadata.decode()}
    cur.execute(queries.create_collection, values)
    return cur.rowcount == 1


def _bump(cur: cursor, name: str, width: int | None) -> tuple[int, int, Metric] | None:
    """Lock the collection and raise its version: (version, dimension, metric), or None when it does not exist."""
    cur.execute(queries.bump, {"name": name, "width": width})
    version, dimension, metric = cur.fetchall()[0]
    return None if version is None else (version, dimension, metric)


def _cut(cur: cursor, keys: Keys, distances: Floats, k: int) -> tuple[Keys, Floats]:
    """The first k of `keys`, which are sorted by distance; of those as far as the k-th, the first by id.

    Fewer when rows of `keys` are no longer in the database.
    """
    if len(keys) <= k:
        return keys, distances
    nearer = int((distances < distances[k - 1]).sum())
    cur.execute(queries.first_by_id, {"keys": keys[nearer:].tolist(), "limit": k - nearer})
    chosen = np.concatenate((keys[:nearer], np.array(cur.fetchall(), np.int64).reshape(-1)))
    return chosen, distances[: len(chosen)]


def _top(collection: Collection, embeddings: Rows, n_results: int) -> TopK:
    """An empty ranking for queries that suit the collection."""
    if collection.dimension not in (None, embeddings.shape[1]):
        raise DimensionMismatch("query_embeddings[0]", collection.dimension, embeddings.shape[1])
    if collection.metric == "cosine":
        refuse_zeros("query_embeddings", embeddings)
    return TopK(embeddings, n_results, collection.metric)


def _all_keys(hits: Sequence[tuple[Keys, Floats]]) -> list[int]:
    return sorted({key for keys, _ in hits for key in keys.tolist()})


def _answers(
    rows: Sequence[tuple[Any, ...]],
    vectors: Mapping[int, Rows | None],
    hits: Sequence[tuple[Keys, Floats]],
    metric: Metric,
    include: Sequence[str],
) -> list[dict[str, Any]]:
    """For each query what was found, nearest first and then by id, as lists."""
    by_key = {row[0]: row for row in rows}
    answers = []
    for keys, distances in hits:
        found = zip(distances.tolist(), map(by_key.__getitem__, keys.tolist()), strict=True)
        ranked = [row for _, row in sorted(found, key=lambda hit: (hit[0], hit[1][1]))]
        columns: dict[str, Any] = {
            "ids": [row[1] for row in ranked],
            "documents": [row[2] for row in ranked],
            "metadatas": [row[3] for row in ranked],
            "embeddings": [vectors.get(row[0]) for row in ranked],
            "distances": distances.tolist(),
            "similarities": similarities(distances, metric).tolist(),
        }
        answers.append({name: column for name, column in columns.items() if name not in FIELDS or name in include})
    return answers


def _value(cur: cursor) -> Any:
    (value,) = cur.fetchall()[0]
    return value


def _encode_cursor(last_id: str) -> str:
    return base64.urlsafe_b64encode(last_id.encode()).decode()


def _decode_cursor(cursor: str) -> str:
    try:
        after = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
        if "\0" in after:
            raise UnicodeError
    except (binascii.Error, UnicodeError):
        raise InvalidInput("cursor", "is not one that this service gave; leave it out to begin anew.") from None
    return after
