"""Searches by text, by both, by example, diverse, grouped and narrowed ones, against plain computations of the same."""

import html
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any, get_args

import numpy as np
import orjson
import pytest
from fastapi.testclient import TestClient

from conftest import ROOT, Service, wait_until
from pgvector_db import VectorDB
from pgvector_service.errors import CollectionNotFound, DatabaseBusy, DimensionMismatch, InvalidInput, ItemNotFound
from pgvector_service.input.filters import compiled
from pgvector_service.input.pages import Order
from pgvector_service.memory import loading
from pgvector_service.memory.filtered import LEAST_BYTES, FilteredRows
from pgvector_service.ranking import compression, fusion
from pgvector_service.ranking.distances import Metric
from pgvector_service.ranking.diversity import Mmr
from pgvector_service.ranking.matrix import Matrix, rankable
from pgvector_service.search.retrieval import Searcher

Sql = Callable[..., list[tuple[Any, ...]]]
Hits = dict[str, Any]
Search = Callable[..., Hits]
METRICS = get_args(Metric)
EXAMPLES = ROOT / "examples"
ALL = 10_000
WORDS = ["fish", "bird", "tree", "stone", "water", "fire", "cloud", "river"]
GONE = object()
GROUPS = ["a", "b", "c", 1, 2.5, True, None, [1, "x"], {"x": 1}, GONE]


@dataclass(frozen=True)
class Sentences:
    """Those of examples/, with embeddings of a real model; `questions` has the embedding of each query by its text."""

    ids: list[str]
    documents: list[str]
    metadatas: list[dict[str, Any]]
    embeddings: np.ndarray
    questions: dict[str, np.ndarray]


@cache
def read_sentences() -> Sentences:
    texts = json.loads((EXAMPLES / "sentences.json").read_bytes())
    sentences = texts["sentences"]
    with np.load(EXAMPLES / "minilm_sentences.npz") as vectors:
        questions = {query["text"]: row for query, row in zip(texts["queries"], vectors["queries"], strict=True)}
        return Sentences(
            [sentence["id"] for sentence in sentences],
            [sentence["text"] for sentence in sentences],
            [{"topic": sentence["topic"], "year": sentence["year"]} for sentence in sentences],
            vectors["sentences"],
            questions,
        )


@pytest.fixture
def sentences(db: VectorDB) -> Sentences:
    """The sentences, stored in the collection c."""
    texts = read_sentences()
    db.add_with_embeddings("c", texts.ids, texts.documents, texts.metadatas, texts.embeddings)
    return texts


def scatter(db: VectorDB, count: int, metric: Metric = "cosine", seed: int = 0) -> np.ndarray:
    """Store random items in c: a third have the vector of another one, their texts and metadata have few values."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, 6)).astype(np.float32)[rng.integers(0, count, count)]
    ids = [f"i{i:05}" for i in rng.permutation(count)]
    documents = [" ".join(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(count)]
    metadatas: list[dict[str, Any]] = []
    for i in range(count):
        group, inner = (GROUPS[rng.integers(len(GROUPS))] for _ in range(2))
        metadata = {"n": i, "group": group, "deep": {"inner": inner} if inner is not GONE else {}}
        metadatas.append({key: value for key, value in metadata.items() if value is not GONE})
    with suppress(CollectionNotFound):
        db.delete_collection("c")
    db.create_collection("c", metric=metric)
    for start in range(3):  # so that the order of ids is not that of storage
        part = slice(start, None, 3)
        db.add_with_embeddings("c", ids[part], documents[part], metadatas[part], rows[part])
    return rows


def near(db: VectorDB, query: np.ndarray, n_results: int = 10, **options: Any) -> Hits:
    (hits,) = db.query_by_vector("c", [query], n_results, ["metadatas"], **options)
    return hits


def match(db: VectorDB, text: str, n_results: int = 10, **options: Any) -> Hits:
    (hits,) = db.query_by_text("c", [text], n_results, ["metadatas"], **options)
    return hits


def both(db: VectorDB, query: np.ndarray, text: str, n_results: int = 10, **options: Any) -> Hits:
    (hits,) = db.query_hybrid("c", [query], [text], n_results, ["metadatas"], **options)
    return hits


def alike(db: VectorDB, ids: Sequence[str], n_results: int = 10, **options: Any) -> Hits:
    return db.query_similar("c", ids, None, n_results, ["metadatas"], **options)


def measured(rows: np.ndarray, query: np.ndarray, metric: Metric) -> np.ndarray:
    """The distances by their definitions."""
    a, b = rows.astype(np.float64), query.astype(np.float64)
    distances: np.ndarray
    if metric == "cosine":
        distances = 1 - a @ b / (np.linalg.norm(a, axis=1) * np.linalg.norm(b))
    elif metric == "ip":
        distances = 1 - a @ b
    else:
        distances = np.linalg.norm(a - b, 2 if metric == "euclidean" else 1, axis=1)
    return distances


def pages(search: Search, size: int, total: int) -> list[str]:
    return [id_ for offset in range(0, total, size) for id_ in search(n_results=size, offset=offset)["ids"]]


def every_search(db: VectorDB, query: np.ndarray, text: str, liked: Sequence[str]) -> dict[str, Search]:
    """Each kind of search with each kind of option."""
    for_all: dict[str, dict[str, Any]] = {
        "plain": {},
        "filtered": {"where": {"n": {"$gte": 20}}, "where_document": {"$not_contains": "stone"}},
        "grouped": {"group_by": "group", "group_size": 2},
        "grouped and filtered": {"group_by": "deep.inner", "where": {"n": {"$lt": 60}}},
    }
    for_vectors = {
        **for_all,
        "diverse": {"mmr": Mmr(0.4, 70)},
        "diverse and filtered": {"mmr": Mmr(0.7, 50), "where": {"n": {"$gte": 10}}},
        "cut": {"min_similarity": 0.1, "max_distance": 0.8},
    }
    searches: dict[str, Search] = {}
    for name, options in for_vectors.items():
        searches[f"vector, {name}"] = partial(near, db, query, **options)
        searches[f"similar, {name}"] = partial(alike, db, liked, **options)
        searches[f"hybrid by rank, {name}"] = partial(both, db, query, text, **options)
        searches[f"hybrid by score, {name}"] = partial(both, db, query, text, alpha=0.4, **options)
    for name, options in for_all.items():
        searches[f"text, {name}"] = partial(match, db, text, **options)
    return searches


# Text


def test_words_are_found_in_any_form_and_in_the_syntax_of_web_searches(db: VectorDB) -> None:
    documents = ["One red fish", "The fish is red", "A bird", "Fishing boats", None]
    db.add_with_embeddings("c", list("abcde"), documents, None, np.ones((5, 2)))
    expected = {
        "fishes": "abd",
        "FISH": "abd",
        "red fish": "ab",
        '"red fish"': "a",
        "bird or boat": "cd",
        "fish -red": "d",
        '-"red fish"': "bcd",
        "fish -red or bird": "cd",
        "the is a": "",
        "fis": "",
        "'; --": "",
    }
    assert {text: "".join(sorted(match(db, text)["ids"])) for text in expected} == expected
    for nothing in ("", " \n"):
        with pytest.raises(InvalidInput, match=r"^query_texts\[0\]"):
            match(db, nothing)


def test_texts_are_ranked_as_plain_sql_ranks_them(db: VectorDB, sentences: Sentences, sql: Sql) -> None:
    rng = np.random.default_rng(0)
    words = sorted({word for document in sentences.documents for word in re.findall(r"[A-Za-z]{4,}", document)})
    texts = [" or ".join(rng.choice(words, 12)) for _ in range(20)] + ["the sun", "ice or water or heat"]
    results = db.query_by_text("c", texts, ALL, where={"year": {"$gte": 2018}})
    ties = 0
    for text, hits in zip(texts, results, strict=True):
        found = sql(
            "SELECT id, ts_rank_cd(to_tsvector('english', document), query) AS score, document"
            " FROM vector_documents, websearch_to_tsquery('english', %s) AS query"
            " WHERE to_tsvector('english', document) @@ query AND (metadata ->> 'year')::int >= 2018"
            ' ORDER BY score DESC, id COLLATE "C"',
            (text,),
        )
        assert list(zip(hits["ids"], hits["scores"], hits["documents"], strict=True)) == found
        ties += len(found) - len({score for _, score, _ in found})
    assert ties > 20


def test_the_language_of_the_collection_decides_what_matches(db: VectorDB, sql: Sql) -> None:
    words = ["Hauses", "Häuser", "housing", "houses", "das", "the", "am"]
    db.create_collection("c", language="german")
    db.add_with_embeddings("c", ["a", "b"], ["Alte Häuser am See", "Das Haus"], None, [[1, 0], [1, 1]])
    insert = "INSERT INTO vector_documents (id, collection_name, document, embedding) VALUES (%s, 'c', %s, '{1,0}')"
    seen = []
    for step, language in enumerate(["german", "english", "simple", "german"]):
        if step:
            db.update_collection("c", language=language)
        for writes in (False, True):
            if writes:
                sql(insert, (f"sql{step}", "The houses"))
                sql("UPDATE vector_documents SET document = 'A house, das Haus' WHERE id = 'sql0'")
                db.add_with_embeddings("c", ["upsert"], ["Hauses house"], None, [[1, 0]])
                db.update_items("c", ["a"], documents=[f"{step} alte Häuser am See"])
            for word in words:
                expected = sql(
                    "SELECT id FROM vector_documents WHERE to_tsvector(%(in)s::regconfig, document) @@"
                    " websearch_to_tsquery(%(in)s::regconfig, %(word)s) ORDER BY id",
                    {"in": language, "word": word},
                )
                matches = {"$matches": word}
                for _ in range(2):
                    assert [(id_,) for id_ in sorted(match(db, word)["ids"])] == expected
                    found = near(db, np.array([1, 0]), where_document=matches)["ids"]
                    assert [(id_,) for id_ in sorted(found)] == expected
                assert db.count_items("c", where_document=matches)["count"] == len(expected)
        seen.append([match(db, word)["ids"] for word in words])

    assert len({str(found) for found in seen[:3]}) == 3
    with pytest.raises(InvalidInput, match=r"^language"):
        db.update_collection("c", language="klingon")


def test_snippets_are_html_that_only_marks_what_was_found(db: VectorDB) -> None:
    documents = [
        "1 < 2 & fishes > birds",
        "<script>alert('fish')</script> \"fish\" <b>boat</b>",
        "a &lt;fish&gt; &amp; </mark>",
        "no such word " * 300 + "then a fish " + "and more " * 300,
    ]
    db.add_with_embeddings("c", list("abcd"), documents, None, np.ones((4, 2)))
    hits = match(db, "fish", snippets=True)

    assert sorted(hits["ids"]) == list("abcd")
    for id_, snippet in zip(hits["ids"], hits["snippets"], strict=True):
        marked = re.findall("<mark>(.*?)</mark>", snippet)
        plain = re.sub("<mark>|</mark>", "", snippet)
        assert set(marked) == {"fishes"} if id_ == "a" else {"fish"}
        assert not set("<>") & set(plain)
        assert len(plain) < 500
        assert {word for word in re.findall(r"\w+", html.unescape(plain)) if len(word) > 2} <= set(
            re.findall(r"\w+", documents["abcd".index(id_)])
        )
    assert "snippets" not in match(db, "fish")


def test_very_long_documents_are_found_by_their_beginning(db: VectorDB) -> None:
    rng = np.random.default_rng(0)
    documents = [
        " ".join([first, *(f"{stem}{number:x}" for number in rng.integers(0, 2**60, 150_000).tolist())])
        for first, stem in (("Whale", "w"), ("Кит", "ю"))
    ]
    assert all(len(document.encode()) > 2.5e6 for document in documents)
    db.add_with_embeddings("c", ["latin", "cyrillic"], documents, None, np.ones((2, 2)))

    assert match(db, "whales")["ids"] == ["latin"]
    assert match(db, documents[1].split()[100])["ids"] == ["cyrillic"]
    assert match(db, "кит", snippets=True)["snippets"][0].startswith("<mark>Кит</mark>")
    assert db.count_items("c", where_document={"$contains": documents[0][-10:]})["count"] == 1


def test_any_text_can_be_asked_for(db: VectorDB) -> None:
    db.add_with_embeddings("c", ["a"], ["fish"], None, [[1, 0]])
    rule = "-" * 40
    for text in (
        rule,
        f"{rule} fish",
        *(f"-{sign}" * 40 + "a" for sign in "!&|() "),
        '"' * 99,
        "or " * 999,
        "(((&|!:*",
        "\\'\\",
        "x" * 9_999,
        "a/b-c." * 999,
        "-a " * 999,
    ):
        assert match(db, text)["ids"] in ([], ["a"])
        assert db.count_items("c", where_document={"$matches": text})["count"] in (0, 1)


# Hybrid


def test_each_side_finds_what_the_other_cannot_and_together_they_find_more(db: VectorDB, sentences: Sentences) -> None:
    def first(question: str, text: str) -> tuple[list[str], list[str], list[str]]:
        embedding = sentences.questions[question]
        found = near(db, embedding, 3), match(db, text, 3), both(db, embedding, text, 3)
        return found[0]["ids"], found[1]["ids"], found[2]["ids"]

    vector, text, fused = first("putting money aside for old age", "1347")
    assert "history-01" not in vector
    assert text == ["history-01"]
    assert "history-01" in fused

    vector, text, fused = first("can my landlord throw me out", "can my landlord throw me out")
    assert text == []
    assert vector == fused
    assert fused[0] == "law-01"

    vector, text, fused = first("why did so many people die in medieval Europe", "influenza or viruses")
    assert vector[0] == "history-01"
    assert text[0] == "medicine-03"
    assert fused[0] == "history-07"


def ranks(badness: dict[str, float]) -> dict[str, int]:
    return {id_: 1 + sum(other < value for other in badness.values()) for id_, value in badness.items()}


def scaled(goodness: dict[str, float]) -> dict[str, float]:
    low, high = min(goodness.values(), default=0), max(goodness.values(), default=0)
    return {id_: (value - low) / (high - low) if high > low else 1.0 for id_, value in goodness.items()}


def check_fusion(
    db: VectorDB,
    query: np.ndarray,
    text: str,
    *,
    k: float = 60,
    alpha: float | None = None,
    n_results: int = 30,
    where: dict[str, Any] | None = None,
    **cuts: float,
) -> Hits:
    """Assert that a hybrid search gives what follows from a search by vector and one by text."""
    by_vector, by_text = near(db, query, 100, where=where, **cuts), match(db, text, 100, where=where)
    distances = dict(zip(by_vector["ids"], by_vector["distances"], strict=True))
    matches = dict(zip(by_text["ids"], by_text["scores"], strict=True))
    everything = near(db, query, ALL)
    all_distances = dict(zip(everything["ids"], everything["distances"], strict=True))
    all_similarities = dict(zip(everything["ids"], everything["similarities"], strict=True))
    vector_ranks, text_ranks = ranks(distances), ranks({id_: -score for id_, score in matches.items()})
    if alpha is None:
        sides = vector_ranks, text_ranks
        scores = {i: sum(1 / (k + side[i]) for side in sides if i in side) for i in {*distances, *matches}}
    else:
        nearness, match_scores = scaled({id_: -distance for id_, distance in distances.items()}), scaled(matches)
        scores = {
            i: alpha * nearness.get(i, 0.0) + (1 - alpha) * match_scores.get(i, 0.0) for i in {*distances, *matches}
        }
    order = sorted(scores, key=lambda id_: (-scores[id_], id_))[:n_results]

    hits = both(db, query, text, n_results, k=k, alpha=alpha, where=where, **cuts)
    assert hits["ids"] == order
    assert hits["scores"] == pytest.approx([scores[id_] for id_ in order], rel=1e-12)
    assert hits["scores"] == sorted(hits["scores"], reverse=True)
    assert hits["vector_ranks"] == [vector_ranks.get(id_) for id_ in order]
    assert hits["text_ranks"] == [text_ranks.get(id_) for id_ in order]
    assert hits["distances"] == [all_distances.get(id_) for id_ in order]
    assert hits["similarities"] == [all_similarities.get(id_) for id_ in order]
    return hits


def random_texts(rng: np.random.Generator, count: int) -> list[str]:
    return [" or ".join(rng.choice(WORDS, 2, replace=False)) for _ in range(count)] + ["nothing", "-fish"]


def test_fusion_is_what_follows_from_the_two_searches(db: VectorDB, sql: Sql) -> None:
    rng = np.random.default_rng(1)
    lonely = 0
    for metric in METRICS:
        scatter(db, 250, metric)
        sql("INSERT INTO vector_documents (id, collection_name, document) VALUES ('sql', 'c', 'fish fish bird bird')")
        for text in random_texts(rng, 4):
            query = rng.standard_normal(6)
            cut = near(db, query, 20)["distances"][-1]
            choices: list[dict[str, Any]] = [
                {},
                {"k": 0.0},
                {"where": {"n": {"$lt": 120}}, "n_results": 60},
                {"max_distance": cut},
                {"alpha": 0.0},
                {"alpha": 0.3},
                {"alpha": 1.0, "where": {"n": {"$gte": 30}}},
                {"alpha": 0.5, "max_distance": cut},
            ]
            for options in choices:
                hits = check_fusion(db, query, text, **options)
                lonely += None in hits["vector_ranks"] or None in hits["text_ranks"]
                if "where" in options:
                    matching = db.count_items("c", hits["ids"], where=options["where"])
                    assert matching["count"] == len(hits["ids"]) > 0
    assert lonely > 40


def test_real_questions_are_fused_alike(db: VectorDB, sentences: Sentences) -> None:
    for question, embedding in sentences.questions.items():
        text = " or ".join(question.split())
        for alpha in (None, 0.5):
            check_fusion(db, embedding, text, alpha=alpha, where={"year": {"$lt": 2023}})
            check_fusion(db, embedding, text, alpha=alpha, n_results=100)


def test_a_fusion_that_prefers_the_worst_is_noticed(db: VectorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = scatter(db, 50)
    check_fusion(db, rows[0], "fish")
    right = fusion.ranks
    monkeypatch.setattr(fusion, "ranks", lambda badness: right(-badness))
    with pytest.raises(AssertionError):
        check_fusion(db, rows[0], "fish")


def test_the_ends_of_alpha_are_the_two_searches(db: VectorDB, sentences: Sentences) -> None:
    embedding, text = sentences.questions["which composer could not hear"], "water or heat or ice or years or night"
    vector, words = near(db, embedding, 50), match(db, text, 50)
    assert both(db, embedding, text, 50, alpha=1)["ids"] == vector["ids"]
    better = [id_ for id_, score in zip(words["ids"], words["scores"], strict=True) if score > words["scores"][-1]]
    assert len(better) > 2
    assert both(db, embedding, text, 50, alpha=0)["ids"][: len(better)] == better


def test_an_item_without_embedding_is_found_by_its_text(db: VectorDB, sentences: Sentences, sql: Sql) -> None:
    sql("INSERT INTO vector_documents (id, collection_name, document) VALUES ('bare', 'c', 'Zeppelin')")
    embedding = sentences.questions["sourdough starter"]
    for options in ({}, {"mmr": Mmr(0.5)}, {"alpha": 0.1}, {"group_by": "topic"}):
        hits = both(db, embedding, "zeppelins", **options)
        at = hits["ids"].index("bare")
        columns = ("distances", "similarities", "vector_ranks", "text_ranks")
        assert [hits[column][at] for column in columns] == [None, None, None, 1]
        assert "cooking-01" in hits["ids"]
    with pytest.raises(InvalidInput, match=r"^ids\[0\]"):
        alike(db, ["bare"])


def test_an_empty_collection_answers_every_search_with_nothing(db: VectorDB, sql: Sql) -> None:
    db.create_collection("c")
    query = np.array([1.0, 2.0, 3.0])
    assert near(db, query, mmr=Mmr())["ids"] == near(db, query, group_by="x")["ids"] == match(db, "fish")["ids"] == []
    assert both(db, query, "fish")["ids"] == []
    assert db.query_similar("c", embeddings=[query.tolist()])["ids"] == []
    sql("INSERT INTO vector_documents (id, collection_name, document) VALUES ('bare', 'c', 'fish')")
    assert both(db, query, "fish")["ids"] == ["bare"]


# Similar


def test_similar_items_lie_around_what_the_examples_have_in_common(db: VectorDB) -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((80, 6)).astype(np.float32)
    ids = [f"i{i:02}" for i in range(80)]
    for step in range(100):
        metric = METRICS[step % len(METRICS)]
        if step < len(METRICS):
            db.create_collection(metric, metric=metric)
            db.add_with_embeddings(metric, ids, None, [{"n": i} for i in range(80)], rows)
        numbers = rng.permutation(80)
        liked, disliked = np.split(numbers[: rng.integers(1, 6)], [rng.integers(1, 4)])
        given = rng.standard_normal((step // 4 % 3, 6)).astype(np.float32)
        directions = [np.concatenate(part).astype(np.float64) for part in ((rows[liked], given), (rows[disliked],))]
        if metric == "cosine":
            directions = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in directions]
        target = directions[0].mean(axis=0)
        if len(disliked):
            target = 2 * target - directions[1].mean(axis=0)
        distances = measured(rows, target, metric)
        examples = {*liked.tolist(), *disliked.tolist()}
        expected = [i for i in np.argsort(distances).tolist() if i not in examples and i >= 10]

        hits = db.query_similar(
            metric,
            [ids[i] for i in liked],
            given if len(given) else None,
            15,
            negative_ids=[ids[i] for i in disliked],
            where={"n": {"$gte": 10}},
        )
        assert hits["ids"] == [ids[i] for i in expected[:15]]
        np.testing.assert_allclose(hits["distances"], distances[expected[:15]], rtol=1e-5, atol=1e-5)


def test_an_example_that_is_no_item_is_named_by_its_place(db: VectorDB, sentences: Sentences) -> None:
    liked = sentences.ids[:1]
    with pytest.raises(ItemNotFound, match=r"^ids\[1\]: "):
        alike(db, [*liked, "nope"])
    with pytest.raises(ItemNotFound, match=r"^negative\.ids\[0\]: "):
        alike(db, liked, negative_ids=["nope"])
    wrong: dict[str, dict[str, Any]] = {
        "ids": {"ids": []},
        "embeddings[0]": {"embeddings": [[1.0]]},
        "negative.embeddings[0]": {"ids": liked, "negative_embeddings": [[0.0] * 384]},
        "ids[0]": {"ids": [""]},
        "negative.ids[1]": {"ids": liked, "negative_ids": [*liked, ""]},
    }
    for field, examples in wrong.items():
        with pytest.raises(InvalidInput) as error:
            db.query_similar("c", **examples)
        assert error.value.field == field


def test_examples_that_cancel_out_have_no_direction(db: VectorDB) -> None:
    opposites = [[1.0, 2.0], [-3.0, -6.0]], [[0.0, 1.0], [0.0, -1.0]]
    but_for_rounding = [[1.0, 0.0], [-0.5, 3**0.5 / 2]], [[0.5, 3**0.5 / 2]]
    for liked, disliked in (opposites, but_for_rounding):
        db.add_with_embeddings("c", ["a", "b"], None, None, liked)
        with pytest.raises(InvalidInput):
            alike(db, ["a", "b"], negative_embeddings=disliked)


def test_examples_of_huge_numbers_are_refused_or_measured(db: VectorDB) -> None:
    db.create_collection("c", metric="euclidean")
    db.add_with_embeddings("c", list("abc"), None, None, np.array([[3e38, 0], [-3e38, 0], [1, 1]]))
    with suppress(InvalidInput):
        assert np.isfinite(alike(db, ["a"], negative_ids=["b"])["distances"]).all()


# Diverse


def literal_mmr(vectors: np.ndarray, relevance: Sequence[float], diversity: float, count: int) -> list[int]:
    units = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    low, high = min(relevance), max(relevance)
    chosen: list[int] = []
    while len(chosen) < min(count, len(vectors)):
        worth = {}
        for i in range(len(vectors)):
            if i not in chosen:
                redundancy = max((float(units[i] @ units[j]) for j in chosen), default=0.0)
                worth[i] = (1 - diversity) * (relevance[i] - low) / (high - low) - diversity * redundancy
        chosen.append(max(worth, key=lambda i: (worth[i], -i)))
    return chosen


def test_mmr_is_what_its_formula_says(db: VectorDB, sentences: Sentences) -> None:
    embeddings = dict(zip(sentences.ids, sentences.embeddings, strict=True))
    for text, query in list(sentences.questions.items())[:4]:
        searches: dict[str, Search] = {
            "similarities": partial(near, db, query, where={"year": {"$gte": 2017}}),
            "scores": partial(both, db, query, " or ".join(text.split())),
        }
        for relevance, search in searches.items():
            candidates = search(n_results=40)
            vectors = np.array([embeddings[id_] for id_ in candidates["ids"]])
            for diversity in (0, 0.2, 0.5, 0.8, 1):
                expected = literal_mmr(vectors, candidates[relevance], diversity, 12)
                hits = search(n_results=12, mmr=Mmr(diversity, 40))
                for column in candidates.keys() - {"version"}:
                    assert hits[column] == [candidates[column][i] for i in expected], (column, diversity)
                if diversity == 0:
                    assert hits["ids"] == candidates["ids"][:12]


def test_mmr_spreads_over_near_duplicates(db: VectorDB) -> None:
    rng = np.random.default_rng(3)
    centers = np.linalg.qr(rng.standard_normal((16, 16)))[0][:5]
    rows = np.repeat(centers, 20, axis=0) + 1e-3 * rng.standard_normal((100, 16))
    db.add_with_embeddings("c", [f"{i // 20}-{i:02}" for i in range(100)], None, None, rows)
    query = centers.T @ np.array([1, 0.5, 0.5, 0.5, 0.5])

    def clusters(mmr: Mmr | None) -> set[str]:
        return {id_[0] for id_ in near(db, query, 5, mmr=mmr)["ids"]}

    assert clusters(None) == {"0"}
    assert clusters(Mmr(0.7, 100)) == set("01234")


# Groups


def grouped(whole: Hits, path: str, size: int) -> dict[str, list[Any]]:
    """The first `size` of each group of a ranking, and their groups."""
    seen: Counter[str] = Counter()
    kept: dict[str, list[Any]] = {"ids": [], "groups": []}
    for id_, value in zip(whole["ids"], whole["metadatas"], strict=True):
        for key in path.split("."):
            value = value.get(key, GONE) if isinstance(value, dict) else GONE
        group = "gone" if value is GONE else json.dumps(value, sort_keys=True)
        seen[group] += 1
        if seen[group] <= size:
            kept["ids"].append(id_)
            kept["groups"].append(None if value is GONE else value)
    return kept


def test_groups_are_the_best_of_each_value_in_the_whole_ranking(db: VectorDB) -> None:
    rows = scatter(db, 95)
    text = " or ".join(WORDS[:5])
    searches: dict[str, Search] = {
        "vector": partial(near, db, rows[0]),
        "filtered": partial(near, db, rows[1], where={"n": {"$gte": 30}}),
        "cut": partial(near, db, rows[2], max_distance=0.9),
        "text": partial(match, db, text),
        "by rank": partial(both, db, rows[3], text),
        "by score": partial(both, db, rows[4], text, alpha=0.6),
        "similar": partial(alike, db, near(db, rows[5], 2)["ids"]),
    }
    for name, search in searches.items():
        whole = search(n_results=95)
        for path, size, wanted in (("group", 1, 3), ("group", 1, 50), ("deep.inner", 2, 7), ("n", 1, 40), ("x", 4, 9)):
            expected = grouped(whole, path, size)
            hits = search(n_results=wanted, group_by=path, group_size=size)
            assert hits["ids"] == expected["ids"][:wanted], (name, path)
            assert hits["groups"] == expected["groups"][:wanted], (name, path)


def test_a_group_of_thousands_does_not_hide_the_others(db: VectorDB) -> None:
    rng = np.random.default_rng(4)
    count = 4_000
    rows = np.array([1, 0, 0]) + 0.1 * rng.standard_normal((count, 3))
    rows[-6:] = np.array([-1, 0, 0]) + 0.1 * rng.standard_normal((6, 3))
    metadatas: list[dict[str, Any]] = [{"g": "crowd"}] * (count - 6) + [{"g": f"rare {i // 2}"} for i in range(6)]
    db.add_with_embeddings("c", [f"i{i:04}" for i in range(count)], ["fish"] * count, metadatas, rows)
    query = np.array([1, 0, 0])
    expected = grouped(near(db, query, count, exact=True), "g", 2)

    assert near(db, query, 10, group_by="g", group_size=2)["ids"] == expected["ids"]
    assert near(db, query, 4, offset=4, group_by="g", group_size=2)["ids"] == expected["ids"][4:]
    assert set(match(db, "fish", 4, group_by="g")["groups"]) == {"crowd", "rare 0", "rare 1", "rare 2"}
    assert set(both(db, query, "fish", 4, group_by="g")["groups"]) == {"crowd", "rare 0", "rare 1", "rare 2"}


def test_keys_with_a_dot_and_missing_metadata_are_grouped_too(db: VectorDB) -> None:
    metadatas: list[dict[str, Any] | None] = [{"a.b": 1}, {"a": {"b": 1}}, None, {"a": 5}, {"a.b": 1}]
    db.add_with_embeddings("c", list("pqrst"), None, metadatas, [[1, i / 9] for i in range(5)])

    by_key = near(db, np.array([1, 0]), group_by=r"a\.b")
    assert (by_key["ids"], by_key["groups"]) == (["p", "q"], [1, None])
    by_path = near(db, np.array([1, 0]), group_by="a.b")
    assert (by_path["ids"], by_path["groups"]) == (["p", "r"], [1, None])  # "a.b" itself, or b in a


def test_equal_numbers_are_one_group(db: VectorDB) -> None:
    db.add_with_embeddings("c", ["a", "b"], None, [{"y": 1}, {"y": 1.0}], [[1, 0], [1, 1]])
    assert db.count_items("c", where={"y": 1})["count"] == 2
    assert near(db, np.array([1, 0]), group_by="y")["ids"] == ["a"]


# Options


def test_pages_are_pieces_of_the_whole_in_every_search(db: VectorDB) -> None:
    rows = scatter(db, 90)
    for name, search in every_search(db, rows[0], "fish or bird or tree", near(db, rows[1], 3)["ids"]).items():
        whole = search(n_results=45)
        assert whole["ids"], name
        assert pages(search, 9, 45) == whole["ids"], name
        past = search(n_results=5, offset=3)
        for column in whole.keys() - {"version"}:
            assert past[column] == whole[column][3:8], (name, column)


def test_pages_of_a_hybrid_search_with_one_number_of_candidates_are_pieces_of_the_whole(
    db: VectorDB, sentences: Sentences
) -> None:
    choices: list[tuple[int, int, dict[str, Any]]] = [
        (6, 36, {"group_by": "topic", "group_size": 3}),
        (50, 150, {}),
        (50, 150, {"alpha": 0.5}),
    ]
    for size, total, options in choices:
        for embedding in list(sentences.questions.values())[:3]:
            search = partial(both, db, embedding, "war or ice or light or water", candidates=150, **options)
            assert pages(search, size, total) == search(n_results=total)["ids"], options
    with pytest.raises(InvalidInput, match="candidates: must be at least n_results and offset together, 151"):
        search(n_results=100, offset=51)


def test_thresholds_cut_the_ranking_where_they_say(db: VectorDB) -> None:
    query = np.random.default_rng(5).standard_normal(6)
    for metric in METRICS:
        scatter(db, 60, metric)
        whole = near(db, query, 60)
        far, like = np.array(whole["distances"]), np.array(whole["similarities"])
        np.testing.assert_allclose(like, 1 - far if metric in ("cosine", "ip") else 1 / (1 + far), atol=1e-11)
        for at, step in product((0, 7, 30, 59), (-1e-9, 0, 1e-9)):
            most, least, middle = float(far[at] + step), float(like[at] + step), float(like[40])
            choices: list[tuple[dict[str, Any], np.ndarray]] = [
                ({"max_distance": most}, far <= most),
                ({"min_similarity": least}, like >= least),
                ({"max_distance": most, "min_similarity": middle}, (far <= most) & (like >= middle)),
            ]
            for options, kept in choices:
                expected = whole["ids"][: int(kept.sum())]
                for more in ({}, {"where": {"n": {"$gte": 0}}}, {"mmr": Mmr(0, 60)}):
                    assert near(db, query, 60, **options, **more)["ids"] == expected
                assert near(db, query, 10, offset=5, **options)["ids"] == expected[5:15]


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes for collections that are small enough for a test."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(compression, "MIN_ROWS", 700)
    monkeypatch.setattr(compression, "MIN_BYTES", 0)


@dataclass(frozen=True)
class Large:
    """A collection that is searched by codes: 5,000 rows in 30 clusters, in c, with metadata n, place and cluster.

    `n` is random, `place` the rank of a row by its distance to the first query. Of the queries, the first half lie
    anywhere, the others near the first one.
    """

    rows: np.ndarray
    queries: np.ndarray
    metadatas: list[dict[str, int]]
    own_clusters: list[int]
    metric: Metric

    def recall(self, db: VectorDB, where: dict[str, Any] | None, queries: range | None = None) -> float:
        """The share of the nearest ten that is found, after a check of all else that must hold."""
        filter = {} if where is None else where
        ((key, condition),) = filter.items() or (("n", {"$gte": 0}),)
        ((operator, operand),) = condition.items()
        compare = {"$lt": np.less, "$gte": np.greater_equal, "$ne": np.not_equal}[operator]
        numbers = np.flatnonzero(compare([metadata[key] for metadata in self.metadatas], operand))
        matching = {f"i{number:04}" for number in numbers}
        asked = self.queries[queries or range(len(self.queries))].astype(np.float32)
        exact = db.query_by_vector("c", asked, 10, [], exact=True, where=where)
        together = db.query_by_vector("c", asked, 10, [], where=where)
        alone = [near(db, query, 10, where=where) for query in asked]
        found = []
        for query, best, *searches in zip(asked, exact, together, alone, strict=True):
            distances = measured(self.rows[numbers], query, self.metric)
            order = np.argsort(distances)[:10]
            assert best["ids"] == [f"i{number:04}" for number in numbers[order]]
            np.testing.assert_allclose(best["distances"], distances[order], rtol=1e-9, atol=1e-11)
            for hits in searches:
                assert len(set(hits["ids"])) == len(hits["ids"]) == len(order)
                assert set(hits["ids"]) <= matching
                found += [id_ in best["ids"] for id_ in hits["ids"]]
        return float(np.mean(found)) if found else 1.0


@pytest.fixture
def large(db: VectorDB, early: None, metric: Metric) -> Large:
    rng = np.random.default_rng(6)
    count, width = 5_000, 24
    centers = rng.standard_normal((30, width))
    clusters = rng.integers(0, 30, count + 30)
    every = centers[clusters] + 0.4 * rng.standard_normal((count + 30, width))
    rows, queries = every[:count].astype(np.float32), every[count:]
    queries[15:] = queries[0] + 0.05 * rng.standard_normal((15, width))
    places = np.argsort(np.argsort(measured(rows, queries[0], metric)))
    columns = zip(rng.permutation(count).tolist(), places.tolist(), clusters.tolist(), strict=False)
    metadatas = [{"n": n, "place": place, "cluster": cluster} for n, place, cluster in columns]
    db.create_collection("c", metric=metric)
    db.add_with_embeddings("c", [f"i{i:04}" for i in range(count)], None, metadatas, rows)
    near(db, queries[0])
    wait_until(lambda: db.get_collection("c")["search"]["method"] == "compressed")
    return Large(rows, queries, metadatas, clusters[count : count + 15].tolist(), metric)


@pytest.mark.parametrize("metric", METRICS)
def test_filtered_searches_by_codes_find_what_a_scan_finds(db: VectorDB, large: Large) -> None:
    filters: list[dict[str, Any] | None] = [
        None,
        *({"n": {"$lt": most}} for most in (0, 7, 25, 500, 2_500, 4_750)),
        {"place": {"$lt": 500}},
        {"place": {"$gte": 4_500}},
        {"place": {"$gte": 2_500}},
        {"place": {"$gte": 200}},
    ]
    recall = {str(where): large.recall(db, where) for where in filters}
    not_near = [
        large.recall(db, {"cluster": {"$ne": own}}, range(i, i + 1)) for i, own in enumerate(large.own_clusters)
    ]
    recall["other clusters only"] = float(np.mean(not_near))
    assert min(recall.values()) >= 0.99, recall


@pytest.mark.parametrize("metric", ["cosine"])
def test_exact_searches_need_no_codes(db: VectorDB, large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    query = large.queries[1]
    searches: list[Search] = [
        partial(near, db, query),
        partial(near, db, query, where={"n": {"$lt": 3_000}}),
        partial(near, db, query, mmr=Mmr(0.5, 50)),
        partial(near, db, query, group_by="cluster", group_size=5),
        partial(both, db, query, "fish"),
        partial(alike, db, ["i0001"]),
    ]
    before = [search(exact=True) for search in searches]

    def refuse(*_: object) -> None:
        raise LookupError("the codes were asked")

    monkeypatch.setattr(compression.CompressedRows, "candidates", refuse)
    for search, found in zip(searches, before, strict=True):
        assert search(exact=True) == found, search
        with pytest.raises(LookupError):
            search()


def test_remembered_filters_are_forgotten_when_the_collection_changes(db: VectorDB, sql: Sql) -> None:
    rng = np.random.default_rng(7)
    model: dict[str, bool] = {}

    def put(id_: str, keep: bool) -> None:
        db.add_with_embeddings("c", [id_], None, [{"keep": keep}], [[1, 0]])
        model[id_] = keep

    def update(id_: str, keep: bool) -> None:
        db.update_items("c", [id_], metadatas=[{"keep": keep}])
        model[id_] = keep

    def delete(id_: str, _: bool) -> None:
        db.delete_items("c", [id_])
        del model[id_]

    def delete_by_sql(id_: str, _: bool) -> None:
        sql("DELETE FROM vector_documents WHERE id = %s", (id_,))
        del model[id_]

    def insert_by_sql(id_: str, keep: bool) -> None:
        sql(
            "INSERT INTO vector_documents (id, collection_name, metadata, embedding) VALUES (%s, 'c', %s, '{1,0}')",
            (f"sql {id_} {len(model)}", json.dumps({"keep": keep})),
        )
        model[f"sql {id_} {len(model)}"] = keep

    def update_by_sql(id_: str, keep: bool) -> None:
        sql("UPDATE vector_documents SET metadata = %s WHERE id = %s", (json.dumps({"keep": keep}), id_))
        model[id_] = keep

    changes = [put, update, delete, delete_by_sql, insert_by_sql, update_by_sql]
    for i in range(12):
        put(f"i{i}", i % 2 == 0)
    for step in range(60):
        changes[step % len(changes)](str(rng.choice(sorted(model))), bool(rng.random() < 0.5))
        for keep in (True, False):
            expected = sorted(id_ for id_, kept in model.items() if kept is keep)
            for _ in range(2):
                assert near(db, np.array([1, 0]), 100, where={"keep": keep})["ids"] == expected, step


def test_memory_for_remembered_filters_is_bounded(db: VectorDB) -> None:
    rows = scatter(db, 50)
    near(db, rows[0])
    before = db.check_health()["memory_bytes"]
    for i in range(30):
        where = {"n": {"$in": [*range(50), str(i) * 50_000]}}
        assert near(db, rows[0], 50, where=where)["ids"] == near(db, rows[0], 50)["ids"]
        assert db.check_health()["memory_bytes"] <= before + LEAST_BYTES
    assert db.check_health()["memory_bytes"] > before + LEAST_BYTES / 2

    matrix = Matrix((rankable(np.arange(20_000), np.ones((20_000, 2), np.float32), "ip"),))
    selections = FilteredRows(matrix)
    filters = [compiled({"n": i}, None) for i in range(200)]
    for filter in filters:
        assert filter
        selections.put(filter, matrix.among(np.arange(10)))
        assert selections.get(filters[0]) is not None  # what is asked for stays
    held = [filter for filter in filters if selections.get(filter)]
    assert held == [filters[0], *filters[-len(held) + 1 :]]
    assert 8 < len(held) <= LEAST_BYTES / 20_000
    assert 20_000 * len(held) <= selections.nbytes <= LEAST_BYTES


def test_a_collection_too_large_for_memory_gives_the_same_answers(
    db: VectorDB, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "KEYS_AT_ONCE", 7)
    rows = scatter(db, 90)
    liked = near(db, rows[1], 3)["ids"]
    with VectorDB(database, cache_max_bytes=1_000) as small:
        from_memory = every_search(db, rows[0], "fish or bird", liked)
        streamed = every_search(small, rows[0], "fish or bird", liked)
        for name in from_memory:
            for offset in (0, 4):
                assert streamed[name](n_results=9, offset=offset) == from_memory[name](n_results=9, offset=offset), name
        many: dict[str, Any] = {"where": {"n": {"$gte": 40}}, "include": ["embeddings", "documents"]}
        assert str(small.query_by_vector("c", rows, 5, **many)) == str(db.query_by_vector("c", rows, 5, **many))
        assert small.check_health()["collections_in_memory"] == 0


# Many at once


def test_a_batch_answers_what_single_searches_answer(db: VectorDB) -> None:
    scatter(db, 120)
    rng = np.random.default_rng(8)
    queries, texts = rng.standard_normal((8, 6)), random_texts(rng, 6)
    options: list[dict[str, Any]] = [
        {},
        {"where": {"n": {"$lt": 70}}},
        {"group_by": "group", "group_size": 2},
        {"offset": 3, "where_document": {"$matches": "fish or cloud"}},
    ]
    for more in [*options, {"mmr": Mmr(0.5, 30)}, {"max_distance": 0.7}]:
        batch = db.query_by_vector("c", queries, 8, **more)
        assert batch == [db.query_by_vector("c", [query], 8, **more)[0] for query in queries]
        for alpha in (None, 0.5):
            fused = db.query_hybrid("c", queries, texts, 8, alpha=alpha, **more)
            pairs = zip(queries, texts, strict=True)
            assert fused == [db.query_hybrid("c", [query], [text], 8, alpha=alpha, **more)[0] for query, text in pairs]
    for more in [*options, {"snippets": True}]:
        found = db.query_by_text("c", texts, 8, **more)
        assert found == [db.query_by_text("c", [text], 8, **more)[0] for text in texts]


def test_searches_with_different_options_at_once_do_not_mix(db: VectorDB) -> None:
    scatter(db, 300)
    rng = np.random.default_rng(9)
    asked: list[Callable[[], Hits]] = []
    for _ in range(200):
        options: dict[str, Any] = {"offset": int(rng.integers(0, 30)), "exact": bool(rng.random() < 0.3)}
        if rng.random() < 0.5:
            options["where"] = {"n": {"$lt": int(rng.choice([50, 200]))}}
        if rng.random() < 0.5:
            options["max_distance"] = float(rng.random())
        if rng.random() < 0.5:
            options["min_similarity"] = float(rng.random()) - 0.5
        asked.append(partial(near, db, rng.standard_normal(6), int(rng.integers(1, 40)), **options))
    one_by_one = [search() for search in asked]
    assert len({len(hits["ids"]) for hits in one_by_one}) > 20
    with ThreadPoolExecutor(16) as pool:
        for _ in range(2):
            assert list(pool.map(lambda search: search(), asked)) == one_by_one


# HTTP

BODIES: dict[str, dict[str, Any]] = {
    "/search/vector": {"query_embedding": [1.0, 0.0]},
    "/search/vector/batch": {"query_embeddings": [[1.0, 0.0]]},
    "/search/text": {"query_text": "fish"},
    "/search/text/batch": {"query_texts": ["fish"]},
    "/search/hybrid": {"query_embedding": [1.0, 0.0], "query_text": "fish"},
    "/search/hybrid/batch": {"query_embeddings": [[1.0, 0.0]], "query_texts": ["fish"]},
    "/search/similar": {"ids": ["a"]},
}
# What is wrong with a body, and the field that the refusal names.
OF_ALL: list[tuple[dict[str, Any], str]] = [
    ({"collection_name": GONE}, "collection_name"),
    ({"nope": 1}, "nope"),
    ({"n_results": 0}, "n_results"),
    ({"n_results": 10_001}, "n_results"),
    ({"n_results": 9_999, "offset": 2}, "n_results and offset together"),
    ({"offset": -1}, "offset"),
    ({"group_by": "t", "group_size": 0}, "group_size"),
    ({"group_by": 1}, "group_by"),
    ({"where": {"n": {"$nope": 1}}}, "where.n.$nope"),
    ({"where_document": {}}, "where_document"),
    ({"include": ["distances"]}, "include[0]"),
]
OF_VECTORS: list[tuple[dict[str, Any], str]] = [
    ({"mmr": {}, "group_by": "t"}, "group_by"),
    ({"mmr": {"diversity": 1.1}}, "mmr.diversity"),
    ({"mmr": {"candidates": 5}, "n_results": 4, "offset": 2}, "mmr.candidates"),
    ({"mmr": {"candidates": 1_001}}, "mmr.candidates"),
    ({"mmr": {"nope": 1}}, "mmr.nope"),
    ({"exact": 1}, "exact"),
    ({"max_distance": "0.5"}, "max_distance"),
]
OF_HYBRID: list[tuple[dict[str, Any], str]] = [({"alpha": 1.5}, "alpha"), ({"alpha": -0.1}, "alpha"), ({"k": -1}, "k")]
OF_ONE: dict[str, list[tuple[dict[str, Any], str]]] = {
    "/search/vector": [
        *OF_VECTORS,
        ({"query_embedding": GONE}, "query_embedding"),
        ({"query_embedding": [1.0, 0.0, 0.0]}, "query_embedding"),
        ({"query_embedding": [0.0, 0.0]}, "query_embedding"),
        ({"query_embedding": [1.0, "x"]}, "query_embedding[1]"),
        ({"query_text": "fish"}, "query_text"),
    ],
    "/search/vector/batch": [
        *OF_VECTORS,
        ({"query_embeddings": []}, "query_embeddings"),
        ({"query_embeddings": [[1.0, 0.0], [1.0]]}, "query_embeddings[1]"),
        ({"query_embeddings": [[1.0, 0.0]] * 11, "n_results": 10_000}, "queries times n_results"),
    ],
    "/search/text": [
        ({"query_text": GONE}, "query_text"),
        ({"query_text": " "}, "query_text"),
        ({"query_text": "\0"}, "query_text"),
        ({"query_text": "x" * 10_001}, "query_text"),
        ({"mmr": {}}, "mmr"),
        ({"snippets": "yes"}, "snippets"),
    ],
    "/search/text/batch": [
        ({"query_texts": []}, "query_texts"),
        ({"query_texts": ["fish", ""]}, "query_texts[1]"),
        ({"query_texts": "fish"}, "query_texts"),
    ],
    "/search/hybrid": [
        *OF_VECTORS,
        *OF_HYBRID,
        ({"query_text": GONE}, "query_text"),
        ({"query_text": ""}, "query_text"),
        ({"query_embedding": [1.0, 0.0, 0.0]}, "query_embedding"),
        ({"query_embedding": [0.0, 0.0]}, "query_embedding"),
    ],
    "/search/hybrid/batch": [
        *OF_VECTORS,
        *OF_HYBRID,
        ({"query_texts": ["fish", "bird"]}, "query_texts"),
        ({"query_embeddings": [[1.0]]}, "query_embeddings[0]"),
    ],
    "/search/similar": [
        *OF_VECTORS,
        ({"ids": []}, "ids"),
        ({"ids": ["a"] * 10_001}, "ids"),
        ({"embeddings": [[1.0]]}, "embeddings[0]"),
        ({"negative": {"embeddings": [[1.0, 2.0, 3.0]]}}, "negative.embeddings[0]"),
        ({"negative": {"nope": 1}}, "negative.nope"),
    ],
}


def test_every_search_names_the_field_that_is_wrong_and_tells_the_version(client: TestClient) -> None:
    items = {"ids": ["a", "b"], "documents": ["A fish", "A bird"], "embeddings": [[1.0, 0.0], [0.0, 1.0]]}
    assert client.post("/items", json={"collection_name": "c", **items}).status_code == 201
    for route, body in BODIES.items():
        body = {"collection_name": "c", **body}
        answer = client.post(route, json=body)
        assert answer.status_code == 200, answer.text
        for result in answer.json().get("results", [answer.json()]):
            assert result["version"] == 1
            assert result["ids"][0] == ("b" if "similar" in route else "a")
        for wrong, field in [*OF_ALL, *OF_ONE[route]]:
            sent = {name: value for name, value in {**body, **wrong}.items() if value is not GONE}
            answer = client.post(route, json=sent)
            assert answer.status_code == 422, (route, wrong)
            assert answer.json()["detail"].split(": ")[0] == field, (route, wrong)
        assert client.post(route, json={**body, "collection_name": "nope"}).status_code == 404
    answer = client.post("/search/similar", json={"collection_name": "c", "ids": ["a", "nope"]})
    assert answer.status_code == 404
    assert answer.json()["code"] == "item_not_found"
    assert answer.json()["detail"].startswith("ids[1]: ")


def test_every_option_of_every_route_reaches_the_search(client: TestClient, db: VectorDB) -> None:
    rows = scatter(db, 60)
    queries, texts = rows[:2].tolist(), ["fish or bird", "stone -water"]
    liked = near(db, rows[2], 2)["ids"]
    for_all: list[dict[str, Any]] = [
        {},
        {"n_results": 3},
        {"offset": 2},
        {"where": {"n": {"$lt": 30}}},
        {"where_document": {"$contains": "tree"}},
        {"group_by": "group"},
        {"group_by": "group", "group_size": 2},
        {"include": ["uris", "embeddings"]},
    ]
    for_vectors = [
        *for_all,
        {"min_similarity": 0.9},
        {"max_distance": 0.4},
        {"mmr": {"diversity": 1, "candidates": 20}},
    ]
    for_texts = [*for_all, {"snippets": True}]
    for_both = [*for_vectors, {"k": 1}, {"alpha": 0.2}]
    negative = [{"ids": near(db, rows[3], 1)["ids"]}, {"embeddings": [[1, 2, 3, 4, 5, 6]]}]
    for_similar = [*for_vectors, {"embeddings": queries[:1]}, *({"negative": examples} for examples in negative)]

    def similar(**options: Any) -> Hits:
        for name, examples in options.pop("negative", {}).items():
            options[f"negative_{name}"] = examples
        return db.query_similar("c", liked, **options)

    def one(search: Callable[..., list[Hits]]) -> Callable[..., Hits]:
        return lambda **options: search(**options)[0]

    def several(search: Callable[..., list[Hits]]) -> Callable[..., dict[str, Any]]:
        return lambda **options: {"results": search(**options)}

    vector, text, fused = db.query_by_vector, db.query_by_text, db.query_hybrid
    doors: dict[str, tuple[list[dict[str, Any]], dict[str, Any], Callable[..., Any]]] = {
        "vector": (for_vectors, {"query_embedding": queries[0]}, one(partial(vector, "c", queries[:1]))),
        "vector/batch": (for_vectors, {"query_embeddings": queries}, several(partial(vector, "c", queries))),
        "text": (for_texts, {"query_text": texts[0]}, one(partial(text, "c", texts[:1]))),
        "text/batch": (for_texts, {"query_texts": texts}, several(partial(text, "c", texts))),
        "hybrid": (
            for_both,
            {"query_embedding": queries[0], "query_text": texts[0]},
            one(partial(fused, "c", queries[:1], texts[:1])),
        ),
        "hybrid/batch": (
            for_both,
            {"query_embeddings": queries, "query_texts": texts},
            several(partial(fused, "c", queries, texts)),
        ),
        "similar": (for_similar, {"ids": liked}, similar),
    }
    for route, (choices, body, search) in doors.items():
        seen: list[Any] = []
        for options in choices:
            answer = client.post(f"/search/{route}", json={"collection_name": "c", **body, **options}).json()
            given = {**options, "mmr": Mmr(**options["mmr"])} if "mmr" in options else options
            expected = search(**given)
            assert answer == orjson.loads(orjson.dumps(expected, option=orjson.OPT_SERIALIZE_NUMPY)), (route, options)
            assert answer not in seen, (route, options)
            seen.append(answer)


# Examples


@pytest.fixture(scope="module")
def service(server: str) -> Iterator[Service]:
    with Service(DATABASE_URL=server) as service:
        yield service


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("filters", r"two topics, not of 2025 +20 match +travel-03 .*"),
        ("text_search", r"  0\.10  databases-06 .* no <mark>transaction</mark> can see any more\."),
        ("hybrid_search", r"  history-07 .* \(vector 2, text 2\)"),
        ("similar_items", r"  0\.40  history-07 .*The influenza of 1918 .*"),
        ("diverse_results", r"With mmr: 5 different sentences, \d topics"),
        ("multimodal", r"  0\.44  image/jpeg   https://example.org/animals-01.jpg  Several flying mammals .*"),
        ("pages_and_updates", r"pages, the latest first: \[2025, 2024, 2023, 2022\] \[2021, .*"),
    ],
)
def test_an_example_runs_and_leaves_nothing_behind(service: Service, name: str, line: str) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), service.url]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(f"^ *{line.strip()}$", done.stdout, re.MULTILINE), done.stdout
    assert service.client.get("/collections").json()["total"] == 0


def test_a_collection_without_a_dimension_refuses_only_what_does_not_fit_together(db: VectorDB) -> None:
    db.create_collection("c")
    with pytest.raises(DimensionMismatch, match=r"^negative\.embeddings\[0\]: expected 2"):
        db.query_similar("c", embeddings=[[1.0, 2.0]], negative_embeddings=[[1.0, 2.0, 3.0]])
    futures: list[Future[Any]] = [Future() for _ in range(20)]
    for i, future in enumerate(futures):
        db.submit_query(future, "c", [[1.0] * (2 + i % 2)])
    assert all(future.result()[0]["ids"] == [] for future in futures)


def test_a_search_that_takes_too_long_is_ended(database: str) -> None:
    with VectorDB(database, statement_timeout_s=0.2) as db:
        db.add_with_embeddings("c", ["a", "b"], ["fish", "bird"], None, [[1.0, 0.0], [0.0, 1.0]])
        db.query_by_vector("c", [[1, 0]])
        with pytest.raises(DatabaseBusy, match="Ask fewer queries"):
            db.query_by_text("c", ["fish"] * 2_000)


def test_statements_after_a_load_are_bounded(db: VectorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    db.add_with_embeddings("c", ["a", "b"], ["fish", "bird"], None, [[1.0, 0.0], [0.0, 1.0]])
    seen = []
    right = Searcher._matching

    def matching(self: Searcher, *arguments: Any) -> Any:
        self._cur.execute("SHOW statement_timeout")
        seen.append(self._cur.fetchall()[0][0])
        return right(self, *arguments)

    monkeypatch.setattr(Searcher, "_matching", matching)
    for _ in range(2):
        db.query_hybrid("c", [[1, 0]], ["fish"])
    assert seen == ["30s", "30s"]


def test_what_is_no_path_is_refused(db: VectorDB) -> None:
    db.add_with_embeddings("c", ["a"], None, [{"a": 1}], [[1.0, 0.0]])
    for path, problem in (("#kind", "begins with #"), ("a\\", "ends with a backslash")):
        with pytest.raises(InvalidInput, match=f"^group_by: {problem}"):
            db.query_by_vector("c", [[1, 0]], group_by=path)
        with pytest.raises(InvalidInput, match=f"^order_by: {problem}"):
            db.get_items("c", order=Order(path))
    with pytest.raises(InvalidInput, match=r"^where\.a.: ends with a backslash"):
        db.count_items("c", where={"a\\": 1})
