# `make run` and `make test` do all the set-up that they need, and are quick the second time.
#   make run       the whole flow on the default corpus; ends with the metrics
#   make test      all checks, and all tests but those that take more than a minute each
#   make test-all  the long tests too, with 50 kills of `pipeline embed`
#   make check     ruff, flake8 (docstrings) and mypy
#   make docs      writes the pages of docs/ that are made from the code
VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p))))
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)

.PHONY: run test test-all check docs clean
.DEFAULT_GOAL := run

run: $(VENV)/.installed
	dvc repro
	@pipeline report --show

test: $(VENV)/.installed-test check
	python -m pytest -m "not long"

test-all: $(VENV)/.installed-test check
	KILLS=50 python -m pytest

docs: $(VENV)/.installed-test
	python -m tests.docs.generate

check: $(VENV)/.installed-test
	ruff check .
	ruff format --check .
	flake8 pipeline
	mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it with: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dvc]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dvc,test]'
	@touch $@

clean:
	rm -rf $(VENV)
