"""HVP: products with the Hessian by the engine, by its work as a CUDA graph, and by torch.func."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

from benchmarks import test_hvp
from benchmarks.gpu_first.rows import COMPILER, DEVICE, GPU, Facts, part, seconds, tried
from lbgap import Objective

GROUPS = ("HVP, 64-64-64-10", *(["HVP, F1"] if GPU else []))
TOLERANCE = 1e-3  # of products in float32, as in test_hvp.py

Samples = tuple[Tensor, Tensor]


def by_lbgap(backend: str, model: nn.Module, samples: Samples, vectors: Tensor) -> Facts:
    call = test_hvp.prepare(backend, model, samples)
    facts = seconds(lambda: call(vectors), 7)
    return {**facts, "launch_bound": facts["host_us"] > 0.8 * facts["us"]}


def captured(model: nn.Module, samples: Samples, vectors: Tensor) -> Facts:
    """The engine as a CUDA graph, which lbgap does not make: what there is to gain."""
    objective = Objective(model, samples)
    objective.hvp(objective.theta, vectors)
    engine, out = objective._products._engine, torch.zeros_like(vectors)

    def work() -> None:
        with objective._evaluator.exact():
            engine.add_products([samples], vectors, out, "hessian")

    if not GPU:
        return seconds(work)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return seconds(graph.replay)


def by_torch(model: nn.Module, samples: Samples, vectors: Tensor, compiled: bool) -> Facts:
    """Forward over reverse mode for all vectors at once, as torch.func has it."""
    names, values = zip(*((name, p.detach()) for name, p in model.named_parameters()), strict=True)
    buffers = dict(model.named_buffers())

    def loss(*parameters: Tensor) -> Tensor:
        state = {**buffers, **dict(zip(names, parameters, strict=True))}
        return F.cross_entropy(functional_call(model, state, (samples[0],)), samples[1])

    slopes = grad(loss, argnums=tuple(range(len(values))))

    def products(*parts: Tensor) -> tuple[Tensor, ...]:
        return vmap(lambda *one: jvp(slopes, values, one)[1])(*parts)

    function = torch.compile(products, backend=COMPILER) if compiled else products
    pieces = vectors.split([v.numel() for v in values], 1)
    parts = [piece.reshape(-1, *v.shape) for piece, v in zip(pieces, values, strict=True)]
    found = torch.cat([part.flatten(1) for part in function(*parts)], 1)
    exact = test_hvp.prepare("engine", model, samples)(vectors)
    relative = float((found - exact).norm() / exact.norm())
    return {"ok": relative < TOLERANCE, **seconds(lambda: function(*parts), 7), "relative": relative}


def hvp() -> None:
    for group in GROUPS:
        problem = test_hvp.problem(group, not GPU, DEVICE)
        for backend in ("engine", "mixed", "general", "eager"):
            tried("hvp", f"{group} {backend}", lambda backend=backend, problem=problem: by_lbgap(backend, *problem))
        tried("hvp", f"{group} engine captured by hand", lambda problem=problem: captured(*problem))
        tried("hvp", f"{group} torch.func", lambda problem=problem: by_torch(*problem, compiled=False))
        tried("hvp", f"{group} torch.func compiled", lambda problem=problem: by_torch(*problem, compiled=True))


if __name__ == "__main__":
    part(hvp)
