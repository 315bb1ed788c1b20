# Two commands are enough: `make demo` (segment a real CT) and `make test`.
# Everything happens in .venv; nothing is installed outside of it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format bench claims docs clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "viscera needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[text,train,fast,openvino,onnx]' --group test --group lint --group bench
	@touch $@

setup: $(READY) ## make the virtual environment .venv with everything in it

demo: $(READY) ## segment a real CT and say where to look
	$(BIN)/viscera demo

test: $(READY) ## run the tests (minutes)
	$(BIN)/python -m pytest -q -m "not slow" -n auto --maxprocesses 4 --dist worksteal

test-slow: $(READY) ## run the long tests too (training)
	$(BIN)/python -m pytest -q -m slow

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(READY) ## run every benchmark; each prints its table and fails below its bar
	@status=0; for script in bench/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || status=1; done; exit $$status

claims: $(READY) ## train small networks on phantoms to see whether the claims of the method hold (long)
	@status=0; for script in bench/claims/[a-z]*.py; do \
		[ $$script = bench/claims/common.py ] && continue; \
		echo "== $$script"; $(BIN)/python $$script || status=1; \
	done; exit $$status

docs: $(READY) ## regenerate docs/reference from the program and its tables
	$(BIN)/python -m viscera.cli.reference docs/reference

clean: ## remove caches and build products (keeps .venv)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
