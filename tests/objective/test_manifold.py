"""Random manifolds: the objective on its coordinates, the measure on several of them, and its memory."""

import json
import math
import statistics

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lbgap import Objective, _extension, fast_sharpness
from lbgap.maximize.region import REGIONS, box
from lbgap.maximize.search import METHODS
from lbgap.objective.coordinates import DISTRIBUTIONS
from lbgap.reference import subspace_entries

needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float64)
ARGS = (17, 2)  # seed and stream

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(n, p, distribution, first=0):
    return subspace_entries(n, p, *ARGS, distribution, CPU, first=first).double()


def network(precision="float64", backend="auto", samples=60):
    """Parameters that are no minimizer, so that gradients are not tiny."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(0.5 * normal(*parameter.shape, seed=index))
    data = normal(samples, 4, dtype=torch.float32), torch.arange(samples) % 3
    return Objective(model, data, precision=precision, backend=backend)


class Bare(nn.Module):
    """Nothing but parameters: they are the output for every sample."""

    def __init__(self, x):
        super().__init__()
        self.x = nn.Parameter(x)

    def forward(self, inputs):
        return self.x.expand(len(inputs), -1)


def quadratic(x, hessian):
    def loss(output, target):
        return (output @ hessian * output).sum(1).mean() / 2

    return Objective(Bare(x), (torch.zeros(1, 1), torch.zeros(1)), loss=loss, precision="float64")


def matrix(manifold, n):
    """The manifold's A, column by column, in float64."""
    entries = "normal" if manifold.coordinates.distribution == "unit" else manifold.coordinates.distribution
    a = subspace_entries(n, manifold.n, manifold.coordinates.seed, manifold.coordinates.trial, entries, CPU).double()
    return a / a.norm(dim=0) if manifold.coordinates.distribution == "unit" else a


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("backend_name", [pytest.param("native", marks=needs_native), "torch"])
def test_coordinates_loss_and_gradient(distribution, backend_name):
    objective = network(backend=backend_name)
    manifold = objective.manifold(9, seed=3, trial=2, distribution=distribution)
    a, x = matrix(manifold, objective.n), objective.theta
    w0 = manifold.theta
    assert (w0.shape, w0.dtype, manifold.n) == ((9,), torch.float64, 9)
    # 59 by 9 entries: the condition number is small, and errors are a few hundred units.
    torch.testing.assert_close(w0, torch.linalg.lstsq(a, x[:, None]).solution[:, 0], rtol=1e-12, atol=1e-13)
    assert torch.equal(manifold.point(w0), x)
    assert float(manifold.loss(w0)) == float(objective.loss(x))
    w = w0 + 0.1 * normal(9, seed=5)
    point = x + a @ (w - w0)
    torch.testing.assert_close(manifold.point(w), point, rtol=1e-13, atol=1e-14)
    value, gradient = manifold.loss_and_gradient(w)
    full_value, full_gradient = objective.loss_and_gradient(point)
    torch.testing.assert_close(value, full_value, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient, a.T @ full_gradient, rtol=1e-11, atol=1e-13)
    out = torch.empty_like(w)
    assert manifold.direction(w, out=out)[1] is out
    assert torch.equal(out, gradient)
    value, gradient = manifold.log_probability_direction(w, 1)
    torch.testing.assert_close(gradient, a.T @ objective.log_probability_direction(point, 1)[1], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(manifold.losses(torch.stack([w0, w])), objective.losses(torch.stack([x, point])))


def test_it_offers_what_an_objective_does():
    objective = network()
    before = objective.evaluated
    manifold = objective.manifold(4)
    assert (manifold.samples, manifold.classes, manifold.mixed, manifold.coupled) == (60, 3, False, False)
    assert (manifold.device, manifold.dtype, manifold.backend) == (CPU, torch.float64, objective.backend)
    assert (manifold.evaluations, objective.evaluated) == (0, before)
    manifold.loss(manifold.theta)
    few = manifold.subset(30)
    assert float(few.loss(manifold.theta)) == float(objective.subset(30).loss(objective.theta))
    assert manifold.evaluations == 1.5
    assert objective.evaluated == before + 60 + 30 + 30
    settings = manifold.settings()
    assert settings == objective.settings() | {"subspace": 4, "distribution": "normal", "seed": 0, "trial": 0}
    json.dumps(settings)
    with pytest.raises(ValueError, match=r"theta must be \(4,\) torch.float64"):
        manifold.loss(objective.theta)


def test_float32_manifold_rounds_once():
    objective = network("float32")
    manifold = objective.manifold(5)
    w = manifold.theta + 0.1 * normal(5)
    exact = objective.theta.double() + matrix(manifold, objective.n) @ (w - manifold.theta)
    error = (manifold.point(w).double() - exact).abs()
    assert (error <= 2.0**-24 * (1 + 1e-6) * exact.abs()).all()
    assert float(manifold.loss(w)) == float(objective.loss(manifold.point(w)))


def test_every_trial_and_seed_is_another_manifold():
    objective = network()
    drawn = [objective.manifold(5, seed=seed, trial=trial).theta for seed in (0, 1) for trial in (0, 1, 2)]
    assert len({tuple(w.tolist()) for w in drawn}) == 6
    assert torch.equal(objective.manifold(5, seed=1, trial=2).theta, drawn[-1])


def test_unit_columns_have_length_one():
    objective = network()
    manifold = objective.manifold(6, distribution="unit")
    w0 = manifold.theta
    for j in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[j] = 1
        length = (manifold.point(w0 + step) - objective.theta).norm()
        assert float(length) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("region", REGIONS)
def test_as_many_columns_as_parameters(region):
    """A random square matrix: x = A w0, and the box of w is exact; a linear loss has its maximum at a vertex."""
    n = 12
    x = normal(n, seed=2)
    slope = normal(n, seed=3)

    def loss(output, target):
        return 10 + (output @ slope).mean()

    objective = Objective(Bare(x), (torch.zeros(1, 1), torch.zeros(1)), loss=loss, precision="float64")
    s = fast_sharpness(objective, subspace=n, trials=3, epsilon=1e-3, region=region)
    for trial, value in enumerate(s.values):
        manifold = objective.manifold(n, trial=trial)
        a = matrix(manifold, n)
        w0 = torch.linalg.solve(a, x)
        half_width = box(region, w0, 1e-3).half_width()
        rise = float((a.T @ slope).abs() @ half_width)
        base = 10 + float(x @ slope)
        # w0 carries the condition number of A, at most a few hundred here, times rounding.
        assert value == pytest.approx(100 * rise / (1 + base), rel=1e-10)


def test_a_quadratic_has_its_maximum_at_the_best_vertex():
    """At a minimizer at 0 the box on w is epsilon wide, and f = w' A'HA w / 2 is largest at one of 2^p vertices."""
    n, p, epsilon = 30, 4, 1e-2
    root = normal(n, n, seed=4)
    objective = quadratic(torch.zeros(n, dtype=torch.float64), root @ root.T)
    s = fast_sharpness(objective, subspace=p, trials=2, epsilon=epsilon, restarts=30)
    for trial, value in enumerate(s.values):
        a = matrix(objective.manifold(p, trial=trial), n)
        vertices = epsilon * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * p)
        largest = float(((vertices @ a.T @ root).square().sum(1) / 2).max())
        assert value == pytest.approx(100 * largest, rel=1e-12)


# The measure


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_point_is_on_the_manifold_and_its_coordinates_in_the_box(method, distribution):
    objective = network()
    s = fast_sharpness(objective, subspace=7, trials=2, distribution=distribution, method=method, epsilon=1e-2, seed=5)
    assert s.point.shape == (objective.n,)
    assert float(objective.loss(s.point)) == s.max_loss
    best = int(np.argmax(s.values))
    assert s.values[best] == 100 * (s.max_loss - s.base_loss) / (1 + s.base_loss)
    manifold = objective.manifold(7, seed=5, trial=best, distribution=distribution)
    a = matrix(manifold, objective.n)
    moved = s.point - objective.theta
    z = torch.linalg.lstsq(a, moved[:, None]).solution[:, 0]
    torch.testing.assert_close(a @ z, moved, rtol=0, atol=1e-14)
    half_width = 1e-2 * (manifold.theta.abs() + 1)
    # The differences of the points lost two digits.
    assert (z.abs() <= half_width * (1 + 1e-12)).all()


def test_values_mean_and_deviation():
    objective = network("float32")
    first = objective.evaluated
    s = fast_sharpness(objective, subspace=7, epsilon=1e-2)
    assert len(s.values) == 5
    assert len(set(s.values)) == 5
    assert all(value > 0 for value in s.values)
    assert s.value == statistics.fmean(s.values)
    assert s.standard_deviation == statistics.stdev(s.values)
    assert s.evaluations == (objective.evaluated - first) / 60
    assert [climb["trial"] for climb in s.starts] == [0, 1, 2, 3, 4]
    kept = {"subspace": 7, "trials": 5, "distribution": "normal", "seed": 0, "n": objective.n}
    assert s.settings == s.settings | kept
    again = fast_sharpness(objective, subspace=7, epsilon=1e-2)
    assert again.values == s.values
    assert torch.equal(again.point, s.point)
    assert fast_sharpness(objective, subspace=7, epsilon=1e-2, trials=2).values == s.values[:2]
    found = s.to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["values"] == list(s.values)
    assert "mean of 5 random manifolds of 7 dimensions, normal; standard deviation" in str(s)


def test_one_value_has_no_deviation():
    objective = network("float32")
    for options in ({}, {"subspace": 3, "trials": 1}):
        s = fast_sharpness(objective, **options)
        assert s.values == (s.value,)
        assert math.isnan(s.standard_deviation)
        assert s.to_dict()["standard_deviation"] is None


@needs_native
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_both_backends_find_the_same(distribution):
    found = [
        fast_sharpness(network(backend=backend), subspace=6, trials=2, distribution=distribution).values
        for backend in ("native", "torch")
    ]
    # Sums of 59 numbers in another order.
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_restarts_and_scouts_work_on_a_manifold(minimizers, mnist1d_train):
    plain = fast_sharpness(minimizers["LB"], mnist1d_train, subspace=10, trials=2)
    more = fast_sharpness(minimizers["LB"], mnist1d_train, subspace=10, trials=2, restarts=3)
    assert more.settings["scout"] == 128
    assert all(m >= p for m, p in zip(more.values, plain.values, strict=True))
    assert {climb["samples"] for climb in more.starts} == {128, 2000}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"subspace": 0}, ValueError, "subspace must be between 1"),
        ({"subspace": 10**6}, ValueError, "subspace must be at most the number of parameters that may move, 51, got"),
        ({"subspace": 2.5}, TypeError, "subspace must be a whole number, got 2.5"),
        ({"subspace": True}, TypeError, "subspace must be a whole number"),
        ({"subspace": 3, "trials": 0}, ValueError, "trials must be between 1"),
        ({"subspace": 3, "trials": "5"}, TypeError, "trials must be a whole number"),
        ({"subspace": 3, "distribution": "gauss"}, ValueError, "one of 'normal', 'uniform', 'rademacher', 'unit', got"),
        ({"trials": 5}, ValueError, "trials belongs to a random manifold, got 5 without subspace"),
        ({"distribution": "unit"}, ValueError, "distribution belongs to a random manifold, got 'unit' without"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        fast_sharpness(network(), **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number"),
        ({"trial": 2**32}, ValueError, "trial must be between 0 and 4,294,967,295"),
        ({"trial": None}, TypeError, "trial must be a whole number"),
    ],
)
def test_bad_manifolds(options, error, message):
    with pytest.raises(error, match=message):
        network().manifold(3, **options)


def test_a_manifold_of_a_manifold_is_refused():
    with pytest.raises(ValueError, match="this objective is on a part of the space already: pass the one that it was"):
        network().manifold(3).manifold(2)


def test_columns_that_depend_on_each_other_are_refused():
    """Two by two signs are parallel columns half of the time: of 20 seeds some are, and the others are not."""
    objective = quadratic(torch.ones(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    refused = 0
    for seed in range(20):
        a = subspace_entries(2, 2, seed, 0, "rademacher", CPU)
        if float(a.double().det()) == 0:
            refused += 1
            with pytest.raises(ValueError, match="the 2 random columns do not span 2 dimensions of 2: choose"):
                objective.manifold(2, seed=seed, distribution="rademacher")
        else:
            w0 = objective.manifold(2, seed=seed, distribution="rademacher").theta
            torch.testing.assert_close(a.double() @ w0, objective.theta, rtol=1e-15, atol=1e-15)
    assert 0 < refused < 20


# Memory


class Allocated(TorchDispatchMode):
    """The most bytes that tensors made inside hold at a time, as far as their operators return them."""

    def __init__(self):
        super().__init__()
        self.alive = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        old = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in old:
                    self.alive[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {at: entry for at, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


@pytest.mark.parametrize("backend_name", [pytest.param("native", marks=needs_native), "torch"])
def test_memory_is_at_most_four_vectors(backend_name):
    """Beside what the objective itself holds: nothing of the size of A."""
    n, p = 1_000_000, 10

    def loss(output, target):
        return output.mean()

    data = (torch.zeros(1, 1), torch.zeros(1))
    objective = Objective(Bare(torch.zeros(n)), data, loss=loss, backend=backend_name, batch_size=1)
    with Allocated() as plain:
        objective.loss_and_gradient(objective.theta, out=torch.empty(n))
    with Allocated() as allocated:
        manifold = objective.manifold(p)
        manifold.loss_and_gradient(manifold.theta)
        manifold.point(manifold.theta)
    assert n < plain.peak / 4 < 10 * n
    assert allocated.peak <= 4 * 4 * n
