"""Compiles the CUDA kernels as host C++ against the stand-ins in emulator/, with sanitizers, into one library.

The kernels are taken as they are, but for ``__shared__``, which C++ cannot express: each such variable becomes a
reference to memory that the emulator owns and guards.
"""

import fcntl
import hashlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FOLDER = ROOT / "build" / "cuda_on_cpu"  # ignored by git, removed by `make clean`

COMMON = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-g1", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
EMULATOR = [*COMMON, "-O2", "-Wno-attributes"]
KERNELS = [
    *COMMON,
    "-O1",
    "-ffp-contract=off",
    "-DUSE_CUDA",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    # Every access calls the emulator, which looks before it leaps; so does arithmetic that goes wrong. (The calls that
    # AddressSanitizer would make leave out a write where the same was read before, and races with it.)
    "-fsanitize=thread,alignment,signed-integer-overflow,integer-divide-by-zero,shift,bounds",
    "--param=tsan-instrument-func-entry-exit=0",
    # What nobody wrote is garbage.
    "-ftrivial-auto-var-init=pattern",
    "-Wno-maybe-uninitialized",
]

SHARED = re.compile(r"__shared__\s+(?P<type>[^;=]+?)\s+(?P<name>\w+)\s*(?P<sizes>(?:\[[^\]]*\]\s*)*);")
EMULATED = (
    "using {name}_type = {type}{sizes}; static char {name}_key; "
    "auto& {name} = emulator::shared<{name}_type>(&{name}_key);"
)


def translate(source: str) -> str:
    """The source with its shared variables in the emulator's hands; the numbers of its lines stay."""
    return SHARED.sub(lambda found: EMULATED.format(**found.groupdict()), source)


@cache
def _compiler() -> str:
    return subprocess.run(["g++", "--version"], check=True, capture_output=True, text=True).stdout


def _key(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def _translated(folder: Path) -> Path:
    """Fill a folder with what is compiled, translated; each file says where it came from."""
    sources = ROOT / "csrc"
    paths = [path for path in sources.rglob("*") if path.suffix in {".cu", ".cuh", ".h"} or path.name == "library.cpp"]
    for path in [*paths, HERE / "faults.cu"]:
        to = folder / (path.relative_to(sources) if path.is_relative_to(sources) else path.name)
        text = f'#line 1 "{path.relative_to(ROOT)}"\n{translate(path.read_text())}'
        if not (to.exists() and to.read_text() == text):
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(text)
    return folder


def _compile(source: Path, flags: list[str], headers: str) -> Path:
    """Compile one file, unless that was done before."""
    target = FOLDER / f"{source.stem}-{_key(source.read_text(), flags, headers, _compiler(), torch.__version__)}.o"
    if not target.exists():
        part = target.with_suffix(".part")
        done = subprocess.run(
            ["g++", "-x", "c++", *flags, "-c", str(source), "-o", str(part)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"{source.name} does not compile for the emulator:\n{done.stdout}{done.stderr}")
        part.rename(target)
    return target


def build() -> Path:
    """Build the library of all kernels and of the planted faults, two files at a time; returns its path."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:  # another process may want it, too: it finds it built
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build()


def _build() -> Path:
    emulator = HERE / "emulator"
    headers = _key(*(path.read_text() for path in sorted([*(ROOT / "csrc").rglob("*.*h"), *emulator.glob("*.h")])))
    sources = _translated(FOLDER / f"sources-{headers}")
    include = Path(torch.__file__).parent / "include"
    kernels = [
        *KERNELS,
        f"-I{emulator}",
        f"-I{sources}",
        f"-isystem{include}",
        "-include",
        str(emulator / "registration.h"),
    ]
    jobs = [(path, EMULATOR) for path in sorted(emulator.glob("*.cpp"))]
    jobs += [(path, kernels) for path in [sources / "library.cpp", *sorted(sources.rglob("*.cu"))]]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda job: _compile(*job, headers), jobs))
    library = FOLDER / f"emulated-{_key(*objects)}.so"
    if not library.exists():
        part = library.with_suffix(".part")
        # Of the sanitizers only AddressSanitizer is linked; what the others would be called for is the emulator's.
        libraries = [f"-L{include.parent / 'lib'}", "-ltorch_cpu", "-lc10", "-lasan"]
        subprocess.run(["g++", "-shared", "-Wl,-z,defs", *map(str, objects), *libraries, "-o", str(part)], check=True)
        part.rename(library)
    return library


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
