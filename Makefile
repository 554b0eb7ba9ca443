# Everything runs in .venv, which the first target makes; a second run installs nothing.
# `make PIP_ARGS=...` hands options to pip: another torch build, a folder of wheels.

PYTHON ?= python3.11
PIP_ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help demo test lint bench
.DEFAULT_GOAL := help

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## Train the MNIST convnet with and without dropout, side by side
	$(BIN)/dropseed demo

test: $(INSTALLED)  ## Run the tests
	$(BIN)/python -m pytest

lint: $(INSTALLED)  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## Run the benchmarks and print their tables
	$(BIN)/python -m benchmarks
