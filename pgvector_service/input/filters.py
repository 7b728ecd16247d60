"""JSON filters as SQL conditions: `where` on metadata, `where_document` on texts.

The language is Chroma's, with more operators: `{"year": {"$gte": 2020}, "author.name": "Ada"}`. What lacks the key does
not match a condition, and matches its negation. docs/filters.md has the table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgvector_service.errors import InvalidInput
from pgvector_service.input.values import MAX_DEPTH, check_text, check_value
from pgvector_service.jsons import dumped

MAX_TERMS = 1_000
# A text to search for is parsed for each search, and PostgreSQL takes no more than 1 MB of words.
MAX_QUERY_TEXT = 10_000
# What a place in a filter shows of a key that the caller has made up.
SHOWN = 40

# The columns that `where` reaches beside the metadata, as JSON, and NULL where they are missing.
FIELDS = {
    "#uri": "to_jsonb(uri)",
    "#media_type": "to_jsonb(media_type)",
    "#kind": "to_jsonb(split_part(media_type, '/', 1))",
}
# Operators that are the negation of another one: they also match where the key is missing.
NEGATIONS = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains", "$not_regex": "$regex"}


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on rows of vector_documents, with the collection's name as the parameter `name`.

    Equal filters are equal, and can be remembered by. `patterns` are the regular expressions in it with their places:
    PostgreSQL may refuse them, or work on them for ever.
    """

    sql: str
    values: tuple[Any, ...]
    patterns: tuple[tuple[str, str], ...]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters f0, f1, ... of the condition."""
        return {f"f{i}": list(value) if isinstance(value, tuple) else value for i, value in enumerate(self.values)}


def compiled(where: Mapping[str, Any] | None, where_document: Mapping[str, Any] | None) -> Filter | None:
    """The filter that matches rows which both match; None when neither is given.

    Raises InvalidInput, naming the place in the filter: an unknown operator, an operand of the wrong type, more than 32
    levels of $and, $or and $not, or more than 1,000 terms (conditions and list entries).
    """
    compiler = _Compiler()
    parts = []
    if where is not None:
        parts.append(compiler.tree("where", where, compiler.key, 0))
    if where_document is not None:
        parts.append(compiler.tree("where_document", where_document, compiler.document, 0))
    if not parts:
        return None
    return Filter(" AND ".join(parts), tuple(compiler.values), tuple(compiler.patterns))


def parse_path(place: str, path: str) -> list[str]:
    r"""The keys of a dotted path from the metadata inwards; a backslash takes what follows literally: `a\.b`."""
    check_text(place, path)
    if path.startswith("#"):
        raise InvalidInput(place, r"begins with #, which is for the fields that where knows; for such a key write \#.")
    keys, escaped = [""], False
    for character in path:
        if escaped or character not in "\\.":
            keys[-1] += character
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            keys.append("")
    if escaped:
        raise InvalidInput(place, "ends with a backslash that has nothing to take literally.")
    if len(keys) > MAX_DEPTH:
        raise InvalidInput(place, f"leads deeper than {MAX_DEPTH} levels.")
    return keys


def check_query_text(place: str, text: str) -> None:
    """Refuse what is no text to search for."""
    check_text(place, text)
    if len(text) > MAX_QUERY_TEXT:
        raise InvalidInput(place, f"must have at most {MAX_QUERY_TEXT} characters.")


def at_path(path: Sequence[str]) -> tuple[str, dict[str, str]]:
    """What lies at a path in the metadata as SQL, with its parameters; NULL where there is nothing."""
    parameters: dict[str, str] = {}

    def name(value: str) -> str:
        parameters[f"step{len(parameters)}"] = value
        return f"%(step{len(parameters) - 1})s"

    return _lookup(path, name), parameters


def _lookup(path: Sequence[str], place: Callable[[str], str]) -> str:
    """SQL for what lies at a path; `place` takes a parameter and gives what stands for it.

    A key that holds the dots itself comes first: `{"a.b": 1}` before `{"a": {"b": 1}}`. `->` with a text leads into
    objects only, where `#>` would take "0" for the first entry of an array.
    """
    nested = "metadata" + "".join(f" -> {place(key)}::text" for key in path)
    return nested if len(path) == 1 else f"coalesce(metadata -> {place('.'.join(path))}::text, {nested})"


class _Compiler:
    """What is gathered on the way through a filter; its methods return SQL conditions."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.patterns: list[tuple[str, str]] = []
        self._terms = 0

    # The tree of $and, $or and $not, the same for both filters

    def tree(self, place: str, condition: Any, leaf: Callable[[str, str, Any], str], depth: int) -> str:
        """All entries of an object; `leaf(place, key, operand)` does those that are not $and, $or and $not."""
        if not isinstance(condition, Mapping):
            raise InvalidInput(place, "must be an object of conditions.")
        if not condition:
            raise InvalidInput(place, "has no condition; leave it out to match all items.")
        if depth > MAX_DEPTH:
            raise InvalidInput(place, f"is nested deeper than {MAX_DEPTH} levels.")
        parts = []
        for key, operand in condition.items():
            check_text(place, key)
            inner = f"{place}.{_shown(key)}"
            if key in ("$and", "$or"):
                if not isinstance(operand, list | tuple) or not operand:
                    raise InvalidInput(inner, "must be a list of at least one object.")
                some = [self.tree(f"{inner}[{i}]", part, leaf, depth + 1) for i, part in enumerate(operand)]
                parts.append("(" + (" AND " if key == "$and" else " OR ").join(some) + ")")
            elif key == "$not":
                parts.append(_not(self.tree(inner, operand, leaf, depth + 1)))
            else:
                parts.append(leaf(inner, key, operand))
        return parts[0] if len(parts) == 1 else "(" + " AND ".join(parts) + ")"

    # Leaves

    def key(self, place: str, key: str, condition: Any) -> str:
        """What `where` asks of one key: a value, or an object of operators."""
        if key.startswith("$"):
            raise InvalidInput(place, r"is not $and, $or or $not; for a key that begins with $ write \$.")
        if key.startswith("#"):
            if key not in FIELDS:
                raise InvalidInput(place, rf"is not one of {', '.join(FIELDS)}; for a key that begins with # write \#.")
            subject = _Subject(FIELDS[key], None)
        else:
            path = parse_path(place, key)
            subject = _Subject(_lookup(path, self._value), path)
        if not isinstance(condition, Mapping):
            if isinstance(condition, list | tuple):
                raise InvalidInput(place, "is compared with a list; use $in, or $contains for an entry of an array.")
            condition = {"$eq": condition}
        if not condition:
            raise InvalidInput(place, "has no operator.")
        parts = []
        for operator, operand in condition.items():
            check_text(place, operator)
            parts.append(self._term(f"{place}.{_shown(operator)}", operator, operand, METADATA, subject))
        return parts[0] if len(parts) == 1 else "(" + " AND ".join(parts) + ")"

    def document(self, place: str, operator: str, operand: Any) -> str:
        """One operator of `where_document`."""
        return self._term(place, operator, operand, DOCUMENT, _Subject("document", None))

    def _term(
        self, place: str, operator: str, operand: Any, table: "Mapping[str, _Operator]", subject: "_Subject"
    ) -> str:
        positive = NEGATIONS.get(operator, operator)
        if positive not in table:
            known = [*table, *(negative for negative, of in NEGATIONS.items() if of in table)]
            raise InvalidInput(place, f"is not an operator here; those are {', '.join(known)}.")
        self._count(place)
        sql = table[positive](self, place, subject, operand)
        return sql if positive == operator else _not(sql)

    # Operators: `subject` is what is compared, `operand` with what

    def equal(self, place: str, subject: "_Subject", operand: Any) -> str:
        """The value is there and the same JSON."""
        _check_scalar(place, operand)
        if subject.path is None:
            return f"{subject.sql} = {self._json(operand)}"
        return self._holds(subject.path, [operand])

    def among(self, place: str, subject: "_Subject", operand: Any) -> str:
        """The value is there and one of a list."""
        if not isinstance(operand, list | tuple):
            raise InvalidInput(place, "must be a list.")
        for i, one in enumerate(operand):
            self._count(place)
            _check_scalar(f"{place}[{i}]", one)
        if subject.path is None:
            return f"{subject.sql} = ANY ({self._jsons(operand)})"
        return self._holds(subject.path, operand)

    def member(self, place: str, subject: "_Subject", operand: Any) -> str:
        """The value is an array that has this entry."""
        _check_scalar(place, operand)
        if subject.path is None:
            raise InvalidInput(place, "is for arrays in the metadata.")
        return self._holds(subject.path, [[operand]])

    def compared(self, place: str, subject: "_Subject", operand: Any, sign: str) -> str:
        """The value is of the operand's type, a number or a string, and stands on the right side of it."""
        _check_scalar(place, operand)
        if isinstance(operand, str):
            # By code point, in a database of any locale.
            return self.string(place, subject, operand, f'{{0}} COLLATE "C" {sign} {{1}}')
        if operand is None or isinstance(operand, bool):
            raise InvalidInput(place, "must be a number or a string.")
        return f"(jsonb_typeof({subject.sql}) = 'number' AND {subject.sql} {sign} {self._json(operand)})"

    def exists(self, place: str, subject: "_Subject", operand: Any) -> str:
        """Whether there is a value, be it null."""
        if not isinstance(operand, bool):
            raise InvalidInput(place, "must be true or false.")
        return f"{subject.sql} IS {'NOT ' if operand else ''}NULL"

    def string(self, place: str, subject: "_Subject", operand: Any, template: str) -> str:
        """The value is a string, and it and the operand are as the template says."""
        check_text(place, operand)
        text = template.format(f"({subject.sql} #>> '{{}}')", self._value(operand))
        return f"CASE WHEN jsonb_typeof({subject.sql}) = 'string' THEN {text} END"

    def like(self, place: str, subject: "_Subject", operand: Any) -> str:
        """The value is a string that looks like a pattern of SQL: % is any text, _ any character."""
        check_text(place, operand)
        if (len(operand) - len(operand.rstrip("\\"))) % 2:
            raise InvalidInput(place, r"ends with a backslash that has nothing to take literally; write \\ for one.")
        return self.string(place, subject, operand, '{0} COLLATE "C" LIKE {1}')

    def text(self, place: str, operand: Any, template: str) -> str:
        """The document and a text, as the template says."""
        check_text(place, operand)
        return template.format(self._value(operand))

    def words(self, place: str, operand: Any) -> str:
        """The document matches a text in the syntax of web searches."""
        check_query_text(place, operand)
        # In a subquery it is computed once and not for every row.
        return self.text(place, operand, "tsv @@ (SELECT vector_query(%(name)s, {}))")

    def pattern(self, place: str, operand: Any, sql: str) -> str:
        """`sql`, in which the operand is a regular expression of PostgreSQL."""
        self.patterns.append((place, operand))
        return sql

    def _holds(self, path: Sequence[str], values: Sequence[Any]) -> str:
        """One of the values lies at the path, or is part of what does: by the GIN index."""

        def contains(path: Sequence[str]) -> str:
            objects = [_at(path, value) for value in values]
            return f"metadata @> {self._json(objects[0]) if len(values) == 1 else f'ANY ({self._jsons(objects)})'}"

        if len(path) == 1:
            return contains(path)
        key = ".".join(path)
        return f"({contains([key])} OR {contains(path)} AND NOT metadata ? {self._value(key)})"

    def _count(self, place: str) -> None:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise InvalidInput(place, f"is one term too many; a filter has at most {MAX_TERMS}.")

    def _value(self, value: Any) -> str:
        self.values.append(value)
        return f"%(f{len(self.values) - 1})s"

    def _json(self, value: Any) -> str:
        return self._value(dumped(value).decode()) + "::jsonb"

    def _jsons(self, values: Sequence[Any]) -> str:
        return self._value(tuple(dumped(value).decode() for value in values)) + "::jsonb[]"


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a condition is about: an SQL expression, and its path in the metadata if it has one."""

    sql: str
    path: Sequence[str] | None


_Operator = Callable[[_Compiler, str, _Subject, Any], str]


def _comparison(sign: str) -> _Operator:
    return lambda compiler, place, subject, operand: compiler.compared(place, subject, operand, sign)


def _string(template: str) -> _Operator:
    return lambda compiler, place, subject, operand: compiler.string(place, subject, operand, template)


def _text(template: str) -> _Operator:
    return lambda compiler, place, _, operand: compiler.text(place, operand, template)


METADATA: dict[str, _Operator] = {
    "$eq": _Compiler.equal,
    "$in": _Compiler.among,
    "$gt": _comparison(">"),
    "$gte": _comparison(">="),
    "$lt": _comparison("<"),
    "$lte": _comparison("<="),
    "$exists": _Compiler.exists,
    "$contains": _Compiler.member,
    "$prefix": _string("starts_with({0}, {1})"),
    "$like": _Compiler.like,
    "$regex": lambda compiler, place, subject, operand: compiler.pattern(
        place, operand, compiler.string(place, subject, operand, "{0} ~ {1}")
    ),
}
DOCUMENT: dict[str, _Operator] = {
    "$contains": _text("strpos(document, {}) > 0"),
    "$icontains": _text("strpos(lower(document), lower({})) > 0"),
    "$regex": lambda compiler, place, _, operand: compiler.pattern(
        place, operand, compiler.text(place, operand, "document ~ {}")
    ),
    "$matches": lambda compiler, place, _, operand: compiler.words(place, operand),
}


def _at(path: Sequence[str], value: Any) -> Any:
    """The smallest metadata that has `value` at the path."""
    for key in reversed(path):
        value = {key: value}
    return value


def _not(sql: str) -> str:
    return f"({sql}) IS NOT TRUE"


def _check_scalar(place: str, value: Any) -> None:
    if isinstance(value, Mapping | list | tuple):
        raise InvalidInput(place, "must be a string, a number, true, false or null.")
    check_value(place, value)


def _shown(key: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in key[:SHOWN])
