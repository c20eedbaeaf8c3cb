"""One set of checks: what counts as a whole number, everywhere."""

import json
import re

import numpy as np
import pytest
import torch

import lbgap
from lbgap import networks
from lbgap.checks import flag, is_whole, json_value, positive, real, whole
from lbgap.datasets import mnist1d

THREES = [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.int32)]


@pytest.mark.parametrize("three", THREES, ids=lambda value: type(value).__name__)
def test_integers_of_any_library_are_whole(three):
    found = whole("n", three, 3)
    assert type(found) is int
    assert found == 3
    assert is_whole(three)


OTHERS = [
    torch.empty((), dtype=torch.int64, device="meta"),
    True,
    np.True_,
    torch.tensor(True),
    3.0,
    np.float64(3),
    torch.tensor(3.0),
    torch.tensor([3]),
    "3",
    None,
]


@pytest.mark.parametrize("value", OTHERS, ids=repr)
def test_nothing_else_is(value):
    assert not is_whole(value)
    with pytest.raises(TypeError, match=re.escape(f"n must be a whole number, got {value!r}")):
        whole("n", value, 0)


def test_a_range_is_told():
    with pytest.raises(ValueError, match=r"^n must be at least 3, got 2$"):
        whole("n", 2, 3)
    with pytest.raises(ValueError, match=r"^n must be below 2\*\*63, got 9223372036854775808$"):
        whole("n", 2**63, 3)
    for value in (0, 1001):
        with pytest.raises(ValueError, match=rf"^n must be between 1 and 1,000, got {value}$"):
            whole("n", value, 1, 1001)


def test_other_kinds():
    assert real("x", np.float32(2), positive=True) == positive("x", 2, "1") == 2.0
    assert json_value("x", (1, "a")) == [1, "a"]
    for check in (lambda: real("x", -1, positive=False), lambda: positive("x", 0, "1")):
        with pytest.raises(ValueError, match="x must be"):
            check()
    with pytest.raises(TypeError, match="must be True or False, got 1"):
        flag("x", 1)


def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))


DATA = (torch.eye(3).repeat(4, 1), torch.tensor([0, 1, 1] * 4))
CALLS = {
    "fast_sharpness": lambda o, n: lbgap.fast_sharpness(o, restarts=n, iterations=n, seed=n),
    "manifold": lambda o, n: lbgap.fast_sharpness(o, subspace=n, trials=n, seed=n),
    "samples": lambda o, n: lbgap.fast_sharpness(o, samples=n, scout=n, restarts=n, seed=n),
    "ball": lambda o, n: lbgap.ball_sharpness(o, radius=0.1, iterations=n, restarts=n, seed=n),
    "average": lambda o, n: lbgap.average_sharpness(o, draws=n, seed=n),
    "pac-bayes": lambda o, n: lbgap.pac_bayes_sigma(o, draws=n, seed=n),
    "flatness": lambda o, n: lbgap.relative_flatness(o, draws=n, seed=n, exact=False),
    "critical": lambda o, n: lbgap.critical_sharpness(o, doublings=n),
    "batch": lambda o, n: lbgap.batch_sharpness(o, batch=n, draws=n, seed=n),
    "noise": lambda o, n: lbgap.noise_scale(o, batch=n, draws=n, seed=n),
    "trace": lambda o, n: lbgap.hessian_trace(o, max_products=10 * n, seed=n),
    "hutch++": lambda o, n: lbgap.hessian_trace(o, method="hutch++", max_products=10 * n, sketch=n, seed=n),
    "diagonal": lambda o, n: lbgap.hessian_diagonal(o, max_products=n, seed=n),
    "density": lambda o, n: lbgap.spectral_density(o, steps=n, points=n, max_products=10 * n, seed=n),
    "eigenvalues": lambda o, n: lbgap.eigenvalues(o, k=n, max_products=20 * n, block=n, seed=n),
    "mass": lambda o, n: lbgap.positive_mass(o, top=n, steps=n, max_products=20 * n, seed=n),
    "stability": lambda o, n: lbgap.edge_of_stability(o, learning_rate=0.1, max_products=20 * n, seed=n),
    "asymmetry": lambda o, n: lbgap.asymmetry(o, top=n, random=n, seed=n),
}


@pytest.mark.parametrize("name", CALLS)
def test_measures_take_them_and_are_the_same(name):
    results = []
    for three in (3, np.int64(3), torch.tensor(3)):
        found = CALLS[name](lbgap.Objective(small(), DATA), three).to_dict()
        found.pop("seconds", None)
        results.append(json.dumps({key: value for key, value in found.items() if key != "starts"}))
    assert results[0] == results[1] == results[2]


def test_landscapes_networks_and_training_take_them():
    ends = [networks.mlp(3, [size], 2, seed=seed) for size, seed in ((4, 0), (np.int64(4), torch.tensor(1)))]
    for three in (3, np.int64(3), torch.tensor(3)):
        assert len(lbgap.line(*ends, DATA, points=three).alphas) == 3
        assert lbgap.connect(*ends, DATA, bends=1, epochs=three, points=three, seed=three).settings["epochs"] == 3
        plane = lbgap.plane(ends[0], DATA, points=three, seed=three, normalise="none")
        assert json.dumps(plane.to_dict()["settings"])
        run = lbgap.train(ends[0], DATA, epochs=three, batch_size=three, seed=three)
        assert json.dumps(run.config)
        assert run.epoch == 3
        assert lbgap.Objective(ends[0], DATA, batch_size=three).settings()["batch_size"] == 3
        remedies = lbgap.remedies.SWA(start=three), lbgap.remedies.Batches(sizes={2: three})
        assert [json.dumps(remedy.settings()) for remedy in remedies] == [
            '{"start": 3, "every": 1}',
            '{"2": 3}',
        ]


def test_samples_of_a_data_set_are_whole():
    assert len(mnist1d(samples=np.int64(20)).train.inputs) == 16
    with pytest.raises(TypeError, match=r"samples must be a whole number, got 20\.0"):
        mnist1d(samples=20.0)
    with pytest.raises(ValueError, match="mnist1d needs at least 10 samples, got -1: one of each class"):
        mnist1d(samples=-1)
