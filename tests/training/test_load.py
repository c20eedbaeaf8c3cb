"""From a run folder back to the model that was trained."""

import pytest
import torch

from lbgap.networks import mlp
from lbgap.training import read_run, train
from lbgap.training.load import load_model

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
