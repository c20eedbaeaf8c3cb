"""Points: lines and planes between networks, by lbgap, point by point, and batched by torch.func."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from benchmarks import test_line
from benchmarks.gpu_first.rows import COMPILER, DEVICE, GPU, Facts, part, seconds, tried
from lbgap.networks import f1, mlp

Samples = tuple[Tensor, Tensor]
CHUNK = 64  # points at a time


def plane() -> tuple[list[nn.Module], Tensor, Samples]:
    side = 51 if GPU else 3
    a, b = torch.meshgrid(*[torch.linspace(-0.5, 1.5, side, dtype=torch.float64)] * 2, indexing="ij")
    models = [mlp(64, [64, 64], 10, batch_norm=False, seed=seed).to(DEVICE).eval() for seed in range(3)]
    return models, torch.stack([1 - a - b, a, b], -1).view(-1, 3), test_line.draw(1_797, 64, DEVICE)


def line() -> tuple[list[nn.Module], Tensor, Samples]:
    alphas = torch.linspace(0, 1, 25, dtype=torch.float64)
    models = [f1(seed=seed).to(DEVICE).eval() for seed in range(2)]
    return models, torch.stack([1 - alphas, alphas], 1), test_line.draw(4_000 if GPU else 50, 784, DEVICE)


def by_lbgap(backend: str, models: list[nn.Module], coefficients: Tensor, samples: Samples) -> Facts:
    return seconds(test_line.prepare(backend, models, coefficients, samples), 5)


def by_torch(models: list[nn.Module], coefficients: Tensor, samples: Samples) -> Facts:
    ends = [torch.stack(parts).detach() for parts in zip(*(model.parameters() for model in models), strict=True)]
    names = [name for name, _ in models[0].named_parameters()]
    buffers, weights = dict(models[0].named_buffers()), coefficients.float().to(DEVICE)

    def one(row: Tensor) -> Tensor:
        state = {**buffers, **{name: torch.tensordot(row, end, 1) for name, end in zip(names, ends, strict=True)}}
        return F.cross_entropy(functional_call(models[0], state, (samples[0],)), samples[1])

    function = torch.compile(vmap(one, chunk_size=CHUNK), backend=COMPILER)
    return seconds(lambda: function(weights), 5)


def points() -> None:
    for case, draw in {"plane 51x51, 64-64-64-10": plane, "line 25 points, F1": line}.items():
        problem = draw()
        for backend in ("native", "mixed", "torch"):
            tried("points", f"{case} {backend}", lambda backend=backend, problem=problem: by_lbgap(backend, *problem))
        tried("points", f"{case} vmap compiled", lambda problem=problem: by_torch(*problem))


if __name__ == "__main__":
    part(points)
