import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pgvector_db import VectorDB
from pgvector_service.errors import InvalidInput
from pgvector_service.input import filters
from pgvector_service.input.filters import compiled
from pgvector_service.input.pages import Order
from pgvector_service.memory import store
from pgvector_service.storage import statements

Sql = Callable[..., list[tuple[Any, ...]]]
Json = Any
Tally = Counter[tuple[str, bool]]


@dataclass(frozen=True)
class Item:
    id: str
    metadata: dict[str, Json] | None
    document: str | None
    uri: str | None
    media_type: str | None
    embedding: tuple[int, int]


@dataclass(frozen=True)
class Filter:
    where: dict[str, Json] | None
    where_document: dict[str, Json] | None

    @property
    def arguments(self) -> dict[str, Json]:
        return {"where": self.where, "where_document": self.where_document}


# The specification in plain Python

MISSING = object()
NEGATIVE = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains", "$not_regex": "$regex"}


def kind(value: Json) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__


def same(value: Json, scalar: Json) -> bool:
    return kind(value) == kind(scalar) and bool(value == scalar)


def comparable(value: Json, operand: Json) -> bool:
    return kind(value) == kind(operand) and kind(operand) in ("number", "str")


def like(pattern: str) -> str:
    """The regular expression for a pattern of LIKE."""
    wild = {"%": ".*", "_": "."}
    pieces = re.findall(r"\\.|[^\\]", pattern, re.DOTALL)
    return "".join(wild.get(piece, re.escape(piece[-1])) for piece in pieces)


def ascii_lower(text: str) -> str:
    return text.encode().lower().decode()


OF_METADATA: dict[str, Callable[[Json, Json], bool]] = {
    "$eq": same,
    "$in": lambda value, operand: any(same(value, one) for one in operand),
    "$gt": lambda value, operand: comparable(value, operand) and value > operand,
    "$gte": lambda value, operand: comparable(value, operand) and value >= operand,
    "$lt": lambda value, operand: comparable(value, operand) and value < operand,
    "$lte": lambda value, operand: comparable(value, operand) and value <= operand,
    "$exists": lambda value, operand: (value is not MISSING) == operand,
    "$contains": lambda value, operand: isinstance(value, list) and any(same(one, operand) for one in value),
    "$prefix": lambda value, operand: isinstance(value, str) and value.startswith(operand),
    "$like": lambda value, operand: isinstance(value, str) and bool(re.fullmatch(like(operand), value, re.DOTALL)),
    "$regex": lambda value, operand: isinstance(value, str) and bool(re.search(operand, value, re.DOTALL)),
}
OF_DOCUMENT: dict[str, Callable[[str, str], bool]] = {
    "$contains": lambda document, operand: operand in document,
    "$icontains": lambda document, operand: ascii_lower(operand) in ascii_lower(document),
    "$regex": lambda document, operand: bool(re.search(operand, document, re.DOTALL)),
}


def value_at(item: Item, path: str) -> Json:
    kind = None if item.media_type is None else item.media_type.split("/")[0]
    fields = {"#uri": item.uri, "#media_type": item.media_type, "#kind": kind}
    if path in fields:
        return MISSING if fields[path] is None else fields[path]
    keys = [""]
    for part in re.findall(r"\\.|[^\\]", path, re.DOTALL):
        if part == ".":
            keys.append("")
        else:
            keys[-1] += part[-1]
    value: Json = item.metadata
    if isinstance(value, dict) and ".".join(keys) in value:
        return value[".".join(keys)]
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            return MISSING
        value = value[key]
    return value


def holds(condition: Mapping[str, Json], leaf: Callable[[str, Json], bool], tally: Tally) -> bool:
    """Whether all entries hold; none is passed over, so that each is counted."""
    results = []
    for key, operand in condition.items():
        if key in ("$and", "$or", "$not"):
            parts = [holds(part, leaf, tally) for part in (operand if isinstance(operand, list) else [operand])]
            result = any(parts) if key == "$or" else all(parts) != (key == "$not")
            tally[key, result] += 1
        else:
            result = leaf(key, operand)
        results.append(result)
    return all(results)


def matches(item: Item, filter: Filter, tally: Tally | None = None) -> bool:
    tally = Counter() if tally is None else tally

    def term(table: str, operator: str, holds: bool) -> bool:
        result = holds != (operator in NEGATIVE)
        tally[f"{table} {operator}", result] += 1
        return result

    def of_metadata(path: str, condition: Json) -> bool:
        value = value_at(item, path)
        terms = condition if isinstance(condition, dict) else {"$eq": condition}
        results = [term("where", one, OF_METADATA[NEGATIVE.get(one, one)](value, terms[one])) for one in terms]
        return all(results)

    def of_document(operator: str, operand: Json) -> bool:
        positive = OF_DOCUMENT[NEGATIVE.get(operator, operator)]
        return term("where_document", operator, item.document is not None and positive(item.document, operand))

    results = [
        filter.where is None or holds(filter.where, of_metadata, tally),
        filter.where_document is None or holds(filter.where_document, of_document, tally),
    ]
    return all(results)


# Items and filters at random

KEYS = ["a", "b", "a.b", "$x", "$eq", "#x", "#uri", "0", "é", "", "a\\", "it's"]
STRINGS = [*"aAb10'\"\\%_é日\uffee😀\n", "", "ab", "null", "true", "%s"]
NUMBERS = [0, -0.0, 1, 1.0, -1, 2, 0.5, 0.1, 1e-320, 2**53, -(2**53), float(2**53), 2**53 - 1]
# What Python, or a comparison of texts, would take for the same.
ALIKE: list[Json] = [0, -0.0, False, "", "0", None, "null", 1, 1.0, True, "1", "true"]
SCALARS: list[list[Json]] = [NUMBERS, STRINGS, ALIKE, ALIKE]
URIS = [None, "", "s3://a/b", "s3://a/c", "file:///é", "null", "s3"]
MEDIA_TYPES = [None, "", "image/png", "image/jpeg", "text/plain", "text", "/x", "a/b/c"]
FIELDS: dict[str, list[Json]] = {"#uri": URIS, "#media_type": MEDIA_TYPES, "#kind": ["image", "text", "a", "", None]}
# No capitals beyond ASCII: what is their small letter is for the locale to say.
LETTERS = "abAB'\"\\%_. \né日😀"


def is_scalar(value: Json) -> bool:
    return not isinstance(value, dict | list)


@dataclass(frozen=True)
class Maker:
    """Items that have much in common, and filters about what occurs in them."""

    random: Random

    def items(self, count: int) -> list[Item]:
        keys = self.random.sample(KEYS, 5)
        values = [None, *(self._scalar() for _ in range(11))]
        return [
            Item(
                # In no order, and many are equally near.
                f"{'zAé'[i % 3]}{i}",
                self._object(keys, values, 3) if not self._once_in(10) else None,
                self._text(8) if not self._once_in(6) else None,
                self.random.choice(URIS),
                self.random.choice(MEDIA_TYPES),
                (i * 5 % 7, i * 3 % 4),
            )
            for i in range(count)
        ]

    def filter(self, items: Sequence[Item]) -> Filter:
        seen = [place for item in items for place in places(item.metadata)] or [(("a",), 1)]
        documents = [item.document for item in items if item.document] or ["a"]
        which = self.random.randint(0, 3)
        return Filter(
            self._tree(lambda: self._of_a_key(seen), 3) if which != 1 else None,
            self._tree(lambda: self._of_the_document(documents), 2) if which < 2 else None,
        )

    def _once_in(self, n: int) -> bool:
        return self.random.randint(1, n) == n

    def _text(self, most: int) -> str:
        return "".join(self.random.choice(LETTERS) for _ in range(self.random.randint(0, most)))

    def _scalar(self) -> Json:
        if self._once_in(4):
            return self._text(3) if self._once_in(2) else self.random.uniform(-(2**53), 2**53)
        return self.random.choice(self.random.choice(SCALARS))

    def _object(self, keys: Sequence[str], values: Sequence[Json], depth: int) -> dict[str, Json]:
        return {
            self.random.choice(keys): self._value(keys, values, depth - 1) for _ in range(self.random.randint(0, 4))
        }

    def _value(self, keys: Sequence[str], values: Sequence[Json], depth: int) -> Json:
        which = self.random.randint(0, 9)
        if which < 3 and depth > 0:
            return self._object(keys, values, depth)
        if which < 6 and depth >= 0:
            return [self._value(keys, values, min(0, depth) - 1) for _ in range(self.random.randint(0, 3))]
        if which < 9:
            return self.random.choice(values)
        return self.random.choice([{}, {self.random.choice(keys): self.random.choice(values)}])

    def _tree(self, leaf: Callable[[], tuple[str, Json]], depth: int) -> dict[str, Json]:
        return dict(self._entry(leaf, depth) for _ in range(2 if self._once_in(4) else 1))

    def _entry(self, leaf: Callable[[], tuple[str, Json]], depth: int) -> tuple[str, Json]:
        operator = self.random.choice(["$and", "$or", "$not", "", "", ""])
        if depth == 1 or not operator:
            return leaf()
        if operator == "$not":
            return operator, self._tree(leaf, depth - 1)
        return operator, [self._tree(leaf, depth - 1) for _ in range(self.random.randint(1, 3))]

    def _of_a_key(self, seen: Sequence[tuple[tuple[str, ...], Json]]) -> tuple[str, Json]:
        which = self.random.randint(0, 9)
        operators = sorted({*OF_METADATA, *NEGATIVE})
        if which < 2:
            path = self.random.choice(list(FIELDS))
            likely = self.random.choice(FIELDS[path])
            operators = [operator for operator in operators if "contains" not in operator]
        else:
            keys, likely = self.random.choice(seen)
            if which == 2:
                keys = (*keys, self.random.choice(KEYS))
            elif which == 3:
                keys = tuple(self.random.choice(KEYS) for _ in range(self.random.randint(1, 3)))
            path = self._path(keys)
        if self._once_in(10) and is_scalar(likely):
            return path, likely
        if isinstance(likely, list) and self._once_in(2):
            operators = ["$contains", "$not_contains"]
        chosen = [self.random.choice(operators) for _ in range(2 if self._once_in(4) else 1)]
        near = [one for one in (likely if isinstance(likely, list) else [likely]) if is_scalar(one)]
        common = [value for _, value in seen if is_scalar(value)]
        return path, {operator: self._operand(operator, near, common) for operator in chosen}

    def _path(self, keys: Sequence[str]) -> str:
        """One of the spellings: a backslash may stand before anything, and has to before some."""
        if self._once_in(8) and not {"\\", ""} & {*"".join(keys)} and keys[0][:1] not in ("$", "#", ""):
            return ".".join(keys)  # a key with dots may be spelt as it is
        if self._once_in(10):
            return ".".join("".join("\\" + character for character in key) for key in keys)
        path = ".".join(re.sub(r"([\\.])", r"\\\1", key) for key in keys)
        return "\\" + path if path[:1] in ("$", "#") else path

    def _operand(self, operator: str, near: Sequence[Json], common: Sequence[Json]) -> Json:
        if operator == "$exists":
            return self._once_in(2)
        if operator in ("$in", "$nin"):
            return [self._operand("$eq", near, common) for _ in range(self.random.randint(0, 4))]
        if operator in ("$prefix", "$like", "$regex", "$not_regex"):
            texts = [one for one in (*near, *common) if isinstance(one, str)]
            text = self.random.choice(texts) if texts and not self._once_in(6) else self._text(3)
            return self._part(operator, text)
        while True:
            which = self.random.randint(0, 9)
            one = self.random.choice(near) if which < 6 and near else self._scalar()
            if 6 <= which < 9 and common:
                one = self.random.choice(common)
            if operator not in ("$gt", "$gte", "$lt", "$lte") or kind(one) in ("number", "str"):
                return one

    def _part(self, operator: str, text: str) -> str:
        """What a prefix, a pattern or an expression may say about a text that it matches, or nearly."""
        if operator == "$prefix":
            return text[: self.random.randint(0, len(text))]
        if "regex" in operator:
            return self._expression(text)
        spellings = ["{0}", "{0}", "{0}", "_", "%", "%{0}", "\\{0}"]
        escaped = [re.sub(r"([\\%_])", r"\\\1", character) for character in text]
        pieces = [self.random.choice(spellings[: 6 if len(one) == 2 else 7]).format(one) for one in escaped]
        return "".join([*pieces[: self.random.randint(0, len(pieces))], self.random.choice(["", "%", "_"])])

    def _of_the_document(self, documents: Sequence[str]) -> tuple[str, Json]:
        operator = self.random.choice(["$contains", "$not_contains", "$icontains", "$regex", "$not_regex"])
        document = self.random.choice(documents)
        start = self.random.randint(0, len(document))
        text = self._text(3) if self._once_in(10) else document[start : start + self.random.randint(0, 3)]
        if operator == "$icontains" and text.isascii() and self._once_in(2):
            return operator, text.swapcase()
        return operator, self._expression(text) if "regex" in operator else text

    def _expression(self, text: str) -> str:
        """A regular expression that means the same to PostgreSQL and to Python, and may have a match in the text."""
        spellings = ["{0}", "{0}", ".", "{0}+", "{0}*", "{0}?", "(?:{0}|b)", "({0}){{1,2}}", "[^a]", "[a-c]", "x*{0}"]
        parts = [self.random.choice(spellings).format(re.escape(character)) for character in text]
        before, after = self.random.choice([("", ""), ("", ""), ("", ""), (r"\A", ""), ("", r"\Z"), ("(?i)", "")])
        return f"{before}{''.join(parts)}{after}"


def places(value: Json, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Json]]:
    """All paths in a metadata object, with what lies there."""
    if keys:
        yield keys, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*keys, key))


# A smaller seed is no simpler case; a failure names the one filter and an item that it is wrong about.
seeded = settings(phases=[Phase.reuse, Phase.generate], report_multiple_bugs=False)
seeds = st.integers(0, 2**32)


# The two compared

NAMES = map("c{}".format, count())


def stored(db: VectorDB, items: Sequence[Item]) -> str:
    """The name of a new collection with these items."""
    name = next(NAMES)
    db.create_collection(name, 2, "euclidean")
    db.add_with_embeddings(
        name,
        [item.id for item in items],
        [item.document for item in items],
        [item.metadata for item in items],
        [list(item.embedding) for item in items],
        uris=[item.uri for item in items],
        media_types=[item.media_type for item in items],
    )
    return name


def paged(db: VectorDB, name: str, limit: int, order: Order | None = None, **filter: Json) -> list[str]:
    ids: list[str] = []
    cursor = None
    while True:
        page = db.get_items(name, limit=limit, cursor=cursor, include=[], order=order, **filter)
        assert len(page["ids"]) <= limit
        ids += page["ids"]
        cursor = page["next_cursor"]
        if cursor is None:
            return ids


def check(db: VectorDB, name: str, items: Sequence[Item], filter: Filter, tally: Tally | None = None) -> int:
    """Whatever takes a filter agrees with the specification; returns how many items match."""
    right = {item.id: item for item in items if matches(item, filter, tally)}
    found = paged(db, name, 25, **filter.arguments)
    wrong = [item for item in items if (item.id in found) != (item.id in right)]
    assert not wrong, (filter, "matches" if wrong[0].id in found else "does not match", wrong[0])
    assert found == sorted(right)
    assert db.count_items(name, **filter.arguments)["count"] == len(right)
    assert db.delete_items(name, **filter.arguments, dry_run=True)["deleted"] == len(right)
    some = [item.id for item in items[::3]]
    assert db.get_items(name, some, **filter.arguments)["ids"] == [id_ for id_ in some if id_ in right]
    nearest = sorted(right, key=lambda id_: (math.dist(right[id_].embedding, (2, 1)), id_))
    for n_results in (3, 1000):
        (hits,) = db.query_by_vector(name, [[2, 1]], n_results, [], **filter.arguments)
        assert hits["ids"] == nearest[:n_results]
    return len(right)


def look(db: VectorDB, seed: int, tally: Tally | None = None) -> list[int]:
    """For 40 filters on a new collection how many items match, after the comparison."""
    maker = Maker(Random(seed))
    items = maker.items(60)
    name = stored(db, items)
    try:
        return [check(db, name, items, maker.filter(items), tally) for _ in range(40)]
    except InvalidInput as error:
        raise AssertionError("a filter that the specification knows was refused") from error


def compare(db: VectorDB, max_examples: int) -> tuple[Tally, list[int]]:
    """Check filters at random; returns how often each operator held and did not, and how many of 60 items matched."""
    tally: Tally = Counter()
    matched: list[int] = []

    @settings(seeded, max_examples=max_examples)
    @given(seed=seeds)
    def run(seed: int) -> None:
        matched.extend(look(db, seed, tally))

    run()
    return tally, matched


def test_every_route_gives_what_the_specification_says(db: VectorDB) -> None:
    tally, matched = compare(db, max_examples=50)

    assert {*filters.METADATA} == {*OF_METADATA}
    assert {*filters.DOCUMENT} == {*OF_DOCUMENT, "$matches"}
    assert len(matched) >= 50 * 40
    assert sum(0 < some < 60 for some in matched) > len(matched) / 3
    operators = {
        *("$and", "$or", "$not"),
        *(f"where {operator}" for operator in {*OF_METADATA, *NEGATIVE}),
        *(f"where_document {operator}" for operator in {*OF_DOCUMENT, "$not_contains", "$not_regex"}),
    }
    assert {operator for operator, _ in tally} == operators
    assert all(tally[operator, held] > 50 for operator in operators for held in (True, False)), tally


def test_a_key_that_holds_dots_is_found_as_it_is_spelt(db: VectorDB) -> None:
    metadatas: list[Any] = [{"k.e.y": 1}, {"k": {"e": {"y": 1}}}, {"k.e.y": 2, "k": {"e": {"y": 1}}}, {"k.e": {"y": 1}}]
    db.add_with_embeddings("c", ["literal", "nested", "both", "neither"], None, metadatas, [[1.0]] * 4)

    def ids(where: dict[str, Any]) -> set[str]:
        return set(db.get_items("c", where=where)["ids"])

    assert ids({"k.e.y": 1}) == ids({"k.e.y": {"$lte": 1}}) == {"literal", "nested"}
    assert ids({"k.e.y": {"$in": [1, 2]}}) == ids({"k.e.y": {"$exists": True}}) == {"literal", "nested", "both"}
    assert ids({r"k\.e\.y": {"$gt": 0}}) == {"literal", "both"}
    assert db.get_items("c", order=Order("k.e.y"))["ids"] == ["literal", "nested", "both", "neither"]
    groups = db.query_by_vector("c", [[1.0]], group_by="k.e.y")[0]
    assert (groups["ids"], groups["groups"]) == (["both", "literal", "neither"], [2, 1, None])


OPERATORS, OF_TEXT, MODULE = filters.METADATA, filters.DOCUMENT, vars(filters)
FAULTS: dict[str, tuple[dict[str, Any], str, Any]] = {
    "NULL is not false": (MODULE, "_not", lambda sql: f"NOT ({sql})"),
    "the negation of another": (filters.NEGATIONS, "$not_regex", "$contains"),
    "less is not equal": (OPERATORS, "$lte", OPERATORS["$lt"]),
    "types are mixed": (OPERATORS, "$lt", lambda self, _, subject, operand: f"{subject.sql} < {self._json(operand)}"),
    "numbers are texts": (
        OPERATORS,
        "$eq",
        lambda self, _, subject, operand: f"{subject.sql} #>> '{{}}' = {self._json(operand)} #>> '{{}}'",
    ),
    "null is nothing": (
        OPERATORS,
        "$exists",
        lambda self, _, subject, operand: f"coalesce({subject.sql} <> 'null', false) = {operand}",
    ),
    "dots never stand in keys": (
        MODULE,
        "_lookup",
        lambda path, place: "metadata" + "".join(f" -> {place(key)}::text" for key in path),
    ),
    "a pattern is a prefix": (OPERATORS, "$like", OPERATORS["$prefix"]),
    "dots in keys are levels": (MODULE, "parse_path", lambda _, path: path.replace("\\", "").split(".")),
    "% stands for anything": (OF_TEXT, "$contains", filters._text("document LIKE '%%' || {} || '%%'")),
    "capitals count": (OF_TEXT, "$icontains", filters._text("strpos(document, {}) > 0")),
    "capitals do not count": (OF_TEXT, "$regex", filters._text("document ~* {}")),
}


@pytest.mark.parametrize(("table", "name", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_noticed(
    db: VectorDB, monkeypatch: pytest.MonkeyPatch, table: dict[str, Any], name: str, fault: Any
) -> None:
    monkeypatch.setitem(table, name, fault)
    with pytest.raises(AssertionError):
        _ = [look(db, seed) for seed in range(25)]


@settings(seeded, max_examples=15)
@given(seed=seeds)
def test_what_matches_is_deleted_and_nothing_else(db: VectorDB, seed: int) -> None:
    maker = Maker(Random(seed))
    items = maker.items(60)
    name, other = stored(db, items), stored(db, items)
    for _ in range(4):
        filter = maker.filter(items)
        some = [item.id for item in items[::2]]
        for ids in (some, None):
            gone = {item.id for item in items if matches(item, filter) and (ids is None or item.id in ids)}
            items = [item for item in items if item.id not in gone]
            assert db.delete_items(name, ids, **filter.arguments)["deleted"] == len(gone)
            assert paged(db, name, 100) == sorted(item.id for item in items)
            check(db, name, items, filter)
    assert db.count_items(other)["count"] == 60


def test_full_text_is_that_of_the_language_and_of_web_searches(db: VectorDB) -> None:
    documents = {
        "attend": "Attention is all you need",
        "learn": "Learning to pay attention, deeply",
        "deep": "Deep learning",
        "stop": "the and of",
        "none": None,
    }
    db.add_with_embeddings("c", list(documents), list(documents.values()), None, [[1, 0]] * 5)

    def found(where_document: dict[str, Json]) -> str:
        return " ".join(paged(db, "c", 10, where_document=where_document))

    assert found({"$matches": "ATTENTIONS"}) == "attend learn"
    assert found({"$matches": "attention learn"}) == "learn"
    assert found({"$matches": "need or deep"}) == "attend deep"
    assert found({"$matches": '"deep learning"'}) == "deep"
    assert found({"$matches": "attention -need", "$contains": "pay"}) == "learn"
    assert found({"$not": {"$matches": "attention"}}) == "deep none stop"
    assert found({"$matches": "the"}) == found({"$matches": ""}) == found({"$matches": "' & | ! <-> :*"}) == ""


# Texts that mean something elsewhere

SQL_TEXTS = [
    "'; DROP TABLE vector_documents; --", '"; DROP TABLE vector_documents; --', "') OR true --", "\\'; SELECT 1; --",
    "%(name)s", "%(f0)s", "%(ids)s", "%s", "%", "%%", "\\'", "\\\\", "\\", "$$", "$1", "{}", "{0}", "{self.values}",
    "\\u0041", "\\x41",
    "\u2018\u2019\u02bc\uff07\u201c", "/* filter */", "/* order */", "*/", "?", "E'\\n'", "::jsonb", "a' 'b",
    "\x01\x7f\t", "\u2028\ufeff\U0010ffff",
]  # fmt: skip


def test_a_text_means_itself_wherever_it_stands(db: VectorDB, sql: Sql) -> None:
    held = [f"<{text}>" for text in SQL_TEXTS]
    ids = [f"i{i:02}" for i in range(len(held))]
    keys = ["".join("\\" + character for character in text) for text in held]
    metadatas = [{"text": text, text: {text: i}, "list": [text]} for i, text in enumerate(held)]
    db.add_with_embeddings("c", ids, held, metadatas, [[1, 0]] * len(held), uris=held, media_types=held)
    for i, (text, key) in enumerate(zip(held, keys, strict=True)):
        wheres: list[dict[str, Json]] = [
            {"text": text},
            {"text": {"$in": [text, "'"]}},
            {"text": {"$gte": text, "$lte": text}},
            {"$not": {"text": {"$ne": text}}},
            {"list": {"$contains": text}},
            {"#uri": text},
            {"#media_type": {"$in": [text]}},
            {"#kind": text.split("/")[0], "text": text},
            {key: {"$exists": True}},
            {f"{key}.{key}": i},
            {f"{key}.{key}": {"$gte": i, "$in": [i]}},
        ]
        for where in wheres:
            assert paged(db, "c", 9, where=where) == [ids[i]], where
        for where_document in (
            {"$contains": text},
            {"$icontains": text},
            {"$not": {"$not_contains": text}},
            {"$regex": re.escape(text)},
            {"$regex": "***=" + text},
            {"$not": {"$not_regex": re.escape(text)}},
        ):
            assert paged(db, "c", 9, where_document=where_document) == [ids[i]], where_document
        db.count_items("c", where_document={"$matches": text})
        for descending in (False, True):
            # Those that lack the key come last.
            order = Order(f"{key}.{key}", descending)
            assert paged(db, "c", 9, order) == [ids[i], *ids[:i], *ids[i + 1 :]]
            assert SQL_TEXTS[i] == "\\" or paged(db, "c", 9, Order(SQL_TEXTS[i], descending)) == ids
    assert sql("SELECT count(*) FROM vector_documents") == [(len(held),)]


BREAKOUT = "a\n; COMMIT; DROP TABLE vector_documents CASCADE; --"


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", BREAKOUT])
def test_a_line_break_ends_no_sql(db: VectorDB, sql: Sql, text: str) -> None:
    ids = [f"{text}{i}" for i in range(4)]
    db.add_with_embeddings("c", ids, [text, None] * 2, [{text: i, "text": text} for i in range(4)], [[1, 0]] * 4)
    db.add_with_embeddings("c", ["z"], None, None, [[0, 1]])

    assert paged(db, "c", 2, where={text: {"$gt": 1}, "text": {"$in": [text]}}) == ids[2:]
    assert paged(db, "c", 2, where_document={"$contains": text, "$regex": re.escape(text)}) == ids[::2]
    assert paged(db, "c", 2) == [*ids, "z"]
    assert paged(db, "c", 2, Order("id", descending=True)) == ["z", *ids[::-1]]
    assert paged(db, "c", 2, Order("text")) == [*ids, "z"]
    assert paged(db, "c", 2, Order(text, descending=True)) == [*ids[::-1], "z"]
    assert db.query_by_vector("c", [[1, 0]], 3, group_by=text)[0]["groups"] == [0, 1, 2]
    assert [item["id"] for item in db.export_collection("c")] == [*ids, "z"]
    for order in (Order(), Order("created_at"), Order("text")):
        db.get_items("c", cursor=order.cursor(None, BREAKOUT), order=order)
    assert sql("SELECT count(*) FROM vector_documents") == [(5,)]


def test_no_comment_in_a_statement_has_a_place_for_values() -> None:
    for name, statement in statements._STATEMENTS.items():
        for comment in re.findall(r"--.*", statement):
            assert not re.search(r"%\(|/\*", comment), name


@pytest.mark.parametrize("bad", ["\0", "a\0b", "\ud800"])
def test_what_is_no_text_for_postgresql_is_refused(bad: str) -> None:
    wheres: list[tuple[dict[str, Json], str]] = [
        ({bad: 1}, "where"),
        ({"a." + bad: {"$exists": True}}, "where"),
        ({"#" + bad: "x"}, "where"),
        ({"$" + bad: "x"}, "where"),
        ({"a": {bad: 1}}, "where.a"),
        ({"a": {"$eq": bad}}, "where.a.$eq"),
        ({"#uri": {"$lt": bad}}, "where.#uri.$lt"),
        ({"a": {"$in": ["x", bad]}}, "where.a.$in[1]"),
        ({"$not": {"$or": [{"a": {"$not_contains": bad}}]}}, "where.$not.$or[0].a.$not_contains"),
    ]
    for where, place in wheres:
        with pytest.raises(InvalidInput, match=f"^{re.escape(place)}: "):
            compiled(where, None)
    for operator in ("$contains", "$not_contains", "$icontains", "$regex", "$not_regex", "$matches"):
        with pytest.raises(InvalidInput, match=f"^{re.escape(f'where_document.$and[0].{operator}')}: "):
            compiled(None, {"$and": [{operator: bad}]})
    with pytest.raises(InvalidInput, match=r"^where_document: "):
        compiled(None, {bad: "x"})
    with pytest.raises(InvalidInput, match=r"^order_by: "):
        Order(bad).sql(None)


# Refusals


def nested(levels: int) -> dict[str, Json]:
    """A filter in as many levels of $not, $and and $or."""
    filter: dict[str, Json] = {"a": 1}
    for i in range(levels):
        filter = {"$not": filter} if i % 3 == 0 else {("$and", "$or")[i % 3 - 1]: [filter]}
    return filter


def test_the_largest_filters_are_answered(db: VectorDB) -> None:
    deep: dict[str, Json] = {"a": 1}
    for _ in range(31):
        deep = {"a": deep}
    db.add_with_embeddings("c", ["deep", "flat"], None, [deep, {"a": 500}], [[1, 0], [0, 1]])
    path = ".".join("a" * 32)

    assert paged(db, "c", 9, where={path: 1}) == ["deep"]
    assert paged(db, "c", 9, where={path: np.float64(1)}) == ["deep"]
    assert paged(db, "c", 9, where={path: {"$lt": 2}}) == ["deep"]
    assert paged(db, "c", 9, where={"a": {"$in": list(range(999))}}) == ["flat"]
    assert paged(db, "c", 9, where={"$or": [{path: {"$gt": -i}} for i in range(1000)]}) == ["deep"]
    assert paged(db, "c", 9, where={"$and": [{path: {"$ne": i}} for i in range(1000)]}) == ["flat"]
    assert paged(db, "c", 9, where_document={"$or": [{"$regex": "x"} for _ in range(1000)]}) == []


def test_a_filter_may_have_32_levels(db: VectorDB) -> None:
    items = [Item(f"i{i}", {"a": i}, None, None, None, (1, i)) for i in range(3)]
    name = stored(db, items)
    for levels in (30, 31, 32):
        check(db, name, items, Filter(nested(levels), None))


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ({}, "where"),
        ([], "where"),
        ("a", "where"),
        ({"$foo": 1}, "where.$foo"),
        ({"$eq": 1}, "where.$eq"),
        ({"#x": 1}, "where.#x"),
        ({"#uri.a": 1}, "where.#uri.a"),
        ({"$and": []}, "where.$and"),
        ({"$and": {"a": 1}}, "where.$and"),
        ({"$or": "a"}, "where.$or"),
        ({"$or": [1]}, "where.$or[0]"),
        ({"$or": [{"a": 1}, {}]}, "where.$or[1]"),
        ({"$not": [{"a": 1}]}, "where.$not"),
        ({"$not": {}}, "where.$not"),
        ({"a": {}}, "where.a"),
        ({"a": []}, "where.a"),
        ({"a": [1]}, "where.a"),
        ({"a": {"b": 1}}, "where.a.b"),
        ({"a": {"$foo": 1}}, "where.a.$foo"),
        ({"a": {"$and": [1]}}, "where.a.$and"),
        ({"a": {"$matches": "x"}}, "where.a.$matches"),
        ({"a": {"$regex": 1}}, "where.a.$regex"),
        ({"a": {"$not_regex": None}}, "where.a.$not_regex"),
        ({"a": {"$prefix": ["x"]}}, "where.a.$prefix"),
        ({"a.b": {"$like": "x\\\\\\"}}, "where.a.b.$like"),
        ({"#uri": {"$like": 1}}, "where.#uri.$like"),
        ({"b": 1, "a": {"$gt": 1, "$ne": {}}}, "where.a.$ne"),
        ({"a": {"$eq": [1]}}, "where.a.$eq"),
        ({"a": {"$eq": 2**53 + 1}}, "where.a.$eq"),
        ({"a": {"$eq": math.nan}}, "where.a.$eq"),
        ({"a": {"$in": "ab"}}, "where.a.$in"),
        ({"a": {"$in": None}}, "where.a.$in"),
        ({"a": {"$nin": [1, [2]]}}, "where.a.$nin[1]"),
        ({"$and": [{"a": 1}, {"year": {"$gt": True}}]}, "where.$and[1].year.$gt"),
        ({"a": {"$gte": None}}, "where.a.$gte"),
        ({"a": {"$lt": [1]}}, "where.a.$lt"),
        ({"a": {"$lte": {"b": 1}}}, "where.a.$lte"),
        ({"a": {"$gt": math.inf}}, "where.a.$gt"),
        ({"a": {"$exists": 1}}, "where.a.$exists"),
        ({"a": {"$exists": None}}, "where.a.$exists"),
        ({"a": {"$contains": ["x"]}}, "where.a.$contains"),
        ({"a": {"$not_contains": {"x": 1}}}, "where.a.$not_contains"),
        ({"a": {"$in": list(range(1000))}}, "where.a.$in"),
        ({"$or": [{"a": 1}] * 1001}, "where.$or[1000].a.$eq"),
        ({"a": {"$gt": 1, "$nin": [1] * 998}, "b": 1}, "where.b.$eq"),
    ],
)
def test_a_wrong_condition_on_metadata_is_refused_with_its_place(where: Json, place: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        compiled(where, None)
    assert refused.value.field == place
    assert str(refused.value).startswith(f"{place}: ")


@pytest.mark.parametrize(
    ("where_document", "place"),
    [
        ({}, "where_document"),
        ("text", "where_document"),
        ({"a": "x"}, "where_document.a"),
        ({"$eq": "x"}, "where_document.$eq"),
        ({"$exists": True}, "where_document.$exists"),
        ({"$contains": 1}, "where_document.$contains"),
        ({"$contains": None}, "where_document.$contains"),
        ({"$not_contains": ["x"]}, "where_document.$not_contains"),
        ({"$icontains": {"x": 1}}, "where_document.$icontains"),
        ({"$not": {"$or": [{"$contains": "x"}, {"$regex": 1}]}}, "where_document.$not.$or[1].$regex"),
        ({"$not_regex": None}, "where_document.$not_regex"),
        ({"$matches": True}, "where_document.$matches"),
        ({"$and": []}, "where_document.$and"),
        ({"$or": [{"$contains": "x"}] * 1001}, "where_document.$or[1000].$contains"),
    ],
)
def test_a_wrong_condition_on_documents_is_refused_with_its_place(where_document: Json, place: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        compiled(None, where_document)
    assert refused.value.field == place


@pytest.mark.parametrize("where", [nested(33), {".".join("a" * 33): 1}, {"$not": {".".join("a" * 33): {"$gt": 1}}}])
def test_a_filter_or_a_path_that_is_too_deep_is_refused(where: Json) -> None:
    with pytest.raises(InvalidInput, match=r"^where\.(\$|a\.a\.).*32 levels"):
        compiled(where, None)


def refusals(db: VectorDB, filter: Filter, name: str = "c") -> list[str]:
    """What each method says to a filter that has to be refused."""
    narrowing = filter.arguments
    calls: list[Callable[[], Any]] = [
        lambda: db.get_items(name, **narrowing),
        lambda: db.get_items(name, ["a"], **narrowing),
        lambda: db.count_items(name, **narrowing),
        lambda: db.delete_items(name, **narrowing, dry_run=True),
        lambda: db.delete_items(name, **narrowing),
        lambda: db.query_by_vector(name, [[1, 0]], **narrowing),
        lambda: db.query_by_text(name, ["text"], **narrowing),
        lambda: db.query_hybrid(name, [[1, 0]], ["text"], **narrowing),
        lambda: db.query_similar(name, ["a"], **narrowing),
    ]
    messages = []
    for call in calls:
        with pytest.raises(InvalidInput) as refused:
            call()
        messages.append(str(refused.value))
    return messages


REFUSED = [
    (Filter({"$and": [{"a": 1}, {"year": {"$gt": None}}]}, None), "where.$and[1].year.$gt"),
    (Filter({"a": {"$in": ["\0"]}}, None), "where.a.$in[0]"),
    (Filter(None, {"$or": [{"$contains": 1}]}), "where_document.$or[0].$contains"),
    *((Filter(None, {"$regex": bad}), "where_document.$regex") for bad in ("(", "[", "*", "a{2,1}", "\\", "(?<x)")),
    (Filter({"a": 1}, {"$contains": "x", "$not": {"$not_regex": "("}}), "where_document.$not.$not_regex"),
    (Filter(None, {"$and": [{"$regex": "x"}, {"$regex": "("}, {"$regex": "y"}]}), "where_document.$and[1].$regex"),
]


def test_all_that_takes_a_filter_refuses_a_wrong_one(db: VectorDB, client: TestClient) -> None:
    db.add_with_embeddings("c", ["a"], ["text"], None, [[1, 0]])
    routes: dict[str, dict[str, Json]] = {
        "/items/get": {},
        "/items/count": {},
        "/items/delete": {},
        "/search/vector": {"query_embedding": [1, 0]},
    }
    for filter, place in REFUSED:
        assert {message.split(":")[0] for message in refusals(db, filter)} == {place}
        for route, more in routes.items():
            response = client.post(route, json={"collection_name": "c", **filter.arguments, **more})
            assert (response.status_code, response.json()["detail"].split(":")[0]) == (422, place)
    assert paged(db, "c", 9, where_document={"$regex": "^text$"}) == ["a"]


# Back-references make PostgreSQL try all ways to cut the text.
SLOW = r"(.+)(.+)(.+)(.+)\4\3\2\1\1"
SLOW_TEXT = "".join(map(chr, range(33, 120)))


def test_a_slow_expression_is_refused_and_the_service_goes_on(
    database: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "REGEX_TIMEOUT_S", 0.1)
    with VectorDB(database, pool_size=1) as db:
        db.add_with_embeddings("c", ["a", "b"], [SLOW_TEXT, "text"], None, [[1, 0], [0, 1]])
        for operator in ("$regex", "$not_regex"):
            for message in refusals(db, Filter(None, {"$and": [{operator: SLOW}]})):
                assert message.startswith(
                    f"where_document.$and[0].{operator}: the request takes more than 0.1 s with it"
                )
        assert paged(db, "c", 9, where_document={"$not_regex": "^t"}) == ["a"]
        (hits,) = db.query_by_vector("c", [[1, 0]], where_document={"$regex": "t$"})
        assert hits["ids"] == ["b"]
        assert db.delete_items("c", where_document={"$regex": "t$"})["deleted"] == 1
        assert paged(db, "c", 9) == ["a"]
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        assert sql(f"SELECT count(*) {others} AND state <> 'idle'") == [(0,)]


def test_a_write_that_waits_for_another_is_no_slow_expression(
    db: VectorDB, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "REGEX_TIMEOUT_S", 0.1)
    db.add_with_embeddings("c", ["a", "b"], ["text", "other"], None, [[1, 0], [0, 1]])
    sql("BEGIN; UPDATE vector_collections SET metadata = '{}' WHERE collection_name = 'c'")
    later = threading.Timer(0.4, sql, ["COMMIT"])
    later.start()
    try:
        assert db.delete_items("c", where_document={"$regex": "x"})["deleted"] == 1
    finally:
        later.join()


# The index


def test_what_is_equal_or_held_is_found_by_the_index(db: VectorDB, sql: Sql) -> None:
    rest = ("text " * 200, None, None, (1, 0))
    items = [
        Item(f"i{i}", {"source": f"s{i % 500}", "deep": {"a.b": i % 700}, "tags": [i % 600, "x"]}, *rest)
        for i in range(4000)
    ]
    name = stored(db, items)
    sql("ANALYZE vector_documents")
    wheres: list[dict[str, Json]] = [
        {"source": "s7"},
        {"source": {"$in": ["s7", "s8", 7, None]}},
        {"deep.a\\.b": 7},
        {"deep.a\\.b": {"$in": [7, 8.0]}},
        {"tags": {"$contains": 7}},
        {"$and": [{"source": {"$in": ["s7", "s8"]}}, {"deep.a\\.b": {"$lt": 300}}, {"$not": {"tags": 3}}]},
        {"$or": [{"source": "s7"}, {"tags": {"$contains": 7}}]},
    ]
    for where in wheres:
        filter = compiled(where, None)
        statement, values = statements.filtered(statements.keys, filter), statements.parameters(name, filter)
        plan = "\n".join(row for (row,) in sql(f"EXPLAIN {statement}", values))
        assert "vector_documents_metadata" in plan, plan
        expected = sum(matches(item, Filter(where, None)) for item in items)
        assert 0 < db.count_items(name, where=where)["count"] == expected < 100
        sql("SET enable_bitmapscan = off")
        assert len(bytes(sql(statement, values)[0][0])) == 8 * expected
        sql("RESET enable_bitmapscan")
