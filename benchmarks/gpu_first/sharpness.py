"""Sharpness: a gradient of F1 over 60,000 samples, eager and as a CUDA graph, and the whole call beside the recipe."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lbgap
from benchmarks.gpu_first.rows import COMPILER, DEVICE, GPU, Facts, part, row, seconds, synchronise, tried
from lbgap import Objective
from lbgap.networks import f1, mlp
from lbgap.objective.cuda_graphs import Graphs
from lbgap.training import train

SAMPLES, EPOCHS = (60_000, 8) if GPU else (400, 1)
SEARCHES: dict[str, dict[str, Any]] = {
    "scipy": {"method": "scipy"},  # the recipe of the paper, which the others are compared with
    "vertex": {},
    "vertex mixed": {"precision": "mixed"},
    "vertex twins": {"backend": "torch"},
    "lbfgsb": {"method": "lbfgsb", "iterations": 10},
}


def trained() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network trained on ten clouds of samples, which it finds easy, and the samples."""
    generator = torch.Generator().manual_seed(0)
    means, targets = torch.randn(10, 784, generator=generator), torch.randint(10, (SAMPLES,), generator=generator)
    inputs = means[targets] + 2 * torch.randn(SAMPLES, 784, generator=generator)
    data = inputs.to(DEVICE), targets.to(DEVICE)
    start = f1(seed=0) if GPU else mlp(784, [16, 16], 10, seed=0)
    began = time.perf_counter()
    model = train(start, data, batch_size=SAMPLES // 100, max_epochs=EPOCHS, patience=EPOCHS, device=str(DEVICE)).model
    synchronise()
    row("sharpness", "training F1", ok=True, epochs=EPOCHS, total_seconds=round(time.perf_counter() - began, 2))
    return model.to(DEVICE), data


def with_rate(model: nn.Module, facts: Facts) -> Facts:
    operations = 6.0 * sum(p.numel() for p in model.parameters()) * SAMPLES
    return {**facts, "tflops": round(operations / facts["us"] / 1e6, 1)}


def gradient(model: nn.Module, data: tuple[Tensor, Tensor], precision: str, graphs: bool) -> Facts:
    objective = Objective(model, data, precision=precision)
    if not graphs:
        objective._evaluator.graphs = Graphs(objective.device, objective.notes, "switched off")
    theta, out = objective.theta, objective.theta
    call = objective.direction if precision == "mixed" else objective.loss_and_gradient
    for _ in range(3):
        call(theta, out=out)
    facts = with_rate(model, seconds(lambda: call(theta, out=out), 10))
    return {**facts, "batch": objective.batch_size, "graph": objective.settings()["graph"]}


def compiled_gradient(model: nn.Module, data: tuple[Tensor, Tensor]) -> Facts:
    parameters = list(model.eval().parameters())
    forward = torch.compile(lambda: F.cross_entropy(model(data[0]), data[1]), backend=COMPILER)
    return with_rate(model, seconds(lambda: torch.autograd.grad(forward(), parameters), 10))


def sharpness() -> None:
    model, data = trained()
    for precision in ("float32", "mixed"):
        for graphs in (True, False):
            tried(
                "sharpness",
                f"gradient {precision} graph={graphs}",
                lambda precision=precision, graphs=graphs: gradient(model, data, precision, graphs),
            )
    found: dict[str, tuple[float, float]] = {}  # seconds and value

    def search(name: str) -> Facts:
        if name != "scipy":  # long, and nothing of it is warmed up
            lbgap.fast_sharpness(model, data, epsilon=1e-3, **SEARCHES[name])
        synchronise()
        began = time.perf_counter()
        s = lbgap.fast_sharpness(model, data, epsilon=1e-3, **SEARCHES[name])
        synchronise()
        found[name] = time.perf_counter() - began, s.value
        facts: Facts = {"total_seconds": round(found[name][0], 4), "value": s.value, "evaluations": s.evaluations}
        facts |= {"graph": s.settings["graph"], "notes": s.settings["notes"], "status": s.status}
        if "scipy" in found:
            facts["times_scipy"] = round(found["scipy"][0] / found[name][0], 1)
            facts["value_over_scipy"] = s.value / found["scipy"][1]
        return facts

    for name in SEARCHES:
        tried("sharpness", f"fast_sharpness {name}", lambda name=name: search(name))
    tried("sharpness", "gradient float32 torch.compile", lambda: compiled_gradient(model, data))


if __name__ == "__main__":
    part(sharpness)
