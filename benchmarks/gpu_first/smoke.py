"""Smoke: every op once against its twin or the CPU's, and the measures against the CPU.

``python -m benchmarks.gpu_first.smoke ops`` calls every op and writes no row: what the sanitizers watch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

import lbgap
from benchmarks.gpu_first.rows import DEVICE, Facts, close, part, synchronise, tried
from lbgap import Objective, ops, reference
from lbgap.networks import mlp
from tests.gpu.calls import draw, every_op
from tests.ops import test_tangents

Call = Callable[[], tuple[Tensor, ...]]
SHAPE = (64, 4, 16, 8, 8)  # of the tangents: batch, vectors, channels, height, width
CPU = torch.device("cpu")


def in_bfloat16(name: str) -> tuple[Call, Callable[[], Tensor]]:
    """A call of an op on tangents in bfloat16, and of its twin in float64."""
    args, shape = test_tangents.problem(name, SHAPE, torch.bfloat16)
    moved = [arg.to(DEVICE) if isinstance(arg, Tensor) else arg for arg in args]

    def call() -> tuple[Tensor]:
        out = torch.full(shape, torch.nan, dtype=torch.bfloat16, device=DEVICE)
        getattr(ops, name)(*moved, out)
        return (out,)

    return call, lambda: test_tangents.run(reference, name, test_tangents.wide(args), shape, torch.float64)


def check_ops() -> None:
    numbers = draw(DEVICE)
    here, there = every_op(*(one.cpu() for one in numbers)), every_op(*numbers)

    def same(name: str) -> Facts:
        found = there[name]()
        synchronise()
        for one, other in zip(found, here[name](), strict=True):
            close(one, other, 1e-5 if one.dtype == torch.float32 else 1e-9, 1e-5)
        return {}

    def near(name: str) -> Facts:
        call, twin = in_bfloat16(name)
        (found,) = call()
        close(found, twin(), 1e-2, 1e-2)
        return {}

    for name in there:
        tried("smoke", name, lambda name=name: same(name))
    for name in test_tangents.OPS:
        tried("smoke", f"{name} bfloat16", lambda name=name: near(name))


def call_ops() -> None:
    """Call every op once, and nothing else."""
    calls = every_op(*draw(DEVICE)) | {f"{name} bfloat16": in_bfloat16(name)[0] for name in test_tangents.OPS}
    for name, call in calls.items():
        call()
        synchronise()
        print(name, flush=True)


def problem(seed: int = 0, precision: str = "float64", device: torch.device = DEVICE) -> Objective:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(500, 40, generator=generator), torch.randint(0, 10, (500,), generator=generator)
    model = mlp(40, [48, 48], 10, seed=seed)
    return Objective(model.eval(), data, device=device, precision=precision, batch_size=200)


def check_sharpness(method: str, precision: str) -> Facts:
    here = lbgap.fast_sharpness(problem(device=CPU), method=method)
    there = lbgap.fast_sharpness(problem(precision=precision), method=method)
    relative = abs(there.value - here.value) / max(abs(here.value), 1e-30)
    said = {key: there.settings[key] for key in ("graph", "data", "device", "backend", "notes")}
    return {"ok": relative < (1e-4 if precision == "float64" else 0.1), "relative": relative, **said}


def check_products() -> Facts:
    here, there = problem(device=CPU), problem()
    vectors = torch.randn(3, here.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    close(there.hvp(there.theta, vectors.to(DEVICE)), here.hvp(here.theta, vectors), 1e-8, 1e-10)
    return {"way": there.hvp_way}


def check_line() -> Facts:
    alphas = torch.linspace(0, 1, 7, dtype=torch.float64)
    coefficients = torch.stack([1 - alphas, alphas], 1)
    found, objective = [], problem()
    for one in (objective, problem(device=CPU)):
        ends = torch.stack([problem(seed, device=one.device).theta for seed in (0, 1)])
        found.append(one.combination_losses(coefficients, ends)[0])
    close(*found, 1e-9)
    return {"way": objective.losses_way}


def smoke() -> None:
    check_ops()
    for method in ("vertex", "apgd", "lbfgsb", "scipy"):
        tried("smoke", f"fast_sharpness {method} float64", lambda method=method: check_sharpness(method, "float64"))
    tried("smoke", "fast_sharpness vertex mixed", lambda: check_sharpness("vertex", "mixed"))
    tried("smoke", "hvp", check_products)
    tried("smoke", "line", check_line)


if __name__ == "__main__":
    if sys.argv[1:] == ["ops"]:
        part(call_ops, rows=False)
    part(smoke)
