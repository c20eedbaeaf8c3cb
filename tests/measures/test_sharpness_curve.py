"""Sharpness curves: they never fall, every point is in its own box, and a separable quadratic has a closed form."""

import importlib
import json
import math

import pytest
import torch
from torch import nn

import lbgap
from lbgap.maximize.region import box

EPSILONS = (1e-4, 5e-4, 2e-3, 1e-2)
QUADRATIC = {"loss": "mse", "precision": "float64"}


@pytest.fixture
def separable():
    """``(model, data, x, scales, residuals)`` with the loss ``mean (a_i w_i - y_i)^2``: one coordinate a sample."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    scales = torch.arange(1, 8, dtype=torch.float64)
    model = nn.Linear(7, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(x[None])
    return model, (scales.diag(), y[:, None]), x, scales, scales * x - y


def hill():
    """``(model, data, loss)``: one parameter at 0, the loss ``2 - (w - 1)^2``, which a box of 2 steps over."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    data = torch.ones(2, 1), torch.zeros(2, 1)
    return model, data, lambda output, _: (2 - (output - 1) ** 2).mean()


@pytest.mark.parametrize("search", [{}, {"method": "lbfgsb", "iterations": 5}, {"restarts": 2, "samples": 500}])
@pytest.mark.parametrize("regime", ["SB", "LB"])
def test_it_never_falls_and_every_point_is_in_its_own_box(minimizers, mnist1d_train, regime, search):
    objective = lbgap.Objective(minimizers[regime], mnist1d_train)
    curve = lbgap.sharpness_curve(objective, epsilons=EPSILONS, **search)
    assert curve.epsilons == EPSILONS
    assert list(curve.values) == sorted(curve.values)
    assert curve.values[0] > 0
    for epsilon, value, result in zip(EPSILONS, curve.values, curve.results, strict=True):
        assert result.value == value
        assert result.settings["epsilon"] == epsilon
        assert box("keskar", objective.theta, epsilon).excess(result.point) <= 1
        assert float(objective.loss(result.point)) == result.max_loss


@pytest.mark.parametrize("region", ["linf", "keskar"])
def test_a_separable_quadratic(separable, region):
    model, data, x, scales, residuals = separable
    epsilons = (1e-3, 0.1, 2.0)
    curve = lbgap.sharpness_curve(model, data, epsilons, region=region, **QUADRATIC)
    for epsilon, result in zip(epsilons, curve.results, strict=True):
        half_width = epsilon * (x.abs() + 1 if region == "keskar" else torch.ones_like(x))
        exact = float((residuals.abs() + scales * half_width).square().mean())
        assert result.max_loss == pytest.approx(exact, rel=1e-14)  # a sum of 7 squares: a few dozen roundings
        assert result.value == 100 * (result.max_loss - result.base_loss) / (1 + result.base_loss)


def test_what_the_smaller_box_has_counts_in_the_larger_one():
    model, data, loss = hill()
    alone = lbgap.fast_sharpness(model, data, epsilon=2.0, loss=loss, region="linf")
    assert alone.value == 0
    curve = lbgap.sharpness_curve(model, data, (1.0, 2.0), loss=loss, region="linf")
    small, large = curve.results
    assert curve.values == (50.0, 50.0)
    assert torch.equal(large.point, small.point)
    assert (large.max_loss, large.values, large.history) == (small.max_loss, small.values, small.history)
    assert large.status.startswith("the largest loss found is that of the box before, which lies inside this one: ")
    assert math.isnan(large.gap)  # that of the smaller box would not hold here
    assert large.settings["epsilon"] == 2.0
    assert [climb["start"] for climb in large.starts] == ["centre", "given"]


def test_it_goes_on_from_what_the_smaller_box_had():
    model, data, loss = hill()
    curve = lbgap.sharpness_curve(model, data, (1.0, 2.0, 3.0), loss=loss, region="linf")
    assert curve.values == (50.0, 50.0, 50.0)
    assert [r.status.count("the box before") for r in curve.results] == [0, 1, 1]


def test_each_box_starts_from_the_point_before_stretched(minimizers, mnist1d_train, monkeypatch):
    calls = []

    def spy(objective, **options):
        calls.append((options["start"], lbgap.fast_sharpness(objective, **options)))
        return calls[-1][1]

    module = importlib.import_module("lbgap.measures.sharpness_curve")  # whose name the function has too
    monkeypatch.setattr(module, "fast_sharpness", spy)
    objective = lbgap.Objective(minimizers["LB"], mnist1d_train)
    curve = lbgap.sharpness_curve(objective, epsilons=(5e-4, 1e-3))
    (first, small), (second, large) = calls
    assert first is None
    assert torch.equal(second, objective.theta + 2 * (small.point - objective.theta))
    names = [[climb["start"] for climb in result.starts] for result in curve.results]
    assert names == [["centre"], ["centre", "given"]]
    assert (small.settings["start"], large.settings["start"]) == ("centre", "given")


@pytest.mark.parametrize("search", [{}, {"restarts": 2, "seed": 3}, {"method": "scipy", "region": "adaptive"}])
def test_a_single_epsilon_is_fast_sharpness(minimizers, mnist1d_train, search):
    options = {**search, "batch_size": 500, "parameters": "weights"}
    curve = lbgap.sharpness_curve(minimizers["LB"], mnist1d_train, [1e-3], **options)
    direct = lbgap.fast_sharpness(minimizers["LB"], mnist1d_train, epsilon=1e-3, **options)
    assert {**curve.results[0].to_dict(), "seconds": 0} == {**direct.to_dict(), "seconds": 0}
    assert torch.equal(curve.results[0].point, direct.point)
    assert curve.values == (direct.value,)


def test_an_objective_gives_the_same_as_model_and_data(minimizers, mnist1d_train):
    objective = lbgap.Objective(minimizers["LB"], mnist1d_train)
    one = lbgap.sharpness_curve(objective, epsilons=iter(EPSILONS))
    other = lbgap.sharpness_curve(minimizers["LB"], mnist1d_train, EPSILONS)
    assert one.values == other.values
    assert one.evaluations == other.evaluations == objective.evaluations
    assert one.evaluations == sum(result.evaluations for result in one.results)


def test_a_result_is_json_and_readable(minimizers, mnist1d_train):
    curve = lbgap.sharpness_curve(minimizers["SB"], mnist1d_train, EPSILONS)
    found = curve.to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {
        "lower_bound", "value", "status", "status_name", "settings", "epsilons", "values", "evaluations", "seconds",
        "results",
    }  # fmt: skip
    assert found["value"] == curve.value == curve.values[-1] == max(curve.values)
    assert curve.status is curve.results[-1].status
    assert (curve.settings["measure"], curve.settings["epsilon"]) == ("sharpness_curve", list(EPSILONS))
    assert found["lower_bound"] is True
    assert found["epsilons"] == list(EPSILONS)
    assert found["values"] == [result["value"] for result in found["results"]]
    head, *lines = str(curve).splitlines()
    assert head == f"sharpness curve: certified lower bounds up to phi >= {curve.value:.6g} %"
    expected = [f"  epsilon {e:<8g} phi >= {v:.6g} %" for e, v in zip(EPSILONS, curve.values, strict=True)]
    assert lines[: len(EPSILONS)] == expected
    assert lines[-1] == f"  {curve.status}"


def test_the_json_of_a_value_from_a_smaller_box():
    model, data, loss = hill()
    found = lbgap.sharpness_curve(model, data, (1.0, 2.0), loss=loss, region="linf").to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["results"][1]["gap"] is None


@pytest.mark.parametrize(
    ("epsilons", "error", "message"),
    [
        ((), ValueError, r"epsilons must be one or more numbers that increase, got \(\): sort them"),
        ((1e-3, 5e-4), ValueError, r"that increase, got \(0.001, 0.0005\): sort them"),
        ((1e-3, 1e-3), ValueError, "that increase, got"),
        ((0, 1e-3), ValueError, "epsilon must be finite and above zero .*got 0: try 1e-3"),
        ((-1e-3, 1e-3), ValueError, "epsilon must be finite and above zero .*got -0.001"),
        ((1e-3, math.nan), ValueError, "epsilon must be finite .*got nan"),
        ((1e-3, math.inf), ValueError, "epsilon must be finite .*got inf"),
        ("1e-3", TypeError, r"epsilons must be several numbers such as \(5e-4, 1e-3\), got '1e-3'"),
        (1e-3, TypeError, "epsilons must be several numbers .*got 0.001"),
        ((1e-3, "5e-3"), TypeError, "epsilon must be a number, got str"),
        ((True,), TypeError, "epsilon must be a number, got bool"),
    ],
)
def test_epsilons_that_are_none(epsilons, error, message):
    model = nn.Linear(2, 2)
    model.forward = None  # judged before the model is run
    with pytest.raises(error, match=message) as caught:
        lbgap.sharpness_curve(model, None, epsilons)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["start", "subspace", "trials", "epsilon", "restart"])
def test_keywords_of_a_single_search(name):
    message = rf"^sharpness_curve\(\) got an unexpected keyword argument '{name}': beside its own it takes loss, "
    with pytest.raises(TypeError, match=message):
        lbgap.sharpness_curve(nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])), **{name: 2})


def test_an_objective_has_its_options_already(separable):
    objective = lbgap.Objective(*separable[:2], **QUADRATIC)
    with pytest.raises(ValueError, match=r"^loss belong to the Objective"):
        lbgap.sharpness_curve(objective, loss="mse")
    with pytest.raises(TypeError, match="data is missing"):
        lbgap.sharpness_curve(separable[0])
    with pytest.raises(ValueError, match="a curve is one of the full space: pass the objective that the random"):
        lbgap.sharpness_curve(objective.manifold(2))
