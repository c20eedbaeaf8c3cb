"""Where and when a kernel runs: streams, devices, graphs, compiled functions, and no wait for the device."""

import pytest
import torch

from lbgap import ops
from tests.gpu.calls import draw, every_op

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

LONG = 50_000_000  # cycles of the GPU: longer than a launch takes
OPS = ops.__all__


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("name", OPS)
def test_an_op_gives_the_same_bits_again_and_the_cpu_s_up_to_rounding(name):
    numbers = draw()
    first = every_op(*numbers)[name]()
    assert all(same(first, every_op(*draw())[name]()) for _ in range(3))
    on_cpu = every_op(*(part.cpu() for part in numbers))[name]()
    for one, other in zip(first, on_cpu, strict=True):
        # Sums of N terms of size 1, in float64; elements are the same to the bit, but for those behind a sum.
        torch.testing.assert_close(one.cpu(), other, rtol=1e-6 if one.dtype == torch.float32 else 1e-9, atol=1e-7)


@pytest.mark.parametrize("name", OPS)
def test_an_op_runs_on_the_current_stream_and_the_host_goes_on(name):
    expected = every_op(*draw())[name]()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call = every_op(*draw())[name]
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
def test_an_op_does_not_wait_for_the_device(name, no_waiting):
    calls = every_op(*draw())
    torch.cuda.synchronize()
    with no_waiting():
        calls[name]()


@pytest.mark.parametrize("name", OPS)
def test_an_op_can_be_captured_and_replayed(name):
    calls = every_op(*draw())
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
    here = every_op(*draw("cuda:0"))[name]()
    there = every_op(*draw("cuda:1"))[name]()
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
