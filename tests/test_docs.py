"""The documentation says what there is, and its examples work."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

import pgvector_cli
from conftest import ROOT, VARIABLES, Service
from pgvector_db import VectorDB
from pgvector_service import errors
from pgvector_service.input import filters
from pgvector_service.settings import Settings
from pgvector_service.web import problems

README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
GETTING_STARTED, API, FILTERS, OPERATIONS, ARCHITECTURE = (
    (ROOT / "docs" / f"{page}.md").read_text()
    for page in ("getting-started", "api", "filters", "operations", "architecture")
)
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
DOORS = [*(path.name for path in ROOT.glob("*.py")), "schema.sql"]
ENV_EXAMPLE = (ROOT / ".env.example").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as sites and hosts of Markdown make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)]+)\)", page.read_text())]
    assert len(links) > 50
    for page, link in links:
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_file(), (page.name, link)
            assert not anchor or anchor in anchors(target), (page.name, link)


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert README.count("\n") <= 150
    for page in PAGES:
        assert f"]({page.relative_to(ROOT).as_posix()})" in README or page.name == "README.md"


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    entries = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = [next(iter(entry.values())) if isinstance(entry, dict) else entry for entry in entries]
    assert sorted(pages) == sorted(page.name for page in PAGES)


def test_every_route_is_documented_and_no_other(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    served = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    documented = set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", API, re.MULTILINE))
    assert documented == {route.replace(":any", "") for route in served}


def test_every_setting_is_documented_and_in_the_example_with_its_default() -> None:
    assert re.findall(r"^\| `([A-Z_]+)` \|", OPERATIONS, re.MULTILINE) == VARIABLES
    assert re.findall(r"^#? ?([A-Z_]+)=", ENV_EXAMPLE, re.MULTILINE) == VARIABLES
    defaults = Settings()
    for variable, value in re.findall(r"^([A-Z_]+)=(.*)$", ENV_EXAMPLE, re.MULTILINE):
        assert Settings.load(**{variable.lower(): value}) == defaults


def test_every_error_code_is_documented() -> None:
    def tree(error: type[errors.VectorDBError]) -> list[type[errors.VectorDBError]]:
        return [error, *(below for child in error.__subclasses__() for below in tree(child))]

    for error in tree(errors.VectorDBError):
        assert error.__name__ in (errors.__doc__ or "")
        if error not in (errors.VectorDBError, errors.NotFound):
            made = error.__new__(error)
            assert f"`{made.code}`" in API, error
    for code in (problems.CODES[404], problems.CODES[405], "internal_error"):
        assert f"`{code}`" in API


def test_every_command_and_module_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pgvector_cli.main(["serve", "--help"])
    for option in re.findall(r"--[a-z]+", capsys.readouterr().out):
        assert option in OPERATIONS or option == "--help"
    for target in re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE):
        assert f"make {target}" in CONTRIBUTING, target
    drawn = re.findall(r"^ *([a-z_]+(?:\.py|\.sql|/)) ", ARCHITECTURE, re.MULTILINE)
    package = ROOT / "pgvector_service"
    files = {path for path in [*package.rglob("*.py"), *package.rglob("*.sql")] if path.stem != "__init__"}
    files -= {package / "storage" / "statements.py"}  # named beside the statements
    rooms = {f"{path.parent.name}/" for path in files} - {f"{package.name}/"}
    assert sorted(drawn) == sorted([*(path.name for path in files), *rooms, *DOORS])


def test_the_curl_examples_answer_what_the_readme_says(client: TestClient) -> None:
    examples = re.findall(
        r"curl -X POST http://127.0.0.1:8000(\S+) .*? -d '(.*?)'\n((?:#[^\n]*\n)+)", README, re.DOTALL
    )
    assert len(examples) == 3
    for path, body, answer in examples:
        response = client.post(path, json=json.loads(body))
        assert response.json() == json.loads(re.sub(r"^# ?", "", answer, flags=re.MULTILINE))


def test_the_python_examples_run(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    over_http, without_http, in_base64 = re.findall(r"```python\n(.*?)```", README + GETTING_STARTED + API, re.DOTALL)
    monkeypatch.setitem(sys.modules, "requests", None)  # `make run` does not install it
    scope: dict[str, Any] = {}
    with Service(DATABASE_URL=database) as service:
        exec(over_http.replace("http://127.0.0.1:8000", service.url), scope)
        assert scope["hits"]["ids"] == ["doc3"]
        exec(in_base64, scope)
        item = service.client.get("/collections/research_papers/items/doc5").json()
    assert item["document"] == "Sent as base64"
    assert "postgresql://postgres:password@localhost:5432/postgres" in without_http
    exec(without_http.replace("postgresql://postgres:password@localhost:5432/postgres", database), {})
    with VectorDB(database) as db:
        assert db.count_items("papers")["count"] == 2


EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if "from sentences import" in path.read_text())


def test_every_example_runs_with_what_make_run_installs_and_says_what_to_do_without_a_service(database: str) -> None:
    def run(example: Path, url: str) -> subprocess.CompletedProcess[str]:
        without_requests = (
            f"import sys, runpy; sys.modules['requests'] = None; sys.path.insert(0, {str(example.parent)!r}); "
        )
        program = f"{without_requests} sys.argv[:] = [{str(example)!r}, {url!r}]; runpy.run_path({str(example)!r})"
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert EXAMPLES
    with Service(DATABASE_URL=database) as service:
        for example in EXAMPLES:
            done = run(example, service.url)
            assert (done.returncode, done.stderr) == (0, ""), example
            assert done.stdout.count("\n") > 3, example
        assert service.client.get("/collections").json()["total"] == 0
        url = service.url
    done = run(EXAMPLES[0], url)
    assert done.returncode == 1
    assert done.stderr.startswith(f"No answer from {url} (")
    assert done.stderr.endswith("Start the service with `make run`, or name its URL as an argument.\n")
    assert done.stderr.count("\n") == 1


def test_every_operator_is_documented_and_does_what_it_says_without_a_key(db: VectorDB) -> None:
    db.add_with_embeddings("c", ["bare"], None, None, [[1.0]])
    rows = re.findall(
        r"^\| (.*\$.*) \| [^|]* \| `(\{.*\})` \|(?: (no|\*\*yes\*\*|with `false`) \|)?$", FILTERS, re.MULTILINE
    )
    documented = {operator for names, _, _ in rows for operator in re.findall(r"\$\w+", names)}
    assert documented == {*filters.METADATA, *filters.DOCUMENT, *filters.NEGATIONS, "$and", "$or", "$not"}
    for names, example, without in rows:
        condition = json.loads(example)
        on_document = next(iter(condition)) in {*filters.DOCUMENT, "$not_contains", "$not_regex"}
        matches = db.count_items("c", **{"where_document" if on_document else "where": condition})["count"]
        assert matches == ("yes" in without or "$not`" in names), example
    (whole,) = re.findall(r'```json\n(\{"where".*?)```', FILTERS, re.DOTALL)
    assert db.count_items("c", **json.loads(whole))["count"] == 0


def test_every_operator_is_in_an_example_of_the_interactive_documentation(client: TestClient) -> None:
    client.post("/items", json={"collection_name": "c", "ids": ["a"], "embeddings": [[1]]})
    schema = client.get("/openapi.json").json()["components"]["schemas"]["ItemsCount"]["properties"]
    for field, table in (("where", filters.METADATA), ("where_document", filters.DOCUMENT)):
        negations = {negative for negative, positive in filters.NEGATIONS.items() if positive in table}
        examples = schema[field]["examples"]
        assert set(re.findall(r"\$\w+", json.dumps(examples))) == {*table, *negations, "$and", "$or", "$not"}
        for example in examples:
            answer = client.post("/items/count", json={"collection_name": "c", field: example})
            assert answer.status_code == 200, example


def test_the_plain_sql_example_works(db: VectorDB, sql: Any) -> None:
    (statement,) = re.findall(r"```sql\n(.*?)```", OPERATIONS, re.DOTALL)
    sql(statement)
    assert db.query_by_vector("research_papers", [[0.1, 0.2, 0.3]], 1)[0]["ids"] == ["doc4"]


def test_the_compose_file_agrees_with_the_settings() -> None:
    api, postgres = COMPOSE["services"]["api"], COMPOSE["services"]["postgres"]
    environment = {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)) for name, value in api["environment"].items()}
    assert set(environment) <= set(VARIABLES)
    settings = Settings.load(**{name.lower(): value for name, value in environment.items()})
    assert settings.database_url == (
        f"postgresql://{postgres['environment']['POSTGRES_USER']}:password@postgres:5432/{postgres['environment']['POSTGRES_DB']}"
    )
    assert api["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert api["ports"] == [f"127.0.0.1:{settings.api_port}:{settings.api_port}"]
    assert set(COMPOSE["volumes"]) == {postgres["volumes"][0].split(":")[0]}
    assert postgres["healthcheck"]["test"][1].startswith("pg_isready")


def test_the_dockerfile_agrees_with_the_project() -> None:
    for sources in re.findall(r"^COPY (.*) \./?\S*$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists()
    copied = re.search(r"COPY (schema.sql .*) \./", DOCKERFILE)
    assert copied
    assert set(copied[1].split()) == {"schema.sql", *(path.name for path in ROOT.glob("*.py"))}
    environment = dict(
        pair.split("=") for pair in re.findall(r"\b[A-Z_]+=\S+", DOCKERFILE.split("ENV", 1)[1].split("\n")[0])
    )
    assert set(environment) - {"PYTHONUNBUFFERED"} <= set(VARIABLES)
    assert f"EXPOSE {environment['API_PORT']}\n" in DOCKERFILE
    assert DOCKERFILE.index("USER service") < DOCKERFILE.index('CMD ["python", "-m", "pgvector_cli"')
    assert re.search(r'HEALTHCHECK .*\\\n\s+CMD \["python", "-c"', DOCKERFILE)


def test_the_health_check_of_the_image_is_a_program_that_works() -> None:
    (command,) = re.findall(r"HEALTHCHECK.*\\\n\s+CMD (\[.*\])", DOCKERFILE)
    _, option, program = json.loads(command)
    closed = subprocess.run(
        [sys.executable, option, program], env={"API_PORT": "1"}, capture_output=True, text=True, timeout=30
    )
    assert closed.returncode == 1
    assert "Connection refused" in closed.stderr


def test_the_lock_files_pin_every_package_with_a_hash_and_hold_no_address() -> None:
    for name in ("requirements.lock", "requirements-dev.lock", "requirements-docs.lock"):
        lock = (ROOT / name).read_text()
        assert "://" not in lock
        pins = re.findall(r"^[a-z0-9-]+==[^ ]+.*\\\n    --hash=sha256:", lock, re.MULTILINE)
        assert len(pins) == len(re.findall(r"^\S", lock, re.MULTILINE)) > 20
