"""A random manifold whose matrix is drawn inside the kernel, against products with a stored dense matrix.

The opponents multiply in float32, as scripts do; lbgap sums in float64. A stored ``(n, p)`` matrix is what a script
has; stored column by column torch multiplies it faster, and that is what the targets are against.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lbgap import ops, reference

SEED, STREAM = 0, 0
SIZES = {"small": (100_000, 100), "F1": (1_462_794, 100), "large": (10_000_000, 100)}
ON_A_GPU = (("faster", "columns", 1.0),)
TARGETS = {"normal": (("faster", "columns", 1 / 8),), "rademacher": (("faster", "columns", 1 / 2),)}


def prepare(
    op: str, backend: str, distribution: str, x: Tensor, z: Tensor, dense: Tensor | None
) -> Callable[[], Tensor]:
    """The call that is timed: ``x + A z``, or ``A'x``."""
    out, single = torch.empty_like(x), z.float()
    if dense is not None:
        if op == "project":
            return lambda: torch.mv(dense.T, x)
        return lambda: torch.addmv(x, dense, single, out=out)
    if op == "project":
        return lambda: ops.subspace_project(x, len(z), SEED, STREAM, distribution)

    def apply() -> Tensor:
        ops.subspace_apply(x, z, SEED, STREAM, distribution, out)
        return out

    return apply


def check(op: str, found: Tensor, distribution: str, x: Tensor, z: Tensor) -> None:
    """Against the twin in float64: the first columns of a projection, the last rows of a point."""
    if op == "project":
        expected = reference.subspace_project(x, 4, SEED, STREAM, distribution)
        # n terms of size 1 in float32 are off by a random walk of roundings at the worst.
        torch.testing.assert_close(found[:4].double(), expected, rtol=1e-4, atol=1e-4 * len(x) ** 0.5)
        return
    rows = 10_000
    entries = reference.subspace_entries(
        rows, len(z), SEED, STREAM, distribution, x.device, first=len(x) - rows
    ).double()
    expected = x[-rows:].double() + entries @ z
    torch.testing.assert_close(found[-rows:].double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "columns", "native"])
@pytest.mark.parametrize("size", ["F1", "large"])
@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize("op", ["apply", "project"])
def test_subspace(
    op: str,
    distribution: str,
    size: str,
    backend: str,
    quick: bool,
    device: torch.device,
    need: Callable[[str], None],
    measure: Callable[..., None],
) -> None:
    if backend == "native":
        need("native")
    if quick and size == "large":
        pytest.skip("the large size is not for --quick")
    n, p = SIZES["small" if quick else size]
    goal = ON_A_GPU if device.type == "cuda" else TARGETS[distribution]
    if backend != "native" and size == "large" and device.type == "cpu":
        pytest.skip("a dense matrix of 4 GB is not stored")
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(n, generator=generator, device=device)
    z = torch.randn(p, generator=generator, device=device, dtype=torch.float64)
    dense = None
    if backend != "native":
        dense = torch.empty((p, n), device=device).T if backend == "columns" else torch.empty((n, p), device=device)
        for begin in range(0, n, 100_000):
            rows = min(100_000, n - begin)
            part = torch.empty(p, rows, device=device)
            columns = torch.eye(p, dtype=torch.float64, device=device)
            ops.subspace_apply(part.new_zeros(rows), columns, SEED, STREAM, distribution, part, first=begin)
            dense[begin : begin + rows] = part.T
    call = prepare(op, backend, distribution, x, z, dense)
    check(op, call(), distribution, x, z)
    measure(
        call,
        group=f"subspace {op}, {distribution}, n = {n:,}, p = {p}",
        backend=backend,
        rounds=3 if quick else 5,
        # Two vectors; and what the opponents read besides.
        work={"copy": 4.0 * (2 * n if dense is None else (p + 2) * n)},
        targets=goal if backend == "native" and (size != "large" or device.type == "cuda") else (),
        n=n,
        p=p,
    )
