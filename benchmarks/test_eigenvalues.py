"""The five largest eigenvalues of F1's Hessian, each to one residual, against power iteration with deflation.

Power iteration is what pyhessian does: a random start, products with one vector at a time on a graph of the gradient
that is kept, vectors found before projected out. Its own rule ends on the change of an eigenvalue; here it ends on the
residual, so that both reach the same. The rows called "own rule" end as pyhessian does, whatever the residuals then
are. F1 is trained briefly on MNIST-1D whose series are interpolated to 784 points.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lbgap
from lbgap import Objective, networks
from lbgap.training import train

PAIRS = 5
TOLERANCE = 1e-3  # of the residuals, relative to the largest eigenvalue
CHANGE = 1e-3  # of an eigenvalue between two products: pyhessian's rule
MOST = 300  # products for one pair
BACKENDS = ("power", "power, own rule", "pyhessian, own rule", "lbgap")
TARGETS = (("faster", "power", 5.0),)
AGREE = 1e-4  # of the eigenvalues, relative to the largest: their error is of the order of the squared residual

Pairs = tuple[list[float], Tensor, int]


@functools.cache
def minimizer(quick: bool, device: torch.device, series: Callable[[int], tuple[Tensor, Tensor]]) -> tuple[Any, ...]:
    """A network in evaluation mode, and its samples."""
    samples = 500 if quick else 4_000
    inputs, targets = (tensor.to(device) for tensor in series(samples))
    start = networks.mlp(784, [64] * 5, 10, seed=0) if quick else networks.f1(seed=0)
    run = train(start, (inputs, targets), batch_size=samples // 10, max_epochs=20, patience=20, device=device)
    return run.model.eval(), inputs, targets


def power_iteration(model: nn.Module, inputs: Tensor, targets: Tensor, *, residual: bool) -> Pairs:
    """Eigenvalues by power iteration with deflation, as in pyhessian; ends on the residual, or on pyhessian's rule."""
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(F.cross_entropy(model(inputs), targets), parameters, create_graph=True)
    slope = torch.cat([part.flatten() for part in slopes])
    generator = torch.Generator(inputs.device).manual_seed(0)
    values: list[float] = []
    vectors: list[Tensor] = []
    products, largest = 0, 0.0
    for _ in range(PAIRS):
        vector = torch.randn(len(slope), generator=generator, device=inputs.device)
        vector /= vector.norm()
        before = None
        for _ in range(MOST):
            for other in vectors:
                vector -= (vector @ other) * other
            vector /= vector.norm()
            parts = torch.autograd.grad(slope, parameters, vector, retain_graph=True)
            image = torch.cat([part.flatten() for part in parts])
            products += 1
            value = float(image @ vector)
            largest = max(largest, abs(value))
            if residual:
                done = float((image - value * vector).norm()) <= TOLERANCE * largest
            else:
                done = before is not None and abs(value - before) / (abs(before) + 1e-6) < CHANGE
            if done:
                break
            before, vector = value, image / image.norm()
        values.append(value)
        vectors.append(vector)
    return values, torch.stack(vectors), products


def pyhessian(model: nn.Module, inputs: Tensor, targets: Tensor) -> Pairs:
    """The peer itself."""
    peer = pytest.importorskip("pyhessian", reason="the peer pyhessian is not installed")
    with contextlib.redirect_stdout(io.StringIO()):
        found = peer.hessian(model, nn.CrossEntropyLoss(), (inputs, targets), cuda=inputs.is_cuda)
        values, vectors = found.eigenvalues(maxIter=MOST, tol=CHANGE, top_n=PAIRS)
    model.zero_grad()
    return values, torch.stack([torch.cat([part.flatten() for part in vector]) for vector in vectors]), 0


def ours(model: nn.Module, inputs: Tensor, targets: Tensor) -> Pairs:
    """The whole call, the objective included."""
    found = lbgap.eigenvalues(model, (inputs, targets), k=PAIRS, tolerance=TOLERANCE)
    assert all(found.converged), found.status
    return list(found.values), found.vectors, found.products


CALLS: dict[str, Callable[[nn.Module, Tensor, Tensor], Pairs]] = {
    "power": functools.partial(power_iteration, residual=True),
    "power, own rule": functools.partial(power_iteration, residual=False),
    "pyhessian, own rule": pyhessian,
    "lbgap": ours,
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_top_5_eigenvalues(
    backend: str,
    quick: bool,
    device: torch.device,
    wide_series: Callable[[int], tuple[Tensor, Tensor]],
    operations: Callable[[nn.Module, int, bool], float],
    measure: Callable[..., None],
) -> None:
    model, inputs, targets = minimizer(quick, device, wide_series)
    values, vectors, products = CALLS[backend](model, inputs, targets)
    residuals, exact = judged(model, inputs, targets, vectors)
    if "own rule" not in backend:
        scale = max(map(abs, values))
        assert max(residuals) <= 1.5 * TOLERANCE * scale  # the judge has its own batches and rounding
        assert values == pytest.approx(exact, abs=AGREE * scale)
    count = len(inputs)
    measure(
        lambda: CALLS[backend](model, inputs, targets),
        group="top-5 eigenvalues, F1",
        backend=backend,
        rounds=1,
        work={"float32": products * 2 * operations(model, count, True)},
        targets=TARGETS if backend == "lbgap" else (),
        n=vectors.shape[1],
        samples=count,
        products=products,
        value=values[0],
        eigenvalues=values,
        residuals=residuals,
    )


def judged(model: nn.Module, inputs: Tensor, targets: Tensor, vectors: Tensor) -> tuple[list[float], list[float]]:
    """Residuals of unit vectors and their Rayleigh quotients, both by products in one and the same way."""
    objective = Objective(model, (inputs, targets))
    vectors = (vectors / vectors.norm(dim=1, keepdim=True)).to(objective.theta)
    images = objective.hvp(objective.theta, vectors)
    quotients = (vectors.double() * images.double()).sum(1)
    away = images.double() - quotients[:, None] * vectors.double()
    return away.norm(dim=1).tolist(), quotients.tolist()
