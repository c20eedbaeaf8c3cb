"""What holds for each landscape: its result, an objective in place of model and data, progress, and what is refused."""

import json
import math
import pickle

import pytest
import torch
from torch import nn

import lbgap
from lbgap import Objective
from lbgap.result import Result
from lbgap.status import SENTENCES
from lbgap.system.progress import Progress

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(seed, norm=True):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        layers = [nn.Linear(6, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Linear(8, 3)]
        if norm:
            nn.init.normal_(layers[1].running_mean)
            nn.init.uniform_(layers[1].running_var, 0.5, 2)
        return nn.Sequential(*layers)


def make_data(samples=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 6, generator=generator), torch.randint(3, (samples,), generator=generator)


TEST = make_data(20, 1)


def line(models, *data, **options):
    return lbgap.line(models[0], models[1], *data, points=7, test_data=TEST, **options)


def curve(models, *data, **options):
    return lbgap.curve(models[0], models[1], *data, points=7, test_data=TEST, **options)


def around(models, *data, **options):
    return lbgap.plane(models[0], *data, points=(9, 8), refine=0.05, test_data=TEST, **options)


def through(models, *data, **options):
    return lbgap.plane(models[:3], *data, points=(4, 3), test_data=TEST, **options)


def trajectory(models, *data, **options):
    return lbgap.plane(models[::-1], *data, points=(4, 3), directions="pca", test_data=TEST, **options)


def connect(models, *data, **options):
    return lbgap.connect(*models[:2], *data, epochs=2, points=5, train_batch_size=16, test_data=TEST, **options)


LANDSCAPES = (line, curve, around, through, trajectory, connect)
every = pytest.mark.parametrize("landscape", LANDSCAPES)


def without_times(found):
    """A result as JSON, without the time that it took."""
    if isinstance(found, dict):
        return {name: without_times(value) for name, value in found.items() if name != "seconds"}
    return found


def models_of(norm=True):
    return [make_model(seed, norm) for seed in range(1, 5)]


@every
class TestResult:
    def test_is_one_of_all_results(self, landscape):
        found = landscape(models_of(norm=False), make_data())
        assert isinstance(found, Result)
        assert found.status.name in SENTENCES
        assert found.evaluations > 0
        assert found.seconds > 0
        assert found.settings["measure"] == (
            "plane" if landscape in (around, through, trajectory) else landscape.__name__
        )

    def test_round_trips_through_json(self, landscape):
        found = landscape(models_of(norm=False), make_data()).to_dict()
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert found.keys() >= {"value", "status", "status_name", "settings", "evaluations", "seconds"}

    def test_repr_is_one_short_line_and_str_a_few_with_value_and_status(self, landscape):
        found = landscape(models_of(norm=False), make_data())
        assert repr(found) == f"{type(found).__name__}(value={found.value:.6g}, status={found.status.name!r})"
        assert len(repr(found)) < 120
        lines = str(found).splitlines()
        assert 4 <= len(lines) <= 6
        assert f"{found.value:.6g}" in lines[0]
        assert lines[-1] == f"  {found.status}"

    def test_survives_pickle(self, landscape):
        found = landscape(models_of(norm=False), make_data())
        again = pickle.loads(pickle.dumps(found))
        assert (again.to_dict(), again.status.name) == (found.to_dict(), found.status.name)


class TestValues:
    def test_of_a_line_it_is_the_barrier_of_the_training_loss(self):
        found = line(models_of(), make_data())
        between = zip(found.alphas[2:5], found.train_loss[2:5], strict=True)
        rises = [loss - (1 - a) * found.train_loss[2] - a * found.train_loss[4] for a, loss in between]
        assert found.value == found.shape.barrier == max(rises)
        assert found.status.name == "complete"
        assert "all 7 points" in found.status

    def test_of_a_path_it_is_its_barrier(self):
        found = connect(models_of(), make_data())
        assert found.value == found.path.value == found.path.shape.barrier
        assert found.straight.value == found.straight.shape.barrier

    @pytest.mark.parametrize("landscape", [around, through, trajectory])
    def test_of_a_plane_it_is_the_largest_rise_above_the_lowest_mark(self, landscape):
        found = landscape(models_of(), make_data())
        largest = max(loss for row in (*found.train_loss, found.mark_loss) for loss in row)
        assert found.value == largest - min(found.mark_loss)
        assert found.evaluated_points == sum(map(sum, found.evaluated))

    def test_evaluations_are_passes_over_the_training_data(self):
        assert line(models_of(), make_data()).evaluations == 7
        assert lbgap.line(*models_of()[:2], make_data(), points=4, low=0.2).evaluations == 4 + 2  # and the minimizers
        assert through(models_of(), make_data()).evaluations == 12 + 3
        assert trajectory(models_of(), make_data()).evaluations == 12 + 1
        found = connect(models_of(norm=False), make_data())
        assert (found.path.evaluations, found.straight.evaluations, found.evaluations) == (5, 5, 12)
        found = connect(models_of(), make_data())  # and one a place for the statistics
        assert (found.path.evaluations, found.straight.evaluations, found.evaluations) == (10, 10, 22)
        searched = lbgap.plane(make_model(1), make_data(), directions="eigenvectors", points=2).evaluations
        assert searched > 4 + 1


def linear(bias):
    """Logits bias, 0 and -bias, of which float32 ends at 3.4e38."""
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([bias, 0.0, -bias]))
    return model


def trained_and_permuted():
    """A trained network and the same with its hidden units in another order: a barrier parts them."""
    one, (inputs, targets) = make_model(1, norm=False), make_data()
    optimizer = torch.optim.Adam(one.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(one(inputs), targets).backward()
        optimizer.step()
    other = make_model(1, norm=False)
    order = torch.arange(7, -1, -1)
    with torch.no_grad():
        other[0].weight.copy_(one[0].weight[order])
        other[0].bias.copy_(one[0].bias[order])
        other[2].weight.copy_(one[2].weight[:, order])
        other[2].bias.copy_(one[2].bias)
    return one, other


class TestStatuses:
    DATA = torch.ones(4, 6), torch.full((4,), 2)

    def test_a_loss_that_overflows(self):
        found = lbgap.line(linear(0.0), linear(1e38), self.DATA, points=4, low=0, high=3)
        assert (found.status.name, math.isnan(found.value)) == ("nothing_between", True)
        found = lbgap.line(linear(0.0), linear(1e38), self.DATA, points=7, low=0, high=3)
        assert (found.status.name, found.value) == ("not_finite", pytest.approx(0, abs=1e30))
        assert "at 3 of 7 points" in found.status
        rows = torch.zeros(2, 21)
        rows[0, 18:] = torch.tensor([1e38, 0.0, -1e38])
        rows[1, 0] = 1
        found = lbgap.plane(linear(0.0), self.DATA, directions=rows, points=(3, 2), x_range=(0, 2))
        assert (found.status.name, found.value) == ("not_finite", math.inf)
        assert found.to_dict()["value"] is None

    def test_a_minimizer_whose_loss_is_not_finite(self):
        found = lbgap.line(linear(0.0), linear(3e38), self.DATA, points=7)
        assert (found.status.name, math.isnan(found.value)) == ("not_finite", True)
        found = lbgap.plane(linear(3e38), self.DATA, normalise="none", points=2)
        assert (found.status.name, math.isnan(found.value)) == ("not_finite", True)

    def test_nothing_between(self):
        found = lbgap.line(*models_of()[:2], make_data(), points=4)
        assert (found.status.name, math.isnan(found.value)) == ("nothing_between", True)

    def test_of_planes(self):
        assert through(models_of(), make_data()).status.name == "complete"
        found = lbgap.plane(
            make_model(1), make_data(), points=40, refine=0.05, x_range=(-0.1, 0.1), y_range=(-0.1, 0.1)
        )
        assert found.status.name == "refined"
        assert f"at {found.evaluated_points} of 1,600 points" in found.status
        assert "at most 0.05 of it" in found.status

    def test_of_paths(self):
        models, data = trained_and_permuted(), make_data()
        assert lbgap.connect(*models, data, epochs=0, points=5).status.name == "untrained"
        found = lbgap.connect(*models, data, epochs=60, points=9, train_batch_size=25)
        assert (found.status.name, found.value < found.straight.value) == ("trained", True)
        # A rate that is far too large leads away from both minimizers.
        found = lbgap.connect(*models, data, epochs=2, points=9, learning_rate=10.0)
        assert (found.status.name, found.value > found.straight.value) == ("not_lower", True)


class TestObjectives:
    @pytest.mark.parametrize("precision", ["float32", "float64"])
    @pytest.mark.parametrize(
        ("landscape", "mode"),
        [(one, mode) for one in LANDSCAPES for mode in ("eval", "batch", "none") if (one, mode) != (connect, "eval")],
    )
    def test_one_in_place_of_model_and_data_gives_the_same_bits(self, landscape, mode, precision):
        models, data = models_of(norm=mode != "none"), make_data()
        options = {"precision": precision, "batch_norm": "batch" if mode == "batch" else "eval", "batch_size": 25}
        expected = landscape(models, data, **options)
        objective = Objective(models[0], data, **options)
        found = landscape([objective, *models[1:]])
        assert without_times(found.to_dict()) == without_times(expected.to_dict())

    @pytest.mark.parametrize("mode", ["eval", "batch"])
    def test_along_eigenvectors_too(self, mode):
        options = {"directions": "eigenvectors", "points": (4, 3), "test_data": TEST}
        expected = lbgap.plane(make_model(1), make_data(), batch_norm=mode, **options)
        found = lbgap.plane(Objective(make_model(1), make_data(), batch_norm=mode), **options)
        assert without_times(found.to_dict()) == without_times(expected.to_dict())

    @every
    @pytest.mark.parametrize("mode", ["eval", "batch"])
    def test_it_stays_as_it_is(self, landscape, mode):
        norm = landscape is not connect or mode == "batch"
        models, data = models_of(norm), make_data()
        objective = Objective(models[0], data, batch_norm=mode)
        if norm and mode == "eval":
            objective.set_buffers({"1.running_mean": models[1][1].running_mean})
        theta, before = objective.theta, objective.loss(objective.theta)
        one, two = (landscape([objective, *models[1:]]) for _ in range(2))
        assert without_times(one.to_dict()) == without_times(two.to_dict())
        assert torch.equal(objective.theta, theta)
        assert objective.loss(theta) == before
        if norm and mode == "eval":
            models[0][1].running_mean.copy_(models[1][1].running_mean)
        alone = landscape([Objective(models[0], data, batch_norm=mode), *models[1:]])
        assert without_times(alone.to_dict()) == without_times(one.to_dict())

    @every
    def test_it_is_at_its_minimizer_wherever_it_was_evaluated_before(self, landscape):
        models, data = models_of(norm=False), make_data()
        objective = Objective(models[0], data)
        expected = landscape([objective, *models[1:]])
        objective.loss(2 * objective.theta)
        assert without_times(landscape([objective, *models[1:]]).to_dict()) == without_times(expected.to_dict())

    @every
    @pytest.mark.parametrize(
        ("data", "options", "message"),
        [
            ([make_data()], {}, "data belong to the Objective: give them when you build it"),
            ([], {"precision": "float64"}, "precision belong to the Objective: give them when you build it"),
            ([make_data()], {"batch_norm": "batch", "loss": "mse"}, "data, batch_norm, loss belong to the Objective"),
            ([], {"device": "cpu", "backend": "torch"}, "device, backend belong to the Objective"),
            ([], {"batch_size": 10, "parameters": "weights"}, "belong to the Objective"),
        ],
    )
    def test_what_belongs_to_it_is_refused(self, landscape, data, options, message):
        models = models_of(norm=False)
        with pytest.raises(ValueError) as caught:
            landscape([Objective(models[0], make_data()), *models[1:]], *data, **options)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


@every
class TestProgress:
    def test_a_function_is_called_with_it(self, landscape):
        calls = []
        landscape(models_of(norm=False), make_data(), progress=calls.append)
        assert calls
        assert all(isinstance(call, Progress) for call in calls)
        assert all(0 < call.done <= call.total for call in calls)
        assert {call.title for call in calls} <= {
            "line",
            "curve",
            "plane",
            "training the path",
            "straight line",
            "path",
        }

    def test_a_bar_goes_to_standard_error_only(self, landscape, capsys):
        landscape(models_of(norm=False), make_data(), progress=True)
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("progress", [None, 1, "yes"])
    def test_anything_else_is_refused(self, landscape, progress):
        with pytest.raises(TypeError) as caught:
            landscape(models_of(norm=False), make_data(), progress=progress)
        assert str(caught.value) == f"progress must be True, False or a function of a Progress, got {progress!r}"


@every
def test_data_that_are_missing_are_asked_for(landscape):
    with pytest.raises(TypeError, match="data is missing: pass"):
        landscape(models_of(norm=False))


@pytest.mark.parametrize("landscape", [line, curve, around, through, trajectory])
def test_the_default_of_batch_norm_is_that_of_the_measures(landscape):
    found, expected = (landscape(models_of(), make_data(), **options) for options in ({}, {"batch_norm": "eval"}))
    assert without_times(found.to_dict()) == without_times(expected.to_dict())
    assert found.settings["batch_norm"] == "eval"


def test_that_of_a_path_is_recalibrate():
    found, expected = (connect(models_of(), make_data(), **options) for options in ({}, {"batch_norm": "recalibrate"}))
    assert without_times(found.to_dict()) == without_times(expected.to_dict())
    assert found.settings["batch_norm"] == "recalibrate"


@every
def test_a_network_without_batch_norm_is_the_same_in_every_mode(landscape):
    modes = ("eval", "batch", "freeze", "recalibrate")
    found = [without_times(landscape(models_of(norm=False), make_data(), batch_norm=mode).to_dict()) for mode in modes]
    assert all(one == found[0] for one in found)
