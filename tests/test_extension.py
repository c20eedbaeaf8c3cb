"""The compiled libraries: found, missing, broken, loaded twice; and what builds them."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import lbgap
from lbgap import _extension

needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")
PACKAGE = Path(lbgap.__file__).parent
ROOT = PACKAGE.parent
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


# What builds them


SETUP = ROOT / "setup.py"
in_checkout = pytest.mark.skipif(not SETUP.exists(), reason="needs the source tree")
REPORT = """
import runpy, setuptools
setuptools.setup = lambda **given: print("built:", *given)
runpy.run_path("setup.py")
"""


def set_up(**environment):
    """Run setup.py up to the call of ``setup``; returns the exit status and what was printed."""
    pytest.importorskip("setuptools")
    environment = {key: value for key, value in (os.environ | environment).items() if value is not None}
    command = [sys.executable, "-c", REPORT]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@in_checkout
@pytest.mark.parametrize("compiler", ["", " ", None])
def test_an_empty_choice_of_compiler_means_the_default(compiler):
    pytest.importorskip("pybind11")
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    status, printed = set_up(LBGAP_BUILD="", CXX=compiler)
    assert (status, printed.strip()) == (0, "built: ext_modules cmdclass")


@in_checkout
def test_a_source_archive_made_without_a_compiler_builds_with_one(tmp_path):
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(*LIBRARIES, "__pycache__")
    for folder in ("csrc", "lbgap", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, source)
    environment = {**os.environ, "LBGAP_BUILD": "0"}
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=source, env=environment, check=True)
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        packed = {name.partition("/")[2] for name in opened.getnames()}
    needed = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*") if path.is_file()}
    assert {"csrc/library.cpp", "csrc/box.h", "csrc/cpu/loops.h"} <= needed <= packed
    assert "setup.py" in packed
    assert not any(name.endswith((".so", ".pyc")) for name in packed)
