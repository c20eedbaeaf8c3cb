"""The pointwise parts of Hessian-vector products for k tangents, against what a researcher writes in PyTorch.

The opponents compute in the dtype of the tangents, as such code does; lbgap rounds bfloat16 once and sums in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.test_box import compiles, skip_without_compiler
from lbgap import ops, reference

BACKENDS = ("torch", "compile", "native")
# Passes over the tangents that one op replaces; "scale" is one pass either way, and the pooling ops read indices.
EXPECTED = {"scale": 0.9, "curve": 1.5, "affine": 2.0, "softmax": 2.0, "gather": 1.5, "scatter": 1.0}
WINDOW = ((3, 3), (2, 2), (1, 1), (1, 1))
ROUNDINGS = {torch.float32: 1e-5, torch.bfloat16: 4e-2}

pytestmark = compiles


def eager_scale(t: Tensor, first: Tensor) -> Tensor:
    return t * first.unsqueeze(1)


def eager_curve(r: Tensor, first: Tensor, curve: Tensor, t: Tensor) -> Tensor:
    return (r * first.unsqueeze(1)).addcmul_(curve.unsqueeze(1), t)


def eager_affine(t: Tensor, scale: Tensor, slopes: Tensor, values: Tensor, shifts: Tensor) -> Tensor:
    rest = [1] * (t.dim() - 3)
    own = shifts.view(*shifts.shape, *rest).addcmul(slopes.view(*slopes.shape, *rest), values.unsqueeze(1))
    return (t * scale.view(-1, *rest)).add_(own)


def eager_softmax(t: Tensor, p: Tensor) -> Tensor:
    weighted = t * p.unsqueeze(1)
    return weighted.sub_(p.unsqueeze(1) * weighted.sum(2, keepdim=True))


def eager_gather(t: Tensor, places: Tensor) -> Tensor:
    at = places.flatten(2).unsqueeze(1).expand(-1, t.shape[1], -1, -1)
    return t.flatten(3).gather(3, at).unflatten(3, places.shape[2:])


def eager_scatter(r: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
    at = places.flatten(2).unsqueeze(1).expand(-1, r.shape[1], -1, -1)
    return r.new_zeros(*shape[:3], shape[3] * shape[4]).scatter_add_(3, at, r.flatten(3)).view(shape)


EAGER: dict[str, Callable[..., Tensor]] = {
    "scale": eager_scale,
    "curve": eager_curve,
    "affine": eager_affine,
    "softmax": eager_softmax,
    "gather": eager_gather,
    "scatter": eager_scatter,
}


def problem(op: str, dtype: torch.dtype, batch: int, device: torch.device) -> tuple[list[Tensor], tuple[int, ...]]:
    """What all backends read, and the shape of what they write."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    if op in ("gather", "scatter"):
        shape = (max(batch // 32, 1), 8, 32, 32, 32)
        pooled, places = F.max_pool2d(normal(shape[0], *shape[2:]), *WINDOW, return_indices=True)
        small = (*shape[:2], *pooled.shape[1:])
        wide, out = (shape, small) if op == "gather" else (small, shape)
        return [normal(*wide).to(dtype), places], out
    shape = (8 * batch, 16, 10) if op == "softmax" else (batch, 8, 512)
    t, values, shared = normal(*shape).to(dtype), normal(shape[0], shape[2]), normal(shape[0], shape[2])
    if op == "scale":
        return [t, values], shape
    if op == "curve":
        return [t, values, shared, normal(*shape).to(dtype)], shape
    if op == "affine":
        return [t, values[0], normal(*shape[1:]), shared, normal(*shape[1:])], shape
    return [t, values.softmax(1)], shape


def prepare(op: str, backend: str, args: list[Tensor], out: Tensor) -> Callable[[], Tensor]:
    """The call that is timed."""
    if backend in ("torch", "compile"):
        function: Any = EAGER[op]
        if backend == "compile":
            function = torch.compile(function, dynamic=False)
        low = [arg.to(args[0].dtype) if arg.is_floating_point() else arg for arg in args]
        more = (tuple(out.shape),) if op == "scatter" else ()
        return lambda: function(*low, *more)
    return lambda: run(ops, op, args, out)


def run(where: Any, op: str, args: list[Tensor], out: Tensor) -> Tensor:
    more = {"softmax": (None,), "scatter": WINDOW}.get(op, ())
    getattr(where, f"tangents_{op}")(*args, *more, out)
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("op", EAGER)
def test_tangents(
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
    batch = 128 if quick else 2_000 if device.type == "cpu" else 40_000
    args, shape = problem(op, dtype, batch, device)
    out = torch.empty(shape, dtype=dtype, device=device)
    call = prepare(op, backend, args, out)
    wide = [arg.double() if arg.is_floating_point() else arg for arg in args]
    expected = run(reference, op, wide, out.double())
    tolerance = ROUNDINGS[dtype]
    torch.testing.assert_close(call().double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    # Each array is read or written once, as in one pass.
    moved = sum(arg.numel() * arg.itemsize for arg in (*args, out))
    measure(
        call,
        group=f"tangents {op}, {str(dtype).removeprefix('torch.')}",
        backend=backend,
        rounds=5 if quick else 20,
        work={"copy": float(moved)},
        targets=(("faster", "torch", EXPECTED[op]),) if backend == "native" else (),
        tangents=list(shape),
    )
