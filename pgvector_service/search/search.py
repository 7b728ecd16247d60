"""Searches by vector: ranked in memory, answered from one snapshot, together when they arrive together."""

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from psycopg2.extensions import cursor

from pgvector_service.arrays import Rows
from pgvector_service.input.options import Options
from pgvector_service.memory.loading import Collection
from pgvector_service.memory.store import Store, as_array, retried
from pgvector_service.ranking.compression import DEPTHS
from pgvector_service.ranking.distances import similarities
from pgvector_service.ranking.top_k import TopK
from pgvector_service.search import nearest
from pgvector_service.search.batching import Batcher, F
from pgvector_service.search.nearest import Hits, Result
from pgvector_service.search.retrieval import Searcher
from pgvector_service.storage import statements
from pgvector_service.storage.rows import columns

# Searches that share a scan, and those that may be under way or waiting.
TOGETHER = 64
WAITING = 1_024
# Rows as far as the last one are all read, and the first by id are kept, unless there are more than this.
TIED = 100


@dataclass(frozen=True, eq=False)
class SearchRequest:
    """One request: the nearest items to each row of `embeddings` (n, dimension)."""

    embeddings: Rows
    options: Options

    @property
    def kind(self) -> Hashable:
        """Requests of one kind cost about the same and are answered together; many queries are a kind of their own."""
        options = self.options
        alone = len(self.embeddings) > 1 or not options.is_plain
        width = self.embeddings.shape[1]
        return self if alone else (bisect_left(DEPTHS, options.depth), width, options.exact, options.filter)


class Search:
    """The searches of a store. Ranks, texts and metadata of an answer come from one snapshot."""

    def __init__(self, store: Store, threads: int) -> None:
        self._store = store
        self._gather = Batcher(self._answer, threads, TOGETHER, WAITING, store.statement_timeout_s)

    def submit(self, name: str, query: SearchRequest, future: F) -> F:
        """`future`, which a result for each embedding of the query is put into."""
        return self._gather.submit((name, query.kind), query, future)

    def close(self) -> None:
        """Finish the searches that have begun."""
        self._gather.close()

    @retried
    def _answer(self, kind: tuple[str, Hashable], requests: Sequence[SearchRequest]) -> list[list[Result] | Exception]:
        name, _ = kind
        answers = self._from_memory(name, requests)
        return self._from_snapshot(name, requests) if answers is None else answers

    def _from_memory(self, name: str, requests: Sequence[SearchRequest]) -> list[list[Result] | Exception] | None:
        """The usual search: rank what memory holds, then read texts and metadata if it was the latest version.

        One statement and no transaction, so no connection is held while rows are ranked. None when the collection is
        not in memory, or not what the filter matches of it, when it has moved on, does not suit the queries (it may be
        another one by now), or when very many rows compete for the last place.
        """
        cache = self._store.cache
        generation = cache.generation
        known = cache.trusted(name)
        options = requests[0].options
        if known is None or not options.is_plain or any("embeddings" in each.options.include for each in requests):
            return None
        collection, matrix = known.collection, known.filtered.get(options.filter)
        if matrix is None or any(nearest.fault(collection, request.embeddings) for request in requests):
            return None
        top = _ranked(collection, requests)
        for block in matrix.blocks:
            top.offer(block)
        found = _by_request(top, requests)
        if any(len(keys) > request.options.depth + TIED for request, hits in found for keys, _ in hits):
            return None
        keys = _all_keys(found)
        state = {"name": name, "version": collection.version, "epoch": collection.epoch, "keys": as_array(keys)}
        rows = self._store.pool.fetch(statements.items_by_key_if_unchanged, state)
        by_key = {row[0]: row for row in rows}
        if not rows or generation != cache.generation or not by_key.keys() >= keys:
            cache.distrust(name)
            return None
        return [_results(by_key, {}, hits, collection, request.options) for request, hits in found]

    def _from_snapshot(self, name: str, requests: Sequence[SearchRequest]) -> list[list[Result] | Exception]:
        """A search of any kind, within one snapshot; brings memory up to date first."""
        with self._store.snapshot(name) as (cur, collection, since):
            faults = [nearest.fault(collection, request.embeddings) for request in requests]
            good = [request for request, wrong in zip(requests, faults, strict=True) if wrong is None]
            found = iter(self._good_from_snapshot(cur, collection, since, good) if good else [])
            return [next(found) if wrong is None else wrong for wrong in faults]

    def _good_from_snapshot(
        self, cur: cursor, collection: Collection, since: float, requests: Sequence[SearchRequest]
    ) -> list[list[Result]]:
        options = requests[0].options
        if not options.is_plain:
            searcher = Searcher(self._store, cur, collection, since, options)
            return [searcher.by_vectors(request.embeddings) for request in requests]
        top = _ranked(collection, requests)
        nearest.offer_all(self._store, cur, collection, since, top, options.filter)
        found = _by_request(top, requests)
        chosen = [(request, [nearest.cut(cur, *hit, request.options.depth) for hit in hits]) for request, hits in found]
        keys = _all_keys(chosen)
        by_key = self._store.items(cur, keys)
        wanted = sum(min(request.options.depth, len(hit[0])) for request, hits in found for hit in hits)
        if len(by_key) < len(keys) or sum(len(hit[0]) for _, hits in chosen for hit in hits) < wanted:
            raise self._store.outdated(collection.name)
        with_vectors = any("embeddings" in request.options.include for request in requests)
        vectors = self._store.embeddings(cur, collection, sorted(keys)) if with_vectors else {}
        return [_results(by_key, vectors, hits, collection, request.options) for request, hits in chosen]


def _ranked(collection: Collection, requests: Sequence[SearchRequest]) -> TopK:
    """An empty ranking for the queries of all requests."""
    embeddings = np.concatenate([request.embeddings for request in requests])
    k = max(request.options.depth for request in requests)
    return TopK(embeddings, k, collection.metric, exact=requests[0].options.exact)


def _by_request(top: TopK, requests: Sequence[SearchRequest]) -> list[tuple[SearchRequest, list[Hits]]]:
    """For each query of a request its nearest keys, as many as it takes, and all that are as far as the last one."""
    queries_left = count()
    return [
        (request, [top.hits(next(queries_left), request.options.depth) for _ in request.embeddings])
        for request in requests
    ]


def _all_keys(found: Sequence[tuple[SearchRequest, list[Hits]]]) -> set[int]:
    return {key for _, hits in found for keys, _ in hits for key in keys.tolist()}


def _results(
    by_key: Mapping[int, tuple[Any, ...]],
    vectors: Mapping[int, Rows | None],
    hits: Sequence[Hits],
    collection: Collection,
    options: Options,
) -> list[Result]:
    """For each query what was found, nearest first and then by id, as lists."""
    results = []
    for keys, distances in hits:
        rows = [by_key[key] for key in keys.tolist()]
        far = distances.tolist()
        if len(set(far)) < len(far):
            rows = [row for _, row in sorted(zip(far, rows, strict=True), key=lambda hit: (hit[0], hit[1][1]))]
        shown = slice(options.offset, min(options.depth, nearest.near_enough(distances, collection, options)))
        result = columns(rows[shown], options.include, vectors, as_json=options.as_json)
        result["distances"] = far[shown]
        result["similarities"] = similarities(distances[shown], collection.metric).tolist()
        result["version"] = collection.version
        results.append(result)
    return results
