# `make run` and `make test` do all the set-up that they need, and are quick the second time.
VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p))))
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)

.PHONY: run test check clean
.DEFAULT_GOAL := run

run: $(VENV)/.installed
	dvc repro
	@pipeline report --show

test: $(VENV)/.installed-test check
	python -m pytest

check: $(VENV)/.installed-test
	ruff check .
	ruff format --check .
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
