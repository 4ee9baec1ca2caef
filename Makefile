# `make run` and `make test` do all the set-up that they need, and are quick the second time.
#   make run       the whole flow on the default corpus; ends with the metrics
#   make test      all checks, and all tests but those that take more than a minute each
#   make test-all  the long tests too, with 50 kills of `pipeline embed`, and the kernels for GPUs
#   make test-kernels  the kernels for GPUs, by Triton's interpreter
#   make check     ruff, flake8 (docstrings) and mypy
#   make docs      writes the pages of docs/ that are made from the code
VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p))))
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)

.PHONY: run test test-all test-kernels check browser docs clean
.DEFAULT_GOAL := run

run: $(VENV)/.installed
	dvc repro
	@pipeline report --show

test: $(VENV)/.installed-test browser check
	python -m pytest -m "not long"

test-all: $(VENV)/.installed-test browser check test-kernels
	KILLS=50 python -m pytest

# Triton comes with torch's builds for GPUs. Beside one for CPUs it is installed by itself, 290 MB.
test-kernels: $(VENV)/.installed-test
	@python -c "import triton" 2>/dev/null || test -d $(VENV)/triton || \
	  python -m pip install --disable-pip-version-check -q --no-deps --target $(VENV)/triton triton==3.9.0
	PYTHONPATH=$(VENV)/triton python -m pytest --dist load tests/integration/test_kernels.py

docs: $(VENV)/.installed-test
	python -m tests.docs.generate

check: $(VENV)/.installed-test
	ruff check .
	ruff format --check .
	flake8 pipeline
	mypy

# The tests of the report's page drive Debian's Chromium. Where there is none and none can be
# installed, they are skipped, and this says so.
APT_CHROMIUM := DEBIAN_FRONTEND=noninteractive apt-get install -y -q chromium
browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	  command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing chromium, for the tests of the report's page"; \
	  { $(APT_CHROMIUM) || { apt-get update -q && $(APT_CHROMIUM); }; } >/dev/null 2>&1; fi; \
	command -v chromium >/dev/null || echo "no Chromium here, and it could not be installed:" \
	  "the tests of the report's page in a browser are skipped (apt-get install chromium)"

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
