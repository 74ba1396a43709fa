# demo, test, check, study: each makes .venv where it is missing and installs anew only when the pins have changed.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: demo test check study hooks

demo: .venv/installed
	$(BIN)/dualslm demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -n $(WORKERS)

check: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# which of the paper's claims hold in the tiny world: hours on one core; goes on where it was stopped
study: .venv/installed-dev
	$(BIN)/python bench/study.py

hooks: .venv/installed-dev
	$(BIN)/pre-commit install

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev,train,voices,quantised,label,hf,chat,eval]'
	touch $@ .venv/installed
