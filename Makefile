# One door: every recipe is one line, and CI calls the same ones. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo up test check audit format bench bench-full bench-docs docs screenshots lock clean
# A shell that activated something else must not leak into ours.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
bin := .venv/bin
# The newest 3.11 by name, else whatever python3 is; both are checked below. `make PYTHON=...` overrides.
PYTHON ?= $(shell command -v python3.11 || command -v python3)

help: ## list what make can do
	@sed -n 's/^\([a-z][a-z-]*\):.*## /\1\t/p' Makefile | expand -t 13

demo: .venv/.ready ## the whole path on sample data, in about a minute
	@$(bin)/fp demo

up: .venv/.ready ## online store, Dagster UI with daemon and API; Ctrl-C stops them
	@$(bin)/fp up

test: .venv/.ready ## every test, then the laws of time again in a zone that is not UTC
	$(bin)/python -m pytest -n 2 && TZ=Asia/Kolkata $(bin)/python -m pytest -n 2 -q -m law

check: .venv/.ready ## ruff, format, mypy --strict, import contracts
	$(bin)/ruff check && $(bin)/ruff format --check && $(bin)/mypy && $(bin)/lint-imports

audit: ## look for known vulnerabilities of the locked dependencies (needs the network)
	@$(PYTHON) -m venv --clear tmp/audit && tmp/audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1 && tmp/audit/bin/pip-audit --requirement requirements.lock --disable-pip --progress-spinner off

format: .venv/.ready ## let ruff fix and format
	$(bin)/ruff check --fix --exit-zero && $(bin)/ruff format

bench: .venv/.ready ## every benchmark at its quick size, in minutes
	$(bin)/python -m benchmarks all --quick --json benchmarks/results/quick.json

bench-full: .venv/.ready ## every benchmark at its full size, with Feast: hours on a quiet machine (needs the network once)
	$(bin)/python -m benchmarks all --peers all --json benchmarks/results/full.json

bench-docs: .venv/.ready ## figures and plots of docs/benchmarks.md from benchmarks/figures/*.json
	$(bin)/python -m benchmarks docs

docs: .venv/.ready ## run the commands and examples of the docs
	$(bin)/python -m pytest -m docs

screenshots: .venv/.ready ## take the pictures of docs/ui.md again (needs Debian's chromium)
	SCREENSHOTS=docs/images $(bin)/python -m pytest -m browser -p no:randomly tests/test_browser.py

lock: ## make requirements.lock again from pyproject.toml (needs the network)
	@$(PYTHON) -m venv --clear tmp/lock && tmp/lock/bin/pip install --quiet pip-tools && CUSTOM_COMPILE_COMMAND="make lock" tmp/lock/bin/pip-compile --quiet --upgrade --generate-hashes --no-strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --extra dev --extra polars --extra postgres --output-file requirements.lock pyproject.toml

clean: ## remove what was generated, keep .venv (`rm -rf .venv` for that too)
	@if [ -x $(bin)/fp ]; then $(bin)/fp down >/dev/null 2>&1 || true; fi; rm -rf data/features data/sources data/online .dagster tmp dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis; find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# Two stamps, so that editing pyproject.toml never needs the network: only a new lock does.
.venv/.locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}. Try: make PYTHON=/path/to/python3.11")' && echo "Setting up .venv (once, about a minute) ..." && $(PYTHON) -m venv --clear .venv && $(bin)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock && touch $@

.venv/.ready: .venv/.locked pyproject.toml
	@$(bin)/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation --editable . && touch $@
