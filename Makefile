# `make check` is what CI runs, step for step. PYTHON may point into any environment with the [test] extra.
PYTHON ?= .venv/bin/python

.PHONY: setup check lint types test docs bench

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e '.[test]'
	touch $@

check: lint types test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -m "not study and not cluster" $(PYTEST_ARGS)

docs:
	$(PYTHON) docs/reference.py

bench:
	$(PYTHON) benchmarks/step.py
	$(PYTHON) benchmarks/probes.py
