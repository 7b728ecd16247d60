"""A load over HTTP/1.1: so many clients, each of which sends the next request when it has the answer to the last.

    python -m benchmarks.load http://127.0.0.1:8000/search/vector bodies.ndjson --clients 32 --seconds 5

Runs in a process of its own: a bare ASGI application gave it 22,000 answers/s, where `wrk` got 26,600. Prints JSON:
requests, queries_per_s, and the latency of requests in ms (median, p99).
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

HEAD = b"\r\n\r\n"
LENGTH = b"content-length:"


class Client(asyncio.Protocol):
    """One connection that asks and asks."""

    def __init__(self, requests: Sequence[bytes], first: int) -> None:
        self._requests = requests
        self._next = first
        self._buffer = b""
        self._missing = 0
        self._sent = 0.0
        self.seconds: list[float] = []
        self.broken: BaseException | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Batcher one answer, then ask again."""
        if not self._missing:
            self._buffer += data
            end = self._buffer.find(HEAD)
            if end < 0:
                return
            head = self._buffer[:end].lower()
            if b" 200 " not in head[:16]:
                self.connection_lost(RuntimeError(f"an answer that is no 200: {self._buffer[:500]!r}"))
                self._transport.abort()
                return
            length = int(head[head.index(LENGTH) + len(LENGTH) :].partition(b"\r\n")[0])
            self._missing = end + len(HEAD) + length - len(self._buffer)
            self._buffer = b""
        else:
            self._missing -= len(data)
        if not self._missing:
            self.seconds.append(time.perf_counter() - self._sent)
            self._ask()

    def connection_lost(self, error: BaseException | None) -> None:
        """Note that it should not have been."""
        self.broken = self.broken or error or ConnectionError("the server has closed the connection")

    def _ask(self) -> None:
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        self._sent = time.perf_counter()
        self._transport.write(request)


async def load(url: str, bodies: Sequence[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Ask for so many seconds; raises when an answer is an error."""
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\nContent-Length: "
    requests = [head.encode() + str(len(body)).encode() + HEAD + body for body in bodies]
    random.Random(0).shuffle(requests)
    loop = asyncio.get_running_loop()
    made = [Client(requests, i * len(requests) // clients) for i in range(clients)]
    begin = time.perf_counter()
    for client in made:
        host, port = parts.netloc.split(":")
        await loop.create_connection(lambda client=client: client, host, int(port))  # type: ignore[misc]
    await asyncio.sleep(seconds)
    elapsed = time.perf_counter() - begin
    for client in made:
        if client.broken:
            raise client.broken
    return summary([second for client in made for second in client.seconds], elapsed)


def summary(took: Sequence[float], elapsed: float) -> dict[str, float]:
    """The figures of a load from the seconds that each request took."""
    if not took:
        raise RuntimeError("no request was answered in time")
    took = sorted(took)
    return {
        "requests": len(took),
        "queries_per_s": round(len(took) / elapsed, 1),
        "median_ms": round(took[len(took) // 2] * 1e3, 3),
        "p99_ms": round(took[int(len(took) * 0.99)] * 1e3, 3),
    }


def run(module: str, target: str, requests: Path, clients: int, seconds: float, *more: str) -> dict[str, Any]:
    """A load in a process of its own: what it measured."""
    return finish(start(module, target, requests, clients, seconds, *more))


def start(
    module: str, target: str, requests: Path, clients: int, seconds: float, *more: str
) -> "subprocess.Popen[str]":
    """Begin a load in a process of its own."""
    command = [sys.executable, "-m", module, target, str(requests), *more]
    command += ["--clients", str(clients), "--seconds", str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What a load that was begun has measured."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError("the load has failed; see above")
    measured: dict[str, Any] = json.loads(output)
    return measured


def main() -> None:
    """Run one load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path, help="a file with one JSON body a line")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    bodies = options.bodies.read_bytes().splitlines()
    print(json.dumps(uvloop.run(load(options.url, bodies, options.clients, options.seconds))))


if __name__ == "__main__":
    main()
