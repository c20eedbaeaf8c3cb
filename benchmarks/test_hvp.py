"""Products of the Hessian with K vectors: F1 and a small network, against a loop of double backwards and against peers.

The inputs are standard normal and the parameters those of the start: neither changes the work. `units` is the time for
one vector, in passes of the gradient (the objective's own, timed in the same test). `peak_bytes` is what preparing and
the first call add to the resident memory.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lbgap import Objective
from lbgap.networks import f1, mlp

Call = Callable[[Tensor], Tensor]
CHECKED = 2  # vectors whose products are compared with float64
TOLERANCE = {"float32": 1e-3, "mixed": 0.1}
PEERS = ("pyhessian", "curvlinops")
ROWS = {
    "HVP, F1": ("eager", "pyhessian", "curvlinops", "general", "engine", "mixed"),
    "HVP, 64-64-64-10": ("eager", "general", "engine", "mixed"),
}
TARGETS = {
    ("HVP, F1", "engine"): (("most", "units", 2.1), ("faster", "pyhessian", 1.0), ("faster", "curvlinops", 1.0)),
    ("HVP, F1", "mixed"): (("most", "units", 0.8),),
    ("HVP, 64-64-64-10", "engine"): (("faster", "eager", 3.0),),
}


def problem(group: str, quick: bool, device: torch.device) -> tuple[nn.Module, tuple[Tensor, Tensor], Tensor]:
    """The network, the samples, and the vectors."""
    generator = torch.Generator().manual_seed(0)
    if group == "HVP, F1":
        model, samples, inputs, k = f1(seed=0), 200 if quick else 4_000, 784, 8
    else:
        model, samples, inputs, k = mlp(64, [64, 64], 10, batch_norm=False, seed=0), 1_797, 64, 16
    data = torch.randn(samples, inputs, generator=generator), torch.randint(10, (samples,), generator=generator)
    vectors = torch.randn(k, sum(p.numel() for p in model.parameters()), generator=generator)
    return model.to(device).eval(), (data[0].to(device), data[1].to(device)), vectors.to(device)


def split(vector: Tensor, like: list[nn.Parameter]) -> list[Tensor]:
    parts = vector.split([p.numel() for p in like])
    return [part.view_as(p) for part, p in zip(parts, like, strict=True)]


def joined(parts: Any) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def eager(model: nn.Module, samples: tuple[Tensor, Tensor]) -> Call:
    """What is written down first: both backward passes for each vector."""
    parameters = list(model.parameters())

    def product(vector: Tensor) -> Tensor:
        loss = F.cross_entropy(model(samples[0]), samples[1])
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        return joined(torch.autograd.grad(slopes, parameters, split(vector, parameters)))

    return lambda vectors: torch.stack([product(vector) for vector in vectors])


def pyhessian(model: nn.Module, samples: tuple[Tensor, Tensor]) -> Call:
    package = importlib.import_module("pyhessian")
    utils = importlib.import_module("pyhessian.utils")

    def products(vectors: Tensor) -> Tensor:
        model.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its backward(create_graph=True)
            work = package.hessian(model, F.cross_entropy, data=samples, cuda=samples[0].is_cuda)
        found = [utils.hessian_vector_product(work.gradsH, work.params, split(v, work.params)) for v in vectors]
        return torch.stack([joined(parts) for parts in found])

    return products


def curvlinops(model: nn.Module, samples: tuple[Tensor, Tensor]) -> Call:
    package = importlib.import_module("curvlinops")
    parameters = list(model.parameters())
    operator = package.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), parameters, [samples], check_deterministic=False
    )

    def products(vectors: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what torch itself calls in its forward rules
            return (operator @ vectors.t()).t()

    return products


def of_objective(backend: str, model: nn.Module, samples: tuple[Tensor, Tensor]) -> Call:
    """The objective's products, by the engine or the general way."""
    objective = Objective(model, samples, precision="mixed" if backend == "mixed" else "float32")
    theta = objective.theta
    if backend == "general":
        objective._products.way = "general: asked for"
    else:
        objective.hvp(theta, torch.ones(1, objective.n, device=theta.device))  # tries the engine
        assert objective.hvp_way == "engine"
    return lambda vectors: objective.hvp(theta, vectors)


def prepare(backend: str, model: nn.Module, samples: tuple[Tensor, Tensor]) -> Call:
    if backend == "eager":
        return eager(model, samples)
    if backend in PEERS:
        pytest.importorskip(backend, reason=f"{backend} is not installed: pip install -e '.[peers]'")
        return pyhessian(model, samples) if backend == "pyhessian" else curvlinops(model, samples)
    return of_objective(backend, model, samples)


@contextmanager
def resident() -> Iterator[list[int]]:
    """Bytes that the block adds to the resident memory at most, sampled every millisecond; Linux only."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # else what was freed before would be used again, and not count
    place, peak, over = Path("/proc/self/statm"), [0], threading.Event()

    def bytes_now() -> int:
        return int(place.read_text().split()[1]) * 4096 if place.exists() else 0

    before = bytes_now()

    def watch() -> None:
        while not over.wait(1e-3):
            peak[0] = max(peak[0], bytes_now() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def seconds_of_gradient(model: nn.Module, samples: tuple[Tensor, Tensor], rounds: int) -> float:
    """The fastest of a few passes."""
    objective, seconds = Objective(model, samples), []
    theta, out = objective.theta, objective.theta
    for _ in range(rounds + 1):
        began = perf_counter()
        objective.loss_and_gradient(theta, out=out)
        if theta.is_cuda:
            torch.cuda.synchronize()
        seconds.append(perf_counter() - began)
    return min(seconds[1:])


@pytest.mark.parametrize(("group", "backend"), [(group, backend) for group in ROWS for backend in ROWS[group]])
def test_hessian_vector_products(
    group: str,
    backend: str,
    quick: bool,
    device: torch.device,
    need: Callable[[str], None],
    operations: Callable[[nn.Module, int, bool], float],
    measure: Callable[..., None],
    benchmark: Any,
) -> None:
    if backend == "mixed":
        need("bfloat16")
    model, samples, vectors = problem(group, quick, device)
    with resident() as peak:
        call = prepare(backend, model, samples)
        found = call(vectors)[:CHECKED].double()
    exact = Objective(model, samples, precision="float64")
    expected = exact.hvp(exact.theta, vectors[:CHECKED].double())
    error = float((found - expected).norm() / expected.norm())
    assert error < TOLERANCE.get(backend, TOLERANCE["float32"])
    rounds = 3 if quick else 5
    facts = {"peak_bytes": peak[0]} if device.type == "cpu" else {}
    gradient = seconds_of_gradient(model, samples, rounds)
    gradient_work, k = operations(model, len(samples[0]), True), len(vectors)
    first = 2.0 * next(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    # Two products for each of the gradient's, but in the first layer, whose inputs have no tangents.
    work = gradient_work + k * (2 * gradient_work - 2 * first * len(samples[0]))
    measure(
        lambda: call(vectors),
        group=group,
        backend=backend,
        rounds=rounds,
        work={"bfloat16" if backend == "mixed" else "float32": work},
        targets=() if quick else TARGETS.get((group, backend), ()),
        n=vectors.shape[1],
        samples=len(samples[0]),
        k=k,
        relative_error=error,
        gradient_seconds=gradient,
        **facts,
    )
    if benchmark.stats is not None:
        benchmark.extra_info["units"] = benchmark.stats.stats.min / k / gradient
