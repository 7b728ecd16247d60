"""Pages of items in a stable order: each begins after the last row of the one before, whatever was written since."""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import orjson

from pgvector_service.errors import InvalidInput
from pgvector_service.input.filters import at_path, parse_path


@dataclass(frozen=True, slots=True)
class Order:
    """An order of items: by `id`, by `created_at`, or by what lies at a path in the metadata; equal ones by id.

    Metadata are ordered as PostgreSQL orders JSON: null, strings, numbers, booleans, arrays, objects; items that lack
    the key come last, both ways. A metadata key that is called like a field is written with a backslash: `\\id`.
    """

    by: str = "id"
    descending: bool = False

    def sql(self, after: "tuple[str | None, str] | None") -> tuple[dict[str, str], dict[str, Any]]:
        """The parts `sort`, `after` and `order` of a statement, and their parameters; `after` is of the last row."""
        sign, direction = ("<", "DESC") if self.descending else (">", "ASC")
        if self.by == "id":
            parts = {"sort": "NULL", "order": f"id {direction}", "after": f"AND id {sign} %(after_id)s"}
            values: dict[str, str] = {}
        else:
            sort, values, kind = "created_at", {}, "timestamptz"
            if self.by != "created_at":
                kind = "jsonb"
                sort, values = at_path(parse_path("order_by", self.by))
            value, same = f"%(after_value)s::{kind}", f"{sort} = %(after_value)s::{kind} AND id > %(after_id)s"
            further = f"{sort} {sign} {value} OR {same} OR {sort} IS NULL"
            if after and after[0] is None:
                further = f"{sort} IS NULL AND id > %(after_id)s"
            parts = {"sort": sort, "order": f"{sort} {direction} NULLS LAST, id", "after": f"AND ({further})"}
        if after is None:
            return {**parts, "after": ""}, values
        return parts, {**values, "after_value": after[0], "after_id": after[1]}

    def cursor(self, value: str | None, id_: str) -> str:
        """What stands for the place after a row with this id and sort value."""
        return base64.urlsafe_b64encode(orjson.dumps([self.by, self.descending, value, id_])).decode()

    def place(self, cursor: str) -> tuple[str | None, str]:
        """The sort value and the id that a cursor of this order holds."""
        try:
            held = orjson.loads(base64.b64decode(cursor.encode(), altchars=b"-_", validate=True))
            by, descending, value, id_ = held
            if not (isinstance(id_, str) and isinstance(value, str | None)) or "\0" in f"{id_}{value}":
                raise ValueError
            if value is not None and self.by not in ("id", "created_at"):
                orjson.loads(value)
        except (binascii.Error, ValueError, TypeError):
            raise InvalidInput("cursor", "is not one that this service gave; leave it out to begin anew.") from None
        if (by, descending) != (self.by, self.descending):
            raise InvalidInput("cursor", "belongs to pages in another order; leave it out to begin anew.")
        return value, id_
