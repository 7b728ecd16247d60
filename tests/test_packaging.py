"""A wheel, installed into a new virtual environment, serves and searches from any folder."""

import os
import signal
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from conftest import ROOT, VARIABLES, free_port, wait_until

ITEM = {"collection_name": "c", "ids": ["a"], "embeddings": [[1.0, 0.0]]}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        ".",
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return path


def test_a_wheel_holds_the_doors_and_the_rooms_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "pgvector_service"
    expected = {str(path.relative_to(ROOT)) for kind in ("*.py", "*.sql") for path in package.rglob(kind)}
    assert names == expected | {path.name for path in ROOT.glob("*.py")} | {"pgvector_service/schema.sql"}


def test_an_installed_wheel_serves_and_searches(wheel: Path, tmp_path: Path, data_dir: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    install = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    environment = {name: value for name, value in os.environ.items() if name not in [*VARIABLES, "PYTHONPATH"]}
    subprocess.run([*install, "-r", str(ROOT / "requirements.lock")], check=True, env=environment, timeout=300)
    subprocess.run([*install, "--no-deps", str(wheel)], check=True, env=environment, timeout=120)

    port = free_port()
    process = subprocess.Popen(
        [programs / "pgvector-api", "serve", "--port", str(port)],
        cwd=tmp_path,
        env={**environment, "DATA_DIR": str(data_dir), "LOG_LEVEL": "ERROR"},
        stdout=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

            def is_ready() -> bool:
                assert process.poll() is None
                try:
                    return client.get("/health/ready").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(is_ready, seconds=60)
            assert client.post("/items", json=ITEM).status_code == 201
            query = {"collection_name": "c", "query_embedding": [1.0, 0.0]}
            assert client.post("/search/vector", json=query).json()["ids"] == ["a"]
            assert client.get("/docs").status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
