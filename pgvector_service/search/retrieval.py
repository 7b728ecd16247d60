"""Searches that one ranking of vectors does not answer: by text, by both, by example, diverse and grouped ones.

Each takes place in one snapshot: rank candidates, choose among them, read what the answer shows.
"""

import html
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import cursor

from pgvector_service.arrays import Floats, Keys, Rows
from pgvector_service.errors import DatabaseBusy, DimensionMismatch, InvalidInput, ItemNotFound
from pgvector_service.input.filters import at_path
from pgvector_service.input.options import Options
from pgvector_service.memory.loading import Collection
from pgvector_service.memory.store import Store, as_array
from pgvector_service.ranking import fusion
from pgvector_service.ranking.distances import exact_distances, row_norms, similarities
from pgvector_service.ranking.diversity import at_most_each
from pgvector_service.ranking.top_k import TopK
from pgvector_service.search import nearest
from pgvector_service.search.nearest import Result
from pgvector_service.storage import statements
from pgvector_service.storage.rows import columns, read_metadata

# The first look for groups takes so many times the number of hits that are wanted, each next one so many times more.
DEEPER = 8
CANDIDATES = 100
# A mean of unit vectors that is shorter is what rounding has left.
LEAST_NORM = 1e-6


@dataclass(frozen=True, eq=False)
class Ranked:
    """Candidates, best first: keys (n,), relevance (n,), and further columns of the answer (n,).

    `complete`: there are no others.
    """

    keys: Keys
    relevance: Floats
    columns: dict[str, NDArray[Any]]
    complete: bool

    def take(self, chosen: "slice | Sequence[int] | NDArray[np.int64]") -> "Ranked":
        """Only the chosen ones, in that order."""
        index = chosen if isinstance(chosen, slice) else np.array(chosen, np.int64)
        taken = {name: column[index] for name, column in self.columns.items()}
        return replace(self, keys=self.keys[index], relevance=self.relevance[index], columns=taken)


class Searcher:
    """A collection in the snapshot of `cur`, to be searched as `options` say. `since` is a time before it was taken."""

    def __init__(self, store: Store, cur: cursor, collection: Collection, since: float, options: Options) -> None:
        self._store = store
        self._cur = cur
        self._collection = collection
        self._since = since
        self._options = options

    # What can be asked

    def by_vectors(self, embeddings: Rows) -> list[Result]:
        """The nearest to each row."""
        self._check(embeddings)
        hits = self._scanner(embeddings)
        return [self._answer(partial(self._near, partial(hits, i))) for i in range(len(embeddings))]

    def by_example(self, liked: "Examples", disliked: "Examples") -> Result:
        """The nearest to what the liked have in common and the disliked have not; the examples are left out.

        The target is twice the mean of the liked minus that of the disliked (Qdrant's strategy average_vector), of unit
        vectors under cosine.
        """
        keys, target = self._mean("", liked)
        if disliked.ids or disliked.embeddings is not None:
            others, away = self._mean("negative.", disliked)
            if len(away) != len(target):
                raise DimensionMismatch("negative.embeddings[0]", len(target), len(away))
            keys, target = keys | others, 2 * target - away
        with np.errstate(over="ignore"):
            row = target.astype(np.float32)[None, :]
        if not np.isfinite(row).all():
            raise InvalidInput("negative", "is so unlike what is liked that the difference does not fit into float32.")
        if self._collection.metric == "cosine" and row_norms(row)[0] < LEAST_NORM:
            field = "negative" if disliked.ids or disliked.embeddings is not None else "ids"
            raise InvalidInput(field, "cancel out with the other examples, and no direction is left.")
        return self._answer(partial(self._near, partial(self._scanner(row), 0), without=keys))

    def by_text(self, text: str, *, snippets: bool = False) -> Result:
        """The documents that match, by ts_rank_cd."""

        def rank(k: int) -> Ranked:
            keys, scores = self._matching(text, k)
            return Ranked(keys, scores, {"scores": scores}, len(keys) < k)

        return self._answer(rank, text if snippets else None)

    def by_both(
        self, embeddings: Rows, texts: Sequence[str], k: float, alpha: float | None, candidates: int | None
    ) -> list[Result]:
        """For each row and text what is near and what matches, fused: by rank, or by score if there is an `alpha`.

        The best `candidates` of either side take part; without, as many as are wanted, and at least a hundred.
        """
        self._check(embeddings)
        hits = self._scanner(embeddings)

        def rank(i: int, count: int) -> Ranked:
            depth = candidates or max(count, CANDIDATES)
            near = self._near(partial(hits, i), depth)
            matching, text_scores = self._matching(texts[i], depth)
            keys = np.union1d(near.keys, matching)
            distances, scores = np.full((2, len(keys)), np.nan)
            distances[np.searchsorted(keys, near.keys)] = near.columns["distances"]
            scores[np.searchsorted(keys, matching)] = text_scores
            ranks = [fusion.ranks(distances), fusion.ranks(-scores)]
            fused = fusion.by_rank(ranks, k) if alpha is None else fusion.by_score(distances, scores, alpha)
            order = self._ordered(keys, -fused)[:count]
            distances = self._completed(keys, distances, embeddings[i], order)
            found = {
                "distances": distances,
                "similarities": similarities(distances, self._collection.metric),
                "scores": fused,
                "vector_ranks": ranks[0],
                "text_ranks": ranks[1],
            }
            all_found = candidates is not None or (near.complete and len(matching) < depth)
            complete = all_found and len(order) == len(keys)
            return Ranked(keys, fused, found, complete).take(order)

        return [self._answer(partial(rank, i)) for i in range(len(embeddings))]

    # From candidates to an answer

    def _answer(self, rank: Callable[[int], Ranked], highlight: str | None = None) -> Result:
        """`rank(k)` gives the best k candidates; the words of `highlight` are shown in their surroundings."""
        self._check_time()
        options, groups = self._options, None
        if options.mmr:
            ranked = rank(options.mmr.candidates)
            vectors = self._vectors(ranked.keys)
            chosen = options.mmr.chosen(vectors, ranked.relevance, options.depth)
            ranked = ranked.take(chosen[options.offset :])
        elif options.group_by is not None:
            ranked, groups = self._grouped(rank, options.group_by)
        else:
            ranked = rank(options.depth).take(slice(options.offset, options.depth))
        keys = ranked.keys.tolist()
        rows = self._store.items(self._cur, keys)
        if len(rows) < len(keys):
            raise self._store.outdated(self._collection.name)
        include = options.include
        vectors_by_key = self._store.embeddings(self._cur, self._collection, keys) if "embeddings" in include else {}
        result = columns([rows[key] for key in keys], include, vectors_by_key, as_json=options.as_json)
        for name, column in ranked.columns.items():
            result[name] = [_shown(value) for value in column.tolist()]
        for name in ("vector_ranks", "text_ranks"):
            if name in result:
                result[name] = [rank or None for rank in result[name]]
        if groups is not None:
            result["groups"] = groups
        if highlight is not None:
            result["snippets"] = self._snippets(keys, highlight)
        return {**result, "version": self._collection.version}

    def _grouped(self, rank: Callable[[int], Ranked], path: Sequence[str]) -> tuple[Ranked, list[Any]]:
        """The best of each group, and the groups; looks deeper until there are enough."""
        options = self._options
        sql, values = at_path(path)
        k = DEEPER * options.depth
        while True:
            self._check_time()
            ranked = rank(k)
            values["keys"] = as_array(ranked.keys.tolist())
            self._cur.execute(statements.filtered(statements.groups_by_key, None, path=sql), values)
            by_key: dict[int, str | None] = dict(self._cur.fetchall())
            groups = [by_key.get(key) for key in ranked.keys.tolist()]
            kept = at_most_each(groups, options.group_size)
            if len(kept) >= options.depth or ranked.complete:
                shown = kept[options.offset : options.depth]
                return ranked.take(shown), [read_metadata(groups[i]) for i in shown]
            k *= DEEPER

    # Candidates

    def _scanner(self, embeddings: Rows) -> Callable[[int, int], nearest.Hits]:
        """A function of i and k: the k nearest to row i. All rows share a scan, unless k is large."""
        tops: dict[int, TopK] = {}

        def scan(rows: Rows, k: int) -> TopK:
            top = TopK(rows, k, self._collection.metric, exact=self._options.exact)
            nearest.offer_all(self._store, self._cur, self._collection, self._since, top, self._options.filter)
            return top

        def hits(i: int, k: int) -> nearest.Hits:
            if k > CANDIDATES:
                return scan(embeddings[i : i + 1], k).hits(0)
            if k not in tops:
                tops[k] = scan(embeddings, k)
            return tops[k].hits(i)

        return hits

    def _near(self, hits: Callable[[int], nearest.Hits], k: int, without: frozenset[int] = frozenset()) -> Ranked:
        """The k nearest rows that are near enough, of equals the first by id; `hits(k)` gives them and equals."""
        metric, more = self._collection.metric, k + len(without)
        found, far = hits(more)
        keys, distances = nearest.cut(self._cur, found, far, more)
        if len(keys) < min(len(found), more):
            raise self._store.outdated(self._collection.name)
        order = self._ordered(keys, distances)
        keys, distances = keys[order], distances[order]
        complete = len(keys) < more
        if without:
            kept = ~np.isin(keys, list(without))
            keys, distances = keys[kept][:k], distances[kept][:k]
        count = nearest.near_enough(distances, self._collection, self._options)
        alike = similarities(distances[:count], metric)
        found_columns = {"distances": distances[:count], "similarities": alike}
        return Ranked(keys[:count], alike, found_columns, complete or count < len(keys))

    def _matching(self, text: str, k: int) -> tuple[Keys, Floats]:
        """The k documents that match best and their scores; of equals the first by id."""
        filter = self._options.filter
        with self._store.filtering(self._cur, filter):
            values = {**statements.parameters(self._collection.name, filter), "text": text, "limit": k}
            self._cur.execute(statements.filtered(statements.search_text, filter), values)
            rows = self._cur.fetchall()
        return np.array([key for key, _ in rows], np.int64), np.array([score for _, score in rows], np.float64)

    def _ordered(self, keys: Keys, badness: Floats) -> NDArray[np.int64]:
        """The order of the keys by badness, of equals by id."""
        order = np.argsort(badness, kind="stable")
        if len(np.unique(badness)) < len(badness):
            self._cur.execute(statements.ids_by_key, {"keys": as_array(keys.tolist())})
            ids = dict(self._cur.fetchall())
            worst, listed = badness.tolist(), keys.tolist()
            order = np.array(sorted(order.tolist(), key=lambda i: (worst[i], ids.get(listed[i], ""))), np.int64)
        return order

    def _completed(self, keys: Keys, distances: Floats, embedding: Rows, order: NDArray[np.int64]) -> Floats:
        """The distances, with those that the vector side has not found, as far as they are of `order`."""
        distances = distances.copy()
        missing = [i for i in order.tolist() if np.isnan(distances[i])]
        vectors = self._vectors(keys[missing])
        can = _comparable(vectors, self._collection)
        if can.any():
            at = np.array(missing, np.int64)[can]
            distances[at] = exact_distances(vectors[can], embedding, self._collection.metric)
        return distances

    def _check_time(self) -> None:
        """End a request that takes too long with all its queries, or with looking ever deeper for groups."""
        if time.monotonic() > self._since + self._store.statement_timeout_s:
            raise DatabaseBusy(
                "The search takes too long. Ask fewer queries at once, or for fewer candidates or groups."
            )

    def _check(self, embeddings: Rows) -> None:
        wrong = nearest.fault(self._collection, embeddings)
        if wrong:
            raise wrong

    def _vectors(self, keys: Keys) -> Rows:
        """The embeddings of these rows (n, dimension); NaN where there is none of this width."""
        vectors = np.full((len(keys), self._collection.dimension or 1), np.nan, np.float32)
        found = self._store.embeddings(self._cur, self._collection, keys.tolist())
        for i, key in enumerate(keys.tolist()):
            vector = found.get(key)
            if vector is not None and len(vector) == vectors.shape[1]:
                vectors[i] = vector
        return vectors

    def _mean(self, prefix: str, examples: "Examples") -> tuple[frozenset[int], Floats]:
        """The keys of the examples that are items, and the mean of all."""
        self._cur.execute(statements.keys_by_id, {"name": self._collection.name, "ids": list(examples.ids)})
        by_id = dict(self._cur.fetchall())
        for i, id_ in enumerate(examples.ids):
            if id_ not in by_id:
                raise ItemNotFound(f"{prefix}ids[{i}]: {ItemNotFound.__doc__}")
        keys = [by_id[id_] for id_ in examples.ids]
        rows = self._vectors(np.array(keys, np.int64))
        for i in np.flatnonzero(~_comparable(rows, self._collection)).tolist():
            raise InvalidInput(f"{prefix}ids[{i}]", "is an item whose embedding cannot be compared.")
        if examples.embeddings is not None:
            wrong = nearest.fault(self._collection, examples.embeddings)
            if wrong:
                raise wrong.of_field(wrong.field.replace("query_", prefix))
            rows = np.concatenate((rows, examples.embeddings)) if keys else examples.embeddings
        floats = rows.astype(np.float64)
        if self._collection.metric == "cosine":
            floats /= row_norms(rows)[:, None]
        mean: Floats = floats.mean(axis=0)
        return frozenset(keys), mean

    def _snippets(self, keys: Sequence[int], text: str) -> list[str | None]:
        """Of each document the places with the words, as HTML: escaped, and the words in <mark>."""
        self._cur.execute(statements.snippets, {"keys": as_array(keys), "text": text})
        by_key = dict(self._cur.fetchall())
        return [_marked(by_key.get(key)) for key in keys]


@dataclass(frozen=True, slots=True)
class Examples:
    """Items and embeddings that a search goes by."""

    ids: Sequence[str]
    embeddings: Rows | None


def _comparable(rows: Rows, collection: Collection) -> NDArray[np.bool_]:
    """Which rows have a distance to others."""
    usable = np.isfinite(rows).all(axis=1) & (rows.any(axis=1) | np.bool_(collection.metric != "cosine"))
    return np.asarray(usable, np.bool_)


def _shown(value: Any) -> Any:
    """NaN as None."""
    return None if value != value else value


def _marked(snippet: str | None) -> str | None:
    if snippet is None:
        return None
    return html.escape(snippet, quote=False).replace("\x02", "<mark>").replace("\x03", "</mark>")
