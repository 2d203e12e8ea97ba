# `make run` does the main job, `make test` checks the project; each sets up what it needs first.
# Needs GNU make. Packages are only installed again after a change of pyproject.toml.

PYTHON ?= $(shell python3.11 -c "" 2>/dev/null && echo python3.11 || echo python3)
VENV ?= .venv
RECIPE ?= quickstart
OUTPUT ?= runs/$(shell basename "$(RECIPE)" | sed -E "s/\.ya?ml$$//")

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_DOCS := $(VENV)/.installed-docs
INSTALLED_DIST := $(VENV)/.installed-dist

.PHONY: help run test test-gpu lint format docs dist check-dist audit install install-dev clean
.DEFAULT_GOAL := help

help:
	@echo "make run      install, fetch the base model, evaluate it, tune it, evaluate it again, write the report"
	@echo "              (RECIPE=gemma3-270m runs another recipe; OUTPUT=FOLDER sets the output folder)"
	@echo "make test     install the development tools, lint, and run the tests"
	@echo "make test-gpu run the tests that need an NVIDIA GPU"
	@echo "make lint     ruff, mypy and codespell only"
	@echo "make format   format the code with ruff"
	@echo "make docs     build the documentation site in site/; a broken link is an error"
	@echo "make dist     build the wheel and the source archive in dist/ and check them (make check-dist: only check)"
	@echo "make audit    look for known vulnerabilities in the installed packages (pip-audit; needs pypi.org)"
	@echo "make install  only install, into $(VENV)"
	@echo "make clean    remove $(VENV) and the caches, but not runs/"

run: $(INSTALLED)
	$(BIN)/meditune run "$(RECIPE)" --output "$(OUTPUT)"

# Two processes: if one crashes, pytest names the test that was running. Each starts with half of the tests, so most of
# a file's tests share one setup; a process that finishes early takes over half of the other's remaining tests.
test: lint
	$(BIN)/pytest -n 2 --dist worksteal

# Without a GPU this target fails, and `make test` skips these tests and says how many.
test-gpu: $(INSTALLED_DEV)
	@$(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || \
		{ echo "PyTorch finds no GPU here (meditune doctor says what it finds)." >&2; exit 1; }
	$(BIN)/pytest -m gpu

# In benchmarks, only missing names, attributes, arguments and the like are errors.
NOT_CHECKED = arg-type assignment dict-item has-type import-not-found import-untyped misc no-any-return \
	no-untyped-call no-untyped-def operator return-value type-arg union-attr unused-ignore var-annotated
lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --implicit-reexport --follow-imports=silent $(NOT_CHECKED:%=--disable-error-code=%) benchmarks/*.py
	$(BIN)/codespell

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A broken link or heading, or a page that isn't in the navigation, is an error. With --quiet, MkDocs ignores warnings.
docs: $(INSTALLED_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel is built from the source archive, so a file that the archive lacks is missing in the wheel too.
dist: $(INSTALLED_DIST)
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(MAKE) check-dist

# FRESH=1 installs the wheel's dependencies from the package index; otherwise those of $(VENV) are used.
check-dist: $(INSTALLED_DIST)
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m tests.check_dist $(if $(FRESH),--fresh)

# The tests check what can be checked offline: licences, version bounds, pip check.
audit: $(INSTALLED_DEV)
	$(PIP) install --quiet "pip-audit>=2.10,<3"
	@$(BIN)/python -c "import urllib.request; urllib.request.urlopen('https://pypi.org/pypi/pip/json', timeout=20)" \
		2>/dev/null || { echo "pypi.org, the source of known vulnerabilities, can't be reached. Nothing was audited." >&2; exit 1; }
	$(BIN)/pip-audit --skip-editable

install: $(INSTALLED)

install-dev: $(INSTALLED_DEV)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || \
		{ echo "Meditune needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
		"Install Python 3.11, or pass its path: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) can't create a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PIP) install --editable .
	@touch $@

# --group needs pip 25.1, which is newer than the pip of Python 3.11.
$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) install --upgrade "pip>=25.1"
	$(PIP) install --group dev
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	$(PIP) install --upgrade "pip>=25.1"
	$(PIP) install --group docs
	@touch $@

$(INSTALLED_DIST): $(INSTALLED_DEV)
	$(PIP) install --group dist
	@touch $@

clean:
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
