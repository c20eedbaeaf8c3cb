"""The loss at many combinations of a few minimizers: layer by layer against one point after the other.

The networks are those of their seeds, which changes nothing of the work. The peer is loss-landscapes, where it is
installed; like the plain loop it gives the model each point's parameters and runs it on all samples at once.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lbgap import Objective
from lbgap.networks import f1, mlp

Samples = tuple[Tensor, Tensor]
POINTS = 25
TOLERANCE = {"mixed": 0.02}  # of a loss, that bfloat16 may change; else that of float32
ROUNDING = 1e-4
LINE_TARGETS = {"native": (("faster", "torch", 1.3),), "mixed": (("faster", "torch", 3.5),)}
PLANE_TARGETS = {"native": (("faster", "torch", 2.5),)}


def draw(samples: int, features: int, device: torch.device) -> Samples:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, features, generator=generator)
    return inputs.to(device), torch.randint(10, (samples,), generator=generator).to(device)


def plain(models: list[nn.Module], coefficients: Tensor, samples: Samples) -> Callable[[], Tensor]:
    """What a researcher writes: give the model each point's parameters, and run it."""
    ends = torch.stack([parameters_to_vector(model.parameters()).detach() for model in models])
    model, (inputs, targets) = models[0], samples
    own, parameters, rows = ends[0].clone(), list(models[0].parameters()), coefficients.to(ends)

    @torch.no_grad()
    def run() -> Tensor:
        found = []
        for row in rows:
            vector_to_parameters(row @ ends, parameters)
            found.append(F.cross_entropy(model(inputs), targets))
        vector_to_parameters(own, parameters)
        return torch.stack(found)

    return run


def peer(models: list[nn.Module], samples: Samples) -> Callable[[], Tensor]:
    landscapes = pytest.importorskip("loss_landscapes", reason="loss-landscapes is not installed")
    metric = landscapes.metrics.Loss(nn.CrossEntropyLoss(), *samples)

    def run() -> Tensor:
        found = landscapes.linear_interpolation(models[0], models[1], metric, POINTS, deepcopy_model=True)
        return torch.from_numpy(found)

    return run


def engine(models: list[nn.Module], coefficients: Tensor, samples: Samples, backend: str) -> Callable[[], Tensor]:
    precision = {"mixed": "mixed", "float64": "float64"}.get(backend, "float32")
    objective = Objective(models[0], samples, precision=precision)
    ends = torch.stack([Objective(model, samples, precision=precision).theta for model in models])
    return lambda: objective.combination_losses(coefficients, ends)[0]


def prepare(backend: str, models: list[nn.Module], coefficients: Tensor, samples: Samples) -> Callable[[], Tensor]:
    """The call that is timed, once it has been found right."""
    if backend == "torch":
        call = plain(models, coefficients, samples)
    elif backend == "peer":
        call = peer(models, samples)
    else:
        call = engine(models, coefficients, samples, backend)
    expected = engine(models, coefficients, samples, "float64")()
    error = float(((call().double() - expected) / expected).abs().max())
    assert error < TOLERANCE.get(backend, ROUNDING)
    return call


@pytest.mark.parametrize("backend", ["torch", "peer", "native", "mixed"])
def test_line(
    backend: str,
    quick: bool,
    device: torch.device,
    need: Callable[[str], None],
    operations: Callable[[nn.Module, int, bool], float],
    measure: Callable[..., None],
) -> None:
    if backend == "mixed":
        need("bfloat16")
    samples = draw(400 if quick else 4_000, 784, device)
    models = [f1(seed=seed).to(device).eval() for seed in range(2)]
    alphas = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    call = prepare(backend, models, torch.stack([1 - alphas, alphas], 1), samples)
    measure(
        call,
        group="line, 25 points, F1",
        backend=backend,
        rounds=3 if quick else 5,
        work={"bfloat16" if backend == "mixed" else "float32": POINTS * operations(models[0], len(samples[0]), False)},
        targets=LINE_TARGETS.get(backend, ()),
        samples=len(samples[0]),
        evaluations=POINTS,
    )


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_plane(
    backend: str,
    quick: bool,
    device: torch.device,
    operations: Callable[[nn.Module, int, bool], float],
    measure: Callable[..., None],
) -> None:
    side = 11 if quick else 51
    samples = draw(1_797, 64, device)
    models = [mlp(64, [64, 64], 10, batch_norm=False, seed=seed).to(device).eval() for seed in range(3)]
    a, b = torch.meshgrid(*[torch.linspace(-0.5, 1.5, side, dtype=torch.float64)] * 2, indexing="ij")
    call = prepare(backend, models, torch.stack([1 - a - b, a, b], -1).view(-1, 3), samples)
    measure(
        call,
        group="plane, 64-64-64-10",
        backend=backend,
        rounds=3 if quick else 5,
        work={"float32": side**2 * operations(models[0], len(samples[0]), False)},
        targets=PLANE_TARGETS.get(backend, ()),
        points=side**2,
        evaluations=side**2,
    )
