"""The bodies that HTTP takes and gives, once; their examples are those of the interactive documentation."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from pgvector_service.input.embeddings import MAX_DIMENSION
from pgvector_service.input.items import Mode
from pgvector_service.input.options import SearchOptions
from pgvector_service.input.values import MAX_NUMBER
from pgvector_service.ranking.distances import Metric, MetricName
from pgvector_service.ranking.diversity import MAX_CANDIDATES, Mmr
from pgvector_service.web.described import (
    NAME,
    NULL,
    CollectionName,
    Conditions,
    DocumentConditions,
    Embedding,
    Embeddings,
    Id,
    Metadata,
    MetadataPath,
    NewCollectionName,
    QueryText,
    SomeEmbeddings,
    Text,
    not_both,
    one_of,
)

Exact = Annotated[
    bool, Field(description="Look at every row, instead of at the recall that GET /collections/{name} tells.")
]
# fail_fast: otherwise each wrong entry of a list of millions costs an error object of 800 bytes. A factory: pydantic
# copies a default list deeply for each request, which takes 9 us.
Include = Annotated[
    list[Literal["documents", "metadatas", "embeddings", "uris", "media_types"]],
    Field(
        description="What the answer holds.",
        fail_fast=True,
        default_factory=lambda: ["documents", "metadatas"],
        json_schema_extra={"default": ["documents", "metadatas"]},
    ),
]


# As many as there are ids, and there is one at least; that is checked with the rest of the batch.
_ONE = {"minItems": 1}
Texts = Annotated[list[Text | None], Field(fail_fast=True, json_schema_extra=_ONE)]
Metadatas = Annotated[list[Metadata | None], Field(fail_fast=True, json_schema_extra=_ONE)]
Ids = Annotated[list[Id], Field(fail_fast=True)]
NewIds = Annotated[list[Id], Field(fail_fast=True, json_schema_extra={**_ONE, "uniqueItems": True})]
Uris = Annotated[Texts | None, Field(description="Where the thing is that the embedding stands for.")]
MediaTypes = Annotated[Texts | None, Field(description="What it is, such as text/plain or image/png.")]


def _whole(value: Any) -> Any:
    # 1.0 is an integer in JSON, and a JSON parser makes a float of one beyond 64 bits, which a bound is to refuse.
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
IfVersion = Annotated[
    Annotated[int, Field(ge=0, le=MAX_NUMBER), BeforeValidator(_whole)] | None,
    Field(description="Refuse with 409 unless the collection is at this version: nobody has written since."),
]


class Body(BaseModel):
    """A request: JSON types as they are, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid")


class NewCollection(Body):
    """POST /collections"""

    name: NewCollectionName = Field(validation_alias=AliasChoices("name", "collection_name"))
    dimension: Annotated[Whole, Field(json_schema_extra={"minimum": 1, "maximum": MAX_DIMENSION})] | None = Field(
        None, description="Fixed by the first write when left out."
    )
    metric: MetricName = Field("cosine", description="l2, l1 and dot are other names of euclidean, manhattan and ip.")
    language: Text = Field("english", description="A text search configuration of PostgreSQL, for full text search.")
    metadata: Metadata | None = None
    get_or_create: bool = False

    model_config = ConfigDict(
        json_schema_extra=lambda schema: schema.update(
            properties=schema["properties"] | {"collection_name": {**NAME, "description": "Instead of name."}},
            required=[],
            oneOf=[{"required": ["name"]}, {"required": ["collection_name"]}],
            examples=[{"name": "research_papers", "dimension": 3, "metric": "cosine"}],
        )
    )


class CollectionChange(Body):
    """PATCH /collections/{name}"""

    new_name: NewCollectionName | None = None
    metadata: Metadata | None = Field(None, description="Replaces all metadata of the collection.")
    language: Text | None = Field(None, description="Of the documents, whose words are all read anew.")
    metric: MetricName | None = Field(None, description="Searches rank by it from now on.")

    model_config = ConfigDict(
        json_schema_extra={
            **one_of(
                new_name={"type": "string"},
                metadata={"type": "object"},
                language={"type": "string"},
                metric={"type": "string"},
            ),
            "examples": [{"metadata": {"team": "search"}}],
        }
    )


class Items(Body):
    """POST /items"""

    collection_name: NewCollectionName
    ids: NewIds
    documents: Texts | None = None
    metadatas: Metadatas | None = None
    embeddings: Embeddings
    uris: Uris = None
    media_types: MediaTypes = None
    mode: Mode = Field(
        "upsert",
        description="Items whose id exists are replaced, refused (409, nothing is written), or left as they are.",
    )
    if_version: IfVersion = None

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


class ItemsUpdate(Body):
    """POST /items/update"""

    collection_name: CollectionName
    ids: NewIds
    documents: Texts | None = None
    metadatas: Annotated[
        Metadatas | None, Field(description="Merged key by key into what is there; null as a value removes a key.")
    ] = None
    embeddings: SomeEmbeddings | None = None
    uris: Uris = None
    media_types: MediaTypes = None
    if_version: IfVersion = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "collection_name": "research_papers",
                    "ids": ["doc1", "doc9"],
                    "metadatas": [{"read": True}, {"read": False}],
                }
            ]
        }
    )


class Filtered(Body):
    """Which items of a collection."""

    collection_name: CollectionName
    where: Conditions | None = Field(
        None,
        description="Conditions on the metadata: a value for a key, or an object of $eq $ne $gt $gte $lt $lte $in $nin "
        "$exists $prefix $like $regex $not_regex $contains $not_contains; with $and $or $not. `a.b` is the key `a.b`, "
        "or leads into the object `a`. `#uri`, `#media_type` and `#kind` (the media type up to the slash) are the "
        "item's own.",
        examples=[
            {"year": 2024},
            {"year": {"$eq": 2024}, "draft": {"$ne": True}},
            {"year": {"$gt": 2019, "$lt": 2025}, "author.name": {"$gte": "A", "$lte": "M"}},
            {"lang": {"$in": ["de", "fr"]}, "source": {"$nin": ["web"]}},
            {"isbn": {"$prefix": "978-3"}, "title": {"$like": "%net%", "$regex": "^[A-Z]", "$not_regex": "[0-9]$"}},
            {"doi": {"$exists": True}, "tags": {"$contains": "nlp", "$not_contains": "survey"}},
            {"$and": [{"$or": [{"year": 2024}, {"lang": "de"}]}, {"$not": {"#kind": "image"}}]},
        ],
    )
    where_document: DocumentConditions | None = Field(
        None,
        description="Conditions on the document: $contains $not_contains $icontains $regex $not_regex $matches (full "
        "text); with $and $or $not.",
        examples=[
            {"$contains": "100 %", "$not_contains": "draft"},
            {"$icontains": "bert", "$regex": "GPT-[34]", "$not_regex": "^Draft"},
            {"$or": [{"$matches": '"deep learning" -survey'}, {"$and": [{"$not": {"$contains": "BERT"}}]}]},
        ],
    )


class ItemsQuery(Filtered):
    """POST /items/get"""

    ids: Ids | None = Field(None, description="These items; without it all that match, page by page.")
    limit: Whole = Field(100, ge=1)
    cursor: str | None = Field(None, description="The next_cursor of the page before.")
    order_by: MetadataPath | None = Field(
        None, description="`id` (the default), `created_at`, or a path in the metadata."
    )
    descending: bool = False
    include: Include

    model_config = ConfigDict(
        json_schema_extra={
            **not_both("ids", order_by=NULL, cursor=NULL, descending={"const": False}),
            "examples": [
                {
                    "collection_name": "research_papers",
                    "where": {"year": {"$gte": 2015}},
                    "order_by": "year",
                    "limit": 10,
                }
            ],
        }
    )


class ItemsCount(Filtered):
    """POST /items/count"""

    ids: Ids | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"collection_name": "research_papers", "where_document": {"$matches": "attention or learning"}}
            ]
        }
    )


class ItemsDeletion(Filtered):
    """POST /items/delete"""

    ids: Ids | None = None
    dry_run: bool = Field(False, description="Count only.")
    if_version: IfVersion = None

    model_config = ConfigDict(
        json_schema_extra={
            **one_of(ids={"type": "array"}, where={"type": "object"}, where_document={"type": "object"}),
            "examples": [{"collection_name": "research_papers", "where": {"source": "arxiv"}, "dry_run": True}],
        }
    )


class SearchBody(Filtered):
    """What every search takes."""

    n_results: Whole = Field(10, ge=1)
    offset: Whole = Field(0, ge=0, description="So many of the best are left out.")
    include: Include
    group_by: MetadataPath | None = Field(
        None, description="A path in the metadata: of each value there (and of none) take at most group_size items."
    )
    group_size: Whole = Field(1, ge=1)

    def options(self) -> dict[str, Any]:
        """What was given of the options that the searches of VectorDB have in common."""
        names = self.model_fields_set & SearchOptions.__annotations__.keys()
        given = {name: getattr(self, name) for name in names}
        return {**given, "mmr": Mmr(**given["mmr"].model_dump())} if given.get("mmr") else given


class Diversity(Body):
    """Maximal marginal relevance: of the `candidates` best choose those that are unlike each other."""

    diversity: float = Field(
        0.5,
        description="0: relevance only; 1: difference only.",
        json_schema_extra={"minimum": 0, "maximum": 1},
    )
    candidates: Whole = Field(100, json_schema_extra={"minimum": 1, "maximum": MAX_CANDIDATES})


class VectorSearchBody(SearchBody):
    """What every search takes that ranks vectors."""

    exact: Exact = False
    min_similarity: float | None = Field(None, description="Leave out what is less similar.")
    max_distance: float | None = Field(None, description="Leave out what is further away.")
    mmr: Diversity | None = None


_MMR_OR_GROUPS = not_both("mmr", group_by=NULL)


class VectorQuery(VectorSearchBody):
    """POST /search/vector"""

    query_embedding: Embedding

    model_config = ConfigDict(
        json_schema_extra={
            **_MMR_OR_GROUPS,
            "examples": [
                {
                    "collection_name": "research_papers",
                    "query_embedding": [0.8, 0.2, 0.2],
                    "n_results": 2,
                    "where": {"year": {"$gte": 2015}},
                },
            ],
        }
    )


class VectorQueries(VectorSearchBody):
    """POST /search/vector/batch"""

    query_embeddings: Embeddings

    model_config = ConfigDict(
        json_schema_extra={
            **_MMR_OR_GROUPS,
            "examples": [
                {
                    "collection_name": "research_papers",
                    "query_embeddings": [[0.8, 0.2, 0.2], [0.1, 0.9, 0.1]],
                    "n_results": 1,
                }
            ],
        }
    )


class TextSearchBody(SearchBody):
    """What searches by text take."""

    snippets: bool = Field(False, description="Show where the words are: HTML, with the words in <mark>.")


class TextQuery(TextSearchBody):
    """POST /search/text"""

    query_text: QueryText = Field(description='As in web searches: words, "phrases", or, -without.')

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"collection_name": "research_papers", "query_text": "attention or learning", "snippets": True}
            ]
        }
    )


class TextQueries(TextSearchBody):
    """POST /search/text/batch"""

    query_texts: list[QueryText] = Field(fail_fast=True, min_length=1)

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"collection_name": "research_papers", "query_texts": ["attention", "residual -attention"]}]
        }
    )


class HybridSearchBody(VectorSearchBody):
    """What hybrid searches take."""

    k: float = Field(60, ge=0, description="Fusion by rank: the sum of 1 / (k + rank) over both sides.")
    alpha: float | None = Field(
        None, ge=0, le=1, description="Fusion by score instead: alpha times the nearness, 1 - alpha times the match."
    )
    candidates: Annotated[Whole, Field(json_schema_extra={"minimum": 1})] | None = Field(
        None,
        description="So many of the best of each side take part; by default 100, or as many as are wanted. At least "
        "n_results and offset together.",
    )


class HybridQuery(HybridSearchBody):
    """POST /search/hybrid"""

    query_embedding: Embedding
    query_text: QueryText

    model_config = ConfigDict(
        json_schema_extra={
            **_MMR_OR_GROUPS,
            "examples": [
                {
                    "collection_name": "research_papers",
                    "query_embedding": [0.8, 0.2, 0.2],
                    "query_text": "residual learning",
                    "n_results": 2,
                }
            ],
        }
    )


class HybridQueries(HybridSearchBody):
    """POST /search/hybrid/batch"""

    query_embeddings: Embeddings
    query_texts: list[QueryText] = Field(fail_fast=True, min_length=1)

    model_config = ConfigDict(
        json_schema_extra={
            **_MMR_OR_GROUPS,
            "examples": [
                {
                    "collection_name": "research_papers",
                    "query_embeddings": [[0.8, 0.2, 0.2], [0.1, 0.9, 0.1]],
                    "query_texts": ["attention", "residual learning"],
                }
            ],
        }
    )


class Examples(Body):
    """Items, by id, and embeddings."""

    ids: Ids = []
    embeddings: Embeddings | None = None


class SimilarQuery(VectorSearchBody):
    """POST /search/similar"""

    ids: Ids = []
    embeddings: Embeddings | None = None
    negative: Examples = Field(default_factory=Examples, description="What the results should be unlike.")

    model_config = ConfigDict(
        json_schema_extra={
            **_MMR_OR_GROUPS,
            "allOf": [one_of(ids={"minItems": 1}, embeddings={"type": "array"})],
            "examples": [{"collection_name": "research_papers", "ids": ["doc1"], "negative": {"ids": ["doc2"]}}],
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
    language: str
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
                    "language": "english",
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
    ignored: int = Field(0, description="Items left as they were, in mode ignore.")

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"collection_name": "research_papers", "added": 2, "updated": 0, "version": 1}]}
    )


class FailedLine(Answer):
    """A line of an import that could not be stored."""

    line: int = Field(description="1 for the first.")
    detail: str


class Imported(Answer):
    """What an import did."""

    collection_name: str
    lines: int
    added: int
    updated: int
    ignored: int
    failed: int
    errors: list[FailedLine] = Field(description="The first hundred lines that failed.")
    version: int | None = Field(description="null when no line was stored.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "collection_name": "research_papers",
                    "lines": 3,
                    "added": 2,
                    "updated": 0,
                    "ignored": 0,
                    "failed": 1,
                    "errors": [
                        {
                            "line": 2,
                            "detail": "embedding: expected 3 numbers, the dimension of the collection, and got 2.",
                        }
                    ],
                    "version": 1,
                }
            ]
        }
    )


class Updated(Answer):
    """What an update did."""

    collection_name: str
    updated: int
    missing: list[str] = Field(description="Ids that do not exist.")
    version: int

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"collection_name": "research_papers", "updated": 1, "missing": ["doc9"], "version": 2}]
        }
    )


class Counted(Answer):
    """How many items there are."""

    count: int
    version: int

    model_config = ConfigDict(json_schema_extra={"examples": [{"count": 2, "version": 1}]})


class Deleted(Answer):
    """What a deletion did, or with dry_run would do."""

    deleted: int
    version: int
    dry_run: bool = False

    model_config = ConfigDict(json_schema_extra={"examples": [{"deleted": 1, "version": 2}]})


class ItemsPage(Answer):
    """Items, as lists of one length."""

    ids: list[str]
    documents: list[str | None] = []
    metadatas: list[dict[str, Any] | None] = []
    embeddings: list[list[float | None] | None] = []
    uris: list[str | None] = []
    media_types: list[str | None] = []
    next_cursor: str | None
    version: int

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ids": ["doc1"],
                    "documents": ["Attention is all you need"],
                    "metadatas": [{"source": "arxiv", "year": 2017}],
                    "next_cursor": "WyJ5ZWFyIixmYWxzZSwiMjAxNyIsImRvYzEiXQ==",
                    "version": 1,
                }
            ]
        }
    )


class ExportedItem(Answer):
    """A line of an export."""

    id: str
    document: str | None
    metadata: dict[str, Any] | None
    embedding: list[float | None] | None
    uri: str | None
    media_type: str | None


class Item(ExportedItem):
    """One item."""

    version: int = Field(description="Of the collection.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "doc1",
                    "document": "Attention is all you need",
                    "metadata": {"source": "arxiv", "year": 2017},
                    "embedding": [0.9, 0.1, 0.2],
                    "uri": "https://arxiv.org/abs/1706.03762",
                    "media_type": "text/plain",
                    "version": 1,
                }
            ]
        }
    )


class Found(Answer):
    """What was found, best first, as lists of one length."""

    ids: list[str]
    documents: list[str | None] = []
    metadatas: list[dict[str, Any] | None] = []
    embeddings: list[list[float] | None] = []
    uris: list[str | None] = []
    media_types: list[str | None] = []
    groups: list[Any] = Field([], description="With group_by: the value that each has there.")
    version: int = Field(description="Of the collection.")


class Hits(Found):
    """What is near."""

    distances: list[float | None]
    similarities: list[float | None]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ids": ["doc1", "doc2"],
                    "documents": ["Attention is all you need", "Deep residual learning"],
                    "metadatas": [{"source": "arxiv", "year": 2017}, {"source": "arxiv", "year": 2015}],
                    "distances": [0.008759292067, 0.589002530937],
                    "similarities": [0.991240707933, 0.410997469063],
                    "version": 1,
                }
            ]
        }
    )


class TextHits(Found):
    """What matches."""

    scores: list[float] = Field(description="ts_rank_cd: how often and how closely together the words stand.")
    snippets: list[str | None] = []

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ids": ["doc1"],
                    "documents": ["Attention is all you need"],
                    "metadatas": [{"source": "arxiv", "year": 2017}],
                    "scores": [0.1],
                    "snippets": ["<mark>Attention</mark> is all you need"],
                    "version": 1,
                }
            ]
        }
    )


class HybridHits(Hits):
    """What is near, or matches, or both."""

    scores: list[float] = Field(description="Of the fusion; more is better.")
    vector_ranks: list[int | None] = Field(description="1 for the nearest; null if not among the best by vector.")
    text_ranks: list[int | None] = Field(description="1 for the best match; null if not among the best by text.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ids": ["doc2", "doc1"],
                    "documents": ["Deep residual learning", "Attention is all you need"],
                    "metadatas": [{"source": "arxiv", "year": 2015}, {"source": "arxiv", "year": 2017}],
                    "distances": [0.589002530937, 0.008759292067],
                    "similarities": [0.410997469063, 0.991240707933],
                    "scores": [0.03252247488101534, 0.01639344262295082],
                    "vector_ranks": [2, 1],
                    "text_ranks": [1, None],
                    "version": 1,
                }
            ]
        }
    )


class HitsOfMany(Answer):
    """One result for each query, in their order."""

    results: list[Hits]


class TextHitsOfMany(Answer):
    """One result for each query, in their order."""

    results: list[TextHits]


class HybridHitsOfMany(Answer):
    """One result for each query, in their order."""

    results: list[HybridHits]


class Health(Answer):
    """The state of the service, at most a second or so old."""

    status: Literal["healthy", "unhealthy"]
    database: bool
    timestamp: datetime
    version: str
    maintenance: bool = Field(description="Requests are refused with 503 until the maintenance ends.")
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
                    "maintenance": False,
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
