"""What the tests of curvature share: objectives of a known matrix, and a small network with its dense Hessian."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lbgap import Objective


class Quadratic(Objective):
    """``x' H x / 2`` for a given H; it notes how many vectors were multiplied at once."""

    def __init__(self, matrix, precision="float64"):
        n = len(matrix)
        with torch.random.fork_rng([]):
            model = nn.Linear(n, 1, bias=False)
        super().__init__(model, (torch.zeros(2, n), torch.zeros(2, 1)), loss="mse", precision=precision)
        self.matrix, self.calls = matrix.to(self.dtype), []

    def hvp(self, theta, vectors, *, kind="hessian"):
        assert vectors.shape[1:] == (self.n,)
        assert vectors.dtype == self.dtype
        self.calls.append(len(vectors))
        return vectors @ self.matrix


@pytest.fixture(autouse=True)
def every_test_has_one_thread(one_thread):
    """As elsewhere, but without each file asking for it."""


@pytest.fixture(scope="session")
def quadratic():
    """A function that makes an objective of a matrix, or of the eigenvalues of one in a random basis."""

    def build(values, precision="float64", seed=0):
        values = torch.as_tensor(values, dtype=torch.float64)
        if values.dim() == 1:
            generator = torch.Generator().manual_seed(seed)
            basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
            values = basis @ values.diag() @ basis.T
        return Quadratic((values + values.T) / 2, precision)

    return build


@pytest.fixture(scope="session")
def network():
    """``(objective, H)``: a small network in float64, away from a minimum, and its dense Hessian."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (60,), generator=generator)
    names = dict(model.named_parameters())

    def loss(theta):
        parts = dict(zip(names, theta.split([p.numel() for p in names.values()]), strict=True))
        shaped = {name: parts[name].view_as(p) for name, p in names.items()}
        return F.cross_entropy(torch.func.functional_call(model, shaped, (inputs,)), targets)

    objective = Objective(model, (inputs, targets), precision="float64", batch_size=25)
    return objective, torch.autograd.functional.hessian(loss, objective.theta)
