"""How a training reads its arguments, and what it says about those that it cannot use."""

import math
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lbgap.training import batches, train
from lbgap.training.config import differences
from lbgap.training.optimizers import resolve_optimizer
from lbgap.training.stopping import Stopping

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


class TestBatches:
    @given(
        samples=st.integers(1, 60),
        size=st.integers(1, 60),
        seed=st.integers(0, 2**63 - 1),
        epoch=st.integers(1, 9),
    )
    def test_every_sample_comes_once(self, samples, size, seed, epoch):
        size = min(size, samples)
        dealt = batches.epoch_batches(samples, size, seed, epoch)
        assert sorted(torch.cat(dealt).tolist()) == list(range(samples))
        assert all(len(batch) == size for batch in dealt[:-2])
        if samples > 1 and size > 1:
            assert min(map(len, dealt)) > 1
        assert max(map(len, dealt)) <= size + 1

    def test_order_depends_on_seed_and_epoch(self):
        orders = {
            tuple(batches.epoch_batches(30, 30, seed, epoch)[0].tolist()) for seed in range(3) for epoch in (1, 2)
        }
        assert len(orders) == 6

    def test_a_single_sample_left_over_joins_the_batch_before(self):
        assert [len(batch) for batch in batches.epoch_batches(33, 8, 0, 1)] == [8, 8, 8, 9]
        assert [len(batch) for batch in batches.epoch_batches(34, 8, 0, 1)] == [8, 8, 8, 8, 2]
        assert [len(batch) for batch in batches.epoch_batches(3, 1, 0, 1)] == [1, 1, 1]
        train(make_model(), make_data(33), batch_size=8, epochs=1)

    @pytest.mark.parametrize(
        ("given_size", "expected"),
        [
            (1, 1),
            (37, 37),
            (np.int64(5), 5),
            (1.0, 37),
            (0.1, 4),
            ("10%", 4),
            ("100 %", 37),
            (torch.tensor(0.5), 18),
            (1e-9, 1),
            (np.float32(0.5), 18),
        ],
    )
    def test_sizes_and_shares(self, given_size, expected):
        assert batches.resolve_batch_size(given_size, 37) == expected

    @pytest.mark.parametrize("size", [0, -1, 38, 0.0, -0.1, 1.5, 256.0, math.nan, math.inf])
    def test_bad_sizes(self, size):
        with pytest.raises(ValueError, match="batch_size") as caught:
            train(make_model(), make_data(), batch_size=size)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("size", ["8", True, (8,)])
    def test_sizes_of_the_wrong_kind(self, size):
        with pytest.raises(TypeError, match=r"batch_size must be a whole number of samples, or a share such as"):
            train(make_model(), make_data(), batch_size=size)

    @pytest.mark.parametrize("samples", [37, 1])
    def test_batch_norm_of_one_value_is_refused_before_anything_is_written(self, tmp_path, samples):
        with pytest.raises(
            ValueError, match=r"cannot train on batches of one sample .*: pass a batch_size of 2 or more"
        ):
            train(make_model(), make_data(samples), batch_size=1, epochs=1, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_one_sample_of_many_values_is_enough_for_batch_norm(self):
        inputs, targets = make_data(4)
        model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3))
        state = torch.get_rng_state()
        run = train(model, (inputs[:, None], targets), batch_size=1, epochs=1)
        assert run.epoch == 1
        assert torch.equal(torch.get_rng_state(), state)


class TestStopping:
    def test_patience_and_tolerance(self):
        rule = Stopping(None, 100, 3, 0.1)
        assert rule.reason([]) is None
        assert rule.reason([1.0, 0.8, 0.79, 0.75]) is None
        reason = rule.reason([1.0, 0.8, 0.79, 0.75, 0.74])
        assert reason == (
            "the training loss stopped improving: no epoch of the last 3 lowered 0.8, reached at epoch 2, "
            "by more than 10 %"
        )
        assert rule.reason([1.0, 0.8, 0.79, 0.75, 0.71]) is None
        assert rule.kept([1.0, 0.8, 0.79, 0.75, 0.76]) == 4

    def test_a_loss_of_zero_is_the_end(self):
        assert Stopping(None, 100, 2, 0.0).reason([1.0, 0.0, 0.0]) is None
        assert "stopped improving" in Stopping(None, 100, 2, 0.0).reason([1.0, 0.0, 0.0, 0.0])

    def test_the_cap(self):
        losses = [2.0**-epoch for epoch in range(5)]
        assert Stopping(None, 5, 2, 0.01).reason(losses[:4]) is None
        assert "max_epochs (5)" in Stopping(None, 5, 2, 0.01).reason(losses)

    def test_a_fixed_number_keeps_the_last(self):
        rule = Stopping(3, 1, 1, 0.5)
        assert rule.reason([1.0, 2.0]) is None
        assert rule.reason([1.0, 2.0, 3.0]) == "ran the 3 epochs asked for"
        assert rule.kept([1.0, 2.0, 3.0]) == 3

    def test_the_iterate_of_the_lowest_loss_is_returned(self):
        data = make_data()
        run = train(make_model(), data, batch_size=8, learning_rate=0.5, patience=4, max_epochs=60)
        losses = [row["train_loss"] for row in run.metrics]
        assert run.epoch == losses.index(min(losses)) + 1 < len(losses)
        assert "stopped improving" in run.reason
        assert f"iterate of epoch {run.epoch}" in str(run)
        assert F.cross_entropy(run.model(data[0]), data[1]).item() == pytest.approx(min(losses), rel=1e-5)
        same = train(make_model(), data, batch_size=8, learning_rate=0.5, epochs=run.epoch)
        assert_same_bits(bits(run.model), bits(same.model))

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"epochs": 0}, "epochs must be at least 1, got 0"),
            ({"max_epochs": 0}, "max_epochs must be at least 1"),
            ({"patience": -1}, "patience must be at least 1"),
            ({"tolerance": 1.0}, "tolerance must be below 1"),
            ({"tolerance": -0.1}, "tolerance must be a finite number >= 0"),
            ({"tolerance": math.nan}, "tolerance must be a finite number >= 0"),
            ({"seed": -1}, "seed must be at least 0"),
            ({"checkpoint_seconds": -1}, "checkpoint_seconds must be a finite number >= 0"),
        ],
    )
    def test_bad_numbers(self, settings, match):
        with pytest.raises(ValueError, match=match):
            train(make_model(), make_data(), **settings)

    @pytest.mark.parametrize(
        "settings",
        [
            {"epochs": 2.0},
            {"epochs": True},
            {"max_epochs": None},
            {"patience": "3"},
            {"tolerance": "1"},
            {"seed": 0.5},
        ],
    )
    def test_numbers_of_the_wrong_kind(self, settings):
        with pytest.raises(TypeError, match=f"{next(iter(settings))} must be"):
            train(make_model(), make_data(), **settings)


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "error", "match"),
        [
            ({"optimizer": "Adm"}, ValueError, "'Adm' is not in torch.optim: did you mean 'Adam'?"),
            ({"optimizer": "zzzz"}, ValueError, "is not in torch.optim: choose one of .*Adagrad.*SGD"),
            ({"optimizer": "lbfgs"}, ValueError, "'LBFGS' cannot be used: .* closure"),
            ({"optimizer": "SparseAdam"}, ValueError, "'SparseAdam' cannot be used: .* sparse"),
            ({"optimizer": "Optimizer"}, ValueError, "is not in torch.optim"),
            ({"optimizer": torch.optim.Adam}, TypeError, "must be the name of a class of torch.optim"),
            ({"optimizer": "muon"}, ValueError, "Muon refuses these parameters or options: .*2D"),
            ({"learning_rate": 0.0}, ValueError, "learning_rate must be a finite number > 0, got 0.0"),
            ({"learning_rate": math.nan}, ValueError, "learning_rate must be a finite number > 0"),
            ({"learning_rate": "1e-3"}, TypeError, "learning_rate must be a finite number > 0, got '1e-3'"),
            ({"optimizer_options": {"lr": 1}}, ValueError, "cannot set 'lr': pass learning_rate instead"),
            ({"optimizer_options": {"differentiable": True}}, ValueError, "cannot set 'differentiable'"),
            (
                {"optimizer_options": {"beta": 1}},
                ValueError,
                "has 'beta', which Adam does not take: .*'betas'",
            ),
            ({"optimizer_options": {"qqq": 1}}, ValueError, "which Adam does not take: it takes betas, eps"),
            ({"optimizer_options": {"betas": (2, 0)}}, ValueError, "Adam refuses .* Invalid beta parameter"),
            (
                {"optimizer_options": {"weight_decay": "x"}},
                ValueError,
                "Adam refuses these parameters or options",
            ),
            ({"optimizer_options": [1]}, TypeError, "optimizer_options must be a dict"),
            ({"resume": True}, ValueError, "resume=True needs the folder of the run"),
            ({"loss": "hinge"}, ValueError, "loss must be 'cross_entropy'"),
            ({"progress": 1}, TypeError, "progress must be True, False or a function"),
            ({"config": {"a": object()}}, TypeError, "config must hold only strings"),
            ({"config": {"a": math.nan}}, TypeError, "config must hold only strings, finite numbers"),
            ({"device": "gpu"}, ValueError, "device must be 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
            ({"device": "meta"}, ValueError, "device must be 'cpu' or 'cuda', got 'meta'"),
        ],
    )
    def test_settings(self, settings, error, match):
        with pytest.raises(error, match=match) as caught:
            train(make_model(), make_data(), epochs=1, **settings)
        assert "\n" not in str(caught.value)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
    def test_no_gpu(self):
        with pytest.raises(ValueError, match="sees no GPU: pass device='cpu'"):
            train(make_model(), make_data(), device="cuda")

    def test_models(self):
        data = make_data()
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
            train(lambda x: x, data)
        with pytest.raises(ValueError, match="no trainable parameter"):
            train(nn.Flatten(), data)
        with pytest.raises(ValueError, match="no trainable parameter"):
            train(nn.Linear(6, 3).requires_grad_(False), data)
        with pytest.raises(ValueError, match="complex parameters"):
            train(nn.Linear(6, 3, dtype=torch.complex64), data)
        with pytest.raises(ValueError, match="lazy parameters"):
            train(nn.LazyLinear(3), data)
        hidden = nn.Linear(6, 3)
        hidden.extra = threading.Lock()
        with pytest.raises(
            ValueError, match=r"the model cannot be copied \(cannot pickle '_thread.lock' object\)"
        ) as caught:
            train(hidden, data)
        assert "\n" not in str(caught.value)

    def test_data_that_do_not_fit_the_model(self):
        inputs, targets = make_data()
        with pytest.raises(ValueError, match=r"does not accept data of shape \(37, 5\), torch.float32: mat1"):
            train(make_model(), (inputs[:, :5], targets))
        with pytest.raises(ValueError, match=r"does not accept test_data of shape \(37, 5\)"):
            train(make_model(), (inputs, targets), test_data=(inputs[:, :5], targets))
        with pytest.raises(ValueError, match=r"targets must be class indices in 0..2 .* got 0..7"):
            train(make_model(), (inputs, targets.clamp(max=0).index_fill(0, torch.tensor([3]), 7)))
        with pytest.raises(ValueError, match="needs targets of the output's shape"):
            train(make_model(), (inputs, inputs), loss="mse")
        with pytest.raises(ValueError, match=r"returned shape \(24,\) for 8 samples of data"):
            train(nn.Sequential(nn.Linear(6, 3), nn.Flatten(0)), (inputs, targets), loss=F.mse_loss)

    def test_losses_that_do_not_fit(self):
        inputs, targets = make_data()
        with pytest.raises(RuntimeError, match=r"^the loss '<lambda>' does not accept outputs \(8, 3\)") as caught:
            train(make_model(), (inputs, inputs[:, :4]), loss=lambda a, b: ((a - b) ** 2).mean())
        assert "\n" not in str(caught.value)
        with pytest.raises(ValueError, match="does not depend on a trainable parameter"):
            train(make_model(), (inputs, targets), loss=lambda a, b: a.detach().mean())
        with pytest.raises(ValueError, match=r"reduce it with .mean"):
            train(make_model(), (inputs, targets), loss=lambda a, b: a.T)

    def test_a_loss_that_explodes_names_epoch_and_batch(self):
        inputs, _ = make_data()
        with pytest.raises(FloatingPointError, match=r"became (nan|inf) at epoch \d+, batch \d of 5: lower") as caught:
            train(
                nn.Linear(6, 1), (inputs, inputs[:, :1]), loss="mse", optimizer="SGD", learning_rate=1e6,
                batch_size=8, epochs=50,
            )  # fmt: skip
        assert "learning_rate (now 1e+06)" in str(caught.value)

    def test_a_loss_that_explodes_in_the_last_step(self):
        inputs, _ = make_data()

        class Breaks(torch.autograd.Function):
            @staticmethod
            def forward(context, x):
                return x.clone()

            @staticmethod
            def backward(context, gradient):
                return gradient * math.nan

        class Broken(nn.Linear):
            def forward(self, x):
                return Breaks.apply(super().forward(x))

        with pytest.raises(FloatingPointError, match="the training loss is not finite after epoch 1: lower"):
            train(Broken(6, 1), (inputs, inputs[:, :1]), loss="mse", epochs=2)

    def test_a_test_loss_that_is_not_finite_is_none(self):
        inputs, _ = make_data()
        run = train(
            nn.Linear(6, 1),
            (inputs, inputs[:, :1]),
            test_data=(inputs, inputs[:, :1] + 1e30),
            loss="mse",
            epochs=1,
        )
        assert run.metrics[0]["test_loss"] is None
        assert "test loss not finite" in str(run)


def test_optimiser_names_are_those_of_torch():
    assert resolve_optimizer("adam") == "Adam"
    assert resolve_optimizer("RMSPROP") == "RMSprop"


def test_differences_name_each_key():
    there = {"a": 1, "b": {"c": 1, "d": {}}, "environment": {"torch": "1", "python": "3.11"}}
    here = {"a": 1.0, "b": {"c": 2, "e": None}, "environment": {"torch": "2", "python": "3.12"}}
    assert differences(there, here) == [
        "b.c is 1 there but 2 here",
        "b.d is {} there but absent here",
        "b.e is absent there but None here",
        "environment.torch is '1' there but '2' here",
    ]
    assert differences(there, here, ignore="environment")[-1].startswith("b.e")
    assert differences(there, there) == []
