# Two commands on a machine that has Python 3.11 or later, git and make:
#   make demo   set everything up and run the main job
#   make test   set everything up and pass the tests
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: help demo test faults check format bench bench-peers clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo 'make check   format, lint, types, import layers, sizes'
	@echo 'make format  let the formatter and the linter fix what they can'
	@echo 'make faults  kill workers and servers for an hour, on every store (ARGS="-k redis" for one)'
	@echo 'make bench   measure this machine'
	@echo 'make bench-peers   measure haulier beside its peers (ARGS=--write: into docs/benchmarks.md)'

$(VENV)/pyvenv.cfg:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv $(VENV)

# Stamps are newer than pyproject.toml when what it names is installed. The set for tests holds
# all that the demo needs, so whoever has it is not asked to install again.
$(VENV)/.test: pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $(VENV)/.demo $@

$(VENV)/.demo: pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $(VENV)/.demo $(VENV)/.test $@

demo: $(VENV)/.demo
	$(BIN)/haulier demo $(ARGS)

# Tests that kill processes and servers mostly wait: two of them at a time, and nothing beside.
test: check
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -q -n 3 --ignore=tests/faults
	$(BIN)/python -m pytest -n 2 tests/faults
endif

faults: $(VENV)/.test
	$(BIN)/python -m pytest tests/faults --faults-long $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_architecture.py

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.demo
	$(BIN)/haulier bench $(ARGS)

bench-peers: $(VENV)/.bench
	$(BIN)/python benchmarks/peers/run.py $(ARGS)

clean:
	rm -rf benchmarks/peers/.cache $(VENV) haulier-demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
