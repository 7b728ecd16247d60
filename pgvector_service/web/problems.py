"""Errors as HTTP answers: one shape (RFC 9457), at most 2 KB, nothing of the caller's input in it."""

import logging
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pgvector_service.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    PayloadTooLarge,
    Unavailable,
    UnsupportedEncoding,
    VectorDBError,
)
from pgvector_service.web.refusals import Refusals

log = logging.getLogger(__name__)

# The first class in an error's ancestry that stands here decides.
STATUS: dict[type[Exception], int] = {
    InvalidInput: 422,
    NotFound: 404,
    Conflict: 409,
    PayloadTooLarge: 413,
    UnsupportedEncoding: 415,
    Unavailable: 503,
    VectorDBError: 500,
}
# Of errors that the framework raises before a route is reached; any other is a bad_request.
CODES = {404: "no_such_route", 405: "method_not_allowed"}
DETAILS = {
    "no_such_route": "There is no such route. GET /docs lists all of them.",
    "method_not_allowed": "The route exists, but not with this method. GET /docs lists all of them.",
}
# What `answer` takes.
KINDS = (VectorDBError, RequestValidationError, HTTPException)
RETRY_AFTER_S = 1
# Field names come from the caller where he made them up.
MAX_FIELD, MAX_DETAIL = 80, 1200


def answer(error: Exception, request_id: str, refusals: Refusals) -> Response:
    """The answer for an error of one of KINDS; one that is no fault of the caller is logged, or a refusal."""
    if isinstance(error, RequestValidationError):
        return problem(422, "invalid_input", first_fault(error.errors()), request_id)
    if isinstance(error, HTTPException):
        code = CODES.get(error.status_code, "bad_request")
        headers = dict(error.headers) if error.headers else None
        return problem(
            error.status_code, code, DETAILS.get(code, "The request could not be read."), request_id, headers
        )
    assert isinstance(error, VectorDBError)
    status = next(STATUS[ancestor] for ancestor in type(error).__mro__ if ancestor in STATUS)
    if isinstance(error, Unavailable):
        refusals.add(error)
    elif status == 500:
        log.error("%s (%s)", error, request_id, exc_info=error.__cause__)
    return problem(status, "internal_error" if status == 500 else error.code, error.message, request_id)


def problem(status: int, code: str, detail: str, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """An application/problem+json answer; a 503 says when to come back."""
    body = {
        "type": f"urn:pgvector-service:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail[:MAX_DETAIL],
        "code": code,
        "request_id": request_id,
    }
    headers = dict(headers or {})
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return Response(orjson.dumps(body), status, headers, media_type="application/problem+json")


def first_fault(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors as `field[3]: what is wrong`."""
    # A field that nobody knows is often a misspelt one, and then the reason why another is missing.
    fault = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    origin, *steps = fault["loc"]  # body, query or path
    if not steps and fault["type"] in ("model_attributes_type", "dict_type", "model_type"):
        return "body: must be a JSON object, sent with the header Content-Type: application/json."
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    printable = "".join(c if c.isprintable() else "?" for c in name[:MAX_FIELD])
    if fault["type"] == "extra_forbidden" and origin == "query":
        return f"{printable}: is not a query parameter of this route{more}; GET /docs shows those that are."
    if fault["type"] == "extra_forbidden":
        return f"{printable}: is not a field of this request{more}; GET /docs shows its fields."
    return f"{printable or 'body'}: {fault['msg'][0].lower()}{fault['msg'][1:]}{more}."
