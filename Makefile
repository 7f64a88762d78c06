# Two commands are all a newcomer types: `make demo` and `make test`. Each makes the environment on first use.

PYTHON ?= python3.11
VENV := .venv
UV := $(VENV)/bin/uv
READY := $(VENV)/.ready

# some machines forbid Python to keep bytecode, and each of the processes we start would compile it all anew
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help demo up test explore docs dashboards lint format clean

help:  ## what can be typed here
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(READY)  ## the whole loop on real customers: ingest, model, recommend, send, report
	@$(VENV)/bin/mailhouse demo

up: $(READY)  ## the embedded warehouse and the Dagster UI
	@$(VENV)/bin/mailhouse up

test: $(READY)  ## every test that needs nothing but this folder
	@$(VENV)/bin/pytest -n 2 --no-loadscope-reorder -m "not slow and not service"

explore: $(READY)  ## the property tests on examples that were never tried before
	@HYPOTHESIS_PROFILE=explore $(VENV)/bin/pytest -n 2 --no-loadscope-reorder --timeout 1800 -m hypothesis

docs: $(READY)  ## every model and column in words, as one page: .mailhouse/docs/index.html
	@$(VENV)/bin/python -m orchestration.lib.docs_site

dashboards: $(READY)  ## the bundle of dashboards that Apache Superset imports
	@$(VENV)/bin/python -m dashboards.build

lint: $(READY)  ## ruff and the type checker
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/basedpyright

format: $(READY)  ## rewrite the code in the project's format
	@$(VENV)/bin/ruff check --fix-only --exit-zero .
	@$(VENV)/bin/ruff format .

clean:  ## forget the environment and everything Mailhouse wrote
	rm -rf $(VENV) .mailhouse

$(READY): pyproject.toml uv.lock
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@test -x $(UV) || $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) sync --frozen --quiet --inexact --compile-bytecode
	@touch $@
