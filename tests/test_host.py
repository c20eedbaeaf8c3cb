"""Facts about the build and the machine, and the copy-bandwidth probe."""

import os
import subprocess
import sys
import threading

import pytest

from lbgap import _extension

host = _extension.host
pytestmark = pytest.mark.skipif(host is None, reason="no compiled library")


def test_build_facts():
    assert host.compiler().split()[0] in ("gcc", "clang")
    assert host.compiler().split()[1][0].isdigit()
    # The bits of a result do not depend on the machine only as long as products are not contracted.
    assert {"-O3", "-ffp-contract=off"} <= set(host.flags().split())
    assert not {"-ffast-math", "-march=native"} & set(host.flags().split())


def test_machine_facts():
    assert host.simd_level() in ("baseline", "avx2", "avx512f")
    assert 1 <= host.hardware_threads() <= 2 * os.cpu_count()


@pytest.mark.parametrize(("size", "threads"), [(1, 1), (3, 8), (1 << 20, 1), ((1 << 20) + 1, 3)])
def test_copy_bandwidth_is_positive(size, threads):
    assert 0 < host.copy_bandwidth(size, threads, repeats=1) < 1e15
    assert 0 < host.copy_bandwidth(bytes=size, threads=threads) < 1e15


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 1, 1), ValueError, "must be positive"),
        ((-1, 1, 1), ValueError, "must be positive"),
        ((1, 0, 1), ValueError, "must be positive"),
        ((1, -3, 1), ValueError, "must be positive"),
        ((1, 1, 0), ValueError, "must be positive"),
        ((1, 4097, 1), ValueError, "threads must be at most 4096"),
        ((1, 2**31 - 1, 1), ValueError, "threads must be at most 4096"),
        ((2**62, 1, 1), MemoryError, "bad_alloc"),
        ((2**64, 1, 1), TypeError, "incompatible function arguments"),
        (("1", 1, 1), TypeError, "incompatible function arguments"),
        ((1,), TypeError, "incompatible function arguments"),
    ],
)
def test_copy_bandwidth_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        host.copy_bandwidth(*arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux counts it")
def test_a_thread_that_does_not_start_is_an_error_and_not_the_end():
    code = (
        "import resource; from lbgap import _extension\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, resource.RLIM_INFINITY))\n"
        "try: _extension.host.copy_bandwidth(1, 4096, 1)\n"
        "except (RuntimeError, MemoryError) as error: print('refused:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: ")


def test_copy_bandwidth_lets_other_threads_run():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(host.copy_bandwidth(1 << 16, 2, 2)))
    thread.start()
    assert host.copy_bandwidth(1 << 16, 2, 2) > 0
    thread.join()
    assert seen[0] > 0
