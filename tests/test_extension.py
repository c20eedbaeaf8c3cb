"""The compiled libraries: found, missing, broken, loaded twice; and what builds them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lbgap
from lbgap import _extension

needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")
PACKAGE = Path(lbgap.__file__).parent
LIBRARIES = ("*.so", "*.pyd", "*.dylib")


@pytest.fixture
def copy(tmp_path):
    """A copy of the package without its compiled libraries."""
    return shutil.copytree(PACKAGE, tmp_path / "lbgap", ignore=shutil.ignore_patterns(*LIBRARIES, "__pycache__"))


def run(code, folder, **environment):
    """Run Python code that imports the package in a folder; returns its exit status and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-W", "error", "-c", code.replace("{folder!r}", repr(str(folder)))]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@needs_native
def test_a_second_copy_in_one_process_is_refused_before_it_registers(copy, tmp_path):
    library = _extension._find("_cpu")
    shutil.copy(library, copy)
    code = f"import torch; torch.ops.load_library({str(library)!r}); import lbgap"
    status, printed = run(code, tmp_path)
    assert status == 1
    assert f"ImportError: another copy of lbgap is loaded in this process: import only one of it and {copy}" in printed
