"""Runs the tests in emulated/ in a process that AddressSanitizer watches.

python -m tests.cuda_on_cpu.sanitized [arguments of pytest]
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cuda_on_cpu.library import ROOT, build

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
EMULATED = Path(__file__).parent / "emulated"
OPTIONS = {
    "detect_leaks": 0,  # Python leaves much behind
    "detect_stack_use_after_return": 0,  # fibers have stacks of their own
    "alloc_dealloc_mismatch": 0,  # torch's
    "max_malloc_fill_size": 2**24,
    "malloc_fill_byte": 255,  # what nobody wrote is NaN
    "redzone": 512,
    "quarantine_size_mb": 8,
    "malloc_context_size": 1,  # who allocated what is not shown
}


def _found(name: str) -> str:
    """The path of one of g++'s libraries; its bare name where there is none."""
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


def available() -> str | None:
    """What is missing here, if anything is."""
    try:
        return None if Path(_found("libasan.so")).is_absolute() else "g++ has no AddressSanitizer (libasan.so)"
    except (OSError, subprocess.CalledProcessError):
        return "no g++"


def command(*arguments: str) -> list[str]:
    """The command line of a sanitized pytest."""
    return [sys.executable, "-X", "faulthandler", "-m", "pytest", "-p", "no:cacheprovider", *arguments]


def environment(library: Path) -> dict[str, str]:
    """What makes a process a sanitized one, and says where the kernels are."""
    # AddressSanitizer wants to come first; it needs the C++ runtime to be there for exceptions.
    preload = f"{_found('libasan.so')} {_found('libstdc++.so.6')}"
    options = ":".join(f"{name}={value}" for name, value in OPTIONS.items())
    return os.environ | {"LD_PRELOAD": preload, "ASAN_OPTIONS": options, "LBGAP_EMULATED": str(library)} | ONE_THREAD


def main(arguments: Sequence[str]) -> int:
    """Build the library and run the tests."""
    chosen = arguments if any("emulated" in argument for argument in arguments) else [str(EMULATED), *arguments]
    return subprocess.run(command(*chosen), env=environment(build()), cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
