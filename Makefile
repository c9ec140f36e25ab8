# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

# Every target that runs something first brings .venv up to date, so each works from a fresh clone.
# Needs make and Python 3.11; name an interpreter with `make PYTHON=/path/to/python3.11 ...`.

BIN := .venv/bin
DEMO_DIR ?= runs/demo-$$(date +%Y%m%d-%H%M%S)
PYTEST_ARGS ?=
BAZEL_ARGS ?=
# Two at a time: a test process holds TensorFlow and a TFF worker, about 2 GB.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
LOCK_ARGS ?=
export PYTHON

.PHONY: help
help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## create or refresh .venv from requirements.txt
	@sh tools/environment.sh

.PHONY: demo
demo: setup ## run the main job on the embedded dataset and base model
	$(BIN)/hetlora train --task docstring_summarization --output-dir $(DEMO_DIR) --seed 0

.PHONY: demo-seeds
demo-seeds: setup ## run the demo on three seeds; fails unless each gains 10 %
	$(BIN)/python -m benchmarks.demo_seeds

.PHONY: test
test: setup ## run the tests, without the slow ones
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: setup ## run the slow tests alone
	$(PYTEST) -m slow $(PYTEST_ARGS)

.PHONY: test-all
test-all: setup ## run all tests
	$(PYTEST) $(PYTEST_ARGS)

.PHONY: bazel
bazel: setup ## run the quick tests under Debian's Bazel, without a network
	@sh tools/bazel.sh $(BAZEL_ARGS)

.PHONY: lint
lint: setup ## check formatting, lint, types and BUILD files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/python -m tools.build_files

.PHONY: format
format: setup ## format the code and mend what lint can mend itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: bench
bench: setup ## measure a round beside a bare loop, the matrix peak and, with HETLORA_PEERS, its rivals
	$(BIN)/python -m benchmarks.round_time

.PHONY: build-files
build-files: setup ## write the BUILD files anew from the imports
	$(BIN)/python -m tools.build_files --write

.PHONY: lock
lock: ## compile requirements.txt anew; LOCK_ARGS=--upgrade for newer versions
	python=$$(sh tools/environment.sh find-python) && "$$python" -m venv .lock-venv
	.lock-venv/bin/python -m pip --disable-pip-version-check install --quiet uv
	.lock-venv/bin/python -m uv pip compile requirements.in --override overrides.txt \
	  --python-version 3.11 --generate-hashes --custom-compile-command "make lock" \
	  --quiet --output-file requirements.txt $(LOCK_ARGS)

.PHONY: clean
clean: ## remove the environment and the caches; runs/ stays
	rm -rf .venv .lock-venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
