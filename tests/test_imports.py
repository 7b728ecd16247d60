"""Who may import what; README.md has the map."""

import ast
from pathlib import Path

import pytest

from conftest import ROOT

DOORS = {"pgvector_api", "pgvector_db", "pgvector_cli"}
PARTS = sorted((ROOT / "pgvector_service").glob("*.py"))
PURE = {
    "errors", "codec", "matrix", "ranking", "codes", "gather", "items", "filters", "hybrid", "diversity", "selections",
    "options", "pages", "results", "importing",
}  # fmt: skip
WEB = {"fastapi", "starlette", "uvicorn"}


def imported(source: str) -> set[str]:
    """The modules that some Python text imports, in full."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def faults(name: str, source: str) -> set[str]:
    """What a module with this name and text must not import or use."""
    modules = imported(source)
    tops = {module.split(".")[0] for module in modules}
    found = set()
    if name not in DOORS:
        found |= tops & DOORS
    if name in PURE:
        parts = {module.split(".")[1] for module in modules if module.startswith("pgvector_service.")}
        found |= (tops | parts) & (WEB | {"psycopg2", "pydantic", "settings", "models", "pool", "cache", "queries"})
    if name not in {
        "pgvector_db",
        "dsn",
        "pool",
        "store",
        "cache",
        "loading",
        "nearest",
        "search",
        "retrieval",
        "embedded",
        "maintenance",
    }:
        found |= tops & {"psycopg2"}
    if name not in {"pgvector_api", "pgvector_cli", "models", "problems", "middleware", "json_route", "bodies"}:
        found |= tops & WEB | {module for module in modules if module == "pgvector_service.models"}
    if name != "settings" and ("os.environ" in source or "getenv" in source):
        found.add("os.environ")
    return found


@pytest.mark.parametrize("path", [*PARTS, *(ROOT / f"{door}.py" for door in sorted(DOORS))], ids=lambda path: path.stem)
def test_a_module_imports_only_what_it_may(path: Path) -> None:
    assert not faults(path.stem, path.read_text())


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("codec", "import pgvector_db"),
        ("items", "def f():\n    from pgvector_service import queries"),
        ("ranking", "from pydantic import BaseModel"),
        ("models", "import psycopg2.extras"),
        ("pool", "from fastapi import FastAPI"),
        ("pgvector_db", "from pgvector_service.models import Items"),
        ("cache", "import os\nx = os.environ"),
    ],
)
def test_a_planted_import_is_noticed(name: str, source: str) -> None:
    assert faults(name, source)
