"""One set of checks: what counts as a whole number, everywhere."""

import json
import math
import re
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import lbgap
from lbgap import networks
from lbgap.checks import amount, counted, finite, flag, is_whole, json_value, number, positive, real, several, whole
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


HALVES = [
    0.5,
    np.float64(0.5),
    np.float32(0.5),
    np.array(0.5),
    torch.tensor(0.5),
    torch.tensor(0.5, dtype=torch.bfloat16),
    torch.tensor(0.5, requires_grad=True),
    nn.Parameter(torch.tensor(0.5)),
    Fraction(1, 2),
]


@pytest.mark.parametrize("half", HALVES, ids=lambda value: type(value).__name__)
def test_numbers_of_any_library_are_numbers(half):
    for found in (number(half), real("x", half, positive=True), positive("x", half, "1"), finite("x", half)):
        assert type(found) is float
        assert found == 0.5


NO_NUMBERS = [True, np.True_, torch.tensor(True), "0.5", None, 1j, [0.5], np.array([0.5]), torch.tensor([0.5])]
NO_NUMBERS += [torch.empty((), device="meta"), torch.ones(1).to_sparse(), torch.tensor(1j), torch.zeros(30, 40)]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_nothing_else_is_a_number(value):
    assert number(value) is None
    for check in (
        lambda: real("x", value, positive=True),
        lambda: positive("x", value, "1"),
        lambda: finite("x", value),
    ):
        with pytest.raises(TypeError, match=r"^x must be a .*number.*, got .+$") as caught:
            check()
        assert len(str(caught.value)) < 200


def test_numbers_beyond_floats_are_infinite():
    assert (number(10**400), number(-(10**400))) == (math.inf, -math.inf)
    with pytest.raises(ValueError, match="x must be finite"):
        finite("x", 10**400)


@pytest.mark.parametrize("true", [True, np.True_, np.array(True), torch.tensor(True)])
def test_booleans_of_any_library_are_flags(true):
    assert flag("x", true) is True


@pytest.mark.parametrize(
    "value", [1, 0, "yes", None, np.array([True]), torch.tensor([True]), torch.tensor(1)], ids=repr
)
def test_nothing_else_is_a_flag(value):
    with pytest.raises(TypeError, match=re.escape(f"x must be True or False, got {value!r}")):
        flag("x", value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (np.int64(3), 3),
        (1, 1),
        (0.1, 4),
        (np.float32(0.5), 20),
        ("10%", 4),
        (" 2.5 %", 1),
        ("100%", 40),
        (1.0, 40),
    ],
)
def test_amounts_of_samples(value, expected):
    found = amount("n", value)
    assert isinstance(found, int) == (isinstance(expected, int) and not isinstance(value, float | str | np.floating))
    assert counted(found, 40) == expected


@pytest.mark.parametrize("value", ["10", "%", "ten%", "", None, True, [3], torch.tensor([3])], ids=repr)
def test_nothing_else_is_an_amount(value):
    message = f"n must be a whole number of samples, or a share such as 0.1 or '10%', got {value!r}"
    with pytest.raises(TypeError, match=re.escape(message)):
        amount("n", value)


@pytest.mark.parametrize("value", ["0%", "-1%", "101%", "nan%", 0.0, 2.0, math.nan, torch.tensor(1.5)], ids=repr)
def test_shares_are_above_zero_and_at_most_all(value):
    with pytest.raises(ValueError, match=r"is a share of the samples, above 0 and at most all, got .*: pass an int"):
        amount("n", value)


def test_lists_of_any_library():
    for values in ([1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2]), range(1, 3), iter((1, 2))):
        assert several(values) == [1, 2]
    for values in (
        "12",
        b"12",
        {1, 2},
        {1: 2},
        1,
        None,
        torch.tensor(1),
        np.ones((2, 2)),
        torch.ones(2, device="meta"),
    ):
        assert several(values) is None


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


def other():
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))


def timeless(found):
    if isinstance(found, dict):
        return {name: timeless(value) for name, value in found.items() if name != "seconds"}
    return [timeless(value) for value in found] if isinstance(found, list) else found


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


def number_of(value):
    """A float in the ways of each library; in float32 too, so that it has to be one of its numbers."""
    return [value, np.float64(value), torch.tensor(value, requires_grad=True)]


REAL_CALLS = {
    "fast_sharpness": lambda o, x: lbgap.fast_sharpness(o, epsilon=x),
    "layers": lambda o, x: lbgap.layer_sharpness(o, epsilon=x),
    "curve": lambda o, x: lbgap.sharpness_curve(o, epsilons=(x,)),
    "ball": lambda o, x: lbgap.ball_sharpness(o, radius=x, eta=x, adaptive=np.True_),
    "average": lambda o, x: lbgap.average_sharpness(o, sigma=x, relative_error=x, draws=8, adaptive=np.False_),
    "pac-bayes": lambda o, x: lbgap.pac_bayes_sigma(o, deviation=x, eps=x, tolerance=x, draws=4),
    "critical": lambda o, x: lbgap.critical_sharpness(o, initial=x, tolerance=x),
    "batch": lambda o, x: lbgap.batch_sharpness(o, batch=x, relative_error=x, draws=4),
    "noise": lambda o, x: lbgap.noise_scale(o, batch=x, relative_error=x, draws=4),
    "trace": lambda o, x: lbgap.hessian_trace(o, relative_error=x, max_products=9),
    "diagonal": lambda o, x: lbgap.hessian_diagonal(o, relative_error=x, max_products=9),
    "density": lambda o, x: lbgap.spectral_density(
        o, steps=4, points=9, resolution=x, relative_error=x, threshold=x, max_products=9
    ),
    "eigenvalues": lambda o, x: lbgap.eigenvalues(o, k=1, tolerance=x, max_products=20),
    "mass": lambda o, x: lbgap.positive_mass(o, threshold=x, relative_error=x, max_products=30, top=2, steps=3),
    "stability": lambda o, x: lbgap.edge_of_stability(
        o, learning_rate=x, momentum=x, tolerance=x, nesterov=np.True_, max_products=30
    ),
    "asymmetry": lambda o, x: lbgap.asymmetry(o, distances=(x, np.float64(1)), top=1, random=1),
    "samples": lambda o, x: lbgap.fast_sharpness(o, samples=x, scout=x, restarts=2),
    "line": lambda o, x: lbgap.line(o, other(), points=3, low=-x if not hasattr(x, "numpy") else x.neg(), high=x),
    "connect": lambda o, x: lbgap.connect(
        small(), other(), DATA, epochs=1, points=3, learning_rate=x, train_batch_size=x
    ),
    "plane": lambda o, x: lbgap.plane(
        small(), DATA, points=np.array([3, 3]), refine=x, x_range=(0, x), y_range=torch.tensor([0, 1])
    ),
}


@pytest.mark.parametrize("name", REAL_CALLS)
def test_measures_take_numbers_of_any_library(name):
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in number_of(0.25):
            found = REAL_CALLS[name](lbgap.Objective(small(), DATA), value).to_dict()
            results.append(json.dumps(timeless(found)))
    assert len(set(results)) == 1


def test_lists_may_be_arrays():
    objective = lbgap.Objective(small(), DATA)
    for make in (list, np.array, torch.tensor):
        assert lbgap.sharpness_curve(objective, epsilons=make([0.25, 0.5])).epsilons == (0.25, 0.5)
        assert lbgap.asymmetry(objective, distances=make([0.25, 0.5]), top=1, random=0).distances == (0.25, 0.5)
        assert networks.mlp(3, make([4, 5]), 2, seed=0)[0].out_features == 4
        runs = lbgap.train_together([small(), other()], DATA, seeds=make([1, 2]), epochs=1, batch_size="50%")
        assert [run.config["seed"] for run in runs] == [1, 2]


def test_training_takes_numbers_of_any_library():
    runs = []
    for value in number_of(0.25):
        options = {"learning_rate": value, "tolerance": value, "checkpoint_seconds": value, "batch_size": value}
        remedies = [lbgap.remedies.SAM(rho=value), lbgap.remedies.Conservative(lam=value)]
        for each in remedies:
            assert json.dumps(each.settings())
        run = lbgap.train(small(), DATA, max_epochs=2, remedies=remedies[:1], **options)
        runs.append(json.dumps([run.config, [timeless(row) for row in run.metrics]]))
    assert len(set(runs)) == 1


def test_a_share_of_the_samples_is_the_number_that_it_is():
    for share in ("25%", 0.25):
        assert lbgap.Objective(small(), DATA, batch_size=share).batch_size == 3
        assert lbgap.train(small(), DATA, batch_size=share, epochs=1).config["batch_size"] == 3
        objective = lbgap.Objective(small(), DATA)
        assert objective.subset(share).samples == objective.sample(share).samples == 3
        found = lbgap.fast_sharpness(objective, samples=share, scout=share, restarts=1)
        assert (found.searched["samples"], found.settings["scout"]) == (3, 1)
        assert lbgap.batch_sharpness(objective, batch=share).settings["batch"] == 3
        line = lbgap.line(small(), other(), DATA, points=3, test_data=DATA, batch_size=share)
        assert line.settings["batch_size"] == 3
        path = lbgap.connect(small(), other(), DATA, epochs=1, points=3, train_batch_size=share)
        assert path.settings["train_batch_size"] == 3


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
