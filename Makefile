# Every target sets itself up: a virtual environment with the pinned packages of requirements/lock.txt, and cytonym
# itself, editable. All it needs is Python 3.11 and a package index.
PYTHON ?= python3.11
VENV ?= .venv
DEMO ?= demo
DOCS_OFFLINE ?= 1
export DOCS_OFFLINE

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test docs tutorials lint format bench lock clean

help:  ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | sort | expand -t 10

setup: $(READY)  ## only the environment

$(READY): requirements/lock.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found. Name a Python 3.11 with: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "$(PYTHON) is not Python 3.11, for which requirements/lock.txt is made. Name another with: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Setting up $(VENV) (once, a few minutes)"
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/lock.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## the main job on a synthetic tissue, ending with a report
	@test ! -e $(DEMO)/tissue.zarr || { echo "$(DEMO) holds an earlier demo. Name another folder with: make demo DEMO=demo2, or replace it with: $(BIN)/cytonym demo --out $(DEMO) --force" >&2; exit 1; }
	$(BIN)/cytonym demo --out $(DEMO)

test: $(READY)  ## all tests, the examples of the docstrings and the tutorials
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --doctest-modules --nbmake --nbmake-timeout=1200 src tests $(wildcard tutorials/*.ipynb)

docs: $(READY)  ## the documentation, in docs/_build/html (DOCS_OFFLINE=0 links to other packages)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

tutorials: $(READY)  ## execute the tutorials again and draw the figure of the README (real data: CYTONYM_DATA)
	$(BIN)/python docs/execute.py
	$(BIN)/python docs/overview.py

lint: $(READY)  ## format, style and types, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## the quick benchmarks, each with its numbers as JSON
	$(BIN)/python benchmarks/run.py

lock:  ## resolve the newest packages and write requirements/lock.txt
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade pip
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0 hatchling editables --group dev '.[label]'
	{ head -n 1 requirements/lock.txt; .venv-lock/bin/python -m pip freeze --exclude cytonym | sed -E 's/\+(cpu|cu[0-9]+)$$//' | LC_ALL=C sort -f; } > requirements/lock.new
	mv requirements/lock.new requirements/lock.txt
	rm -rf .venv-lock

clean:  ## everything that can be made again
	rm -rf $(VENV) $(DEMO) docs/_build docs/generated dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
