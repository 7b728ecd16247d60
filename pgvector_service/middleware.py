"""What happens around every request: an id, a limit on its body, one log line, and no exception that goes further."""

import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgvector_service import problems
from pgvector_service.errors import PayloadTooLarge, Unavailable, VectorDBError
from pgvector_service.json_route import JsonRoute
from pgvector_service.refusals import Refusals

log = logging.getLogger("pgvector_service.requests")

SLOW_S = 1.0
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestMiddleware:
    """Gives each request an id (`X-Request-ID`, the client's if it is a plain one) and reads its body beforehand.

    The routes `direct`, by method and path, are answered here; `app` answers all others. A body over `max_body_bytes`
    is answered with 413; it is counted as it arrives. Up to as much again is read and dropped first, since a client
    that is still sending does not look for an answer.
    """

    def __init__(
        self, app: ASGIApp, direct: Mapping[tuple[str, str], JsonRoute], max_body_bytes: int, refusals: Refusals
    ) -> None:
        self.app = app
        self.refusals = refusals
        self.direct = direct
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            body = await _read(receive, self.max_body_bytes)
            route = self.direct.get((scope["method"], scope["path"]))
            if body is None:
                status = 499  # the client went away; the number is nginx's
            elif route:
                scope["route"] = route
                response = await route.respond(Request(scope, receive), body)
                await response(scope, receive, send_noted)
            else:
                await self.app(scope, _replay(body, receive), send_noted)
        except Exception as error:
            if status and isinstance(error.__cause__, Unavailable):  # the framework has wrapped it
                error = error.__cause__
            if not isinstance(error, problems.KINDS):
                log.exception("unexpected error", extra={"request_id": request_id})
                error = VectorDBError()
            answer = problems.answer(error, request_id, self.refusals)
            # An answer that has begun cannot be taken back: it is left unfinished, and the server cuts the connection.
            if not status:
                await answer(scope, receive, send_noted)
        finally:
            _log(scope, status, time.perf_counter() - begin, request_id)


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    return given if given and _ID.fullmatch(given) else os.urandom(16).hex()


def _log(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    level = logging.WARNING if seconds > SLOW_S else logging.INFO
    if status == 503:
        level = logging.DEBUG  # there may be thousands a second: they are counted
    if not log.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "method": scope["method"],
        # The route, not the path: a path can hold line breaks and much else.
        "route": getattr(scope.get("route"), "path_format", "-"),
        "status": status,
        "ms": round(seconds * 1000, 1),
        "request_id": request_id,
    }
    text = "%(method)s %(route)s %(status)s %(ms)s ms %(request_id)s"
    # Logger.log would first look for the file and line that it is called from, which takes as long as all the rest.
    log.handle(log.makeRecord(log.name, level, "", 0, text, (fields,), None, extra=fields))


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None when the client has gone. Raises PayloadTooLarge."""
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk = message.get("body", b"")
        size += len(chunk)
        more = message.get("more_body", False)
        if size <= limit:
            chunks.append(chunk)
        else:
            chunks.clear()
            if size > 2 * limit:
                break
    if size > limit:
        raise PayloadTooLarge(f"The request body exceeds {limit} bytes (MAX_BODY_BYTES). Send smaller batches.")
    return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    done = False

    async def replayed() -> Message:
        nonlocal done
        if done:
            return await receive()
        done = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
