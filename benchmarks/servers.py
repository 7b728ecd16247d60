"""The servers under measurement, each as a process of its own, gone afterwards."""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil

from pgvector_service.storage.embedded import EmbeddedPostgres

# The peers drag in what the service does not want.
PEERS = Path(__file__).parent.parent / ".venv-peers"
PEER_PACKAGES = ["chromadb==1.5.9", "matplotlib>=3.9"]
START_TIMEOUT_S = 60


class Client:
    """One keep-alive connection, with as little of its own work as the standard library allows."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=300)

    def send(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The JSON answer; raises when the status is an error."""
        try:
            response = self._asked(method, path, body)
        except ConnectionError:
            # A server hangs up on a client that has been silent for a while.
            self._connection.close()
            response = self._asked(method, path, body)
        content = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {content.decode()}")
        return orjson.loads(content) if content else None

    def _asked(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        self._connection.request(method, path, body, {"Content-Type": "application/json"})
        return self._connection.getresponse()


@contextmanager
def database() -> Iterator[str]:
    """A new PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder:
        postgres = EmbeddedPostgres(Path(folder))
        try:
            yield postgres.start()
        finally:
            postgres.stop()


@contextmanager
def service(database_url: str, **settings: str) -> Iterator[tuple[Client, psutil.Process]]:
    """The service over a database, with its default settings, and a client."""
    port = _free_port()
    environment = {**os.environ, "DATABASE_URL": database_url, **settings}
    command = [sys.executable, "-m", "pgvector_cli", "serve", "--port", str(port)]
    with _process(command, environment) as process:
        yield _client(f"http://127.0.0.1:{port}", "/health", process), psutil.Process(process.pid)


@contextmanager
def chroma() -> Iterator[Client]:
    """`chroma run` with its default settings."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [str(PEERS / "bin/chroma"), "run", "--path", folder, "--port", str(port), "--host", "127.0.0.1"]
        with _process(command, {**os.environ, "ANONYMIZED_TELEMETRY": "False"}) as process:
            yield _client(f"http://127.0.0.1:{port}", "/api/v2/heartbeat", process)


def install_peers() -> None:
    """Make the virtual environment of the peers, unless it is there."""
    if not (PEERS / "bin/chroma").exists():
        shutil.rmtree(PEERS, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
        pip = [str(PEERS / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PEER_PACKAGES], check=True)


@contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _client(url: str, health: str, process: "subprocess.Popen[bytes]") -> Client:
    """A client of a server that has just been started, when it answers."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        client = Client(url)
        try:
            client.send("GET", health)
            return client
        except (OSError, RuntimeError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
