"""Batch sharpness and noise scale against all batches, single gradients and dense Hessians."""

import itertools
import math
import statistics

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lbgap
from lbgap import Objective

SAMPLES = 8


def model_and_data(samples=SAMPLES):
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, (torch.randn(samples, 3, generator=generator, dtype=torch.float64), torch.arange(samples) % 2)


def derivatives(chosen):
    """Gradient and dense Hessian of the mean loss of some samples."""
    model, (inputs, targets) = model_and_data()
    names = dict(model.named_parameters())
    theta = torch.cat([p.detach().flatten() for p in names.values()])

    def loss(point):
        parts = zip(names, point.split([p.numel() for p in names.values()]), strict=True)
        shaped = {name: part.view_as(names[name]) for name, part in parts}
        return F.cross_entropy(torch.func.functional_call(model, shaped, (inputs[chosen],)), targets[chosen])

    return torch.func.grad(loss)(theta), torch.autograd.functional.hessian(loss, theta)


def every_batch(size):
    return [list(chosen) for chosen in itertools.combinations(range(SAMPLES), size)]


@pytest.mark.parametrize("size", [1, 3])
def test_batch_sharpness_against_every_batch(size):
    pairs = [derivatives(chosen) for chosen in every_batch(size)]
    curvature = [float(g @ h @ g) for g, h in pairs]
    squares = [float(g @ g) for g, _ in pairs]
    expected = statistics.fmean(c / s for c, s in zip(curvature, squares, strict=True))
    model, data = model_and_data()
    found = lbgap.batch_sharpness(model, data, batch=size, precision="float64", relative_error=None, draws=300)
    assert abs(found.value - expected) < 4 * found.standard_error
    ratio = statistics.fmean(curvature) / statistics.fmean(squares)
    assert found.details["ratio_of_means"] == pytest.approx(ratio, rel=0.2)
    assert found.details["gradient_squared"] == pytest.approx(statistics.fmean(squares), rel=0.2)


def test_the_batch_of_all_is_exact():
    gradient, hessian = derivatives(list(range(SAMPLES)))
    model, data = model_and_data()
    found = lbgap.batch_sharpness(model, data, batch=SAMPLES, precision="float64")
    assert found.value == pytest.approx(float(gradient @ hessian @ gradient / (gradient @ gradient)), rel=1e-10)
    assert found.details["draws"] == 1
    assert math.isnan(found.standard_error)
    assert found.status == "exact, to rounding: the batch is all of the data"


def exact_trace():
    gradients = torch.stack([derivatives([index])[0] for index in range(SAMPLES)])
    return float(gradients.var(0).sum()), float(gradients.mean(0).square().sum())


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("population", ["data", "distribution"])
def test_noise_scale_against_single_gradients(batch, population):
    trace, squared = exact_trace()
    model, data = model_and_data()
    options = {"batch": batch, "population": population, "precision": "float64", "relative_error": None}
    found = lbgap.noise_scale(model, data, draws=400, **options)
    squared -= trace / SAMPLES if population == "distribution" else 0
    assert abs(found.details["trace"] - trace) < 4 * found.details["trace_standard_error"]
    if squared > 0:
        assert abs(found.value - trace / squared) < 4 * found.standard_error
    else:
        assert math.isnan(found.value)
        assert found.status.startswith("the squared gradient cannot be told from zero")


@pytest.mark.parametrize("batch", [1, 3])
def test_the_estimate_of_the_trace_is_unbiased(batch):
    """The mean over every batch there is, each as likely as any other."""
    trace, _ = exact_trace()
    mean = derivatives(list(range(SAMPLES)))[0]
    each = [
        float((derivatives(chosen)[0] - mean).square().sum()) / (1 / batch - 1 / SAMPLES)
        for chosen in every_batch(batch)
    ]
    assert statistics.fmean(each) == pytest.approx(trace, rel=1e-10)


def test_the_error_of_the_ratio_is_that_of_many_seeds():
    model, (inputs, targets) = model_and_data(64)
    objective = Objective(model, (inputs, torch.zeros_like(targets)), precision="float64")
    for population in ("data", "distribution"):
        found = [
            lbgap.noise_scale(objective, batch=8, population=population, relative_error=None, draws=60, seed=seed)
            for seed in range(60)
        ]
        spread = statistics.stdev(each.value for each in found)
        assert statistics.fmean(each.standard_error for each in found) == pytest.approx(spread, rel=0.3)


@pytest.mark.parametrize("measure", [lbgap.batch_sharpness, lbgap.noise_scale])
class TestRules:
    def test_stops_by_its_rule(self, measure):
        model, data = model_and_data(64)
        found = measure(model, data, batch=8, relative_error=0.1, draws=5000, precision="float64")
        assert 8 <= found.details["draws"] < 5000
        assert "within the 10 % asked for" in found.status

    def test_the_limit(self, measure):
        model, data = model_and_data()
        found = measure(model, data, batch=2, relative_error=1e-9, draws=11)
        assert found.details["draws"] == 11
        assert found.status.startswith("11 draws, the limit: the standard error")

    def test_repeats(self, measure):
        model, data = model_and_data()
        one, again, other = (measure(model, data, batch=2, seed=seed, draws=9).value for seed in (0, 0, 1))
        assert one == again != other

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"batch": 0}, ValueError, "batch must be at least 1"),
            ({"batch": 9}, ValueError, "batch must be between 1 and [78], got 9"),
            (
                {"batch": 2.0},
                ValueError,
                "batch as a float is a share of the samples, above 0 and at most all, got 2.0",
            ),
            ({"batch": 2, "draws": 1}, ValueError, "draws must be at least 2"),
            ({"batch": 2, "relative_error": -1}, ValueError, "relative_error must be finite and above zero"),
            ({"batch": 2, "seed": -1}, ValueError, "seed must be at least 0"),
            ({"batch": 2, "eps": 1}, TypeError, "unexpected keyword argument 'eps'"),
        ],
    )
    def test_what_is_wrong_is_said(self, measure, options, error, message):
        with pytest.raises(error, match=message) as caught:
            measure(*model_and_data(), **options)
        assert "\n" not in str(caught.value)


def test_no_gradient_no_direction():
    model = nn.Linear(3, 1).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    data = torch.randn(6, 3, dtype=torch.float64), torch.zeros(6, 1, dtype=torch.float64)
    found = lbgap.batch_sharpness(model, data, batch=2, loss="mse", precision="float64")
    assert math.isnan(found.value)
    assert found.status.startswith("the gradient of a batch is exactly zero")


def test_populations_are_two():
    with pytest.raises(ValueError, match="population must be 'data' or 'distribution', got 'all'"):
        lbgap.noise_scale(*model_and_data(), population="all")


class TestBatchNorm:
    def objective(self):
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
        inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        return Objective(model, (inputs, torch.arange(20) % 2), batch_norm="batch", batch_size=10)

    def test_a_batch_brings_its_own_statistics(self):
        objective = self.objective()
        part = objective.part(torch.arange(5))
        model, data = objective._evaluator.flat.module, objective._evaluator.data.pool.rows(slice(5))
        alone = Objective(model, tuple(data), batch_norm="batch", batch_size=5)
        assert float(part.loss(objective.theta)) == pytest.approx(float(alone.loss(objective.theta)), rel=1e-6)
        found = lbgap.batch_sharpness(objective, batch=5, draws=8)
        assert math.isfinite(found.value)
        assert found.standard_error > 0

    def test_samples_that_depend_on_each_other_have_no_noise_scale(self):
        with pytest.raises(ValueError, match="do not depend on each other: use batch_norm='eval'"):
            lbgap.noise_scale(self.objective(), batch=5)

    @pytest.mark.parametrize("count", [1, 11])
    def test_a_batch_needs_statistics(self, count):
        with pytest.raises(ValueError, match="needs 2 to batch_size = 10 samples for a batch, got"):
            self.objective().part(torch.arange(count))


@pytest.mark.parametrize("chosen", [torch.tensor([], dtype=torch.int64), torch.tensor([8]), torch.tensor([[0]])])
def test_a_part_is_of_these_samples(chosen):
    model, data = model_and_data()
    with pytest.raises((TypeError, ValueError), match="chosen must be one or more indices below 8"):
        Objective(model, data).part(chosen)


WEIGHTS = torch.tensor([1.0, 5.0], dtype=torch.float64)


def weighted_terms(targets):
    """The gradients of the samples' terms ``w_i l_i N / W``, ``(N, n)``."""
    model, (inputs, _) = model_and_data()
    names = {name: value.detach() for name, value in model.named_parameters()}

    def terms(*values):
        output = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (inputs,))
        each = F.cross_entropy(output, targets, weight=WEIGHTS, reduction="none")
        return each * SAMPLES / (WEIGHTS[targets.clamp_min(0)] * (targets >= 0)).sum()

    found = torch.autograd.functional.jacobian(terms, tuple(names.values()))
    return torch.cat([part.reshape(SAMPLES, -1) for part in found], 1)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_noise_of_weighted_and_ignored_samples(batch):
    model, (inputs, targets) = model_and_data()
    targets = targets.where(torch.arange(SAMPLES) < 5, -100)
    gradients = weighted_terms(targets)
    mean = gradients.mean(0)
    options = {"batch": batch, "precision": "float64", "relative_error": None, "draws": 400}
    found = [
        lbgap.noise_scale(model, (inputs, targets), loss=nn.CrossEntropyLoss(weight=WEIGHTS, reduction=how), **options)
        for how in ("mean", "sum")
    ]
    assert found[0].value == pytest.approx(found[1].value, rel=1e-10)
    assert found[0].details["gradient_squared"] == pytest.approx(float(mean.square().sum()), rel=1e-10)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randperm(SAMPLES, generator=generator)[:batch] for _ in range(400)]
    traces = [float((gradients[some].mean(0) - mean).square().sum()) / (1 / batch - 1 / SAMPLES) for some in drawn]
    assert found[0].details["trace"] == pytest.approx(statistics.fmean(traces), rel=1e-10)
    exact = float(gradients.var(0).sum())
    assert abs(found[0].details["trace"] - exact) < 4 * found[0].details["trace_standard_error"]


def test_batches_of_ignored_samples_are_left_out():
    model, (inputs, targets) = model_and_data()
    ignored = targets.where(torch.arange(SAMPLES) < 2, -100)
    found = lbgap.batch_sharpness(
        model, (inputs, ignored), batch=1, precision="float64", relative_error=None, draws=400
    )
    pairs = [derivatives([index]) for index in (0, 1)]
    expected = statistics.fmean(float(g @ h @ g) / float(g @ g) for g, h in pairs)
    assert found.details["draws"] + found.details["empty"] == 400
    assert found.details["empty"] == pytest.approx(300, abs=40)
    assert abs(found.value - expected) < 4 * found.standard_error
    message = "batch_sharpness needs two batches with samples that count, got [01] in 2 draws of 1 samples"
    with pytest.raises(ValueError, match=message):
        lbgap.batch_sharpness(model, (inputs, ignored), batch=1, draws=2)
