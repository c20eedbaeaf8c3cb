"""Data of every kind on a GPU: in pieces, and read again in each pass."""

import pytest
import torch
from torch import nn

from lbgap import Objective
from lbgap.problem import hold
from lbgap.system import device as hardware

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Mean(nn.Module):
    """Takes sequences of any length."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 64), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.inner(x).tanh().mean(1))


def batches():
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        inputs = torch.randn(32, 5 + number % 3, 4, generator=generator)
        yield {"x": inputs, "label": torch.randint(3, (32,), generator=generator)}


@pytest.mark.parametrize("kind", ["resident", "streamed", "streamed from the source"])
def test_the_loss_is_that_in_float64_on_the_host(kind, monkeypatch):
    torch.manual_seed(0)
    model = Mean()
    exact = Objective(model, batches, precision="float64")
    if kind == "streamed":
        monkeypatch.setattr(hardware, "fit", lambda *_: False)
    if kind == "streamed from the source":
        monkeypatch.setattr(hold, "budget", lambda: 0)
    objective = Objective(model, batches, device="cuda")
    assert objective.settings()["data"] == kind
    value, gradient = objective.loss_and_gradient(objective.theta)
    expected, slope = exact.loss_and_gradient(exact.theta)
    # Means of 1,280 terms, each rounded to float32 a few times.
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(gradient.cpu().double(), slope, rtol=1e-4, atol=1e-6)
    for _ in range(3):
        again = objective.loss_and_gradient(objective.theta)
        assert torch.equal(again[0], value)
        assert torch.equal(again[1], gradient)
