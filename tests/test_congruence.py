"""Two engines, one truth: our ranking against the same ranking in plain SQL over the same rows."""

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgvector_db import VectorDB
from pgvector_service.ranking.distances import Metric

# Distances in double precision over the stored REAL[]; ids are compared as in Python by COLLATE "C".
SQL_RANKING = """
    WITH pairs AS (
        SELECT id, array_agg(a::float8 ORDER BY i) AS a, array_agg(q::float8 ORDER BY i) AS q,
               sum(a::float8 * q::float8) AS dot, sum((a::float8 - q::float8) ^ 2) AS squares,
               sum(abs(a::float8 - q::float8)) AS steps,
               sqrt(sum(a::float8 ^ 2)) * sqrt(sum(q::float8 ^ 2)) AS lengths
        FROM vector_documents, unnest(embedding, %(query)s::REAL[]) WITH ORDINALITY AS pair (a, q, i)
        WHERE collection_name = 'c' GROUP BY id
    )
    SELECT id, CASE %(metric)s
        WHEN 'cosine' THEN round((1 - dot / lengths)::numeric, 12)::float8
        WHEN 'euclidean' THEN sqrt(squares)
        WHEN 'manhattan' THEN steps
        ELSE 1 - dot END AS distance
    FROM pairs ORDER BY distance, id COLLATE "C" LIMIT %(k)s
"""


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    metric=st.sampled_from(get_args(Metric)),
    count=st.integers(1, 400),
    width=st.sampled_from([1, 2, 7, 64, 384]),
    k=st.sampled_from([1, 10, 1000]),
    # Small integers make many ties; their sums are exact in float64, so SQL's order of summation does not matter.
    integers=st.booleans(),
)
def test_our_ranking_equals_plain_sql(
    db: VectorDB,
    sql: Callable[..., list[tuple[str, float]]],
    seed: int,
    metric: Metric,
    count: int,
    width: int,
    k: int,
    integers: bool,
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-3, 4, (count, width)) if integers else rng.standard_normal((count, width))
    rows[~rows.any(axis=1)] = 1
    query = (rng.integers(1, 4, width) if integers else rng.standard_normal(width)).astype(np.float32)
    sql("DELETE FROM vector_collections")
    db.create_collection("c", metric=metric)
    ids = [f"{rng.choice(['é', 'Z', 'a', '~', '𝄞'])}{i}" for i in range(count)]
    db.add_with_embeddings("c", ids, None, None, rows.astype(np.float32))

    (ours,) = db.query_by_vector("c", [query], k)
    theirs = sql(SQL_RANKING, {"query": query.tolist(), "metric": metric, "k": k})

    np.testing.assert_allclose(ours["distances"], [distance for _, distance in theirs], rtol=1e-9, atol=3e-12)
    if integers or metric == "cosine":
        assert ours["ids"] == [id_ for id_, _ in theirs]
    else:
        assert sorted(ours["ids"]) == sorted(id_ for id_, _ in theirs)


@pytest.mark.parametrize("metric", get_args(Metric))
def test_pieces_from_the_database_rank_like_rows_in_memory(db: VectorDB, database: str, metric: Metric) -> None:
    rng = np.random.default_rng(3)
    rows = rng.integers(-2, 3, (9000, 16)).astype(np.float32) + np.float32(0.5)
    db.create_collection("c", metric=metric)
    db.add_with_embeddings("c", [f"id{i}" for i in range(9000)], None, None, rows)
    queries = rows[:70] + rng.integers(0, 2, (70, 16)).astype(np.float32)

    with VectorDB(database, cache_max_bytes=100_000) as small:
        assert small.query_by_vector("c", queries, 25) == db.query_by_vector("c", queries, 25)
        assert small.check_health()["memory_bytes"] == 0
        assert small.get_collection("c")["skipped"] is None
    assert db.check_health()["memory_bytes"] > 9000 * 16 * 4
