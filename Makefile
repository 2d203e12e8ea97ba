# `make run` does the main job, `make test` checks the project; each sets up what it needs first.
# GNU make. Nothing is installed again while pyproject.toml stays as it is.

PYTHON ?= $(shell python3.11 -c "" 2>/dev/null && echo python3.11 || echo python3)
VENV ?= .venv
RECIPE ?= quickstart
OUTPUT ?= runs/$(notdir $(basename $(RECIPE)))

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_DOCS := $(VENV)/.installed-docs
INSTALLED_DIST := $(VENV)/.installed-dist

.PHONY: help run test test-gpu lint format docs dist check-dist audit install install-dev clean
.DEFAULT_GOAL := help

help:
	@echo "make run      install, fetch the base model, tune it, measure before and after, write the report"
	@echo "              (make run RECIPE=gemma3-270m takes another recipe; OUTPUT=FOLDER another folder)"
	@echo "make test     install with the development tools, lint, and run the tests"
	@echo "make test-gpu run the tests that need an NVIDIA GPU"
	@echo "make lint     ruff, mypy and codespell only"
	@echo "make format   let ruff put the code into form"
	@echo "make docs     build the documentation site into site/, and fail on a broken link"
	@echo "make dist     build the wheel and the source archive into dist/, and check them (make check-dist only checks)"
	@echo "make audit    known weaknesses of what is installed, by pip-audit (asks pypi.org)"
	@echo "make install  only install, into $(VENV)"
	@echo "make clean    remove $(VENV) and caches; runs/ stays"

run: $(INSTALLED)
	$(BIN)/meditune run $(RECIPE) --output $(OUTPUT)

# In two processes: one that dies names the test that it died in. Each begins with one half of the tests, so that what a
# file or folder sets up once serves most of its tests, and one that is done takes over half of what the other has left.
test: lint
	$(BIN)/pytest -n 2 --dist worksteal

# Fails where no GPU is found; `make test` leaves these tests out there, and says how many.
test-gpu: $(INSTALLED_DEV)
	@$(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || \
		{ echo "PyTorch finds no GPU here (meditune doctor says what it finds)." >&2; exit 1; }
	$(BIN)/pytest -m gpu

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A broken link or heading, or a page that the navigation lacks, is an error. With --quiet, MkDocs would count no warnings.
docs: $(INSTALLED_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel is built from the source archive, so a file that the archive lacks is missing in the wheel too.
dist: $(INSTALLED_DIST)
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(MAKE) check-dist

# FRESH=1 installs the wheel's dependencies from the package index; otherwise those in $(VENV) are linked.
check-dist: $(INSTALLED_DIST)
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m tests.check_dist $(if $(FRESH),--fresh)

# What can be checked offline (licences, bounds, pip check) is among the tests.
audit: $(INSTALLED_DEV)
	$(PIP) install --quiet "pip-audit>=2.10,<3"
	@$(BIN)/python -c "import urllib.request; urllib.request.urlopen('https://pypi.org/pypi/pip/json', timeout=20)" \
		2>/dev/null || { echo "pypi.org, which knows the weaknesses, can't be asked from here. Nothing was audited." >&2; exit 1; }
	$(BIN)/pip-audit --skip-editable

install: $(INSTALLED)

install-dev: $(INSTALLED_DEV)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || \
		{ echo "Meditune needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not there)." \
		"Install Python 3.11, or name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) can't make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PIP) install --editable .
	@touch $@

# --group came with pip 25.1; the pip that Python 3.11 brings along is older.
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
