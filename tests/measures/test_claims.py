"""What README claims of every value: a certified lower bound, inside the box, no smaller than the paper's recipe's."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap.maximize.region import box

EPSILONS = (1e-3, 5e-4)
WIDTHS = {"keskar": lambda x: x.abs() + 1, "linf": torch.ones_like, "adaptive": torch.abs}


class Point(nn.Module):
    """A model that returns its parameters, whatever the input."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, inputs):
        return self.values.expand(len(inputs), -1)


@pytest.mark.parametrize("region", WIDTHS)
@pytest.mark.parametrize("method", ["vertex", "apgd", "scipy"])
@pytest.mark.parametrize("curvature", [1.0, 40.0])
def test_maximum_of_a_separable_quadratic_is_the_known_one(region, method, curvature):
    x = torch.tensor([0.5, -2.0, 3.0, -0.25], dtype=torch.float64)
    centre = torch.tensor([0.7, -1.0, 2.0, -0.5], dtype=torch.float64)
    scale = curvature * torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)

    def loss(output, target):
        return (scale * (output - centre) ** 2).sum(1).mean()

    model = Point(x.tolist())
    s = lbgap.fast_sharpness(
        model,
        (torch.zeros(3, 1), torch.zeros(3)),
        epsilon=0.1,
        region=region,
        method=method,
        loss=loss,
        precision="float64",
    )
    r = 0.1 * WIDTHS[region](x)
    base = float((scale * (x - centre) ** 2).sum())
    largest = float(
        (scale * ((x - centre).abs() + r) ** 2).sum()
    )  # convex: furthest from the centre, in each coordinate
    assert s.max_loss == pytest.approx(largest, rel=1e-12)
    assert s.value == pytest.approx(100 * (largest - base) / (1 + base), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_restarts_find_the_best_of_all_vertices_of_logistic_regression(seed):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(5, 2)  # 12 parameters, 4,096 vertices; the loss is convex, so one of them is the maximum
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(30, 5, generator=generator)
    targets = torch.randint(0, 2, (30,), generator=generator)
    objective = lbgap.Objective(model, (inputs, targets), precision="float64")
    s = lbgap.fast_sharpness(objective, epsilon=0.3, restarts=20)
    x = objective.theta
    r = 0.3 * (x.abs() + 1)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=len(x))), dtype=torch.float64)
    corners = x + signs * r
    weight, bias = corners[:, :10].view(-1, 2, 5), corners[:, 10:]
    logits = torch.einsum("kcf,nf->knc", weight, inputs.double()) + bias[:, None]
    losses = F.cross_entropy(logits.transpose(1, 2), targets.expand(len(corners), -1), reduction="none").mean(1)
    assert s.max_loss == pytest.approx(float(losses.max()), rel=1e-12)


@pytest.fixture(scope="module")
def measured(minimizers, mnist1d_train):
    """Objective and results of all methods, for both regimes and both epsilons."""
    found = {}
    for regime, model in minimizers.items():
        objective = lbgap.Objective(model, mnist1d_train)
        for epsilon in EPSILONS:
            for method in ("vertex", "apgd", "scipy"):
                found[regime, epsilon, method] = (
                    objective,
                    lbgap.fast_sharpness(objective, epsilon=epsilon, method=method),
                )
    return found


CASES = [(regime, epsilon) for regime in ("SB", "LB") for epsilon in EPSILONS]


@pytest.mark.parametrize(("regime", "epsilon"), CASES)
@pytest.mark.parametrize("method", ["vertex", "apgd", "scipy"])
def test_the_value_is_the_loss_at_a_point_inside_the_box(measured, regime, epsilon, method):
    objective, s = measured[regime, epsilon, method]
    assert box("keskar", objective.theta, epsilon).excess(s.point) <= 1
    assert float(objective.loss(s.point)) == s.max_loss
    assert float(objective.loss(objective.theta)) == s.base_loss
    assert s.value == 100 * (s.max_loss - s.base_loss) / (1 + s.base_loss)
    assert s.max_loss >= max(value for _, value in s.history) * (1 - 1e-6)


@pytest.mark.parametrize(("regime", "epsilon"), CASES)
def test_vertex_ascent_is_not_below_the_recipe(measured, regime, epsilon):
    vertex, recipe = (measured[regime, epsilon, method][1] for method in ("vertex", "scipy"))
    assert vertex.value >= 0.999 * recipe.value


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_large_batch_minimizer_is_sharper(measured, epsilon):
    assert measured["LB", epsilon, "vertex"][1].value > measured["SB", epsilon, "vertex"][1].value > 0


@pytest.mark.parametrize("regime", ["SB", "LB"])
def test_restarts_and_mixed_precision_hold_the_value(measured, minimizers, mnist1d_train, regime):
    objective, alone = measured[regime, 1e-3, "vertex"]
    many = lbgap.fast_sharpness(objective, epsilon=1e-3, restarts=10)
    again = lbgap.fast_sharpness(objective, epsilon=1e-3, restarts=10)
    assert many.value >= alone.value
    assert torch.equal(many.point, again.point)
    mixed = lbgap.Objective(minimizers[regime], mnist1d_train, precision="mixed")
    fast = lbgap.fast_sharpness(mixed, epsilon=1e-3)
    assert fast.max_loss == float(objective.loss(fast.point))
    assert fast.value == pytest.approx(alone.value, rel=0.02)
    assert math.isfinite(fast.gap)
