"""The ops on many points against what a researcher writes in PyTorch.

What is to be expected on two cores: cross-entropy in PyTorch reads the logits for the log-softmax, writes it and reads
it again, and reads the logits once more for the argmax, with one exponential at a time for few classes: five times.
A blend is a thin matrix product and a write of its result, all of it bandwidth: no more than what float64 sums cost.
A chain has the same products as three batched ones, without their activations in memory: twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.test_box import compiles, skip_without_compiler
from lbgap import ops, reference

WIDTHS = [64, 64, 10]
NOT_SLOWER = (("faster", "torch", 1.0), ("faster", "compile", 1.0))

pytestmark = compiles


def eager_xent(logits: Tensor, targets: Tensor) -> Tensor:
    each = F.cross_entropy(logits.movedim(2, 1), targets.expand(len(logits), -1), reduction="none")
    return torch.stack([each.sum(1), (logits.argmax(2) == targets).sum(1)], 1)


def eager_blend(coefficients: Tensor, ends: Tensor, out: Tensor) -> Tensor:
    return torch.mm(coefficients.to(ends.dtype), ends, out=out)


def eager_chain(coefficients: Tensor, first: Tensor, ends: Tensor, widths: list[int], targets: Tensor) -> Tensor:
    rounded = coefficients.to(ends.dtype)
    x = (rounded @ first.flatten(1)).view(-1, *first.shape[1:])
    weights, before, begin = rounded @ ends, widths[0], 0
    for width in widths[1:]:
        weight = weights[:, begin : begin + width * before].unflatten(1, (width, before))
        begin += width * (before + 1)
        x = torch.baddbmm(weights[:, begin - width : begin, None], weight, x.relu())
        before = width
    return eager_xent(x.mT, targets)


EAGER: dict[str, Any] = {"blend": eager_blend, "chain": eager_chain, "xent": eager_xent}


def draw(op: str, quick: bool, device: torch.device) -> tuple[tuple[Any, ...], dict[str, float]]:
    """Arguments of an op, and its work in units of the machine's limits."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)

    samples = 1_797
    targets = torch.randint(10, (samples,), generator=generator, device=device)
    k = (50 if quick else 500) * (10 if device.type == "cuda" else 1)
    if op == "xent":
        return (normal(k, samples, 10), targets), {"copy": 4.0 * k * samples * 10}
    if op == "blend":
        m = 100_000 if quick else 1_462_794
        ends, out = normal(2, m), torch.zeros(25, m, device=device)
        return (normal(25, 2, dtype=torch.float64), ends, out), {"copy": 4.0 * (25 + 2) * m}
    sizes = list(itertools.pairwise(WIDTHS))
    ends = normal(3, sum(after * (before + 1) for before, after in sizes)) / 8
    operations = 2.0 * k * samples * (3 * WIDTHS[0] + sum(after * before for before, after in sizes))
    args = normal(k, 3, dtype=torch.float64), normal(3, WIDTHS[0], samples), ends, WIDTHS, targets
    return args, {"float32": operations}


@pytest.mark.parametrize("backend", ["torch", "compile", "native"])
@pytest.mark.parametrize("op", ["blend", "chain", "xent"])
def test_points(
    op: str,
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
    args, work = draw(op, quick, device)
    function = getattr(ops, f"{op}_points") if backend == "native" else EAGER[op]
    if backend == "compile":
        function = torch.compile(function, dynamic=False)

    def call() -> Tensor:
        result: Tensor | None = function(*args)
        return args[-1] if result is None else result

    wide = [arg.double() if isinstance(arg, Tensor) and arg.dtype == torch.float32 else arg for arg in args]
    expected = getattr(reference, f"{op}_points")(*wide)
    torch.testing.assert_close(call().double(), wide[-1] if expected is None else expected, rtol=1e-4, atol=1e-4)
    measure(
        call,
        group={
            "blend": f"blend 25 points of 2 ends, n = {args[1].shape[-1]:,}",
            "chain": f"chain 64-64-10 from its first products, {len(args[0])} points",
            "xent": f"cross-entropy and accuracy, {len(args[0])} sets of logits",
        }[op],
        backend=backend,
        rounds=5 if quick else 20,
        work=work,
        targets=NOT_SLOWER if backend == "native" else (),
        samples=1_797,
    )
