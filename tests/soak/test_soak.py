"""The service keeps to its OpenAPI, and OpenAPI to the service: thousands of requests that schemathesis makes of it.

`make soak` runs it; it takes about 6 minutes.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Service
from soak.hooks import COLLECTION

pytestmark = pytest.mark.soak
SEED = 20261124
LEAST_CASES = 5_000


def checked(service: Service, folder: Path, *options: str, cases: int = 100) -> subprocess.CompletedProcess[str]:
    """What schemathesis says of a running service, after all its checks; it keeps what it remembers in `folder`."""
    service.client.post("/collections", json=COLLECTION)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json", f"--seed={SEED}"]
    command += ["--checks=all", "--exclude-checks=positive_data_acceptance", f"--max-examples={cases}"]
    command += ["--generation-database=none", "--continue-on-failure", "--no-color", *options]
    hooks = str(Path(__file__).with_name("hooks.py"))
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": hooks}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_what_the_service_does_is_what_its_schema_says(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Service(DATABASE_URL=database, LOG_LEVEL="ERROR") as service:
        told = checked(service, tmp_path, "--phases=examples,coverage,fuzzing")
        assert not re.search(r"Traceback|ERROR", service.log()), service.log()
    with capsys.disabled():
        print(f"\n{told.stdout[-1200:]}")
    assert told.returncode == 0, told.stdout + told.stderr
    generated = re.search(r"(\d+) generated, (\d+) passed", told.stdout)
    assert generated, told.stdout
    assert int(generated[2]) == int(generated[1]) >= LEAST_CASES
    operations = re.search(r"Selected: (\d+)/(\d+)\n +Tested: (\d+)", told.stdout)
    assert operations
    assert len(set(operations.groups())) == 1


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("", None),
        ("import pgvector_db as d; d.VectorDB.update_items = lambda *_, **__: 1 / 0", "Server error"),
        ("import pgvector_db as d; d.VectorDB.update_items = lambda *_, **__: {}", "Response violates schema"),
        ("from pgvector_service.web import problems as p; p.STATUS[p.InvalidInput] = 418", "Undocumented status code"),
        (
            "from pgvector_service.web import described as d; d.ID['minLength'] = 0",
            "Valid data should have been accepted",
        ),
        (
            "from pgvector_service.web import described as d; d.ID['maxLength'] = 3",
            "Schema-violating request accepted",
        ),
    ],
)
def test_a_planted_fault_is_found(database: str, tmp_path: Path, fault: str, found: str | None) -> None:
    with Service(DATABASE_URL=database, prelude=fault) as service:
        told = checked(service, tmp_path, "--include-path=/items/update", "--phases=coverage", cases=10)
    assert told.returncode == bool(found), told.stdout + told.stderr
    assert not found or found in told.stdout
