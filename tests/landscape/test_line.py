"""The line through two minimizers: its ends, its middle, and what it refuses."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap import Objective

pytestmark = pytest.mark.usefixtures("one_thread")


class Centred(nn.Module):
    """Subtracts a buffer, as models do that carry the mean of their inputs."""

    def __init__(self, mean):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))

    def forward(self, inputs):
        return inputs - self.mean


def make_model(seed, activation=nn.ReLU, width=8, outputs=3, mean=0.0):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        norm = nn.BatchNorm1d(width)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        return nn.Sequential(
            Centred(mean), nn.Linear(6, width), norm, activation(), nn.Dropout(0.5), nn.Linear(width, outputs)
        )


def make_data(samples=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 6, generator=generator), torch.randint(3, (samples,), generator=generator)


def blended(small, large, alpha):
    """A third model between two, in float64."""
    model = make_model(0).double()
    with torch.no_grad():
        for value, one, other in zip(*(m.state_dict().values() for m in (model, small, large)), strict=True):
            value.copy_(alpha * other.double() + (1 - alpha) * one.double())
    return model


class TestValues:
    @pytest.mark.parametrize("precision", ["float32", "float64"])
    def test_the_ends_are_the_models_own_losses(self, precision):
        small, large, data, test = make_model(1, mean=1.0), make_model(2, mean=1.0), make_data(), make_data(20, seed=1)
        found = lbgap.line(
            small, large, data, test_data=test, points=4, batch_norm="eval", precision=precision, batch_size=16
        )
        assert found.alphas == (-1.0, 0.0, 1.0, 2.0)
        for index, model in ((1, small), (2, large)):
            for samples, losses, accuracies in (
                (data, found.train_loss, found.train_accuracy),
                (test, found.test_loss, found.test_accuracy),
            ):
                objective = Objective(model, samples, precision=precision, batch_size=16)
                assert losses[index] == float(objective.loss(objective.theta))
                predicted = model.eval()(samples[0]).argmax(1)
                assert accuracies[index] == pytest.approx(100 * (predicted == samples[1]).double().mean().item())

    @pytest.mark.parametrize("batch_norm", ["eval", "batch"])
    def test_points_between_are_those_of_a_blended_model(self, batch_norm):
        small, large, data = make_model(1, mean=1.0), make_model(2, mean=1.0), make_data()
        found = lbgap.line(
            small, large, data, points=3, low=0.25, high=0.75, batch_norm=batch_norm, precision="float64", batch_size=25
        )
        for alpha, loss, accuracy in zip(found.alphas, found.train_loss, found.train_accuracy, strict=True):
            model = blended(small, large, alpha).eval()
            model[2].train(batch_norm == "batch")
            outputs = torch.cat([model(part) for part in data[0].double().split(25)])
            assert loss == pytest.approx(F.cross_entropy(outputs, data[1]).item(), rel=1e-12)
            assert accuracy == pytest.approx(100 * (outputs.argmax(1) == data[1]).double().mean().item())

    def test_the_mode_of_batch_norm_and_both_batch_sizes_are_recorded(self):
        found = lbgap.line(make_model(1), make_model(2), make_data(), test_data=make_data(20), points=2)
        assert found.settings["batch_norm"] == "eval"
        found = lbgap.line(
            make_model(1), make_model(2), make_data(), test_data=make_data(20), points=2, batch_norm="batch"
        )
        wanted = {"batch_norm": "batch", "batch_size": 50, "samples": 50, "test_samples": 20, "test_batch_size": 20}
        assert found.settings.items() >= wanted.items()
        assert found.settings["versions"]["torch"] == torch.__version__

    def test_a_variance_does_not_fall_below_zero(self):
        small, large = make_model(1), make_model(2)
        small[2].running_var.fill_(1.0)
        large[2].running_var.fill_(4.0)
        found = lbgap.line(small, large, make_data(), points=2, low=-1, high=0, batch_norm="eval", precision="float64")
        model = blended(small, large, -1.0).eval()
        assert float(model[2].running_var.max()) == -2
        model[2].running_var.zero_()
        inputs, targets = make_data()
        expected = F.cross_entropy(model(inputs.double()), targets).item()
        assert found.train_loss[0] == pytest.approx(expected, rel=1e-12)

    def test_an_infinite_loss_is_inf_and_null_in_json(self):
        # Two logits that differ by 2e30 alpha: float32 ends at 3.4e38.
        small, large = nn.Linear(6, 3), nn.Linear(6, 3)
        with torch.no_grad():
            for model, bias in ((small, 0.0), (large, 1e30)):
                model.weight.zero_()
                model.bias.copy_(torch.tensor([bias, 0.0, -bias]))
        data = torch.ones(4, 6), torch.full((4,), 2)
        found = lbgap.line(small, large, data, points=3, low=0, high=2e8)
        assert found.train_loss == (pytest.approx(math.log(3)), pytest.approx(2e38), math.inf)
        read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert read["train_loss"][2] is None
        assert read["alphas"] == [0, 1e8, 2e8]

    def test_models_data_and_the_state_of_torch_stay_as_they_are(self):
        small, large, data = make_model(1).train(), make_model(2).eval(), make_data()
        before = [value.clone() for model in (small, large) for value in model.state_dict().values()]
        rng = torch.get_rng_state()
        lbgap.line(small, large, data, points=3, batch_norm="eval")
        after = [value for model in (small, large) for value in model.state_dict().values()]
        assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
        assert (small.training, large.training) == (True, False)
        assert all(parameter.grad is None for parameter in small.parameters())
        assert torch.equal(rng, torch.get_rng_state())
        assert torch.equal(data[0], make_data()[0])

    def test_a_regression_has_no_accuracy(self):
        inputs = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
        small, large = make_model(1, outputs=2), make_model(2, outputs=2)
        found = lbgap.line(
            small,
            large,
            (inputs, inputs[:, :2]),
            test_data=(inputs, inputs[:, :2]),
            loss="mse",
            points=2,
            low=0,
            high=1,
        )
        assert found.train_accuracy is None
        assert found.test_accuracy is None
        assert found.train_loss == found.test_loss
        assert found.to_dict()["test_accuracy"] is None

    def test_without_test_data_there_is_none(self):
        found = lbgap.line(make_model(1), make_model(2), make_data(), points=2)
        assert found.test_loss is None
        assert found.test_accuracy is None
        assert "test_samples" not in found.settings

    def test_the_two_models_may_differ_in_dtype(self):
        small, large = make_model(1), make_model(2)
        one = lbgap.line(small, large, make_data(), points=4, batch_norm="eval")
        other = lbgap.line(small, make_model(2).double(), make_data(), points=4, batch_norm="eval")
        assert one.train_loss == other.train_loss

    def test_parameters_are_matched_by_name_not_by_order(self):
        class Swapped(nn.Module):
            def __init__(self, names):
                super().__init__()
                for name in names:
                    setattr(self, name, nn.Linear(6, 6))

            def forward(self, inputs):
                return self.last(self.first(inputs).relu())

        small, large = Swapped(("first", "last")), Swapped(("last", "first"))
        found = lbgap.line(small, large, make_data(), points=2, low=0, high=1)
        objective = Objective(large, make_data())
        assert found.train_loss[1] == pytest.approx(float(objective.loss(objective.theta)), rel=1e-6)

    def test_progress_goes_to_standard_error_only(self, capsys):
        lbgap.line(make_model(1), make_model(2), make_data(), points=2, progress=True)
        assert capsys.readouterr().out == ""


def refused(message, small=None, large=None, error=ValueError, **options):
    with pytest.raises(error, match=message):
        lbgap.line(small or make_model(1), large or make_model(2), make_data(), **options)


class TestRefusals:
    def test_another_architecture_by_the_first_parameter_that_differs(self):
        refused(r"parameter '1.weight' is \(8, 6\) in one and \(9, 6\) in the other", large=make_model(2, width=9))
        refused(r"parameter '5.weight' is \(3, 8\) in one and \(4, 8\)", large=make_model(2, outputs=4))
        shorter = make_model(2)[:5]
        refused(r"parameter '5.weight' is \(3, 8\) in one and absent in the other", large=shorter)
        refused(r"parameter '5.weight' is absent in one and \(3, 8\) in the other", small=shorter)

    def test_other_modules_with_the_same_parameters(self):
        refused("module '3' is ReLU in one and Tanh in the other", large=make_model(2, activation=nn.Tanh))

    def test_buffers_that_one_model_lacks(self):
        bare = make_model(2)
        bare[2] = nn.BatchNorm1d(8, track_running_stats=False)
        refused(r"buffer '2.running_mean' is \(8,\) in one and absent in the other", large=bare)
        refused(r"buffer '2.running_mean' is absent in one", small=bare)

    def test_buffers_without_a_middle(self):
        small, large = make_model(1), make_model(2)
        for model, value in ((small, 0), (large, 1)):
            model[0].register_buffer("mask", torch.tensor(value))
        refused("buffer '0.mask' has other values and cannot be interpolated", small, large)
        large[0].mask.fill_(0)
        large[2].num_batches_tracked.fill_(7)
        lbgap.line(small, large, make_data(), points=2)

    def test_identical_models(self):
        refused("the same parameters: a line needs two different minimizers", large=make_model(1))

    def test_models_that_disagree_on_what_is_frozen(self):
        small, large = make_model(1), make_model(2)
        large[1].bias.requires_grad_(False)
        refused("parameter '1.bias' is frozen in one model only: freeze it in both or in neither", small, large)
        small[1].bias.requires_grad_(False)
        refused("frozen parameter '1.bias' differs between the models: unfreeze it", small, large)
        with torch.no_grad():
            large[1].bias.copy_(small[1].bias)
        found = lbgap.line(small, large, make_data(), points=2)
        assert found.settings["n"] == sum(p.numel() for p in small.parameters()) - 8

    def test_what_is_no_model(self):
        refused("the small-batch model must be a torch.nn.Module, got int", small=3, error=TypeError)
        refused("the large-batch model must be a torch.nn.Module, got str", large="x", error=TypeError)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"points": 1}, ValueError, "points must be between 2 and 100,000, got 1"),
            ({"points": 100_001}, ValueError, "points must be between 2 and 100,000, got 100001"),
            ({"points": 2.0}, TypeError, "points must be a whole number, got 2.0"),
            ({"points": True}, TypeError, "points must be a whole number, got True"),
            ({"low": 2}, ValueError, "finite with low < high, got 2 and 2.0"),
            ({"low": math.nan}, ValueError, "low and high must be finite"),
            ({"high": math.inf}, ValueError, "low and high must be finite"),
            ({"high": "2"}, TypeError, "high must be a number, got '2'"),
            ({"low": None}, TypeError, "low must be a number, got None"),
            ({"precision": "half"}, ValueError, "precision must be one of 'float32', 'float64', 'mixed', got 'half'"),
            ({"batch_norm": "train"}, ValueError, "must be 'eval', 'batch', 'freeze' or 'recalibrate', got 'train'"),
            ({"rise": 0}, ValueError, "rise must be finite and above 0, got 0"),
            ({"rise": "x"}, TypeError, "rise must be a number, got 'x'"),
            ({"loss": "ctc"}, ValueError, "loss must be 'cross_entropy', 'mse', .* or a callable, got 'ctc'"),
            ({"batch_size": 49, "batch_norm": "batch"}, ValueError, "leaves a batch of one"),
        ],
    )
    def test_arguments(self, options, error, message):
        refused(message, error=error, **options)

    def test_data_that_do_not_fit(self):
        with pytest.raises(ValueError, match="does not accept inputs of shape"):
            lbgap.line(make_model(1), make_model(2), (torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)))
