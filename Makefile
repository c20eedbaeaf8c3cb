# Every target does its own set-up: a virtual environment in .venv with the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/*.cpp csrc/cpu/*.h)

.PHONY: demo test lint types bench clean

# pip 25 and older read PIP_CONSTRAINT for builds, newer ones PIP_BUILD_CONSTRAINT; here nothing is isolated.
.venv/.installed: pyproject.toml setup.py constraints.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools pybind11 ninja torch numpy
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[dev]"
	touch $@

demo: .venv/.installed
	$(BIN)/lbgap demo

test: .venv/.installed
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

types: .venv/.installed
	$(BIN)/mypy

bench: .venv/.installed
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

clean:
	rm -rf .venv build dist *.egg-info lbgap/*.so
