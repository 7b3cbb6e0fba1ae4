# Every target sets up what it needs in .venv from the hashed lock; set-up is a no-op when nothing changed.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
# What repeats something at random, and how often depends on SPEECHCLIP_LONG.
LONG := $(shell grep -rl --include='test_*.py' 'from support.counts import' tests)
# How many tests run at the same time.
WORKERS ?= 2
# The folder of KubeRay's CRDs, which are not ours to keep: one beside the checkout, else crds/, else make test CRDS=FOLDER.
CRDS ?= $(wildcard ../shared/crds)
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: help setup demo test check test-slow test-gpu test-long evidence scale lock clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: $(READY)  ## the virtual environment, from requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, {v[0]}.{v[1]} was found; give one by make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'uv>=0.8'
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(VENV) -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(VENV) --no-deps -e .
	@touch $@

demo: $(READY)   ## the main job on real input, ten minutes; DEMO="--limit 0" takes the whole corpus
	$(BIN)/python pipelines/demo.py $(DEMO)

test: $(READY)   ## all tests that CI runs
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=12 -m "not slow" $(if $(CRDS),--crds=$(CRDS)) $(TESTS)

check: $(READY)  ## style, types, layers and declared dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry speechclip pipelines
	$(BIN)/deptry tests benchmarks --ignore DEP002,DEP004

test-slow: $(READY)  ## the long suites
	$(BIN)/python -m pytest -q -m slow $(TESTS)

test-gpu: $(READY)   ## what needs a GPU, a few minutes; skips where torch sees none
	$(BIN)/python -m pytest -q -m gpu $(TESTS)

test-long: WORKERS = 3
# No power fails here: files in memory are as good, where the machine has a place for them.
test-long: export TMPDIR := $(firstword $(wildcard /dev/shm) /tmp)
test-long: $(READY)  ## what CI repeats a little, repeated much: kills, faults, injuries, races; under 40 minutes on two cores
	SPEECHCLIP_LONG=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations=12 -o tmp_path_retention_policy=failed -m "not slow" $(LONG)

evidence: $(READY)  ## that the road learns: trained stand-in encoders on the stamps, about half an hour
	$(BIN)/python benchmarks/evidence.py $(EVIDENCE)

scale: $(READY)  ## what driver and catalog cost a task: 1,000, 10,000 and 100,000 that do next to nothing, half an hour
	$(BIN)/python benchmarks/scale.py $(SCALE)

lock: $(READY)   ## requirements.lock anew from pyproject.toml: names, versions and hashes, no hosts
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --quiet -o requirements.lock

clean:           ## the virtual environment and what demo, evidence and scale made
	rm -rf $(VENV) demo evidence scale
