# Every target does its own set-up: a virtual environment in .venv with the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
# A process a core with one thread (tests/conftest.py); one that has none left takes tests from another.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal
SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/*.cpp csrc/cpu/*.h csrc/cuda/*.cu csrc/cuda/*.cuh)

.PHONY: demo test test-full lint types docs bench cuda-compile gpu test-gpu sanitize-gpu bench-gpu clean

# pip 25 and older read PIP_CONSTRAINT for builds, newer ones PIP_BUILD_CONSTRAINT; here nothing is isolated.
.venv/.installed: pyproject.toml setup.py constraints.txt tools/nvcc.py $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools pybind11 ninja torch numpy
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[dev]"
	touch $@

demo: .venv/.installed
	$(BIN)/lbgap demo

test: .venv/.installed
	$(BIN)/python -m pytest $(PARALLEL)

# Every combination of the parameters of the ops, where `make test` tries each pair of values.
test-full: .venv/.installed
	$(BIN)/python -m pytest $(PARALLEL) --full

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

types: .venv/.installed
	$(BIN)/mypy

# The site, into site/; a broken link or reference is an error.
docs: .venv/.installed
	$(BIN)/mkdocs build --quiet --strict

bench: .venv/.installed
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

# Every kernel through nvcc, with a table of what it takes; fails where registers spill.
cuda-compile: .venv/.installed
	$(BIN)/python tools/compile_kernels.py

# The next four are for a machine with a GPU: they use the Python of PYTHON with its own torch, pytest and so on,
# install nothing into it and fetch nothing. Libraries that came along and run on the GPU are not built again where no
# source is newer, and with AS_IS=1 in any case.
gpu:
	$(PYTHON) tools/build_for_gpu.py $(if $(AS_IS),--as-is)

test-gpu: gpu
	$(PYTHON) -m pytest -rs tests/gpu

# Without torch's pool of memory every tensor is an allocation of its own, so that no access beyond one goes unseen.
sanitize-gpu: gpu
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 \
		$(PYTHON) -m pytest -q tests/gpu/test_*_kernels.py tests/gpu/test_launch.py -k "not captured and not compiled and not goes_on"
	compute-sanitizer --tool racecheck --error-exitcode 1 \
		$(PYTHON) -m pytest -q tests/gpu/test_launch.py -k "bits_again"

bench-gpu: gpu
	$(PYTHON) -m pytest benchmarks/ --benchmark-only --device cuda --benchmark-json=bench-gpu.json
	$(PYTHON) -m benchmarks.report bench-gpu.json --write

clean:
	rm -rf .venv build dist site *.egg-info lbgap/*.so
