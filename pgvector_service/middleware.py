"""What happens around every request: an id, a limit on its body, one log line, and no exception that goes further."""

import logging
import re
import time
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgvector_service import problems
from pgvector_service.errors import PayloadTooLarge, VectorDBError

log = logging.getLogger("pgvector_service.requests")

SLOW_S = 1.0
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestMiddleware:
    """Gives each request an id (`X-Request-ID`, the client's if it is a plain one) and reads its body beforehand.

    A body over `max_body_bytes` is answered with 413; it is counted as it arrives. Up to as much again is read and
    dropped first, since a client that is still sending does not look for an answer.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            body = await _read(receive, self.max_body_bytes)
            if body is None:
                status = 499  # the client went away; the number is nginx's
                return
            await self.app(scope, _replay(body, receive), send_noted)
        except Exception as error:
            own = error if isinstance(error, VectorDBError) else VectorDBError()
            if not isinstance(error, VectorDBError):
                log.exception("unexpected error", extra={"request_id": request_id})
            if status:
                raise  # the answer has begun and cannot be taken back; the server cuts the connection
            await problems.of_error(own, request_id)(scope, receive, send_noted)
        finally:
            self._log(scope, status, time.perf_counter() - begin, request_id)

    def _log(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        # The route, not the path: a path can hold line breaks and much else.
        route = getattr(scope.get("route"), "path_format", "-")
        fields = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 1),
            "request_id": request_id,
        }
        level = logging.WARNING if seconds > SLOW_S else logging.INFO
        log.log(level, "%(method)s %(route)s %(status)s %(ms)s ms %(request_id)s", fields, extra=fields)


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
