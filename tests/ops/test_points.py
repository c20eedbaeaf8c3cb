"""The ops on many points: native, their plain-PyTorch twins, and float64, on every size and layout."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from lbgap import _extension, ops, reference
from lbgap.ops.points import WIDEST

needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")

# torch itself warns about its own forward-mode rules, when it first loads them.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

DTYPES = (torch.float32, torch.float64)
OPS = ("blend_points", "chain_points", "xent_points")
SAMPLES, CHUNK, GROUP = 64, 512, 128  # as csrc/cpu/points.h shares out samples and classes
LAYOUTS = ("contiguous", "transposed", "strided")


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "torch"])
def backend(request, monkeypatch):
    """Run the wrappers on the compiled library, then on the twins."""
    if request.param == "torch":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    return request.param


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def labels(samples, classes):
    return torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(5))


def lay(values, layout):
    """The same values in another layout; what lies between them is NaN."""
    if layout == "transposed":
        return values.mT.contiguous().mT
    if layout == "strided":
        room = values.new_full((*values.shape[:-1], 2 * values.shape[-1] + 1), torch.nan)
        return room[..., 1::2].copy_(values)
    return values


def chain(k, j, samples, widths, dtype=torch.float64, scale=0.3):
    """Arguments of chain_points."""
    numel = sum(width * (before + 1) for before, width in itertools.pairwise(widths))
    return (
        normal(k, j, seed=1),
        normal(j, widths[0], samples, seed=2, dtype=dtype),
        normal(j, numel, seed=3, dtype=dtype) * scale,
        list(widths),
        labels(samples, widths[-1]),
    )


def arguments(name, k=3, j=2, n=7, dtype=torch.float32):
    """Arguments that an op accepts."""
    if name == "blend_points":
        return normal(k, j), normal(j, n, dtype=dtype), torch.empty(k, n, dtype=dtype)
    if name == "chain_points":
        return chain(k, j, n, [4, 5, 3], dtype)
    return normal(k, n, 3, dtype=dtype), labels(n, 3)


def changed(name, place, value):
    args = list(arguments(name))
    args[place] = value
    return args


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def xent_bound(logits):
    """A sum of c exponentials of an error of two units errs by c + 2, and its distance from the largest by one."""
    if logits.numel() == 0:
        return 0.0
    spread = float(logits.double().abs().max()) * 2
    return logits.shape[1] * torch.finfo(logits.dtype).eps * (logits.shape[2] + 4 + spread)


# Cross-entropy


@pytest.mark.pairs(
    {
        "k, classes": [(0, 3), (1, 1), (2, 10), (1, GROUP + 1)],
        "samples": [0, 1, 2, SAMPLES - 1, SAMPLES, SAMPLES + 1, CHUNK + 3],
        "layout": LAYOUTS,
        "dtype": DTYPES,
    }
)
def test_xent_is_that_of_float64(backend, dtype, layout, samples, k, classes):
    logits, targets = normal(k, samples, classes, dtype=dtype) * 3, labels(samples, classes)
    found = ops.xent_points(lay(logits, layout), targets)
    expected = torch.zeros(k, 2, dtype=torch.float64)
    if k:
        twin = F.cross_entropy(logits.double().movedim(2, 1), targets.expand(k, -1), reduction="none").sum(1)
        expected = torch.stack([twin, (logits.argmax(2) == targets).sum(1).double()], 1)
    assert (found.shape, found.dtype) == ((k, 2), torch.float64)
    assert torch.equal(found[:, 1], expected[:, 1])
    assert ((found - expected)[:, 0].abs() <= xent_bound(logits)).all()


@pytest.mark.parametrize("k", [1, 257])
def test_xent_of_points_together_has_the_bits_of_each_alone(backend, k):
    logits, targets = normal(k, 70, 5, dtype=torch.float32), labels(70, 5)
    found = ops.xent_points(logits, targets)
    for place in {0, k // 2, k - 1}:
        one = ops.xent_points(logits[place : place + 1], targets)
        # The twin's sum over samples depends on how many points there are.
        torch.testing.assert_close(found[place], one[0], rtol=0 if backend == "native" else 1e-15, atol=0)


@needs_native
@pytest.mark.parametrize("classes", [3, GROUP, 2 * GROUP + 1])
def test_xent_has_the_same_bits_in_any_layout(classes):
    logits, targets = normal(3, 130, classes, dtype=torch.float32), labels(130, classes)
    found = [ops.xent_points(lay(logits, layout), targets) for layout in LAYOUTS]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


ROWS = [
    [0.0, 1.0, -1.0],
    [math.inf, 1.0, 2.0],
    [math.inf, math.inf, 0.0],
    [-math.inf, 1.0, 2.0],
    [-math.inf, -math.inf, 2.0],
    [-math.inf, -math.inf, -math.inf],
    [math.nan, 1.0, 2.0],
    [1.0, math.nan, 2.0],
    [1.0, 2.0, math.nan],
    [math.nan, math.inf, math.nan],
    [2.0, 2.0, 2.0],
    [1.0, 2.0, 2.0],
    [1e30, -1e30, 0.0],
    [3e38, -3e38, 0.0],
    [-100.0, -200.0, 0.0],
    [1e-45, 0.0, -1e-45],
]


@pytest.mark.pairs({"target": [0, 1, 2], "spread": [1, GROUP], "dtype": DTYPES})
def test_xent_of_what_is_not_finite_and_of_ties_is_that_of_torch(backend, dtype, spread, target):
    """Once with neighbouring classes, once with each class in a group of its own, among others that are -inf."""
    logits = torch.full((len(ROWS), 1, 2 * spread + 1), -math.inf, dtype=dtype)
    logits[:, 0, ::spread] = torch.tensor(ROWS, dtype=dtype)
    targets = torch.tensor([target * spread])
    expected = F.cross_entropy(logits[:, 0], targets.expand(len(ROWS)), reduction="none").double()
    found = ops.xent_points(logits, targets)
    torch.testing.assert_close(found[:, 0], expected, rtol=4 * torch.finfo(dtype).eps, atol=0, equal_nan=True)
    assert found[:, 1].bool().tolist() == (logits[:, 0].argmax(1) == targets).tolist()


def assert_exponential_and_logarithm(dtype, count):
    # A loss of two classes is log(1 + exp(-x)); of many equal ones it is the logarithm of their number.
    eps = torch.finfo(dtype).eps
    x = torch.cat([torch.linspace(0, 120, count), torch.linspace(700, 720, 41)]).to(dtype)
    logits = torch.stack([torch.zeros_like(x), -x], 1)[:, None]
    found = ops.xent_points(logits, torch.tensor([0]))[:, 0]
    expected = torch.tensor([math.log1p(math.exp(-value)) for value in x.tolist()], dtype=torch.float64)
    assert ((found - expected).abs() <= 3 * eps).all()
    for classes in (2, 3, 7, 90, 1000):
        value = float(ops.xent_points(torch.zeros(1, 1, classes, dtype=dtype), torch.tensor([0]))[0, 0])
        assert abs(value - math.log(classes)) <= 2 * eps * math.log(classes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exponential_and_logarithm_to_the_last_places(backend, dtype):
    assert_exponential_and_logarithm(dtype, count=4001)


# Combinations


@pytest.mark.pairs(
    {
        "k, j": [(0, 2), (1, 1), (3, 2), (5, 3), (2, 4), (2, 17), (257, 3), (2, 0)],
        "m": [0, 1, 63, 64, 65, 8195],
        "dtype": DTYPES,
    }
)
def test_blend_is_a_sum_in_float64_rounded_once(backend, dtype, m, k, j):
    coefficients, ends = normal(k, j), normal(j, m, dtype=dtype)
    out = torch.full((k, m), torch.nan, dtype=dtype)
    ops.blend_points(coefficients, ends, out)
    expected = torch.zeros(k, m, dtype=torch.float64)
    for i in range(j):
        expected += coefficients[:, i : i + 1] * ends[i].double()
    assert torch.equal(out, expected.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("j", [1, 2, 3, 5])
def test_ends_are_themselves_to_the_bit_whatever_the_others_hold(backend, dtype, j):
    ends = normal(j, 131, dtype=dtype)
    ends[:, 3], ends[:, 4], ends[:, 5] = math.inf, -math.inf, -0.0
    out = torch.empty_like(ends)
    ops.blend_points(torch.eye(j, dtype=torch.float64), ends, out)
    assert torch.equal(bits(out), bits(ends))
    spoilt = torch.cat([ends, torch.full_like(ends[:1], math.nan), torch.full_like(ends[:1], math.inf)])
    wide = torch.cat([torch.eye(j), torch.zeros(j, 1), torch.full((j, 1), -0.0)], 1).double()
    ops.blend_points(wide, spoilt, out)
    assert torch.equal(bits(out), bits(ends))
    ops.blend_points(torch.zeros(j, j, dtype=torch.float64), ends, out)
    assert not out.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blend_of_what_is_not_finite(backend, dtype):
    ends = torch.tensor([[math.inf, math.nan, math.inf, 1e38], [1.0, 2.0, -math.inf, 1e38]]).to(dtype)
    out = torch.empty(1, 4, dtype=dtype)
    ops.blend_points(torch.tensor([[2.0, 3.0]]).double(), ends, out)
    assert out[0, 0] == math.inf
    assert out[0, 1:3].isnan().all()
    assert out[0, 3].isinf() == (dtype is torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "out", [torch.zeros(9, 3).T, torch.zeros(3, 18)[:, ::2], torch.zeros(3, 12)[:, 1:10], torch.zeros(3, 9)]
)
def test_blend_of_any_layout(backend, layout, out):
    coefficients, ends = normal(3, 2), normal(2, 9, dtype=torch.float32)
    expected = torch.empty(3, 9)
    ops.blend_points(coefficients, ends, expected)
    ops.blend_points(lay(coefficients, layout), lay(ends, layout), out)
    assert torch.equal(out, expected)


# Chains


def exact_chain(coefficients, first, ends, widths, targets):
    """Point by point in float64, as the network is written."""
    found = []
    for row in coefficients:
        x = torch.tensordot(row, first.double(), 1).T
        weights = row @ ends.double()
        for before, width in itertools.pairwise(widths):
            weight, bias, weights = weights.split((width * before, width, len(weights) - width * (before + 1)))
            x = F.linear(x.relu(), weight.view(width, before), bias)
        found.append(torch.stack([F.cross_entropy(x, targets, reduction="sum"), (x.argmax(1) == targets).sum()]))
    return torch.stack(found) if found else torch.zeros(0, 2, dtype=torch.float64)


WIDTHS = [[1], [10], [1, 1], [3, 2], [64, 64, 10], [7, WIDEST, 5, 6], [WIDEST, WIDEST - 1, 1, 12, 13], [5, 17, 11]]


@pytest.mark.pairs({"samples": [0, 1, SAMPLES, SAMPLES + 1], "widths": WIDTHS, "dtype": DTYPES})
def test_chain_is_the_network_in_float64(backend, dtype, widths, samples):
    args = chain(3, 2, samples, widths, dtype, scale=0.1)
    found, expected = ops.chain_points(*args), exact_chain(*args)
    assert (found.shape, found.dtype) == ((3, 2), torch.float64)
    # Each of the products of a layer adds width roundings of numbers of size one; the worst case is far above this.
    bound = samples * torch.finfo(dtype).eps * sum(widths) * 4
    assert ((found - expected)[:, 0].abs() <= bound).all()
    assert ((found - expected)[:, 1] == 0).all()


@pytest.mark.parametrize("j", [1, 2, 3])
@pytest.mark.parametrize("k", [0, 1, 257])
def test_chain_of_every_number_of_points_and_ends(backend, k, j):
    args = chain(k, j, CHUNK + 9, [5, 7, 3])
    torch.testing.assert_close(ops.chain_points(*args), exact_chain(*args), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chain_without_an_end_that_takes_no_part(backend, dtype):
    coefficients, first, ends, widths, targets = chain(4, 2, 70, [6, 5, 3], dtype)
    coefficients[:, 1] = 0.0
    expected = ops.chain_points(coefficients[:, :1], first[:1], ends[:1], widths, targets)
    first[1], ends[1] = math.nan, math.inf
    found = ops.chain_points(coefficients, first, ends, widths, targets)
    torch.testing.assert_close(found, expected, rtol=1e-15 if backend == "torch" else 0, atol=0)
    assert found.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_chain_of_what_is_not_finite(backend, dtype, value):
    coefficients, first, ends, widths, targets = chain(2, 1, 70, [6, 5, 3], dtype)
    coefficients[:, 0] = 1.0
    first[0, 2, 65] = value
    found = ops.chain_points(coefficients, first, ends, widths, targets)
    # A negative infinity is a unit that is off.
    expected = exact_chain(coefficients, first, ends, widths, targets)
    assert found[:, 0].isnan().tolist() == expected[:, 0].isnan().tolist() == [value != -math.inf] * 2
    ends[0, 0] = math.nan
    assert ops.chain_points(coefficients, first, ends, widths, targets)[:, 0].isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chain_of_any_layout(backend, layout):
    args = chain(3, 2, 70, [6, 5, 3], torch.float32)
    laid = [lay(arg, layout) if isinstance(arg, torch.Tensor) and arg.dim() > 1 else arg for arg in args]
    laid[4] = torch.stack([args[4], args[4]], 1)[:, 0]
    torch.testing.assert_close(ops.chain_points(*laid), ops.chain_points(*args), rtol=1e-6, atol=0)
    expanded = (args[0], args[1][:1].expand(2, -1, -1), args[2][:1].expand(2, -1), *args[3:])
    one = ops.chain_points(args[0].sum(1, keepdim=True), args[1][:1], args[2][:1], *args[3:])
    torch.testing.assert_close(ops.chain_points(*expanded), one, rtol=1e-5, atol=0)


# The same bits


@needs_native
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("k", [1, 5, 257])
def test_bits_do_not_depend_on_the_number_of_threads(name, k):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            args = arguments(name, k, 3, 3 * CHUNK + 5)
            result = getattr(ops, name)(*args)
            found.append(args[2] if result is None else result)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found[1:])


# Contracts with torch


@needs_native
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("n", [0, 7])
def test_opcheck(name, k, n):
    torch.library.opcheck(getattr(torch.ops.lbgap, name).default, arguments(name, k, 2, n))


@pytest.mark.parametrize("name", OPS)
def test_compile_traces_through_without_a_break(backend, name):
    def call(*args):
        result = getattr(ops, name)(*args)
        return args[2] if result is None else result

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for n in (7, 11):
        assert torch.equal(compiled(*arguments(name, n=n)), call(*arguments(name, n=n)))


@pytest.mark.parametrize("name", OPS)
def test_meta_tensors_give_shapes(backend, name):
    args = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in arguments(name)]
    for where in (ops, *([torch.ops.lbgap] if backend == "native" else [])):
        found = getattr(where, name)(*args)
        assert found is None if name == "blend_points" else (found.shape, found.dtype) == ((3, 2), torch.float64)


@needs_native
@pytest.mark.parametrize("name", OPS)
def test_raw_ops_refuse_gradients_and_several_devices(name):
    for place, arg in enumerate(arguments(name)):
        if isinstance(arg, torch.Tensor) and arg.is_floating_point():
            with pytest.raises(ValueError, match=f"an input of {name} requires a gradient"):
                getattr(torch.ops.lbgap, name)(*changed(name, place, arg.clone().requires_grad_()))
        if isinstance(arg, torch.Tensor):
            with pytest.raises(ValueError, match=f"inputs of {name} must be on one device"):
                getattr(torch.ops.lbgap, name)(*changed(name, place, arg.to("meta")))


@pytest.mark.parametrize("name", OPS)
def test_wrappers_refuse_gradients_and_several_devices(backend, name):
    for place, arg in enumerate(arguments(name)):
        if isinstance(arg, torch.Tensor) and arg.is_floating_point():
            with pytest.raises(ValueError, match=r"requires a gradient, and the points ops have none: pass .*detach"):
                getattr(ops, name)(*changed(name, place, arg.clone().requires_grad_()))
        if isinstance(arg, torch.Tensor):
            with pytest.raises(ValueError, match=r"all tensors must be on one device, got .* on meta.*: move them"):
                getattr(ops, name)(*changed(name, place, arg.to("meta")))


def test_a_graph_that_saved_out_notices_that_it_was_written(backend):
    coefficients, ends, out = arguments("blend_points")
    weight = torch.ones_like(out, requires_grad=True)
    loss = (weight * out.zero_()).sum()
    ops.blend_points(coefficients, ends, out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Refusals


@pytest.mark.parametrize(
    ("name", "place", "value", "error", "message"),
    [
        ("xent_points", 0, torch.zeros(7, 3), ValueError, r"logits must be \(k, N, c\) .* got shape \(7, 3\)"),
        ("xent_points", 0, torch.zeros(3, 7, 0), ValueError, "one class or more"),
        ("xent_points", 0, torch.zeros(3, 7, 3).bfloat16(), TypeError, "logits must be float32 or float64"),
        ("xent_points", 1, torch.zeros(6).long(), ValueError, r"targets must be \(7,\), one class index a sample"),
        ("xent_points", 1, torch.zeros(7, 1).long(), ValueError, r"got shape \(7, 1\)"),
        ("xent_points", 1, torch.zeros(7).int(), TypeError, "targets must be int64, got torch.int32"),
        ("xent_points", 1, torch.full((7,), 3), ValueError, r"class indices in 0\.\.2, got 3\.\.3: renumber"),
        ("xent_points", 1, torch.full((7,), -100), ValueError, r"class indices in 0\.\.2, got -100\.\.-100"),
        ("blend_points", 0, torch.zeros(3, 3).double(), ValueError, r"got \(3, 3\), \(2, 7\) and \(3, 7\)"),
        ("blend_points", 0, torch.zeros(2).double(), ValueError, r"coefficients must be \(k, j\), ends \(j, m\)"),
        ("blend_points", 0, torch.zeros(3, 2), TypeError, "coefficients must be float64, got torch.float32"),
        ("blend_points", 1, torch.zeros(2, 8), ValueError, r"got \(3, 2\), \(2, 8\) and \(3, 7\)"),
        ("blend_points", 1, torch.zeros(2, 7).half(), TypeError, "ends and out must both be float32 or both float64"),
        ("blend_points", 2, torch.zeros(3, 7).double(), TypeError, "ends and out must both be"),
        ("blend_points", 2, torch.zeros(2, 7), ValueError, "out"),
        ("blend_points", 2, torch.zeros(7).expand(3, 7), ValueError, "out has elements that share memory"),
        ("chain_points", 0, torch.zeros(3, 1).double(), ValueError, r"first \(j, 4, N\) and ends \(j, 43\)"),
        ("chain_points", 0, torch.zeros(3, 2), TypeError, "coefficients must be float64"),
        ("chain_points", 1, torch.zeros(2, 5, 7), ValueError, r"for layers of \[4, 5, 3\], got \(3, 2\), \(2, 5, 7\)"),
        ("chain_points", 1, torch.zeros(2, 4, 7).double(), TypeError, "first and ends must both be"),
        ("chain_points", 2, torch.zeros(2, 42), ValueError, r"ends \(j, 43\)"),
        ("chain_points", 3, [], ValueError, r"widths must be 1 to 64 numbers between 1 and 128, got \[\]"),
        ("chain_points", 3, [4, 129, 3], ValueError, "between 1 and 128"),
        ("chain_points", 3, [4] * 65, ValueError, "1 to 64 numbers"),
        ("chain_points", 3, [4, 0, 3], ValueError, "between 1 and 128"),
        ("chain_points", 4, torch.full((7,), 3), ValueError, r"class indices in 0\.\.2, got 3\.\.3"),
        ("chain_points", 4, torch.zeros(6).long(), ValueError, r"targets must be \(7,\)"),
    ],
)
def test_wrappers_refuse(backend, name, place, value, error, message):
    with pytest.raises(error, match=message):
        getattr(ops, name)(*changed(name, place, value))


@needs_native
@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("xent_points", 0, torch.zeros(7, 3), "logits must be"),
        ("xent_points", 0, torch.zeros(3, 7, 0), "logits must have between 1 and"),
        ("xent_points", 0, torch.zeros(3, 7, 3).bfloat16(), "logits must be float32 or float64"),
        ("xent_points", 1, torch.zeros(6).long(), "targets must be a contiguous"),
        ("xent_points", 1, torch.zeros(14).long()[::2], "targets must be a contiguous"),
        ("xent_points", 1, torch.zeros(7), "targets must be a contiguous"),
        ("blend_points", 0, torch.zeros(3, 3).double(), "coefficients must be"),
        ("blend_points", 0, torch.zeros(3, 2), "coefficients must be float64"),
        ("blend_points", 0, torch.zeros(2, 3).double().T, "coefficients must have contiguous rows"),
        ("blend_points", 1, torch.zeros(2, 14)[:, ::2], "ends must have contiguous rows"),
        ("blend_points", 1, torch.zeros(2, 8), "out must be"),
        ("blend_points", 2, torch.zeros(3, 7).double(), "out must be"),
        ("blend_points", 2, torch.zeros(7).expand(3, 7), "overlap each other"),
        ("chain_points", 0, torch.zeros(3, 3).double(), "coefficients must be"),
        ("chain_points", 1, torch.zeros(2, 4, 14)[..., ::2], "first must have contiguous samples"),
        ("chain_points", 1, torch.zeros(2, 4), "first must be"),
        ("chain_points", 2, torch.zeros(2, 42), "ends must be"),
        ("chain_points", 2, torch.zeros(2, 43).double(), "ends must have the dtype"),
        ("chain_points", 3, [], "widths must name"),
        ("chain_points", 3, [4] * 65, "widths must name between 1 and 64 layers, got 65"),
        ("chain_points", 3, [4, 129, 3], "widths must be between 1 and 128, got 129"),
        ("chain_points", 3, [2**62, 2**62, 3], "widths must be between 1 and 128"),
        ("chain_points", 4, torch.zeros(6).long(), "targets must be a contiguous"),
    ],
)
def test_raw_ops_guard_memory(name, place, value, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.lbgap, name).default(*changed(name, place, value))


@needs_native
def test_raw_blend_refuses_an_out_that_overlaps_the_ends():
    memory = torch.zeros(40)
    with pytest.raises(RuntimeError, match="the output overlaps ends"):
        torch.ops.lbgap.blend_points.default(normal(3, 2), memory[:14].view(2, 7), memory[13:34].view(3, 7))


@needs_native
@pytest.mark.parametrize("target", [3, -1, -100, 2**62, -(2**63)])
def test_raw_ops_make_targets_out_of_range_nan_and_read_nothing(target):
    for name in ("chain_points", "xent_points"):
        args = arguments(name)
        args[-1][4] = target
        found = getattr(torch.ops.lbgap, name).default(*args)
        assert found[:, 0].isnan().all()
        assert (found[:, 1] <= 6).all()
    torch.testing.assert_close(reference.xent_points(*args), found, rtol=1e-6, atol=0, equal_nan=True)
