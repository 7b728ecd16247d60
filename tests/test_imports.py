"""Who may import what: each room only those that stand before it."""

import ast

import pytest

from conftest import ROOT

# One line, each importing only what stands before it. The files beside the rooms may be used by anybody.
LINE = [
    "beside", "ranking", "input", "storage", "memory", "search", "pgvector_db", "web", "pgvector_api", "commands",
    "pgvector_cli",
]  # fmt: skip
WEB = {"fastapi", "starlette", "uvicorn"}
PACKAGE = ROOT / "pgvector_service"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted([*PACKAGE.rglob("*.py"), *ROOT.glob("*.py")])
}


def place(module: str) -> str:
    """The room, the door, or "beside" that a module of ours belongs to."""
    parts = module.split(".")
    if parts[0] != "pgvector_service":
        return parts[0]
    return parts[1] if len(parts) > 1 and parts[1] in LINE else "beside"


def imported(source: str) -> set[str]:
    """The modules that some Python text imports, in full."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def faults(module: str, source: str) -> set[str]:
    """What a module with this name and text must not import or use."""
    here, names = place(module), imported(source)
    ours = {name for name in names if name.split(".")[0] == "pgvector_service" or name in LINE}
    found = {name for name in ours if LINE.index(place(name)) > LINE.index(here)}
    tops = {name.split(".")[0] for name in names}
    if here not in {"web", "pgvector_api", "commands"}:
        found |= tops & WEB
    # dsn.py asks libpq what it thinks of a connection string.
    if here not in {"storage", "memory", "search", "pgvector_db"} and module != "pgvector_service.dsn":
        found |= tops & {"psycopg2"}
    if here in {"ranking", "input"}:
        found |= tops & {"pydantic"} | names & {"pgvector_service.settings"}
    if module != "pgvector_service.settings" and ("os.environ" in source or "getenv" in source):
        found.add("os.environ")
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle; empty when there is none."""
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for other in sorted(graph[module]):
            if found := follow(other, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := follow(module, []))), [])


def test_every_folder_is_a_room_and_every_file_has_a_place() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    doors = {path.stem for path in ROOT.glob("*.py")}
    assert {"beside", *folders, *doors} == set(LINE)
    assert all(len(path.relative_to(PACKAGE).parts) <= 2 for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_before_it(module: str) -> None:
    assert not faults(module, MODULES[module].read_text())


def test_no_modules_import_one_another_in_a_circle() -> None:
    graph = {module: (imported(path.read_text()) & MODULES.keys()) - {module} for module, path in MODULES.items()}
    assert circle(graph) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pgvector_service.errors", "from pgvector_service.ranking import blas"),
        ("pgvector_service.storage.codec", "import pgvector_db"),
        ("pgvector_service.input.items", "def f():\n    from pgvector_service.storage import statements"),
        ("pgvector_service.input.items", "from pydantic import BaseModel"),
        ("pgvector_service.ranking.top_k", "from pgvector_service.settings import Settings"),
        ("pgvector_service.search.nearest", "import pgvector_service.web.problems"),
        ("pgvector_service.web.models", "import psycopg2.extras"),
        ("pgvector_service.storage.pool", "from fastapi import FastAPI"),
        ("pgvector_db", "from pgvector_service.web.models import Items"),
        ("pgvector_api", "from pgvector_service.commands.serve import serve"),
        ("pgvector_service.memory.cache", "import os\nx = os.environ"),
    ],
)
def test_a_planted_violation_is_noticed(module: str, source: str) -> None:
    assert faults(module, source)
