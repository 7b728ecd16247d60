"""What the gates in items.py and filters.py refuse, as JSON schema for OpenAPI: types that describe and check nothing.

A schema cannot say everything. Left out are bytes as against characters, numbers that must agree with others, levels of
nesting, and what only the database knows.
"""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from pgvector_service.input.embeddings import MAX_DIMENSION
from pgvector_service.input.filters import DOCUMENT, FIELDS, MAX_QUERY_TEXT, METADATA, NEGATIONS
from pgvector_service.input.values import MAX_NAME_BYTES, MAX_NUMBER

# From here on a number rounds to infinity as float32.
_TOO_LARGE = (2 - 2**-24) * 2**127
_BASE64 = "[A-Za-z0-9+/]"

TEXT = {"type": "string", "pattern": r"^[^\u0000]*$"}
# Bytes are at least as many as characters.
ID = {**TEXT, "minLength": 1, "maxLength": MAX_NAME_BYTES}
NAME = {**ID}
# No slash, and neither one dot nor two. Names with a slash exist only where plain SQL has made them.
NEW_NAME = {**ID, "pattern": r"^(?:\.?[^./\u0000][^/\u0000]*|\.\.[^/\u0000]+)$"}
# A pattern of LIKE, in which a backslash takes what follows literally.
PATTERN = {"type": "string", "pattern": r"^(?:[^\\\u0000]|\\[^\u0000])*$"}
# Python takes the separators U+001C to U+001F for spaces too.
_WORD = r"[^\s\u0000\u001c-\u001f\u0085]"
QUERY_TEXT = {"type": "string", "pattern": rf"^[^\u0000]*{_WORD}[^\u0000]*$", "maxLength": MAX_QUERY_TEXT}
# Keys with dots between; a backslash takes what follows literally.
PATH = {"type": "string", "pattern": r"^(?:(?:[^#\\\u0000]|\\[^\u0000])(?:[^\\\u0000]|\\[^\u0000])*)?$"}
NULL = {"type": "null"}
SCALAR = {
    "type": ["string", "number", "boolean", "null"],
    "pattern": TEXT["pattern"],
    "minimum": -MAX_NUMBER,
    "maximum": MAX_NUMBER,
}
EMBEDDING: dict[str, Any] = {
    "anyOf": [
        {
            "type": "array",
            "items": {"type": "number", "exclusiveMinimum": -_TOO_LARGE, "exclusiveMaximum": _TOO_LARGE},
            "minItems": 1,
            "maxItems": MAX_DIMENSION,
        },
        {
            "type": "string",
            "contentEncoding": "base64",
            "description": "Little-endian float32 numbers in base64.",
            # Of whole numbers: 4, 8 or 12 bytes at the end.
            "pattern": f"^(?:{_BASE64}{{16}})*(?:{_BASE64}{{6}}==|{_BASE64}{{11}}=|{_BASE64}{{16}})$",
        },
    ]
}


class _Component:
    """An annotation: the type is described by a schema with a name of its own, which may hold itself."""

    def __init__(self, name: str, around: Callable[[JsonSchemaValue], JsonSchemaValue]) -> None:
        self._name = name
        self._around = around

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # The chain is there because a handler gives its outermost schema no name.
        reference = handler(core_schema.chain_schema([core_schema.dict_schema(ref=self._name)]))
        named = handler.resolve_ref_schema(reference)
        named.clear()
        named.update(self._around(reference), title=self._name)
        return reference


def _json(itself: JsonSchemaValue) -> JsonSchemaValue:
    return {
        "description": "Any JSON, up to 32 levels deep.",
        "anyOf": [SCALAR, {"type": "array", "items": itself}, _object_of(itself)],
    }


def _where(itself: JsonSchemaValue) -> JsonSchemaValue:
    # An item's own fields are no arrays.
    own = {operator: of for operator, of in METADATA.items() if operator != "$contains"}
    key = r"^(?:(?:[^$#\\\u0000]|\\[^\u0000])(?:[^\\\u0000]|\\[^\u0000])*)?$"
    return {
        "description": "Conditions on the metadata: a value for a key, or an object of operators.",
        **_some(_tree(itself)),
        "patternProperties": {key: _condition(METADATA), f"^(?:{'|'.join(FIELDS)})$": _condition(own)},
    }


def _where_document(itself: JsonSchemaValue) -> JsonSchemaValue:
    operands = dict.fromkeys(_operators(DOCUMENT), TEXT) | {"$matches": {**TEXT, "maxLength": MAX_QUERY_TEXT}}
    return {"description": "Conditions on the document.", **_some({**_tree(itself), **operands})}


class _Members:
    """An annotation: an object of any JSON."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return _object_of(_JSON.__get_pydantic_json_schema__(schema, handler))


_JSON = _Component("Json", _json)
Text = Annotated[str, WithJsonSchema(TEXT)]
Id = Annotated[str, WithJsonSchema(ID)]
CollectionName = Annotated[str, WithJsonSchema(NAME)]
NewCollectionName = Annotated[str, WithJsonSchema(NEW_NAME)]
QueryText = Annotated[str, WithJsonSchema(QUERY_TEXT)]
MetadataPath = Annotated[str, WithJsonSchema(PATH)]
Metadata = Annotated[dict[str, Any], _Members()]
Conditions = Annotated[dict[str, Any], _Component("Where", _where)]
DocumentConditions = Annotated[dict[str, Any], _Component("WhereDocument", _where_document)]
# Checked by `items.checked_matrix`, which makes a matrix of it at once instead of another list of Python floats.
Embedding = Annotated[Any, WithJsonSchema(EMBEDDING)]
Embeddings = Annotated[Any, WithJsonSchema({"type": "array", "items": EMBEDDING, "minItems": 1})]
SomeEmbeddings = Annotated[
    Any, WithJsonSchema({"type": "array", "items": {"anyOf": [EMBEDDING, {"type": "null"}]}, "minItems": 1})
]


def not_both(field: str, **others: JsonSchemaValue) -> JsonSchemaValue:
    """Unless `field` is null or left out, the others must be so, or left out."""
    return {"anyOf": [{"properties": {field: NULL}}, {"properties": others}]}


def one_of(**fields: JsonSchemaValue) -> JsonSchemaValue:
    """At least one of the fields is there, and is so."""
    return {"anyOf": [{"required": [field], "properties": {field: schema}} for field, schema in fields.items()]}


def _object_of(member: JsonSchemaValue) -> JsonSchemaValue:
    return {"type": "object", "propertyNames": {"pattern": TEXT["pattern"]}, "additionalProperties": member}


def _some(properties: JsonSchemaValue) -> JsonSchemaValue:
    """An object that has one of the properties, and no other."""
    return {"type": "object", "minProperties": 1, "properties": properties, "additionalProperties": False}


def _tree(itself: JsonSchemaValue) -> JsonSchemaValue:
    several = {"type": "array", "items": itself, "minItems": 1}
    return {"$and": several, "$or": several, "$not": itself}


def _operators(table: dict[str, Any]) -> list[str]:
    return [*table, *(negative for negative, positive in NEGATIONS.items() if positive in table)]


def _condition(table: dict[str, Any]) -> JsonSchemaValue:
    """A value, or an object of the operators of a table."""
    ordered = {**SCALAR, "type": ["string", "number"]}
    several = {"type": "array", "items": SCALAR}
    operands: dict[str, JsonSchemaValue] = dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), ordered)
    operands |= {"$prefix": TEXT, "$like": PATTERN, "$regex": TEXT, "$not_regex": TEXT}
    operands |= {"$in": several, "$nin": several, "$exists": {"type": "boolean"}}
    return {"anyOf": [SCALAR, _some({operator: operands.get(operator, SCALAR) for operator in _operators(table)})]}
