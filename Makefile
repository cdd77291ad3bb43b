# make up    install, tune a first model if there is none, start the services, open the page
# make test  check and test everything, installing what that needs
# make nightly  the tests that are too slow for every day

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: up install test nightly check

up: install
	@$(BIN)/voicechat up $(ARGS)

install: .venv/installed

# torch comes first and alone: its exact pin picks the CPU build where one is on offer.
.venv/installed: requirements/base.txt requirements/embedded.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep '^torch==' requirements/base.txt)"
	$(BIN)/pip install --quiet --requirement requirements/base.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements/embedded.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	@touch $@

.venv/tested: .venv/installed requirements/test.txt requirements/embeddings.txt tests/install_tools.sh
	$(BIN)/pip install --quiet --requirement requirements/test.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements/embeddings.txt
	sh tests/install_tools.sh
	@touch $@

check: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest -m "not nightly" --numprocesses 2 --no-loadscope-reorder $(ARGS)

nightly: check
	$(BIN)/pytest -m nightly $(ARGS)
