# Every target sets up .venv by itself; `make` alone explains them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow lint gpu-resolve bench cuda sanitize browser servers mutants clean

PYTHON ?= python3
JOBS ?= 2
ARGS ?=

BIN := .venv/bin
READY := .venv/.ready
COMPILED := .venv/.compiled
SERVERS := .venv-servers/.ready
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# The kernels' sources: a change compiles them anew, in .venv alone.
CSRC := $(shell find rl_think_ext/kernels/csrc -type f 2>/dev/null)
NATIVE := $(wildcard CMakeLists.txt cmake/*) $(CSRC)
# Development has no use for the CUDA kernels, which take minutes to compile: `make cuda` is apart.
BUILD := PIP_CONSTRAINT=constraints.txt $(PIP) install -C build-dir=build/make \
  -C cmake.define.RL_THINK_CUDA=OFF -C cmake.define.RL_THINK_WERROR=ON
MIN_PYTHON := $(shell sed -n 's/^requires-python = ">=\([0-9.]*\)".*/\1/p' pyproject.toml)
TORCH := $(shell grep '^torch==' constraints.txt)

# Nothing here may need the network once .venv is ready, and equal thread counts give equal sums.
demo test test-slow bench mutants: export HF_HUB_OFFLINE := 1
demo test test-slow bench mutants: export HF_DATASETS_OFFLINE := 1
demo test test-slow bench mutants: export TRANSFORMERS_VERBOSITY := error
demo test test-slow bench mutants: export TOKENIZERS_PARALLELISM := false
demo test test-slow bench mutants: export WANDB_MODE := disabled
# The models are tiny: a second thread costs more than it brings.
test test-slow mutants: export OMP_NUM_THREADS := 1

help: ## print this
	@echo "usage: make TARGET [PYTHON=python3] [ARGS='...']"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

setup: $(COMPILED) ## set up .venv; the other targets do it by themselves

demo: $(COMPILED) ## teach the embedded model to think with RLP, on this machine
	@$(BIN)/rl-think demo $(ARGS)

test: $(COMPILED) ## tests and doctests that are not slow; at most 12 minutes (ARGS goes to pytest)
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(COMPILED) ## the tests that train (ARGS goes to pytest)
	@$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(COMPILED) ## ruff, formatting (C++ too), types, import rules
	@$(BIN)/ruff check
	@$(BIN)/clang-format --dry-run -Werror $(CSRC)
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

gpu-resolve: $(READY) ## ask pip whether constraints-gpu.txt fits together; needs an index (ARGS=--write resolves anew)
	@$(BIN)/python tests/gpu_set.py $(ARGS)

bench: $(COMPILED) ## time the kernels against their peers (ARGS goes to benchmarks/logprob.py; others: benchmarks/)
	@$(BIN)/python benchmarks/logprob.py $(ARGS)

cuda: $(COMPILED) ## compile the kernels anew, with CUDA for every target and warnings as errors; needs nvcc 13
	@PIP_CONSTRAINT=constraints.txt $(PIP) install --no-deps -C build-dir=build/cuda -C cmake.define.RL_THINK_CUDA=ON \
	  -C cmake.define.RL_THINK_WERROR=ON -e .

sanitize: $(COMPILED) ## the kernels' tests under the address and undefined-behaviour sanitizers
	@$(BIN)/python tests/sanitize.py $(ARGS)

browser: ## install Debian's chromium where there is none; the slow tests open the report in it
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "make: no chromium here, and only root can install it by apt-get: put a chromium on the PATH" >&2; exit 1; fi; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core fonts-liberation >/dev/null

servers: $(SERVERS) ## set up vLLM's CPU build in .venv-servers (3.4 GB); the slow tests start real servers from it

mutants: $(COMPILED) ## take each protected fix out of a copy; its test must turn red (ARGS='--only NAME')
	@$(BIN)/python tests/mutants/run.py -j $(JOBS) $(ARGS)

clean: ## remove caches and builds; .venv and .venv-servers stay
	@rm -rf build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name '.venv*' -prune -o -name .git -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(COMPILED): $(NATIVE) | $(READY)
	@echo "make: compiling the kernels"
	@$(BUILD) --no-deps -e .
	@touch $@

# .unfinished marks a set-up that was interrupted: pip may have left half a package behind, so it starts from nothing.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; pass PYTHON=/path/to/python$(MIN_PYTHON)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; need = tuple(map(int, "$(MIN_PYTHON)".split("."))); \
	sys.exit(0 if v >= need else "make: $(PYTHON) is Python %d.%d; $(MIN_PYTHON) or newer is needed: make PYTHON=/path/to/python$(MIN_PYTHON)" % v)'
	@if [ -e .venv/.unfinished ]; then echo "make: .venv was interrupted while being set up; starting again"; rm -rf .venv; fi
	@echo "make: setting up .venv (once; some minutes)"
	@mkdir -p .venv && touch .venv/.unfinished
	@$(PYTHON) -m venv .venv
	@$(PIP) install -c constraints.txt $(TORCH)
	@$(BUILD) -e '.[trl,verl,data,math,dev]'
	@rm .venv/.unfinished && touch $@ $(COMPILED)

# An environment of its own: this vLLM needs a newer transformers than the trainers take.
$(SERVERS): constraints-servers.txt | $(READY)
	@if [ -e .venv-servers/.unfinished ]; then \
	  echo "make: .venv-servers was interrupted while being set up; starting again"; rm -rf .venv-servers; fi
	@echo "make: setting up .venv-servers (once; some minutes)"
	@mkdir -p .venv-servers && touch .venv-servers/.unfinished
	@$(PYTHON) -m venv .venv-servers
	@.venv-servers/bin/python -m pip --quiet --disable-pip-version-check install --no-deps -r constraints-servers.txt
	@rm .venv-servers/.unfinished && touch $@
