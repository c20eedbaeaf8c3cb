"""The table of what each CUDA kernel takes: how nvcc's output is read, and what is wrong with it."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# As nvcc 13.0 prints it with -Xptxas -v, for two architectures.
OUTPUT = """\
ptxas info    : 28 bytes gmem, 224 bytes cmem[4]
ptxas info    : Compiling entry function '_ZN5lbgap13upload_kernelENS_6UploadEPdl' for 'sm_80'
ptxas info    : Function properties for _ZN5lbgap13upload_kernelENS_6UploadEPdl
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers, 3568 bytes cmem[0]
ptxas info    : Compile time = 2.047 ms
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function '_ZN5lbgap11fold_kernelINS_4StepIfEEEEvPKdlllPd' for 'sm_90a'
ptxas info    : Function properties for _ZN5lbgap11fold_kernelINS_4StepIfEEEEvPKdlllPd
    16 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers, 16 bytes cumulative stack size, 20480 bytes smem, 472 bytes cmem[0]
ptxas info    : Compile time = 165.449 ms
"""


@pytest.fixture
def compile_module(monkeypatch):
    """The script, which finds its neighbour nvcc.py as it does where it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    yield importlib.import_module("compile_kernels")
    for name in ("compile_kernels", "nvcc"):
        sys.modules.pop(name, None)


@pytest.fixture
def found(compile_module):
    return compile_module.parse("some.cu", OUTPUT)


def test_output_is_read(compile_module, found):
    kernels, others = found
    assert others == []
    upload, fold = "_ZN5lbgap13upload_kernelENS_6UploadEPdl", "_ZN5lbgap11fold_kernelINS_4StepIfEEEEvPKdlllPd"
    assert kernels == [
        compile_module.Kernel("some.cu", upload, "80", registers=10, shared=0, stack=0, spills=0),
        compile_module.Kernel("some.cu", fold, "90a", registers=48, shared=20480, stack=16, spills=44),
    ]


def test_the_table_has_a_row_for_each_and_marks_spills(compile_module, found, monkeypatch):
    monkeypatch.setattr(compile_module, "demangle", lambda names: [f"kernel_{i}" for i, _ in enumerate(names)])
    assert compile_module.table(found[0]).splitlines() == [
        "source   kernel    sm  registers  shared  stack  spills",
        "some.cu  kernel_0  80         10       0      0       0",
        "some.cu  kernel_1  90a         48   20480     16      44  <--",
    ]


def test_spills_are_problems(compile_module, found):
    kernels, _ = found
    assert compile_module.problems(kernels[:1]) == []
    assert compile_module.problems(kernels * 2)[0].startswith("some.cu: registers of 2 kernels spill to memory")


@pytest.mark.parametrize(
    "line",
    [
        'csrc/cuda/map.cuh(60): warning #177-D: variable "x" was declared but never referenced',
        'csrc/cuda/map.cuh(60): error: identifier "y" is undefined',
        "ptxas warning : Stack size for entry function 'f' cannot be statically determined",
        "nvcc warning : Support for offline compilation for architectures prior to ...",
    ],
)
def test_whatever_else_is_printed_is_kept(compile_module, line):
    kernels, others = compile_module.parse("some.cu", f"{OUTPUT}{line}\n")
    assert len(kernels) == 2
    assert others == [line]


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("lbgap::upload_kernel(lbgap::Upload, double*, long)", "upload_kernel"),
        (
            "void lbgap::map_kernel<4, float, 2, lbgap::Project<float> >(lbgap::Project<float>, double*)",
            "map_kernel<4, float, 2, Project<float>>",
        ),
        ("void lbgap::(anonymous namespace)::gram_kernel<double>(int, double*)", "gram_kernel<double>"),
        ("void lbgap::apply_kernel<lbgap::Normal, float, (int)4>(long)", "apply_kernel<Normal, float, 4>"),
    ],
)
def test_names_are_short(compile_module, long, short):
    assert compile_module.short(long) == short


def test_without_nvcc_it_says_so(compile_module, monkeypatch, capsys):
    monkeypatch.setattr(compile_module.nvcc, "find", lambda: None)
    assert compile_module.main([]) == 2
    assert capsys.readouterr().err == "there is no nvcc: install CUDA's toolkit or set CUDA_HOME\n"


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, OUTPUT.replace("20 bytes", "0 bytes").replace("24 bytes", "0 bytes"), None),
        (0, OUTPUT, "registers of 1 kernels spill"),
        (0, OUTPUT + "a warning\n", "some.cu: compiles with warnings"),
        (1, "error: no\n", "some.cu: does not compile"),
    ],
)
def test_exit_status_and_reason(compile_module, monkeypatch, capsys, status, output, expected):
    monkeypatch.setattr(compile_module.nvcc, "find", lambda: "nvcc")
    monkeypatch.setattr(compile_module, "compile_one", lambda *_: (status, output))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert compile_module.main(["some.cu"]) == (0 if expected is None else 1)
    error = capsys.readouterr().err
    assert error == "" if expected is None else expected in error
