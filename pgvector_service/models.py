"""The bodies that HTTP takes and gives, once; their examples are those of the interactive documentation."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, WithJsonSchema

from pgvector_service.ranking import Metric

_VECTOR = {
    "anyOf": [
        {"type": "array", "items": {"type": "number"}},
        {"type": "string", "contentEncoding": "base64", "description": "Little-endian float32 numbers in base64."},
    ]
}
# Checked by `items.checked_matrix`, which makes a matrix of it at once instead of another list of Python floats.
Embedding = Annotated[Any, WithJsonSchema(_VECTOR)]
Embeddings = Annotated[Any, WithJsonSchema({"type": "array", "items": _VECTOR, "minItems": 1})]
Exact = Annotated[
    bool, Field(description="Look at every row, instead of at the recall that GET /collections/{name} tells.")
]
# fail_fast: otherwise each wrong entry of a list of millions costs an error object of 800 bytes. A factory: pydantic
# copies a default list deeply for each request, which takes 9 us.
Include = Annotated[
    list[Literal["documents", "metadatas", "embeddings"]],
    Field(
        description="What the answer holds.",
        fail_fast=True,
        default_factory=lambda: ["documents", "metadatas"],
        json_schema_extra={"default": ["documents", "metadatas"]},
    ),
]


class Body(BaseModel):
    """A request: JSON types as they are, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid")


class NewCollection(Body):
    """POST /collections"""

    name: str = Field(validation_alias=AliasChoices("name", "collection_name"))
    dimension: int | None = Field(None, description="Fixed by the first write when left out.")
    metric: Metric = "cosine"
    metadata: dict[str, Any] | None = None
    get_or_create: bool = False

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "research_papers", "dimension": 3, "metric": "cosine"}]}
    )


class CollectionChange(Body):
    """PATCH /collections/{name}"""

    new_name: str | None = None
    metadata: dict[str, Any] | None = Field(None, description="Replaces all metadata of the collection.")

    model_config = ConfigDict(json_schema_extra={"examples": [{"metadata": {"team": "search"}}]})


class Items(Body):
    """POST /items"""

    collection_name: str
    ids: list[str] = Field(fail_fast=True)
    documents: list[str | None] | None = Field(None, fail_fast=True)
    metadatas: list[dict[str, Any] | None] | None = Field(None, fail_fast=True)
    embeddings: Embeddings

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "collection_name": "research_papers",
                    "ids": ["doc1", "doc2"],
                    "documents": ["Attention is all you need", "Deep residual learning"],
                    "metadatas": [{"source": "arxiv", "year": 2017}, {"source": "arxiv", "year": 2015}],
                    "embeddings": [[0.9, 0.1, 0.2], [0.1, 0.8, 0.3]],
                }
            ]
        }
    )


class ItemsQuery(Body):
    """POST /items/get"""

    collection_name: str
    ids: list[str] | None = Field(
        None, description="These items; without it all, page by page in id order.", fail_fast=True
    )
    limit: int = Field(100, ge=1)
    cursor: str | None = Field(None, description="The next_cursor of the page before.")
    include: Include

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"collection_name": "research_papers", "ids": ["doc1", "doc2"]}]}
    )


class ItemsDeletion(Body):
    """POST /items/delete"""

    collection_name: str
    ids: list[str] = Field(fail_fast=True)

    model_config = ConfigDict(json_schema_extra={"examples": [{"collection_name": "research_papers", "ids": ["doc2"]}]})


class VectorQuery(Body):
    """POST /search/vector"""

    collection_name: str
    query_embedding: Embedding
    n_results: int = Field(10, ge=1)
    include: Include
    exact: Exact = False

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"collection_name": "research_papers", "query_embedding": [0.8, 0.2, 0.2], "n_results": 2},
            ]
        }
    )


class VectorQueries(Body):
    """POST /search/vector/batch"""

    collection_name: str
    query_embeddings: Embeddings
    n_results: int = Field(10, ge=1)
    include: Include
    exact: Exact = False

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "collection_name": "research_papers",
                    "query_embeddings": [[0.8, 0.2, 0.2], [0.1, 0.9, 0.1]],
                    "n_results": 1,
                }
            ]
        }
    )


class Answer(BaseModel):
    """A response; documented and tested against these models, written without them."""

    model_config = ConfigDict(extra="forbid")


class Searched(Answer):
    """How a collection is searched for ten results."""

    method: Literal["exact", "compressed"]
    candidates: int | None = Field(description="Rows that compressed codes choose, to be measured exactly.")
    recall: float = Field(description="The share of the nearest ten that is found, as measured on stored vectors.")


class Collection(Answer):
    """A collection."""

    name: str
    dimension: int | None
    metric: Metric
    metadata: dict[str, Any]
    count: int
    skipped: int | None = Field(
        description="Rows written by plain SQL that searches leave out: no embedding, another width, NaN or infinity, "
        "zeros under cosine. null while the collection is not in memory."
    )
    search: Searched | None = Field(description="null while the collection is not in memory.")
    version: int
    created_at: datetime

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "research_papers",
                    "dimension": 384,
                    "metric": "cosine",
                    "metadata": {},
                    "count": 100000,
                    "skipped": 0,
                    "search": {"method": "compressed", "candidates": 440, "recall": 1.0},
                    "version": 1,
                    "created_at": "2026-11-22T10:30:00+00:00",
                }
            ]
        }
    )


class Collections(Answer):
    """A page of collections, by name."""

    collections: list[Collection]
    total: int


class Written(Answer):
    """What a write did; every search from now on sees it."""

    collection_name: str
    added: int
    updated: int
    version: int

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"collection_name": "research_papers", "added": 2, "updated": 0, "version": 1}]}
    )


class Deleted(Answer):
    """What a deletion did."""

    deleted: int
    version: int

    model_config = ConfigDict(json_schema_extra={"examples": [{"deleted": 1, "version": 2}]})


class ItemsPage(Answer):
    """Items, as lists of one length."""

    ids: list[str]
    documents: list[str | None] = []
    metadatas: list[dict[str, Any] | None] = []
    embeddings: list[list[float | None] | None] = []
    next_cursor: str | None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ids": ["doc1"],
                    "documents": ["Attention is all you need"],
                    "metadatas": [{"source": "arxiv", "year": 2017}],
                    "next_cursor": "ZG9jMQ==",
                }
            ]
        }
    )


class Item(Answer):
    """One item."""

    id: str
    document: str | None
    metadata: dict[str, Any] | None
    embedding: list[float | None] | None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "doc1",
                    "document": "Attention is all you need",
                    "metadata": {"source": "arxiv", "year": 2017},
                    "embedding": [0.9, 0.1, 0.2],
                }
            ]
        }
    )


class Hits(Answer):
    """What was found, best first, as lists of one length."""

    ids: list[str]
    documents: list[str | None] = []
    metadatas: list[dict[str, Any] | None] = []
    embeddings: list[list[float] | None] = []
    distances: list[float]
    similarities: list[float]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ids": ["doc1", "doc2"],
                    "documents": ["Attention is all you need", "Deep residual learning"],
                    "metadatas": [{"source": "arxiv", "year": 2017}, {"source": "arxiv", "year": 2015}],
                    "distances": [0.008759292067, 0.589002531],
                    "similarities": [0.991240707933, 0.410997469],
                }
            ]
        }
    )


class HitsOfMany(Answer):
    """One result for each query, in their order."""

    results: list[Hits]


class Health(Answer):
    """The state of the service, at most a second or so old."""

    status: Literal["healthy", "unhealthy"]
    database: bool
    timestamp: datetime
    version: str
    pgvector: str | None = Field(description="The version of the pgvector extension, if the database has it.")
    collections_in_memory: int
    memory_bytes: int

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "status": "healthy",
                    "database": True,
                    "timestamp": "2026-11-22T10:30:00+00:00",
                    "version": "0.1.0",
                    "pgvector": "0.8.6",
                    "collections_in_memory": 1,
                    "memory_bytes": 154800000,
                }
            ]
        }
    )


class Status(Answer):
    """A yes or a no for a probe."""

    status: Literal["live", "ready", "not ready"]


class Problem(Answer):
    """Every error, as RFC 9457 describes (application/problem+json)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:pgvector-service:dimension_mismatch",
                    "title": "Dimension mismatch",
                    "status": 422,
                    "detail": "embeddings[0]: expected 384 numbers, the dimension of the collection, and got 383.",
                    "code": "dimension_mismatch",
                    "request_id": "7d4f6c1e0b7f4c5e9b1d2f3a4b5c6d7e",
                }
            ]
        }
    )
