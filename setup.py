"""Builds the compiled libraries; everything else about the package stands in pyproject.toml.

LBGAP_BUILD=0 builds none of them, LBGAP_BUILD=1 insists on them; without it they are built where a C++
compiler is found. The CUDA library is built beside them where CUDA's compiler is found: FORCE_CUDA=1 insists on
it, FORCE_CUDA=0 leaves it out, TORCH_CUDA_ARCH_LIST says for which GPUs. Either way the package works: without
libraries it runs on its plain-PyTorch twins.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "tools"))
import nvcc

FLAGS = ["-O3", "-g0", "-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wall"]


def choice(variable: str) -> bool | None:
    """What an environment variable decides, if it does."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{variable} must be 0, 1 or unset, got {value!r}")
    return None if value == "" else value == "1"


def wanted() -> bool:
    """Decide whether to compile, and say so when the answer is no."""
    chosen = choice("LBGAP_BUILD")
    if not os.environ.get("CXX", "").strip():
        os.environ.pop("CXX", None)  # torch would take an empty one for the compiler's name
    compiler = os.environ.get("CXX", "c++").split()[0]
    found = shutil.which(compiler) is not None
    if found if chosen is None else chosen:
        if not found:
            raise SystemExit(f"LBGAP_BUILD=1, but there is no C++ compiler {compiler!r}: install one or set CXX")
        return True
    reason = "LBGAP_BUILD=0" if chosen is False else f"no C++ compiler {compiler!r}"
    print(f"lbgap: {reason}: building the pure-PyTorch package", file=sys.stderr)
    return False


def cuda_compiler() -> str | None:
    """Find CUDA's compiler unless it is not wanted, and say so when there is none."""
    chosen = choice("FORCE_CUDA")
    found = None if chosen is False else nvcc.find()
    if found is None:
        if chosen:
            raise SystemExit("FORCE_CUDA=1, but there is no nvcc: install CUDA's toolkit or set CUDA_HOME")
        reason = "FORCE_CUDA=0" if chosen is False else "no CUDA toolkit (nvcc)"
        print(f"lbgap: {reason}: building without GPU kernels", file=sys.stderr)
    return found


def pybind11_headers() -> list[str]:
    """Where they are, if pybind11 is there: a machine that has only what came with its torch may lack it."""
    try:
        import pybind11
    except ImportError:
        return []
    return [pybind11.get_include()]


def extensions(cuda: str | None) -> dict[str, Any]:
    """Describe the libraries: CPU and CUDA ops on torch's stable interface, and host facts without torch."""
    from setuptools import Extension
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths, library_paths

    class Build(BuildExtension):  # type: ignore[misc]
        """Leaves the CUDA library to nvcc, whatever torch is installed: torch's own way asks for one with CUDA."""

        def build_extension(self, ext: Extension) -> None:
            if ext.name != "lbgap._cuda":
                super().build_extension(ext)
                return
            library = Path(self.get_ext_fullpath(ext.name))
            inputs = [*nvcc.sources(), *map(Path, ext.depends), Path(nvcc.__file__)]
            newest = max(path.stat().st_mtime for path in inputs)
            if self.force or not library.exists() or library.stat().st_mtime < newest:
                nvcc.build(cuda, library, Path(self.build_temp) / "cuda", include_paths(), library_paths())

    headers = [str(path) for path in sorted(Path("csrc").rglob("*.h"))]
    cpu = CppExtension(
        "lbgap._cpu",
        ["csrc/library.cpp", *(str(path) for path in sorted(Path("csrc/cpu").glob("*.cpp")))],
        depends=headers,
        define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000")],
        extra_compile_args=FLAGS,
        extra_link_args=["-s"] if sys.platform == "linux" else [],
        py_limited_api=True,
    )
    architectures = " ".join(nvcc.architectures()) if cuda else ""
    host = Extension(
        "lbgap._host",
        ["csrc/host.cpp"],
        include_dirs=pybind11_headers(),
        optional=True,  # facts for `lbgap info`, which need Python's headers as well
        define_macros=[("LBGAP_FLAGS", '"' + " ".join(FLAGS) + '"'), ("LBGAP_CUDA", f'"{architectures}"')],
        extra_compile_args=["-O2", "-g0", "-std=c++20", "-fvisibility=hidden", "-Wall"],
        language="c++",
    )
    kernels = [str(path) for path in sorted(Path("csrc/cuda").glob("*.cuh"))]
    gpu = Extension("lbgap._cuda", [], depends=[*headers, *kernels], py_limited_api=True)
    return {"ext_modules": [cpu, host, *([gpu] if cuda else [])], "cmdclass": {"build_ext": Build}}


setup(**(extensions(cuda_compiler()) if wanted() else {}))
