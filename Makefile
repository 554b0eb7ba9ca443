# Everything runs in .venv, which the first target makes; a second run installs nothing.
# `make PIP_ARGS=...` hands options to pip: another torch build, a folder of wheels.

PYTHON ?= python3.11
PIP_ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed
SCHEMA := .venv/sarif-2.1.0.json

.PHONY: help demo test lint bench audit-corpus docs
.DEFAULT_GOAL := help

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## Train the MNIST convnet with and without dropout, side by side
	$(BIN)/dropseed demo

# The published schema of SARIF, with which a test checks what we write. No Python package has it;
# without npm that test is skipped.
$(SCHEMA): $(INSTALLED)
	-cd .venv && npm pack --silent @microsoft/jest-sarif@1.0.0-beta.0 && \
	tar -xzOf microsoft-jest-sarif-1.0.0-beta.0.tgz package/lib/schemas/sarif-2.1.0-rtm.5.json \
	> sarif.part && mv sarif.part sarif-2.1.0.json

test: $(INSTALLED) $(SCHEMA)  ## Run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(INSTALLED)  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## Run the benchmarks and print their tables
	$(BIN)/python -m benchmarks

audit-corpus: $(INSTALLED)  ## Scan other people's packages; print the auditor's precision and recall
	$(BIN)/python -m corpus

docs: $(INSTALLED)  ## Write the pages of the auditor's rules anew
	$(BIN)/python -m dropseed.audit.manual docs/rules
