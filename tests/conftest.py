"""A real PostgreSQL for the whole run, a database of its own for every test, and the service over it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import httpx
import psutil
import psycopg2
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from pgvector_api import create_app
from pgvector_db import VectorDB
from pgvector_service.settings import Settings
from pgvector_service.storage.embedded import EmbeddedPostgres

ROOT = Path(__file__).parent.parent
VARIABLES = [name.upper() for name in Settings.model_fields]
# No variable of the developer's reaches a test, nor does his .env.
for variable in VARIABLES:
    os.environ.pop(variable, None)
Settings.model_config["env_file"] = None

# A noisy machine is no fault of the data, and databases are shared between the examples of a test on purpose.
hypothesis_settings.register_profile(
    "default",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
hypothesis_settings.load_profile("default")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL server that has the database `pristine`, with the schema of the service."""
    folder = Path(tempfile.mkdtemp(prefix="pgvector-tests-"))
    postgres = EmbeddedPostgres(folder)
    try:
        url = postgres.start()
        _execute(url, "CREATE DATABASE pristine")
        with VectorDB(_with_database(url, "pristine")):
            pass
        yield url
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make_database(server: str) -> Iterator[Callable[..., str]]:
    """Make a database and return its URL; `template` is "pristine" or "template1" for an empty one."""
    made: list[str] = []

    def make(template: str = "pristine") -> str:
        name = f"test_{uuid4().hex}"
        _execute(server, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        made.append(name)
        return _with_database(server, name)

    yield make
    for name in made:
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(make_database: Callable[..., str]) -> str:
    """The URL of a database with the schema and nothing in it."""
    return make_database()


@pytest.fixture
def db(database: str) -> Iterator[VectorDB]:
    """An open VectorDB over `database`."""
    with VectorDB(database) as db:
        yield db


@pytest.fixture
def sql(database: str) -> Iterator[Callable[..., list[tuple[object, ...]]]]:
    """Somebody else who writes plain SQL to `database`, one transaction a call."""
    connection = psycopg2.connect(database)
    connection.autocommit = True

    def run(statement: str, parameters: object = None) -> list[tuple[object, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    yield run
    connection.close()


@pytest.fixture
def client(database: str) -> Iterator[TestClient]:
    """The real application over `database`, in this process."""
    with running_app(Settings(database_url=database, max_body_bytes=2**20)) as client:
        yield client


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty folder for an embedded PostgreSQL; its server is gone when the test has ended."""
    folder = Path(tempfile.mkdtemp(prefix="pgvector-data-"))
    yield folder
    for process in postgres_processes(folder):
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def postgres_processes(data_dir: Path) -> list[psutil.Process]:
    """The server in `data_dir` and its children; empty when it does not run."""
    try:
        postmaster = psutil.Process(int((data_dir / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0]))
        return [postmaster, *postmaster.children(recursive=True)]
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return []


def all_ended(processes: list[psutil.Process]) -> bool:
    """Whether none of them runs; one that nobody has waited for yet (a zombie) does not."""

    def has_ended(process: psutil.Process) -> bool:
        try:
            return process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return all(has_ended(process) for process in processes)


@contextmanager
def running_app(settings: Settings) -> Iterator[TestClient]:
    """The application with these settings, once it is ready."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client


class Service:
    """`pgvector-api serve` as a process of its own; `prelude` is Python that runs in it first."""

    def __init__(self, *options: str, prelude: str = "", until: str = "/health/ready", **variables: str) -> None:
        self.until = until
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        command = ["-c", f"{prelude}\nimport pgvector_cli\npgvector_cli.main()"] if prelude else ["-m", "pgvector_cli"]
        self.process = subprocess.Popen(
            [sys.executable, *command, "serve", "--port", str(self.port), *options],
            cwd=ROOT,
            env={**environment, **variables},
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def wait_until(self, route: str) -> "Service":
        """Wait until a GET of `route` is answered with 200."""
        wait_until(lambda: self._answers(route), seconds=60)
        return self

    def _answers(self, route: str) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return self.client.get(route).status_code == 200
        except httpx.TransportError:
            return False

    def log(self) -> str:
        """What it has printed so far."""
        self.output.flush()
        return Path(f"/proc/self/fd/{self.output.fileno()}").read_text()

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and wait for the end."""
        self.client.close()
        self.process.send_signal(how)
        return self.process.wait(30)

    def __enter__(self) -> "Service":
        return self.wait_until(self.until)

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()
        self.output.close()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port on the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def _execute(url: str, statement: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()
