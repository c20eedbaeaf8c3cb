"""Samples that see each other: the value is the mean over fixed batches, whose size is part of the result."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lbgap
from lbgap import Objective

SAMPLES = 26


class Encoder(nn.Module):
    """Two views of each sample, (batch, 2, 10), as directions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 5))

    def forward(self, x):
        return F.normalize(self.layers(x), dim=-1)


class Centred(nn.Module):
    """Takes the mean of the batch off."""

    def forward(self, x):
        return x - x.mean(0)


def info_nce(output, _):
    return F.cross_entropy(output[:, 0] @ output[:, 1].T / 0.2, torch.arange(len(output)))


def barlow(output, _):
    a, b = output.unbind(1)
    cross = (a - a.mean(0)).T @ (b - b.mean(0)) / len(a)
    return (cross - torch.eye(len(cross), dtype=cross.dtype)).square().mean()


def encoder():
    torch.manual_seed(3)
    return Encoder()


@pytest.fixture(autouse=True)
def _same_draws():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def pairs():
    return torch.randn(SAMPLES, 2, 10), torch.zeros(SAMPLES)


def by_hand(model, data, loss, size):
    """The mean over fixed batches, each counted by its samples, in float64, and its gradient."""
    model = model.double()
    total = sum(
        loss(model(x), y) * len(x) for x, y in zip(data[0].double().split(size), data[1].split(size), strict=True)
    )
    value = total / len(data[0])
    gradient = torch.autograd.grad(value, list(model.parameters()))
    return float(value.detach()), torch.cat([part.flatten() for part in gradient])


@pytest.mark.parametrize("loss", [info_nce, barlow])
@pytest.mark.parametrize("size", [8, 13, SAMPLES])
def test_the_value_is_the_mean_over_fixed_batches(loss, size):
    data = pairs()
    objective = Objective(encoder(), data, loss=loss, coupled=True, batch_size=size, precision="float64")
    expected, gradient = by_hand(encoder(), data, loss, size)
    value, found = objective.loss_and_gradient(objective.theta)
    assert float(value) == pytest.approx(expected, rel=1e-12)
    assert torch.allclose(found, gradient, rtol=1e-10, atol=1e-14)
    assert float(objective.loss(objective.theta)) == pytest.approx(expected, rel=1e-12)
    several = objective.losses(objective.theta.expand(3, -1).contiguous())
    assert several.tolist() == pytest.approx([expected] * 3, rel=1e-12)


def test_the_batch_is_the_loaders():
    data = pairs()
    loader = DataLoader(TensorDataset(*data), batch_size=8)
    objective = Objective(encoder(), loader, loss=info_nce, coupled=True)
    assert objective.batch_size == 8
    expected, _ = by_hand(encoder(), data, info_nce, 8)
    assert float(objective.loss(objective.theta)) == pytest.approx(expected, rel=1e-5)
    found = lbgap.fast_sharpness(encoder(), loader, loss=info_nce, coupled=True, iterations=2)
    assert (found.settings["coupled"], found.settings["batch_size"]) == (True, 8)
    assert found.base_loss == pytest.approx(expected, rel=1e-5)


def test_a_certificate_of_a_coupled_loss_holds_by_hand():
    data = pairs()
    model = encoder()
    found = lbgap.fast_sharpness(model, data, loss=barlow, coupled=True, batch_size=13, epsilon=5e-3, iterations=3)
    torch.nn.utils.vector_to_parameters(found.point, model.parameters())
    expected, _ = by_hand(model, data, barlow, 13)
    assert found.max_loss == pytest.approx(expected, rel=1e-5)
    assert found.max_loss > found.base_loss


def test_a_coupled_model():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 6), Centred(), nn.ReLU(), nn.Linear(6, 3))
    data = torch.randn(SAMPLES, 10), torch.arange(SAMPLES) % 3
    objective = Objective(model, data, coupled=True, batch_size=13)
    expected, _ = by_hand(model, data, F.cross_entropy, 13)
    assert float(objective.loss(objective.theta)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="coupled=True"):
        Objective(model.float(), data)


def test_batch_statistics_are_one_case():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    data = torch.randn(SAMPLES, 10), torch.arange(SAMPLES) % 3
    one, other = (Objective(model, data, batch_norm="batch", batch_size=13, **more) for more in ({}, {"coupled": True}))
    assert one.settings() == other.settings()
    assert one.settings()["coupled"] is True
    assert float(one.loss(one.theta)) == float(other.loss(other.theta))
    free = Objective(model, data)
    assert free.settings()["coupled"] is False


def test_a_part_is_one_batch():
    objective = Objective(encoder(), pairs(), loss=info_nce, coupled=True, batch_size=13)
    few = objective.part(torch.arange(5))
    assert few.batch_size == 5
    assert math.isfinite(float(few.loss(few.theta)))
    assert objective.subset(5) is None
    for chosen in (1, 14):
        with pytest.raises(ValueError, match="coupled=True needs 2 to batch_size = 13 samples for a batch, got"):
            objective.part(torch.arange(chosen))
    with pytest.raises(ValueError, match=r"got coupled=True, under which .*: leave out coupled=True$"):
        objective.sample(5)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"coupled": True}, ValueError, "coupled=True needs to know which samples see each other: pass batch_size="),
        ({"coupled": True, "batch_size": 5}, ValueError, "batch of one sample, which sees no other: choose another"),
        ({"coupled": True, "batch_size": 1}, ValueError, "batch of one sample, which sees no other: choose another"),
        ({"coupled": 1}, TypeError, "coupled must be True or False, got 1"),
        ({"judge": "no"}, TypeError, "judge must be True or False, got 'no'"),
    ],
)
def test_bad_keywords(keywords, error, message):
    with pytest.raises(error, match=message):
        Objective(encoder(), pairs(), loss=info_nce, **keywords)


def test_a_line_of_a_coupled_loss():
    data, models = pairs(), [encoder(), encoder()]
    with torch.no_grad():
        models[1].layers[0].weight.add_(0.3)
    path = lbgap.line(*models, data, loss=barlow, coupled=True, batch_size=13, points=3, low=0.0, high=1.0)
    expected, _ = by_hand(models[0], data, barlow, 13)
    assert path.train_loss[0] == pytest.approx(expected, rel=1e-5)
    objective = Objective(models[0].float(), data, loss=barlow, coupled=True, batch_size=13)
    again = lbgap.line(objective, models[1].float(), points=3, low=0.0, high=1.0)
    assert again.train_loss == pytest.approx(path.train_loss, rel=1e-6)


def test_nothing_asked_is_said():
    data = torch.randn(SAMPLES, 10), torch.arange(SAMPLES) % 3
    model = nn.Linear(10, 3)
    asked = lbgap.fast_sharpness(model, data, iterations=2)
    assert isinstance(asked.settings["judged"], dict)
    assert asked.settings["judged"]
    found = lbgap.fast_sharpness(model, data, iterations=2, judge=False)
    assert found.settings["judged"].startswith("judge=False: ")
    assert "note: judge=False: " in str(found)
    assert found.value == asked.value
    assert found.point.equal(asked.point)
