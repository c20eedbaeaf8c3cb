"""Both sides of a minimizer: functions with known sides, indices, names, infinities, chunks, and what is refused."""

import importlib
import json
import math

import pytest
import torch
from torch import nn

import lbgap
from lbgap import Objective

pytestmark = pytest.mark.usefixtures("one_thread")
LADDER = (0.01, 0.1, 1.0)


class Valley(Objective):
    """``sum of a_i x_i^2 ahead of zero, b_i x_i^2 behind it``, at zero; it notes how many points came at once."""

    def __init__(self, ahead, behind, precision="float64", base=0.0):
        n = len(ahead)
        with torch.random.fork_rng([]):
            model = nn.Linear(n, 1, bias=False)
        nn.init.zeros_(model.weight)
        super().__init__(model, (torch.zeros(2, n), torch.zeros(2, 1)), loss="mse", precision=precision)
        self.ahead, self.behind = (torch.tensor(each, dtype=torch.float64) for each in (ahead, behind))
        self.base, self.calls = base, []

    def losses(self, points):
        self.calls.append(len(points))
        x = points.double()
        return self.base + (torch.where(x > 0, self.ahead, self.behind) * x.square()).sum(1)

    def loss(self, theta):
        return self.losses(theta[None])[0]

    def hvp(self, theta, vectors, *, kind="hessian"):
        return vectors * (self.ahead + self.behind).to(vectors)


def axes(n):
    return {f"axis {i}": row for i, row in enumerate(torch.eye(n, dtype=torch.float64))}


def measure(objective, directions=None, **options):
    options = {"top": 0, "random": 0, "distances": LADDER, **options}
    return lbgap.asymmetry(objective, directions=directions, **options)


def test_the_sides_of_a_one_sided_quadratic():
    found = measure(Valley([3.0, 1.0, 0.0, 2.0], [1.0, 1.0, 5.0, 0.0]), axes(4))
    assert found.index == pytest.approx((0.5, 0.0, -1.0, 1.0))
    assert found.value == pytest.approx(2.5 / 4)
    assert found.sharpness_ahead[0] == pytest.approx([300 * r**2 for r in LADDER])
    assert found.sharpness_behind[0] == pytest.approx([100 * r**2 for r in LADDER])
    assert found.indices[0] == pytest.approx((0.5,) * 3)
    assert found.ahead[2] == (0.0,) * 3
    assert found.status == "along each direction the loss rises on a side"
    assert found.evaluations == 0  # this objective counts none


def test_sharpness_is_relative_to_the_loss():
    found = measure(Valley([3.0], [1.0], base=2.0), axes(1))
    assert found.sharpness_ahead[0] == pytest.approx([100 * r**2 for r in LADDER])
    assert found.base_loss == 2


def test_softplus_against_its_closed_form():
    """One input of one and no target: the loss is softplus(w), steep ahead and flat behind."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    data = torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)

    def loss(output, target):
        return nn.functional.softplus(output).mean()

    direction = {"w": torch.ones(1)}
    found = lbgap.asymmetry(model, data, direction, top=0, random=0, distances=LADDER, loss=loss, precision="float64")
    base = math.log(2)
    for r, ahead, behind in zip(LADDER, found.ahead[0], found.behind[0], strict=True):
        assert ahead == pytest.approx(math.log1p(math.exp(r)))
        assert behind == pytest.approx(math.log1p(math.exp(-r)))
    rise = 100 * (math.log1p(math.exp(1)) - base) / (1 + base)
    assert found.sharpness_ahead[0][-1] == pytest.approx(rise)
    assert found.sharpness_behind[0] == (0.0,) * 3
    assert found.index == (1.0,)
    assert found.evaluations == 1 + 2 * len(LADDER)


def test_turning_a_direction_turns_its_index():
    objective = Valley([3.0, 1.0], [1.0, 2.0])
    there, back = torch.tensor([2.0, 1.0]), torch.tensor([-4.0, -2.0])
    found = measure(objective, {"there": there, "back": back})
    assert found.index[0] == pytest.approx(-found.index[1])
    assert found.sharpness_ahead[0] == pytest.approx(found.sharpness_behind[1])


def test_eigenvectors_and_random_directions_are_added():
    objective = Valley([3.0, 1.0, 9.0], [1.0, 1.0, 1.0])
    found = measure(objective, {"mine": torch.ones(3)}, top=2, random=2)
    assert found.names == ("mine", "top 1", "top 2", "random 1", "random 2")
    assert found.index[1] == pytest.approx(0.8, abs=1e-2)  # the third axis, its largest entry positive
    assert found.index[2] == pytest.approx(0.5, abs=1e-2)
    assert measure(objective, top=2, random=2).index == found.index[1:]
    assert measure(objective, top=2, random=2, seed=1).index[2:] != found.index[3:]


def test_a_side_that_overflows_is_infinitely_sharp():
    class Broken(Valley):
        def losses(self, points):
            values = super().losses(points)
            x = points[:, 0]
            return torch.where(x > 0.5, math.inf, torch.where(x < -0.05, math.nan, values))

    found = measure(Broken([1.0], [1.0]), axes(1), distances=(0.01, 0.1, 0.2, 1.0))
    assert found.sharpness_ahead[0] == pytest.approx((0.01, 1.0, 4.0, math.inf))
    assert found.sharpness_behind[0] == pytest.approx((0.01, math.inf, math.inf, math.inf))
    assert found.indices[0] == (0.0, -1.0, -1.0, 0.0)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["sharpness_ahead"][0][-1] is None


def test_a_rise_that_is_rounding_is_none():
    class Noisy(Valley):
        def losses(self, points):
            return super().losses(points) + 1e-7 * points.double().sum(1).sign()

    found = measure(Noisy([0.0], [0.0], "float32", base=1.0), {"x": torch.ones(1)})
    assert found.index == (0.0,)
    assert found.status == "the loss rises on neither side along x: try larger distances"


def test_sharpness_never_falls_with_the_distance():
    class Wave(Valley):
        def losses(self, points):
            return points.double()[:, 0].mul(6).sin().square()

    found = measure(Wave([1.0], [1.0]), axes(1), distances=(0.1, 0.25, 0.5, 0.75))
    assert list(found.sharpness_ahead[0]) == sorted(found.sharpness_ahead[0])
    assert found.ahead[0][2] < found.ahead[0][1]


def test_points_are_evaluated_in_chunks(monkeypatch):
    objective = Valley([3.0, 1.0], [1.0, 2.0])
    whole = measure(objective, axes(2))
    assert objective.calls == [1, 6, 6]
    monkeypatch.setattr(importlib.import_module("lbgap.measures.asymmetry"), "LARGEST", 8)
    objective.calls.clear()
    parts = measure(objective, axes(2))
    assert objective.calls == [1, 4, 2, 4, 2]
    assert (parts.ahead, parts.behind) == (whole.ahead, whole.behind)


def test_a_network(minimizers, mnist1d_train):
    model = minimizers["LB"]
    objective = Objective(model, mnist1d_train)
    other = torch.cat([p.detach().flatten() for p in minimizers["SB"].parameters()])
    found = lbgap.asymmetry(objective, directions={"to SB": other - objective.theta}, top=2, random=1)
    assert len(found.distances) == 13
    assert found.distances[-1] == pytest.approx(float(objective.theta.norm()))
    assert all(-1 <= index <= 1 for index in found.index)
    assert found.sharpness_ahead[1][3] > found.sharpness_ahead[3][3]  # an eigenvector against a random direction
    assert str(found).startswith(f"asymmetry of a minimizer: {found.value:.6g}, at a loss of ")
    point = objective.theta + found.distances[5] * (other - objective.theta) / (other - objective.theta).norm()
    assert found.ahead[0][5] == pytest.approx(float(objective.loss(point)), rel=1e-4)


REFUSED = [
    ({}, ValueError, "asymmetry needs a direction: give directions, top or random"),
    ({"directions": [torch.ones(2)]}, TypeError, "directions must map names to tensors"),
    ({"directions": {"a": [1.0, 2.0]}}, TypeError, "directions must map names to tensors"),
    ({"directions": {"a": torch.ones(3)}}, ValueError, r"direction 'a' must be \(2,\), got \(3,\)"),
    (
        {"directions": {"a": torch.zeros(2)}},
        ValueError,
        "direction 'a' must be finite and not zero, got one of length 0",
    ),
    ({"directions": {"a": torch.tensor([1, math.nan])}}, ValueError, "direction 'a' must be finite and not zero"),
    (
        {"directions": {"random 1": torch.ones(2)}, "random": 1},
        ValueError,
        "the name 'random 1' is that of a direction",
    ),
    ({"random": 1, "distances": ()}, ValueError, r"distances must be one or more numbers that increase, got \[\]"),
    ({"random": 1, "distances": (0.1, 0.1)}, ValueError, "distances must be one or more numbers that increase"),
    ({"random": 1, "distances": (0.0, 0.1)}, ValueError, "a distance must be finite and above zero, got 0.0"),
    ({"random": 1, "distances": ("far",)}, TypeError, "a distance must be a number, got str"),
    ({"top": -1}, ValueError, "top must be at least 0"),
    ({"top": 3}, ValueError, r"k must be at most .*, 2, got 3"),
    ({"random": 1.5}, TypeError, "random must be a whole number, got 1.5"),
    ({"random": 1, "seed": -1}, ValueError, "seed must be at least 0"),
    ({"random": 1, "progress": 2}, TypeError, "progress must be True, False or a function of a Progress, got 2"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_what_is_wrong_is_said(options, error, message):
    with pytest.raises(error, match=message) as caught:
        measure(Valley([1.0, 2.0], [1.0, 2.0]), **options)
    assert "\n" not in str(caught.value)


def test_a_loss_that_sharpness_cannot_be_divided_by():
    with pytest.raises(ValueError, match="divides by 1 \\+ loss, and the loss at the minimizer is -1: add a constant"):
        measure(Valley([1.0], [1.0], base=-1.0), random=1)
