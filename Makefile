# make run    serve the API on http://127.0.0.1:8000, with a PostgreSQL of its own unless DATABASE_URL is set
# make test   the whole test suite, against a real PostgreSQL
# make soak   thousands of requests made from the OpenAPI schema, and what the service answers (6 minutes)
# make lint   formatting, ruff, mypy
# make demo   examples/quickstart.py against a fresh server
# make bench  the figures that docs/performance.md claims, beside chroma and pgvector, and the curve over sizes (half an hour)
# make profile  where the time of a search goes
# make docs   the documentation as a site with a search, in site/; a broken link fails
# make lock   renew the lock files from pyproject.toml
PYTHON ?= python3
BIN := .venv/bin
CHECK_PYTHON := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'

run: .venv/run
	@exec $(BIN)/python -m pgvector_cli serve

test: .venv/dev
	$(BIN)/python -m pytest -n 3 --dist worksteal

soak: .venv/dev
	$(BIN)/python -m pytest -m soak tests/soak

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

demo: .venv/run
	$(BIN)/python examples/quickstart.py --fresh

bench: .venv/run
	$(BIN)/python -m benchmarks.compare $(if $(DATA),--data $(DATA))
	$(BIN)/python -m benchmarks.ways $(if $(DATA),--data $(DATA))
	$(BIN)/python -m benchmarks.sizes $(if $(DATA),--data $(DATA))

profile: .venv/dev
	$(BIN)/python -m benchmarks.profile $(if $(DATA),--data $(DATA))

docs: .venv-docs/done
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "Read it with: $(PYTHON) -m http.server --bind 127.0.0.1 --directory site 8001"

lock: .venv/dev
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --upgrade --generate-hashes --no-annotate --no-header \
	  pyproject.toml --extra embedded --extra accelerate -o requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --upgrade --generate-hashes --no-annotate --no-header \
	  pyproject.toml --extra embedded --extra accelerate --extra dev -o requirements-dev.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --upgrade --generate-hashes --no-annotate --no-header \
	  pyproject.toml --extra docs -o requirements-docs.lock

.venv/run: requirements.lock
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

.venv/dev: requirements-dev.lock .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@

.venv-docs/done: requirements-docs.lock
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.lock
	@touch $@

.PHONY: run test soak lint demo bench profile docs lock
