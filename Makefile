# Every target needs .venv and builds it from requirements.lock if it is missing or older. Otherwise this costs nothing.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
# Tests that repeat something at random. SPEECHCLIP_LONG=1 raises the number of repetitions.
LONG := $(shell grep -rl --include='test_*.py' 'from support.counts import' tests)
# How many tests run at the same time.
WORKERS ?= 2
# The folder with KubeRay's CRD files, which this repository does not contain. Set it by `make test CRDS=FOLDER`.
CRDS ?= $(wildcard ../shared/crds)
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
# The theme prints a long notice about its successor. It is no warning about our pages.
export NO_MKDOCS_2_WARNING ?= 1

.PHONY: help setup demo test check docs test-slow test-gpu test-long evidence scale lock clean

help:            ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## create .venv with the packages of requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, {v[0]}.{v[1]} was found; give one by make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'uv>=0.8'
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(VENV) -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(VENV) --no-deps -e .
	@touch $@

demo: $(READY)   ## run the main job on real recordings and pictures (10 minutes); DEMO="--limit 0" uses the whole corpus
	$(BIN)/python pipelines/demo.py $(DEMO)

test: $(READY)   ## run the tests that CI runs
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=12 -m "not slow" $(if $(CRDS),--crds=$(CRDS)) $(TESTS)

check: $(READY)  ## check style, types, layers, dependencies and the documentation site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry speechclip pipelines
	$(BIN)/deptry tests benchmarks --ignore DEP002,DEP004
	$(BIN)/mkdocs build

docs: $(READY)   ## build the documentation site in site/; fails on a broken link
	$(BIN)/mkdocs build

test-slow: $(READY)  ## run the tests marked slow
	$(BIN)/python -m pytest -q -m slow $(TESTS)

test-gpu: $(READY)   ## run the tests that need a GPU (a few minutes); without a GPU they are skipped
	$(BIN)/python -m pytest -q -m gpu $(TESTS)

test-long: WORKERS = 3
# These tests need no disk that survives a power failure. Files in memory are faster.
test-long: export TMPDIR := $(firstword $(wildcard /dev/shm) /tmp)
test-long: $(READY)  ## repeat the random tests (kills, faults, damage, races) hundreds of times (40 minutes on two cores)
	SPEECHCLIP_LONG=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations=12 -o tmp_path_retention_policy=failed -m "not slow" $(LONG)

evidence: $(READY)  ## show that a head learns, with small trained encoders (30 minutes)
	$(BIN)/python benchmarks/evidence.py $(EVIDENCE)

scale: $(READY)  ## measure the cost of 1,000 to 100,000 almost empty tasks in driver and catalog (30 minutes)
	$(BIN)/python benchmarks/scale.py $(SCALE)

lock: $(READY)   ## update requirements.lock after a change of pyproject.toml; versions that still fit stay
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --quiet -o requirements.lock

clean:           ## delete .venv, the site, and the results of demo, evidence and scale
	rm -rf $(VENV) site demo evidence scale
