"""Door 2, Python: vectors in PostgreSQL, ranked in memory, without HTTP.

with VectorDB("postgresql://localhost/postgres") as db:
    db.add_with_embeddings("papers", ["a", "b"], ["first", "second"], None, [[1.0, 0.0], [0.6, 0.8]])
    db.query_by_vector("papers", [[1.0, 0.1]], n_results=1)
"""

import io
import logging
import os
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, Literal, Unpack, get_args

from numpy.typing import ArrayLike
from psycopg2.extensions import cursor

from pgvector_service import codes, queries
from pgvector_service.errors import (
    CollectionExists,
    CollectionNotFound,
    DatabaseUnavailable,
    InvalidInput,
    ItemsExist,
    PoolExhausted,
    Unavailable,
    VersionMismatch,
)
from pgvector_service.filters import Filter, check_query_text, compiled
from pgvector_service.gather import F
from pgvector_service.items import (
    MAX_DIMENSION,
    Batch,
    check_collection_name,
    check_ids,
    check_text,
    checked_batch,
    checked_json,
    checked_matrix,
)
from pgvector_service.loading import Collection
from pgvector_service.options import Narrowing, SearchOptions, checked
from pgvector_service.pages import Order
from pgvector_service.pool import ConnectionPool
from pgvector_service.ranking import Metric
from pgvector_service.results import columns, read_metadata
from pgvector_service.retrieval import Examples, Snapshot
from pgvector_service.search import Query, Search
from pgvector_service.store import Store, only_value, retried

log = logging.getLogger(__name__)

EXPORT_PAGE = 1_000
PROBE_TIMEOUT_S = 2.0
# An export keeps its connection at the pace of its reader, so no more than one connection in four does that.
EXPORTS_SHARE = 4

# What the items of an answer show if nothing else is said.
SHOWN = ("documents", "metadatas")

Mode = Literal["upsert", "insert", "ignore"]


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
        language: str = "english",
    ) -> dict[str, Any]:
        """Create an empty collection; without `dimension` the first write fixes it. Raises CollectionExists.

        `language` is that of its documents, for full text search: a text search configuration of PostgreSQL (english,
        german, simple, ...; `SELECT cfgname FROM pg_ts_config` names them).
        """
        check_collection_name("name", name)
        if metric not in get_args(Metric):
            raise InvalidInput("metric", f"must be one of {', '.join(get_args(Metric))}.")
        if dimension is not None and not 1 <= dimension <= MAX_DIMENSION:
            raise InvalidInput("dimension", f"must be 1 to {MAX_DIMENSION}.")
        text = checked_json("metadata", metadata or {})
        with self._store.transaction(queries.begin_write) as cur:
            _check_language(cur, language)
            if not _create(cur, name, dimension, metric, text, language):
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
    ) -> dict[str, Any]:
        """Rename a collection, replace its metadata, change its language, or several of these.

        A new name or language rewrites all its rows. Raises CollectionNotFound, and CollectionExists when `new_name` is
        taken.
        """
        check_collection_name("name", name)
        if new_name is None and metadata is None and language is None:
            raise InvalidInput("new_name", "metadata or language must be given, or there is nothing to change.")
        if new_name is not None:
            check_collection_name("new_name", new_name)
        text = None if metadata is None else checked_json("metadata", metadata).decode()
        with self._store.transaction(queries.begin_write) as cur:
            if language is not None:
                _check_language(cur, language)
            if new_name is not None or language is not None:
                self._store.pool.be_patient(cur)
            values = {"name": name, "new_name": new_name, "metadata": text, "language": language}
            cur.execute(queries.update_collection, values)
            if not cur.rowcount:
                raise CollectionNotFound
            if language is not None:
                cur.execute(queries.translate_items, {"name": new_name or name, "language": language})
            cur.execute(queries.collection, {"name": new_name or name})
            collection = Collection(*cur.fetchall()[0])
            description = self._describe(collection, self._count(cur, collection.name))
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
        check_collection_name("collection_name", name)
        if mode not in get_args(Mode):
            raise InvalidInput("mode", f"must be one of {', '.join(get_args(Mode))}.")
        batch = checked_batch(ids, documents, metadatas, embeddings, uris, media_types)
        return self._add(name, batch, batch.encoded(), mode, if_version)

    @retried
    def _add(self, name: str, batch: Batch, encoded: bytes, mode: Mode, if_version: int | None) -> dict[str, Any]:
        with self._store.transaction(queries.begin_write) as cur:
            _stage(cur, encoded)
            bumped = _bump(cur, name, batch, if_version, create=True)
            if mode == "insert":
                cur.execute(queries.existing_ids, {"name": name, "ids": list(batch.ids)})
                existing = {id_ for (id_,) in cur.fetchall()}
                if existing:
                    raise ItemsExist([id_ for id_ in batch.ids if id_ in existing])
            cur.execute(queries.upsert if mode == "upsert" else queries.insert_new, bumped)
            added, updated = cur.fetchall()[0]
        answer = {"collection_name": name, "added": added, "updated": updated, "version": bumped["version"]}
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
        `{"collection_name", "updated", "missing", "version"}`, where `missing` lists the ids that do not exist. Raises
        what `add_with_embeddings` does, and CollectionNotFound.
        """
        check_collection_name("collection_name", name)
        batch = checked_batch(ids, documents, metadatas, embeddings, uris, media_types, partial=True)
        return self._update(name, batch, batch.encoded(), if_version)

    @retried
    def _update(self, name: str, batch: Batch, encoded: bytes, if_version: int | None) -> dict[str, Any]:
        with self._store.transaction(queries.begin_write) as cur:
            _stage(cur, encoded)
            cur.execute(queries.existing_ids, {"name": name, "ids": list(batch.ids)})
            # An embedding that is stored nowhere must not become the dimension of a collection that has none yet.
            bumped = _bump(cur, name, batch if cur.rowcount else None, if_version)
            cur.execute(queries.update_items, {**bumped, "ids": list(batch.ids)})
            updated = {id_ for (id_,) in cur.fetchall()}
        return {
            "collection_name": name,
            "updated": len(updated),
            "missing": [id_ for id_ in batch.ids if id_ not in updated],
            "version": bumped["version"],
        }

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
        plain SQL has written something else. README.md describes the filters.
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
        statement = queries.filtered(queries.items_after if ids is None else queries.items_by_id, filter, **parts)
        values.update(queries.parameters(name, filter), ids=list(ids or ()), limit=limit + 1)
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
        check_collection_name("collection_name", name)
        if ids is None and where is None and where_document is None:
            raise InvalidInput("ids", "or where or where_document must say what to delete.")
        if dry_run:
            counted = self.count_items(name, ids, where=where, where_document=where_document)
            _check_version(if_version, counted["version"])
            return {"deleted": counted["count"], "version": counted["version"], "dry_run": True}
        check_ids(ids or ())
        filter = compiled(where, where_document)
        with self._store.transaction(queries.begin_write) as cur:
            bumped = _bump(cur, name, None, if_version)
            values = {**bumped, **queries.parameters(name, filter), "ids": None if ids is None else list(ids)}
            with self._store.filtering(cur, filter):
                cur.execute(queries.filtered(queries.delete_items, filter), values)
                return {"deleted": only_value(cur), "version": bumped["version"]}

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
                    cur.execute(queries.filtered(queries.items_after, None, **parts), values)
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
        README.md describes them. Raises CollectionNotFound, InvalidInput, DimensionMismatch and Overloaded.
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
        check_collection_name("collection_name", name)
        embeddings = checked_matrix("query_embeddings", query_embeddings)
        query = Query(embeddings, checked(n_results, include, options, as_json=as_json))
        if self._search is None:
            raise DatabaseUnavailable
        return self._search.submit(name, query, future)

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
            snapshot = Snapshot(self._store, cur, collection, since, asked)
            return [snapshot.by_text(text, snippets=snippets) for text in query_texts]

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
        they are fused by rank (`hybrid.by_rank` with `k`), with it by score: 1 counts the vectors only, 0 the texts
        (`hybrid.by_score`). Each result has what that of `query_by_vector` has, and scores, vector_ranks and text_ranks
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
            snapshot = Snapshot(self._store, cur, collection, since, asked)
            return snapshot.by_both(embeddings, query_texts, k, alpha, candidates)

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
            snapshot = Snapshot(self._store, cur, collection, since, asked)
            return snapshot.by_example(liked, Examples(negative_ids, negative))

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
            "search": None if matrix is None else codes.report(matrix.blocks),
            "version": collection.version,
            "created_at": collection.created_at.astimezone(UTC),
        }

    def _count(self, cur: cursor, name: str, ids: Sequence[str] | None = None, filter: Filter | None = None) -> int:
        values = {**queries.parameters(name, filter), "ids": None if ids is None else list(ids)}
        cur.execute(queries.filtered(queries.count, filter), values)
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
    cur.execute(queries.create_collection, values)
    return cur.rowcount == 1


def _check_language(cur: cursor, language: str) -> None:
    check_text("language", language)
    cur.execute(queries.known_language, {"language": language})
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


def _check_version(expected: int | None, found: int) -> None:
    if expected is not None and expected != found:
        raise VersionMismatch(expected, found)


def _stage(cur: cursor, encoded: bytes) -> None:
    """Copy items into a temporary table: what takes time comes before `_bump` locks the collection's row."""
    cur.execute(queries.stage)
    cur.copy_expert(queries.copy_stage, io.BytesIO(encoded))


def _bump(
    cur: cursor, name: str, batch: Batch | None, if_version: int | None, *, create: bool = False
) -> dict[str, Any]:
    """Lock the collection and raise its version, for a write of `batch`; returns parameters of that write.

    Raises CollectionNotFound, unless the collection is to be created, VersionMismatch, and what does not fit.
    """
    width = batch.embeddings.shape[1] if batch and batch.embeddings is not None else None
    cur.execute(queries.bump, {"name": name, "width": width})
    version, dimension, metric, language = cur.fetchall()[0]
    if version is None and create:
        _create(cur, name, width, "cosine", b"{}")
        return _bump(cur, name, batch, if_version)
    if version is None:
        raise CollectionNotFound  # or somebody has dropped it in between
    _check_version(if_version, version - 1)
    if batch:
        batch.check_against(dimension, metric)
    return {"name": name, "version": version, "language": language, "now": datetime.now(UTC)}
