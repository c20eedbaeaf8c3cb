"""The gradient of the mean loss of F1 over many samples: one batch against micro-batches.

The samples are standard normal and the parameters those of the start: neither changes the work. One batch of
60,000 needs about 6 GB.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lbgap import Objective
from lbgap.networks import f1

BACKENDS = ("torch", "one batch", "2,500 a batch", "chosen", "mixed")
TIE = 0.95
# Of the norm: the root of the share of units so close to zero that rounding opens or shuts their ReLU.
TOLERANCE = {"float32": 1e-3, "mixed": 0.1}
TARGETS = {
    "chosen": (("faster", "torch", 1.0), ("faster", "2,500 a batch", TIE)),
    "mixed": (("faster", "chosen", 1.0),),
}

Samples = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def model(device: torch.device) -> nn.Module:
    return f1(seed=0).to(device).eval()


@pytest.fixture(scope="module")
def samples(quick: bool, device: torch.device) -> Samples:
    count, generator = 6_000 if quick else 60_000, torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 784, generator=generator)
    return inputs.to(device), torch.randint(10, (count,), generator=generator).to(device)


@pytest.fixture(scope="module")
def expected(model: nn.Module, samples: Samples) -> Tensor:
    """The gradient in float64."""
    objective = Objective(model, samples, precision="float64", batch_size=2_500)
    return objective.loss_and_gradient(objective.theta)[1]


def prepare(backend: str, model: nn.Module, samples: Samples) -> tuple[Callable[[], Tensor], int]:
    """The call that is timed, which returns the gradient, and its batch size."""
    inputs, targets = samples
    if backend == "torch":
        parameters = list(model.parameters())

        def plain() -> Tensor:
            loss = F.cross_entropy(model(inputs), targets)
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

        return plain, len(inputs)
    sizes = {"one batch": len(inputs), "2,500 a batch": 2_500}
    precision = "mixed" if backend == "mixed" else "float32"
    objective = Objective(model, samples, batch_size=sizes.get(backend), precision=precision)
    theta, out = objective.theta, objective.theta
    call = objective.direction if backend == "mixed" else objective.loss_and_gradient
    return lambda: call(theta, out=out)[1], objective.batch_size


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_pass(
    backend: str,
    model: nn.Module,
    samples: Samples,
    expected: Tensor,
    quick: bool,
    need: Callable[[str], None],
    operations: Callable[[nn.Module, int, bool], float],
    measure: Callable[..., None],
) -> None:
    if backend == "mixed":
        need("bfloat16")
    call, batch_size = prepare(backend, model, samples)
    error = float((call().double() - expected).norm() / expected.norm())
    assert error < TOLERANCE.get(backend, TOLERANCE["float32"])
    count = len(samples[0])
    measure(
        call,
        group="gradient pass, F1",
        backend=backend,
        rounds=3 if quick else 5,
        work={"bfloat16" if backend == "mixed" else "float32": operations(model, count, True)},
        targets=TARGETS.get(backend, ()),
        n=expected.numel(),
        samples=count,
        batch_size=batch_size,
        evaluations=1,
        relative_error=error,
    )
