"""The ops on tangents: native, their plain-PyTorch twins, and float64 or autograd, on every size and layout."""

import math

import pytest
import torch
import torch.nn.functional as F

from lbgap import _extension, ops, reference

needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")

# torch itself warns about its own forward-mode rules, when it first loads them.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

POINTWISE = ("tangents_scale", "tangents_curve", "tangents_affine", "tangents_softmax")
OPS = (*POINTWISE, "tangents_gather", "tangents_scatter")
NAMES = {
    "tangents_scale": "t first out",
    "tangents_curve": "r first curve t out",
    "tangents_affine": "t scale slopes values shifts out",
    "tangents_softmax": "t p weights out",
    "tangents_gather": "t places out",
    "tangents_scatter": "r places kernel stride padding dilation out",
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# (batch, k, channels, height, width)
SHAPES = [
    *((n, 2, c, 1, 1) for n in (0, 1, 3) for c in (1, 2, 7, 8, 9, 15, 16, 17, 33, 257)),
    *((3, k, 5, 4, 6) for k in (0, 1, 3)),
    (2, 3, 1, 1, 1),
    (1, 1, 3, 7, 5),
    (5, 1, 300, 1, 1),
    (2, 3, 4, 8, 8),
]
WINDOWS = {  # kernel, stride, padding, dilation
    "apart": ([2, 2], [2, 2], [0, 0], [1, 1]),
    "overlapping": ([3, 2], [1, 1], [1, 1], [1, 1]),
    "dilated": ([2, 3], [1, 2], [1, 1], [2, 1]),
    "with gaps": ([1, 2], [3, 3], [0, 1], [1, 1]),
}


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "torch"])
def backend(request, monkeypatch):
    """Run the wrappers on the compiled library, then on the twins."""
    if request.param == "torch":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    return request.param


def shared_dtype(dtype):
    return torch.float32 if dtype == torch.bfloat16 else dtype


def normal(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pool(values, windows):
    kernel, stride, padding, dilation = windows
    function = F.max_pool2d if len(kernel) == 2 else F.max_pool1d
    return function(values, kernel, stride, padding, dilation, return_indices=True)


def problem(name, shape=(3, 2, 4, 8, 6), dtype=torch.float32, windows=WINDOWS["overlapping"], seed=0):
    """The arguments of an op without the output, and the shape of that."""
    n, k, c, h, w = shape
    shared = shared_dtype(dtype)

    def of(*sizes, seed, dtype=shared):
        return normal(sizes, dtype, seed)

    t = of(*shape, seed=seed, dtype=dtype)
    values = of(n, c, h, w, seed=seed + 1)
    if name == "tangents_scale":
        return (t, values), shape
    if name == "tangents_curve":
        return (t, values, of(n, c, h, w, seed=seed + 2), of(*shape, seed=seed + 3, dtype=dtype)), shape
    if name == "tangents_affine":
        numbers = [of(k, c, seed=seed + 3 + i) for i in range(2)]
        return (t, of(c, seed=seed + 2), numbers[0], values, numbers[1]), shape
    if name == "tangents_softmax":
        flat = (n, k, c * h * w)
        return (t.reshape(flat), values.reshape(n, c * h * w).softmax(1), of(n, seed=seed + 2).abs()), flat
    pooled, places = pool(values, windows)
    if name == "tangents_gather":
        return (t, places), (n, k, *pooled.shape[1:])
    return (of(n, k, *pooled.shape[1:], seed=seed + 2, dtype=dtype), places, *windows), shape


def run(where, name, args, shape, dtype=None):
    out = torch.full(shape, torch.nan, dtype=dtype or args[0].dtype)
    getattr(where, name)(*args, out)
    return out


def wide(args):
    return [arg.double() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args]


def size_of(name, args):
    """The sum of the magnitudes of what is added up to each element, which its rounding errors are proportional to."""
    args = [arg.abs() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in wide(args)]
    if name == "tangents_softmax":
        t, p, weights = args
        p = p.unsqueeze(1)
        total = p * (t + (p * t).sum(2, keepdim=True))
        return total if weights is None else total * weights.view(-1, 1, 1)
    return None if name == "tangents_scatter" else args


def assert_near(found, name, args, shape, roundings=4):
    """Within a few roundings of the same in float64, each relative to the magnitudes that are added up."""
    expected = run(reference, name, wide(args), shape)
    magnitudes = size_of(name, args)
    if not isinstance(magnitudes, torch.Tensor):
        positive = [
            arg.abs() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in wide(args)
        ]
        magnitudes = run(reference, name, positive, shape)
    arithmetic = torch.finfo(shared_dtype(found.dtype)).eps
    bound = roundings * arithmetic * magnitudes + torch.finfo(found.dtype).eps / 2 * expected.abs()
    assert ((found.double() - expected).abs() <= bound).all()


def good(name, **changes):
    """Arguments that an op accepts, some of them replaced by name."""
    args, shape = problem(name)
    found = dict(zip(NAMES[name].split(), (*args, torch.empty(shape)), strict=True))
    assert not changes.keys() - found.keys()
    return list((found | changes).values())


# What comes out


@pytest.mark.pairs({"shape": SHAPES, "dtype": DTYPES, "name": POINTWISE})
def test_results_are_within_rounding_of_float64(backend, name, dtype, shape):
    args, out = problem(name, shape, dtype)
    found = run(ops, name, args, out)
    assert found.dtype == dtype
    assert_near(found, name, args, out)
    place = args[0].clone()  # in place
    getattr(ops, name)(place, *args[1:], place)
    assert torch.equal(place, found)


def assert_pooling(name, dtype, windows, shape):
    args, out = problem(name, shape, dtype, windows)
    found = run(ops, name, args, out)
    if name == "tangents_gather":
        t, places = args
        for j in range(shape[1]):
            flat = t[:, j].flatten(2).gather(2, places.flatten(2))
            assert torch.equal(found[:, j].flatten(2), flat)
        return
    assert_near(found, name, args, out, roundings=math.prod(windows[0]))  # as many windows cover an element at most
    r = args[0].double()
    for j in range(shape[1]):
        leaf = normal((shape[0], *shape[2:]), shared_dtype(dtype), 1).double().requires_grad_()
        if leaf.numel():
            (expected,) = torch.autograd.grad(pool(leaf, windows)[0], leaf, r[:, j])
            torch.testing.assert_close(
                found[:, j].double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
            )


@pytest.mark.pairs(
    {
        "shape": [(1, 1, 1, 4, 4), (3, 2, 4, 8, 5), (2, 0, 3, 6, 6), (0, 2, 3, 6, 6), (2, 33, 3, 5, 7)],
        "windows": WINDOWS,
        "dtype": DTYPES,
        "name": ["tangents_gather", "tangents_scatter"],
    }
)
def test_pooling_is_that_of_autograd(backend, name, dtype, windows, shape):
    assert_pooling(name, dtype, WINDOWS[windows], shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pooling_in_one_dimension(backend, dtype):
    values, windows = normal((3, 4, 11), shared_dtype(dtype), 1), ([3], [2], [1], [2])
    pooled, places = pool(values, windows)
    t, r = normal((3, 2, 4, 11), dtype), normal((3, 2, *pooled.shape[1:]), dtype, 2)
    assert torch.equal(run(ops, "tangents_gather", (t, places), r.shape)[:, 1], t[:, 1].gather(2, places))
    assert_near(
        run(ops, "tangents_scatter", (r, places, *windows), t.shape), "tangents_scatter", (r, places, *windows), t.shape
    )


@pytest.mark.parametrize("function", [torch.tanh, F.gelu, F.silu, F.relu, torch.sigmoid], ids=lambda f: f.__name__)
def test_activations_are_differentiated_as_by_autograd(backend, function):
    x, v = normal((4, 9), seed=3), normal((4, 3, 9), seed=4)
    weight = normal((4, 9), seed=5)  # of the loss <weight, f(x)^2>
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    (first,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
    second = torch.autograd.grad(first.sum(), leaf)[0]
    first, g = first.detach(), 2 * weight * y.detach()
    ry = run(ops, "tangents_scale", (v, first), v.shape)
    rg = 2 * weight.unsqueeze(1) * ry
    found = run(ops, "tangents_curve", (rg, first, second * g, v), v.shape)
    for j in range(3):
        _, expected = torch.autograd.functional.hvp(lambda x: (weight * function(x).square()).sum(), x, v[:, j])
        torch.testing.assert_close(found[:, j], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 10, 16, 37])
def test_softmax_is_the_hessian_of_cross_entropy(backend, probabilities, classes):
    logits, v = normal((5, classes), seed=1) * 3, normal((5, 2, classes), seed=2)
    targets = normal((5, classes), seed=3).abs() if probabilities else torch.arange(5) % classes
    weights = targets.sum(1) if probabilities else None
    found = run(ops, "tangents_softmax", (v, logits.softmax(1), weights), v.shape)
    for j in range(2):
        _, expected = torch.autograd.functional.hvp(
            lambda x: F.cross_entropy(x, targets, reduction="sum"), logits, v[:, j]
        )
        torch.testing.assert_close(found[:, j], expected, rtol=1e-12, atol=1e-12)


def test_affine_is_the_derivative_of_batch_norm(backend):
    shape = (3, 4, 5, 2)
    x, mean, variance = normal(shape, seed=1), normal((4,), seed=2), normal((4,), seed=3).exp()
    scale, shift = normal((4,), seed=4), normal((4,), seed=5)
    rx, rs, rb = normal((3, 2, 4, 5, 2), seed=6), normal((2, 4), seed=7), normal((2, 4), seed=8)
    inverse = (variance + 1e-5).rsqrt()
    hat = (x - mean.view(1, 4, 1, 1)) * inverse.view(1, 4, 1, 1)
    found = run(ops, "tangents_affine", (rx, scale * inverse, rs, hat, rb), rx.shape)
    for j in range(2):
        _, expected = torch.func.jvp(
            lambda x, s, b: F.batch_norm(x, mean, variance, s, b, False),
            (x, scale, shift),
            (rx[:, j], rs[j], rb[j]),
        )
        torch.testing.assert_close(found[:, j], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)])
def test_affine_without_some_of_its_terms(backend, dtype, given):
    (t, scale, slopes, values, shifts), shape = problem("tangents_affine", dtype=dtype)
    values[0] = math.inf  # which zero slopes would make NaN
    own = (slopes, values) if given[0] else (None, None)
    args = (t, scale, *own, shifts if given[1] else None)
    rest = slice(1, None) if given[0] else slice(None)
    found = run(ops, "tangents_affine", args, shape)
    zero = torch.zeros_like(slopes)
    full = (t, scale, slopes if given[0] else zero, values.clamp(-9, 9), shifts if given[1] else zero)
    assert torch.equal(found[rest], run(ops, "tangents_affine", full, shape)[rest])


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_row(backend, name, value):
    args, shape = problem(name)
    before = run(ops, name, args, shape)
    args[0][1, 1] = value
    found = run(ops, name, args, shape)
    touched = torch.zeros(shape, dtype=torch.bool)
    touched[1, 1] = True
    assert torch.equal(found[~touched], before[~touched])
    expected = run(reference, name, wide(args), shape)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.4e38, 1e-45, -1e-40, 1.00390625, 1.01171875])
def test_bfloat16_is_rounded_as_torch_rounds(backend, value):
    t = torch.ones(2, 3, 5, dtype=torch.bfloat16)
    found = run(ops, "tangents_scale", (t, torch.full((2, 5), value)), t.shape)
    expected = torch.full(t.shape, value).bfloat16()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("places", [-1, 48, 2**62])
def test_a_place_outside_of_the_plane_gives_nan(backend, places):
    (t, at), shape = problem("tangents_gather")
    at[1, 2, 0, 0] = places
    found = run(ops, "tangents_gather", (t, at), shape)
    assert found.isnan().sum() == t.shape[1]
    assert found[1, :, 2, 0, 0].isnan().all()


@pytest.mark.pairs({"layout": ["strided", "transposed", "offset"], "dtype": DTYPES, "name": OPS})
def test_any_layout_is_read_and_written(backend, name, dtype, layout):
    args, shape = problem(name, dtype=dtype)
    expected = run(ops, name, args, shape)

    def lay(values):
        if layout == "strided":
            return values.new_zeros(*values.shape[:-1], 2 * values.shape[-1])[..., ::2].copy_(values)
        if layout == "transposed":
            return values.new_zeros(values.shape[::-1]).permute(*range(values.dim() - 1, -1, -1)).copy_(values)
        return values.new_zeros(values.numel() + 1)[1:].view(values.shape).copy_(values)

    args = [lay(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
    out = lay(torch.full(shape, 7, dtype=dtype))
    getattr(ops, name)(*args, out)
    if backend == "torch" and name == "tangents_softmax":  # torch's sums depend on the layout
        assert_near(out, name, args, shape)
    else:
        assert torch.equal(out, expected)


@pytest.mark.parametrize("name", OPS)
def test_inputs_are_left_alone(backend, name):
    args, shape = problem(name)
    before = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args]
    run(ops, name, args, shape)
    for arg, old in zip(args, before, strict=True):
        assert torch.equal(arg, old) if isinstance(arg, torch.Tensor) else arg == old


@needs_native
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(name, dtype):
    args, shape = problem(name, (40, 8, 16, 12, 12), dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(ops, name, args, shape))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# Contracts with torch


@needs_native
@pytest.mark.pairs(
    {
        "shape": [(3, 2, 4, 8, 6), (0, 2, 4, 8, 6), (3, 0, 4, 8, 6)],
        "dtype": [torch.float32, torch.bfloat16],
        "name": OPS,
    }
)
def test_opcheck(name, dtype, shape):
    args, out = problem(name, shape, dtype)
    torch.library.opcheck(getattr(torch.ops.lbgap, name).default, (*args, torch.empty(out, dtype=dtype)))


@needs_native
@pytest.mark.parametrize("name", ["tangents_affine", "tangents_softmax"])
def test_opcheck_without_what_may_be_missing(name):
    args, shape = problem(name)
    kept = [*args[:2], *(None for _ in args[2:])]
    torch.library.opcheck(getattr(torch.ops.lbgap, name).default, (*kept, torch.empty(shape)))


@pytest.mark.parametrize("name", OPS)
def test_compile_traces_through_without_a_break(backend, name):
    args, shape = problem(name)

    def call(*args):
        out = args[0].new_empty(shape)
        getattr(ops, name)(*args, out)
        return 2 * out

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), call(*args))


@pytest.mark.parametrize("name", OPS)
def test_a_graph_that_saved_out_notices_that_it_was_written(backend, name):
    args, shape = problem(name)
    out = torch.zeros(shape)
    loss = (torch.ones(shape, requires_grad=True) * out).sum()
    getattr(ops, name)(*args, out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Refusals


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("tangents_scale", {"t": torch.zeros(3)}, ValueError, r"tangents must be \(batch, k, ...\), got shape \(3,\)"),
        (
            "tangents_scale",
            {"t": torch.zeros(3, 2, dtype=torch.int32)},
            TypeError,
            "must be float32, float64 or bfloat16",
        ),
        (
            "tangents_scale",
            {"t": torch.zeros(3, 2, dtype=torch.half)},
            TypeError,
            "must be float32, float64 or bfloat16",
        ),
        ("tangents_scale", {"first": torch.zeros(3, 5)}, ValueError, r"first must have shape \(3, 4, 8, 6\)"),
        ("tangents_scale", {"first": torch.zeros(3, 4, 8, 6).double()}, TypeError, "first must be torch.float32 for"),
        (
            "tangents_scale",
            {"first": torch.zeros(3, 4, 8, 6, device="meta")},
            ValueError,
            "first must be on the device",
        ),
        ("tangents_scale", {"out": torch.zeros(3, 2)}, ValueError, "out must have shape"),
        (
            "tangents_scale",
            {"out": torch.zeros(3, 2, 4, 8, 6).double()},
            TypeError,
            "out must have the dtype of the tang",
        ),
        ("tangents_scale", {"out": torch.zeros(1).expand(3, 2, 4, 8, 6)}, ValueError, "elements that share memory"),
        ("tangents_curve", {"curve": torch.zeros(3)}, ValueError, "curve must have shape"),
        ("tangents_curve", {"t": torch.zeros(3, 2)}, ValueError, "t must have shape"),
        ("tangents_curve", {"t": torch.zeros(3, 2, 4, 8, 6).double()}, TypeError, "t must have the dtype of"),
        ("tangents_affine", {"t": torch.zeros(3, 2)}, ValueError, r"t must be \(batch, k, channels, ...\)"),
        ("tangents_affine", {"scale": torch.zeros(5)}, ValueError, r"scale must have shape \(4,\)"),
        ("tangents_affine", {"slopes": None}, ValueError, "slopes and values must be given together"),
        ("tangents_affine", {"slopes": torch.zeros(4)}, ValueError, r"slopes must have shape \(2, 4\)"),
        ("tangents_affine", {"shifts": torch.zeros(4)}, ValueError, r"shifts must have shape \(2, 4\)"),
        ("tangents_softmax", {"t": torch.zeros(3, 2)}, ValueError, r"t must be \(batch, k, classes\)"),
        ("tangents_softmax", {"p": torch.zeros(3, 2)}, ValueError, "p must have shape"),
        ("tangents_softmax", {"weights": torch.zeros(4)}, ValueError, r"weights must have shape \(3,\)"),
        ("tangents_gather", {"t": torch.zeros(3, 2, 4)}, ValueError, "before and after pooling must be"),
        ("tangents_gather", {"places": torch.zeros(3, dtype=torch.int64)}, ValueError, "places must be int64"),
        ("tangents_gather", {"places": torch.zeros(3, 4, 9, 7)}, ValueError, "places must be int64"),
        ("tangents_scatter", {"kernel": [2]}, ValueError, r"kernel must be 2 numbers of at least 1, got \(2,\)"),
        ("tangents_scatter", {"stride": [1, 0]}, ValueError, r"stride must be 2 numbers of at least 1, got \(1, 0\)"),
        ("tangents_scatter", {"padding": [0, -1]}, ValueError, "padding must be 2 numbers of at least 0"),
        ("tangents_scatter", {"dilation": []}, ValueError, "dilation must be 2 numbers"),
        ("tangents_scatter", {"r": torch.zeros(3, 2, 5, 9, 7)}, ValueError, "before and after pooling must be"),
    ],
)
def test_wrappers_refuse(backend, name, changes, error, message):
    with pytest.raises(error, match=message):
        getattr(ops, name)(*good(name, **changes))


@pytest.mark.parametrize("name", OPS)
def test_gradients_are_refused(backend, name):
    for place, argument in enumerate(good(name)):
        if not isinstance(argument, torch.Tensor) or not argument.is_floating_point():
            continue
        args = good(name)
        args[place] = args[place].clone().requires_grad_()
        with pytest.raises(ValueError, match="require"):
            getattr(ops, name)(*args)
        with torch.autograd.forward_ad.dual_level():
            args[place] = torch.autograd.forward_ad.make_dual(argument, torch.ones_like(argument))
            with pytest.raises(ValueError, match="require"):
                getattr(ops, name)(*args)


@needs_native
@pytest.mark.parametrize("name", OPS)
def test_raw_ops_refuse_gradients(name):
    args = good(name)
    args[0].requires_grad_()
    with pytest.raises(ValueError, match=f"an input of {name} requires a gradient"):
        getattr(torch.ops.lbgap, name)(*args)


@needs_native
@pytest.mark.parametrize("name", OPS)
def test_raw_ops_refuse_to_mix_devices(name):
    args = good(name)
    args[1] = args[1].to("meta")
    with pytest.raises(ValueError, match=f"the inputs of {name} must be on one device"):
        getattr(torch.ops.lbgap, name)(*args)


@needs_native
@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tangents_scale", {"t": torch.zeros(3)}, r"t must be \(batch, k, ...\)"),
        ("tangents_scale", {"t": torch.zeros(3, 2, dtype=torch.int32)}, "t must be float32, float64 or bfloat16"),
        ("tangents_scale", {"t": torch.zeros(6, 8, 4, 2, 3).permute(4, 3, 2, 1, 0)}, "t must be contiguous"),
        ("tangents_scale", {"first": torch.zeros(3)}, "first must have 576 elements, got 3"),
        ("tangents_scale", {"first": torch.zeros(576).double()}, "first must have the dtype of t"),
        ("tangents_scale", {"first": torch.zeros(1152)[::2]}, "first must be contiguous"),
        ("tangents_scale", {"out": torch.zeros(3)}, "out must have 1152 elements"),
        ("tangents_curve", {"curve": torch.zeros(3)}, "curve must have 576 elements"),
        ("tangents_curve", {"t": torch.zeros(3)}, "t must have 1152 elements"),
        (
            "tangents_affine",
            {"t": torch.zeros(3, 2), "out": torch.zeros(3, 2)},
            r"t must be \(batch, k, channels, ...\)",
        ),
        ("tangents_affine", {"slopes": None}, "slopes and values must come together"),
        ("tangents_affine", {"shifts": torch.zeros(3)}, "shifts must have 8 elements"),
        ("tangents_softmax", {"p": torch.zeros(3)}, "p must have 576 elements"),
        ("tangents_softmax", {"weights": torch.zeros(2)}, "weights must have 3 elements"),
        ("tangents_gather", {"t": torch.zeros(3, 2, 4)}, "tangents before and after pooling"),
        ("tangents_gather", {"places": torch.zeros(3, dtype=torch.int64)}, "places must have"),
        ("tangents_gather", {"places": torch.zeros(3)}, "places must have the dtype"),
        ("tangents_scatter", {"kernel": [2]}, "kernel must have 2 numbers, got 1"),
        ("tangents_scatter", {"stride": [1, 0]}, "stride must be at least 1 and below"),
        ("tangents_scatter", {"padding": [0, 2**31]}, "padding must be at least 0 and below"),
    ],
)
def test_raw_ops_guard_memory(name, changes, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.lbgap, name).default(*good(name, **changes))


@needs_native
@pytest.mark.parametrize("name", OPS)
def test_an_out_that_overlaps_an_input_in_part_is_refused(name):
    args, shape = problem(name)
    for place, arg in enumerate(args):
        if not isinstance(arg, torch.Tensor) or not arg.is_floating_point():
            continue
        room = torch.zeros(max(arg.numel(), math.prod(shape)) + 1)
        mixed = list(args)
        mixed[place] = room[: arg.numel()].view(arg.shape)
        with pytest.raises(RuntimeError, match="overlaps"):
            getattr(ops, name)(*mixed, room[1 : 1 + math.prod(shape)].view(shape))
        assert not room.any()
