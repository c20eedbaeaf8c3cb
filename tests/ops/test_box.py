"""The box ops: native, their plain-PyTorch twins, and an independent computation, on every size and layout."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lbgap import _extension, ops, reference

needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")
quick = settings(derandomize=True, deadline=None, max_examples=80)

# torch itself warns about its own forward-mode rules, when it first loads them.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

OPS = ("box_project", "box_step", "box_vertex")
DTYPES = (torch.float32, torch.float64)
BLOCK, LANES = 8192, 16  # as csrc/cpu/loops.h sums
SIZES = (0, 1, 2, 15, 16, 17, 31, 33, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5)
SHAPES = [(n,) for n in SIZES] + [(k, n) for k in (0, 1, 3) for n in (0, 1, 2, 17, BLOCK + 1)]


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "torch"])
def backend(request, monkeypatch):
    """Run the wrappers on the compiled library, then on the twins."""
    if request.param == "torch":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    return request.param


def call(where, name, y, d, alpha, x, absolute, relative, out):
    args = {"box_project": (y,), "box_step": (y, d, alpha), "box_vertex": (y, d)}[name]
    return getattr(where, name)(*args, x, absolute, relative, out)


def raw(name):
    return getattr(torch.ops.lbgap, name).default


def good(name, **changes):
    """Arguments that every op accepts, some of them replaced."""
    args = {"y": torch.zeros(2, 5), "d": torch.ones(2, 5), "alpha": 1.0, "x": torch.zeros(5)}
    args |= {"absolute": 1.0, "relative": 0.0, "out": torch.zeros(2, 5)}
    unknown = changes.keys() - args.keys()
    assert not unknown
    return (name, *(args | changes).values())


def assert_same(actual, expected):
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))


def oracle(name, y, d, alpha, x, absolute, relative):
    """The op in NumPy: what goes to out, in the dtype, and the terms of each sum, in float64."""
    scalar = y.dtype.type
    with np.errstate(all="ignore"):
        half_width = scalar(absolute) + scalar(relative) * np.abs(x)
        lower, upper = np.broadcast_arrays(x - half_width, x + half_width)

        def project(p):
            inside = np.minimum(np.maximum(p, lower), upper)
            return np.where(np.isnan(lower) | np.isnan(upper), np.nan, inside)

        y64, d64 = y.astype(np.float64), d.astype(np.float64)
        if name == "box_project":
            return project(y).astype(y.dtype), []
        if name == "box_step":
            free = y + scalar(alpha) * d
            out = project(free).astype(y.dtype)
            moved = out.astype(np.float64) - y64
            return out, [moved * moved, d64 * moved, (out != free).astype(np.float64)]
        out = np.where(np.isnan(d), d, np.where(d > 0, upper, np.where(d < 0, lower, y))).astype(y.dtype)
        return out, [d64 * (out.astype(np.float64) - y64), (out != y).astype(np.float64)]


def fold(values):
    """Add neighbours, then neighbouring pairs, and so on, along the first axis."""
    values = values.copy()
    step = 1
    while step < len(values):
        for i in range(0, len(values) - step, 2 * step):
            values[i] += values[i + step]
        step *= 2
    return values[0]


def tree_sum(terms):
    """The sum of each row over the fixed tree, bit for bit: 16 lanes, folded; blocks of 8192, folded."""
    if terms.shape[-1] == 0:
        return np.zeros(terms.shape[:-1])
    rows = np.atleast_2d(terms)
    blocks = -(-rows.shape[1] // BLOCK)
    padded = np.zeros((len(rows), blocks * BLOCK))
    padded[:, : rows.shape[1]] = rows
    with np.errstate(all="ignore"):
        lanes = np.zeros((len(rows), blocks, LANES))
        for part in np.moveaxis(padded.reshape(len(rows), blocks, BLOCK // LANES, LANES), 2, 0):
            lanes += part
        sums = fold(np.moveaxis(fold(np.moveaxis(lanes, 2, 0)), 1, 0))
    return sums.reshape(terms.shape[:-1])


def draw(shape, dtype, seed=0):
    """Points inside, outside and on the box, directions with exact zeros, and a centre with exact zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape[-1:], generator=generator, dtype=dtype) * 0.1
    x[::7] = 0.0
    y = x + torch.randn(shape, generator=generator, dtype=dtype) * 2e-2
    y[..., ::5] = x[::5]
    d = torch.randn(shape, generator=generator, dtype=dtype)
    d[..., ::3] = 0.0
    return y, d, x


# What comes out


@needs_native
@pytest.mark.pairs({"shape": SHAPES, "dtype": DTYPES, "name": OPS})
def test_native_has_the_bits_of_the_oracle_and_of_the_twin(name, dtype, shape):
    y, d, x = draw(shape, dtype)
    box = (x, 1e-2, 3e-2)
    expected, terms = oracle(name, y.numpy(), d.numpy(), 0.1, x.numpy(), *box[1:])
    out, twin = torch.full_like(y, torch.nan), torch.full_like(y, torch.nan)
    sums = call(ops, name, y, d, 0.1, *box, out)
    twin_sums = call(reference, name, y, d, 0.1, *box, twin)
    assert_same(out, expected)
    assert_same(twin, expected)
    if name == "box_project":
        assert sums is None
        assert twin_sums is None
        return
    assert sums.dtype == twin_sums.dtype == torch.float64
    assert sums.shape == twin_sums.shape == (*shape[:-1], len(terms))
    assert_same(sums, np.stack([tree_sum(term) for term in terms], axis=-1))
    for i, term in enumerate(terms):
        # Adding n numbers in any order errs by less than n 2^-53 of the sum of their magnitudes.
        bound = shape[-1] * 2.0**-53 * np.abs(term).sum(-1)
        assert np.all(np.abs(twin_sums[..., i].numpy() - sums[..., i].numpy()) <= 2 * bound)


@needs_native
@pytest.mark.parametrize("name", ["box_step", "box_vertex"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_a_million_agree_with_exact_summation(name, dtype):
    n = 1_000_003
    y, d, x = draw((n,), dtype)
    out = torch.empty_like(y)
    sums = call(ops, name, y, d, 0.1, x, 1e-2, 3e-2, out)
    expected, terms = oracle(name, y.numpy(), d.numpy(), 0.1, x.numpy(), 1e-2, 3e-2)
    assert_same(out, expected)
    additions = BLOCK // LANES + math.log2(LANES) + math.ceil(math.log2(-(-n // BLOCK)))
    for value, term in zip(sums.tolist(), terms, strict=True):
        assert abs(value - math.fsum(term)) <= additions * 2.0**-53 * math.fsum(np.abs(term))
    assert sums[-1] == np.count_nonzero(terms[-1])


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_result_is_within_rounding_of_exact_arithmetic(backend, name, dtype):
    # Inputs that float32 holds, computed in extended precision: an oracle that shares no rounding with the op.
    y, d, x = draw((4099,), torch.float32)
    absolute, relative, alpha = 2.0**-7, 2.0**-5, 0.125
    out = torch.empty(4099, dtype=dtype)
    call(ops, name, y.to(dtype), d.to(dtype), alpha, x.to(dtype), absolute, relative, out)
    wide = (tensor.numpy().astype(np.longdouble) for tensor in (y, d))
    expected, _ = oracle(name, *wide, alpha, x.numpy().astype(np.longdouble), absolute, relative)
    # At most three roundings: the half-width (two), and the bound or the step.
    unit = torch.finfo(dtype).eps * (np.abs(expected) + x.abs().numpy() + absolute + alpha * d.abs().numpy())
    assert np.all(np.abs(out.numpy() - expected) <= 1.5 * unit)


NUMBERS = {
    width: st.floats(width=width) | st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan])
    for width in (32, 64)
}
LAYOUTS = ("contiguous", "offset", "padded", "strided", "transposed")


def lay(values, layout):
    """A tensor with these values, in a buffer of another layout; what lies between them is NaN."""
    values = torch.from_numpy(np.array(values))
    *k, n = values.shape
    if layout == "offset":
        tensor = values.new_full((values.numel() + 1,), torch.nan)[1:].view(values.shape)
    elif layout == "padded":
        tensor = values.new_full((*k, n + 3), torch.nan)[..., 1 : n + 1]
    elif layout == "strided":
        tensor = values.new_full((*k, 2 * n), torch.nan)[..., ::2]
    elif layout == "transposed" and k:
        tensor = values.new_full((n, *k), torch.nan).T
    else:
        tensor = values.new_full(values.shape, torch.nan)
    tensor.copy_(values)
    return tensor


@st.composite
def problems(draw):
    width = draw(st.sampled_from([32, 64]))
    dtype = np.dtype(f"float{width}")
    n = draw(st.sampled_from([0, 1, 2, 3, 15, 16, 17, 33]))
    shape = draw(st.sampled_from([(n,), (0, n), (1, n), (3, n)]))
    y, d = (draw(arrays.arrays(dtype, shape, elements=NUMBERS[width])) for _ in range(2))
    x = draw(arrays.arrays(dtype, (n,), elements=NUMBERS[width]))
    # Centres that the points are near to: otherwise nothing is ever inside.
    if draw(st.booleans()) and y.size:
        x = y.reshape(-1, n)[0].copy()
    largest = float(np.finfo(dtype).max)
    widths = st.sampled_from([0.0, 1e-3, 1.0, largest]) | st.floats(0, largest)
    alpha = draw(st.sampled_from([0.0, 1.0, -0.5, largest]) | st.floats(-largest, largest))
    layouts = draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 4))
    return y, d, alpha, x, draw(widths), draw(widths), layouts, draw(st.booleans())


@needs_native
@pytest.mark.parametrize("name", OPS)
@quick
@given(problem=problems())
def test_any_values_in_any_layout_in_place_or_not(name, problem):
    y, d, alpha, x, absolute, relative, layouts, in_place = problem
    expected, terms = oracle(name, y, d, alpha, x, absolute, relative)
    for where in (ops, reference):
        tensors = [lay(values, layout) for values, layout in zip((y, d, x), layouts, strict=False)]
        out = tensors[0] if in_place else lay(np.zeros_like(y), layouts[3])
        sums = call(where, name, tensors[0], tensors[1], alpha, tensors[2], absolute, relative, out)
        assert_same(out, expected)
        assert_same(tensors[1], d)
        assert_same(tensors[2], x)
        if where is ops and terms:
            assert_same(sums, np.stack([tree_sum(term) for term in terms], axis=-1))
        if not in_place:
            assert_same(tensors[0], y)


@needs_native
@pytest.mark.parametrize("name", OPS)
@quick
@given(problem=problems())
def test_out_may_be_any_input_of_its_shape(name, problem):
    y, d, alpha, x, absolute, relative, _, _ = problem
    expected, _ = oracle(name, y, d, alpha, x, absolute, relative)
    tensors = [torch.from_numpy(values.copy()) for values in (y, d, x)]
    out = tensors[1] if y.ndim == 2 or name == "box_project" else tensors[2]
    call(ops, name, tensors[0], tensors[1], alpha, tensors[2], absolute, relative, out)
    assert_same(out, expected)


@pytest.mark.parametrize("name", OPS)
def test_rows_may_be_expanded(backend, name):
    y, d, x = draw((37,), torch.float32)
    row = torch.empty_like(y)
    row_sums = call(ops, name, y, d, 0.1, x, 1e-2, 0.0, row)
    out = torch.empty(3, 37)
    sums = call(ops, name, y.expand(3, 37), d.expand(3, 37), 0.1, x, 1e-2, 0.0, out)
    assert torch.equal(out, row.expand(3, 37))
    assert sums is None or torch.equal(sums, row_sums.expand_as(sums))
    one = torch.tensor(0.5)
    wide = torch.empty(4)
    call(ops, name, one.expand(4), one.expand(4), 0.1, one.expand(4), 0.0, 0.25, wide)
    assert wide.eq(wide[0]).all()


@pytest.mark.parametrize("name", OPS)
def test_no_rows_at_all_in_any_layout(backend, name):
    # What is empty counts as contiguous to torch, whatever its strides.
    y = torch.zeros(0, 10)[:, ::2]
    sums = call(ops, *good(name, y=y, d=y, out=y))
    assert sums is None or sums.shape == (0, {"box_step": 3, "box_vertex": 2}[name])


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(
    "out",
    [
        torch.zeros(5, 2).T,
        torch.zeros(2, 10)[:, ::2],
        torch.zeros(4, 7)[1:3, 1:6],
        torch.zeros(1, 5).expand(1, 5),
        torch.zeros(2, 1)[:, :1],
        torch.zeros(()).expand(2, 0),
        torch.zeros(5).as_strided((1, 5), (0, 1)),
    ],
)
def test_out_of_any_other_layout_is_written(backend, name, out):
    k, n = out.shape
    y = torch.full((k, n), 3.0)
    call(ops, *good(name, y=y, d=torch.ones(k, n), x=torch.zeros(n), out=out))
    assert out.eq(1.0).all()


@pytest.mark.parametrize("name", OPS)
def test_lazily_negated_views_are_read_and_written(backend, name):
    # The imaginary part of a lazy conjugate: its memory holds the values with the other sign.
    values, _, x = draw((9,), torch.float32)

    def negated():
        view = torch.complex(torch.zeros(9), -values).conj().imag
        assert view.is_neg()
        assert torch.equal(view, values)
        return view

    expected = torch.empty(9)
    call(reference, name, values, values, 0.5, x, 1e-2, 0.0, expected)
    out = negated()
    call(ops, name, negated(), negated(), 0.5, x, 1e-2, 0.0, out)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", ["box_project", "box_step"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_projects_onto_an_infinite_or_missing_centre(backend, name, dtype):
    x = torch.tensor([math.inf, -math.inf, math.nan], dtype=dtype)
    out = torch.zeros(3, dtype=dtype)
    call(ops, name, torch.zeros_like(x), torch.zeros_like(x), 0.0, x, 1e-3, 1e-3, out)
    assert out.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_gradients_keep_the_point(backend, dtype):
    y, _, x = draw((2, 1000), dtype)
    gradient = torch.zeros_like(y)
    gradient[:, ::2] = -0.0
    out = torch.empty_like(y)
    assert torch.equal(ops.box_vertex(y, gradient, x, 1e-2, 1e-2, out), torch.zeros(2, 2, dtype=torch.float64))
    assert torch.equal(out, y)


@pytest.mark.parametrize("name", OPS)
def test_zero_half_widths_give_the_centre(backend, name):
    y, d, x = draw((3, 100), torch.float32)
    d = d.masked_fill(d == 0, 1.0)
    out = torch.empty_like(y)
    call(ops, name, y, d, 1.0, x, 0.0, 0.0, out)
    assert torch.equal(out, x.expand(3, 100))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("tiny", [1e-45, 1.1754943508222875e-38])
def test_denormal_numbers_are_not_flushed(backend, name, tiny):
    x = torch.zeros(40)
    out = torch.empty(40)
    call(ops, name, torch.full((40,), 3 * tiny), torch.ones(40), 0.0, x, tiny, 0.0, out)
    assert torch.equal(out, torch.full((40,), tiny))
    assert out.all()


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("n", [33, 2 * BLOCK + 3])
def test_projection_is_idempotent_and_every_op_stays_in_the_box(backend, name, n):
    y, d, x = draw((2, n), torch.float32)
    out, again = torch.empty_like(y), torch.empty_like(y)
    call(ops, name, y, d, 0.3, x, 1e-3, 1e-3, out)
    if name == "box_vertex":
        out = torch.where(d == 0, x, out)  # where the gradient is zero the point keeps its place, outside or not
    ops.box_project(out, x, 1e-3, 1e-3, again)
    assert torch.equal(out, again)


# The same bits


@needs_native
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("shape", [(40 * BLOCK + 3,), (5, 9 * BLOCK + 1), (300, 70)], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(name, shape):
    y, d, x = draw(shape, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            out = torch.empty_like(y)
            results.append((out, call(ops, name, y, d, 0.1, x, 1e-2, 3e-2, out)))
    finally:
        torch.set_num_threads(before)
    for out, sums in results[1:]:
        assert torch.equal(out, results[0][0])
        assert sums is None or torch.equal(sums, results[0][1])


# Contracts with torch


@needs_native
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("shape", [(7,), (3, 7), (0, 7), (3, 0)], ids=str)
def test_opcheck(name, shape):
    y, d, x = draw(shape, torch.float32)
    args = {"box_project": (y,), "box_step": (y, d, 0.1), "box_vertex": (y, d)}[name]
    torch.library.opcheck(raw(name), (*args, x, 1e-2, 0.0, torch.empty_like(y)))


@pytest.mark.parametrize("name", OPS)
def test_compile_traces_through_without_a_break(backend, name):
    def step(y, d, x, alpha, width):
        out = torch.empty_like(y)
        sums = call(ops, name, 2 * y, d, alpha, x, width, 0.0, out)
        return out if sums is None else torch.cat([out.flatten(), sums.flatten()])

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for n, alpha, width in ((40, 0.5, 1e-2), (70, 0.25, 1e-3)):  # the second time shapes and numbers are symbols
        generator = torch.Generator().manual_seed(n)
        args = [torch.randn(shape, generator=generator) for shape in ((3, n), (3, n), (n,))]
        assert torch.equal(compiled(*args, alpha, width), step(*args, alpha, width))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("shape", [(5,), (0, 5), (3, 5)], ids=str)
def test_meta_tensors_give_shapes(backend, name, shape):
    real = [torch.zeros(shape), torch.ones(shape), 1.0, torch.zeros(5), 1.0, 0.0, torch.zeros(shape)]
    meta = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in real]
    expected = call(ops, name, *real)
    for where in (ops, *([torch.ops.lbgap] if backend == "native" else [])):
        sums = call(where, name, *meta)
        assert sums is None if expected is None else (sums.shape, sums.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("name", OPS)
def test_inference_tensors_are_welcome(backend, name):
    with torch.inference_mode():
        args = good(name, out=torch.zeros(2, 5))
        call(ops, *args)
    call(ops, *good(name, y=args[-1]))


@pytest.mark.parametrize("name", OPS)
def test_a_graph_that_saved_out_notices_that_it_was_written(backend, name):
    out = torch.zeros(2, 5)
    weight = torch.ones(2, 5, requires_grad=True)
    loss = (weight * out).sum()
    call(ops, *good(name, out=out))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Refusals


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(4)}, ValueError, r"centre must have shape \(5,\) for y \(2, 5\), got \(4,\)"),
        ({"x": torch.zeros(1)}, ValueError, "centre must have shape"),
        ({"x": torch.zeros(2, 5)}, ValueError, "centre must have shape"),
        ({"y": torch.tensor(0.0)}, ValueError, r"y must be \(n,\) or \(k, n\), got shape \(\)"),
        ({"y": torch.zeros(1, 2, 5)}, ValueError, r"y must be \(n,\) or \(k, n\)"),
        ({"y": torch.zeros(5)}, ValueError, r"must have the shape of y, \(5,\), got \(2, 5\)"),
        ({"out": torch.zeros(2, 4)}, ValueError, "out must have the shape of y"),
        ({"out": torch.zeros(5)}, ValueError, "out must have the shape of y"),
        ({"y": torch.zeros(2, 5, dtype=torch.int64)}, TypeError, "y must be float32 or float64, got torch.int64"),
        ({"y": torch.zeros(2, 5, dtype=torch.bfloat16)}, TypeError, "y must be float32 or float64"),
        ({"y": torch.zeros(2, 5, dtype=torch.complex64)}, TypeError, "y must be float32 or float64"),
        ({"x": torch.zeros(5).double()}, TypeError, "centre must have the dtype of y"),
        ({"out": torch.zeros(2, 5).double()}, TypeError, "out must have the dtype of y"),
        ({"x": torch.zeros(5, device="meta")}, ValueError, "centre must be on the device of y, cpu, got meta"),
        ({"out": torch.zeros(2, 5, device="meta")}, ValueError, "out must be on the device of y"),
        ({"y": torch.zeros(2, 5, device="meta")}, ValueError, "must be on the device of y, meta, got cpu"),
        ({"y": torch.zeros(2, 5, requires_grad=True)}, ValueError, r"y requires a gradient.*y\.detach\(\)"),
        ({"x": torch.zeros(5, requires_grad=True)}, ValueError, "centre requires a gradient"),
        ({"out": torch.zeros(2, 5, requires_grad=True)}, ValueError, "out requires a gradient"),
    ],
)
def test_wrappers_refuse(backend, name, changes, error, message):
    with pytest.raises(error, match=message):
        call(ops, *good(name, **changes))


@pytest.mark.parametrize("name", ["box_step", "box_vertex"])
@pytest.mark.parametrize(
    ("d", "error"),
    [
        (torch.ones(2, 4), ValueError),
        (torch.ones(5), ValueError),
        (torch.ones(2, 5).double(), TypeError),
        (torch.ones(2, 5, device="meta"), ValueError),
        (torch.ones(2, 5, requires_grad=True), ValueError),
    ],
)
def test_wrappers_refuse_directions(backend, name, d, error):
    with pytest.raises(error, match=r"direction|gradient"):
        call(ops, *good(name, d=d))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("half_width", ["absolute", "relative"])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, 1e39])
def test_half_widths_are_finite_in_the_dtype_and_not_negative(backend, name, half_width, value):
    with pytest.raises(ValueError, match=rf"{half_width} half-width must be finite in torch\.float32 and not neg"):
        call(ops, *good(name, **{half_width: value}))


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf, 1e39, -1e39])
def test_step_length_is_finite_in_the_dtype(backend, alpha):
    with pytest.raises(ValueError, match=r"alpha must be finite in torch\.float32, got"):
        call(ops, *good("box_step", alpha=alpha))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(
    "out",
    [
        torch.zeros(5).expand(2, 5),
        torch.zeros(2, 1).expand(2, 5),
        torch.zeros(()).expand(2, 5),
        torch.zeros(9).as_strided((2, 5), (4, 1)),
        torch.zeros(9).as_strided((2, 5), (1, 1)),
    ],
)
def test_out_whose_elements_share_memory_is_refused(backend, name, out):
    with pytest.raises(ValueError, match="out has elements that share memory"):
        call(ops, *good(name, out=out))


@needs_native
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("shift", [1, 5, 16])
def test_native_refuses_an_out_that_overlaps_an_input_in_part(name, shift):
    memory = torch.zeros(100)
    one, other = memory[:60].view(2, 30), memory[shift : shift + 60].view(2, 30)
    apart = torch.zeros(2, 30)
    changes = [{"y": one}, {"x": one[1]}, *([{"d": one}] if name != "box_project" else [])]
    for change in changes:
        args = good(name, **({"y": apart, "d": apart, "x": torch.zeros(30), "out": other} | change))
        with pytest.raises(RuntimeError, match="out overlaps"):
            call(ops, *args)
    assert not memory.any()


@pytest.mark.parametrize("name", OPS)
def test_wrappers_refuse_dual_numbers(backend, name):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.zeros(2, 5), torch.ones(2, 5))
        with pytest.raises(ValueError, match="y requires a gradient"):
            call(ops, *good(name, y=dual))


@pytest.mark.parametrize("name", ["box_step", "box_vertex"])
def test_wrappers_refuse_function_transforms(backend, name):
    def sums(y):
        return call(ops, *good(name, y=y, out=torch.empty(2, 5))).sum()

    y = torch.zeros(2, 5)
    with pytest.raises(ValueError, match="y requires a gradient"):
        torch.func.grad(sums)(y)
    with pytest.raises(ValueError, match="y requires a gradient"):
        torch.func.jvp(sums, (y,), (y,))


@needs_native
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("which", ["y", "x", "out"])
def test_raw_ops_refuse_gradients(name, which):
    leaf = torch.zeros(5 if which == "x" else (2, 5), requires_grad=True)
    with pytest.raises(ValueError, match=f"an input of {name} requires a gradient"):
        call(torch.ops.lbgap, *good(name, **{which: leaf}))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(leaf.detach(), torch.ones_like(leaf))
        with pytest.raises(ValueError, match=f"an input of {name} requires a gradient"):
            call(torch.ops.lbgap, *good(name, **{which: dual}))


@needs_native
@pytest.mark.parametrize("name", ["box_step", "box_vertex"])
def test_raw_ops_refuse_function_transforms(name):
    def sums(y):
        return call(torch.ops.lbgap, *good(name, y=y, out=torch.empty(2, 5))).sum()

    y = torch.zeros(2, 5)
    with pytest.raises(ValueError, match="requires a gradient"):
        torch.func.grad(sums)(y)
    with pytest.raises(ValueError, match="requires a gradient"):
        torch.func.jvp(sums, (y,), (y,))


@needs_native
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("which", ["y", "x", "out"])
def test_raw_ops_refuse_to_mix_devices(name, which):
    args = good(name, **{which: torch.zeros(5 if which == "x" else (2, 5), device="meta")})
    with pytest.raises(ValueError, match=f"the inputs of {name} must be on one device, got"):
        call(torch.ops.lbgap, *args)


@needs_native
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(4)}, "centre must be a contiguous"),
        ({"x": torch.zeros(2, 5)}, "centre must be a contiguous"),
        ({"x": torch.zeros(10)[::2]}, "centre must be a contiguous"),
        ({"x": torch.tensor(0.0).expand(5)}, "centre must be a contiguous"),
        ({"y": torch.tensor(0.0), "d": torch.tensor(0.0), "out": torch.tensor(0.0)}, "must be"),
        ({"y": torch.zeros(1, 2, 5)}, "must be"),
        ({"y": torch.zeros(5)}, "must have the shape of y"),
        ({"y": torch.zeros(2, 10)[:, ::2]}, "contiguous rows"),
        ({"y": torch.zeros(5, 2).T}, "contiguous rows"),
        ({"out": torch.zeros(2, 10)[:, ::2]}, "out must have contiguous rows"),
        ({"out": torch.zeros(2, 4)}, "out must have the shape of y"),
        ({"out": torch.zeros(3, 5)}, "out must have the shape of y"),
        ({"out": torch.zeros(5).expand(2, 5)}, "overlap"),
        ({"out": torch.zeros(9).as_strided((2, 5), (4, 1))}, "overlap"),
        ({"x": torch.zeros(5).double()}, "centre must have the dtype of y"),
        ({"out": torch.zeros(2, 5).double()}, "out must have the dtype of y"),
        ({"y": torch.zeros(2, 5).double()}, "must have the dtype of y"),
        ({"y": torch.zeros(2, 5, dtype=torch.int32)}, "y must be float32 or float64"),
        ({"y": torch.zeros(2, 5).to_sparse()}, "SparseCPU"),
        ({"out": torch.zeros(2, 5).to_sparse()}, "SparseCPU"),
        ({"absolute": -1.0}, "half-widths must not be negative"),
        ({"relative": math.nan}, "half-widths must not be negative"),
        ({"absolute": "wide"}, "Expected a value of type 'float'"),
        ({"out": torch._efficientzerotensor((2, 5))}, "immutable"),
    ],
)
def test_raw_ops_guard_memory(name, changes, message):
    args = good(name, **changes)
    with pytest.raises(RuntimeError, match=message):
        call(torch.ops.lbgap, *args)


@needs_native
@pytest.mark.parametrize("name", ["box_step", "box_vertex"])
@pytest.mark.parametrize("d", [torch.ones(2, 4), torch.ones(5), torch.ones(2, 5).double(), torch.ones(5, 2).T])
def test_raw_ops_guard_the_direction(name, d):
    with pytest.raises(RuntimeError, match="must have"):
        call(torch.ops.lbgap, *good(name, d=d))


@needs_native
def test_vmap_is_refused():
    with pytest.raises(RuntimeError, match="Batching rule"):
        torch.func.vmap(lambda y: ops.box_project(y, torch.zeros(5), 1.0, 0.0, torch.empty(5)))(torch.zeros(2, 5))
