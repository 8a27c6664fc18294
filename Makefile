# Everything happens inside the checkout: .venv, dist, .cache. A second run starts in seconds; stamps say what is done.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
PY := $(VENV)/bin/python
QUIET := --disable-pip-version-check -qq
PIP := $(PY) -m pip $(QUIET)
DISTRIBUTIONS := . $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
SOURCES := $(shell find qwen_agent_kit plugins -type f -not -path '*/__pycache__/*' -not -path '*/tests/*') \
	pyproject.toml README.md LICENSE
DEPENDENCIES := $(VENV)/.dependencies
WHEELS := dist/.wheels
INSTALLED := $(VENV)/.installed
MATERIAL := .cache/.material
RESULTS := .cache/results.xml
WORKERS ?= 2
ARGS ?=
WITHOUT := .venv-without-$(PLUGIN)

ifneq ($(filter test-without,$(MAKECMDGOALS)),)
ifeq ($(filter [vision] [audio],[$(PLUGIN)]),)
$(error PLUGIN is '$(PLUGIN)'; allowed: vision, audio, as in `make test-without PLUGIN=vision`)
endif
endif

.PHONY: help venv wheels install material lint format test test-full test-without mutants demo docs lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(DEPENDENCIES)  ## .venv with the exact versions of constraints.txt
wheels: $(WHEELS)  ## the core and every plugin, into dist/
install: $(INSTALLED)  ## those wheels, into .venv
material: $(MATERIAL)  ## the real tokenizers and weights that the tests use, into .cache

# A pattern, because test-without makes a venv of its own the same way.
%/.dependencies: constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later was found" >&2; exit 2; }
	@$(PYTHON) scripts/make_venv.py $*
	@echo "installing the packages of constraints.txt into $*" >&2
	@$*/bin/python -m pip $(QUIET) install --requirement constraints.txt
	@touch $@

$(WHEELS): $(DEPENDENCIES) $(SOURCES)
	@mkdir -p dist && rm -f dist/*.whl
	@for source in $(DISTRIBUTIONS); do $(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist "./$$source"; done
	@touch $@

$(INSTALLED): $(WHEELS)
	@$(PIP) install --no-index --no-deps --force-reinstall dist/*.whl
	@$(PIP) check
	@touch $@

$(MATERIAL): scripts/material.py plugins/miniatures/qwen_agent_kit_miniatures.py | $(INSTALLED)
	@$(PY) scripts/material.py .cache
	@touch $@

lint: $(INSTALLED)  ## formatting, lint, types, layers
	@$(VENV)/bin/ruff format --check --quiet .
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/mypy --no-error-summary --follow-imports=silent plugins/*/qwen_agent_kit_*.py plugins/*/qwen_agent_kit_*/*.py
	@$(VENV)/bin/lint-imports --no-cache

format: $(DEPENDENCIES)  ## rewrite the formatting
	@$(VENV)/bin/ruff check --quiet --fix . || true
	@$(VENV)/bin/ruff format .

# The tests see the installed wheels only: they run in an empty directory.
PYTEST = here=$$(pwd) && empty=$$(mktemp -d) && trap 'rm -rf "$$empty"' EXIT && cd "$$empty" && \
	"$$here/$(PY)" -m pytest -c "$$here/pyproject.toml" --rootdir "$$here" -p no:cacheprovider -q \
	-n $(WORKERS) --dist worksteal --timeout 900 --junit-xml "$$here/$(RESULTS)"

test: $(INSTALLED) $(MATERIAL)  ## the tests, on the installed wheels
	@$(PYTEST) -m "not full" "$$here/tests" "$$here/plugins" "$$here/integration" $(ARGS)

test-full: $(INSTALLED) $(MATERIAL)  ## the tests with their large counts
	@$(PYTEST) --timeout 3000 "$$here/tests" "$$here/plugins" "$$here/integration" $(ARGS)

$(WITHOUT)/.installed: $(WITHOUT)/.dependencies $(WHEELS)
	@$(WITHOUT)/bin/python -m pip $(QUIET) install --no-index --no-deps --force-reinstall \
		$$(ls dist/*.whl | grep -v '^dist/qwen_agent_kit_$(PLUGIN)-')
	@$(WITHOUT)/bin/python -m pip $(QUIET) check
	@touch $@

test-without: private PY := $(WITHOUT)/bin/python
test-without: private RESULTS := .cache/results-without-$(PLUGIN).xml
test-without: $(WITHOUT)/.installed $(MATERIAL)  ## where PLUGIN=vision or PLUGIN=audio is not installed: those that need it not
	@$(PY) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("qwen_agent_kit_$(PLUGIN)") is not None)' || \
		{ echo "error: $(WITHOUT) holds qwen-agent-kit-$(PLUGIN); hint: rm -r $(WITHOUT)" >&2; exit 2; }
	@$(PYTEST) -m "not full" "$$here/tests" "$$here/plugins" --ignore "$$here/plugins/$(PLUGIN)" $(ARGS)

mutants: $(INSTALLED) $(MATERIAL)  ## break the heart of the code on purpose; prints killed/total
	@$(PY) tests/mutants/run.py $(ARGS)

demo: $(INSTALLED)  ## install, fetch the miniature, answer a question with a tool
	@$(VENV)/bin/qak models fetch smollm2 >/dev/null
	@$(PY) examples/demo.py $(ARGS)

docs: $(INSTALLED)  ## the documentation, into site/
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

lock: $(INSTALLED)  ## write constraints.txt from what .venv holds
	@$(PY) scripts/lock.py > constraints.txt.new && mv constraints.txt.new constraints.txt && touch $(DEPENDENCIES)

clean:  ## take away what make made, except .cache
	@rm -rf $(VENV) .venv-without-* dist build site .mypy_cache .ruff_cache .pytest_cache
