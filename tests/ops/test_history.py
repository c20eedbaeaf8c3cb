"""The history ops of L-BFGS-B: native, their plain-PyTorch twins, and dense formulas in float64."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from lbgap import _extension, ops, reference

needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")
quick = settings(derandomize=True, deadline=None, max_examples=60)

# torch itself warns about its own forward-mode rules, when it first loads them.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

OPS = ("history_append", "history_cauchy", "history_gram", "history_combine", "history_line", "history_step")
DTYPES = (torch.float32, torch.float64)
SIZES = (0, 1, 15, 16, 17, 64, 8191, 8193, 70_001)
PAIRS = (0, 1, 2, 5, 10)
UNIT = 2.0**-53
NO_BOX = (0.0, 0.0)


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "torch"])
def where(request):
    """The module whose ops are tested."""
    return ops if request.param == "native" else reference


def raw(name):
    return getattr(torch.ops.lbgap, name).default


def middle_of(s, y):
    """Theta and the middle matrix of Byrd et al. 1995, eq. 3.2 to 3.4, for rows [y; s], oldest pair first."""
    s, y = s.astype(np.float64), y.astype(np.float64)
    c = len(s)
    if c == 0 or s.shape[1] < c:  # in so few dimensions the matrix below may be singular: the model is theta I
        return 1.0, np.zeros((2 * c, 2 * c))
    sy, ss = s @ y.T, s @ s.T
    theta = float(y[-1] @ y[-1] / sy[-1, -1])
    later = np.tril(sy, -1)
    inverse = np.block([[-np.diag(np.diag(sy)), later.T], [later, theta * ss]])
    scale = np.repeat([1.0, theta], c)
    return theta, scale[:, None] * np.linalg.inv(inverse) * scale


def bfgs(s, y):
    """The same model, dense: c updates of BFGS, one after the other (Nocedal and Wright 2006, eq. 6.19)."""
    s, y = s.astype(np.float64), y.astype(np.float64)
    theta = float(y[-1] @ y[-1] / (s[-1] @ y[-1])) if len(s) else 1.0
    model = theta * np.eye(s.shape[1])
    for one_s, one_y in zip(s, y, strict=True):
        image = model @ one_s
        model += np.outer(one_y, one_y) / (one_y @ one_s) - np.outer(image, image) / (one_s @ image)
    return model


class Problem:
    """A point between bounds of every kind, and a history of a convex function."""

    def __init__(self, n, c, dtype, seed=0, mixing=0.0):
        random = np.random.default_rng([seed, n, c])
        scalar = np.dtype(str(dtype).removeprefix("torch.")).type
        x, g = random.normal(size=(2, n))
        below, above = random.exponential(size=(2, n))
        kinds = random.integers(0, 12, n)
        below[kinds == 0], above[kinds == 1] = np.inf, np.inf
        below[kinds == 2], above[kinds == 2] = np.inf, np.inf
        below[kinds == 3], above[kinds == 3] = 0, 0  # fixed
        below[kinds == 4] = 0  # on a bound
        above[kinds == 5] = 0
        g[kinds == 6] = 0
        x[kinds == 7] = 0  # breakpoints that are the same to the bit
        below[kinds == 7], above[kinds == 7] = 0.25, 0.25
        g[kinds == 7] = np.sign(g[kinds == 7])
        s = random.normal(size=(c, n))
        y = s * random.uniform(0.5, 4, n) + mixing * s.sum(1, keepdims=True) / max(n, 1)
        tensors = (torch.from_numpy(np.asarray(v, scalar)) for v in (x, g, x - below, x + above, s, y))
        self.x, self.g, self.lower, self.upper, self.s, self.y = tensors
        self.theta, middle = middle_of(self.s.numpy(), self.y.numpy())
        self.middle = torch.from_numpy(middle)
        # A point on the way to the other bound, as one that a Cauchy search returns: many coordinates on bounds.
        self.point = torch.clamp(self.x - self.g, self.lower, self.upper)
        self.q = torch.from_numpy(random.normal(size=2 * c))
        self.random = random

    @property
    def bounds(self):
        return self.lower, self.upper, *NO_BOX

    @property
    def w(self):
        return np.concatenate([self.y.numpy(), self.s.numpy()]).astype(np.float64)

    def arguments(self, name, out=None):
        """Fresh copies of what the op writes, the rest as it is."""
        out = torch.full_like(self.x, torch.nan) if out is None else out
        pairs = (self.s.clone(), self.y.clone())
        return {
            "history_append": (self.point, self.x, -self.g, self.g, *pairs, max(len(self.s) // 2, 0)),
            "history_cauchy": (self.x, self.g, *pairs, self.middle, self.theta, *self.bounds, out),
            "history_gram": (self.point, self.x, self.g, *pairs, self.theta, *self.bounds),
            "history_combine": ((self.point.clone(), self.x, self.g, *pairs, self.q, self.theta, *self.bounds, True)),
            "history_line": (self.g, self.x, self.point, *self.bounds),
            "history_step": (self.x, self.point, 0.5, *self.bounds, out),
        }[name]


WRITTEN = {
    "history_append": (4, 5),
    "history_cauchy": (10,),
    "history_gram": (),
    "history_combine": (0,),
    "history_line": (),
    "history_step": (7,),
}


def run(module, name, arguments):
    """The sums, and what the op wrote."""
    arguments = [a.clone() if i in WRITTEN[name] else a for i, a in enumerate(arguments)]
    sums = getattr(module, name)(*arguments)
    return sums, [arguments[i] for i in WRITTEN[name]]


def float64(*tensors):
    return [tensor.numpy().astype(np.float64) for tensor in tensors]


def assert_sums(actual, terms_of, terms_size):
    """Sums of n products in any order err by less than n 2^-53 of the sum of their magnitudes."""
    terms = max(terms_size[1], 1)
    np.testing.assert_array_less(np.abs(np.asarray(actual) - terms_of), 2 * terms * UNIT * terms_size[0] + 1e-300)


# What comes out


@pytest.mark.pairs({"n": SIZES, "c": PAIRS[1:], "dtype": DTYPES})
def test_append(where, n, c, dtype):
    p = Problem(n, c, dtype)
    for row in {0, c - 1}:
        s, y = p.s.clone(), p.y.clone()
        found = where.history_append(p.point, p.x, -p.g, p.g, s, y, row)
        expected = [p.s.clone(), p.y.clone()]
        expected[0][row], expected[1][row] = p.point - p.x, -p.g - p.g
        assert torch.equal(s, expected[0])
        assert torch.equal(y, expected[1])
        assert found.dtype == torch.float64
        s, y = float64(s, y)
        products = [(s, s[row]), (s, y[row]), (y, s[row]), (y, y[row])]
        exact = np.stack([a @ b for a, b in products], axis=1)
        magnitude = np.stack([np.abs(a) @ np.abs(b) for a, b in products], axis=1)
        assert_sums(found, exact, (magnitude, n))


def free(p):
    point, lower, upper = float64(p.point, p.lower, p.upper)
    return (point > lower) & (point < upper)


@pytest.mark.pairs({"n": SIZES, "c": PAIRS, "dtype": DTYPES})
def test_gram(where, n, c, dtype):
    p = Problem(n, c, dtype)
    found = where.history_gram(*p.arguments("history_gram"))
    g, point, x = float64(p.g, p.point, p.x)
    rows = np.concatenate([p.w, [g + p.theta * (point - x)]])[:, free(p)]
    assert found.shape == (2 * c + 1, 2 * c + 1)
    assert torch.equal(found, found.T)
    assert_sums(found, rows @ rows.T, (np.abs(rows) @ np.abs(rows).T, n))


@needs_native
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("n", [64, 129, 8193, 70_001])
def test_gram_of_any_share_of_free_coordinates(n, share):
    p = Problem(n, 3, torch.float32)
    bound = torch.rand(n, generator=torch.Generator().manual_seed(n)) >= share
    p.lower[:], p.upper[:] = -torch.inf, torch.inf
    p.upper[bound] = p.point[bound]
    found = ops.history_gram(*p.arguments("history_gram"))
    g, point, x = float64(p.g, p.point, p.x)
    rows = np.concatenate([p.w, [g + p.theta * (point - x)]])[:, ~bound.numpy()]
    assert_sums(found, rows @ rows.T, (np.abs(rows) @ np.abs(rows).T, n))


@pytest.mark.pairs({"n": SIZES, "c": PAIRS, "dtype": DTYPES, "project": [False, True]})
def test_combine(where, n, c, dtype, project):
    p = Problem(n, c, dtype)
    point = p.point.clone()
    where.history_combine(point, p.x, p.g, p.s, p.y, p.q, p.theta, *p.bounds, project)
    g, at, x, lower, upper, q = float64(p.g, p.point, p.x, p.lower, p.upper, p.q)
    step = (g + p.theta * (at - x) + p.w.T @ q) / p.theta
    expected = at - step
    expected = np.clip(expected, lower, upper) if project else expected
    size = np.abs(at) + np.abs(g / p.theta) + np.abs(x) + np.abs(p.w.T) @ np.abs(q) / p.theta
    tolerance = torch.finfo(dtype).eps * np.abs(expected) + (2 * c + 8) * UNIT * size
    is_free = free(p)
    np.testing.assert_array_less(np.abs(point.numpy() - expected)[is_free], tolerance[is_free] + 1e-300)
    assert torch.equal(point[torch.from_numpy(~is_free)], p.point[torch.from_numpy(~is_free)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_line(where, n, dtype):
    p = Problem(n, 0, dtype)
    z = p.x + 0.75 * (p.point - p.x)
    slope, squares, longest = where.history_line(p.g, p.x, z, *p.bounds).tolist()
    g, x, to, lower, upper = float64(p.g, p.x, z, p.lower, p.upper)
    d = to - x
    assert_sums(slope, g @ d, (np.abs(g) @ np.abs(d), n))
    assert_sums(squares, d @ d, (d @ d, n))
    moving = d != 0
    room = (np.where(d > 0, upper, lower) - x)[moving] / d[moving]
    assert longest == pytest.approx(np.min(room, initial=np.inf), rel=1e-15)
    assert where.history_line(p.g, p.x, p.x, *p.bounds).tolist() == [0.0, 0.0, math.inf]


@pytest.mark.pairs({"n": SIZES, "dtype": DTYPES, "alpha": [0.0, 0.3, 1.0, 7.0]})
def test_step(where, n, dtype, alpha):
    p = Problem(n, 0, dtype)
    out = torch.full_like(p.x, torch.nan)
    where.history_step(p.x, p.point, alpha, *p.bounds, out)
    x, point, lower, upper = float64(p.x, p.point, p.lower, p.upper)
    expected = np.clip(x + alpha * (point - x), lower, upper)
    tolerance = 2 * torch.finfo(dtype).eps * (np.abs(x) + alpha * np.abs(point - x))
    assert np.all(np.abs(out.numpy() - expected) <= tolerance)
    assert ((out >= p.lower) & (out <= p.upper)).all()


@pytest.mark.parametrize("which", ["x", "z"])
def test_step_in_place(where, which):
    p = Problem(1000, 0, torch.float32)
    x, z, out = p.x.clone(), p.point.clone(), torch.empty_like(p.x)
    where.history_step(x, z, 0.25, *p.bounds, out)
    into = {"x": x, "z": z}[which]
    where.history_step(x, z, 0.25, *p.bounds, into)
    assert torch.equal(into, out)


# The generalized Cauchy point


def breakpoints(p):
    """Where each coordinate meets its bound, with the roundings of the dtype."""
    with np.errstate(all="ignore"):
        g, x, lower, upper = (tensor.numpy() for tensor in (p.g, p.x, p.lower, p.upper))
        times = np.where(g > 0, x - lower, x - upper) / g
    return np.where(g == 0, np.inf, np.maximum(times, 0)).astype(np.float64)


def on_path(p, t):
    """The displacement at t, exactly as far as the breakpoints are."""
    g = p.g.numpy().astype(np.float64)
    return -g * np.where(g == 0, 0, np.minimum(t, breakpoints(p)))


def slopes(p, t, times=None):
    """Left and right derivative of the model along the path at t, and how large the numbers in them are."""
    times = breakpoints(p) if times is None else times
    g = p.g.numpy().astype(np.float64)
    moved = on_path(p, t)
    pull = p.middle.numpy() @ (p.w @ moved)
    gradient = g + p.theta * moved - p.w.T @ pull
    size = np.abs(g) + p.theta * np.abs(moved) + np.abs(p.w.T) @ np.abs(pull)
    moves = (-g * (times >= t) * (times > 0), -g * (times > t))
    return *(float(gradient @ d) for d in moves), float(size @ np.abs(g))


def assert_minimizer(p, found, out, strict=True):
    """The path stops at its first minimizer, or (where not strict) at one."""
    times = breakpoints(p)
    t, projected = found[:2].tolist()
    before, after, size = slopes(p, t, times)
    moving = (p.g.numpy() != 0) & (times > 0)
    tolerance = 1e-12 * size
    if not moving.any():
        assert t == 0
    elif (times[moving] <= t).all():
        assert t == times[moving].max()
        assert before <= tolerance
    else:
        assert before <= tolerance
        assert after >= -tolerance
    if strict:
        earlier = np.unique(times[(times < t) & (times > 0)])
        for time in earlier if len(earlier) < 100 else earlier[:: len(earlier) // 50]:
            assert slopes(p, time, times)[1] <= tolerance
    # The point itself.
    eps = float(torch.finfo(p.x.dtype).eps)
    x, g = p.x.numpy().astype(np.float64), p.g.numpy().astype(np.float64)
    expected = x + on_path(p, t)
    tolerance = 3 * eps * (np.abs(x) + np.abs(expected) + np.where(g == 0, 0, np.abs(g) * np.minimum(t, times)))
    assert np.all(np.abs(out.numpy() - expected) <= tolerance)
    assert ((out >= p.lower) & (out <= p.upper)).all()
    hit = (times <= t) & (g != 0)
    wall = torch.where(p.g > 0, p.lower, p.upper)
    assert torch.equal(out[torch.from_numpy(hit)], wall[torch.from_numpy(hit)])
    # The rest of what is returned.
    largest = np.max(np.where(g == 0, 0, np.abs(g) * np.minimum(times, 1)), initial=0)
    assert projected == pytest.approx(largest, rel=4 * eps)
    displacement = on_path(p, t)
    magnitude = np.abs(p.w) @ np.abs(displacement)
    assert np.all(np.abs(found[2:].numpy() - p.w @ displacement) <= 1e-12 * magnitude + 1e-300)


@pytest.mark.pairs({"n": SIZES, "c": PAIRS, "dtype": DTYPES})
def test_cauchy(where, n, c, dtype):
    p = Problem(n, c, dtype)
    out = torch.full_like(p.x, torch.nan)
    found = where.history_cauchy(*p.arguments("history_cauchy", out))
    assert found.shape == (2 + 2 * len(p.s),)
    assert_minimizer(p, found, out)


@pytest.mark.parametrize("seed", range(40))
def test_cauchy_of_the_dense_model(where, seed):
    """The oracle walks over all breakpoints with the n x n matrix of c updates of BFGS."""
    n, c = 24, (0, 1, 3, 8)[seed % 4]
    p = Problem(n, c, torch.float64, seed=seed, mixing=0.5)
    p.y = p.s * 2 + 0.1 * p.y
    p.theta, middle = middle_of(p.s.numpy(), p.y.numpy())
    p.middle = torch.from_numpy(middle)
    model, g, times = bfgs(p.s.numpy(), p.y.numpy()), p.g.numpy(), breakpoints(p)
    np.testing.assert_allclose(
        p.theta * np.eye(n) - p.w.T @ middle @ p.w, model, rtol=1e-9, atol=1e-9 * np.abs(model).max()
    )

    def value(t):
        moved = on_path(p, t)
        return g @ moved + moved @ model @ moved / 2

    t = 0.0
    for end in [*np.unique(times[(times > 0) & np.isfinite(times)]), np.inf]:
        d = -g * (times > t)
        slope, curvature = (g + model @ on_path(p, t)) @ d, d @ model @ d
        if slope >= 0:
            break
        t = min(t - slope / curvature, end)
        if t < end:
            break
    out = torch.empty_like(p.x)
    found = where.history_cauchy(*p.arguments("history_cauchy", out))
    assert float(found[0]) == pytest.approx(t, rel=1e-8)
    moved = out.numpy() - p.x.numpy()
    assert g @ moved + moved @ model @ moved / 2 == pytest.approx(value(t), rel=1e-8, abs=1e-14)
    assert value(t) <= 0


@needs_native
@quick
@given(
    n=st.integers(1, 400),
    c=st.integers(0, 10),
    seed=st.integers(0, 10**6),
    mixing=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
    dtype=st.sampled_from(DTYPES),
)
def test_cauchy_where_the_slope_turns_often(n, c, seed, mixing, dtype):
    """A strong coupling of coordinates: the slope may turn and turn again, so that buckets and sort may differ."""
    p = Problem(n, min(c, n), dtype, seed=seed, mixing=mixing)
    random = p.random
    p.y = (p.y.abs() * p.s.sign() + mixing * p.s.mean(1, keepdim=True)).to(dtype)
    keep = (p.s.double() * p.y.double()).sum(1) > 0.1
    p.s, p.y = p.s[keep].contiguous(), p.y[keep].contiguous()
    p.g = torch.from_numpy(np.asarray(random.normal(size=n) * 10 ** random.uniform(-3, 3, n))).to(dtype)
    p.theta, middle = middle_of(p.s.numpy(), p.y.numpy())
    p.middle = torch.from_numpy(middle)
    model = p.theta * np.eye(n) - p.w.T @ middle @ p.w
    if np.linalg.eigvalsh((model + model.T) / 2).min() <= 1e-7 * p.theta:
        return  # rounding has left no convex model
    ends = []
    for module in (ops, reference):
        out = torch.empty_like(p.x)
        found = module.history_cauchy(*p.arguments("history_cauchy", out))
        assert_minimizer(p, found, out, strict=module is reference)
        ends.append(float(found[0]))
    assert ends[0] >= ends[1] * (1 - 1e-9)  # a minimizer passed over is followed by another


def test_cauchy_with_all_breakpoints_at_once(where):
    p = Problem(5000, 2, torch.float32)
    p.x.zero_(), p.g.fill_(1e-3), p.lower.fill_(-1e-3), p.upper.fill_(1e-3)
    p.g[::2] = -1e-3
    for theta, all_hit in ((0.5, True), (2.0, False)):
        p.s, p.y, p.middle, p.theta = p.s[:0], p.y[:0], torch.zeros(0, 0, dtype=torch.float64), theta
        out = torch.empty_like(p.x)
        found = where.history_cauchy(*p.arguments("history_cauchy", out))
        assert_minimizer(p, found, out)
        assert (found[0] == 1) == all_hit


@pytest.mark.parametrize("kind", ["no gradient", "all bound", "all fixed", "no bounds"])
def test_cauchy_at_its_limits(where, kind):
    p = Problem(300, 3, torch.float64)
    if kind == "no gradient":
        p.g.zero_()
    elif kind == "all bound":
        p.lower, p.upper = torch.where(p.g > 0, p.x, -10), torch.where(p.g > 0, 10, p.x)
    elif kind == "all fixed":
        p.lower = p.upper = p.x
    else:
        p.lower, p.upper = torch.full_like(p.x, -torch.inf), torch.full_like(p.x, torch.inf)
    out = torch.empty_like(p.x)
    found = where.history_cauchy(*p.arguments("history_cauchy", out))
    assert_minimizer(p, found, out)
    if kind == "no bounds":
        g, model = p.g.numpy(), bfgs(p.s.numpy(), p.y.numpy())
        assert float(found[0]) == pytest.approx(g @ g / (g @ model @ g), rel=1e-10)
    else:
        assert found.eq(0).all()
        assert torch.equal(out, p.x)


# The same numbers


@needs_native
@pytest.mark.pairs({"n": SIZES, "c": PAIRS, "dtype": DTYPES, "name": OPS})
def test_native_and_twin_agree(n, c, dtype, name):
    if name == "history_append" and c == 0:
        return
    p = Problem(n, c, dtype)
    sums, written = run(ops, name, p.arguments(name))
    twin_sums, twin_written = run(reference, name, p.arguments(name))
    eps = torch.finfo(dtype).eps
    for one, other in zip(written, twin_written, strict=True):
        torch.testing.assert_close(one, other, rtol=4 * eps, atol=4 * eps)
    if sums is None:
        assert twin_sums is None
    else:
        assert (sums.shape, sums.dtype) == (twin_sums.shape, torch.float64)
        scale = float(twin_sums[twin_sums.isfinite()].abs().max()) if sums.numel() else 0
        rtol = torch.full_like(sums, 1e-10)
        if name == "history_cauchy":
            rtol[1] = eps  # the largest projected gradient is a product in the dtype here, in float64 there
        close = (sums == twin_sums) | ((sums - twin_sums).abs() <= rtol * twin_sums.abs() + 1e-12 * scale)
        assert close.all()


@pytest.mark.pairs({"absolute, relative": [(1e-3, 0.0), (0.0, 0.05), (1e-3, 1e-3)], "dtype": DTYPES, "name": OPS[1:]})
def test_a_box_is_its_bounds_to_the_bit(where, name, dtype, absolute, relative):
    p = Problem(9001, 3, dtype)
    centre = p.x.clone()
    half_width = absolute + relative * centre.abs()
    lower, upper = centre - half_width, centre + half_width
    p.x = torch.clamp(centre + 0.5 * half_width * p.g, lower, upper)
    p.point = torch.clamp(centre - half_width * p.g, lower, upper)
    p.lower, p.upper = lower, upper
    arguments = p.arguments(name)
    explicit = run(where, name, arguments)
    place = next(i for i, a in enumerate(arguments) if a is lower)
    box = (*arguments[:place], centre, centre, absolute, relative, *arguments[place + 4 :])
    in_box = run(where, name, box)
    assert (explicit[0] is None and in_box[0] is None) or torch.equal(explicit[0], in_box[0])
    assert all(torch.equal(a, b) for a, b in zip(explicit[1], in_box[1], strict=True))


@needs_native
@pytest.mark.parametrize("name", OPS)
def test_bits_do_not_depend_on_the_number_of_threads(name):
    p = Problem(40 * 8192 + 3, 4, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(run(ops, name, p.arguments(name)))
    finally:
        torch.set_num_threads(before)
    for sums, written in results[1:]:
        assert sums is None or torch.equal(sums, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(written, results[0][1], strict=True))


@needs_native
@pytest.mark.parametrize("name", OPS)
def test_inputs_are_left_alone(name):
    p = Problem(1000, 3, torch.float32)
    arguments = p.arguments(name)
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    run(ops, name, arguments)
    for i, (a, b) in enumerate(zip(arguments, before, strict=True)):
        assert i in WRITTEN[name] or not isinstance(a, torch.Tensor) or torch.equal(a, b)


# Contracts with torch


@needs_native
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(("n", "c"), [(7, 2), (0, 1), (40, 1)])
def test_opcheck(name, n, c):
    p = Problem(n, c, torch.float32)
    torch.library.opcheck(raw(name), p.arguments(name, torch.zeros(n)))


@needs_native
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("c", [1, 4])
def test_fakes_have_the_shapes(name, c):
    p = Problem(7, c, torch.float64)
    sums = raw(name)(*p.arguments(name))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in p.arguments(name)]
        fake = raw(name)(*fakes)
    assert fake is None if sums is None else (fake.shape, fake.dtype) == (sums.shape, sums.dtype)


@needs_native
@pytest.mark.parametrize("name", OPS)
def test_gradients_are_refused(name):
    arguments = Problem(7, 2, torch.float32).arguments(name)
    for i, argument in enumerate(arguments):
        if not isinstance(argument, torch.Tensor):
            continue
        leaf = [*arguments[:i], argument.clone().requires_grad_(), *arguments[i + 1 :]]
        with pytest.raises(ValueError, match=f"an input of {name} requires a gradient"):
            getattr(ops, name)(*leaf)


@needs_native
@pytest.mark.parametrize("name", [name for name in OPS if WRITTEN[name]])
def test_a_graph_that_saved_what_is_written_notices(name):
    arguments = list(Problem(7, 2, torch.float32).arguments(name))
    written = arguments[WRITTEN[name][0]] = torch.zeros_like(arguments[WRITTEN[name][0]])
    weight = torch.ones_like(written, requires_grad=True)
    loss = (weight * written).sum()
    raw(name)(*arguments)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Refusals


def changed(arguments, i, value):
    return [*arguments[:i], value, *arguments[i + 1 :]]


@needs_native
@pytest.mark.parametrize("name", OPS)
def test_wrong_shapes_and_dtypes_are_refused(name):
    """Every tensor argument, one at a time, in every way that could reach memory which is not its own."""
    arguments = Problem(7, 2, torch.float32).arguments(name)
    for i, a in enumerate(arguments):
        if not isinstance(a, torch.Tensor):
            continue
        shapes = [a.new_zeros(a.numel() + 1), torch.zeros(3, 3), a.new_zeros(())]
        shapes += [a.new_zeros(1, *a.shape)] if a.dtype == torch.float32 else []  # of small ones only numel counts
        dtypes = [a.to(torch.float32 if a.dtype == torch.float64 else torch.float64), a.int(), a.bfloat16()]
        strided = a.new_zeros(*a.shape, 2)[..., 0]
        for wrong in (*shapes, *dtypes, strided):
            with pytest.raises(RuntimeError, match="must"):
                raw(name)(*changed(arguments, i, wrong))


@needs_native
@pytest.mark.parametrize("name", [name for name in OPS if WRITTEN[name]])
def test_outputs_that_overlap_inputs_are_refused(name):
    arguments = Problem(64, 2, torch.float32).arguments(name)
    for i in WRITTEN[name]:
        for j, other in enumerate(arguments):
            if i == j or not isinstance(other, torch.Tensor) or other.dtype != torch.float32:
                continue
            memory = torch.zeros(1000)
            into = memory[: arguments[i].numel()].view_as(arguments[i])
            # A part of it: the last elements of what is written.
            begin = arguments[i].numel() - 3
            overlapping = memory[begin : begin + other.numel()].view_as(other)
            with pytest.raises(RuntimeError, match="overlaps"):
                raw(name)(*changed(changed(arguments, i, into), j, overlapping))


@needs_native
@pytest.mark.parametrize("row", [-1, 2, 2**40])
def test_rows_outside_of_the_history_are_refused(row):
    arguments = Problem(7, 2, torch.float32).arguments("history_append")
    with pytest.raises(RuntimeError, match="row must be below 2"):
        raw("history_append")(*arguments[:-1], row)


@needs_native
@pytest.mark.parametrize("name", OPS[1:])
@pytest.mark.parametrize("width", [-1.0, math.nan])
def test_half_widths_are_not_negative(name, width):
    p = Problem(7, 2, torch.float32)
    arguments = p.arguments(name)
    place = next(i for i, a in enumerate(arguments) if a is p.upper) + 1
    for i in (place, place + 1):
        with pytest.raises(RuntimeError, match="half-widths must not be negative"):
            raw(name)(*changed(arguments, i, width))
