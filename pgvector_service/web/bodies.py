"""Bodies of requests as they come: counted, bounded, and decompressed."""

import asyncio
import gzip
import io
import zlib
from collections.abc import Iterator

import anyio.from_thread
import zstandard
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from pgvector_service.errors import InvalidInput, PayloadTooLarge, UnsupportedEncoding

ENCODINGS = ("gzip", "zstd")
CHUNK_BYTES = 2**18
# How long a client may fall silent in the middle of a body.
SILENCE_S = 60.0


class ClientGone(Exception):
    """The client has closed the connection in the middle of a body; nobody waits for an answer."""


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """The whole body as it was sent, or None when the client has gone. Raises PayloadTooLarge.

    Up to `limit` bytes beyond the limit are read and dropped first, since a client that is still sending does not look
    for an answer.
    """
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await _next(receive)
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
        raise _too_large("request body", limit)
    return b"".join(chunks)


def decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its Content-Encoding, at most `limit` bytes; takes a while, so call it in a thread."""
    with _readable(io.BytesIO(body), encoding) as file:
        data = _read(file, limit + 1, encoding)
    if len(data) > limit:
        raise _too_large("decompressed request body", limit)
    return data


def lines(receive: Receive, encoding: str, limit: int) -> Iterator[bytes]:
    """The lines of a body that may be endless, while it comes; for a thread that the event loop has started.

    Raises PayloadTooLarge for a line of more than `limit` bytes.
    """
    with _readable(io.BufferedReader(_Stream(receive), CHUNK_BYTES), encoding) as file:
        number = 0
        rest = b""
        while chunk := _read(file, CHUNK_BYTES, encoding):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                number += 1
                yield line
            if len(rest) > limit:
                raise _too_large(f"line {number + 1}", limit)
        if rest:
            yield rest


async def _next(receive: Receive) -> Message:
    try:
        async with asyncio.timeout(SILENCE_S):
            return await receive()
    except TimeoutError:
        raise HTTPException(408) from None


class _Stream(io.RawIOBase):
    """The body of a request as a file that is read in a thread."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._rest = b""
        self._more = True

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        """Fill the buffer with what has come, after waiting for it."""
        while not self._rest and self._more:
            message = anyio.from_thread.run(_next, self._receive)
            if message["type"] == "http.disconnect":
                raise ClientGone
            self._rest, self._more = message.get("body", b""), message.get("more_body", False)
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _readable(file: io.BufferedIOBase, encoding: str) -> io.BufferedIOBase:
    if encoding == "gzip":
        return gzip.GzipFile(fileobj=file)
    if encoding == "zstd":
        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)  # type: ignore[return-value, arg-type]
    if encoding in ("", "identity"):
        return file
    raise UnsupportedEncoding


def _read(file: io.BufferedIOBase, size: int, encoding: str) -> bytes:
    try:
        return file.read(size)
    except (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError) as error:
        raise InvalidInput("body", f"is not the {encoding} data that Content-Encoding says.") from error


def _too_large(what: str, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The {what} exceeds {limit} bytes (MAX_BODY_BYTES). Send smaller batches.")
