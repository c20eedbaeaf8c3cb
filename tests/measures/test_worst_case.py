"""Balls and critical steps, against quadratics whose worst cases are known."""

import math

import pytest
import torch
from torch import nn

import lbgap
from lbgap.measures import ball
from lbgap.system import device as hardware

OPTIONS = {"loss": "mse", "precision": "float64"}


def worst(hessian, gradient, radius):
    """Max of ``g'd + d'Hd / 2`` over ``|d| <= radius`` for a convex one: ``H d + g = l d`` with ``l >= l_max``."""
    values, vectors = torch.linalg.eigh(hessian)
    slopes = vectors.T @ gradient
    low, high = float(values[-1]), float(values[-1] + slopes.norm() / radius)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (slopes / (middle - values)).norm() > radius else (low, middle)
    d = slopes / (high - values)
    return float(slopes @ d + (values * d * d).sum() / 2)


@pytest.mark.parametrize("radius", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize(("adaptive", "eta"), [(False, 0.01), (True, 0.01), (True, 0.0)])
def test_the_worst_case_of_a_quadratic(quadratic, monkeypatch, adaptive, eta, radius):
    model, data, x, hessian, b = quadratic
    scale = x.abs() + eta if adaptive else torch.ones_like(x)
    exact = worst(scale[:, None] * hessian * scale, scale * (hessian @ x - b), radius)
    s = lbgap.ball_sharpness(model, data, radius=radius, adaptive=adaptive, eta=eta, iterations=50, **OPTIONS)
    assert s.rise <= exact * (1 + 1e-9)
    assert s.status.startswith("converged")
    monkeypatch.setattr(ball, "TOLERANCE", 0.0)  # to the last bit, which takes the power method's pace
    s = lbgap.ball_sharpness(model, data, radius=radius, adaptive=adaptive, eta=eta, iterations=1000, **OPTIONS)
    assert s.rise == pytest.approx(exact, rel=1e-9)  # the difference of losses 1e6 times larger than the smallest rise
    assert float(((s.point - x) / scale).norm()) <= radius * (1 + 1e-12)
    assert s.value == pytest.approx(100 * s.rise / (1 + s.base_loss), rel=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_first_step_is_that_of_sam(quadratic, adaptive):
    model, data, x, hessian, b = quadratic
    scale = x.abs() + 0.01 if adaptive else torch.ones_like(x)
    gradient = hessian @ x - b
    s = lbgap.ball_sharpness(model, data, radius=0.05, adaptive=adaptive, iterations=1, **OPTIONS)
    expected = x + 0.05 * scale**2 * gradient / (scale * gradient).norm()
    torch.testing.assert_close(s.point, expected, rtol=1e-12, atol=0)
    assert s.evaluations == 4  # f(x), its gradient, and both points once more in full precision


def test_the_loss_at_the_point_is_the_one_reported(minimizers, mnist1d_train):
    for adaptive in (False, True):
        objective = lbgap.Objective(minimizers["LB"], mnist1d_train)
        s = lbgap.ball_sharpness(objective, radius=0.3, adaptive=adaptive, restarts=2)
        assert float(objective.loss(s.point)) == s.max_loss > s.base_loss
        assert len(s.starts) == 3
        assert s.max_loss >= max(climb["loss"] for climb in s.starts)
        assert str(s).startswith("phi >= ")


def test_where_the_gradient_is_zero_restarts_find_the_rise(quadratic):
    model, data, _, hessian, b = quadratic
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(hessian, b)[None])
    objective = lbgap.Objective(model, data, **OPTIONS)
    centre = objective.theta
    objective.loss_and_gradient = lambda point, out=None: (objective.loss(point), torch.zeros_like(point))
    s = lbgap.ball_sharpness(objective)
    assert (s.rise, s.gap) == (0, 0)
    assert torch.equal(s.point, centre)
    assert "the gradient is exactly zero; try restarts" in s.status
    s = lbgap.ball_sharpness(objective, radius=0.1, restarts=1, iterations=200)
    top = float(torch.linalg.eigvalsh(hessian)[-1])
    # It stops where first order promises less than 0.05 % of the rise; the error is of second order.
    assert s.rise == pytest.approx(0.1**2 * top / 2, rel=1e-3)


def test_a_ball_narrower_than_the_numbers():
    model = nn.Linear(2, 2)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    s = lbgap.ball_sharpness(model, (torch.eye(2), torch.tensor([0, 1])), radius=1e-12)
    assert s.rise == 0
    assert "narrower than the spacing" in s.status


def test_a_start_without_a_finite_loss_is_a_result():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)

    def cliff(output, target):
        return torch.where(output.mean() > 0.05, math.inf, 1 + output.mean())

    s = lbgap.ball_sharpness(model, (torch.ones(3, 1), torch.zeros(3, 1)), loss=cliff, radius=0.1, restarts=8)
    assert s.rise == 0
    assert any(climb["status"].startswith("could not start") for climb in s.starts)
    assert None in [climb["loss"] for climb in s.to_dict()["starts"]]


@pytest.mark.skipif(not hardware.bfloat16_products("cpu"), reason="no bfloat16 matrix products on this processor")
def test_mixed_precision_reports_float32(minimizers, mnist1d_train):
    objective = lbgap.Objective(minimizers["SB"], mnist1d_train)
    s = lbgap.ball_sharpness(minimizers["SB"], mnist1d_train, radius=0.3, precision="mixed")
    assert float(objective.loss(s.point)) == s.max_loss


def test_a_loss_below_minus_one_has_no_phi():
    with pytest.raises(ValueError, match=r"phi divides by 1 \+ loss"):
        lbgap.ball_sharpness(nn.Linear(2, 1), (torch.eye(2), torch.eye(2)), loss=lambda o, _: 0 * o.mean() - 2)


# Critical sharpness.


@pytest.mark.parametrize("initial", [None, 1e-6, 1e4])
def test_the_critical_step_of_a_quadratic(quadratic, initial):
    model, data, x, hessian, b = quadratic
    g = hessian @ x - b
    exact = float(2 * g @ g / (g @ hessian @ g))
    m = lbgap.critical_sharpness(model, data, initial=initial, tolerance=1e-6, **OPTIONS)
    assert m.details["below"] <= exact * (1 + 1e-9)  # the loss is flat to rounding this close to the crossing
    assert m.details["above"] >= exact * (1 - 1e-9)
    assert m.details["above"] / m.details["below"] - 1 <= 1e-6
    assert m.value == pytest.approx(2 / exact, rel=1e-6)
    assert m.details["slope"] == pytest.approx(-float(g @ g))
    assert math.isnan(m.standard_error)


def test_a_default_call_takes_few_passes(quadratic, minimizers, mnist1d_train):
    assert lbgap.critical_sharpness(*quadratic[:2], **OPTIONS).evaluations <= 10
    m = lbgap.critical_sharpness(minimizers["SB"], mnist1d_train)
    assert m.evaluations <= 15
    assert 0 < m.value < math.inf


def test_a_direction_of_ones_own(quadratic):
    model, data, x, hessian, b = quadratic
    g = hessian @ x - b
    d = -torch.linalg.solve(hessian + torch.eye(6), g)
    m = lbgap.critical_sharpness(model, data, d, tolerance=1e-6, **OPTIONS)
    assert m.details["step"] == pytest.approx(float(-2 * g @ d / (d @ hessian @ d)), rel=1e-6)
    assert m.settings["direction"] == "given"
    longer = lbgap.critical_sharpness(model, data, 4 * d, tolerance=1e-6, **OPTIONS)
    assert longer.value == pytest.approx(4 * m.value, rel=1e-6)
    up = lbgap.critical_sharpness(model, data, -d, **OPTIONS)
    assert up.value == math.inf
    assert up.to_dict()["value"] is None
    assert "rises at once" in up.status


def test_no_step_that_raises_the_loss():
    model = nn.Linear(2, 2)  # from zero the gradient step separates the two samples, however long
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    m = lbgap.critical_sharpness(model, (torch.eye(2), torch.tensor([0, 1])), doublings=5, initial=1.0)
    assert math.isnan(m.value)
    assert m.status == "no step up to 32 raises the loss: try more doublings, or a larger initial"


def test_no_gradient_no_step():
    model = nn.Linear(2, 1)
    m = lbgap.critical_sharpness(model, (torch.eye(2), torch.ones(2, 1)), loss=lambda o, _: 0 * o.mean())
    assert math.isnan(m.value)
    assert "the gradient is exactly zero" in m.status


def test_a_loss_of_infinity_counts_as_a_rise():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)

    def cliff(output, target):
        return torch.where(output.mean() > 0.5, math.inf, 1 - output.mean())

    data = torch.ones(3, 1), torch.zeros(3, 1)
    m = lbgap.critical_sharpness(model, data, loss=cliff, tolerance=1e-3)
    assert m.details["step"] == pytest.approx(0.5, rel=1e-3)
