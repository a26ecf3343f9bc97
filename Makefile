# Two commands for a newcomer: `make demo` and `make test`. Every target sets up .venv on first use.
PYTHON ?= python3
VENV   ?= .venv
# The PyTorch that a machine without one gets. A machine that has torch keeps it; one with a GPU takes the registry's build.
TORCH  ?= torch==2.13.0

BIN   := $(VENV)/bin
READY := $(VENV)/.ready
READY_FOR_DOCS := $(VENV)/.ready_for_docs
# One worker a core: the tests are many small CPU jobs, so torch itself runs on one thread (tests/conftest.py).
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: setup demo test test-all docs lint format clean

setup: $(READY)

$(READY): pyproject.toml setup.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH="$(TORCH)" bash setup.sh
	@touch $@

demo: $(READY)
	$(BIN)/cute-attn demo

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-all: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

docs: $(READY_FOR_DOCS)
	$(BIN)/python docs/make_site.py

$(READY_FOR_DOCS): pyproject.toml setup.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH="$(TORCH)" EXTRAS=docs bash setup.sh
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build/docs .pytest_cache .mypy_cache .ruff_cache .hypothesis
