"""Door 1, HTTP: `create_app()` and the routes. What they do is in pgvector_db.VectorDB; here is how it is asked."""

import multiprocessing
import os
import signal
import threading
from asyncio import get_running_loop
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import cache
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from fastapi.routing import iter_route_contexts
from fastapi_offline import FastAPIOffline
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette_compress import CompressMiddleware, add_compress_type

from pgvector_db import VectorDB
from pgvector_service import __version__, logs
from pgvector_service.errors import CollectionExists, Conflict, InvalidInput, ItemNotFound
from pgvector_service.input.items import Mode
from pgvector_service.input.pages import Order
from pgvector_service.input.values import checked_metric
from pgvector_service.settings import Settings, SettingsError
from pgvector_service.storage.embedded import EmbeddedPostgres
from pgvector_service.web import models, problems
from pgvector_service.web.bodies import lines
from pgvector_service.web.described import CollectionName, Id, NewCollectionName
from pgvector_service.web.health import Probe
from pgvector_service.web.middleware import ENCODED_SLASH, RequestMiddleware, content_encoding
from pgvector_service.web.refusals import Refusals
from pgvector_service.web.routing import JsonRoute, StrictRoute

# Queries of a batch search times n_results are at most so many times MAX_RESULTS.
BATCH_SHARE = 10
EXPORT_LINES = 200
# Smaller answers fit into a few packets as they are.
COMPRESSED_BYTES = 4_096


class Answer(Response):
    """JSON, numpy arrays and datetimes included; numbers that JSON lacks become null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


class _Name(Convertor[str]):
    """A collection's name in a path, in which a slash was sent as %2F."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return value.replace(ENCODED_SLASH, "/")

    def to_string(self, value: str) -> str:
        return value.replace("/", ENCODED_SLASH)


class _AnyId(_Name):
    """An id in a path: everything up to the end, slashes and line breaks too."""

    regex = "(?s:.+)"


add_compress_type("application/x-ndjson")
register_url_convertor("name", _Name())
register_url_convertor("any", _AnyId())


# async: FastAPI sends plain functions to a thread, which costs 0.3 ms each.
async def _db(request: Request) -> VectorDB:
    db: VectorDB = request.app.state.db
    return db


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _probe(request: Request) -> Probe:
    probe: Probe = request.app.state.probe
    return probe


Database = Annotated[VectorDB, Depends(_db)]
Configured = Annotated[Settings, Depends(_settings)]
Probed = Annotated[Probe, Depends(_probe)]
Name = Annotated[CollectionName, Path(description="The name of a collection.", examples=["research_papers"])]
ItemId = Annotated[Id, Path(description="Any text; encode it for the URL.", examples=["doc1"])]


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its documentation."""
    schema = {"$ref": "#/components/schemas/Problem"}
    text = {
        404: "No such collection or item",
        409: "The name or an id is taken, or the collection has changed since `if_version`",
        413: "The body is larger than MAX_BODY_BYTES",
        415: "The body is compressed in another way than gzip or zstd",
        422: "The input is not valid; `detail` names field and position",
        500: "A fault of the service; the log has the cause under the `request_id`",
        503: "The database is away or busy; try again after `Retry-After` seconds",
    }
    return {
        status: {"description": text[status], "content": {"application/problem+json": {"schema": schema}}}
        for status in statuses
    }


router = APIRouter(route_class=StrictRoute)
with_body = APIRouter(route_class=JsonRoute)


# Collections


@with_body.post(
    "/collections",
    tags=["collections"],
    status_code=201,
    response_model=models.Collection,
    responses={
        200: {"model": models.Collection, "description": "It existed; get_or_create"},
        **_problems(409, 503),
    },
)
def create_collection(body: models.NewCollection, db: Database) -> Response:
    """Create a collection. Not needed before `POST /items`, which creates what is missing with metric cosine."""
    try:
        return Answer(db.create_collection(**body.model_dump(exclude={"get_or_create"})), 201)
    except CollectionExists:
        if not body.get_or_create:
            raise CollectionExists(f"{CollectionExists.__doc__} Or send get_or_create to use it as it is.") from None
    collection = db.get_collection(body.name)
    wanted = {"dimension": body.dimension, "metric": checked_metric("metric", body.metric), "language": body.language}
    for field in body.model_fields_set & wanted.keys():
        if wanted[field] not in (None, collection[field]):
            raise Conflict(f"The collection exists with another {field}: {collection[field]}.")
    return Answer(collection)


@router.get("/collections", tags=["collections"], response_model=models.Collections, responses=_problems(503))
def list_collections(
    db: Database,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> Response:
    """Collections by name."""
    return Answer(db.list_collections(limit, offset))


@router.get(
    "/collections/{name:name}", tags=["collections"], response_model=models.Collection, responses=_problems(404, 503)
)
def get_collection(name: Name, db: Database) -> Response:
    """One collection: its dimension and metric, how many items it has, and how many of them cannot be searched."""
    return Answer(db.get_collection(name))


@with_body.patch(
    "/collections/{name:name}",
    tags=["collections"],
    response_model=models.Collection,
    responses=_problems(404, 409, 503),
)
def update_collection(name: Name, body: models.CollectionChange, db: Database) -> Response:
    """Rename a collection, replace its metadata, change its language or its metric.

    A new name or language rewrites all its rows; under a new metric the next search reads them anew.
    """
    return Answer(db.update_collection(name, body.new_name, body.metadata, body.language, body.metric))


@router.delete(
    "/collections/{name:name}",
    tags=["collections"],
    status_code=204,
    response_class=Response,
    responses=_problems(404, 503),
)
def delete_collection(name: Name, db: Database) -> Response:
    """Delete a collection and all its items."""
    db.delete_collection(name)
    return Response(status_code=204)


@router.get(
    "/collections/{name:name}/export",
    tags=["collections"],
    response_class=StreamingResponse,
    responses={
        200: {"description": "One item a line", "content": {"application/x-ndjson": {"schema": {"type": "string"}}}},
        **_problems(404, 503),
    },
)
def export_collection(name: Name, db: Database) -> Response:
    """All items in id order, from one snapshot, as newline-delimited JSON."""
    items = db.export_collection(name)
    first = list(islice(items, 1))  # raises here, while there can still be another answer

    def lines() -> Iterator[bytes]:
        rest = chain(first, items)
        while batch := list(islice(rest, EXPORT_LINES)):
            option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
            yield b"".join(orjson.dumps(item, option=option) for item in batch)

    async def stream() -> AsyncIterator[bytes]:
        try:
            async for chunk in iterate_in_threadpool(lines()):
                yield chunk
        finally:
            # In a thread: it talks to the database.
            await run_in_threadpool(items.close)

    return StreamingResponse(stream(), media_type="application/x-ndjson")


# Items


@with_body.post(
    "/items",
    tags=["items"],
    status_code=201,
    response_model=models.Written,
    responses=_problems(409, 503),
)
def add_items(body: models.Items, db: Database) -> Response:
    """Store items with their embeddings, all or none; an item whose id exists is replaced, unless `mode` says else."""
    written = db.add_with_embeddings(
        body.collection_name,
        body.ids,
        body.documents,
        body.metadatas,
        body.embeddings,
        uris=body.uris,
        media_types=body.media_types,
        mode=body.mode,
        if_version=body.if_version,
    )
    return Answer(written, 201)


@router.post(
    "/items/import",
    tags=["items"],
    response_model=models.Imported,
    responses=_problems(409, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "One item a line, as `GET /collections/{name}/export` gives them.",
            "content": {
                "application/x-ndjson": {
                    "schema": {},
                    "example": '{"id": "doc1", "document": "Attention", "embedding": [0.9, 0.1, 0.2]}\n',
                }
            },
        }
    },
)
async def import_items(
    request: Request,
    db: Database,
    settings: Configured,
    collection_name: Annotated[
        NewCollectionName, Query(description="Is created if it is missing, with metric cosine.")
    ],
    mode: Annotated[Mode, Query(description="What happens to items that exist.")] = "upsert",
) -> Response:
    """Store the lines of an export, of any number, while they come.

    Up to a thousand lines are one transaction. Lines that are wrong are left out, and the answer tells which and why.
    """
    # A page in a browser can send text, with any parameters, to anywhere without asking.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (media_type.startswith("application/") and "json" in media_type):
        raise InvalidInput("body", "must be lines of JSON, sent with the header Content-Type: application/x-ndjson.")
    items = lines(request.receive, content_encoding(request.scope), settings.max_body_bytes)
    return Answer(await run_in_threadpool(db.import_items, collection_name, items, mode))


@with_body.post("/items/update", tags=["items"], response_model=models.Updated, responses=_problems(404, 409, 503))
def update_items(body: models.ItemsUpdate, db: Database) -> Response:
    """Change only what is given of existing items; ids that do not exist are listed in the answer."""
    updated = db.update_items(
        body.collection_name,
        body.ids,
        documents=body.documents,
        metadatas=body.metadatas,
        embeddings=body.embeddings,
        uris=body.uris,
        media_types=body.media_types,
        if_version=body.if_version,
    )
    return Answer(updated)


@with_body.post("/items/get", tags=["items"], response_model=models.ItemsPage, responses=_problems(404, 503))
def get_items(body: models.ItemsQuery, db: Database, settings: Configured) -> Response:
    """Items by id, or all that match page by page."""
    _check_at_most("limit", body.limit, settings.max_results)
    _check_at_most("ids", len(body.ids or ()), settings.max_results)
    ordered = body.order_by is not None or body.descending
    items = db.get_items(
        body.collection_name,
        body.ids,
        body.limit,
        body.cursor,
        body.include,
        where=body.where,
        where_document=body.where_document,
        order=Order(body.order_by or "id", body.descending) if ordered else None,
    )
    return Answer(items)


@with_body.post("/items/count", tags=["items"], response_model=models.Counted, responses=_problems(404, 503))
def count_items(body: models.ItemsCount, db: Database) -> Response:
    """How many items match."""
    return Answer(db.count_items(body.collection_name, body.ids, where=body.where, where_document=body.where_document))


@with_body.post("/items/delete", tags=["items"], response_model=models.Deleted, responses=_problems(404, 409, 503))
def delete_items(body: models.ItemsDeletion, db: Database) -> Response:
    """Delete items by id or by filter; ids that do not exist are passed over."""
    deleted = db.delete_items(
        body.collection_name,
        body.ids,
        where=body.where,
        where_document=body.where_document,
        dry_run=body.dry_run,
        if_version=body.if_version,
    )
    return Answer(deleted)


@router.get(
    "/collections/{name:name}/items/{item_id:any}",
    tags=["items"],
    response_model=models.Item,
    responses=_problems(404, 503),
)
def get_item(name: Name, item_id: ItemId, db: Database) -> Response:
    """One item with its embedding."""
    found = db.get_items(name, [item_id], include=("documents", "metadatas", "embeddings", "uris", "media_types"))
    if not found["ids"]:
        raise ItemNotFound
    return Answer(
        {
            "id": found["ids"][0],
            "document": found["documents"][0],
            "metadata": found["metadatas"][0],
            "embedding": found["embeddings"][0],
            "uri": found["uris"][0],
            "media_type": found["media_types"][0],
            "version": found["version"],
        }
    )


@router.delete(
    "/collections/{name:name}/items/{item_id:any}",
    tags=["items"],
    status_code=204,
    response_class=Response,
    responses=_problems(404, 503),
)
def delete_item(name: Name, item_id: ItemId, db: Database) -> Response:
    """Delete one item."""
    if not db.delete_items(name, [item_id])["deleted"]:
        raise ItemNotFound
    return Response(status_code=204)


# Search


@with_body.post("/search/vector", tags=["search"], response_model=models.Hits, responses=_problems(404, 503))
async def search_vector(body: models.VectorQuery, db: Database, settings: Configured) -> Response:
    """The items nearest to an embedding, best first; equally near ones in id order."""
    _check_results(body, 1, settings)
    with _one_query():
        (hits,) = await db.submit_query(
            get_running_loop().create_future(),
            body.collection_name,
            [body.query_embedding],
            body.n_results,
            body.include,
            as_json=True,
            **body.options(),
        )
    return Answer(hits)


@with_body.post(
    "/search/vector/batch", tags=["search"], response_model=models.HitsOfMany, responses=_problems(404, 503)
)
def search_vectors(body: models.VectorQueries, db: Database, settings: Configured) -> Response:
    """Several searches of one collection at once, from one snapshot; much cheaper than one by one."""
    _check_results(body, _length(body.query_embeddings), settings)
    results = db.query_by_vector(
        body.collection_name, body.query_embeddings, body.n_results, body.include, **body.options()
    )
    return Answer({"results": results})


@with_body.post("/search/text", tags=["search"], response_model=models.TextHits, responses=_problems(404, 503))
def search_text(body: models.TextQuery, db: Database, settings: Configured) -> Response:
    """The items whose documents match a text best, by PostgreSQL's full text search."""
    _check_results(body, 1, settings)
    with _one_query():
        (hits,) = db.query_by_text(
            body.collection_name,
            [body.query_text],
            body.n_results,
            body.include,
            snippets=body.snippets,
            **body.options(),
        )
    return Answer(hits)


@with_body.post(
    "/search/text/batch", tags=["search"], response_model=models.TextHitsOfMany, responses=_problems(404, 503)
)
def search_texts(body: models.TextQueries, db: Database, settings: Configured) -> Response:
    """Several searches by text of one collection at once, from one snapshot."""
    _check_results(body, len(body.query_texts), settings)
    results = db.query_by_text(
        body.collection_name,
        body.query_texts,
        body.n_results,
        body.include,
        snippets=body.snippets,
        **body.options(),
    )
    return Answer({"results": results})


@with_body.post("/search/hybrid", tags=["search"], response_model=models.HybridHits, responses=_problems(404, 503))
def search_hybrid(body: models.HybridQuery, db: Database, settings: Configured) -> Response:
    """The items that are near to an embedding, or whose documents match a text; those that do both come first."""
    _check_results(body, 1, settings)
    with _one_query():
        (hits,) = db.query_hybrid(
            body.collection_name,
            [body.query_embedding],
            [body.query_text],
            body.n_results,
            body.include,
            k=body.k,
            alpha=body.alpha,
            candidates=body.candidates,
            **body.options(),
        )
    return Answer(hits)


@with_body.post(
    "/search/hybrid/batch",
    tags=["search"],
    response_model=models.HybridHitsOfMany,
    responses=_problems(404, 503),
)
def search_hybrids(body: models.HybridQueries, db: Database, settings: Configured) -> Response:
    """Several hybrid searches of one collection at once, from one snapshot."""
    _check_results(body, len(body.query_texts), settings)
    results = db.query_hybrid(
        body.collection_name,
        body.query_embeddings,
        body.query_texts,
        body.n_results,
        body.include,
        k=body.k,
        alpha=body.alpha,
        candidates=body.candidates,
        **body.options(),
    )
    return Answer({"results": results})


@with_body.post("/search/similar", tags=["search"], response_model=models.Hits, responses=_problems(404, 503))
def search_similar(body: models.SimilarQuery, db: Database, settings: Configured) -> Response:
    """The items that are like some examples, and unlike others; the examples themselves are left out."""
    _check_results(body, 1, settings)
    _check_at_most("ids", len(body.ids) + len(body.negative.ids), settings.max_results)
    hits = db.query_similar(
        body.collection_name,
        body.ids,
        body.embeddings,
        body.n_results,
        body.include,
        negative_ids=body.negative.ids,
        negative_embeddings=body.negative.embeddings,
        **body.options(),
    )
    return Answer(hits)


# Health: async, and no database call, so that they answer whatever else is going on


@router.head("/health", include_in_schema=False)
@router.get(
    "/health",
    tags=["health"],
    response_model=models.Health,
    responses={503: {"model": models.Health, "description": "The database is away"}},
)
async def health(probe: Probed) -> Response:
    """Whether the service and its database are well."""
    answer = probe.answer()
    database = answer.pop("database")
    body = {
        "status": "healthy" if database else "unhealthy",
        "database": database,
        "timestamp": datetime.now(UTC),
        "version": __version__,
        **answer,
    }
    return Answer(body, 200 if database else 503)


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", tags=["health"], response_model=models.Status)
async def live() -> Response:
    """Whether the process answers; if not, restart it."""
    return Answer({"status": "live"})


@router.head("/health/ready", include_in_schema=False)
@router.get(
    "/health/ready",
    tags=["health"],
    response_model=models.Status,
    responses={503: {"model": models.Status, "description": "The database is away"}},
)
async def ready(probe: Probed) -> Response:
    """Whether requests can be served; if not, send them elsewhere."""
    database = probe.answer()["database"]
    return Answer({"status": "ready" if database else "not ready"}, 200 if database else 503)


@router.get("/", include_in_schema=False)
async def root() -> Response:
    """For whoever opens the service in a browser."""
    return RedirectResponse("docs")


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service as an ASGI application over the database at `settings.database_url`.

    Does no I/O: the lifespan opens the database in the background, and until it can be reached requests are answered
    with 503. Raises SettingsError when there is no DATABASE_URL (`pgvector-api serve` starts a database of its own).
    """
    settings = settings or Settings.load()
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set. Set it, or start the service with: pgvector-api serve")
    db = VectorDB(
        settings.database_url,
        pool_size=settings.db_pool_size,
        pool_timeout_s=settings.db_pool_timeout_s,
        statement_timeout_s=settings.statement_timeout_s,
        cache_max_bytes=settings.cache_max_bytes // settings.web_concurrency,
        recall_target=settings.recall_target,
        search_threads=settings.threads_of_a_search,
        open_on_use=False,
    )
    app = FastAPIOffline(
        title="PostgreSQL Vector Database API",
        version=__version__,
        description="Stores embeddings in PostgreSQL and finds the nearest ones.",
        redoc_url=None,
        lifespan=_lifespan,
        responses=_problems(413, 415, 422, 500),
    )
    app.openapi = _description(app.openapi, settings.max_results)  # type: ignore[method-assign]
    app.state.db = db
    app.state.postgres = None
    app.state.settings = settings
    app.state.refusals = Refusals()
    app.state.probe = Probe(db, app.state.refusals)
    app.include_router(with_body)
    app.include_router(router)
    direct = {
        (method, route.path): route
        for route in with_body.routes
        if isinstance(route, JsonRoute) and route.is_static
        for method in route.methods or ()
    }
    app.add_middleware(
        RequestMiddleware,
        direct=direct,
        streamed={("POST", "/items/import")},
        max_body_bytes=settings.max_body_bytes,
        refusals=app.state.refusals,
    )
    app.add_middleware(CompressMiddleware, minimum_size=COMPRESSED_BYTES)
    for error in problems.KINDS:
        app.add_exception_handler(error, _problem)
    return app


def _description(of_routes: Callable[[], dict[str, Any]], max_results: int) -> Callable[[], Any]:
    """What OpenAPI shows: `of_routes`, the shape of errors, and the limit that is a setting."""

    def description() -> dict[str, Any]:
        described = of_routes()
        schemas = described["components"]["schemas"]
        schemas["Problem"] = models.Problem.model_json_schema()
        for schema in schemas.values():
            for name in {"limit", "n_results", "offset"} & schema.get("properties", {}).keys():
                schema["properties"][name]["maximum"] = max_results
        return described

    return description


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    _follow_parent()
    app.state.probe.start()
    try:
        yield
    finally:
        await run_in_threadpool(app.state.probe.stop)
        await run_in_threadpool(app.state.db.close)
        if app.state.postgres:
            await run_in_threadpool(app.state.postgres.stop)


def __getattr__(name: str) -> FastAPI:
    """`app`, for `uvicorn pgvector_api:app`: made when it is asked for."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _app()


@cache
def _app() -> FastAPI:
    """The service by the environment, over a PostgreSQL of its own without DATABASE_URL; the lifespan stops that."""
    settings, postgres = Settings.load(), None
    logs.configure(settings.log_level, settings.log_format)
    if settings.database_url is None:
        postgres = EmbeddedPostgres(settings.data_dir)
        settings = settings.model_copy(update={"database_url": postgres.start()})
    app = create_app(settings)
    app.state.postgres = postgres
    return app


def _follow_parent() -> None:
    """In a worker process: stop when the parent dies, also by kill -9, instead of keeping its port for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def follow() -> None:
            wait([sentinel])
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=follow, name="follow-parent", daemon=True).start()


@contextmanager
def _one_query() -> Iterator[None]:
    """VectorDB takes lists of queries; here there is one, whose field has another name."""
    try:
        yield
    except InvalidInput as error:
        field = error.field.replace("query_embeddings[0]", "query_embedding").replace("query_texts[0]", "query_text")
        raise error.of_field(field) from error.__cause__


def _length(queries: Any) -> int:
    return len(queries) if isinstance(queries, list) else 1


def _check_results(body: models.SearchBody, queries: int, settings: Settings) -> None:
    depth = body.n_results + body.offset
    _check_at_most("n_results and offset together" if body.offset else "n_results", depth, settings.max_results)
    _check_at_most("queries times n_results", queries * depth, BATCH_SHARE * settings.max_results)
    if isinstance(body, models.VectorSearchBody) and body.mmr:
        _check_at_most(
            "queries times mmr.candidates", queries * body.mmr.candidates, BATCH_SHARE * settings.max_results
        )
    if isinstance(body, models.HybridSearchBody) and body.candidates:
        _check_at_most("candidates", body.candidates, settings.max_results)
        _check_at_most("queries times candidates", queries * body.candidates, BATCH_SHARE * settings.max_results)


def _check_at_most(field: str, value: int, most: int) -> None:
    if value > most:
        raise InvalidInput(field, f"must be at most {most} (MAX_RESULTS).")


async def _problem(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        # The framework names the methods of one route; others may share its path.
        methods = _methods(request)
        error.headers = {"Allow": ", ".join(methods)} if methods else error.headers
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=error.headers)
    return problems.answer(error, request.state.request_id, request.app.state.refusals)


def _methods(request: Request) -> list[str]:
    """What can be asked of the path, in alphabetical order."""
    path = request.scope["path"]
    routes = [route for route in iter_route_contexts(request.app.routes) if route.methods]
    return sorted({method for route in routes if route.path_regex.match(path) for method in route.methods or ()})
