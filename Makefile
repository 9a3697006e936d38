# Every target does its own set-up; the first one takes a few minutes, because it installs PyTorch.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help demo test check check-types check-others bench docs format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Secateur needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(VENV)/dev: $(VENV)/run
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/run  ## prune and retrain the model that comes along, in a few minutes
	$(BIN)/secateur demo

test: $(VENV)/dev  ## run the tests
	$(BIN)/python -m pytest --numprocesses auto

check: $(VENV)/dev  ## lint, format, types, docstrings, docs, recipes
	@$(MAKE) --no-print-directory -j 2 check-types check-others

check-types: $(VENV)/dev
	$(BIN)/pyright

check-others: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pydoclint --quiet src
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@set -e; for recipe in $$(find recipes -name '*.yaml' | sort); do $(BIN)/secateur validate $$recipe; done

bench: $(VENV)/dev  ## measure speed and memory, both sides in one run
	$(BIN)/python benchmarks/masks.py
	$(BIN)/python benchmarks/keeper.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/training_memory.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/pack.py
	$(BIN)/python benchmarks/cut.py
	$(BIN)/python benchmarks/scores.py
	$(BIN)/python benchmarks/shards.py

docs: $(VENV)/dev  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/dev  ## put the sources into the common form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what the targets made, runs excepted
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis
