"""The rows nearest to some queries, within one snapshot: from memory if the collection fits, else from the database."""

from typing import Any

import numpy as np
from psycopg2.extensions import cursor

from pgvector_service.arrays import Floats, Keys, Rows
from pgvector_service.errors import DimensionMismatch, InvalidInput
from pgvector_service.input.embeddings import refuse_zeros
from pgvector_service.input.filters import Filter
from pgvector_service.input.options import Options
from pgvector_service.memory import loading
from pgvector_service.memory.cache import Loaded
from pgvector_service.memory.loading import Collection
from pgvector_service.memory.store import Store
from pgvector_service.ranking.distances import similarities
from pgvector_service.ranking.matrix import Matrix
from pgvector_service.ranking.top_k import TopK
from pgvector_service.storage import statements

Hits = tuple[Keys, Floats]
Result = dict[str, Any]


def offer_all(
    store: Store, cur: cursor, collection: Collection, since: float, top: TopK, filter: Filter | None
) -> None:
    """Put all rows that match to `top`; brings memory up to date first."""
    loaded = store.cache.loaded(cur, collection, since)
    if loaded:
        for block in _selected(store, cur, loaded, filter).blocks:
            top.offer(block)
    elif filter:
        keys = matching(store, cur, collection, filter)
        loading.stream_keys(cur, collection, keys, top.offer, store.still_alive)
    else:
        loading.stream(cur, collection, top.offer, store.still_alive)


def matching(store: Store, cur: cursor, collection: Collection, filter: Filter) -> Keys:
    """The keys of the rows that match."""
    with store.filtering(cur, filter):
        cur.execute(statements.filtered(statements.keys, filter), statements.parameters(collection.name, filter))
        (found,) = cur.fetchall()[0]
    return np.frombuffer(found or b"", ">i8").astype(np.int64)


def cut(cur: cursor, keys: Keys, distances: Floats, k: int) -> Hits:
    """The first k of `keys`, which are sorted by distance; of those as far as the k-th, the first by id.

    Fewer when rows of `keys` are no longer in the database.
    """
    if len(keys) <= k:
        return keys, distances
    nearer = int((distances < distances[k - 1]).sum())
    cur.execute(statements.first_by_id, {"keys": keys[nearer:].tolist(), "limit": k - nearer})
    chosen = np.concatenate((keys[:nearer], np.array(cur.fetchall(), np.int64).reshape(-1)))
    return chosen, distances[: len(chosen)]


def fault(collection: Collection, embeddings: Rows) -> InvalidInput | None:
    """What is wrong with asking for the nearest to these rows in the collection."""
    width = embeddings.shape[1]
    if collection.dimension not in (None, width):
        return DimensionMismatch("query_embeddings[0]", collection.dimension, width)
    if collection.metric == "cosine":
        try:
            refuse_zeros("query_embeddings", embeddings)
        except InvalidInput as error:
            return error
    return None


def near_enough(distances: Floats, collection: Collection, options: Options) -> int:
    """How many of the sorted `distances` keep within the thresholds."""
    if options.max_distance is None and options.min_similarity is None:
        return len(distances)
    near = distances <= (np.inf if options.max_distance is None else options.max_distance)
    if options.min_similarity is not None:
        near &= similarities(distances, collection.metric) >= options.min_similarity
    return int(np.count_nonzero(near))


def _selected(store: Store, cur: cursor, loaded: Loaded, filter: Filter | None) -> Matrix:
    """The rows of the collection that match, remembered or found out."""
    if filter is None:
        return loaded.matrix
    selected = loaded.filtered.get(filter)
    if selected is None:
        selected = loaded.matrix.among(matching(store, cur, loaded.collection, filter))
        loaded.filtered.put(filter, selected)
    return selected
