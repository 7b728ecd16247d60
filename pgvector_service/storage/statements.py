"""The statements of statements.sql as attributes: `statements.upsert`."""

import re
from pathlib import Path
from typing import Any

from pgvector_service.input.filters import Filter

_TEXT = Path(__file__).with_name("statements.sql").read_text("utf-8")
_NAMED = re.split(r"^-- name: (\w+)\n", _TEXT, flags=re.MULTILINE)[1:]
# Without comments: a value with a line break in it would end one, and go on as SQL.
_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)
_STATEMENTS = {name: _COMMENT.sub("", sql).strip() for name, sql in zip(_NAMED[::2], _NAMED[1::2], strict=True)}


def __getattr__(name: str) -> str:
    try:
        return _STATEMENTS[name]
    except KeyError:
        raise AttributeError(f"statements.sql has no statement {name!r}") from None


def filtered(statement: str, filter: Filter | None, **parts: str) -> str:
    """`statement` for the rows that match only; `parts` are conditions and the like for its other places."""
    for name, sql in {"filter": f"AND ({filter.sql})" if filter else "", **parts}.items():
        statement = statement.replace(f"/* {name} */", sql)
    return statement


def parameters(name: str, filter: Filter | None) -> dict[str, Any]:
    """Those of a statement for the rows of a collection that match."""
    return {"name": name, **(filter.parameters if filter else {})}
