"""What builds the libraries on a machine with a GPU: what it takes as it is, for which GPU it builds, and how."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "build_for_gpu.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    yield importlib.import_module("build_for_gpu")
    sys.modules.pop("build_for_gpu")


@pytest.fixture
def libraries(script, monkeypatch, tmp_path):
    """Two files that stand in for the libraries, newer than all sources, and run on the GPU."""
    paths = tmp_path / "_cpu.abi3.so", tmp_path / "_cuda.abi3.so"
    for path in paths:
        path.touch()
    monkeypatch.setattr(script, "LIBRARIES", paths)
    monkeypatch.setattr(script, "run_here", lambda: True)
    return paths


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_builds_nothing_and_says_so():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "torch sees no GPU here\n")


def test_libraries_that_came_along_are_taken(script, libraries):
    assert script.why_not_taken(as_is=False) is None


def test_a_library_that_is_missing_or_does_not_run_is_built(script, libraries, monkeypatch):
    monkeypatch.setattr(script, "run_here", lambda: False)
    assert script.why_not_taken(as_is=True) == "the libraries do not run on this GPU"
    libraries[1].unlink()
    assert script.why_not_taken(as_is=True) == "there is no _cuda.abi3.so"


def test_a_library_older_than_a_source_is_taken_on_request_alone(script, libraries):
    os.utime(libraries[1], (0, 0))
    assert script.why_not_taken(as_is=False).endswith(" is newer than the libraries")
    assert script.why_not_taken(as_is=True) is None


@pytest.mark.parametrize(("wanted", "built"), [(None, "9.0"), ("", "9.0"), ("8.0;9.0+PTX", "8.0;9.0+PTX")])
def test_it_builds_for_the_gpu_that_is_here_unless_told_otherwise(script, monkeypatch, tmp_path, wanted, built):
    calls = []
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    if wanted is not None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: calls.append(options["env"]))
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    script.build((9, 0))
    script.build((9, 0))  # among the links that are there
    assert [calls[0][name] for name in ("TORCH_CUDA_ARCH_LIST", "FORCE_CUDA", "LBGAP_BUILD")] == [built, "1", "1"]


def test_setup_runs_where_no_setuptools_can_refuse_pyproject(script, tmp_path):
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    script.link(tmp_path)
    assert not (tmp_path / "pyproject.toml").exists()
    assert (tmp_path / "lbgap").samefile(ROOT / "lbgap")
    command = [sys.executable, "setup.py", "--quiet", "build_clib"]  # all but the building
    environment = {**os.environ, "LBGAP_BUILD": "1", "FORCE_CUDA": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
