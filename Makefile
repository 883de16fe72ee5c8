# make demo      a fresh machine: environment, kernels from specs, checked on the CPU
# make test      the fast tier: lint, types, generated files current, tests (CI runs this)
# make test-all  the long tier too
# make setup     only the environment

PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2

.PHONY: demo setup test test-all lint format

setup: .venv/ready

# constraints.txt pins every version; a CPU build of torch is taken where the package index offers one
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[run,dev]'
	touch $@

demo: setup
	$(BIN)/attngen list
	$(BIN)/attngen explain specs/mistral_window.yaml
	$(BIN)/attngen generate
	$(BIN)/attngen check specs/llama3_causal.yaml specs/mistral_window.yaml specs/gpt_oss_sinks.yaml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/attngen generate --check

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu"

test-all: lint
	$(BIN)/python -m pytest -n $(WORKERS) -m "not gpu"
