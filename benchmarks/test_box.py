"""The box ops, in place, against what a researcher writes in PyTorch.

The opponents sum in the dtype of the points, as such scripts do; lbgap sums in float64.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lbgap import ops, reference

EPSILON = 1e-3  # half-width epsilon (|x| + 1)
ALPHA = 1e-3
NOT_SLOWER = (("faster", "buffers", 1.0), ("faster", "compile", 1.0))
TARGETS = {
    torch.float32: (("faster", "torch", 25.0), *NOT_SLOWER, ("limit", "copy", 1.0)),
    torch.float64: NOT_SLOWER,
}
ON_A_GPU = (*NOT_SLOWER, ("limit", "copy", 0.9))
BACKENDS = ("torch", "buffers", "compile", "reference", "native")
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # of sums of differences that lost 3 of 7 (of 16) digits

# What torch.compile warns of: its own imports, and on a GPU products in float32, which is what is compared here.
compiles = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled:UserWarning",
)
pytestmark = compiles


def eager_step(y: Tensor, direction: Tensor, x: Tensor) -> Tensor:
    half_width = EPSILON * (x.abs() + 1)
    free = y + ALPHA * direction
    new = torch.clamp(free, x - half_width, x + half_width)
    moved = new - y
    sums = torch.stack([(moved * moved).sum(), (direction * moved).sum(), (new != free).sum()])
    y.copy_(new)
    return sums


def eager_vertex(y: Tensor, gradient: Tensor, x: Tensor) -> Tensor:
    half_width = EPSILON * (x.abs() + 1)
    new = torch.where(gradient == 0, y, x + half_width * gradient.sign())
    sums = torch.stack([(gradient * (new - y)).sum(), (new != y).sum()])
    y.copy_(new)
    return sums


def buffered_step(y: Tensor, direction: Tensor, x: Tensor) -> Callable[[], Tensor]:
    half_width, free, new = (torch.empty_like(y) for _ in range(3))

    def call() -> Tensor:
        torch.abs(x, out=half_width).add_(1).mul_(EPSILON)
        torch.add(y, direction, alpha=ALPHA, out=free)
        torch.sub(x, half_width, out=new)
        torch.clamp(free, new, half_width.add_(x), out=new)
        clipped = (new != free).sum()
        moved = torch.sub(new, y, out=free)
        y.copy_(new)
        return torch.stack([moved.dot(moved), direction.dot(moved), clipped])

    return call


def buffered_vertex(y: Tensor, gradient: Tensor, x: Tensor) -> Callable[[], Tensor]:
    half_width, new = (torch.empty_like(y) for _ in range(2))

    def call() -> Tensor:
        torch.abs(x, out=half_width).add_(1).mul_(EPSILON)
        torch.sign(gradient, out=new).mul_(half_width).add_(x)
        torch.where(gradient == 0, y, new, out=new)
        moved = torch.sub(new, y, out=half_width)
        y.copy_(new)
        return torch.stack([gradient.dot(moved), moved.count_nonzero()])

    return call


EAGER = {"step": eager_step, "vertex": eager_vertex}
BUFFERED = {"step": buffered_step, "vertex": buffered_vertex}


def prepare(op: str, backend: str, y: Tensor, other: Tensor, x: Tensor) -> Callable[[], Tensor]:
    """The call that is timed: it moves ``y`` in place and returns the sums."""
    if backend == "buffers":
        return BUFFERED[op](y, other, x)
    if backend in ("torch", "compile"):
        function: Any = EAGER[op]
        if backend == "compile":
            function = torch.compile(function, dynamic=False)
        return lambda: function(y, other, x)
    module: Any = ops if backend == "native" else reference
    if op == "step":
        return lambda: module.box_step(y, other, ALPHA, x, EPSILON, EPSILON, y)
    return lambda: module.box_vertex(y, other, x, EPSILON, EPSILON, y)


def skip_without_compiler(device: torch.device) -> None:
    """``torch.compile`` needs a C++ compiler, on a GPU Triton besides."""
    if not shutil.which(os.environ.get("CXX", "g++")) and not shutil.which("clang++"):
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        pytest.skip("torch.compile needs Triton for a GPU, and it is not installed")


def check(op: str, call: Callable[[], Tensor], y: Tensor, other: Tensor, x: Tensor) -> None:
    """One call from fresh points, against the twin in float64."""
    wide = y.double().clone()
    if op == "step":
        expected = reference.box_step(wide, other.double(), ALPHA, x.double(), EPSILON, EPSILON, wide)
    else:
        expected = reference.box_vertex(wide, other.double(), x.double(), EPSILON, EPSILON, wide)
    sums = call()
    eps = torch.finfo(y.dtype).eps
    torch.testing.assert_close(y.double(), wide, rtol=4 * eps, atol=4 * eps)
    torch.testing.assert_close(sums.double(), expected, rtol=TOLERANCE[y.dtype], atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("op", ["step", "vertex"])
def test_box(
    op: str,
    dtype: torch.dtype,
    backend: str,
    quick: bool,
    device: torch.device,
    need: Callable[[str], None],
    measure: Callable[..., None],
) -> None:
    if backend == "native":
        need("native")
    if backend == "compile":
        skip_without_compiler(device)
    n = 10**6 if quick else 10**8 if device.type == "cuda" else 10**7
    generator = torch.Generator(device).manual_seed(0)
    x, other, share = (torch.randn(n, generator=generator, dtype=dtype, device=device) for _ in range(3))
    y = torch.clamp(share, -1, 1).mul_(x.abs().add_(1).mul_(0.5 * EPSILON)).add_(x)
    call = prepare(op, backend, y, other, x)
    check(op, call, y, other, x)
    measure(
        call,
        group=f"box {op}, {str(dtype).removeprefix('torch.')}",
        backend=backend,
        rounds=5 if quick else 20,
        # Three arrays are read and one written, as in one pass.
        work={"copy": 4.0 * n * dtype.itemsize},
        targets=() if backend != "native" else ON_A_GPU if device.type == "cuda" else TARGETS[dtype],
        n=n,
    )
