# `make check` goes with every change; `make check-all`, which CI runs, has the slow and browser tests and studies too.
# PYTHON may point into any environment with the [test] extra.
PYTHON ?= .venv/bin/python

.PHONY: setup check check-all lint types test test-all test-cluster test-cluster-quick docs bench

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e '.[test]'
	touch $@

check: lint types test

check-all: lint types test-cluster-quick test-all

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -m "not study and not slow and not browser and not cluster" $(PYTEST_ARGS)

# One after the other: each brings up daemons. CI has time for the first half.
test-cluster:
	$(PYTHON) -m pytest -n 0 -m cluster tests/cluster $(PYTEST_ARGS)

test-cluster-quick:
	$(PYTHON) -m pytest -n 0 -m "cluster and not slow" tests/cluster $(PYTEST_ARGS)

test-all:
	$(PYTHON) -m pytest -m "not cluster" $(PYTEST_ARGS)

docs:
	$(PYTHON) docs/reference.py
	$(PYTHON) docs/statements.py

bench:
	$(PYTHON) benchmarks/step.py
	$(PYTHON) benchmarks/probes.py
