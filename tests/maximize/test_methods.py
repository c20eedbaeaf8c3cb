"""The maximisers: exact maxima where they are known, honest book-keeping, and starts that repeat."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap import Objective, fast_sharpness
from lbgap.maximize import apgd, vertex
from lbgap.maximize.region import box
from lbgap.maximize.search import METHODS, maximise, starts
from lbgap.objective.passes import Evaluator
from lbgap.system import device as hardware

needs_bfloat16 = pytest.mark.skipif(
    not hardware.bfloat16_products("cpu"), reason="no bfloat16 matrix products on this processor"
)
EPSILONS = (1e-3, 5e-4)
REGIMES = ("SB", "LB")


pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Point(nn.Module):
    """A model that returns its parameters, whatever the input."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.as_tensor(values, dtype=torch.float64))

    def forward(self, inputs):
        return self.values.expand(len(inputs), -1)


def at(values, loss, **options):
    """The objective of a function of the parameters, given as the loss of each row."""
    data = (torch.zeros(3, 1), torch.zeros(3))
    options = {"precision": "float64", **options}
    return Objective(Point(values), data, loss=lambda output, target: loss(output).mean(), **options)


def quadratic(scale, centre, offset=0.0):
    scale, centre = torch.as_tensor(scale), torch.as_tensor(centre)
    return lambda y: (scale.to(y) * (y - centre.to(y)) ** 2).sum(-1) + offset


def one(iterator):
    (found,) = iterator
    return found


# Closed forms.


@pytest.mark.parametrize("region", ["keskar", "linf", "adaptive"])
@pytest.mark.parametrize("method", METHODS)
def test_convex_quadratic(method, region):
    x, centre, scale = normal(9), normal(9, seed=1), normal(9, seed=2).abs() + 0.1
    objective, ball = at(x, quadratic(scale, centre)), box(region, x, 0.2)
    found = one(maximise(objective, ball, method=method))
    furthest = x + ball.half_width() * (x - centre).sign()
    torch.testing.assert_close(found.point, furthest, rtol=1e-14, atol=1e-14)
    assert found.value == pytest.approx(float((scale * (furthest - centre) ** 2).sum()), rel=1e-14)
    assert found.gap == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_concave_quadratic_with_its_top_outside(method):
    x, scale = normal(9), -(normal(9, seed=2).abs() + 0.1)
    centre = x + 3 * normal(9, seed=3).sign()
    ball = box("keskar", x, 0.2)
    found = one(maximise(at(x, quadratic(scale, centre, 500.0)), ball, method=method))
    nearest = x + ball.half_width() * (centre - x).sign()
    torch.testing.assert_close(found.point, nearest, rtol=1e-14, atol=1e-14)
    assert found.value == pytest.approx(500 + float((scale * (nearest - centre) ** 2).sum()), rel=1e-14)


@pytest.mark.parametrize(("method", "iterations", "rtol"), [("apgd", 300, 1e-3), ("scipy", 50, 1e-8)])
def test_concave_quadratic_with_its_top_inside(method, iterations, rtol):
    x, scale, ball = normal(9), -(normal(9, seed=2).abs() + 0.1), box("keskar", normal(9), 0.2)
    centre = x + 0.8 * ball.half_width() * (2 * torch.rand(9, generator=torch.Generator().manual_seed(4)) - 1)
    found = one(maximise(at(x, quadratic(scale, centre, 1.0)), ball, method=method, iterations=iterations))
    rise = 1 - float(at(x, quadratic(scale, centre, 1.0)).loss(x))
    assert 1 - found.value <= rtol * rise
    assert found.gap < 0.1


def test_both_signs_at_once():
    """Up the convex coordinates to the far side, up the concave ones to the top, which is outside."""
    x, scale = normal(12), torch.cat([torch.ones(6), -torch.ones(6)]).double()
    centre = torch.cat([x[:6] + 0.1 * normal(6, seed=5), x[6:] + 4 * normal(6, seed=6).sign()])
    ball = box("keskar", x, 0.1)
    found = one(maximise(at(x, quadratic(scale, centre, 1e3)), ball))
    best = x + ball.half_width() * (scale * (x - centre)).sign()
    torch.testing.assert_close(found.point, best, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("features", "classes", "samples"), [(3, 3, 20), (7, 2, 30), (2, 4, 25)])
@pytest.mark.parametrize("seed", range(3))
def test_logistic_regression_against_all_vertices(features, classes, samples, seed):
    """The loss is convex, so that its maximum over the box is at one of the 2^p vertices."""
    model = nn.Linear(features, classes, dtype=torch.float64)
    n = features * classes + classes
    with torch.no_grad():
        nn.utils.vector_to_parameters(0.5 * normal(n, seed=seed), model.parameters())
    inputs = normal(samples, features, seed=10 + seed)
    targets = torch.randint(0, classes, (samples,), generator=torch.Generator().manual_seed(seed))
    objective = Objective(model, (inputs, targets), precision="float64")
    ball = box("keskar", objective.theta, 0.3)
    assert objective.n == n <= 16

    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n)), dtype=torch.float64)
    largest = -math.inf
    for part in (objective.theta + signs * ball.half_width()).split(8192):
        weight, bias = part[:, :-classes].view(-1, classes, features), part[:, -classes:]
        logits = torch.einsum("kcf,sf->ksc", weight, inputs) + bias[:, None]
        largest = max(largest, float((logits.logsumexp(2) - logits[:, range(samples), targets]).mean(1).max()))
    found = max(maximise(objective, ball, restarts=40), key=lambda maximum: maximum.value)
    assert found.value == pytest.approx(largest, rel=1e-13)


# Trained networks.


@pytest.fixture(scope="module")
def objectives(minimizers, mnist1d_train):
    """The objective of each regime and precision."""
    kinds = ["float32", *(["mixed"] if hardware.bfloat16_products("cpu") else [])]
    return {
        (regime, precision): Objective(model, mnist1d_train, precision=precision)
        for regime, model in minimizers.items()
        for precision in kinds
    }


@pytest.fixture(scope="module")
def recipe(objectives):
    """What the paper's recipe finds."""
    return {
        (regime, epsilon): fast_sharpness(objectives[regime, "float32"], epsilon=epsilon, method="scipy")
        for regime in REGIMES
        for epsilon in EPSILONS
    }


@pytest.mark.parametrize("precision", ["float32", pytest.param("mixed", marks=needs_bfloat16)])
@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("method", ["vertex", "apgd"])
def test_not_below_the_recipe(objectives, recipe, method, regime, epsilon, precision):
    objective = objectives[regime, precision]
    found = fast_sharpness(objective, epsilon=epsilon, method=method)
    # APGD ends among points near each other, of which bfloat16 chooses: a loss in it is off by up to 2**-9 of itself.
    off = 2**-9 * found.max_loss if (method, precision) == ("apgd", "mixed") else 0.0
    assert found.value >= 0.999 * recipe[regime, epsilon].value - 100 * off / (1 + found.base_loss)
    assert box("keskar", objective.theta, epsilon).excess(found.point) <= 1
    assert found.max_loss == float(objectives[regime, "float32"].loss(found.point))


@needs_bfloat16
@pytest.mark.parametrize("region", ["keskar", "linf", "adaptive"])
@pytest.mark.parametrize("epsilon", [1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("regime", REGIMES)
def test_mixed_precision_is_not_lost_in_its_rounding(objectives, regime, epsilon, region):
    """In the adaptive region a weight moves by less than bfloat16 resolves; the value must be found nevertheless."""
    full, mixed = (fast_sharpness(objectives[regime, p], epsilon=epsilon, region=region) for p in ("float32", "mixed"))
    assert mixed.value >= 0.98 * full.value > 0


@pytest.mark.parametrize("scout", [None, 0, 200])
@pytest.mark.parametrize("regime", REGIMES)
def test_more_restarts_never_find_less(objectives, regime, scout):
    objective, values, climbs = objectives[regime, "float32"], [], []
    for restarts in (0, 1, 4, 11):
        found = fast_sharpness(objective, restarts=restarts, scout=scout)
        values.append(found.value)
        climbs.append([(climb["start"], climb["samples"], climb["loss"]) for climb in found.starts])
    assert values == sorted(values)
    assert all(fewer == more[: len(fewer)] for fewer, more in itertools.pairwise(climbs))


def plainly(climb):
    return not climb["start"].endswith(", refined")


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bits(objectives, method):
    objective = objectives["LB", "float32"]
    first, second, other = (
        fast_sharpness(objective, method=method, restarts=12, iterations=3, scout=0, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first.point, second.point)
    assert first.starts == second.starts
    assert first.history == second.history
    names = ["centre", *(f"class {label}" for label in range(10)), "random 0", "random 1"]
    unrefined, others = ([climb for climb in found.starts if plainly(climb)] for found in (first, other))
    assert [climb["start"] for climb in unrefined] == names
    same = [one["loss"] == another["loss"] for one, another in zip(unrefined, others, strict=True)]
    assert same[:11] == [True] * 11
    assert same[11:] != [True] * 2


def test_threads_and_backends_give_the_same_box_steps(minimizers, mnist1d_train):
    found = [
        fast_sharpness(minimizers["LB"], mnist1d_train, backend=backend, restarts=2) for backend in ("auto", "torch")
    ]
    assert found[0].value == pytest.approx(found[1].value, rel=1e-3)


# Book-keeping.


@pytest.fixture(params=REGIMES)
def watched(request, minimizers, mnist1d_train, monkeypatch):
    """An objective, and in ``passes`` the samples, the kind and the value of every pass."""
    objective = Objective(minimizers[request.param], mnist1d_train)
    objective.passes = []

    def noting(name):
        evaluate = getattr(Evaluator, name)

        def noted(self, **options):
            shares, other = evaluate(self, **options)
            objective.passes.append((self.samples, name == "gradient", float(shares.sum())))
            return shares, other

        monkeypatch.setattr(Evaluator, name, noted)

    noting("values")
    noting("gradient")
    return objective


@pytest.mark.parametrize("method", METHODS)
def test_history_and_evaluations(watched, method):
    ball, base = box("keskar", watched.theta, 1e-3), float(watched.loss(watched.theta))
    watched.passes.clear()
    seen = []
    found = one(maximise(watched, ball, method=method, base=base, report=lambda *visit: seen.append(visit)))
    gradients = [value for _, gradient, value in watched.passes if gradient]
    losses = [value for _, gradient, value in watched.passes if not gradient]
    assert found.evaluations == len(watched.passes) == watched.evaluations - 1
    assert found.samples == watched.samples == 2000
    assert [value for _, value in found.history][: len(gradients)] == gradients
    assert [evaluation for evaluation, _ in found.history] == sorted({evaluation for evaluation, _ in found.history})
    assert found.history[0] == (1, base)
    assert seen == list(found.history)
    assert found.value == max(value for _, value in found.history)
    assert found.value in losses


def test_evaluations_of_scouts_count_by_their_share(watched):
    found = fast_sharpness(watched, restarts=5)
    assert found.evaluations == pytest.approx(sum(samples for samples, *_ in watched.passes) / 2000)
    scouts = [climb for climb in found.starts if climb["samples"] < 2000]
    assert [climb["start"] for climb in scouts] == [f"class {label}" for label in range(5)]
    assert {climb["samples"] for climb in scouts} == {128} == {found.settings["scout"]}
    for climb in found.starts:
        passes = climb["evaluations"] * 2000 / climb["samples"]
        assert passes == pytest.approx(round(passes), rel=1e-12)  # two products of float64
        assert passes > 1.5
    climbed = [climb["start"] for climb in found.starts if climb["samples"] == 2000]
    assert climbed[:2] == ["centre", "centre, refined"]
    assert "class 0" in climbed


def test_a_vertex_that_leads_is_refined_and_no_other(objectives):
    objective = objectives["LB", "float32"]
    ball = box("keskar", objective.theta, 1e-3)
    base = float(objective.loss(ball.centre))
    found = list(maximise(objective, ball, base=base, restarts=12, scout=0))
    highest = -math.inf
    for climb, behind in zip(found, [*found[1:], None], strict=True):
        if climb.start.endswith(", refined"):
            continue
        leads, highest = climb.value > highest, max(highest, climb.value)
        refined = behind is not None and behind.start == f"{climb.start}, refined"
        assert refined == leads
        if refined:
            assert behind.value >= climb.value  # the vertex is the first point that it visits
    assert not any(climb.start.endswith("refined") for climb in maximise(objective, ball, base=base))


@pytest.mark.parametrize(
    ("method", "iterations", "passes"), [("vertex", 1, 3), ("vertex", 2, 4), ("apgd", 1, 3), ("apgd", 5, 7)]
)
def test_iterations_are_gradients_and_the_last_step_counts(watched, method, iterations, passes):
    """Even one gradient leads to a vertex, whose loss is evaluated: it is no gradient at x and phi = 0."""
    ball = box("keskar", watched.theta, 1e-3)
    base = float(watched.loss(ball.centre))
    found = one(maximise(watched, ball, method=method, iterations=iterations, base=base))
    assert sum(gradient for _, gradient, _ in watched.passes) == iterations
    assert found.evaluations == passes - 1 + 1
    assert found.value > base
    assert found.status == f"stopped after {iterations} gradients, the limit: more iterations may find a larger value"


def test_base_is_evaluated_where_it_is_not_given(objectives):
    objective = objectives["LB", "float32"]
    ball = box("keskar", objective.theta, 1e-3)
    given = one(maximise(objective, ball, base=float(objective.loss(ball.centre))))
    assert one(maximise(objective, ball)).history == given.history
    assert vertex.maximise(objective, ball).history == given.history
    assert len(given.history) > 3


def test_early_stop():
    x, calls = normal(5), []

    def linear(y):
        calls.append(1)
        return 50 + y.sum(-1)

    objective, ball = at(x, linear), box("linf", x, 0.1)
    calls.clear()
    found = one(maximise(objective, ball, base=50 + float(x.sum())))
    assert found.status == "converged after 2 gradients: the point is the vertex that its own gradient points to"
    assert len(calls) == 3
    assert found.value == pytest.approx(50 + float(x.sum()) + 0.5, rel=1e-14)


def test_stop_where_the_next_vertex_promises_little(objectives):
    statuses = {fast_sharpness(objectives[regime, "float32"], epsilon=e).status for regime in REGIMES for e in EPSILONS}
    for status in statuses:
        assert status.startswith("converged after ")
        assert status.endswith(("the next vertex promises less than 0.05 % more", "vertex gained less than 0.05 %"))
    objective = objectives["SB", "float32"]
    rough = vertex.maximise(objective, box("keskar", objective.theta, 1e-3), tolerance=0.2)
    assert rough.status.endswith("less than 20 %") or rough.status.endswith("less than 20 % more")
    assert len(rough.history) < len(vertex.maximise(objective, box("keskar", objective.theta, 1e-3)).history)


def test_a_vertex_that_leads_down_ends_the_climb_at_the_best():
    x = torch.zeros(1, dtype=torch.float64)
    found = one(maximise(at(x, quadratic([-1.0], [0.02], 1.0)), box("linf", x, 1.0)))
    assert found.value == pytest.approx(1 - 0.02**2)
    assert found.point.item() == 0
    assert found.status == "converged after 2 gradients: the last vertex gained less than 0.05 %"


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_of_exactly_zero(method):
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found = fast_sharpness(at(x, quadratic([1.0, 3.0], x)), method=method)
    assert "could not move: the gradient is exactly zero; try restarts, or precision='float64'" in found.status
    assert found.status.startswith("nothing larger than the loss at the minimizer was found: ")
    assert found.value == 0
    again = fast_sharpness(at(x, quadratic([1.0, 3.0], x)), method=method, restarts=1)
    assert again.value > 0


@pytest.mark.parametrize("method", ["vertex", "apgd"])
def test_a_box_that_is_narrower_than_the_numbers(method):
    objective = at([1.0, 2.0], lambda y: y.sum(-1), precision="float32")
    found = fast_sharpness(objective, epsilon=1e-12, region="linf", method=method)
    assert "could not move: wherever the gradient is not zero the region is narrower than the spacing" in found.status
    assert found.value == 0


def test_scipy_says_what_scipy_said(recipe):
    for found in recipe.values():
        assert found.status.startswith("SciPy: STOP: TOTAL NO. OF ITERATIONS REACHED LIMIT (10 iterations, ")
    tiny = fast_sharpness(at([1.0], lambda y: 1e-7 * y.sum(-1)), method="scipy")
    assert "(0 iterations, 1 gradients); could not move: the gradient is too small for SciPy's defaults" in tiny.status
    assert tiny.value == 0
    assert fast_sharpness(at([1.0], lambda y: 1e-7 * y.sum(-1))).value > 0


def test_scipy_is_the_recipe(objectives):
    """The same as calling SciPy on the parameters themselves, as the paper's scripts do."""
    from scipy.optimize import Bounds, minimize

    objective = objectives["SB", "float32"]
    x = objective.theta.double().numpy()
    r = 1e-3 * (abs(x) + 1)

    def descend(y):
        value, gradient = objective.loss_and_gradient(torch.from_numpy(y).float())
        return -float(value), -gradient.double().numpy()

    result = minimize(descend, x, jac=True, method="L-BFGS-B", bounds=Bounds(x - r, x + r), options={"maxiter": 10})
    found = fast_sharpness(objective, method="scipy")
    assert found.max_loss == pytest.approx(-result.fun, rel=1e-4)


def cliff(y):
    """Finite at the centre, nowhere finite beyond 0.05 above it."""
    return torch.where(y.sum(-1) > 0.05, math.inf, 1 + y.sum(-1))


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_in_the_box(method):
    x = torch.zeros(1, dtype=torch.float64)
    found = fast_sharpness(at(x, cliff), epsilon=0.1, method=method)
    assert "stopped at a point without a finite loss: the loss is inf in samples 0..2 (batch 1 of 1)" in found.status
    assert 0 <= found.value < 5
    assert math.isfinite(found.max_loss)


def test_starts_without_a_finite_loss_are_results_too():
    x = torch.zeros(1, dtype=torch.float64)
    found = fast_sharpness(at(x, cliff), epsilon=0.1, restarts=20)
    unrefined = [climb["start"] for climb in found.starts if plainly(climb)]
    assert unrefined == ["centre", *(f"random {i}" for i in range(20))]
    failed = [climb for climb in found.starts if climb["loss"] == -math.inf]
    assert 0 < len(failed) < 20
    for climb in failed:
        assert climb["status"].startswith("could not start: the loss is inf in samples 0..2")
        assert (climb["samples"], climb["evaluations"]) == (3, 1)
    assert found.settings["scout"] == 0
    assert found.value > 0


class Fragile(nn.Module):
    """Overflows off the centre, on some of the samples only."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(2))

    def forward(self, inputs):
        return torch.stack([inputs[:, 0] + self.values.sum(), 0 * inputs[:, 0]], 1)


@pytest.mark.parametrize("poison", [0, 7, 1999])
def test_scouts_that_meet_a_loss_that_is_not_finite(poison):
    inputs = torch.ones(2000, 1)

    def loss(output, target):
        bad = (target == 2) & (output[:, 0] != 1)
        return torch.where(bad, math.inf, F.cross_entropy(output, target.clamp(max=1), reduction="none")).mean()

    targets = torch.zeros(2000, dtype=torch.long)
    targets[poison] = 2
    objective = Objective(Fragile(), (inputs, targets), loss=loss)
    found = fast_sharpness(objective, restarts=3)
    assert found.value == 0
    assert "without a finite loss" in found.status
    assert found.settings["scout"] == 128
    assert len({climb["start"] for climb in found.starts if plainly(climb)}) == 4


def test_no_finite_loss_at_the_centre():
    objective = at([1.0], lambda y: y.sum(-1) / 0)
    for method in METHODS:
        with pytest.raises(FloatingPointError, match=r"the loss is inf in samples 0..2 \(batch 1 of 1\)"):
            one(maximise(objective, box("linf", objective.theta, 0.1), method=method, base=0.0))


def test_a_scout_that_sees_all_samples(objectives):
    objective = objectives["LB", "float32"]
    found = fast_sharpness(objective, restarts=2, scout=2000)
    assert found.settings["scout"] == 2000
    assert found.max_loss == float(objective.loss(found.point))


# Starts.


def test_starts(objectives):
    objective = objectives["LB", "float32"]
    ball = box("keskar", objective.theta, 1e-3)
    found = dict(starts(objective, ball, 13, seed=0))
    assert list(found) == ["centre", *(f"class {c}" for c in range(10)), *(f"random {i}" for i in range(3))]
    assert found.pop("centre") is None
    assert all(ball.excess(point) <= 1 for point in found.values())
    r = ball.half_width()
    for name, point in found.items():
        away = ((point - ball.centre).abs() / r).mean()
        assert away == pytest.approx(1 if name.startswith("class") else 0.5, abs=0.02), name
    gradient = objective.log_probability_direction(ball.centre, 4)[1]
    first = ball.centre + r * gradient.sign()
    assert objective.log_probability_direction(first, 4)[0] > objective.log_probability_direction(ball.centre, 4)[0]
    assert torch.equal(found["random 2"], dict(starts(objective, ball, 13, seed=0))["random 2"])
    assert not torch.equal(found["random 0"], dict(starts(objective, ball, 13, seed=1))["random 0"])


def test_starts_without_classes_are_random():
    objective = at(normal(4), quadratic(torch.ones(4), torch.zeros(4)))
    names = [name for name, _ in starts(objective, box("linf", objective.theta, 0.1), 2, seed=0)]
    assert names == ["centre", "random 0", "random 1"]


@pytest.mark.parametrize("start", [None, "inside", "outside"])
@pytest.mark.parametrize("method", METHODS)
def test_a_given_start_is_projected_and_left_alone(method, start):
    x = normal(6)
    objective, ball = at(x, quadratic(torch.ones(6), x + 0.01)), box("linf", x, 0.1)
    given = {None: None, "inside": x + 0.05, "outside": x + 7}[start]
    before = None if given is None else given.clone()
    found = METHODS[method](objective, ball, start=given)
    assert ball.excess(found.point) <= 1
    assert found.value == float(objective.loss(found.point))
    if given is not None:
        assert torch.equal(given, before)
    assert torch.equal(ball.centre, x)


# APGD, as in the paper.


def algorithm_1(value_and_gradient, x, r, iterations):
    """Croce and Hein 2020, Algorithm 1, for a box in place of the ball; momentum afresh after a restart."""
    checks, p = [0, math.ceil(Fraction(22, 100) * iterations)], [Fraction(0), Fraction(22, 100)]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
        checks.append(math.ceil(p[-1] * iterations))

    def project(y):
        return y.clamp(x - r, x + r)

    eta, alpha, reduced, momentum = 2.0, 0.75, False, False
    points, values, visited, best, best_then = [x], [], [], (-math.inf, None, None), None
    for k in range(iterations):
        value, gradient = value_and_gradient(points[k])
        values.append(value)
        visited.append(value)
        best = max(best, (value, points[k], gradient), key=lambda found: found[0])
        if k == 0:
            best_then = value
        elif k in checks:
            last = max(check for check in checks if check < k)
            ups = sum(values[i + 1] > values[i] for i in range(last, k))
            reduced = ups < 0.75 * (k - last) or (not reduced and best_then == best[0])
            if reduced:
                eta, momentum = eta / 2, False
                values[k], points[k], gradient = best
            best_then = best[0]
        new = project(points[k] + eta * r * gradient.sign())
        if momentum:
            new = project(points[k] + alpha * (new - points[k]) + (1 - alpha) * (points[k] - points[k - 1]))
        momentum = True
        points.append(new)
    return [*visited, value_and_gradient(points[-1])[0]]


@pytest.mark.parametrize("iterations", [1, 2, 5, 30, 57])
@pytest.mark.parametrize("seed", range(4))
def test_apgd_follows_the_algorithm(iterations, seed):
    generator = torch.Generator().manual_seed(seed)
    mix, x = torch.randn(8, 8, generator=generator, dtype=torch.float64), normal(8, seed=seed)

    def loss(y):
        return 2 + (3 * (y @ mix.to(y))).sin().mean(-1)

    objective, ball = at(x, loss), box("keskar", x, 0.3)
    found = one(maximise(objective, ball, method="apgd", iterations=iterations))

    def value_and_gradient(y):
        value, gradient = objective.loss_and_gradient(y)
        return float(value), gradient

    expected = algorithm_1(value_and_gradient, x, ball.half_width(), iterations)
    visited = [value for _, value in found.history]
    if len(visited) < len(expected):
        assert "converged" in found.status
    assert visited == pytest.approx(expected[: len(visited)], rel=1e-9)
    assert found.value == max(visited)


def test_checkpoints_are_those_of_the_paper():
    assert apgd.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert apgd.checkpoints(1) == [1] * 8
