import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest

from conftest import ROOT, Service, all_ended, free_port, postgres_processes, wait_until
from pgvector_service.storage import caretaker
from pgvector_service.storage.embedded import EmbeddedPostgres

ITEM = {"collection_name": "c", "ids": ["a"], "embeddings": [[1.0, 0.0]]}
QUERY = {"collection_name": "c", "query_embedding": [1.0, 0.0]}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgvector_cli", *arguments],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_serve_says_where_everything_is_and_ctrl_c_stops_the_database_too(data_dir: Path) -> None:
    with Service(DATA_DIR=str(data_dir)) as service:
        assert f"API   {service.url}\n" in service.log()
        assert f"Docs  {service.url}/docs\n" in service.log()
        assert f"Data  {data_dir}/postgres" in service.log()
        assert service.client.get("/health").json()["pgvector"]
        servers = postgres_processes(data_dir)
        assert servers
        assert service.stop(signal.SIGINT) == 0
        assert "Traceback" not in service.log()
    assert all_ended(servers)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_stops_the_database_too(data_dir: Path, workers: str) -> None:
    with Service("--workers", workers, DATA_DIR=str(data_dir)) as service:
        assert service.client.post("/items", json=ITEM).status_code == 201
        servers = postgres_processes(data_dir)
        service.stop(signal.SIGTERM)
        assert "Traceback" not in service.log()
    assert all_ended(servers)


def test_a_killed_service_takes_its_database_along_and_finds_all_its_data(data_dir: Path) -> None:
    with Service(DATA_DIR=str(data_dir)) as service:
        assert service.client.post("/items", json=ITEM).status_code == 201
        servers = postgres_processes(data_dir)
        service.stop(signal.SIGKILL)
    wait_until(lambda: all_ended(servers), seconds=10)
    assert "database system is shut down" in (data_dir / "postgres" / "log").read_text()
    wait_until(lambda: not caretakers(data_dir))

    with Service(DATA_DIR=str(data_dir)) as service:
        assert service.client.post("/search/vector", json=QUERY).json()["ids"] == ["a"]
        servers = postgres_processes(data_dir)
        service.stop()
    assert all_ended(servers)
    assert not caretakers(data_dir)


def test_a_killed_service_leaves_the_database_to_another_that_uses_it(data_dir: Path) -> None:
    with Service(DATA_DIR=str(data_dir)) as first, Service(DATA_DIR=str(data_dir)) as second:
        assert first.client.post("/items", json=ITEM).status_code == 201
        servers = postgres_processes(data_dir)
        first.stop(signal.SIGKILL)
        time.sleep(1)
        assert second.client.post("/search/vector", json=QUERY).json()["ids"] == ["a"]
        assert postgres_processes(data_dir)[0] == servers[0]
        second.stop(signal.SIGKILL)
    wait_until(lambda: all_ended(servers), seconds=10)


def test_without_its_caretaker_a_service_works_and_stops_as_ever(data_dir: Path) -> None:
    with Service(DATA_DIR=str(data_dir)) as service:
        (its_own,) = caretakers(data_dir)
        its_own.kill()
        assert service.client.post("/items", json=ITEM).status_code == 201
        servers = postgres_processes(data_dir)
        assert service.stop() == 0
    assert all_ended(servers)


def caretakers(data_dir: Path) -> list[psutil.Process]:
    """The processes that stop the database in `data_dir` when nobody uses it any more."""
    expected = [caretaker.__file__, str(data_dir / ".postgres.lock"), str(data_dir / "postgres")]
    return [each for each in psutil.process_iter(["cmdline"]) if (each.info["cmdline"] or [])[-3:] == expected]


def test_a_killed_database_starts_again_with_its_data(data_dir: Path) -> None:
    with Service(DATA_DIR=str(data_dir)) as service:
        assert service.client.post("/items", json=ITEM).status_code == 201
        servers = postgres_processes(data_dir)
        for process in servers:
            process.kill()
        service.stop(signal.SIGKILL)
    wait_until(lambda: all_ended(servers) and not caretakers(data_dir))
    # The process id in what is left belongs to somebody else by now.
    pid_file = data_dir / "postgres" / "postmaster.pid"
    pid_file.write_text("\n".join([str(os.getpid()), *pid_file.read_text().split("\n")[1:]]))

    with Service(DATA_DIR=str(data_dir)) as service:
        assert service.client.post("/search/vector", json=QUERY).json()["ids"] == ["a"]


def test_two_services_share_a_folder_and_the_last_one_stops_its_database(data_dir: Path) -> None:
    with Service(DATA_DIR=str(data_dir)) as first, Service(DATA_DIR=str(data_dir)) as second:
        assert first.client.post("/items", json=ITEM).status_code == 201
        first.stop()
        servers = postgres_processes(data_dir)
        assert second.client.post("/search/vector", json=QUERY).json()["ids"] == ["a"]
        second.stop()
    assert servers
    assert all_ended(servers)


def test_workers_end_when_their_parent_is_killed(database: str) -> None:
    with Service("--workers", "2", DATABASE_URL=database) as service:
        workers = psutil.Process(service.process.pid).children(recursive=True)
        service.stop(signal.SIGKILL)
    wait_until(lambda: all_ended(workers), seconds=30)


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"API_PORT": "eighty"}, "pgvector-api: API_PORT: Input should be a valid integer"),
        ({"DB_POOL_SIZE": "0"}, "pgvector-api: DB_POOL_SIZE: Input should be greater than or equal to 1"),
        ({"DATABASE_URL": "mysql://x:secret@y"}, "pgvector-api: DATABASE_URL: must be like postgresql://user:"),
        ({"DATABASE_URL": "postgresql://x:se@cret:w@y:5/d"}, "pgvector-api: DATABASE_URL: must be like postgresql://"),
        ({"DATA_DIR": "/proc/x"}, "pgvector-api: DATA_DIR: /proc/x cannot be used: No such file or directory."),
        ({"DATA_DIR": __file__, "API_PORT": "0"}, f"pgvector-api: DATA_DIR: {__file__} cannot be used: File exists."),
        ({"LOG_FORMAT": "xml"}, "pgvector-api: LOG_FORMAT: Input should be 'text' or 'json'"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(variables: dict[str, str], line: str) -> None:
    result = run("serve", **variables)
    assert result.returncode != 0
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = run("serve", "--port", str(port)).stderr
        assert line.startswith(f"pgvector-api: API_PORT: cannot listen on 127.0.0.1:{port} (Address already in use).")
    assert run("serve", "--host", "no.such.host.invalid").stderr.startswith(
        "pgvector-api: API_PORT: cannot listen on no."
    )


def test_options_win_over_variables() -> None:
    assert run("serve", "--port", "99999", API_PORT="8000").stderr.startswith("pgvector-api: API_PORT: Input should be")


def test_the_command_explains_itself() -> None:
    assert "serve" in run("--help").stdout
    assert "--workers" in run("serve", "--help").stdout
    assert run("--version").stdout.strip().count(".") == 2


def test_the_log_can_be_json_and_nothing_else(database: str) -> None:
    with Service(DATABASE_URL=database, LOG_FORMAT="json") as service:
        service.client.get("/collections", headers={"x-request-id": "here"})
        service.stop()
        lines = [json.loads(line) for line in service.log().splitlines()]
    (start,) = [line for line in lines if "api" in line]
    assert (start["api"], start["docs"]) == (service.url, f"{service.url}/docs")
    assert start["data"] == "the database at DATABASE_URL"
    for line in lines:
        assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(line["time"]) < timedelta(minutes=1)
    (line,) = [line for line in lines if line.get("request_id") == "here"]
    assert (line["method"], line["route"], line["status"], line["level"]) == ("GET", "/collections", 200, "INFO")
    assert line["ms"] > 0


def test_times_in_the_log_have_a_zone(database: str) -> None:
    with Service(DATABASE_URL=database, TZ="Asia/Tokyo") as service:
        service.client.get("/collections")
        service.stop()
        (line,) = [line for line in service.log().splitlines() if "GET /collections " in line]
    assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(line.split()[0]) < timedelta(minutes=1)


@pytest.mark.parametrize("own", [True, False], ids=["embedded", "DATABASE_URL"])
def test_any_asgi_server_can_serve_the_app(data_dir: Path, database: str, own: bool) -> None:
    port = free_port()
    variables = {"DATA_DIR": str(data_dir)} if own else {"DATABASE_URL": database}
    command = [sys.executable, "-m", "uvicorn", "pgvector_api:app", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, stderr=subprocess.PIPE) as server:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until(lambda: is_ready(client), seconds=60)
            assert client.post("/items", json=ITEM).status_code == 201
            for path in ("/health", "/health/live", "/health/ready"):
                head = client.head(path)
                assert (head.status_code, head.content) == (200, b"")
        servers = postgres_processes(data_dir)
        assert bool(servers) is own
        server.send_signal(signal.SIGINT)
        server.wait(30)
        assert b"Traceback" not in (server.stderr.read() if server.stderr else b"")
    assert all_ended(servers)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_a_service_waits_for_its_database(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    url = postgres.start()
    postgres.stop()
    with Service(DATABASE_URL=url, until="/health/live") as service:
        response = service.client.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "unhealthy")
        assert service.client.post("/search/vector", json=QUERY).status_code == 503
        with Service(DATA_DIR=str(data_dir)) as again:
            service.wait_until("/health/ready")
            assert service.client.post("/items", json=ITEM).status_code == 201
            again.stop()
