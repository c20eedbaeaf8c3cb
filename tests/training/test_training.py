"""What a training does to a model, and what it leaves alone."""

import io
import math
import warnings
from contextlib import redirect_stderr

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lbgap.training import Run, batches, loop, train
from lbgap.training.config import describe_data

pytestmark = pytest.mark.usefixtures("one_thread")


def make_data(samples=37, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(samples, 6, generator=generator),
        torch.randint(3, (samples,), generator=generator),
    )


def make_model(dropout=0.0, seed=0):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def without_seconds(metrics):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in metrics]


class TestResult:
    def test_it_learns_and_reports(self):
        inputs, _ = make_data()
        targets = (inputs[:, 0] > 0).long()
        model = make_model()
        run = train(model, (inputs, targets), test_data=make_data(seed=1), batch_size=8, epochs=60, learning_rate=0.01)
        assert isinstance(run, Run)
        assert run.metrics[-1]["train_loss"] < 0.1 < run.metrics[0]["train_loss"]
        assert run.metrics[-1]["train_accuracy"] == 100.0
        assert [row["epoch"] for row in run.metrics] == list(range(1, 61))
        assert run.epoch == 60
        assert run.reason == "ran the 60 epochs asked for"
        assert run.folder is None
        assert run.seconds == pytest.approx(sum(row["seconds"] for row in run.metrics))
        assert not run.model.training
        assert all(parameter.grad is None for parameter in run.model.parameters())
        text = str(run)
        for part in ("60 epochs", "Adam", "batch size 8", "train loss", "test loss", "100.00 %", "distance"):
            assert part in text

    def test_metrics_are_those_of_the_whole_set_in_evaluation_mode(self, monkeypatch):
        monkeypatch.setattr(loop, "EVALUATION_BATCH", 10)
        data, other = make_data(), make_data(23, seed=1)
        model = make_model(dropout=0.5)
        run = train(model, data, test_data=other, batch_size=8, epochs=3)
        exact = run.model.double()
        for part, (inputs, targets) in (("train", data), ("test", other)):
            output = exact(inputs.double())
            expected = F.cross_entropy(output, targets).item()
            assert run.metrics[-1][f"{part}_loss"] == pytest.approx(expected, rel=1e-5)
            right = (output.argmax(1) == targets).sum().item()
            assert run.metrics[-1][f"{part}_accuracy"] == 100.0 * right / len(targets)
        square = sum(
            ((after - before.double()) ** 2).sum().item()
            for after, before in zip(exact.parameters(), model.parameters(), strict=True)
        )
        assert run.metrics[-1]["distance"] == pytest.approx(math.sqrt(square), rel=1e-5)

    def test_one_epoch_is_plain_adam(self):
        data, model = make_data(), make_model()
        run = train(model, data, batch_size=10, epochs=1, seed=5)
        torch.manual_seed(0)
        reference = make_model()
        adam = torch.optim.Adam(reference.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
        for index in batches.epoch_batches(37, 10, 5, 1):
            adam.zero_grad()
            F.cross_entropy(reference(data[0][index]), data[1][index], reduction="sum").div(len(index)).backward()
            adam.step()
        assert_same_bits(bits(run.model), bits(reference))

    def test_same_call_same_bits_and_other_seed_other_bits(self):
        runs = [train(make_model(0.5), make_data(), batch_size=8, epochs=3, seed=seed) for seed in (7, 7, 8)]
        assert_same_bits(bits(runs[0].model), bits(runs[1].model))
        assert without_seconds(runs[0].metrics) == without_seconds(runs[1].metrics)
        assert not torch.equal(runs[0].model[0].weight, runs[2].model[0].weight)

    def test_dropout_is_drawn_anew_each_epoch(self):
        seen = []

        class Spy(nn.Module):
            def forward(self, x):
                if self.training:
                    seen.append(F.dropout(torch.ones(50)).tolist())
                return x

        model = nn.Sequential(Spy(), nn.Linear(6, 3))
        train(model, make_data(), batch_size=37, epochs=3)
        assert len({tuple(draw) for draw in seen}) == len(seen) == 3

    def test_regression_has_no_accuracy(self):
        inputs, _ = make_data()
        run = train(nn.Linear(6, 1), (inputs, inputs[:, :1]), loss="mse", epochs=2)
        assert run.metrics[-1].keys() == {"epoch", "train_loss", "distance", "seconds"}
        assert "accuracy" not in str(run)

    def test_class_probabilities_and_callables(self):
        inputs, classes = make_data()
        soft = F.one_hot(classes, 3).double()
        run = train(make_model(), (inputs, soft), batch_size=8, epochs=2)
        hard = train(make_model(), (inputs, classes), batch_size=8, epochs=2)
        assert run.metrics[-1]["train_accuracy"] == hard.metrics[-1]["train_accuracy"]
        own = train(make_model(), (inputs, classes), batch_size=8, epochs=2, loss=F.cross_entropy)
        assert own.config["loss"] == "cross_entropy"
        assert own.metrics[-1]["train_loss"] == pytest.approx(hard.metrics[-1]["train_loss"], rel=1e-4)

    def test_double_precision_follows_the_model(self):
        run = train(make_model().double(), make_data(), epochs=1, batch_size=8)
        assert run.config["model"]["dtype"] == "float64"
        assert run.model[0].weight.dtype == torch.float64

    def test_frozen_and_tied_parameters(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second, self.frozen = (nn.Linear(6, 6, bias=False) for _ in range(3))
                self.second.weight = self.first.weight
                self.frozen.weight.requires_grad_(False)

            def forward(self, x):
                return self.second(self.frozen(torch.relu(self.first(x))))

        inputs, targets = make_data()
        model = Tied()
        run = train(model, (inputs, targets), epochs=2, batch_size=8)
        assert run.model.first.weight is run.model.second.weight
        assert torch.equal(run.model.frozen.weight, model.frozen.weight)
        assert not torch.equal(run.model.first.weight, model.first.weight)
        assert run.config["model"]["parameters"] == 72
        assert run.config["model"]["trainable"] == 36
        expected = torch.linalg.vector_norm(run.model.first.weight.double() - model.first.weight.double()).item()
        assert run.metrics[-1]["distance"] == pytest.approx(expected, rel=1e-12)

    def test_config_names_what_the_result_depends_on(self):
        run = train(make_model(), make_data(), batch_size=0.25, epochs=1, config={"shape": (1, 2)})
        config = run.config
        assert config["batch_size"] == 9
        assert config["optimizer"] == "Adam"
        assert config["optimizer_options"]["betas"] == [0.9, 0.999]
        assert config["environment"]["torch"] == torch.__version__
        assert config["environment"]["threads"] == torch.get_num_threads()
        assert config["data"]["samples"] == 37
        assert config["extra"] == {"shape": [1, 2]}
        assert (config["epochs"], config["patience"]) == (1, None)
        assert len({describe_data(batches_)["digest"] for batches_ in map(split_of, (0, 0, 1))}) == 2

    def test_data_may_be_a_dataset_or_a_loader_with_its_batch_size(self):
        inputs, targets = make_data()
        dataset = TensorDataset(inputs, targets)
        pair = train(make_model(), (inputs, targets), batch_size=5, epochs=2)
        loader = train(make_model(), DataLoader(dataset, batch_size=5), epochs=2)
        explicit = train(make_model(), DataLoader(dataset, batch_size=9), batch_size=5, epochs=2)
        assert_same_bits(bits(pair.model), bits(loader.model))
        assert_same_bits(bits(pair.model), bits(explicit.model))
        assert train(make_model(), dataset, epochs=1).config["batch_size"] == 37  # 256 is more than there are

    @pytest.mark.parametrize(
        "name",
        [
            "adam",
            "ADAMW",
            "sgd",
            "Adagrad",
            "adadelta",
            "adamax",
            "asgd",
            "nadam",
            "radam",
            "rmsprop",
            "rprop",
        ],
    )
    def test_other_optimisers(self, name):
        run = train(make_model(), make_data(), batch_size=8, epochs=2, optimizer=name)
        assert run.config["optimizer"].lower() == name.lower()
        assert run.metrics[-1]["distance"] > 0

    def test_optimiser_options_are_used(self):
        plain = train(make_model(), make_data(), epochs=2, optimizer="SGD", learning_rate=0.1)
        heavy = train(
            make_model(),
            make_data(),
            epochs=2,
            optimizer="SGD",
            learning_rate=0.1,
            optimizer_options={"momentum": 0.9},
        )
        assert plain.metrics[0]["distance"] == heavy.metrics[0]["distance"]
        assert plain.metrics[1]["distance"] < heavy.metrics[1]["distance"]


def split_of(seed):
    from lbgap.datasets import Split

    return Split(*make_data(seed=seed))


class TestUntouched:
    def test_model_data_and_process_are_left_alone(self):
        model = make_model(0.5)
        model.eval()
        model[0].train()
        model(make_data()[0]).sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        copies = [gradient.clone() for gradient in gradients]
        before, modes = bits(model), [module.training for module in model.modules()]
        data = make_data()
        kept = [tensor.clone() for tensor in data]
        generators = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        filters, threads = list(warnings.filters), torch.get_num_threads()

        with torch.no_grad():
            run = train(model, data, batch_size=8, epochs=2)
            assert not torch.is_grad_enabled()

        assert_same_bits(bits(model), before)
        assert [module.training for module in model.modules()] == modes
        for parameter, gradient, copy in zip(model.parameters(), gradients, copies, strict=True):
            assert parameter.grad is gradient
            assert torch.equal(gradient, copy)
        assert all(torch.equal(a, b) for a, b in zip(data, kept, strict=True))
        assert torch.equal(torch.get_rng_state(), generators[0])
        assert (np.random.get_state()[1] == generators[1]).all()  # noqa: NPY002
        assert torch.get_default_dtype() == torch.float32
        assert list(warnings.filters) == filters
        assert torch.get_num_threads() == threads
        shared = {parameter.data_ptr() for parameter in model.parameters()}
        assert not shared & {parameter.data_ptr() for parameter in run.model.parameters()}

    def test_a_model_that_works_in_place_leaves_the_data_alone(self):
        data = make_data()
        kept = data[0].clone()
        run = train(nn.Sequential(nn.ReLU(inplace=True), *make_model()), data, test_data=data, epochs=2)
        assert torch.equal(data[0], kept)
        same = train(nn.Sequential(nn.ReLU(), *make_model()), data, test_data=data, epochs=2)
        assert without_seconds(run.metrics) == without_seconds(same.metrics)

    def test_the_global_generator_does_not_matter(self):
        torch_state = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(1)
            first = train(make_model(0.5), make_data(), batch_size=8, epochs=2)
            torch.default_generator.manual_seed(2)
            second = train(make_model(0.5), make_data(), batch_size=8, epochs=2)
        finally:
            torch.set_rng_state(torch_state)
        assert_same_bits(bits(first.model), bits(second.model))

    def test_a_failure_puts_the_generator_back(self):
        class Fails(nn.Linear):
            def forward(self, x):
                torch.rand(3)
                if self.training:
                    raise RuntimeError("no")
                return super().forward(x)

        model, before = Fails(6, 3), torch.get_rng_state()
        with pytest.raises(RuntimeError, match="no"):
            train(model, make_data(), epochs=1)
        assert torch.equal(torch.get_rng_state(), before)

    def test_callers_modes_do_not_matter(self):
        plain = train(make_model(), make_data(), batch_size=8, epochs=2)
        with torch.inference_mode():
            data = make_data()
            first = train(make_model(), data, batch_size=8, epochs=2)
        with torch.autocast("cpu", torch.bfloat16):
            second = train(make_model(), make_data(), batch_size=8, epochs=2)
        assert_same_bits(bits(plain.model), bits(first.model))
        assert_same_bits(bits(plain.model), bits(second.model))
        run_again = train(first.model, make_data(), batch_size=8, epochs=1)
        assert run_again.metrics


class TestProgress:
    def test_a_function_is_told_each_epoch(self):
        told = []
        run = train(make_model(), make_data(), epochs=3, progress=told.append)
        assert told == run.metrics
        told[0]["train_loss"] = None
        assert run.metrics[0]["train_loss"] is not None

    def test_a_bar_on_stderr(self, capsys):
        stream = io.StringIO()
        with redirect_stderr(stream):
            train(make_model(), make_data(), epochs=3, progress=True)
        assert "epoch 3 of 3" in stream.getvalue()
        assert "loss" in stream.getvalue()
        assert capsys.readouterr().out == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    before = torch.cuda.get_rng_state(), torch.backends.cudnn.deterministic
    runs = [train(make_model(0.5), make_data(), batch_size=8, epochs=3, device="cuda") for _ in range(2)]
    assert_same_bits(bits(runs[0].model), bits(runs[1].model))
    assert runs[0].model[0].weight.is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), before[0])
    assert torch.backends.cudnn.deterministic == before[1]


def test_an_output_that_is_nan_is_no_right_answer():
    class Broken(nn.Linear):
        def forward(self, x):
            return (
                super().forward(x) if self.training else super().forward(x) * torch.where(x[:, :1] > 0, 1.0, torch.nan)
            )

    inputs, targets = torch.tensor([[1.0], [-1.0]]), torch.zeros(2, dtype=torch.int64)
    model = Broken(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-1.0]])), model.bias.zero_()
    kept = inputs[:1].expand(4, 1), targets[:1].expand(4)
    run = train(model, kept, test_data=(inputs, targets), epochs=1, batch_size=2)
    assert run.metrics[0]["test_loss"] is None
    assert (run.metrics[0]["train_accuracy"], run.metrics[0]["test_accuracy"]) == (100.0, 50.0)
