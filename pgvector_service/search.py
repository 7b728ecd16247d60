"""Searches by vector: ranked in memory, answered from one snapshot, together when they arrive together."""

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import orjson
from psycopg2.extensions import cursor

from pgvector_service import loading, queries
from pgvector_service.cache import Superseded
from pgvector_service.codec import Keys, Rows
from pgvector_service.codes import DEPTHS
from pgvector_service.errors import DimensionMismatch, InvalidInput
from pgvector_service.gather import F, Gather
from pgvector_service.items import read_json, refuse_zeros
from pgvector_service.loading import Collection
from pgvector_service.ranking import Floats, Metric, TopK, similarities
from pgvector_service.store import Store, retried

# Searches that share a scan, and those that may be under way or waiting.
TOGETHER = 64
WAITING = 1_024
# Rows as far as the last one are all read, and the first by id are kept, unless there are more than this.
TIED = 100
# A number that no float can hold has more digits, and JSON that is nested too deeply has more brackets.
SHORT_JSON = 240

Hits = tuple[Keys, Floats]
Result = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Query:
    """One request: the nearest `n_results` to each row of `embeddings` (n, dimension), with the fields of `include`.

    `exact`: look at every row. `as_json`: metadata may come as an orjson.Fragment.
    """

    embeddings: Rows
    n_results: int
    include: Sequence[str]
    exact: bool
    as_json: bool

    @property
    def kind(self) -> Hashable:
        """Requests of one kind cost about the same and are answered together; many queries are a kind of their own."""
        return (bisect_left(DEPTHS, self.n_results), self.exact) if len(self.embeddings) == 1 else self


class Search:
    """The searches of a store. Ranks, texts and metadata of an answer come from one snapshot."""

    def __init__(self, store: Store, threads: int) -> None:
        self._store = store
        self._gather = Gather(self._answer, threads, TOGETHER, WAITING, store.statement_timeout_s)

    def submit(self, name: str, query: Query, future: F) -> F:
        """`future`, which a result for each embedding of the query is put into."""
        return self._gather.submit((name, query.kind), query, future)

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
        not in memory, has moved on, does not suit the queries (it may be another one by now), or when very many rows
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
        top = _ranked(collection, requests)
        for block in matrix.blocks:
            top.offer(block)
        found = _by_request(top, requests)
        if any(len(keys) > request.n_results + TIED for request, hits in found for keys, _ in hits):
            return None
        keys = _all_keys(found)
        state = {"name": name, "version": collection.version, "epoch": collection.epoch, "keys": _array(keys)}
        rows = self._store.pool.fetch(queries.items_by_key_if_unchanged, state)
        by_key = {row[0]: row for row in rows}
        if not rows or generation != cache.generation or not by_key.keys() >= keys:
            cache.distrust(name)
            return None
        return [_results(by_key, {}, hits, collection.metric, request) for request, hits in found]

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
        top = _ranked(collection, requests)
        matrix = self._store.cache.matrix(cur, collection, since)
        if matrix is None:
            loading.stream(cur, collection, top.offer, self._store.still_alive)
        else:
            for block in matrix.blocks:
                top.offer(block)
        found = _by_request(top, requests)
        chosen = [(request, [_cut(cur, *hit, request.n_results) for hit in hits]) for request, hits in found]
        keys = _all_keys(chosen)
        cur.execute(queries.items_by_key, {"keys": _array(keys)})
        by_key = {row[0]: row for row in cur.fetchall()}
        wanted = sum(min(request.n_results, len(hit[0])) for request, hits in found for hit in hits)
        if len(by_key) < len(keys) or sum(len(hit[0]) for _, hits in chosen for hit in hits) < wanted:
            # Somebody has deleted rows past the triggers. Memory is wrong, so read it anew.
            self._store.cache.forget(collection.name)
            raise Superseded
        with_vectors = any("embeddings" in request.include for request in requests)
        vectors = self._store.embeddings(cur, collection, sorted(keys)) if with_vectors else {}
        return [_results(by_key, vectors, hits, collection.metric, request) for request, hits in chosen]


def _ranked(collection: Collection, requests: Sequence[Query]) -> TopK:
    """An empty ranking for the queries of all requests."""
    embeddings = np.concatenate([request.embeddings for request in requests])
    k = max(request.n_results for request in requests)
    return TopK(embeddings, k, collection.metric, exact=requests[0].exact)


def _by_request(top: TopK, requests: Sequence[Query]) -> list[tuple[Query, list[Hits]]]:
    """For each query of a request its n_results nearest keys and all that are as far as the last of them."""
    queries_left = count()
    return [
        (request, [top.hits(next(queries_left), request.n_results) for _ in request.embeddings]) for request in requests
    ]


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


def _all_keys(found: Sequence[tuple[Query, list[Hits]]]) -> set[int]:
    return {key for _, hits in found for keys, _ in hits for key in keys.tolist()}


def _array(keys: Iterable[int]) -> str:
    """The keys as the text of a PostgreSQL array, in order, so that rows that lie together are read together."""
    return "{" + ",".join(map(str, sorted(keys))) + "}"


def _results(
    by_key: Mapping[int, tuple[Any, ...]],
    vectors: Mapping[int, Rows | None],
    hits: Sequence[Hits],
    metric: Metric,
    request: Query,
) -> list[Result]:
    """For each query what was found, nearest first and then by id, as lists."""
    include, results = request.include, []
    for keys, distances in hits:
        rows = [by_key[key] for key in keys.tolist()]
        far = distances.tolist()
        if len(set(far)) < len(far):
            rows = [row for _, row in sorted(zip(far, rows, strict=True), key=lambda hit: (hit[0], hit[1][1]))]
        rows, far = rows[: request.n_results], far[: request.n_results]
        result: Result = {"ids": [row[1] for row in rows]}
        if "documents" in include:
            result["documents"] = [row[2] for row in rows]
        if "metadatas" in include:
            result["metadatas"] = [_metadata(row[3], request.as_json) for row in rows]
        if "embeddings" in include:
            result["embeddings"] = [vectors.get(row[0]) for row in rows]
        result["distances"] = far
        result["similarities"] = similarities(distances[: request.n_results], metric).tolist()
        results.append(result)
    return results


def _metadata(text: str | None, as_json: bool) -> Any:
    """The metadata; as JSON that need not be parsed only if it is short: see read_json for what else it may hold."""
    if text is None:
        return None
    return orjson.Fragment(text) if as_json and len(text) <= SHORT_JSON else read_json(text)
