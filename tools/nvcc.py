"""How the CUDA sources are compiled: what setup.py and the table of resources share."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "csrc" / "cuda"
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # the oldest torch that the library loads in: 2.10
# No fused multiply-add but where the source says so: the entries of random matrices and the points have the CPU's bits.
FLAGS = ["-O3", "-std=c++20", "-fmad=false", "-DUSE_CUDA", TARGET, "-Xcompiler", "-fPIC,-fvisibility=hidden"]
ARCHITECTURES = "8.0;9.0+PTX"


def find() -> str | None:
    """The path of nvcc: of CUDA_HOME or CUDA_PATH, or the first on the PATH, or the usual place."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable, "").strip()
        if home:
            return shutil.which("nvcc", path=str(Path(home) / "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def architectures() -> list[str]:
    """The compute capabilities to compile for, such as ``["8.0", "9.0+PTX"]``: TORCH_CUDA_ARCH_LIST, or the default.

    Raises:
        SystemExit: An entry is not of that form.
    """
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or ARCHITECTURES
    found = wanted.replace(";", " ").replace(",", " ").split()
    for entry in found:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", entry):
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST must be compute capabilities such as '8.0;9.0+PTX', got {entry!r}: give numbers"
            )
    return found


def gencode(entries: Sequence[str]) -> list[str]:
    """What tells nvcc to compile for some architectures."""
    flags = []
    for entry in entries:
        number = entry.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def sources() -> list[Path]:
    """Every CUDA source file."""
    return sorted(FOLDER.glob("*.cu"))


def command(nvcc: str, source: Path, target: Path, includes: Sequence[str], entries: Sequence[str]) -> list[str]:
    """The command that compiles one file."""
    folders = [f"-I{folder}" for folder in includes]
    return [nvcc, "-c", str(source), "-o", str(target), *FLAGS, *gencode(entries), *folders]


def build(nvcc: str, library: Path, scratch: Path, includes: Sequence[str], folders: Sequence[str]) -> None:
    """Compile all sources, as many at a time as there are processors, and link them to a shared library.

    Args:
        nvcc: Path of the compiler.
        library: Where the library goes.
        scratch: Where the object files go.
        includes: Folders of headers.
        folders: Where torch's libraries are.

    Raises:
        subprocess.CalledProcessError: A file does not compile; the compiler has said why.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    entries = architectures()
    objects = [scratch / f"{source.stem}.o" for source in sources()]
    commands = [
        command(nvcc, source, target, includes, entries) for source, target in zip(sources(), objects, strict=True)
    ]
    workers = int(os.environ.get("MAX_JOBS", "").strip() or os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(subprocess.run, one, check=True) for one in commands]:
            done.result()
    # libtorch alone is named: it brings libtorch_cuda where torch has it, and this file also links where it has not.
    libraries = ["-Xlinker", "--no-as-needed", "-ltorch", "-Xlinker", "-s"]
    places = [f"-L{folder}" for folder in folders]
    subprocess.run(
        [nvcc, "-shared", "-cudart=static", "-o", str(library), *map(str, objects), *places, *libraries], check=True
    )
