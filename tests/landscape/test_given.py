"""An objective in place of a minimizer: which parameters move, whose loss it is, and where it may stand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap import Objective
from lbgap.landscape.given import take

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(seed, norm=False):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        layers = [nn.Linear(6, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Linear(8, 3)]
        return nn.Sequential(*layers)


def make_data(samples=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 6, generator=generator), torch.randint(3, (samples,), generator=generator)


def smoothed(output, target):
    return F.cross_entropy(output, target, label_smoothing=0.2)


class TestCopy:
    def test_is_the_minimizer_wherever_the_replica_is(self):
        model = make_model(1, norm=True)
        objective = Objective(model, make_data(), precision="float64")
        objective.loss(2 * objective.theta)
        objective.set_buffers({"1.running_mean": torch.full((8,), 3.0)})
        found = take(objective, None, None, {}).module
        for name, value in model.state_dict().items():
            expected = torch.full((8,), 3.0) if name == "1.running_mean" else value
            assert torch.equal(found.state_dict()[name], expected.to(found.state_dict()[name].dtype))
        with torch.no_grad():
            found[0].weight.zero_()
        assert objective.loss(objective.theta) > 0
        assert torch.equal(objective.split(objective.theta)["0.weight"], model[0].weight.double())

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
    def test_the_modes_of_the_caller_change_nothing(self, mode):
        models, data = [make_model(seed, norm=True) for seed in (1, 2, 3)], make_data()
        objective = Objective(models[0], data)
        plain = lbgap.line(objective, models[1], points=4), lbgap.plane([objective, *models[1:]], points=3)
        with mode():
            found = lbgap.line(objective, models[1], points=4), lbgap.plane([objective, *models[1:]], points=3)
        assert [one.train_loss for one in found] == [one.train_loss for one in plain]

    def test_recurrent_networks(self):
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell, self.head = nn.GRU(6, 4, batch_first=True), nn.Linear(4, 3)

            def forward(self, inputs):
                return self.head(self.cell(inputs[:, None])[0][:, -1])

        small, large = Recurrent(), Recurrent()
        expected = lbgap.line(small, large, make_data(), points=4)
        assert lbgap.line(Objective(small, make_data()), large, points=4).train_loss == expected.train_loss

    def test_tied_and_parametrised_weights(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
                self.second.weight = self.first.weight
                nn.utils.parametrizations.weight_norm(self.second, "bias", dim=None)

            def forward(self, inputs):
                return self.second(self.first(inputs).tanh())

        small, large = Tied(), Tied()
        expected = lbgap.line(small, large, make_data(), points=4)
        assert lbgap.line(Objective(small, make_data()), large, points=4).train_loss == expected.train_loss

    def test_models_that_keep_what_they_computed(self):
        class Keeping(nn.Module):
            def __init__(self, every):
                super().__init__()
                self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
                self.hidden, self.every = [], every

            def forward(self, inputs):
                hidden = self.first(inputs).tanh()
                self.hidden = [*self.hidden, hidden] if self.every else [hidden]
                return self.second(hidden)

        for every in (False, True):
            small, large = Keeping(every), Keeping(every)
            objective = Objective(small, make_data())
            objective.loss_and_gradient(objective.theta)
            expected = lbgap.line(small, large, make_data(), points=4)
            assert lbgap.line(objective, large, points=4).train_loss == expected.train_loss


class TestParameters:
    def test_those_that_do_not_move_have_to_be_the_same(self):
        small, large, data = make_model(1), make_model(2), make_data()
        message = r"parameter '0.bias' differs between the models: choose it in parameters=, too"
        with pytest.raises(ValueError, match=message):
            lbgap.line(small, large, data, parameters="weights")
        with pytest.raises(ValueError, match=message):
            lbgap.line(Objective(small, data, parameters="weights"), large)
        for index in (0, 2):
            with torch.no_grad():
                large[index].bias.copy_(small[index].bias)
        found = lbgap.line(small, large, data, parameters="weights", points=4)
        assert found.settings["n"] == 6 * 8 + 8 * 3
        assert found.train_loss == pytest.approx(lbgap.line(small, large, data, points=4).train_loss, rel=1e-6)
        objective = Objective(small, data, parameters=("*.weight",))
        assert lbgap.line(objective, large, points=4).train_loss == found.train_loss

    def test_a_plane_moves_only_those_that_were_chosen(self):
        model, data = make_model(1), make_data()
        found = lbgap.plane(model, data, parameters=iter(["2"]), points=(3, 2), normalise="none")
        expected = lbgap.plane(Objective(model, data, parameters="2"), points=(3, 2), normalise="none")
        assert found.train_loss == expected.train_loss
        assert found.settings["n"] == 8 * 3 + 3
        with torch.no_grad():
            hidden = model[:2](data[0])
        alone = lbgap.plane(model[2], (hidden, data[1]), points=(3, 2), normalise="none")
        assert found.train_loss[0] == pytest.approx(alone.train_loss[0], rel=1e-5)

    def test_frozen_ones_of_another_dtype(self):
        small, large = make_model(1).double(), make_model(2).double()
        for model in (small, large):
            model[0].requires_grad_(False)
        with pytest.raises(ValueError, match=r"frozen parameter '0\.weight' differs between the models: unfreeze it"):
            lbgap.line(Objective(small, make_data()), large)
        large[0].load_state_dict(small[0].state_dict())
        expected = lbgap.line(small, large, make_data(), points=4)
        assert lbgap.line(Objective(small, make_data()), large, points=4).train_loss == expected.train_loss
        assert lbgap.line(small, large.float(), make_data(), points=4).train_loss == expected.train_loss
        small[0].requires_grad_(True)
        with pytest.raises(ValueError, match=r"parameter '0\.weight' is frozen in one model only: freeze it in both"):
            lbgap.line(Objective(small, make_data()), large)

    @pytest.mark.parametrize("draw", [lbgap.line, lambda *a: lbgap.plane(a[0]), lambda *a: lbgap.connect(*a, epochs=1)])
    def test_a_part_of_the_space_is_refused(self, draw):
        part = Objective(make_model(1), make_data()).manifold(5)
        with pytest.raises(ValueError, match="only vectors of the full space have a part for each parameter: pass the"):
            draw(part, make_model(2))


class TestLoss:
    def test_one_of_the_callers_own_is_that_of_the_test_data_too(self):
        small, large, data, test = make_model(1), make_model(2), make_data(), make_data(20, 1)
        expected = lbgap.line(small, large, data, test_data=test, points=4, loss=smoothed)
        found = lbgap.line(Objective(small, data, loss=smoothed), large, test_data=test, points=4)
        assert (found.train_loss, found.test_loss) == (expected.train_loss, expected.test_loss)

    def test_test_data_have_the_batches_of_the_objective_or_are_one(self):
        small, large, data, test = make_model(1, True), make_model(2, True), make_data(), make_data(80, 1)
        for batch_size, expected in ((None, 80), (25, 25)):
            objective = Objective(small, data, batch_norm="batch", batch_size=batch_size)
            found = lbgap.line(objective, large, test_data=test, points=4)
            assert found.settings["test_batch_size"] == expected
            options = {"batch_norm": "batch", "batch_size": batch_size}
            alone = lbgap.line(small, large, data, test_data=test, points=4, **options)
            assert found.test_loss == alone.test_loss

    def test_models_that_keep_more_than_their_parameters_are_refused(self):
        class Stretched(nn.Linear):
            factor = 1.0

            def forward(self, inputs):
                return self.factor * super().forward(inputs)

        small, large = Stretched(6, 3), Stretched(6, 3)
        large.factor = 3.0
        with pytest.raises(ValueError, match=r"at alpha = 1 the loss of a few samples is .* but the large-batch model"):
            lbgap.line(Objective(small, make_data()), large)


class TestPlaces:
    def test_the_large_batch_minimizer_is_a_module(self):
        data = make_data()
        with pytest.raises(
            TypeError,
            match=r"large-batch model must be a torch\.nn\.Module, got Objective: only the first .* pass its module",
        ):
            lbgap.line(Objective(make_model(1), data), Objective(make_model(2), data))

    @pytest.mark.parametrize(("directions", "place", "shown"), [(None, 2, "model 3 of 3"), ("pca", 0, "model 1 of 3")])
    def test_in_a_plane_it_is_the_centre(self, directions, place, shown):
        models = [make_model(seed) for seed in (1, 2, 3)]
        models[place] = Objective(models[place], make_data())
        with pytest.raises(ValueError) as caught:
            lbgap.plane(models, directions=directions, points=2)
        assert str(caught.value) == (
            "an Objective may stand for the first of three minimizers or for the last iterate alone, got one as "
            f"{shown}: pass its module"
        )

    def test_a_plane_goes_on_with_either(self, tmp_path):
        model, data = make_model(1), make_data()
        begun = lbgap.plane(model, data, points=3, out=tmp_path)
        again = lbgap.plane(Objective(model, data), points=3, out=tmp_path, resume=True)
        assert (again.train_loss, again.evaluations) == (begun.train_loss, 1)


class TestPaths:
    def test_running_statistics_are_refused(self):
        objective = Objective(make_model(1, True), make_data())
        with pytest.raises(ValueError) as caught:
            lbgap.connect(objective, make_model(2, True), epochs=1)
        assert str(caught.value) == (
            "batch_norm='eval' takes running statistics, of which a path has none: build the Objective with "
            "batch_norm='batch'"
        )

    def test_batches_of_the_training_have_to_fit_into_those_of_the_objective(self):
        objective = Objective(make_model(1, True), make_data(49), batch_norm="batch", batch_size=15)
        with pytest.raises(ValueError) as caught:
            lbgap.connect(objective, make_model(2, True), epochs=1, train_batch_size=16)
        assert str(caught.value) == (
            "a batch of the training, of up to 17 samples, has to fit into one of the Objective's, of 15: pass a "
            "smaller train_batch_size, or build it with a larger batch_size"
        )

    def test_precision_that_cannot_be_trained_with(self, monkeypatch):
        monkeypatch.setattr("lbgap.system.device.bfloat16_products", lambda _: True)
        objective = Objective(make_model(1), make_data(), precision="mixed")
        with pytest.raises(ValueError, match=r"precision must be 'float32' or 'float64' to train a path, got 'mixed'"):
            lbgap.connect(objective, make_model(2), epochs=1)
