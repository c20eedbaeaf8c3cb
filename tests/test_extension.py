"""The compiled libraries: found, missing, broken, loaded twice; and what builds them."""

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import pytest
import torch

import lbgap
from lbgap import _extension

needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")
PACKAGE = Path(lbgap.__file__).parent
ROOT = PACKAGE.parent
LIBRARIES = ("*.so", "*.pyd", "*.dylib")


@pytest.fixture
def copy(tmp_path):
    """A copy of the package without its compiled libraries."""
    return shutil.copytree(PACKAGE, tmp_path / "lbgap", ignore=shutil.ignore_patterns(*LIBRARIES, "__pycache__"))


def run(code, folder, **environment):
    """Run Python code that imports the package in a folder; returns its exit status and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-W", "error", "-c", code.replace("{folder!r}", repr(str(folder)))]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


# Which backend serves


def test_what_resolve_backend_chooses(monkeypatch):
    cpu, meta = torch.device("cpu"), torch.device("meta")
    monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset({"cpu"}))
    assert [_extension.resolve_backend(name, cpu) for name in _extension.BACKENDS] == ["native", "native", "torch"]
    assert [_extension.resolve_backend(name, meta) for name in ("auto", "torch")] == ["torch", "torch"]
    with pytest.raises(ValueError, match=r"no ops for device 'meta' \(this installation has libraries for cpu\)"):
        _extension.resolve_backend("native", meta)
    with pytest.raises(
        ValueError, match=r"'cuda' .*libraries for cpu.* or reinstall with CUDA's toolkit and a torch with"
    ):
        _extension.resolve_backend("native", torch.device("cuda"))
    monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    assert [_extension.resolve_backend(name, cpu) for name in ("auto", "torch")] == ["torch", "torch"]
    with pytest.raises(ValueError, match=r"^backend='native' has no ops for device 'cpu' .*no compiled library.*: use"):
        _extension.resolve_backend("native", cpu)


@pytest.mark.parametrize("backend", ["gpu", "", "Native", None, 0])
def test_resolve_backend_refuses_unknown_names(backend):
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'native', 'torch', got"):
        _extension.resolve_backend(backend, torch.device("cpu"))


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("8.0 9.0+PTX", (8, 0), True),
        ("8.0 9.0+PTX", (8, 9), True),  # machine code runs on later GPUs of the same major version
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0 9.0+PTX", (7, 5), False),
        ("8.0 9.0+PTX", (12, 0), True),  # PTX is compiled for any later one
        ("9.0a", (9, 0), True),
        ("", (9, 0), False),
    ],
)
def test_which_gpus_the_compiled_code_covers(architectures, capability, expected):
    assert _extension.covers(architectures, capability) is expected


def test_a_gpu_that_no_code_covers_runs_on_the_twins(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset({"cpu", "cuda"}))
    monkeypatch.setattr(_extension, "host", types.SimpleNamespace(cuda_architectures=lambda: "8.0 9.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert _extension.resolve_backend("auto", gpu) == "torch"
    with pytest.raises(ValueError, match=r"code for GPUs 8.0 9.0, this one is \(7, 5\)\): .* TORCH_CUDA_ARCH_LIST"):
        _extension.resolve_backend("native", gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert _extension.resolve_backend("native", gpu) == "native"


# Missing, broken, twice


def test_without_libraries_everything_runs_on_the_twins(copy, tmp_path):
    code = """
import torch, lbgap
from lbgap import _extension, ops
assert _extension.__file__.startswith({folder!r}), _extension.__file__
assert _extension.host is None and not _extension.NATIVE_DEVICES
out = torch.zeros(4)
sums = ops.box_step(torch.ones(4), torch.ones(4), 1.0, torch.zeros(4), 0.5, 0.0, out)
assert out.tolist() == [0.5] * 4 and sums.tolist() == [1.0, -2.0, 4.0]
torch.manual_seed(0)
model, data = torch.nn.Linear(3, 2), (torch.randn(16, 3), torch.arange(16) % 2)
assert lbgap.fast_sharpness(model, data, epsilon=1e-2).value > 0
try:
    lbgap.fast_sharpness(model, data, epsilon=1e-2, backend="native")
except ValueError as error:
    print(error)
"""
    status, printed = run(code, tmp_path)
    assert status == 0, printed
    assert printed.splitlines() == [
        "backend='native' has no ops for device 'cpu' (this installation has no compiled library): "
        "use backend='auto', or reinstall with a C++ compiler"
    ]


@needs_native
@pytest.mark.parametrize("only", ["_cpu", "_host"])
def test_one_library_does_without_the_other(copy, tmp_path, only):
    if _extension._find(only) is None:
        pytest.skip(f"{only} was not built")
    shutil.copy(_extension._find(only), copy)
    code = "from lbgap import _extension, ops; print(bool(_extension.NATIVE_DEVICES), _extension.host is not None)"
    status, printed = run(code, tmp_path)
    assert (status, printed.split()) == (0, [str(only == "_cpu"), str(only == "_host")])


@pytest.mark.parametrize("content", [b"no library", b"\x7fELF" + 60 * b"\0"], ids=["text", "header"])
def test_a_broken_library_raises_at_the_first_use(copy, tmp_path, content):
    (copy / "_cpu.abi3.so").write_bytes(content)
    status, printed = run("import lbgap; lbgap.Objective", tmp_path)
    assert status == 1
    assert "ImportError: lbgap's compiled library _cpu.abi3.so does not load with torch" in printed
    assert "reinstall lbgap, or set LBGAP_BUILD=0 while installing" in printed.splitlines()[-1]


def test_a_broken_host_library_raises_at_the_first_use(copy, tmp_path):
    (copy / f"_host{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    status, printed = run("import lbgap; lbgap.Objective", tmp_path)
    assert status == 1
    assert "ImportError" in printed.splitlines()[-1]


@needs_native
def test_a_second_copy_in_one_process_is_refused_before_it_registers(copy, tmp_path):
    library = _extension._find("_cpu")
    shutil.copy(library, copy)
    code = f"import torch; torch.ops.load_library({str(library)!r}); import lbgap; lbgap.Objective"
    status, printed = run(code, tmp_path)
    assert status == 1
    assert f"ImportError: another copy of lbgap is loaded in this process: import only one of it and {copy}" in printed


@needs_native
def test_the_same_library_may_be_loaded_again():
    code = "import importlib; from lbgap import _extension, ops; importlib.reload(_extension); importlib.reload(ops)"
    status, printed = run(code, ROOT)
    assert (status, printed) == (0, "")


# What builds them


SETUP = ROOT / "setup.py"
in_checkout = pytest.mark.skipif(not SETUP.exists(), reason="needs the source tree")
REPORT = """
import runpy, setuptools
setuptools.setup = lambda **given: print("built:", *given)
runpy.run_path("setup.py")
"""


def set_up(**environment):
    """Run setup.py up to the call of ``setup``; returns the exit status and what was printed."""
    pytest.importorskip("setuptools")
    environment = {key: value for key, value in (os.environ | environment).items() if value is not None}
    command = [sys.executable, "-c", REPORT]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def needs_compiler():
    """Skip where setup.py would not come as far as CUDA."""
    pytest.importorskip("pybind11")
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")


@in_checkout
def test_no_compiler_means_a_pure_package_and_says_so():
    status, printed = set_up(LBGAP_BUILD=None, CXX="/nonexistent/c++ -O1")
    assert status == 0
    assert printed == "built:\nlbgap: no C++ compiler '/nonexistent/c++': building the pure-PyTorch package\n"


@in_checkout
@pytest.mark.parametrize("compiler", ["/nonexistent/c++", None])
def test_build_0_builds_nothing(compiler):
    status, printed = set_up(LBGAP_BUILD="0", CXX=compiler)
    assert status == 0
    assert printed == "built:\nlbgap: LBGAP_BUILD=0: building the pure-PyTorch package\n"


@in_checkout
def test_build_1_insists():
    status, printed = set_up(LBGAP_BUILD="1", CXX="/nonexistent/c++")
    assert status == 1
    assert printed.strip() == ("LBGAP_BUILD=1, but there is no C++ compiler '/nonexistent/c++': install one or set CXX")


@in_checkout
@pytest.mark.parametrize("choice", ["yes", "2", "01", " "])
def test_build_takes_nothing_else(choice):
    assert set_up(LBGAP_BUILD=choice) == (1, f"LBGAP_BUILD must be 0, 1 or unset, got {choice!r}\n")


@in_checkout
def test_force_cuda_insists(tmp_path):
    needs_compiler()
    status, printed = set_up(FORCE_CUDA="1", CUDA_HOME=str(tmp_path))
    assert status == 1
    assert printed.strip() == "FORCE_CUDA=1, but there is no nvcc: install CUDA's toolkit or set CUDA_HOME"


@in_checkout
@pytest.mark.parametrize(
    ("chosen", "reason"), [("0", "FORCE_CUDA=0"), (None, "no CUDA toolkit (nvcc)"), ("", "no CUDA toolkit (nvcc)")]
)
def test_without_nvcc_only_the_cpu_s_library_is_built_and_setup_says_so(tmp_path, chosen, reason):
    needs_compiler()
    status, printed = set_up(FORCE_CUDA=chosen, CUDA_HOME=str(tmp_path))
    assert status == 0
    assert f"lbgap: {reason}: building without GPU kernels" in printed.splitlines()


@in_checkout
def test_force_cuda_takes_nothing_else():
    needs_compiler()
    assert set_up(FORCE_CUDA="on") == (1, "FORCE_CUDA must be 0, 1 or unset, got 'on'\n")


@pytest.fixture
def toolkit(tmp_path):
    """A folder that looks like CUDA's toolkit."""
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    return str(tmp_path)


@in_checkout
@pytest.mark.parametrize("wanted", ["Ampere", "8", "9.0+ptx", "8.0;sm_90"])
def test_architectures_are_numbers(toolkit, wanted):
    needs_compiler()
    status, printed = set_up(CUDA_HOME=toolkit, TORCH_CUDA_ARCH_LIST=wanted)
    bad = wanted.split(";")[-1]
    assert status == 1
    assert printed.splitlines()[-1] == (
        f"TORCH_CUDA_ARCH_LIST must be compute capabilities such as '8.0;9.0+PTX', got {bad!r}: give numbers"
    )


@in_checkout
def test_every_architecture_asked_for_is_compiled_for():
    spec = importlib.util.spec_from_file_location("nvcc", ROOT / "tools" / "nvcc.py")
    nvcc = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nvcc)
    assert nvcc.gencode(["8.6", "9.0a", "10.0+PTX"]) == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]
    assert {path.stem for path in nvcc.sources()} >= {"box_step", "history_cauchy", "subspace_gram"}


@needs_native
def test_every_op_of_the_cpu_has_a_kernel():
    ops = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("lbgap::")}
    files = [path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu")] if SETUP.exists() else []
    assert len(ops) >= 12
    if files:
        assert all(any(f'm.impl("{op}"' in text for text in files) for op in ops)


@in_checkout
@pytest.mark.parametrize("compiler", ["", None])
def test_an_empty_choice_of_compiler_means_the_default(compiler):
    needs_compiler()
    status, printed = set_up(LBGAP_BUILD="", CXX=compiler, FORCE_CUDA="0")
    expected = "built: ext_modules cmdclass\nlbgap: FORCE_CUDA=0: building without GPU kernels"
    assert (status, printed.strip()) == (0, expected)


@in_checkout
def test_a_source_archive_made_without_a_compiler_builds_with_one(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(*LIBRARIES, "__pycache__")
    for folder in ("csrc", "lbgap", "tests", "tools"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, source)
    environment = {**os.environ, "LBGAP_BUILD": "0"}
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=source, env=environment, check=True)
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        packed = {name.partition("/")[2] for name in opened.getnames()}
    needed = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*") if path.is_file()}
    assert {"csrc/library.cpp", "csrc/box.h", "csrc/cpu/loops.h"} <= needed <= packed
    assert {"setup.py", "tools/nvcc.py", "tools/compile_kernels.py"} <= packed
    assert not any(name.endswith((".so", ".pyc")) for name in packed)
