"""The region: which box a name means, how far a point is outside, and every refusal."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lbgap import _extension
from lbgap.maximize.region import REGIONS, Box, box

BACKENDS = [
    pytest.param("native", marks=pytest.mark.skipif(not _extension.NATIVE_DEVICES, reason="no compiled library")),
    "torch",
]
DTYPES = (torch.float32, torch.float64)


def unit(value, dtype):
    """The unit in the last place of a number, exactly."""
    return Fraction(float(np.spacing(np.array(float(value), dtype=np.dtype(str(dtype).removeprefix("torch."))))))


def outside(region, y, half_width):
    """How far each coordinate is outside in units of the larger bound, exactly, by a half-width of |x|."""
    for value, centre in zip(y.tolist(), region.centre.tolist(), strict=True):
        x = Fraction(centre)
        r = half_width(abs(x))
        yield (abs(Fraction(value) - x) - r) / unit(abs(x) + r, y.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("region", "expected"),
    [("keskar", [0.25, 0.5, 0.75]), ("linf", [0.25, 0.25, 0.25]), ("adaptive", [0.0, 0.25, 0.5])],
)
def test_half_widths(region, expected, dtype):
    half_width = box(region, torch.tensor([0.0, -1.0, 2.0], dtype=dtype), 0.25).half_width()
    assert torch.equal(half_width, torch.tensor(expected, dtype=dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("epsilon", [1e-7, 5e-4, 1e-3, 0.3, 1000.0])
def test_what_the_ops_give_is_inside_to_rounding(backend, dtype, region, epsilon):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2000, generator=generator, dtype=dtype) * 10 ** (4 * torch.rand(2000, generator=generator) - 4)
    x = x.to(dtype)
    ball = box(region, x, epsilon, backend)
    direction = torch.randn(2000, generator=generator, dtype=dtype)
    points = [torch.empty_like(x) for _ in range(3)]
    ball.vertex(x, direction, out=points[0])
    ball.project(x + 1e4 * direction, out=points[1])
    ball.step(x, direction, 0.5 * epsilon, out=points[2])
    rounded = Fraction(torch.tensor(epsilon, dtype=dtype).item())
    absolute, relative = (0 if region == "adaptive" else rounded), (0 if region == "linf" else rounded)
    half_widths = iter(ball.half_width().tolist() * 3)
    for point in points:
        assert ball.excess(point) <= 1
        # Of the box whose half-widths are rounded to the dtype only x -+ r is rounded: half a unit. Of the
        # box whose epsilon is rounded, also the product and the sum in r: another half each, at most.
        assert max(outside(ball, point, lambda _: Fraction(next(half_widths)))) <= Fraction(1, 2)
        assert max(outside(ball, point, lambda size: absolute + relative * size)) <= Fraction(3, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [32, 64])
@settings(derandomize=True, deadline=None, max_examples=60)
@given(data=st.data())
def test_any_projected_point_is_inside_to_one_unit(backend, width, data):
    numbers = st.floats(-(2.0**99), 2.0**99, width=width)
    dtype = np.dtype(f"float{width}")
    x, y = (torch.from_numpy(data.draw(arrays.arrays(dtype, 17, elements=numbers))) for _ in range(2))
    ball = box(data.draw(st.sampled_from(REGIONS)), x, data.draw(st.floats(1e-9, 1e7)), backend)
    out = torch.empty_like(y)
    ball.project(y, out=out)
    assert ball.excess(out) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_excess_counts_units_in_the_last_place(dtype):
    ball = box("linf", torch.zeros(3, dtype=dtype), 0.125)
    ulp = 0.125 * torch.finfo(dtype).eps
    for steps in (-1, 0, 1, 7):
        point = torch.tensor([0.0, 0.01, -0.125 - steps * ulp], dtype=dtype)
        assert ball.excess(point) == steps
    assert ball.excess(torch.zeros(3, dtype=dtype)) == -1 / torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_excess_of_what_is_no_point(dtype):
    ball = box("keskar", torch.zeros(2, dtype=dtype), 1e-3)
    for bad in (math.nan, math.inf, -math.inf):
        assert ball.excess(torch.tensor([0.0, bad], dtype=dtype)) == math.inf
    assert box("keskar", torch.zeros(0, dtype=dtype), 1e-3).excess(torch.zeros(0, dtype=dtype)) == 0.0
    largest = torch.finfo(dtype).max
    wide = Box(torch.tensor([1.0, largest], dtype=dtype), absolute=largest, relative=0.0)
    assert wide.excess(torch.tensor([-largest / 2, largest / 2], dtype=dtype)) < 0


def test_backends_give_the_same_bits():
    if not _extension.NATIVE_DEVICES:
        pytest.skip("no compiled library")
    generator = torch.Generator().manual_seed(2)
    x, y, d = (torch.randn(1001, generator=generator) for _ in range(3))
    results = []
    for name in ("native", "torch"):
        ball = box("keskar", x, 1e-2, name)
        assert ball.backend == name
        points = [torch.empty_like(x) for _ in range(3)]
        ball.project(y, out=points[0])
        clipped = ball.step(y, d, 1e-2, out=points[1])[2]
        flips = ball.vertex(y, d, out=points[2])[1]
        results.append((*points, clipped, flips))
    for native, plain in zip(*results, strict=True):
        assert torch.equal(native, plain)


def test_auto_backend_follows_the_device_of_the_centre():
    expected = "native" if "cpu" in _extension.NATIVE_DEVICES else "torch"
    assert box("linf", torch.zeros(2), 1e-3).backend == expected
    assert box("linf", torch.zeros(2, device="meta"), 1e-3).backend == "torch"


@pytest.mark.parametrize("epsilon", [1, 0.5, np.float32(1e-3), np.float64(1e-3), np.int64(2), Fraction(1, 3)])
def test_epsilon_is_any_real_number(epsilon):
    ball = box("keskar", torch.zeros(2), epsilon)
    assert ball.absolute == ball.relative == float(epsilon)
    assert type(ball.absolute) is float


@pytest.mark.parametrize("epsilon", ["1e-3", None, True, 1e-3 + 0j, [1e-3], np.bool_(True)])
def test_epsilon_of_another_type_is_refused(epsilon):
    with pytest.raises(TypeError, match=f"epsilon must be a number, got {type(epsilon).__name__}: try 1e-3"):
        box("keskar", torch.zeros(2), epsilon)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("epsilon", [0.0, -0.0, -1e-3, 0, math.inf, -math.inf, math.nan, 10**400])
def test_epsilon_out_of_range_is_refused(epsilon, dtype):
    with pytest.raises(ValueError, match=rf"epsilon must be finite and above zero in {dtype}, got .*: try 1e-3"):
        box("keskar", torch.zeros(2, dtype=dtype), epsilon)


@pytest.mark.parametrize("epsilon", [1e-50, 1e39])
def test_epsilon_that_the_dtype_cannot_hold_is_refused(epsilon):
    with pytest.raises(ValueError, match=r"epsilon must be finite and above zero in torch\.float32, got"):
        box("linf", torch.zeros(2), epsilon)
    assert box("linf", torch.zeros(2, dtype=torch.float64), epsilon).absolute == epsilon


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"region must be one of 'keskar', 'linf', 'adaptive', got 'l2'"):
        box("l2", torch.zeros(2), 1e-3)
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', 'native', 'torch', got 'gpu'"):
        box("linf", torch.zeros(2), 1e-3, "gpu")
