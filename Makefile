# What a person or a machine does with this repository. Every target sets up what it needs first.

# Two processes, each with the tests of whole files, which share what a file makes once.
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -n 2 --dist loadfile
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?=
.DEFAULT_GOAL := help
.PHONY: help setup demo test check format clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the locked packages (PYTHON=... chooses the interpreter)

$(STAMP): pyproject.toml constraints.txt
	@python=""; \
	for candidate in $(or $(PYTHON),python3.12 python3.11 python3.13 python3); do \
	  if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	      2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.11 or newer with venv here: install one, or name it: make setup PYTHON=..." >&2; \
	  exit 1; \
	fi; \
	echo "Installing into $(VENV) with $$($$python --version); a minute or two."; \
	$$python -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## pretrain two small models on a corpus drawn on the spot and compare their experts
	@$(BIN)/python -m tools.quickstart

test: setup ## the tests, without those that are slow
	@$(PYTEST) -m 'not slow and not gpu and not bench'

check: setup ## what CI runs: style, types, imports, and all tests for a CPU
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports
	@$(PYTEST) -m 'not gpu and not bench'

format: setup ## put the code into the house's shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove .venv and caches; runs/ and data/ stay
	@rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
