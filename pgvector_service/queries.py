"""The statements of queries.sql as attributes: `queries.upsert`."""

import re
from pathlib import Path

_TEXT = Path(__file__).with_name("queries.sql").read_text("utf-8")
_NAMED = re.split(r"^-- name: (\w+)\n", _TEXT, flags=re.MULTILINE)[1:]
_STATEMENTS = {name: sql.strip() for name, sql in zip(_NAMED[::2], _NAMED[1::2], strict=True)}


def __getattr__(name: str) -> str:
    try:
        return _STATEMENTS[name]
    except KeyError:
        raise AttributeError(f"queries.sql has no statement {name!r}") from None
