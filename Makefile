# demo, test, test-vllm, test-clients, test-llama-cpp, check, study, sbom: each makes .venv where it is missing and installs anew only
# when the pins have changed.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
# not --quiet: an installation of minutes shows what it is at
PIP := $(BIN)/python -m pip install -c constraints.txt

.PHONY: demo test test-vllm test-clients test-llama-cpp check study sbom hooks

demo: .venv/installed
	$(BIN)/dualslm demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# vLLM's CPU build wants another torch than it says, so it gets an environment of its own, pin by pin
test-vllm: .venv/installed-dev .venv-vllm/installed
	$(BIN)/python -m pytest tests/inference/test_vllm.py tests/serve/test_serve_vllm.py tests/evaluation/test_judge_vllm.py

# other people's clients against our server; they too have an environment of their own
test-clients: .venv/installed-dev .venv-clients/installed
	DUALSLM_CLIENTS=$(CURDIR)/.venv-clients/bin/python $(BIN)/python -m pytest tests/test_client_examples.py

# llama.cpp is compiled where it is installed, which takes minutes
test-llama-cpp: .venv/installed-dev
	$(PIP) -e '.[llama-cpp]'
	$(BIN)/python -m pytest tests/inference/test_llama_cpp.py

check: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# which of the paper's claims hold in the tiny world: hours on one core; goes on where it was stopped
study: .venv/installed-dev
	$(BIN)/python -m studies.tiny_claims

# what an installation is made of, as CycloneDX reads it; THIRD_PARTY.md is the same for people
sbom: .venv/installed-dev
	$(BIN)/python docs/build/third_party.py --sbom sbom.json

hooks: .venv/installed-dev
	$(BIN)/pre-commit install

$(BIN)/python:
	@echo "making .venv"
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into .venv: on Linux some 3 GB, most of it PyTorch for GPUs; a tenth of that for CPUs alone:"
	@echo "    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo"
	$(PIP) -e .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev,train,voices,quantized,gguf,media,label,hf,chat,serve,eval]'
	touch $@ .venv/installed

.venv-clients/installed: constraints-clients.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --no-deps -r $<
	touch $@

.venv-vllm/installed: constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet -c $< torch
	.venv-vllm/bin/python -m pip install --quiet --no-deps -r $<
	touch $@
