"""The box ops: native, their plain-PyTorch twins, and an independent computation, on every size and layout."""

import math

import pytest
import torch

from lbgap import _extension, ops

needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")
# torch itself warns about its own forward-mode rules, when it first loads them.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

OPS = ("box_project", "box_step", "box_vertex")
DTYPES = (torch.float32, torch.float64)


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "torch"])
def backend(request, monkeypatch):
    """Run the wrappers on the compiled library, then on the twins."""
    if request.param == "torch":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    return request.param


def call(where, name, y, d, alpha, x, absolute, relative, out):
    args = {"box_project": (y,), "box_step": (y, d, alpha), "box_vertex": (y, d)}[name]
    return getattr(where, name)(*args, x, absolute, relative, out)


def good(name, **changes):
    """Arguments that every op accepts, some of them replaced."""
    args = {"y": torch.zeros(2, 5), "d": torch.ones(2, 5), "alpha": 1.0, "x": torch.zeros(5)}
    args |= {"absolute": 1.0, "relative": 0.0, "out": torch.zeros(2, 5)}
    unknown = changes.keys() - args.keys()
    assert not unknown
    return (name, *(args | changes).values())


# What comes out


@pytest.mark.parametrize("name", ["box_project", "box_step"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_projects_onto_an_infinite_or_missing_centre(backend, name, dtype):
    x = torch.tensor([math.inf, -math.inf, math.nan], dtype=dtype)
    out = torch.zeros(3, dtype=dtype)
    call(ops, name, torch.zeros_like(x), torch.zeros_like(x), 0.0, x, 1e-3, 1e-3, out)
    assert out.isnan().all()


@pytest.mark.parametrize("name", OPS)
def test_no_rows_at_all_in_any_layout(backend, name):
    # What is empty counts as contiguous to torch, whatever its strides.
    y = torch.zeros(0, 10)[:, ::2]
    sums = call(ops, *good(name, y=y, d=y, out=y))
    assert sums is None or sums.shape == (0, {"box_step": 3, "box_vertex": 2}[name])


# Contracts with torch


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


# Refusals


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


@pytest.mark.parametrize("name", OPS)
def test_a_graph_that_saved_out_notices_that_it_was_written(backend, name):
    out = torch.zeros(2, 5)
    weight = torch.ones(2, 5, requires_grad=True)
    loss = (weight * out).sum()
    call(ops, *good(name, out=out))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", OPS)
def test_inference_tensors_are_welcome(backend, name):
    with torch.inference_mode():
        args = good(name, out=torch.zeros(2, 5))
        call(ops, *args)
    call(ops, *good(name, y=args[-1]))


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


@needs_native
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("which", ["y", "x", "out"])
def test_raw_ops_refuse_to_mix_devices(name, which):
    args = good(name, **{which: torch.zeros(5 if which == "x" else (2, 5), device="meta")})
    with pytest.raises(ValueError, match=f"the inputs of {name} must be on one device, got"):
        call(torch.ops.lbgap, *args)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("shape", [(5,), (0, 5), (3, 5)], ids=str)
def test_meta_tensors_give_shapes(backend, name, shape):
    real = [torch.zeros(shape), torch.ones(shape), 1.0, torch.zeros(5), 1.0, 0.0, torch.zeros(shape)]
    meta = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in real]
    expected = call(ops, name, *real)
    for where in (ops, *([torch.ops.lbgap] if backend == "native" else [])):
        sums = call(where, name, *meta)
        assert sums is None if expected is None else (sums.shape, sums.dtype) == (expected.shape, expected.dtype)
