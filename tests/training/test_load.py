"""From weights on the disk back to a model, and what is said where they do not fit."""

import pytest
import torch
from torch import nn

from lbgap.networks import mlp
from lbgap.system import files
from lbgap.training import read_run, train
from lbgap.training.load import load_model, load_weights, read_weights

SPEC = {"name": "mlp", "inputs": 6, "hidden": [4], "outputs": 3, "seed": 0}


def make_model(hidden=(4,), seed=0):
    return mlp(6, list(hidden), 3, seed=seed)


def make_run(folder, **extra):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(12, 6, generator=generator), torch.randint(3, (12,), generator=generator)
    return train(make_model(), data, epochs=1, batch_size=4, out=folder, config=extra)


def assert_same(first, second):
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_that_records_its_network_is_rebuilt(tmp_path):
    run = make_run(tmp_path, network=SPEC)
    model = load_model(read_run(tmp_path))
    assert_same(model, run.model)
    assert not model.training


def test_a_run_on_a_model_of_ones_own_needs_it(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(
        ValueError, match="trained on a model of your own, which it cannot rebuild: pass it with --model"
    ):
        load_model(read_run(tmp_path))
    own = make_model(seed=1)
    assert load_model(read_run(tmp_path), own) is own
    assert_same(own, run.model)
    assert not own.training


def test_a_model_that_is_passed_goes_before_the_recorded_one(tmp_path):
    make_run(tmp_path, network=SPEC)
    with pytest.raises(ValueError, match=f"the weights of {tmp_path} do not fit the model"):
        load_model(read_run(tmp_path), make_model(hidden=(5,)))


def test_a_recorded_network_that_this_version_does_not_know(tmp_path):
    make_run(tmp_path, network={**SPEC, "name": "lstm"})
    with pytest.raises(ValueError, match=r"network must be one of f1, .*, mlp.*, got 'lstm'"):
        load_model(read_run(tmp_path))


class TestFile:
    def test_weights_are_read(self, tmp_path):
        model = make_model(seed=1)
        files.write_safetensors(tmp_path / "w.safetensors", model.state_dict(), {})
        found = read_weights(make_model().train(), tmp_path / "w.safetensors")
        assert_same(found, model)
        assert not found.training

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"w.safetensors"):
            read_weights(make_model(), tmp_path / "w.safetensors")

    @pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"\x80\x04" + data])
    def test_a_damaged_file_is_named(self, tmp_path, damage):
        path = tmp_path / "w.safetensors"
        files.write_safetensors(path, make_model().state_dict(), {})
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ValueError, match=r"w.safetensors is damaged, not safetensors \(.*\): restore or delete it"):
            read_weights(make_model(), path)

    def test_a_pickle_is_not_opened(self, tmp_path):
        torch.save(make_model().state_dict(), tmp_path / "w.pt")
        with pytest.raises(ValueError, match=r"w.pt is damaged, not safetensors"):
            read_weights(make_model(), tmp_path / "w.pt")


class TestFit:
    def refused(self, message, weights, model=None):
        model = model or make_model()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            load_weights(model, weights, "w.safetensors")
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_a_missing_tensor(self):
        weights = make_model().state_dict()
        del weights["0.bias"]
        self.refused("the weights of w.safetensors do not fit the model: '0.bias' is missing$", weights)

    def test_a_tensor_left_over(self):
        weights = make_model().state_dict() | {"head.weight": torch.zeros(1)}
        self.refused("do not fit the model: 'head.weight' is not in the model$", weights)

    def test_another_shape(self):
        weights = make_model().state_dict() | {"0.bias": torch.zeros(5)}
        self.refused(r"'0.bias' has shape \(5,\), the model needs \(4,\)$", weights)

    def test_the_first_three_of_many(self):
        message = (
            "'4.weight' is not in the model, '4.bias' is not in the model, '4.running_mean' is not in the model and"
        )
        self.refused(rf"do not fit the model: {message} \d+ more$", make_model((9, 9)).state_dict())

    def test_a_model_without_shapes(self):
        lazy = nn.Sequential(nn.LazyLinear(3))
        with pytest.raises(ValueError, match=r"parameter '0.weight' of the model has no shape yet: run one batch"):
            load_weights(lazy, {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(3)}, "w.safetensors")
