"""Where and when a kernel runs: streams, devices, graphs, compiled functions, and no wait for the device."""

import pytest
import torch

from lbgap import ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

N = 70_001
LONG = 50_000_000  # cycles of the GPU: longer than a launch takes
NO_BOX = (0.0, 0.0)


def draw(device="cuda", dtype=torch.float32):
    """Points, directions and a centre."""
    generator = torch.Generator(device).manual_seed(0)
    return (torch.randn(N, generator=generator, device=device, dtype=dtype) for _ in range(3))


def every_op(device="cuda"):
    """A call of each op that returns what it made, new tensors all of them."""
    y, d, x = draw(device)
    s, gradients = (torch.stack([a, b, c]) for a, b, c in ((y, d, x), (2 * y, 3 * d, x)))
    middle, q = torch.eye(6, dtype=torch.float64) * 0.1, torch.arange(6, dtype=torch.float64)
    low, high = x - 0.5, x + 0.5
    inside = y.clamp(low, high)
    z = torch.linspace(-1, 1, 30, device=device, dtype=torch.float64)

    def written(call):
        out = torch.empty_like(y)
        sums = call(out)
        return (out,) if sums is None else (out, sums)

    def combine():
        point = inside.clone()
        ops.history_combine(point, x, d, s, gradients, q, 1.5, low, high, *NO_BOX, True)
        return (point,)

    def append():
        pairs = s.clone(), gradients.clone()
        return (*pairs, ops.history_append(y, x, d, y, *pairs, 1))

    def cauchy(out):
        return ops.history_cauchy(x, d, s, gradients, middle, 1.5, low, high, *NO_BOX, out)

    def gram():
        return (ops.history_gram(inside, x, d, s, gradients, 1.5, low, high, *NO_BOX),)

    few = torch.linspace(-1, 1, 6, device=device, dtype=torch.float64).view(3, 2)
    targets = torch.arange(N // 5, device=device) % 5

    def blend():
        out = y.new_empty(3, N)
        ops.blend_points(few, s[:2], out)
        return (out,)

    def chain():
        first, ends = s[:2, : 5 * (N // 5)].double().view(2, 5, -1), s[:2, :30].double()
        return (ops.chain_points(few, first, ends, [5, 5], targets),)

    return {
        "blend_points": blend,
        "box_project": lambda: written(lambda out: ops.box_project(y, x, 0.1, 0.1, out)),
        "box_step": lambda: written(lambda out: ops.box_step(y, d, 0.3, x, 0.1, 0.1, out)),
        "box_vertex": lambda: written(lambda out: ops.box_vertex(y, d, x, 0.1, 0.1, out)),
        "chain_points": chain,
        "history_append": append,
        "history_cauchy": lambda: written(cauchy),
        "history_gram": gram,
        "history_combine": combine,
        "history_line": lambda: (ops.history_line(d, x, inside, low, high, *NO_BOX),),
        "history_step": lambda: written(lambda out: ops.history_step(x, inside, 0.4, low, high, *NO_BOX, out)),
        "subspace_apply": lambda: written(lambda out: ops.subspace_apply(x, z, 1, 2, "normal", out)),
        "subspace_project": lambda: (ops.subspace_project(d, 30, 1, 2, "rademacher"),),
        "subspace_gram": lambda: (ops.subspace_gram(N, 30, 1, 2, "uniform", x.device),),
        "xent_points": lambda: (ops.xent_points(s[:, : 5 * (N // 5)].view(3, -1, 5), targets),),
    }


OPS = ("box_project", "box_step", "box_vertex", "history_append", "history_cauchy", "history_gram", "history_combine")
OPS += ("history_line", "history_step", "subspace_apply", "subspace_project", "subspace_gram")
OPS += ("blend_points", "chain_points", "xent_points")


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("name", OPS)
def test_an_op_gives_the_same_bits_again_and_the_cpu_s_up_to_rounding(name):
    first = every_op()[name]()
    assert all(same(first, every_op()[name]()) for _ in range(3))
    y, d, x = draw()
    on_cpu = every_op_of_the_same_numbers(y.cpu(), d.cpu(), x.cpu())[name]()
    for one, other in zip(first, on_cpu, strict=True):
        # Sums of N terms of size 1, in float64; elements are the same to the bit, but for those behind a sum.
        torch.testing.assert_close(one.cpu(), other, rtol=1e-6 if one.dtype == torch.float32 else 1e-9, atol=1e-7)


def every_op_of_the_same_numbers(*numbers):
    """The calls of :func:`every_op` on the CPU, of numbers that were drawn on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(every_op.__globals__, "draw", lambda device: iter(numbers))
        return every_op("cpu")


@pytest.mark.parametrize("name", OPS)
def test_an_op_runs_on_the_current_stream_and_the_host_goes_on(name):
    expected = every_op()[name]()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call = every_op()[name]
        torch.cuda._sleep(LONG)
        found = call()
        assert not side.query(), "the host waited for the device"
    side.synchronize()
    assert same(found, expected)


def test_a_kernel_waits_for_what_comes_before_it_on_its_stream():
    y, d, x = draw()
    expected = torch.empty_like(y)
    sums = ops.box_step(y, d, 0.3, x, 0.1, 0.1, expected)
    late, out = torch.zeros_like(y), torch.empty_like(y)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
        late.copy_(y)
        found = ops.box_step(late, d, 0.3, x, 0.1, 0.1, out)
    side.synchronize()
    assert torch.equal(out, expected)
    assert torch.equal(found, sums)


@pytest.mark.parametrize("name", OPS)
def test_an_op_does_not_wait_for_the_device(name):
    calls = every_op()
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        calls[name]()
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("name", OPS)
def test_an_op_can_be_captured_and_replayed(name):
    calls = every_op()
    expected = calls[name]()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[name]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = calls[name]()
    for tensor in found:
        tensor.fill_(-1)
    graph.replay()
    torch.cuda.synchronize()
    assert same(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
@pytest.mark.parametrize("name", OPS)
def test_an_op_runs_on_the_device_of_its_tensors(name):
    here = every_op("cuda:0")[name]()
    there = every_op("cuda:1")[name]()
    assert torch.cuda.current_device() == 0
    assert all(tensor.device.index == 1 for tensor in there)
    assert same(here, [tensor.to("cuda:0") for tensor in there])


def test_tensors_of_two_devices_are_refused():
    y, d, x = draw()
    with pytest.raises(ValueError, match="centre must be on the device of y, cuda:0, got cpu"):
        ops.box_step(y, d, 1.0, x.cpu(), 0.1, 0.0, torch.empty_like(y))
    with pytest.raises(RuntimeError, match="must be on the device of y"):
        torch.ops.lbgap.history_step.default(x, d.cpu(), 0.5, x, x, 1.0, 0.0, torch.empty_like(x))
    pairs, middle = (torch.stack([y, d]), torch.stack([d, y])), torch.eye(4, dtype=torch.float64, device="cuda")
    with pytest.raises(RuntimeError, match="K must be a contiguous float64 CPU tensor"):
        torch.ops.lbgap.history_cauchy.default(x, d, *pairs, middle, 1.0, x, x, 1.0, 0.0, torch.empty_like(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_function_calls_the_op():
    pytest.importorskip("triton")

    def function(y, d, x):
        out = torch.empty_like(y)
        return out, ops.box_step(2 * y, d, 0.3, x, 0.1, 0.1, out)

    y, d, x = draw()
    assert same(torch.compile(function, fullgraph=True)(y, d, x), function(y, d, x))
