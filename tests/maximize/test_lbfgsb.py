"""L-BFGS-B: minima of quadratics against SciPy's, its model against a dense one, its memory and its waits."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lbgap import Objective, _extension, fast_sharpness, ops, reference
from lbgap.maximize import lbfgsb
from lbgap.maximize.lbfgsb import HISTORY, History, Minimiser
from lbgap.maximize.region import box
from lbgap.maximize.search import maximise
from lbgap.networks import mlp

needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")
BACKENDS = [pytest.param("native", marks=needs_native), "torch"]


pytestmark = pytest.mark.usefixtures("one_thread")


class Quadratic:
    """A convex quadratic between bounds of every kind: ``x' H x / 2 - b' x``, H diagonal plus a rank of two."""

    def __init__(self, n, seed=0, condition=30.0, dtype=torch.float64):
        random = np.random.default_rng([seed, n])
        tensor = torch.from_numpy
        self.diagonal = tensor(condition ** random.uniform(size=n)).to(dtype)
        self.low_rank = tensor(random.normal(size=(2, n)) / math.sqrt(n)).to(dtype)
        self.b = tensor(random.normal(size=n)).to(dtype)
        kinds = random.integers(0, 10, n)
        lower, upper = -0.1 * random.exponential(size=n), 0.1 * random.exponential(size=n)
        lower[kinds == 0], upper[kinds == 1] = -np.inf, np.inf
        lower[kinds == 2], upper[kinds == 2] = -np.inf, np.inf
        lower[kinds == 3] = upper[kinds == 3]  # fixed
        self.lower, self.upper = tensor(lower).to(dtype), tensor(upper).to(dtype)
        self.evaluations = 0

    def start(self):
        return torch.zeros_like(self.b).clamp(self.lower, self.upper)

    def __call__(self, x, gradient):
        self.evaluations += 1
        torch.mul(self.diagonal, x, out=gradient)
        gradient += (self.low_rank @ x) @ self.low_rank
        value = float((gradient.double() / 2 - self.b.double()) @ x.double())
        gradient -= self.b
        return value

    def in_scipy(self):
        def fun(x):
            gradient = torch.empty_like(self.b)
            return self(torch.from_numpy(x), gradient), gradient.numpy()

        bounds = scipy.optimize.Bounds(self.lower.numpy(), self.upper.numpy())
        options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-9}
        start = self.start().numpy()
        return scipy.optimize.minimize(fun, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)

    def run(self, **options):
        return Minimiser(self, self.start(), self.lower, self.upper, **options)


def projected(run, lower, upper):
    return float(((run.x - run.gradient).clamp(lower, upper) - run.x).abs().max())


# Minima


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("condition", [1.0, 30.0, 1e3])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 200, 5000])
def test_convex_quadratics(n, condition, backend):
    problem = Quadratic(n, condition=condition)
    run = problem.run(backend=backend)
    found = run.minimise(2000, gradient_tolerance=1e-9, value_tolerance=1e-15)
    expected = problem.in_scipy()
    assert found.value == pytest.approx(expected.fun, rel=1e-8, abs=1e-12)
    assert ((run.x >= problem.lower) & (run.x <= problem.upper)).all()
    assert found.status.startswith("converged")
    # A gradient p that is left lets a step of p / L gain p^2 / 2 L: no more than the last digits of the value.
    largest = condition + 20
    assert projected(run, problem.lower, problem.upper) <= math.sqrt(2 * largest * 1e-12 * max(abs(found.value), 1))
    if n >= 200:
        assert 0.3 < ((run.x == problem.lower) | (run.x == problem.upper)).double().mean() < 0.95


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_coordinates(backend):
    problem = Quadratic(100_000, condition=5.0)
    found = problem.run(backend=backend).minimise(100, value_tolerance=1e-12)
    assert found.value == pytest.approx(problem.in_scipy().fun, rel=1e-8)


@needs_native
def test_a_million_coordinates_of_a_separable_function():
    """The minimum is known: each coordinate goes to ``b / d``, or to the bound before it."""
    problem = Quadratic(1_000_000, condition=4.0)
    problem.low_rank.zero_()
    run = problem.run()
    found = run.minimise(20, value_tolerance=1e-13)
    expected = (problem.b / problem.diagonal).clamp(problem.lower, problem.upper)
    minimum = problem(expected, torch.empty_like(expected))
    assert found.value == pytest.approx(minimum, rel=1e-8)
    assert found.value >= minimum * (1 + 1e-12)


@needs_native
@pytest.mark.parametrize("n", [17, 1000, 100_000])
def test_float32_reaches_the_minimum_of_float64(n):
    narrow = Quadratic(n, dtype=torch.float32)
    wide = Quadratic(n)
    for name in ("diagonal", "low_rank", "b", "lower", "upper"):
        setattr(wide, name, getattr(narrow, name).double())
    run = narrow.run()
    run.minimise(200, gradient_tolerance=0.0, value_tolerance=0.0)
    value = wide(run.x.double(), torch.empty_like(wide.b))
    minimum = wide.run().minimise(2000, gradient_tolerance=1e-9, value_tolerance=1e-15).value
    assert minimum <= value + 1e-12 * abs(value)
    assert value == pytest.approx(minimum, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_degenerate_bounds(backend):
    """Half of the bounds are active without a gradient that presses against them, and one variable in ten is fixed."""
    random = np.random.default_rng(0)
    n = 300
    mix = torch.from_numpy(random.normal(size=(n, n))) / math.sqrt(n)
    minimum = torch.from_numpy(random.normal(size=n))
    side = torch.from_numpy(random.integers(0, 4, n))
    lower = torch.where(side == 0, minimum, minimum - 1)
    upper = torch.where(side == 1, minimum, minimum + 1)
    lower[::10] = upper[::10] = minimum[::10]

    def evaluate(x, gradient):
        residual = mix @ (x - minimum)
        gradient.copy_(mix.T @ residual + 0.1 * (x - minimum))
        return float(residual @ residual + 0.1 * (x - minimum) @ (x - minimum)) / 2

    start = (minimum + torch.from_numpy(random.normal(size=n))).clamp(lower, upper)
    run = Minimiser(evaluate, start, lower, upper, backend=backend)
    found = run.minimise(1000, gradient_tolerance=1e-9, value_tolerance=0.0)
    assert found.value <= 1e-14
    torch.testing.assert_close(run.x, minimum, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_box_around_a_centre(backend):
    centre = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = Quadratic(500)
    width = 1e-2 + 0.1 * centre.abs()
    in_box = Minimiser(problem, centre.clone(), centre, centre, absolute=1e-2, relative=0.1, backend=backend)
    explicit = Minimiser(problem, centre.clone(), centre - width, centre + width, backend=backend)
    assert in_box.minimise(30) == explicit.minimise(30)
    assert torch.equal(in_box.x, explicit.x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_concave_function_ends_at_a_vertex(backend):
    x = torch.linspace(-1, 1, 100, dtype=torch.float64) * 0.01

    def evaluate(point, gradient):
        gradient.copy_(-point)
        return float(-(point @ point)) / 2

    lower, upper = torch.full_like(x, -1), torch.full_like(x, 2)
    run = Minimiser(evaluate, x.clone(), lower, upper, backend=backend)
    found = run.minimise(30)
    assert found.projected_gradient == 0
    assert torch.equal(run.x, torch.where(x > 0, upper, lower))


# How it ends


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do(backend):
    problem = Quadratic(20)
    for lower, upper, b in ((-torch.inf, torch.inf, 0.0), (0.0, 0.0, 1.0), (0.0, torch.inf, -1.0)):
        problem.low_rank.zero_(), problem.b.fill_(b)
        x = torch.zeros(20, dtype=torch.float64)
        run = Minimiser(problem, x, torch.full_like(x, lower), torch.full_like(x, upper), backend=backend)
        found = run.minimise(10)
        assert (found.iterations, found.gradients, found.projected_gradient) == (0, 1, 0)
        assert found.status == "converged: no coordinate has a projected gradient left"
        assert not run.x.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_coordinates(backend):
    empty = torch.zeros(0)
    found = Minimiser(lambda x, gradient: 3.0, empty, empty, empty, backend=backend).minimise(5)
    assert (found.value, found.iterations, found.projected_gradient) == (3.0, 0, 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_statuses(backend):
    problem = Quadratic(1000, condition=1e3)
    found = problem.run(backend=backend).minimise(3)
    assert (found.iterations, found.status) == (3, "stopped at the limit of iterations")
    found = problem.run(backend=backend).minimise(1000, gradient_tolerance=0.0, value_tolerance=1e-3)
    assert found.status == "converged: the last step gained nothing"
    assert found.iterations < 50
    before = problem.evaluations
    run = problem.run(backend=backend)
    assert run.minimise(1000, value_tolerance=0.0).gradients == problem.evaluations - before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_with_the_wrong_sign_is_found_out(backend):
    def evaluate(x, gradient):
        gradient.copy_(-x)
        return float(x @ x) / 2

    x = torch.ones(5, dtype=torch.float64)
    found = Minimiser(evaluate, x, x - 10, x + 10, backend=backend).minimise(10)
    assert found.value == 2.5
    assert found.iterations <= 1
    assert found.status in (
        "ended: no lower value along the gradient, rounding hides it",
        "converged: the last step gained nothing",  # a step so short that the value is the same to the bit
    )
    torch.testing.assert_close(x, torch.ones(5, dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_that_are_not_finite_are_stepped_back_from(backend):
    """A barrier: beyond it the function is NaN."""

    def evaluate(x, gradient):
        gradient.copy_(1 / (2 - x) - 3)
        return float(-(2 - x).log().sum() - 3 * x.sum())

    x = torch.zeros(4, dtype=torch.float64)
    nowhere = torch.full_like(x, torch.inf)
    run = Minimiser(evaluate, x, -nowhere, nowhere, backend=backend)
    run.minimise(50, value_tolerance=0.0)
    torch.testing.assert_close(run.x, torch.full_like(x, 2 - 1 / 3), rtol=1e-5, atol=0)


# Waits and memory


class Watch(TorchDispatchMode):
    """Counts what is read from tensors, and the elements of new tensors at least so long."""

    def __init__(self, long, known=()):
        super().__init__()
        self.long, self.reads, self.elements = long, 0, 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._kept = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        if isinstance(result, torch.Tensor) and result.numel() >= self.long:
            storage = result.untyped_storage()
            if storage.data_ptr() not in self._known:
                self._known.add(storage.data_ptr())
                self._kept.append(result)  # so that the address is not given out again
                self.elements += storage.nbytes() // result.element_size()
        return result


@needs_native
@pytest.mark.parametrize("history", [3, HISTORY])
def test_vectors_of_n(history):
    """2m + 5, of which the caller gives one; nothing as long as n is allocated later."""
    n = 5000
    problem = Quadratic(n)
    x = problem.start()

    def evaluate(point, gradient):  # its own temporaries do not count
        with torch.utils._python_dispatch._disable_current_modes():
            return problem(point, gradient)

    with Watch(n // 2) as watch:
        run = Minimiser(evaluate, x, problem.lower, problem.upper, history=history)
    assert watch.elements == (2 * history + 4) * n
    with Watch(n // 2, known=watch._kept) as watch:
        watch._known.add(x.untyped_storage().data_ptr())
        found = run.minimise(40, gradient_tolerance=0.0, value_tolerance=0.0)
    assert found.iterations > history
    assert watch.elements == 0


@needs_native
def test_at_most_three_waits_an_iteration(monkeypatch):
    problem = Quadratic(5000, condition=1.5)
    first_steps = []
    run = problem.run()
    copies = []
    numpy = torch.Tensor.numpy
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: copies.append(len(self)) or numpy(self))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: pytest.fail("a tensor is read"))

    def evaluate(point, gradient):
        with torch.utils._python_dispatch._disable_current_modes():
            return problem(point, gradient)

    run._function = evaluate
    for _ in range(8):
        before = run.synchronisations, problem.evaluations
        with Watch(5000) as watch:
            run.minimise(1, gradient_tolerance=0.0, value_tolerance=-1.0)
        assert watch.reads == 0
        waits, evaluations = run.synchronisations - before[0], problem.evaluations - before[1]
        assert waits == 2 + evaluations
        first_steps.append(evaluations == 1)
    assert sum(first_steps) >= 7
    assert len(copies) == run.synchronisations
    assert max(copies) <= (2 * HISTORY + 1) ** 2 + 2 * HISTORY + 2  # small results only


# The model


def dense(history):
    """B from the pairs in the rows, updated one after the other, from the oldest to the newest."""
    s, y = (rows.numpy()[history.order] for rows in (history.s, history.y))
    model = np.eye(s.shape[1]) * (float(y[-1] @ y[-1] / (s[-1] @ y[-1])) if len(s) else 1.0)
    for one_s, one_y in zip(s, y, strict=True):
        image = model @ one_s
        model += np.outer(one_y, one_y) / (one_y @ one_s) - np.outer(image, image) / (one_s @ image)
    return model


def compact(history):
    w = np.concatenate([history.y.numpy(), history.s.numpy()])
    return history.theta * np.eye(w.shape[1]) - w.T @ history.middle @ w


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_model_is_bfgs_whatever_is_forgotten_or_refused(backend, size):
    """Of the pairs a third have no curvature, when the history is being filled and when it is full."""
    run, n = ops if backend == "native" else reference, 12
    random = np.random.default_rng(size)
    zero = torch.zeros(n, dtype=torch.float64)
    history, kept = History(zero, size), []
    assert np.array_equal(compact(history), np.eye(n))
    for step in range(40):
        s = torch.from_numpy(random.normal(size=n))
        y = s * torch.from_numpy(random.uniform(0.5, 3, n))
        full = len(kept) == size
        refused = step % 3 == 2
        y = -y if refused else y
        products = history.append(run, s, zero, y, zero)
        history.accept(products.numpy(), descent=float(s @ s))
        if not refused:
            kept.append((s, y))
        kept = kept[1:] if full and kept else kept  # the oldest is written over in any case
        assert len(history.order) == len(kept)
        for row, (one_s, one_y) in zip(history.order, kept, strict=True):
            assert torch.equal(history.s[row], one_s)
            assert torch.equal(history.y[row], one_y)
        if kept and not refused:
            np.testing.assert_allclose(compact(history), dense(history), rtol=1e-8, atol=1e-8)
        elif kept:  # the scale is that of the last pair accepted, which may be older than the one forgotten
            assert np.isfinite(history.middle).all()
            np.testing.assert_allclose(compact(history) @ kept[-1][0].numpy(), kept[-1][1].numpy(), rtol=1e-8)


def test_a_pair_that_is_not_finite_is_refused():
    zero = torch.zeros(3, dtype=torch.float64)
    history = History(zero, 2)
    for bad in (math.nan, math.inf):
        products = history.append(reference, zero + 1, zero, zero + bad, zero)
        history.accept(products.numpy(), descent=1.0)
        assert history.order == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_used_again(backend):
    problem = Quadratic(60, condition=1e4)
    run = problem.run(history=3, backend=backend)
    assert run.minimise(15, gradient_tolerance=1e-9, value_tolerance=0.0).iterations == 15
    assert sorted(run._history.order) == [0, 1, 2]
    np.testing.assert_allclose(compact(run._history), dense(run._history), rtol=1e-5, atol=1e-5)
    found = run.minimise(1000, gradient_tolerance=1e-9, value_tolerance=0.0)
    assert found.value == pytest.approx(problem.in_scipy().fun, rel=1e-8)


# Maxima of a network's loss


@pytest.fixture(scope="module", params=["SB", "LB"])
def objective(request, minimizers, mnist1d_train):
    return Objective(minimizers[request.param], mnist1d_train)


@pytest.mark.parametrize("epsilon", [1e-3, 5e-4])
def test_the_papers_recipe(objective, epsilon):
    ball = box("keskar", objective.theta, epsilon)
    base = float(objective.loss(objective.theta))
    (scipys,) = maximise(objective, ball, method="scipy", iterations=10)
    found = lbfgsb.maximise(objective, ball, iterations=10, scaling="paper")
    assert found.value - base == pytest.approx(scipys.value - base, rel=1e-2)
    assert ball.excess(found.point) <= 1
    assert found.value == float(objective.loss(found.point))
    assert found.value >= max(value for _, value in found.history) * (1 - 1e-5)
    assert found.evaluations == len(found.history) + 1  # the best point once more
    assert found.status.startswith("L-BFGS-B ")


def test_the_scaled_climb_finds_as_much(objective):
    ball = box("keskar", objective.theta, 1e-3)
    base = float(objective.loss(objective.theta))
    papers = lbfgsb.maximise(objective, ball, scaling="paper")
    found = lbfgsb.maximise(objective, ball)
    assert found.value > base
    assert found.value >= 0.95 * papers.value
    assert ball.excess(found.point) <= 1
    seen = []
    lbfgsb.maximise(objective, ball, iterations=2, report=lambda *point: seen.append(point))
    assert tuple(seen) == found.history[: len(seen)]


def test_backends_climb_alike(objective):
    values = []
    for backend in ("auto", "torch"):
        ball = box("keskar", objective.theta, 1e-3, backend)
        values.append(lbfgsb.maximise(objective, ball, iterations=5).value)
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_a_gap_is_that_of_the_best_point(objective):
    ball = box("keskar", objective.theta, 1e-3)
    found = lbfgsb.maximise(objective, ball)
    gradient = objective.loss_and_gradient(found.point)[1]
    gap = float(ball.vertex(found.point, gradient, out=torch.empty_like(gradient))[0])
    assert math.isnan(found.gap) or found.gap == pytest.approx(gap, rel=1e-4)


def constant_network():
    """A network whose output does not depend on its weights, to any order."""
    model = mlp(4, [3], 2, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model.eval()


@pytest.mark.parametrize("scaling", lbfgsb.SCALINGS)
def test_a_gradient_of_exactly_zero_says_so(scaling):
    inputs, targets = torch.ones(4, 4), torch.tensor([0, 1, 0, 1])
    objective = Objective(constant_network(), (inputs, targets))
    assert not objective.loss_and_gradient(objective.theta)[1].any()
    found = lbfgsb.maximise(objective, box("keskar", objective.theta, 1e-3), scaling=scaling)
    assert "could not move: the gradient is exactly zero" in found.status
    assert (len(found.history), found.gap) == (1, 0)


def test_a_gradient_too_small_for_the_papers_recipe_says_so(minimizers, mnist1d_train):
    def flat(output, target):
        return 1e-7 * torch.nn.functional.cross_entropy(output, target)

    objective = Objective(minimizers["LB"], mnist1d_train, loss=flat)
    ball = box("keskar", objective.theta, 1e-3)
    found = lbfgsb.maximise(objective, ball, scaling="paper")
    assert len(found.history) == 1
    assert "the gradient is too small for scaling='paper'; try scaling='box'" in found.status
    moved = lbfgsb.maximise(objective, ball, scaling="box")
    assert moved.value > found.value
    assert "could not move" not in moved.status


def test_a_box_narrower_than_the_numbers_says_so(objective):
    found = lbfgsb.maximise(objective, box("adaptive", objective.theta, 1e-9))
    assert torch.equal(found.point, objective.theta)
    assert "narrower than the spacing of the numbers" in found.status


def test_no_sharpness_is_zero_without_a_reason(minimizers, mnist1d_train):
    for name, model in minimizers.items():
        found = fast_sharpness(model, mnist1d_train, method="lbfgsb")
        assert found.value > 0, name
        assert "L-BFGS-B" in found.status
