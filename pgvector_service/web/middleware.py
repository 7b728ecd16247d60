"""What happens around every request: an id, a limit on its body, one log line, and no exception that goes further."""

import logging
import os
import re
import time
from asyncio import sleep
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgvector_service.errors import Unavailable, VectorDBError
from pgvector_service.web import problems
from pgvector_service.web.bodies import ClientGone, decompressed, read_body
from pgvector_service.web.refusals import Refusals
from pgvector_service.web.routing import JsonRoute

log = logging.getLogger("pgvector_service.requests")

SLOW_S = 1.0
# Large answers are passed on in pieces, so that others get their turn while each is compressed.
PIECE_BYTES = 2**18
# Stands for %2F in the path of a request. Half of a surrogate pair: no decoded URL holds one.
ENCODED_SLASH = "\ud82f"
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestMiddleware:
    """Gives each request an id (`X-Request-ID`, the client's if it is a plain one) and reads its body beforehand.

    The routes `direct`, by method and path, are answered here; `app` answers all others. A body over `max_body_bytes`,
    also one that is so large only when it is decompressed, is answered with 413. The routes `streamed` read their
    bodies themselves.
    """

    def __init__(
        self,
        app: ASGIApp,
        direct: Mapping[tuple[str, str], JsonRoute],
        streamed: Collection[tuple[str, str]],
        max_body_bytes: int,
        refusals: Refusals,
    ) -> None:
        self.app = app
        self.refusals = refusals
        self.direct = direct
        self.streamed = streamed
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        raw_path = scope.get("raw_path", b"")
        # With a slash at the end the framework may redirect, for which it has to write the path down.
        if b"%2f" in raw_path.lower() and not raw_path.endswith(b"/"):
            scope = {**scope, "path": _with_encoded_slashes(raw_path)}  # a copy: the server writes its own down
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            for piece in _pieces(message):
                await send(piece)
                if piece is not message:
                    await sleep(0)

        try:
            target = (scope["method"], scope["path"])
            if target in self.streamed:
                await self.app(scope, receive, send_noted)
                return
            body = await read_body(receive, self.max_body_bytes)
            if body is None:
                raise ClientGone
            encoding = content_encoding(scope)
            if encoding:
                body = await run_in_threadpool(decompressed, body, encoding, self.max_body_bytes)
            route = self.direct.get(target)
            if route:
                scope["route"] = route
                response = await route.respond(Request(scope, receive), body)
                await response(scope, receive, send_noted)
            else:
                await self.app(scope, _replay(body, receive), send_noted)
        except ClientGone:
            status = 499  # the number is nginx's
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


def _pieces(message: Message) -> Iterator[Message]:
    """The message, divided if its body is large."""
    body = message.get("body", b"")
    if len(body) <= PIECE_BYTES:
        yield message
        return
    for start in range(0, len(body), PIECE_BYTES):
        end = start + PIECE_BYTES
        more = end < len(body) or message.get("more_body", False)
        yield {**message, "body": body[start:end], "more_body": more}


def _with_encoded_slashes(raw_path: bytes) -> str:
    """The path decoded, but for its encoded slashes: they belong to a name and do not divide it."""
    pieces = re.split("%2f", raw_path.decode("ascii", "replace"), flags=re.IGNORECASE)
    return ENCODED_SLASH.join(map(unquote, pieces))


def content_encoding(scope: Scope) -> str:
    """How the body is compressed: gzip or the like, or nothing."""
    return _header(scope, b"content-encoding").strip().lower()


def _header(scope: Scope, name: bytes) -> str:
    return next((value for given, value in scope["headers"] if given == name), b"").decode("latin-1")


def _request_id(scope: Scope) -> str:
    given = _header(scope, b"x-request-id")
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


def _replay(body: bytes, receive: Receive) -> Receive:
    done = False

    async def replayed() -> Message:
        nonlocal done
        if done:
            return await receive()
        done = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
