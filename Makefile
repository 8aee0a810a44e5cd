# The two commands: `make run` and `make test`. Each sets up what it needs; what is set up stays.
PYTHON := $(shell for p in python3.11 python3 python; do $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done)
# Without Python 3.11 another one starts the set-up, which fetches 3.11 through uv or says what is missing.
PYTHON := $(or $(PYTHON),python3)
VENV_PYTHON := .venv/bin/python

# Each core runs tests, up to four: a process of tests takes about 1 GB. TEST_WORKERS=0 runs them in one process.
TEST_WORKERS ?= logical
PYTEST = $(VENV_PYTHON) -m pytest -n $(TEST_WORKERS) --maxprocesses 4 --dist loadgroup

TEMPLATES = $$(find templates -name "*.html")
# The version is Django's in requirements.in.
DJADE := .venv/bin/djade --target-version 5.2

.PHONY: help run worker demo test test-fast test-long test-setup check format setup tools clean

help:
	@echo "make run    the platform on http://127.0.0.1:8000/ (PORT=..., MEDSEG_DATA_DIR=...)"
	@echo "make worker QUEUES=train,infer   workers of another machine for a platform on Postgres, Redis and S3 (docs/SCALING.md)"
	@echo "make demo   the same with a small synthetic dataset, model and overlay"
	@echo "make test   all tests"
	@echo "make test-fast   the fast ones: no server, no browser, no training"
	@echo "make test-long   twenty kills and all faults, with a table in var/kills.jsonl (half an hour)"
	@echo "make check  style, types, import rules, migrations, API document"
	@echo "make format lay out Python, JavaScript and templates as make check wants them"
	@echo "make clean  remove what was installed here (the data in var/ stay)"

setup:
	@$(PYTHON) scripts/setup.py

tools:
	@$(PYTHON) scripts/setup.py --tools

run: setup
	@$(VENV_PYTHON) scripts/run.py

worker: setup
	@$(if $(QUEUES),MEDSEG_QUEUES=$(QUEUES)) $(VENV_PYTHON) scripts/run.py --worker

demo: setup
	@$(VENV_PYTHON) scripts/run.py --demo

test-setup:
	@$(PYTHON) scripts/setup.py --chromium

test-fast: setup
	@$(PYTEST) -m fast

test: test-setup
	@$(PYTEST)

test-long: export MEDSEG_KILLS ?= 20
test-long: export MEDSEG_FAULT_SECONDS ?= 30
test-long: export MEDSEG_LONG_TESTS ?= 1
test-long: export MEDSEG_KILL_TABLE ?= $(CURDIR)/var/kills.jsonl
test-long: test-setup
	@mkdir -p var
	@$(PYTEST) -m "reliability or long"

# Biome and tsc are scripts for Node.js; without one of the machine it is in the virtual environment.
check format: export PATH := $(PATH):$(CURDIR)/.venv/bin

check: export MEDSEG_DATA_DIR := $(CURDIR)/var/check
check: tools
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy .
	$(VENV_PYTHON) -c "from importlinter.cli import lint_imports_command as main; main()" --no-logo --cache-dir var/check/import_linter
	node_modules/.bin/biome ci
	node_modules/.bin/tsc
	$(DJADE) --check $(TEMPLATES)
	$(VENV_PYTHON) manage.py makemigrations --check --dry-run
	$(VENV_PYTHON) manage.py check
	$(VENV_PYTHON) manage.py spectacular --validate --fail-on-warn --file /dev/null

# djade ends with 1 where it had to format, too; the second one tells that from a template it cannot read.
format: tools
	$(VENV_PYTHON) -m ruff format .
	node_modules/.bin/biome check --write --linter-enabled=false
	$(DJADE) $(TEMPLATES) || $(DJADE) --check $(TEMPLATES)

clean:
	rm -rf .venv node_modules .pytest_cache .mypy_cache .ruff_cache var/check
