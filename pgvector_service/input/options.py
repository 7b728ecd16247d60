"""What can be asked of any search, checked once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from pgvector_service.errors import InvalidInput
from pgvector_service.input.filters import Filter, compiled, parse_path
from pgvector_service.ranking.diversity import Mmr


class Narrowing(TypedDict, total=False):
    """Keyword arguments of every search; docs/search.md describes them."""

    where: Mapping[str, Any] | None
    where_document: Mapping[str, Any] | None
    offset: int
    group_by: str | None
    group_size: int


class SearchOptions(Narrowing, total=False):
    """Keyword arguments of a search that ranks vectors."""

    exact: bool
    min_similarity: float | None
    max_distance: float | None
    mmr: Mmr | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Options:
    """The same, checked: of the matching items, best first, `n_results` from `offset` on, with the fields of `include`.

    exact: look at every row. min_similarity, max_distance: leave out what is further away. mmr: choose among the best.
    group_by: the keys of a path in the metadata, of each value of which at most `group_size` items are taken. as_json:
    metadata may come as an orjson.Fragment.
    """

    n_results: int
    include: Sequence[str]
    filter: Filter | None = None
    offset: int = 0
    exact: bool = False
    min_similarity: float | None = None
    max_distance: float | None = None
    mmr: Mmr | None = None
    group_by: Sequence[str] | None = None
    group_size: int = 1
    as_json: bool = False

    @property
    def depth(self) -> int:
        """How many of the best it takes."""
        return self.offset + self.n_results

    @property
    def is_plain(self) -> bool:
        """Whether the answer is simply what is best."""
        return self.mmr is None and self.group_by is None


def checked(
    n_results: int, include: Sequence[str], given: Narrowing | SearchOptions, *, as_json: bool = False
) -> Options:
    """The options, or InvalidInput that names the one that is wrong."""
    rest: dict[str, Any] = dict(given)
    filter = compiled(rest.pop("where", None), rest.pop("where_document", None))
    path = rest.pop("group_by", None)
    group_by = None if path is None else parse_path("group_by", path)
    options = Options(n_results=n_results, include=include, filter=filter, group_by=group_by, as_json=as_json, **rest)
    for field, value, least in (
        ("n_results", n_results, 1),
        ("offset", options.offset, 0),
        ("group_size", options.group_size, 1),
    ):
        if value < least:
            raise InvalidInput(field, f"must be {least} or more.")
    if options.mmr and group_by:
        raise InvalidInput("group_by", "and mmr exclude one another.")
    if options.mmr and options.mmr.candidates < options.depth:
        raise InvalidInput("mmr.candidates", f"must be at least n_results and offset together, {options.depth}.")
    return options
