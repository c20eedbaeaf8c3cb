"""The curve through two minimizers, barriers and widths, and the modes of batch-norm."""

import json
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap import Objective
from lbgap.landscape.curve import turn
from lbgap.landscape.shape import shape_of

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(seed, width=8):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        norm = nn.BatchNorm1d(width)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        return nn.Sequential(nn.Linear(6, width), norm, nn.ReLU(), nn.Linear(width, 3))


def make_data(samples=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 6, generator=generator), torch.randint(3, (samples,), generator=generator)


def combined(small, large, c, s):
    """A third model, in float64; a variance no lower than zero."""
    model = make_model(0).double()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(s * large.state_dict()[name].double() + c * small.state_dict()[name].double())
                if name.endswith("running_var"):
                    value.clamp_min_(0)
    return model.eval()


class TestCurve:
    @pytest.mark.parametrize("batch_norm", ["eval", "batch"])
    def test_points_are_those_of_the_formula(self, batch_norm):
        small, large, (inputs, targets) = make_model(1), make_model(2), make_data()
        found = lbgap.curve(
            small, large, (inputs, targets), points=7, batch_norm=batch_norm, precision="float64", batch_size=50
        )
        for alpha, loss, accuracy in zip(found.alphas, found.train_loss, found.train_accuracy, strict=True):
            model = combined(small, large, math.cos(alpha * math.pi / 2), math.sin(alpha * math.pi / 2))
            model[1].train(batch_norm == "batch")
            outputs = model(inputs.double())
            assert loss == pytest.approx(F.cross_entropy(outputs, targets).item(), rel=1e-9)
            assert accuracy == pytest.approx(100 * (outputs.argmax(1) == targets).double().mean().item())
        assert found.settings["measure"] == "curve"

    @pytest.mark.parametrize("points", [2, 3, 4, 31, 257])
    def test_the_ends_are_the_models_own_losses_to_the_bit(self, points):
        small, large, data, test = make_model(1), make_model(2), make_data(), make_data(20, seed=1)
        found = lbgap.curve(small, large, data, test_data=test, points=points, batch_norm="eval", low=0, high=1)
        for index, model in ((0, small), (-1, large)):
            for samples, losses in ((data, found.train_loss), (test, found.test_loss)):
                objective = Objective(model, samples)
                assert losses[index] == float(objective.loss(objective.theta))

    def test_a_quarter_turn_is_exact(self):
        assert [turn(float(alpha)) for alpha in range(-1, 4)] == [(0, -1), (1, 0), (0, 1), (-1, 0), (0, -1)]
        assert turn(0.5) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))

    def test_what_it_refuses(self):
        with pytest.raises(ValueError, match=r"parameter '0.weight' is \(8, 6\) in one and \(9, 6\) in the other"):
            lbgap.curve(make_model(1), make_model(2, width=9), make_data())
        with pytest.raises(ValueError, match="the same parameters"):
            lbgap.curve(make_model(1), make_model(1), make_data())
        with pytest.raises(ValueError, match="low and high must be finite with low < high, got nan and 2"):
            lbgap.curve(make_model(1), make_model(2), make_data(), low=math.nan)
        broken = make_model(2)
        broken[3].bias.data[1] = math.nan
        with pytest.raises(ValueError, match=r"parameter '3.bias' of the large-batch model holds NaN or infinity"):
            lbgap.curve(make_model(1), broken, make_data())


class TestBatchNorm:
    def test_frozen_statistics_are_those_of_the_small_batch_model(self):
        small, large, data = make_model(1), make_model(2), make_data()
        found = lbgap.line(small, large, data, points=3, low=0, high=1, batch_norm="freeze", precision="float64")
        for alpha, loss in zip(found.alphas, found.train_loss, strict=True):
            model = combined(small, large, 1 - alpha, alpha)
            model[1].running_mean.copy_(small[1].running_mean)
            model[1].running_var.copy_(small[1].running_var)
            assert loss == pytest.approx(F.cross_entropy(model(data[0].double()), data[1]).item(), rel=1e-12)
        assert found.settings["batch_norm"] == "freeze"
        assert found.settings["ends_checked"].startswith("small")

    def test_recalibrated_statistics_are_those_of_the_training_data_at_each_point(self):
        small, large, data, test = make_model(1), make_model(2), make_data(), make_data(20, seed=1)
        options = {"points": 3, "low": 0, "high": 1, "batch_norm": "recalibrate", "precision": "float64"}
        found = lbgap.line(small, large, data, test_data=test, **options)
        for index, alpha in enumerate(found.alphas):
            model = combined(small, large, 1 - alpha, alpha)
            hidden = model[0](data[0].double()).detach()
            model[1].running_mean.copy_(hidden.mean(0))
            model[1].running_var.copy_(hidden.var(0))
            for (inputs, targets), losses in ((data, found.train_loss), (test, found.test_loss)):
                expected = F.cross_entropy(model(inputs.double()), targets).item()
                assert losses[index] == pytest.approx(expected, rel=1e-10)
        assert found.settings["batch_norm"] == "recalibrate"
        assert found.settings["ends_checked"].startswith("none")

    def test_estimating_statistics_leaves_those_of_the_replica(self):
        objective = Objective(make_model(1), make_data())
        before = objective.loss(objective.theta)
        statistics = objective.statistics(2 * objective.theta)
        assert sorted(statistics) == ["1.running_mean", "1.running_var"]
        assert objective.loss(objective.theta) == before
        with pytest.raises(ValueError, match="one sample has no statistics"):
            Objective(make_model(1), make_data(1)).statistics(objective.theta)

    def test_without_batch_norm_there_is_no_mode(self):
        found = lbgap.line(nn.Linear(6, 3), nn.Linear(6, 3), make_data(), points=2, batch_norm="recalibrate")
        assert found.settings["batch_norm"] == "none in the model"

    def test_a_model_that_keeps_more_than_its_parameters(self):
        class Stretched(nn.Module):
            def __init__(self, factor):
                super().__init__()
                self.layer, self.factor = nn.Linear(6, 3), factor

            def forward(self, x):
                return self.factor * self.layer(x)

        with pytest.raises(ValueError, match=r"at alpha = 1 the loss of a few samples is .* but the large-batch model"):
            lbgap.line(Stretched(1.0), Stretched(3.0), make_data())

    def test_mixed_precision_is_close_and_recorded(self, monkeypatch):
        monkeypatch.setattr("lbgap.system.device.bfloat16_products", lambda _: True)
        small, large, data = make_model(1), make_model(2), make_data()
        mixed = lbgap.line(small, large, data, points=9, precision="mixed")
        exact = lbgap.line(small, large, data, points=9)
        assert mixed.train_loss == pytest.approx(exact.train_loss, rel=0.03)
        assert mixed.settings["precision"] == "mixed"


class TestShape:
    def test_of_two_parabolas(self):
        # Minima of 0 at 0 and of 1 at 1: x^2 / 4 and 1 + (x - 1)^2 meet nowhere between; a tent of height 3 does.
        alphas = [-2, -1, 0, 0.25, 0.5, 0.75, 1, 2]
        losses = [4, 1, 0, 1.5, 3, 2, 1, 1.05]
        found = shape_of(alphas, losses, (0, 1), 0.5)
        assert (found.barrier, found.barrier_alpha) == (2.5, 0.5)
        assert found.small_outer == pytest.approx(0.5)
        assert found.small_inner == pytest.approx(0.25 / 3)
        assert found.large_inner == pytest.approx(0.125)
        assert found.large_outer is None

    def test_without_a_barrier(self):
        found = shape_of([0, 0.5, 1], [1, 0.2, 1], (1, 1), 0.1)
        assert (found.barrier, found.barrier_alpha) == (0, 0)
        assert found.small_outer is found.small_inner is found.large_inner is found.large_outer is None

    def test_ends_that_are_no_points_count_too(self):
        found = shape_of([-0.5, 0.5, 1.5], [2, 2, 2], (0, 0), 1)
        assert found.barrier == 2
        widths = (found.small_outer, found.small_inner, found.large_inner, found.large_outer)
        assert widths == pytest.approx((0.25,) * 4)

    def test_a_loss_that_overflows_is_a_barrier(self):
        for bad in (math.inf, math.nan):
            found = shape_of([0, 0.5, 1], [0, bad, 0], (0, 0), 1)
            assert found.barrier == math.inf
            assert (found.small_inner, found.large_inner) == (0.5, 0.5)
            json.dumps(found.to_dict(), allow_nan=False)

    def test_nothing_is_said_about_what_is_not_known(self):
        found = shape_of([-1, 0, 1, 2], [1, 0, 0, 1], (0, 0), 0.5)
        assert math.isnan(found.barrier)
        assert math.isnan(found.barrier_alpha)
        assert found.large_outer == 0.5
        for bad in (math.inf, math.nan):
            found = shape_of([0, 0.5, 1], [bad, 2, 0], (bad, 0), 1)
            assert math.isnan(found.barrier)
            assert math.isnan(found.small_inner)
            assert found.large_inner == 0.25
            assert found.to_dict()["barrier"] is None

    def test_in_the_result(self):
        found = lbgap.line(make_model(1), make_model(2), make_data(), test_data=make_data(20), points=31, rise=0.05)
        at = dict(zip(found.alphas, found.train_loss, strict=True))
        heights = [loss - (1 - a) * at[0] - a * at[1] for a, loss in at.items() if 0 <= a <= 1]
        assert found.shape.barrier == pytest.approx(max(heights))
        assert found.to_dict()["test_shape"]["rise"] == 0.05
        assert all(one < other for one, other in pairwise(found.alphas))
