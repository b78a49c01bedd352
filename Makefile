.DEFAULT_GOAL := help
.PHONY: help setup demo test check up down lock

PYTHON ?= python3.11

help: ## Show this list.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: .venv/installed ## Create .venv with the locked packages.

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
ifdef TORCH_INDEX  # its torch asks for CUDA libraries of its own, or for none
	grep -vE '^(nvidia|cuda|triton)' requirements.lock >.venv/requirements.lock
	.venv/bin/pip install --quiet --no-deps --extra-index-url $(TORCH_INDEX) --requirement .venv/requirements.lock
	.venv/bin/pip install --quiet --extra-index-url $(TORCH_INDEX) torch
else
	.venv/bin/pip install --quiet --no-deps --requirement requirements.lock
endif
	.venv/bin/pip install --quiet --no-deps --editable .
	touch $@

demo: setup ## Run the whole pipeline on the embedded data set and show its numbers.
	.venv/bin/detdiffusion run demo

check: setup ## Lint, format, types and import rules.
	scripts/check

test: setup ## Run the tests.
	scripts/test

up: setup ## Start a Prefect server with its UI, a worker, and deploy every flow.
	scripts/up

down: ## Stop the server and the worker that `make up` started.
	scripts/down

lock: ## Resolve pyproject.toml afresh into requirements.lock.
	scripts/lock
