"""Builds the compiled libraries; everything else about the package stands in pyproject.toml.

LBGAP_BUILD=0 builds none of them, LBGAP_BUILD=1 insists on them; without it they are built where a C++
compiler is found. Either way the package works: without libraries it runs on its plain-PyTorch twins.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

FLAGS = ["-O3", "-g0", "-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wall"]
CHOICES = {"0": False, "1": True}


def wanted() -> bool:
    """Decide whether to compile, and say so when the answer is no."""
    choice = os.environ.get("LBGAP_BUILD", "")
    if choice not in ("", *CHOICES):
        raise SystemExit(f"LBGAP_BUILD must be 0, 1 or unset, got {choice!r}")
    if not os.environ.get("CXX", "").strip():
        os.environ.pop("CXX", None)  # torch would take an empty one for the compiler's name
    compiler = os.environ.get("CXX", "c++").split()[0]
    found = shutil.which(compiler) is not None
    if CHOICES.get(choice, found):
        if not found:
            raise SystemExit(f"LBGAP_BUILD=1, but there is no C++ compiler {compiler!r}: install one or set CXX")
        return True
    reason = "LBGAP_BUILD=0" if choice == "0" else f"no C++ compiler {compiler!r}"
    print(f"lbgap: {reason}: building the pure-PyTorch package", file=sys.stderr)
    return False


def extensions() -> dict[str, object]:
    """Describe the libraries: the CPU ops on torch's stable interface, and host facts without torch."""
    import pybind11
    from setuptools import Extension
    from torch.utils.cpp_extension import BuildExtension, CppExtension

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
    host = Extension(
        "lbgap._host",
        ["csrc/host.cpp"],
        include_dirs=[pybind11.get_include()],
        define_macros=[("LBGAP_FLAGS", '"' + " ".join(FLAGS) + '"')],
        extra_compile_args=["-O2", "-g0", "-std=c++20", "-fvisibility=hidden", "-Wall"],
        language="c++",
    )
    return {"ext_modules": [cpu, host], "cmdclass": {"build_ext": BuildExtension}}


setup(**(extensions() if wanted() else {}))
