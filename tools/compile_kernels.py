"""Compiles every CUDA source and prints what each kernel takes: registers, memory, and spills, which it forbids.

No GPU is needed: nvcc compiles against whatever torch is installed. Exit status 0 if all is well, 1 where a source does
not compile, warns, or spills registers, 2 where there is no nvcc.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nvcc

ENTRY = re.compile(r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<architecture>\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
# What -Xptxas -v says of a good compilation, beside the lines above.
EXPECTED = re.compile(r"^(ptxas info\s*: .*|\s*\d+ bytes stack frame, .*|)$")


@dataclass
class Kernel:
    """What one kernel takes on one architecture, in bytes but for the registers."""

    source: str
    name: str
    architecture: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spills: int = 0


def parse(source: str, output: str) -> tuple[list[Kernel], list[str]]:
    """Read what nvcc prints with ``-Xptxas -v``.

    Args:
        source: Name of the source file.
        output: Of the compiler.

    Returns:
        The kernels, their names as the compiler mangles them, and the lines that are warnings or anything else.
    """
    kernels: list[Kernel] = []
    others: list[str] = []
    for line in output.splitlines():
        if entry := ENTRY.search(line):
            kernels.append(Kernel(source, entry["name"], entry["architecture"]))
        elif kernels and (stack := STACK.search(line)):
            kernels[-1].stack = int(stack[1])
            kernels[-1].spills = int(stack[2]) + int(stack[3])
        elif kernels and (used := USED.search(line)):
            kernels[-1].registers = int(used[1])
            shared = SHARED.search(line)
            kernels[-1].shared = int(shared[1]) if shared else 0
        elif not EXPECTED.match(line):
            others.append(line)
    return kernels, others


def short(name: str) -> str:
    """A demangled name without namespaces, return type and arguments: ``map_kernel<4, float, 2, Project<float>>``."""
    name = name.replace("(anonymous namespace)::", "")
    depth, end = 0, len(name)
    for place, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            end = place
            break
    plain = re.sub(r"\w+::|\((?:int|unsigned int|long|bool)\)", "", name[:end].removeprefix("void "))
    return plain.replace("> >", ">>")


def demangle(names: Sequence[str]) -> list[str]:
    """Short names in place of the mangled ones; these where there is no c++filt."""
    try:
        done = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return list(names)
    return [short(name) for name in done.stdout.splitlines()]


def table(kernels: Sequence[Kernel]) -> str:
    """The kernels in rows, those that spill marked."""
    names = demangle([kernel.name for kernel in kernels])
    wide = max([len("kernel"), *map(len, names)])
    source = max([len("source"), *(len(kernel.source) for kernel in kernels)])
    rows = [f"{'source':{source}}  {'kernel':{wide}}  sm  registers  shared  stack  spills"]
    for name, k in zip(names, kernels, strict=True):
        numbers = f"{k.architecture:>2}  {k.registers:9}  {k.shared:6}  {k.stack:5}  {k.spills:6}"
        rows.append(f"{k.source:{source}}  {name:{wide}}  {numbers}{'  <--' if k.spills else ''}")
    return "\n".join(rows)


def problems(kernels: Iterable[Kernel]) -> list[str]:
    """A sentence for each source whose kernels spill."""
    spilling: dict[str, int] = {}
    for kernel in kernels:
        if kernel.spills:
            spilling[kernel.source] = spilling.get(kernel.source, 0) + 1
    advice = "let each thread keep less at a time, or have fewer threads in a block"
    return [f"{source}: registers of {count} kernels spill to memory: {advice}" for source, count in spilling.items()]


def compile_one(compiler: str, source: Path, includes: Sequence[str], entries: Sequence[str]) -> tuple[int, str]:
    """Compile one source; returns the exit status and what was printed."""
    with tempfile.TemporaryDirectory() as folder:
        command = nvcc.command(compiler, source, Path(folder) / "object.o", includes, entries)
        done = subprocess.run([*command, "-Xptxas", "-v"], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile what is asked for, print the table and what is wrong; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path, help="files to compile; all of csrc/cuda/ by default")
    parser.add_argument("--arch", help=f"compute capabilities in place of TORCH_CUDA_ARCH_LIST, {nvcc.ARCHITECTURES!r}")
    parser.add_argument("--jobs", type=int, default=2, help="compilations at a time (default: 2)")
    options = parser.parse_args(arguments)
    if options.arch:
        os.environ["TORCH_CUDA_ARCH_LIST"] = options.arch
    entries = nvcc.architectures()
    compiler = nvcc.find()
    if compiler is None:
        print("there is no nvcc: install CUDA's toolkit or set CUDA_HOME", file=sys.stderr)
        return 2
    from torch.utils.cpp_extension import include_paths

    sources, includes = options.sources or nvcc.sources(), include_paths()
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda source: compile_one(compiler, source, includes, entries), sources))
    kernels, wrong = [], []
    for source, (status, output) in zip(sources, results, strict=True):
        found, others = parse(source.name, output)
        kernels += found
        if status != 0 or others:
            print("\n".join(others), file=sys.stderr)
            wrong.append(f"{source.name}: {'does not compile' if status != 0 else 'compiles with warnings'}")
    print(table(kernels))
    wrong += problems(kernels)
    for reason in wrong:
        print(reason, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
