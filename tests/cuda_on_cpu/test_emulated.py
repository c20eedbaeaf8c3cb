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
def runs():
    """The processes, all under way at once: they share the processors until the last is done."""
    environment = sanitized.environment(library.build())
    started = {}
    for path in FILES:
        command = sanitized.command(str(path), "-q", "--tb=short", "--color=no")
        started[path] = subprocess.Popen(
            command, cwd=library.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kernels(runs, path):
    output, _ = runs[path].communicate(timeout=1200)
    if runs[path].returncode != 0:
        pytest.fail(f"{path.name} under the emulator:\n{output[-10_000:]}", pytrace=False)
