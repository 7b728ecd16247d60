import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, VARIABLES
from pgvector_service.settings import Settings, SettingsError

SHOW = "from pgvector_service.settings import Settings; s = Settings.load(); print(s.api_port, s.log_level, s.data_dir)"


def shown(cwd: Path, **variables: str) -> str:
    """The settings of a process that is started in `cwd` with these variables."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    run = [sys.executable, "-c", SHOW]
    return subprocess.run(run, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_variables_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    assert shown(tmp_path, HOME="/home/x").startswith("8000 INFO /home/x/.local/share/pgvector-service")
    (tmp_path / ".env").write_text("API_PORT=9000\nLOG_LEVEL=ERROR\nDATA_DIR=\nSOMETHING_ELSE=1\n")
    assert shown(tmp_path, API_PORT="9001", HOME="/home/x") == "9001 ERROR /home/x/.local/share/pgvector-service"


def test_arguments_win_where_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "9000")
    assert Settings.load(api_port=None).api_port == 9000
    assert Settings.load(api_port=9001).api_port == 9001


def test_half_of_the_memory_is_for_vectors() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0.4 < Settings().cache_max_bytes / total < 0.6


@pytest.mark.parametrize("name", [name for name in VARIABLES if name not in ("DATA_DIR", "API_HOST")])
def test_a_wrong_value_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "-nonsense")
    with pytest.raises(SettingsError, match=f"^{name}: "):
        Settings.load()


def test_settings_reach_the_worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Settings.load(
        api_port=9001, database_url="postgresql://u:p%40ss@h/d", db_pool_timeout_s=0.5, data_dir="/x y"
    )
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    given.export()
    try:
        assert Settings.load() == given
    finally:
        for name in VARIABLES:
            os.environ.pop(name, None)
