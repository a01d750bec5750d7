# Every target sets up what it needs: a virtual environment with the pinned versions of constraints.txt.
# A machine needs Python 3.11 or newer, git and make. VENV=/elsewhere moves the environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo test test-matrix test-cluster test-docker test-gpu lint check goldens locks docs bench clean

help:
	@echo "make demo      train the embedded default through all five stages (minutes on two cores)"
	@echo "make test      all tests"
	@echo "make test-matrix  every layout against plain PyTorch, and its memory against the plan (half an hour on two cores)"
	@echo "make test-cluster  tests on hosts made of Linux namespaces: ssh, faults, SLURM; root on Linux, skipped loudly elsewhere"
	@echo "make test-docker  builds the CPU image and trains with it in containers; root on Linux, skipped loudly elsewhere"
	@echo "make lint      linters and types"
	@echo "make check     linters, types, import contracts and the tests that need no torch (two to three minutes on two cores)"
	@echo "make test-gpu  the GPU tests; skipped loudly where there is no GPU"
	@echo "make goldens   rewrite ds_configs/, docs/ and the golden texts; review the diff"
	@echo "make locks     rewrite docker/locks/ from constraints.txt and what the registries have"
	@echo "make bench     the benchmarks of benchmarks/"

# torch comes first and alone: a range would pull a build for CUDA where none is wanted.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(READY)

demo: $(READY)
	$(BIN)/launcher run examples/tiny.yaml

test: $(READY)
	$(BIN)/python -m pytest

test-matrix: $(READY)
	EQUAL_RUNS=benchmarks/results/equal_runs.json $(BIN)/python -m pytest -q -m '' tests/stages/equal_runs tests/stages/test_continued.py
	$(BIN)/python -m pytest -q -m '' tests/stages/test_held_bytes.py tests/stages/test_planned_memory.py
	$(BIN)/python -m launcher.cli.goldens

test-cluster: $(READY)
	$(BIN)/python -m pytest tests/cluster

test-docker: $(READY)
	DOCKER_OPS=compile $(BIN)/python -m pytest tests/docker

test-gpu: $(READY)
	$(BIN)/python -m pytest tests/gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest -q tests/unit tests/arch tests/docs

goldens: $(READY)
	$(BIN)/python -m launcher.cli.goldens
	GOLDENS=write $(BIN)/python -m pytest -q tests/unit/cli/test_error_goldens.py

# The images' packages, with the hashes of all their files. TORCH_WHEELS: a page or a folder that has torch's wheel for CPUs.
TORCH_WHEELS ?= https://download.pytorch.org/whl/cpu/torch/
LOCK := $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-annotate --constraint constraints.txt \
	--python-platform x86_64-manylinux_2_28 --custom-compile-command "make locks"
locks: $(READY)
	$(LOCK) --python-version 3.11 --extra qlora --no-emit-package deepspeed --find-links $(TORCH_WHEELS) pyproject.toml -o docker/locks/cpu.txt
	$(LOCK) --python-version 3.12 --extra qlora --no-emit-package deepspeed pyproject.toml -o docker/locks/gpu.txt
	echo deepspeed | $(LOCK) --python-version 3.11 --no-deps - -o docker/locks/deepspeed.txt
	echo hatchling | $(LOCK) --python-version 3.11 - -o docker/locks/build.txt

bench: $(READY)
	$(BIN)/python benchmarks/validate.py
	$(BIN)/python benchmarks/first_step.py
	$(BIN)/python benchmarks/demo.py

clean:
	rm -rf $(VENV) build dist
