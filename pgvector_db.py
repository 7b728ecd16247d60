"""Door 2, Python: vectors in PostgreSQL, ranked in memory, without HTTP.

with VectorDB("postgresql://localhost/postgres") as db:
    db.add_with_embeddings("papers", ["a", "b"], ["first", "second"], None, [[1.0, 0.0], [0.6, 0.8]])
    db.query_by_vector("papers", [[1.0, 0.1]], n_results=1)
"""

import base64
import binascii
import io
import logging
import os
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, get_args

from numpy.typing import ArrayLike
from psycopg2.extensions import cursor

from pgvector_service import codes, queries
from pgvector_service.codec import encode_items
from pgvector_service.errors import (
    CollectionExists,
    CollectionNotFound,
    DatabaseUnavailable,
    DimensionMismatch,
    InvalidInput,
    PoolExhausted,
    Unavailable,
)
from pgvector_service.gather import F
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
from pgvector_service.loading import Collection
from pgvector_service.pool import ConnectionPool
from pgvector_service.ranking import Metric
from pgvector_service.search import Query, Search
from pgvector_service.store import Store, only_value, retried

log = logging.getLogger(__name__)

EXPORT_PAGE = 1_000
PROBE_TIMEOUT_S = 2.0
# An export keeps its connection at the pace of its reader, so no more than one connection in four does that.
EXPORTS_SHARE = 4


class VectorDB:
    """Collections of documents with embeddings in the PostgreSQL database at `dsn`; safe to share between threads.

    Opens at most `pool_size` connections and one for `check_health`; waits for one at most `pool_timeout_s` seconds.
    Keeps up to `cache_max_bytes` of vectors in memory; a larger collection is read from the database for every search.
    With faiss installed, large collections are searched by compressed copies that find at least `recall_target` of the
    nearest rows (measured; 1 for all); one search uses up to `search_threads` cores (0: all).
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
        recall_target: float = 0.999,
        search_threads: int = 0,
    ) -> None:
        self._store = Store(
            dsn,
            pool_size,
            pool_timeout_s,
            statement_timeout_s,
            cache_max_bytes,
            recall_target,
            search_threads or os.cpu_count() or 1,
        )
        self._dsn = dsn
        self._pool_size = pool_size
        self._was_alive = True
        self._exports = threading.BoundedSemaphore(max(1, pool_size // EXPORTS_SHARE))
        self._search: Search | None = None
        self._probe: ConnectionPool | None = None

    def __enter__(self) -> "VectorDB":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Opening, closing, health

    def open(self) -> None:
        """Connect, and bring the tables to the state of schema.sql. Several processes may do so at once."""
        self._store.open()
        self._probe = ConnectionPool(self._dsn, 1, 0.0, PROBE_TIMEOUT_S)
        self._search = Search(self._store, self._pool_size)

    def close(self) -> None:
        """Finish the searches that have begun and close all connections. The object may be opened again."""
        search, self._search = self._search, None
        if search:
            search.close()
        self._store.close()
        probe, self._probe = self._probe, None
        if probe:
            probe.close()

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
            "collections_in_memory": self._store.cache.collections,
            "memory_bytes": self._store.cache.nbytes,
        }

    # Collections

    @retried
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
        with self._store.transaction(queries.begin_write) as cur:
            if not _create(cur, name, dimension, metric, checked_json("metadata", metadata or {})):
                raise CollectionExists
            cur.execute(queries.collection, {"name": name})
            return self._describe(Collection(*cur.fetchall()[0]), 0)

    @retried
    def list_collections(self, limit: int = 100, offset: int = 0) -> dict[str, Any]:
        """`{"collections": [...], "total": n}`: `limit` of them by name, from `offset` on, and how many there are."""
        with self._store.transaction(queries.begin_read) as cur:
            cur.execute(queries.collections, {"limit": limit, "offset": offset})
            rows = cur.fetchall()
            cur.execute(queries.collection_total)
            total = only_value(cur)
        return {"collections": [self._describe(Collection(*row[:-1]), row[-1]) for row in rows], "total": total}

    @retried
    def get_collection(self, name: str) -> dict[str, Any]:
        """name, dimension (None before the first write), metric, metadata, count, skipped, search, version, created_at.

        `search` tells how the collection is searched for ten results: method ("exact" or "compressed"), how many
        candidates are measured, and the recall that was found with that many. `skipped` counts rows that searches leave
        out: they were written by plain SQL and have no embedding, one of another width or one that is not finite (or
        all zeros, under cosine). Both are None when the collection is not in memory.
        """
        with self._store.snapshot(name) as (cur, collection, since):
            if self._store.cache.holds(name):
                self._store.cache.matrix(cur, collection, since)
            cur.execute(queries.count, {"name": name})
            return self._describe(collection, only_value(cur))

    @retried
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
        with self._store.transaction(queries.begin_write) as cur:
            if new_name is not None:
                self._store.pool.be_patient(cur)
            cur.execute(queries.update_collection, {"name": name, "new_name": new_name, "metadata": text})
            if not cur.rowcount:
                raise CollectionNotFound
            cur.execute(queries.collection, {"name": new_name or name})
            collection = Collection(*cur.fetchall()[0])
            cur.execute(queries.count, {"name": collection.name})
            description = self._describe(collection, only_value(cur))
        if new_name is not None:
            self._store.cache.forget(name)
        return description

    @retried
    def delete_collection(self, name: str) -> None:
        """Delete a collection and all its items. Raises CollectionNotFound."""
        check_collection_name("name", name)
        with self._store.transaction(queries.begin_write) as cur:
            self._store.pool.be_patient(cur)
            cur.execute(queries.delete_collection, {"name": name})
            if not cur.rowcount:
                raise CollectionNotFound
        self._store.cache.forget(name)

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
        return self._write(name, batch, encode_items(batch.ids, batch.documents, batch.metadatas, batch.embeddings))

    @retried
    def _write(self, name: str, batch: Batch, encoded: bytes) -> dict[str, Any]:
        with self._store.transaction(queries.begin_write) as cur:
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

    @retried
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
        with self._store.snapshot(name) as (cur, collection, _):
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

    @retried
    def delete_items(self, name: str, ids: Sequence[str]) -> dict[str, Any]:
        """Delete items by id; ids that do not exist are passed over. Returns `{"deleted": n, "version"}`."""
        check_collection_name("collection_name", name)
        check_ids(ids)
        with self._store.transaction(queries.begin_write) as cur:
            bumped = _bump(cur, name, None)
            if bumped is None:
                raise CollectionNotFound
            cur.execute(queries.delete_items, {"name": name, "ids": list(ids), "version": bumped[0]})
            return {"deleted": only_value(cur), "version": bumped[0]}

    @retried
    def count(self, name: str) -> int:
        """The number of items in a collection."""
        with self._store.snapshot(name) as (cur, _, _):
            cur.execute(queries.count, {"name": name})
            return int(only_value(cur))

    def export_collection(self, name: str) -> Generator[dict[str, Any], None, None]:
        """All items in id order as id, document, metadata, embedding (float32 vector or None), from one snapshot.

        Holds a thousand items in memory at a time, and a connection until it is exhausted or closed; one connection in
        four may be taken by exports, PoolExhausted after that.
        """
        if not self._exports.acquire(blocking=False):
            raise PoolExhausted("Too many exports are running. Try again when one has ended, or raise DB_POOL_SIZE.")
        try:
            with self._store.snapshot(name) as (cur, collection, _):
                after = None
                while True:
                    cur.execute(queries.items_after, {"name": name, "after": after, "limit": EXPORT_PAGE})
                    rows = cur.fetchall()
                    embeddings = self._store.embeddings(cur, collection, [row[0] for row in rows])
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
        *,
        exact: bool = False,
    ) -> list[dict[str, Any]]:
        """For each query the `n_results` nearest items, best first; equally near ones in id order.

        `query_embeddings` is an array of shape (queries, dimension) or a list of lists. Each result has the lists ids,
        those of `include`, distances and similarities (see `ranking.exact_distances` and `ranking.similarities`).
        Ranks, texts and metadata come from one snapshot, which holds all that was committed before. With `exact` every
        row is looked at; otherwise a large collection is searched at the recall that `get_collection` tells. Raises
        CollectionNotFound, InvalidInput, DimensionMismatch and Overloaded.
        """
        future: Future[list[dict[str, Any]]] = Future()
        return self.submit_query(future, name, query_embeddings, n_results, include, exact=exact).result()

    def submit_query(
        self,
        future: F,
        name: str,
        query_embeddings: ArrayLike,
        n_results: int = 10,
        include: Sequence[str] = ("documents", "metadatas"),
        *,
        exact: bool = False,
        as_json: bool = False,
    ) -> F:
        """`future`, of concurrent.futures or asyncio, which what `query_by_vector` returns is put into.

        Returns at once. Queries that are submitted while others of the same collection run are answered together after
        them. With `as_json` metadata may come as an orjson.Fragment, which saves parsing and writing it.
        """
        check_collection_name("collection_name", name)
        embeddings = checked_matrix("query_embeddings", query_embeddings)
        if n_results < 1:
            raise InvalidInput("n_results", "must be 1 or more.")
        if self._search is None:
            raise DatabaseUnavailable
        return self._search.submit(name, Query(embeddings, n_results, include, exact, as_json), future)

    # Shared by the above

    def _describe(self, collection: Collection, count: int) -> dict[str, Any]:
        matrix = self._store.cache.current(collection)
        return {
            "name": collection.name,
            "dimension": collection.dimension,
            "metric": collection.metric,
            "metadata": collection.metadata,
            "count": count,
            "skipped": None if matrix is None else count - matrix.count,
            "search": None if matrix is None else codes.report(matrix.blocks),
            "version": collection.version,
            "created_at": collection.created_at.astimezone(UTC),
        }

    def _columns(
        self, cur: cursor, collection: Collection, rows: Sequence[tuple[Any, ...]], include: Sequence[str]
    ) -> dict[str, Any]:
        """Rows of (key, id, document, metadata) as lists: ids and what `include` names."""
        keys = [row[0] for row in rows]
        vectors = self._store.embeddings(cur, collection, keys) if "embeddings" in include else {}
        columns = {
            "ids": [row[1] for row in rows],
            "documents": [row[2] for row in rows],
            "metadatas": [row[3] for row in rows],
            "embeddings": [vectors.get(key) for key in keys],
        }
        return {name: column for name, column in columns.items() if name == "ids" or name in include}


def _create(cur: cursor, name: str, dimension: int | None, metric: Metric, metadata: bytes) -> bool:
    values = {"name": name, "dimension": dimension, "metric": metric, "metadata": metadata.decode()}
    cur.execute(queries.create_collection, values)
    return cur.rowcount == 1


def _bump(cur: cursor, name: str, width: int | None) -> tuple[int, int, Metric] | None:
    """Lock the collection and raise its version: (version, dimension, metric), or None when it does not exist."""
    cur.execute(queries.bump, {"name": name, "width": width})
    version, dimension, metric = cur.fetchall()[0]
    return None if version is None else (version, dimension, metric)


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
