"""Door 2, Python: vectors in PostgreSQL, ranked in memory, without HTTP.

with VectorDB("postgresql://localhost/postgres") as db:
    db.add_with_embeddings("papers", ["a", "b"], ["first", "second"], None, [[1.0, 0.0], [0.6, 0.8]])
    db.query_by_vector("papers", [[1.0, 0.1]], n_results=1)
"""

import io
import os
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, NamedTuple, Unpack, get_args

from numpy.typing import ArrayLike
from psycopg2.extensions import cursor

from pgvector_service.dsn import fault
from pgvector_service.errors import (
    CollectionExists,
    CollectionNotFound,
    DatabaseBusy,
    DatabaseUnavailable,
    InvalidInput,
    ItemsExist,
    PoolExhausted,
    Unavailable,
    VersionMismatch,
)
from pgvector_service.input.embeddings import MAX_DIMENSION, checked_matrix
from pgvector_service.input.filters import Filter, check_query_text, compiled
from pgvector_service.input.items import Batch, Mode, checked_batch
from pgvector_service.input.lines import Import
from pgvector_service.input.options import Narrowing, SearchOptions, checked
from pgvector_service.input.pages import Order
from pgvector_service.input.values import (
    check_collection_name,
    check_ids,
    check_name,
    check_text,
    checked_json,
    checked_metric,
)
from pgvector_service.memory.loading import Collection
from pgvector_service.memory.store import Store, only_value, retried
from pgvector_service.ranking import compression
from pgvector_service.ranking.distances import Metric, MetricName
from pgvector_service.search.batching import F
from pgvector_service.search.retrieval import Examples, Searcher
from pgvector_service.search.search import Search, SearchRequest
from pgvector_service.settings import Settings
from pgvector_service.storage import statements
from pgvector_service.storage.codec import encode_batch
from pgvector_service.storage.pool import ConnectionPool
from pgvector_service.storage.rows import columns, read_metadata

EXPORT_PAGE = 1_000
PROBE_TIMEOUT_S = 2.0
# Exports and imports go at the pace of their clients. No more than one connection in four is for each.
BULK_SHARE = 4

# What the items of an answer show if nothing else is said.
SHOWN = ("documents", "metadatas")


class _Open(NamedTuple):
    """What there is only while the database is open."""

    search: Search
    probe: ConnectionPool


class VectorDB:
    """Collections of documents with embeddings in the PostgreSQL database at `dsn`; safe to share between threads.

    `dsn` is a URL or another connection string of libpq, by default DATABASE_URL from the environment or `.env`; one
    that can never work raises InvalidInput. The first use
    opens the database, unless `open_on_use` is False; then DatabaseUnavailable is raised until `open` has been called.
    Opens at most `pool_size` connections and one for `check_health`; waits for one at most `pool_timeout_s` seconds.
    Keeps up to `cache_max_bytes` of vectors in memory; a larger collection is read from the database for every search.
    With faiss installed, large collections are searched by compressed copies that find at least `recall_target` of the
    nearest rows (measured; 1 for all); one search uses up to `search_threads` cores (0: all).
    Every method raises a `VectorDBError` (pgvector_service/errors.py draws the tree) and nothing else on purpose;
    DatabaseUnavailable, PoolExhausted and DatabaseBusy can come from any of them.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        pool_size: int = 20,
        pool_timeout_s: float = 2.0,
        statement_timeout_s: float = 30.0,
        cache_max_bytes: int = 2**30,
        recall_target: float = 0.999,
        search_threads: int = 0,
        open_on_use: bool = True,
    ) -> None:
        dsn = Settings.load().database_url if dsn is None else dsn
        if dsn is None:
            raise InvalidInput("dsn", "is missing. Give a connection string, or set DATABASE_URL.")
        if wrong := fault(dsn):
            raise InvalidInput("dsn", f"{wrong}.")
        self._store = Store(
            dsn,
            pool_size,
            pool_timeout_s,
            statement_timeout_s,
            cache_max_bytes,
            recall_target,
            search_threads or os.cpu_count() or 1,
            self._opened,
        )
        self._dsn = dsn
        self._pool_size = pool_size
        self._open_on_use = open_on_use
        self._opening = threading.Lock()
        self._open: _Open | None = None
        self._closed = False
        self._exports = threading.BoundedSemaphore(max(1, pool_size // BULK_SHARE))
        self._imports = threading.BoundedSemaphore(max(1, pool_size // BULK_SHARE))

    def __enter__(self) -> "VectorDB":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Opening, closing, health

    def open(self) -> None:
        """Connect, and bring the tables to the state of schema.sql. Several processes may do so at once.

        Does nothing when the database is open.
        """
        self._closed = False
        self._open_once()

    def close(self) -> None:
        """Finish the searches that have begun and close all connections. `open` opens the database again."""
        self._closed = True
        with self._opening:
            was, self._open = self._open, None
            if was:
                was.search.close()
                self._store.close()
                was.probe.close()

    def check_health(self) -> dict[str, Any]:
        """Ask the database for a sign of life, on a connection of its own.

        Returns database (bool), reason (why the database is away, or None), maintenance (bool: requests are refused
        until it ends), pgvector (the version of the extension or None), collections_in_memory, memory_bytes.
        """
        reason, maintenance, pgvector = None, False, None
        try:
            with self._opened().probe.connection() as conn, conn.cursor() as cur:
                cur.execute(statements.sign_of_life)
                maintenance, pgvector = cur.fetchall()[0]
            self._store.heed(maintenance)
        except Unavailable as error:
            reason = error.reason or error.message
        return {
            "database": reason is None,
            "reason": reason,
            "maintenance": maintenance,
            "pgvector": pgvector,
            "collections_in_memory": self._store.cache.collections,
            "memory_bytes": self._store.cache.nbytes,
        }

    def _opened(self) -> "_Open":
        """For a use of the database: what there is while it is open."""
        if self._open:
            return self._open
        if not self._closed and not self._open_on_use:
            raise DatabaseUnavailable(reason="open() has not been called yet, or is at work")
        return self._open_once()

    def _open_once(self) -> "_Open":
        """Open the database unless it is open; of several threads one does, and the others wait."""
        if not self._opening.acquire(timeout=self._store.statement_timeout_s):
            raise DatabaseBusy("The database is still being opened. Try again in a moment.")
        try:
            if self._closed:
                raise DatabaseUnavailable("This VectorDB is closed. open() opens it again.")
            if not self._open:
                self._store.open()
                probe = ConnectionPool(self._dsn, 1, 0.0, PROBE_TIMEOUT_S)
                self._open = _Open(Search(self._store, self._pool_size), probe)
            return self._open
        finally:
            self._opening.release()

    # Collections

    @retried
    def create_collection(
        self,
        name: str,
        dimension: int | None = None,
        metric: MetricName = "cosine",
        metadata: Mapping[str, Any] | None = None,
        language: str = "english",
    ) -> dict[str, Any]:
        """Create an empty collection; without `dimension` the first write fixes it. Raises CollectionExists.

        `language` is that of its documents, for full text search: a text search configuration of PostgreSQL (english,
        german, simple, ...; `SELECT cfgname FROM pg_ts_config` names them).
        """
        check_collection_name("name", name)
        canonical = checked_metric("metric", metric)
        if dimension is not None and not 1 <= dimension <= MAX_DIMENSION:
            raise InvalidInput("dimension", f"must be 1 to {MAX_DIMENSION}.")
        text = checked_json("metadata", metadata or {})
        with self._store.pool.writing() as cur:
            _check_language(cur, language)
            if not _create(cur, name, dimension, canonical, text, language):
                raise CollectionExists
            cur.execute(statements.collection, {"name": name})
            return self._describe(Collection(*cur.fetchall()[0]), 0)

    @retried
    def list_collections(self, limit: int = 100, offset: int = 0) -> dict[str, Any]:
        """`{"collections": [...], "total": n}`: `limit` of them by name, from `offset` on, and how many there are."""
        with self._store.pool.reading() as cur:
            cur.execute(statements.collections, {"limit": limit, "offset": offset})
            rows = cur.fetchall()
            cur.execute(statements.collection_total)
            total = only_value(cur)
        return {"collections": [self._describe(Collection(*row[:-1]), row[-1]) for row in rows], "total": total}

    @retried
    def get_collection(self, name: str) -> dict[str, Any]:
        """name, dimension (None before the first write), metric, language, metadata, count, skipped, search,
        version, created_at.

        `search` tells how the collection is searched for ten results: method ("exact" or "compressed"), how many
        candidates are measured, and the recall that was found with that many. `skipped` counts rows that searches leave
        out: they were written by plain SQL and have no embedding, one of another width or one that is not finite (or
        all zeros, under cosine). Both are None when the collection is not in memory.
        """
        with self._store.snapshot(name) as (cur, collection, since):
            if self._store.cache.holds(name):
                self._store.cache.loaded(cur, collection, since)
            return self._describe(collection, self._count(cur, name))

    @retried
    def update_collection(
        self,
        name: str,
        new_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        language: str | None = None,
        metric: MetricName | None = None,
    ) -> dict[str, Any]:
        """Rename a collection, replace its metadata, change its language or metric, or several of these.

        A new name or language rewrites all its rows. Under a new metric searches read the collection anew, and under
        cosine they leave out embeddings that are all zeros. Raises CollectionNotFound, and CollectionExists when
        `new_name` is taken.
        """
        check_name("name", name)
        if new_name is None and metadata is None and language is None and metric is None:
            raise InvalidInput("new_name", "metadata, language or metric must be given, or nothing is to change.")
        if new_name is not None:
            check_collection_name("new_name", new_name)
        text = None if metadata is None else checked_json("metadata", metadata).decode()
        canonical = None if metric is None else checked_metric("metric", metric)
        with self._store.pool.writing() as cur:
            if language is not None:
                _check_language(cur, language)
            if new_name is not None or language is not None:
                self._store.pool.be_patient(cur)
            values = {"name": name, "new_name": new_name, "metadata": text, "language": language, "metric": canonical}
            cur.execute(statements.update_collection, values)
            if not cur.rowcount:
                raise CollectionNotFound
            if language is not None:
                cur.execute(statements.translate_items, {"name": new_name or name, "language": language})
            cur.execute(statements.collection, {"name": new_name or name})
            collection = Collection(*cur.fetchall()[0])
            description = self._describe(collection, self._count(cur, collection.name))
        if new_name is not None:
            self._store.cache.forget(name)
        return description

    @retried
    def delete_collection(self, name: str) -> None:
        """Delete a collection and all its items. Raises CollectionNotFound."""
        check_name("name", name)
        with self._store.pool.writing() as cur:
            self._store.pool.be_patient(cur)
            cur.execute(statements.delete_collection, {"name": name})
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
        *,
        uris: Sequence[str | None] | None = None,
        media_types: Sequence[str | None] | None = None,
        mode: Mode = "upsert",
        if_version: int | None = None,
    ) -> dict[str, Any]:
        """Store items, all or none; creates the collection if it is missing.

        `embeddings` is an array of shape (len(ids), dimension) or a list of lists; stored as float32. Of items whose id
        exists, `mode` "upsert" replaces the whole item, "ignore" leaves it as it is, and "insert" raises ItemsExist.
        Returns `{"collection_name", "added", "updated", "version"}`, and with "ignore" how many were "ignored". Raises
        InvalidInput and DimensionMismatch, naming field and position, VersionMismatch when the collection is not at
        `if_version`, and CommitUnknown.
        """
        check_name("collection_name", name)
        _check_mode(mode)
        batch = checked_batch(ids, documents, metadatas, embeddings, uris, media_types)
        return self._add(name, batch, encode_batch(batch), mode, if_version)

    @retried
    def _add(self, name: str, batch: Batch, encoded: bytes, mode: Mode, if_version: int | None) -> dict[str, Any]:
        with self._store.pool.writing() as cur:
            _stage(cur, encoded)
            bumped = _bump(cur, name, batch, if_version, create=True)
            if mode == "insert":
                cur.execute(statements.existing_ids, {"name": name, "ids": list(batch.ids)})
                existing = {id_ for (id_,) in cur.fetchall()}
                if existing:
                    raise ItemsExist([id_ for id_ in batch.ids if id_ in existing])
            cur.execute(statements.upsert if mode == "upsert" else statements.insert_new, bumped)
            added, updated = cur.fetchall()[0]
            version = _settled(cur, bumped, added + updated)
        answer = {"collection_name": name, "added": added, "updated": updated, "version": version}
        return {**answer, "ignored": len(batch.ids) - added} if mode == "ignore" else answer

    def update_items(
        self,
        name: str,
        ids: Sequence[str],
        *,
        documents: Sequence[str | None] | None = None,
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        embeddings: ArrayLike | Sequence[Any] | None = None,
        uris: Sequence[str | None] | None = None,
        media_types: Sequence[str | None] | None = None,
        if_version: int | None = None,
    ) -> dict[str, Any]:
        """Change only what is given of existing items, all or none; None leaves as it is what it stands for.

        Metadata are merged key by key, on their first level; a key whose new value is None is removed. Returns
        `{"collection_name", "updated", "missing", "version"}`: `updated` counts the items of which something was given,
        and `missing` lists the ids that do not exist. Raises what `add_with_embeddings` does, and CollectionNotFound.
        """
        check_name("collection_name", name)
        batch = checked_batch(ids, documents, metadatas, embeddings, uris, media_types, partial=True)
        return self._update(name, batch, encode_batch(batch), if_version)

    @retried
    def _update(self, name: str, batch: Batch, encoded: bytes, if_version: int | None) -> dict[str, Any]:
        with self._store.pool.writing() as cur:
            _stage(cur, encoded)
            cur.execute(statements.existing_ids, {"name": name, "ids": list(batch.ids)})
            # An embedding that is stored nowhere must not become the dimension of a collection that has none yet.
            bumped = _bump(cur, name, batch if cur.rowcount else None, if_version)
            cur.execute(statements.update_items, {**bumped, "ids": list(batch.ids)})
            changed = dict(cur.fetchall())
            updated = sum(changed.values())
            version = _settled(cur, bumped, updated)
        missing = [id_ for id_ in batch.ids if id_ not in changed]
        return {"collection_name": name, "updated": updated, "missing": missing, "version": version}

    @retried
    def get_items(
        self,
        name: str,
        ids: Sequence[str] | None = None,
        limit: int = 100,
        cursor: str | None = None,
        include: Sequence[str] = SHOWN,
        *,
        where: Mapping[str, Any] | None = None,
        where_document: Mapping[str, Any] | None = None,
        order: Order | None = None,
    ) -> dict[str, Any]:
        """Those of `ids` that exist and match, in the order asked for; without ids, page by page, what matches.

        Returns lists `ids` and those of `include`, `next_cursor`, and the collection's `version`: pass the cursor as
        `cursor` for the next page, in the same order; None at the end. An embedding is a float32 vector, or None where
        plain SQL has written something else. docs/filters.md describes the filters.
        """
        if ids is not None:
            check_ids(ids)
        if limit < 1:
            raise InvalidInput("limit", "must be 1 or more.")
        filter = compiled(where, where_document)
        if ids is not None and (order or cursor is not None):
            field = "order_by or descending" if order else "cursor"
            raise InvalidInput(field, "is for pages; items by id come in the order of ids.")
        order = order or Order()
        parts, values = order.sql(None if cursor is None else order.place(cursor))
        statement = statements.filtered(
            statements.items_after if ids is None else statements.items_by_id, filter, **parts
        )
        values.update(statements.parameters(name, filter), ids=list(ids or ()), limit=limit + 1)
        with self._store.snapshot(name) as (cur, collection, _):
            with self._store.filtering(cur, filter):
                cur.execute(statement, values)
                rows = cur.fetchall()
            if ids is not None:
                found = {row[1]: row for row in rows}
                rows, more = [found[id_] for id_ in dict.fromkeys(ids) if id_ in found], False
            else:
                rows, more = rows[:limit], len(rows) > limit
            keys = [row[0] for row in rows]
            vectors = self._store.embeddings(cur, collection, keys) if "embeddings" in include else {}
        next_cursor = order.cursor(rows[-1][-1], rows[-1][1]) if more else None
        return {**columns(rows, include, vectors), "next_cursor": next_cursor, "version": collection.version}

    @retried
    def delete_items(
        self,
        name: str,
        ids: Sequence[str] | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        where_document: Mapping[str, Any] | None = None,
        dry_run: bool = False,
        if_version: int | None = None,
    ) -> dict[str, Any]:
        """Delete items by id, by filter, or those of `ids` that match; ids that do not exist are passed over.

        Returns `{"deleted": n, "version"}`. With `dry_run` nothing is deleted, only counted, and "dry_run" is in the
        answer.
        """
        check_name("collection_name", name)
        if ids is None and where is None and where_document is None:
            raise InvalidInput("ids", "or where or where_document must say what to delete.")
        if dry_run:
            counted = self.count_items(name, ids, where=where, where_document=where_document)
            _check_version(if_version, counted["version"])
            return {"deleted": counted["count"], "version": counted["version"], "dry_run": True}
        check_ids(ids or ())
        filter = compiled(where, where_document)
        with self._store.pool.writing() as cur:
            bumped = _bump(cur, name, None, if_version)
            values = {**bumped, **statements.parameters(name, filter), "ids": None if ids is None else list(ids)}
            with self._store.filtering(cur, filter):
                cur.execute(statements.filtered(statements.delete_items, filter), values)
                deleted = only_value(cur)
            return {"deleted": deleted, "version": _settled(cur, bumped, deleted)}

    @retried
    def count_items(
        self,
        name: str,
        ids: Sequence[str] | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        where_document: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """`{"count": n, "version"}`: how many items match, of `ids` or of the whole collection."""
        check_ids(ids or ())
        filter = compiled(where, where_document)
        with self._store.snapshot(name) as (cur, collection, _), self._store.filtering(cur, filter):
            return {"count": self._count(cur, name, ids, filter), "version": collection.version}

    def export_collection(self, name: str) -> Generator[dict[str, Any], None, None]:
        """All items in id order, from one snapshot: id, document, metadata, embedding, uri and media_type of each.

        An embedding is a float32 vector or None. Holds a thousand items in memory at a time, and a connection until it
        is exhausted or closed; one connection in four may be taken by exports, PoolExhausted after that.
        """
        if not self._exports.acquire(blocking=False):
            raise PoolExhausted("Too many exports are running. Try again when one has ended, or raise DB_POOL_SIZE.")
        try:
            with self._store.snapshot(name) as (cur, collection, _):
                after = None
                while True:
                    parts, values = Order().sql(after)
                    values.update(name=name, limit=EXPORT_PAGE)
                    cur.execute(statements.filtered(statements.items_after, None, **parts), values)
                    rows = cur.fetchall()
                    embeddings = self._store.embeddings(cur, collection, [row[0] for row in rows])
                    for key, id_, document, text, uri, media_type, _ in rows:
                        yield {
                            "id": id_,
                            "document": document,
                            "metadata": read_metadata(text),
                            "embedding": embeddings.get(key),
                            "uri": uri,
                            "media_type": media_type,
                        }
                    if len(rows) < EXPORT_PAGE:
                        return
                    after = None, rows[-1][1]
        finally:
            self._exports.release()

    def import_items(self, name: str, lines: Iterable[bytes], mode: Mode = "upsert") -> dict[str, Any]:
        """Store items that come as lines of JSON with the fields that `export_collection` gives.

        Up to a thousand lines are one transaction. A line that is wrong is left out and told by its number. Returns
        `{"collection_name", "lines", "added", "updated", "ignored", "failed", "errors", "version"}`; "errors" describes
        the first hundred lines that failed, as `{"line": 1, "detail": "..."}`. Raises what `add_with_embeddings` does,
        but for faults of single lines, and PoolExhausted when one connection in four is busy with imports.
        """
        _check_mode(mode)
        try:
            self.get_collection(name)
        except CollectionNotFound:
            check_collection_name("collection_name", name)  # even if no line turns out to be good
        if not self._imports.acquire(blocking=False):
            raise PoolExhausted("Too many imports are running. Try again when one has ended, or raise DB_POOL_SIZE.")
        try:
            importing = Import(self, name, mode)
            importing.run(lines)
            return importing.answer
        finally:
            self._imports.release()

    # Search

    def query_by_vector(
        self,
        name: str,
        query_embeddings: ArrayLike,
        n_results: int = 10,
        include: Sequence[str] = SHOWN,
        **options: Unpack[SearchOptions],
    ) -> list[dict[str, Any]]:
        """For each query the `n_results` nearest items, best first; equally near ones in id order.

        `query_embeddings` is an array of shape (queries, dimension) or a list of lists. Each result has the lists ids,
        those of `include`, distances and similarities (see `ranking.exact_distances` and `ranking.similarities`), and
        with `group_by` groups, the values at that path. Ranks, texts and metadata come from one snapshot, that of
        `version`, which holds all that was committed before. With `exact` every row is looked at; otherwise a large
        collection is searched at the recall that `get_collection` tells. `options.SearchOptions` names the options,
        docs/search.md describes them. Raises CollectionNotFound, InvalidInput, DimensionMismatch and Overloaded.
        """
        future: Future[list[dict[str, Any]]] = Future()
        return self.submit_query(future, name, query_embeddings, n_results, include, **options).result()

    def submit_query(
        self,
        future: F,
        name: str,
        query_embeddings: ArrayLike,
        n_results: int = 10,
        include: Sequence[str] = SHOWN,
        *,
        as_json: bool = False,
        **options: Unpack[SearchOptions],
    ) -> F:
        """`future`, of concurrent.futures or asyncio, which what `query_by_vector` returns is put into.

        Returns at once. Queries that are submitted while others of the same collection run are answered together after
        them. With `as_json` metadata may come as an orjson.Fragment, which saves parsing and writing it.
        """
        check_name("collection_name", name)
        embeddings = checked_matrix("query_embeddings", query_embeddings)
        query = SearchRequest(embeddings, checked(n_results, include, options, as_json=as_json))
        return self._opened().search.submit(name, query, future)

    @retried
    def query_by_text(
        self,
        name: str,
        query_texts: Sequence[str],
        n_results: int = 10,
        include: Sequence[str] = SHOWN,
        *,
        snippets: bool = False,
        **options: Unpack[Narrowing],
    ) -> list[dict[str, Any]]:
        """For each text, in the syntax of web searches, the items whose documents match best; equals in id order.

        PostgreSQL's full text search in the language of the collection. Each result has ids, those of `include` and
        scores (ts_rank_cd), with `snippets` also the places of the documents that match, as HTML, and the version.
        """
        asked = checked(n_results, include, options)
        _check_query_texts(query_texts)
        with self._store.snapshot(name) as (cur, collection, since):
            searcher = Searcher(self._store, cur, collection, since, asked)
            return [searcher.by_text(text, snippets=snippets) for text in query_texts]

    @retried
    def query_hybrid(
        self,
        name: str,
        query_embeddings: ArrayLike,
        query_texts: Sequence[str],
        n_results: int = 10,
        include: Sequence[str] = SHOWN,
        *,
        k: float = 60,
        alpha: float | None = None,
        candidates: int | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[dict[str, Any]]:
        """For each pair of an embedding and a text the items that both find best, fused; equals in id order.

        Of either side the best `candidates` take part; by default a hundred, or as many as are wanted. Without `alpha`
        they are fused by rank (`fusion.by_rank` with `k`), with it by score: 1 counts the vectors only, 0 the texts
        (`fusion.by_score`). Each result has what that of `query_by_vector` has, and scores, vector_ranks and text_ranks
        (None where a side has not found the item). `max_distance` and `min_similarity` are for the side of the vectors.
        """
        asked = checked(n_results, include, options)
        embeddings = checked_matrix("query_embeddings", query_embeddings)
        _check_query_texts(query_texts)
        if len(query_texts) != len(embeddings):
            raise InvalidInput(
                "query_texts", f"has {len(query_texts)} entries where query_embeddings has {len(embeddings)}."
            )
        if not k >= 0:
            raise InvalidInput("k", "must be 0 or more.")
        if alpha is not None and not 0 <= alpha <= 1:
            raise InvalidInput("alpha", "must be from 0 to 1.")
        if candidates is not None and candidates < asked.depth:
            raise InvalidInput("candidates", f"must be at least n_results and offset together, {asked.depth}.")
        with self._store.snapshot(name) as (cur, collection, since):
            searcher = Searcher(self._store, cur, collection, since, asked)
            return searcher.by_both(embeddings, query_texts, k, alpha, candidates)

    @retried
    def query_similar(
        self,
        name: str,
        ids: Sequence[str] = (),
        embeddings: ArrayLike | None = None,
        n_results: int = 10,
        include: Sequence[str] = SHOWN,
        *,
        negative_ids: Sequence[str] = (),
        negative_embeddings: ArrayLike | None = None,
        **options: Unpack[SearchOptions],
    ) -> dict[str, Any]:
        """The items that are like the items `ids` and the `embeddings`, and unlike the negative ones.

        The examples themselves are left out. The result is one as of `query_by_vector`. Raises ItemNotFound.
        """
        asked = checked(n_results, include, options)
        check_ids(ids)
        check_ids(negative_ids, "negative.ids")
        if not ids and embeddings is None:
            raise InvalidInput("ids", "or embeddings must say what is liked.")
        liked = Examples(ids, None if embeddings is None else checked_matrix("embeddings", embeddings))
        negative = None if negative_embeddings is None else checked_matrix("negative.embeddings", negative_embeddings)
        with self._store.snapshot(name) as (cur, collection, since):
            searcher = Searcher(self._store, cur, collection, since, asked)
            return searcher.by_example(liked, Examples(negative_ids, negative))

    # Shared by the above

    def _describe(self, collection: Collection, count: int) -> dict[str, Any]:
        matrix = self._store.cache.current(collection)
        return {
            "name": collection.name,
            "dimension": collection.dimension,
            "metric": collection.metric,
            "language": collection.language,
            "metadata": collection.metadata,
            "count": count,
            "skipped": None if matrix is None else count - matrix.count,
            "search": None if matrix is None else compression.report(matrix.blocks),
            "version": collection.version,
            "created_at": collection.created_at.astimezone(UTC),
        }

    def _count(self, cur: cursor, name: str, ids: Sequence[str] | None = None, filter: Filter | None = None) -> int:
        values = {**statements.parameters(name, filter), "ids": None if ids is None else list(ids)}
        cur.execute(statements.filtered(statements.count, filter), values)
        return int(only_value(cur))


def _create(
    cur: cursor, name: str, dimension: int | None, metric: Metric, metadata: bytes, language: str = "english"
) -> bool:
    values = {
        "name": name,
        "dimension": dimension,
        "metric": metric,
        "metadata": metadata.decode(),
        "language": language,
    }
    cur.execute(statements.create_collection, values)
    return cur.rowcount == 1


def _check_language(cur: cursor, language: str) -> None:
    check_text("language", language)
    cur.execute(statements.known_language, {"language": language})
    if not cur.rowcount:
        raise InvalidInput(
            "language", "is no text search configuration of PostgreSQL, such as english, german or simple."
        )


def _check_query_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not len(texts):
        raise InvalidInput("query_texts", "must be a list of at least one text.")
    for i, text in enumerate(texts):
        check_query_text(f"query_texts[{i}]", text)
        if not text.strip():
            raise InvalidInput(f"query_texts[{i}]", "must hold a word to search for.")


def _check_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise InvalidInput("mode", f"must be one of {', '.join(get_args(Mode))}.")


def _check_version(expected: int | None, found: int) -> None:
    if expected is not None and expected != found:
        raise VersionMismatch(expected, found)


def _stage(cur: cursor, encoded: bytes) -> None:
    """Copy items into a temporary table: what takes time comes before `_bump` locks the collection's row."""
    cur.execute(statements.stage)
    cur.copy_expert(statements.copy_stage, io.BytesIO(encoded))


def _bump(
    cur: cursor, name: str, batch: Batch | None, if_version: int | None, *, create: bool = False
) -> dict[str, Any]:
    """Lock the collection and raise its version, for a write of `batch`; returns parameters of that write.

    Raises CollectionNotFound, unless the collection is to be created, VersionMismatch, and what does not fit.
    """
    width = batch.embeddings.shape[1] if batch and batch.embeddings is not None else None
    cur.execute(statements.bump, {"name": name, "width": width})
    version, dimension, metric, language = cur.fetchall()[0]
    if version is None and create:
        check_collection_name("collection_name", name)
        _create(cur, name, width, "cosine", b"{}")
        return _bump(cur, name, batch, if_version)
    if version is None:
        raise CollectionNotFound  # or somebody has dropped it in between
    _check_version(if_version, version - 1)
    if batch:
        batch.check_against(dimension, metric)
    return {"name": name, "version": version, "language": language, "now": datetime.now(UTC)}


def _settled(cur: cursor, bumped: Mapping[str, Any], changed: int) -> int:
    """The version after a write that has changed so many rows: one that has changed none raises no version."""
    version: int = bumped["version"]
    if changed:
        return version
    cur.execute(statements.take_back_bump)
    return version - 1
