"""What the tests of all measures share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def every_test_has_one_thread(one_thread):
    """As elsewhere, but without each file asking for it."""


@pytest.fixture
def quadratic():
    """``(model, data, x, H, b)`` with the loss ``mean (X w - y)^2`` in float64: gradient ``H w - b``, Hessian H."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 6, generator=generator, dtype=torch.float64) * torch.arange(1, 7)
    targets = torch.randn(30, 1, generator=generator, dtype=torch.float64)
    model = torch.nn.Linear(6, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 6, generator=generator, dtype=torch.float64))
    hessian = 2 * inputs.T @ inputs / 30
    return model, (inputs, targets), model.weight.detach()[0].clone(), hessian, (2 * inputs.T @ targets / 30)[:, 0]
