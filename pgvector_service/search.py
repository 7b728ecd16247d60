"""Searches by vector: ranked in memory, answered from one snapshot, together when they arrive together."""

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg2.extensions import cursor

from pgvector_service import loading, queries
from pgvector_service.cache import Superseded
from pgvector_service.codec import Keys, Rows
from pgvector_service.errors import DimensionMismatch, InvalidInput
from pgvector_service.gather import Gather
from pgvector_service.items import refuse_zeros
from pgvector_service.loading import Collection
from pgvector_service.ranking import Floats, Metric, TopK, similarities
from pgvector_service.store import Store, retried

FIELDS = ("documents", "metadatas", "embeddings")
# Searches that share a scan, and those that may be under way or waiting.
TOGETHER = 64
WAITING = 1_024
# Searches for more than this are kept apart: they make the scan of all others in their batch slower.
FEW = 100

Hits = tuple[Keys, Floats]
Result = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Query:
    """One request: the nearest `n_results` to each row of `embeddings` (n, dimension), with the fields of `include`."""

    embeddings: Rows
    n_results: int
    include: Sequence[str]
    exact: bool

    @property
    def kind(self) -> Hashable:
        """Requests of one kind cost about the same and are answered together; many queries are a kind of their own."""
        return (self.n_results <= FEW, self.exact) if len(self.embeddings) == 1 else self


class Search:
    """The searches of a store. Ranks, texts and metadata of an answer come from one snapshot."""

    def __init__(self, store: Store, threads: int) -> None:
        self._store = store
        self._gather = Gather(self._answer, threads, TOGETHER, WAITING)

    def submit(self, name: str, query: Query) -> "Future[list[Result]]":
        """A result for each embedding of the query, to come."""
        return self._gather.submit((name, query.kind), query)

    def close(self) -> None:
        """Finish the searches that have begun."""
        self._gather.close()

    @retried
    def _answer(self, kind: tuple[str, Hashable], requests: Sequence[Query]) -> list[list[Result] | Exception]:
        name, _ = kind
        answers = self._from_memory(name, requests)
        return self._from_snapshot(name, requests) if answers is None else answers

    def _from_memory(self, name: str, requests: Sequence[Query]) -> list[list[Result] | Exception] | None:
        """The usual search: rank what memory holds, then read texts and metadata if it was the latest version.

        One statement and no transaction, so no connection is held while rows are ranked. None when the collection is
        not in memory, has moved on, does not suit the queries (it may be another one by now), or when several rows
        compete for the last place.
        """
        cache = self._store.cache
        generation = cache.generation
        known = cache.trusted(name)
        if known is None or any("embeddings" in request.include for request in requests):
            return None
        collection, matrix = known
        if any(_fault(collection, request) for request in requests):
            return None
        ranking = _Ranking(collection, requests)
        for block in matrix.blocks:
            ranking.top.offer(block)
        if any(len(keys) > request.n_results for request, hits in ranking.of_each() for keys, _ in hits):
            return None
        keys = _all_keys(ranking.hits())
        state = {"name": name, "version": collection.version, "epoch": collection.epoch, "keys": keys}
        rows = self._store.pool.fetch(queries.items_by_key_if_unchanged, state)
        if not rows or generation != cache.generation or not {key for key, *_ in rows} >= set(keys):
            cache.distrust(name)
            return None
        return [_results(rows, {}, hits, collection.metric, request.include) for request, hits in ranking.of_each()]

    def _from_snapshot(self, name: str, requests: Sequence[Query]) -> list[list[Result] | Exception]:
        """A search of any kind, within one snapshot; brings memory up to date first."""
        with self._store.snapshot(name) as (cur, collection, since):
            faults = [_fault(collection, request) for request in requests]
            good = [request for request, fault in zip(requests, faults, strict=True) if fault is None]
            found = iter(self._good_from_snapshot(cur, collection, since, good) if good else [])
            return [next(found) if fault is None else fault for fault in faults]

    def _good_from_snapshot(
        self, cur: cursor, collection: Collection, since: float, requests: Sequence[Query]
    ) -> list[list[Result]]:
        ranking = _Ranking(collection, requests)
        matrix = self._store.cache.matrix(cur, collection, since)
        if matrix is None:
            loading.stream(cur, collection, ranking.top.offer, self._store.still_alive)
        else:
            for block in matrix.blocks:
                ranking.top.offer(block)
        chosen = [
            (request, [_cut(cur, *hit, request.n_results) for hit in hits]) for request, hits in ranking.of_each()
        ]
        keys = _all_keys([hit for _, hits in chosen for hit in hits])
        cur.execute(queries.items_by_key, {"keys": keys})
        rows = cur.fetchall()
        wanted = sum(min(request.n_results, len(hit[0])) for request, hits in ranking.of_each() for hit in hits)
        if len(rows) < len(keys) or sum(len(hit[0]) for _, hits in chosen for hit in hits) < wanted:
            # Somebody has deleted rows past the triggers. Memory is wrong, so read it anew.
            self._store.cache.forget(collection.name)
            raise Superseded
        with_vectors = any("embeddings" in request.include for request in requests)
        vectors = self._store.embeddings(cur, collection, keys) if with_vectors else {}
        return [_results(rows, vectors, hits, collection.metric, request.include) for request, hits in chosen]


class _Ranking:
    """One TopK for all queries of several requests."""

    def __init__(self, collection: Collection, requests: Sequence[Query]) -> None:
        self._requests = requests
        embeddings = np.concatenate([request.embeddings for request in requests])
        k = max(request.n_results for request in requests)
        self.top = TopK(embeddings, k, collection.metric, exact=requests[0].exact)

    def hits(self) -> list[Hits]:
        """For each query its n_results nearest keys and all that are as far as the last of them."""
        return [hit for _, hits in self.of_each() for hit in hits]

    def of_each(self) -> list[tuple[Query, list[Hits]]]:
        """The same by request."""
        found = []
        first = 0
        for request in self._requests:
            own = range(first, first + len(request.embeddings))
            found.append((request, [_nearest(*self.top.hits(i), request.n_results) for i in own]))
            first = own.stop
        return found


def _nearest(keys: Keys, distances: Floats, k: int) -> Hits:
    """The first k and all that are as far as the k-th."""
    if len(keys) <= k:
        return keys, distances
    end = int(np.searchsorted(distances, distances[k - 1], side="right"))
    return keys[:end], distances[:end]


def _fault(collection: Collection, request: Query) -> Exception | None:
    """What is wrong with asking this of the collection."""
    width = request.embeddings.shape[1]
    if collection.dimension not in (None, width):
        return DimensionMismatch("query_embeddings[0]", collection.dimension, width)
    if collection.metric == "cosine":
        try:
            refuse_zeros("query_embeddings", request.embeddings)
        except InvalidInput as error:
            return error
    return None


def _cut(cur: cursor, keys: Keys, distances: Floats, k: int) -> Hits:
    """The first k of `keys`, which are sorted by distance; of those as far as the k-th, the first by id.

    Fewer when rows of `keys` are no longer in the database.
    """
    if len(keys) <= k:
        return keys, distances
    nearer = int((distances < distances[k - 1]).sum())
    cur.execute(queries.first_by_id, {"keys": keys[nearer:].tolist(), "limit": k - nearer})
    chosen = np.concatenate((keys[:nearer], np.array(cur.fetchall(), np.int64).reshape(-1)))
    return chosen, distances[: len(chosen)]


def _all_keys(hits: Sequence[Hits]) -> list[int]:
    return sorted({key for keys, _ in hits for key in keys.tolist()})


def _results(
    rows: Sequence[tuple[Any, ...]],
    vectors: Mapping[int, Rows | None],
    hits: Sequence[Hits],
    metric: Metric,
    include: Sequence[str],
) -> list[Result]:
    """For each query what was found, nearest first and then by id, as lists."""
    by_key = {row[0]: row for row in rows}
    results = []
    for keys, distances in hits:
        found = zip(distances.tolist(), map(by_key.__getitem__, keys.tolist()), strict=True)
        ranked = [row for _, row in sorted(found, key=lambda hit: (hit[0], hit[1][1]))]
        columns: Result = {
            "ids": [row[1] for row in ranked],
            "documents": [row[2] for row in ranked],
            "metadatas": [row[3] for row in ranked],
            "embeddings": [vectors.get(row[0]) for row in ranked],
            "distances": distances.tolist(),
            "similarities": similarities(distances, metric).tolist(),
        }
        results.append({name: column for name, column in columns.items() if name not in FIELDS or name in include})
    return results
