# The words of the project. Nothing but Python 3.11 or newer is needed: `make demo` or `make test` sets up the rest.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.medret-installed
INSTALL := -c constraints.txt -e ".[all,dev]"

.PHONY: help setup demo test lint types docs dist bench chaos
.DEFAULT_GOAL := help

help:  ## Show these words
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS=...    passed on, as in: make test ARGS='-k volume'"
	@echo "  VENV=...    the environment to make or use (.venv)"
	@echo "  PYTHON=...  the interpreter to make it with (python3)"

setup: $(STAMP)  ## Make the environment and install medret with all extras, under constraints.txt

demo: $(STAMP)  ## Make a small corpus, index it, search it, and name a page to open
	$(BIN)/medret demo $(ARGS)

# Two processes: one begins with the tests that share a Ray, the other with the campaigns (tests/conftest.py). Bytecode is
# written, because the tests start hundreds of processes that import medret.
test: $(STAMP)  ## Run the tests
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n 2 --dist loadscope $(ARGS)

lint: $(STAMP)  ## Check style, formatting and the order of the layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(STAMP)  ## Check types, strictly
	$(BIN)/mypy

docs: $(STAMP)  ## Write the module tables and build the site of docs/ in build/site, strictly
	$(BIN)/python docs/modules.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(STAMP)  ## Build wheel and sdist in dist/; install the wheel with [search] alone, and search a store with it
	rm -rf dist build/smoke
	$(BIN)/python -m hatchling build
	$(BIN)/python -m venv --without-pip build/smoke
	$(BIN)/python -m uv pip install --quiet --python build/smoke/bin/python -c constraints.txt "$$(echo dist/*.whl)[search]"
	cd build && smoke/bin/medret search ../tests/golden/store chest_ct/0.nii.gz -k 2
	du -sh build/smoke

chaos: $(STAMP)  ## Kill and stop runs, and lose nodes, at many points; compare with undisturbed runs (some minutes)
	$(BIN)/python -m tests.chaos.campaign $(ARGS)
	$(BIN)/python -m tests.chaos.signals
	$(BIN)/python -m tests.chaos.nodes
	$(BIN)/python -m tests.chaos.elastic

bench: $(STAMP)  ## Measure every step against its bare limit and against what else could be used (an hour)
	@$(BIN)/python -c 'import hnswlib, daft, lancedb' 2>/dev/null || $(BIN)/python -m uv pip install --python $(BIN)/python \
		-c constraints.txt -e ".[bench]" || echo "the extra bench cannot be installed here: what is compared with it is left out"
	$(BIN)/python bench/run.py $(ARGS)

# Runs again when the project's dependencies or their versions change. uv leaves compiling to the first import, which many
# workers make at once, and which never keeps it where PYTHONDONTWRITEBYTECODE is set: imports of torch take twice as long.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "medret needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another with PYTHON=, as in: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet -c constraints.txt uv || \
		echo "uv cannot be had here: installing with pip, which takes longer"
	@echo "Installing medret and all extras into $(VENV) (about 8 GB with torch's CUDA libraries)"
	@if $(BIN)/python -m uv --version >/dev/null 2>&1; then \
		$(BIN)/python -m uv pip install --python $(BIN)/python --compile-bytecode $(INSTALL); \
	else \
		$(BIN)/python -m pip install $(INSTALL); \
	fi
	@touch $@
