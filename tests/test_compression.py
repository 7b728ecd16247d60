"""Searches by compressed codes find what a scan finds, at the recall that they tell."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from pgvector_service.ranking import compression
from pgvector_service.ranking.blocks import Block
from pgvector_service.ranking.distances import Metric, exact_distances
from pgvector_service.ranking.matrix import Matrix, merged, rankable
from pgvector_service.ranking.top_k import TopK

pytest.importorskip("faiss")
METRICS = get_args(Metric)
TARGET = 0.999


def made(kind: str, count: int, width: int, seed: int = 0) -> np.ndarray:
    """Seeded rows of some kind, and after them 100 queries of the same kind."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count + 100, width))
    if kind == "clustered":
        rows = rng.standard_normal((40, width))[rng.integers(0, 40, len(rows))] + 0.5 * rows
    elif kind == "duplicated":
        rows = rows[rng.integers(0, 300, len(rows))]
    elif kind == "scaled":
        rows = (rng.standard_normal((40, width))[rng.integers(0, 40, len(rows))] + 0.5 * rows) * np.exp(
            rng.standard_normal((len(rows), 1))
        )
    return rows.astype(np.float32)


def coded(rows: np.ndarray, metric: Metric, target: float = TARGET) -> Block:
    block = rankable(np.arange(len(rows)) * 2, rows, metric)
    return replace(block, codes=compression.compressed(block, Matrix((block,)).sample(256), metric, target, 2))


def distances(
    blocks: tuple[Block, ...], queries: np.ndarray, k: int, metric: Metric, *, exact: bool
) -> list[np.ndarray]:
    top = TopK(queries, k, metric, exact=exact)
    for block in blocks:
        top.offer(block)
    return [top.hits(i)[1][:k] for i in range(len(queries))]


def recall(blocks: tuple[Block, ...], queries: np.ndarray, k: int, metric: Metric) -> float:
    """The share of the nearest k that is found; equals count."""
    exact = distances(blocks, queries, k, metric, exact=True)
    found = distances(blocks, queries, k, metric, exact=False)
    return sum(int((f <= e[-1]).sum()) for f, e in zip(found, exact, strict=True)) / sum(map(len, exact))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["random", "clustered", "duplicated", "scaled"])
def test_codes_find_what_a_scan_finds_at_the_recall_that_they_tell(kind: str, metric: Metric) -> None:
    rows = made(kind, 6_000, 201)  # a width that no code divides
    block, queries = coded(rows[:6_000], metric), rows[6_000:]
    assert isinstance(block.codes, compression.CompressedRows)

    # The target less three standard errors of 1,000 independent hits.
    assert recall((block,), queries, 10, metric) >= TARGET - 3 * np.sqrt(TARGET * (1 - TARGET) / 1_000)
    if 10 in block.codes.needed:
        assert block.codes.recall[10] >= TARGET
        assert compression.report([block])["method"] == "compressed"


def test_real_distances_are_told_for_what_was_found() -> None:
    rows = made("clustered", 6_000, 192)
    block, queries = coded(rows[:6_000], "cosine"), rows[6_000:]
    by_scan = distances((block,), queries, 10, "cosine", exact=True)
    by_codes = distances((block,), queries, 10, "cosine", exact=False)
    same = sum(np.array_equal(a, b) for a, b in zip(by_scan, by_codes, strict=True))
    assert same >= 98


def test_more_results_than_were_measured_are_found_by_a_scan() -> None:
    rows = made("clustered", 6_000, 192)
    block, queries = coded(rows[:6_000], "euclidean"), rows[6_000:6_010]
    assert block.codes
    assert block.codes.wanted(101) is None
    for k in (101, 3_000):
        assert recall((block,), queries, k, "euclidean") == 1.0


def test_codes_that_miss_too_much_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def anything(_: object, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(0, 6_000, (len(queries), count)), np.zeros((len(queries), count), np.float32)

    monkeypatch.setattr(compression.CompressedRows, "candidates", anything)
    block = coded(made("clustered", 6_000, 192)[:6_000], "cosine")
    assert isinstance(block.codes, compression.CompressedRows)
    assert block.codes.needed == {}
    assert block.codes.nbytes == 0
    assert compression.report([block]) == {"method": "exact", "candidates": None, "recall": 1.0}
    assert recall((block,), block.rows[:20], 10, "cosine") == 1.0


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_are_gone_do_not_crowd_out_the_living(metric: Metric) -> None:
    rows = made("clustered", 6_000, 192)
    block, query = coded(rows[:6_000], metric), rows[6_000:6_001]
    top = TopK(query, 2_000, metric, exact=True)
    top.offer(block)
    nearest = top.hits(0)[0]
    for gone in (5, 500, 2_000):
        left = Matrix((block,)).without(nearest[:gone])
        assert recall(left.blocks, query, 10, metric) == 1.0
        found = TopK(query, 10, metric)
        found.offer(left.blocks[0])
        assert not np.isin(found.hits(0)[0], nearest[:gone]).any()


def test_new_rows_are_found_beside_a_block_with_codes() -> None:
    rows = made("clustered", 6_000, 192)
    matrix = Matrix((coded(rows[:6_000], "cosine"),)).plus(rankable(np.array([1, 3]), rows[6_000:6_002], "cosine"))
    top = TopK(rows[6_000:6_002], 1, "cosine")
    for block in matrix.blocks:
        top.offer(block)
    assert [top.hits(i)[0].tolist() for i in range(2)] == [[1], [3]]


def test_no_row_is_found_twice_when_all_are_equal() -> None:
    for metric in METRICS:
        block = coded(np.repeat(made("random", 1, 192)[:1], 6_000, axis=0), metric)
        top = TopK(block.rows[:3], 10, metric)
        top.offer(block)
        for i in range(3):
            keys, distances = top.hits(i)
            assert len(set(keys.tolist())) == len(keys) >= 10
            assert set(distances.tolist()) == {exact_distances(block.rows[:1], block.rows[0], metric)[0]}


def test_few_rows_and_wild_ones_are_not_compressed() -> None:
    rows = made("random", 6_000, 192)[:6_000]
    assert compression.worthwhile(rankable(np.arange(6_000), rows, "cosine"))
    assert not compression.worthwhile(rankable(np.arange(600), rows[:600], "cosine"))
    assert not compression.worthwhile(rankable(np.arange(6_000), rows[:, :10], "cosine"))
    assert not compression.worthwhile(rankable(np.arange(6_000), rows * np.float32(1e25), "cosine"))


def test_a_block_made_beside_the_searches_takes_over_what_has_died_meanwhile() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 8)).astype(np.float32)
    before = Matrix(
        tuple(rankable(np.arange(i, i + 100), rows[i : i + 100], "ip") for i in range(0, 400, 100))
    ).without(np.arange(95, 105))
    old = before.blocks[1:3]
    new = merged(old)
    now = before.without(np.arange(195, 205)).plus(rankable(np.array([1_000]), rows[:1], "ip"))

    after = now.replaced(old, new)
    assert after is not None

    def alive(matrix: Matrix) -> list[int]:
        return sorted(
            key
            for block in matrix.blocks
            for key in block.keys[slice(None) if block.alive is None else block.alive].tolist()
        )

    assert alive(after) == alive(now)
    assert after.replaced(old, new) is None
