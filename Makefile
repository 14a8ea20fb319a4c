# Each target makes .venv when it is missing; ARGS= passes flags on: make demo ARGS="--smallest".
# Nothing here phones home, and idle OpenMP threads sleep instead of spinning on shared cores.
export OMP_WAIT_POLICY := PASSIVE
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export PYTHONUNBUFFERED := 1
# Without its bytecode each of the many processes would compile the factory again.
export PYTHONDONTWRITEBYTECODE :=

# The first Python that is new enough and can make environments; PYTHON= names another.
ifndef PYTHON
PROBE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON := $(firstword $(foreach p,python3 python3.11 python3.12 python3.13,\
  $(shell $(p) -c "$(PROBE)" >/dev/null 2>&1 && echo $(p))))
endif
BIN := .venv/bin
STAMP := .venv/.made

.PHONY: help venv demo test test-slow bench paper-smoke lint format

help: ## Show the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Make the environment, and nothing else.

$(STAMP): constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 with venv found;\
	 install one (Debian: python3 and python3-venv) or name one by PYTHON="; exit 2; }
	@echo "Making .venv from constraints.txt: a few minutes, once."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq -c constraints.txt torch
	@$(BIN)/pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## Recipe to dataset to recognizer to gap-to-real, ending in an HTML report.
	$(BIN)/factory demo $(ARGS)

test: $(STAMP) ## The tests that run on every change.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow" $(ARGS)

test-slow: $(STAMP) ## The tests that run before a release.
	$(BIN)/python -m pytest -m slow $(ARGS)

bench: $(STAMP) ## The factory's overhead; run it on an otherwise idle machine.
	$(BIN)/python -m benchmarks.bench desk/generate/idiff_face.yaml $(ARGS)

paper-smoke: $(STAMP) ## The four papers at their sizes: counts, a training and a sampling step.
	$(BIN)/python -m pytest tests/test_paper_smoke.py -m slow -s $(ARGS)

lint: $(STAMP) ## ruff, pyright and import-linter.
	$(BIN)/ruff check $(ARGS) .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(STAMP) ## Let ruff put the code in order.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
