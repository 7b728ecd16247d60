from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import ThreadpoolController

from pgvector_service.ranking.blas import limit_threads, product
from pgvector_service.ranking.blocks import Block
from pgvector_service.ranking.distances import Metric, exact_distances, similarities
from pgvector_service.ranking.matrix import Builder, Matrix, rankable
from pgvector_service.ranking.top_k import TopK

METRICS = get_args(Metric)


def ranked(blocks: tuple[Block, ...], queries: np.ndarray, k: int, metric: Metric) -> list[list[tuple[float, int]]]:
    """What TopK finds, cut to k with equals in order of key."""
    top = TopK(queries, k, metric)
    for block in blocks:
        top.offer(block)
    return [sorted(zip(top.hits(i)[1].tolist(), top.hits(i)[0].tolist(), strict=True))[:k] for i in range(len(queries))]


def naive(keys: np.ndarray, rows: np.ndarray, query: np.ndarray, k: int, metric: Metric) -> list[tuple[float, int]]:
    """All distances in float64, one pair of vectors at a time."""
    found = []
    for key, row in zip(keys.tolist(), rows.astype(np.float64), strict=True):
        q = query.astype(np.float64)
        if metric == "cosine":
            cosine = np.dot(row, q) / (np.linalg.norm(row) * np.linalg.norm(q))
            distance = round(1.0 - min(1.0, max(-1.0, cosine)), 12)
        elif metric == "euclidean":
            distance = np.linalg.norm(row - q)
        elif metric == "manhattan":
            distance = np.abs(row - q).sum()
        else:
            distance = 1.0 - np.dot(row, q)
        found.append((float(distance), key))
    return sorted(found)[:k]


@st.composite
def collections(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, rows and queries of all kinds: spread out, clustered, duplicated, scaled, huge, tiny, of mixed size."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, width = draw(st.integers(1, 300)), draw(st.sampled_from([1, 2, 3, 16, 100]))
    kind = draw(st.sampled_from(["spread", "clustered", "duplicated", "scaled", "huge", "tiny", "mixed"]))
    rows = rng.standard_normal((count, width))
    if kind == "clustered":
        rows = rng.standard_normal((1, width)) + rows * 1e-4
    elif kind == "duplicated":
        rows = rows[rng.integers(0, max(1, count // 20), count)]
    elif kind == "scaled":
        rows = rows[rng.integers(0, max(1, count // 10), count)] * 2.0 ** rng.integers(-6, 7, (count, 1))
    elif kind == "huge":
        rows *= 1e37
    elif kind == "tiny":
        rows *= 1e-37
    elif kind == "mixed":
        rows *= 10.0 ** rng.integers(-30, 31, (count, 1))
    queries = rows[rng.integers(0, count, 3)] + rng.standard_normal((3, width)) * draw(st.sampled_from([0, 1e-5, 1]))
    return rng.permutation(count), rows.astype(np.float32), queries.astype(np.float32)


@given(
    data=collections(), k=st.sampled_from([1, 2, 10, 1000]), metric=st.sampled_from(METRICS), cut=st.integers(1, 300)
)
def test_the_ranking_is_that_of_float64_however_the_rows_are_cut_into_blocks(
    data: tuple[np.ndarray, np.ndarray, np.ndarray], k: int, metric: Metric, cut: int
) -> None:
    keys, rows, queries = data
    if metric == "cosine" and not queries.any(axis=1).all():
        return
    pieces = tuple(rankable(keys[i : i + cut], rows[i : i + cut], metric) for i in range(0, len(rows), cut))
    whole = rankable(keys, rows, metric)

    in_pieces = ranked(pieces, queries, k, metric)
    assert in_pieces == ranked((whole,), queries, k, metric)
    for i, query in enumerate(queries):
        expected = naive(whole.keys, whole.rows, query, k, metric)
        distances = np.array([distance for distance, _ in in_pieces[i]])
        np.testing.assert_allclose(distances, [distance for distance, _ in expected], rtol=1e-9, atol=3e-12)
        # Where the order is clear beyond float64's own rounding, the keys are the same too.
        for position, (distance, key) in enumerate(expected):
            others = np.delete(exact_distances(whole.rows, query, metric), np.flatnonzero(whole.keys == key))
            if not np.isclose(others, distance, rtol=1e-9, atol=1e-11).any():
                assert in_pieces[i][position][1] == key


@pytest.mark.parametrize("metric", METRICS)
def test_a_planted_fault_in_the_scan_is_noticed(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((1, 64)) + rng.standard_normal((2000, 64)) * 1e-5).astype(np.float32)
    block, query = rankable(np.arange(2000), rows, metric), rows[:1] * np.float32(1.0001)
    expected = naive(block.keys, rows, query[0], 10, metric)
    assert [key for _, key in ranked((block,), query, 10, metric)[0]] == [key for _, key in expected]

    monkeypatch.setattr(TopK, "_unit", np.float32(-1e-3))
    assert [key for _, key in ranked((block,), query, 10, metric)[0]] != [key for _, key in expected]


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_are_equally_near_wherever_they_lie(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.standard_normal((1, 37)).astype(np.float32), 101, axis=0)
    query = rng.standard_normal((1, 37)).astype(np.float32)
    blocks = (rankable(np.arange(50), rows[:50], metric), rankable(np.arange(50, 101), rows[50:], metric))
    top = TopK(query, 5, metric)
    for block in blocks:
        top.offer(block)

    keys, distances = top.hits(0)
    assert sorted(keys.tolist()) == list(range(101))
    assert len(set(distances.tolist())) == 1


def test_cosine_sees_no_difference_between_a_vector_and_its_multiples() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(-99, 99, 50).astype(np.float32) * np.array([[1], [3], [7], [0.125], [900]], np.float32)
    distances = exact_distances(rows, rng.standard_normal(50).astype(np.float32), "cosine")

    assert len(set(distances.tolist())) == 1


def test_distances_and_similarities_are_those_of_the_definitions() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 2.0], [-3.0, -4.0]], np.float32)
    query = np.array([3.0, 4.0], np.float32)
    expected: dict[Metric, tuple[list[float], list[float]]] = {
        "cosine": ([0.0, 0.2, 2.0], [1.0, 0.8, -1.0]),
        "euclidean": ([0.0, 13**0.5, 10.0], [1.0, 1 / (1 + 13**0.5), 1 / 11]),
        "manhattan": ([0.0, 5.0, 14.0], [1.0, 1 / 6, 1 / 15]),
        "ip": ([-24.0, -7.0, 26.0], [25.0, 8.0, -25.0]),
    }
    for metric, (distances, likenesses) in expected.items():
        measured = exact_distances(rows, query, metric)
        np.testing.assert_allclose(measured, distances, atol=1e-12)
        np.testing.assert_allclose(similarities(measured, metric), likenesses, atol=1e-12)


def test_inputs_are_left_as_they_were() -> None:
    rng = np.random.default_rng(0)
    rows, queries = rng.standard_normal((50, 8)).astype(np.float32), rng.standard_normal((2, 8)).astype(np.float32)
    before = rows.tobytes(), queries.tobytes()
    for metric in METRICS:
        ranked((rankable(np.arange(50), rows, metric),), queries, 3, metric)

    assert (rows.tobytes(), queries.tobytes()) == before


@given(st.data())
def test_a_matrix_holds_what_a_dictionary_would(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    matrix, model, next_key = Matrix(), dict[int, np.ndarray](), 0
    for _ in range(data.draw(st.integers(1, 15))):
        gone = [key for key in model if rng.random() < data.draw(st.sampled_from([0, 0.05, 0.5, 1]))]
        before = matrix, {key: row.tobytes() for key, row in model.items()}
        matrix = matrix.without(np.array([*gone, 10**9], np.int64))
        for key in gone:
            del model[key]
        count = int(rng.integers(0, 200))
        rows = rng.standard_normal((count, 4)).astype(np.float32)
        matrix = matrix.plus(rankable(np.arange(next_key, next_key + count), rows, "cosine"))
        model.update(zip(range(next_key, next_key + count), rows, strict=True))
        next_key += count

        assert contents(matrix) == {key: row.tobytes() for key, row in model.items()}
        assert matrix.count == len(model)
        assert contents(before[0]) == before[1]  # a matrix in use by another thread does not change
        if model:
            query = rng.standard_normal((1, 4)).astype(np.float32)
            keys, rows = np.array(list(model)), np.array(list(model.values()))
            assert (
                ranked(matrix.blocks, query, 5, "euclidean")[0]
                == ranked((rankable(keys, rows, "euclidean"),), query, 5, "euclidean")[0]
            )


def contents(matrix: Matrix) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for block in matrix.blocks:
        alive = np.ones(len(block.keys), np.bool_) if block.alive is None else block.alive
        for key, row in zip(block.keys[alive].tolist(), block.rows[alive], strict=True):
            assert key not in found
            found[key] = row.tobytes()
    return found


def test_rows_that_come_one_by_one_lie_in_few_blocks() -> None:
    matrix = Matrix()
    for key in range(1000):
        matrix = matrix.plus(rankable(np.array([key]), np.ones((1, 8), np.float32), "cosine"))

    assert len(matrix.blocks) <= 11
    assert matrix.count == 1000


def test_a_matrix_takes_little_more_memory_than_its_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgvector_service.ranking.matrix.BLOCK_BYTES", 2**20)
    builder = Builder(20_000, 384)
    rows = np.random.default_rng(0).standard_normal((20_000, 384)).astype(np.float32)
    for start in range(0, len(rows), 700):
        builder.add(rankable(np.arange(start, min(start + 700, 20_000)), rows[start : start + 700], "cosine"))
    matrix = builder.matrix()

    assert matrix.count == 20_000
    assert len(matrix.blocks) > 20
    assert matrix.nbytes <= 1.02 * rows.nbytes


def test_rows_without_a_distance_are_left_out() -> None:
    rows = np.array([[1, 0], [np.nan, 0], [0, np.inf], [0, 0], [3e38, 3e38]], np.float32)

    assert rankable(np.arange(5), rows, "cosine").keys.tolist() == [0, 4]
    assert rankable(np.arange(5), rows, "euclidean").keys.tolist() == [0, 3, 4]


def test_a_product_uses_no_more_threads_than_it_may() -> None:
    def threads() -> set[int]:
        return {library.num_threads for library in ThreadpoolController().select(user_api="blas").lib_controllers}

    rows = np.ones((60_000, 384), np.float32)
    before = max(threads())
    try:
        for most in (1, before):
            limit_threads(most)
            assert product(rows[:2], rows).shape == (2, 60_000)
            assert most in threads()
            assert product(rows[:1], rows[:10]).tolist() == [[384.0] * 10]  # a small one
            assert 1 in threads()
    finally:
        limit_threads(before)
