"""What asking costs before a number is believed: the construction of an objective, and its first product.

`units` is what the questions add to the construction, in passes of the gradient (the objective's own, timed in the same
test). `vectors` are numbers of n float32: for the construction its peak beside theta, the gradient and the centre; for
the first product, before which the engine is tried, its peak beyond that of the second.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.test_hvp import resident, seconds_of_gradient
from lbgap import Objective
from lbgap.networks import f1

ROWS = ("not asked", "asked")
MEMORY = ("construction", "first product")
HELD = 3  # theta, the gradient and the centre
TARGETS = {"asked": (("most", "units", 0.3),)}
SAMPLES, LAYERS = 16, 4


def large(n: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network of some n parameters, nearly all in a few square layers, and samples."""
    width = int((n / LAYERS) ** 0.5)
    square = [layer for _ in range(LAYERS) for layer in (nn.Linear(width, width), nn.ReLU())]
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), *square, nn.Linear(width, 10))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, 64, generator=generator)
    return model, (inputs, torch.randint(10, (SAMPLES,), generator=generator))


@pytest.mark.parametrize("backend", ROWS)
def test_questions(
    backend: str, quick: bool, device: torch.device, measure: Callable[..., None], benchmark: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = 500 if quick else 4_000
    inputs, targets = torch.randn(samples, 784, generator=generator), torch.randint(10, (samples,), generator=generator)
    model, data = f1(seed=0).to(device).eval(), (inputs.to(device), targets.to(device))
    rounds = 3 if quick else 7

    def build(judge: bool) -> Objective:
        return Objective(model, data, judge=judge)

    assert isinstance(build(True).judged, dict)
    assert isinstance(build(False).judged, str)
    without = fastest(lambda: build(False), rounds, device)
    gradient = seconds_of_gradient(model, data, rounds)
    judge = backend == "asked"
    measure(
        lambda: build(judge),
        group="questions, F1",
        backend=backend,
        rounds=rounds,
        work={},
        targets=() if quick else TARGETS.get(backend, ()),
        n=sum(p.numel() for p in model.parameters()),
        samples=samples,
        gradient_seconds=gradient,
    )
    if benchmark.stats is not None:
        benchmark.extra_info["units"] = (benchmark.stats.stats.min - without) / gradient


@pytest.mark.parametrize("backend", MEMORY)
def test_memory(backend: str, quick: bool, device: torch.device, measure: Callable[..., None], benchmark: Any) -> None:
    if device.type != "cpu":
        pytest.skip("the resident memory is the host's")
    model, data = large(5_000_000 if quick else 8_000_000)
    with resident() as built:
        objective = Objective(model, data)
    theta, vector = objective.theta, torch.ones(1, objective.n)
    with resident() as first:
        objective.hvp(theta, vector)
    assert objective.hvp_way == "engine"
    with resident() as second:
        objective.hvp(theta, vector)
    vectors = {
        "construction": built[0] / theta.nbytes - HELD,
        "first product": (first[0] - second[0]) / theta.nbytes,
    }

    def work() -> None:
        other = Objective(model, data)
        if backend == "first product":
            other.hvp(theta, vector)

    measure(
        work,
        group="memory, 8,000,000 parameters",
        backend=backend,
        rounds=3,
        work={},
        targets=(("most", "vectors", 4),),
        n=len(theta),
        samples=SAMPLES,
        peak_bytes=(built if backend == "construction" else first)[0],
        vectors=vectors[backend],
    )


def fastest(work: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Seconds of the fastest of a few repeats, after one that warms up."""
    seconds = []
    for _ in range(rounds + 1):
        began = perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(perf_counter() - began)
    return min(seconds[1:])
