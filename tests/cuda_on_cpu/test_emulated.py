"""The CUDA kernels, compiled for the CPU and run under AddressSanitizer: one test for each file of emulated/.

What is tested stands there, and what the emulator finds in emulator/. One file alone, or one test of it, runs with
``python -m tests.cuda_on_cpu.sanitized -k gram``.
"""

import subprocess

import pytest

from lbgap import _extension
from tests.cuda_on_cpu import library, sanitized

missing = sanitized.available() or ("" if "cpu" in _extension.NATIVE_DEVICES else "no compiled library")
pytestmark = pytest.mark.skipif(bool(missing), reason=f"the emulator of CUDA needs what is not here: {missing}")

FILES = sorted(sanitized.EMULATED.glob("test_*.py"))


@pytest.fixture(scope="module")
def environment():
    """What makes a process a sanitized one, the library built."""
    return sanitized.environment(library.build())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kernels(environment, pytestconfig, path):
    options = ["--full"] if pytestconfig.getoption("full") else []
    command = sanitized.command(str(path), "-q", "--tb=short", "--color=no", *options)
    done = subprocess.run(command, cwd=library.ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    if done.returncode != 0:
        pytest.fail(f"{path.name} under the emulator:\n{done.stdout[-10_000:]}{done.stderr[-2000:]}", pytrace=False)
