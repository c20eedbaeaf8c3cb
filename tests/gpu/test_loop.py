"""Vertex ascent and APGD on a GPU: what the host waits for, CUDA graphs, streamed data, memory."""

import gc

import pytest
import torch
from torch import nn

from lbgap import Objective, fast_sharpness
from lbgap.maximize import apgd, climb, vertex
from lbgap.maximize.region import box
from lbgap.objective.cuda_graphs import Graphs
from lbgap.system import device as hardware

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
METHODS = {"vertex": vertex.maximise, "apgd": apgd.maximise}
SWITCHED_OFF = "switched off by a test"


def dense():
    return nn.Sequential(
        nn.Linear(40, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
    )


def convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 40)),
        nn.Conv1d(1, 16, 5, padding=2),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(40, 10)

    def forward(self, inputs):
        tokens = inputs.unflatten(1, (5, 8))
        return self.out(self.attention(tokens, tokens, tokens, need_weights=False)[0].flatten(1))


NETWORKS = {"dense": dense, "convolutional": convolutional, "attention": Attention}


def data(count=500):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 40, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def network(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[name]().eval()


def on(device, name="dense", **options):
    return Objective(network(name), data(), device=device, **{"batch_size": 200, **options})


def without_graphs(objective):
    objective._evaluator.graphs = Graphs(objective.device, objective.notes, SWITCHED_OFF)
    return objective


def test_the_device_has_memory():
    assert 0 < hardware.free_bytes(torch.device("cuda:0")) <= torch.cuda.get_device_properties(0).total_memory
    assert hardware.batch_budget(torch.device("cuda:0")) <= hardware.GPU_BATCH_BYTES


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_search_is_that_of_the_cpu(method, name):
    found = [fast_sharpness(on(device, name, precision="float64"), method=method) for device in ("cpu", "cuda")]
    assert found[1].value == pytest.approx(found[0].value, rel=1e-9)
    assert found[1].evaluations == found[0].evaluations
    torch.testing.assert_close(found[1].point.cpu(), found[0].point, rtol=1e-9, atol=1e-12)
    values = [[value for _, value in one.history] for one in found]
    assert values[1] == pytest.approx(values[0], rel=1e-9)
    assert found[1].settings["graph"] == "captured"
    assert found[1].settings["data"] == "resident"
    single = fast_sharpness(on("cuda", name), method=method)
    assert single.value == pytest.approx(found[0].value, rel=1e-2)  # where a sign is lost in rounding, another vertex


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "search", [{"method": "vertex"}, {"method": "apgd"}, {"restarts": 3}, {"subspace": 5, "trials": 1}]
)
def test_the_same_call_gives_the_same_bits(search, name):
    objective = on("cuda", name)
    found = [fast_sharpness(one, **search) for one in (objective, objective, on("cuda", name))]
    for again in found[1:]:
        assert torch.equal(again.point, found[0].point)
        assert again.history == found[0].history
        assert again.starts == found[0].starts


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["float32", "float64", "mixed"])
def test_a_graph_gives_what_the_work_itself_gives(precision, name):
    captured, eager = on("cuda", name, precision=precision), without_graphs(on("cuda", name, precision=precision))
    rtol = 1e-10 if precision == "float64" else 1e-4
    for number in range(5):
        theta = captured.theta * (1 + 0.01 * number)
        for evaluate in ("loss_and_gradient", *(["direction"] if captured.mixed else [])):
            (value, gradient), (expected, slope) = (getattr(one, evaluate)(theta) for one in (captured, eager))
            assert float(value) == pytest.approx(float(expected), rel=rtol)
            assert float((gradient - slope).norm()) <= rtol * float(slope.norm())
    assert captured.settings()["graph"] == "captured"
    assert eager.settings()["graph"] == f"none: {SWITCHED_OFF}"


def test_values_of_earlier_replays_stay():
    objective = on("cuda")
    values = [objective.loss_and_gradient(objective.theta * factor)[0] for factor in (1, 1, 1, 1.1, 1.2)]
    expected = [objective.loss(objective.theta * factor) for factor in (1, 1, 1, 1.1, 1.2)]
    assert [float(value) for value in values] == pytest.approx([float(value) for value in expected], rel=1e-5)


def test_other_losses_between_replays_do_no_harm():
    objective = on("cuda")
    theta = objective.theta
    first = [objective.loss_and_gradient(theta) for _ in range(3)][-1]
    objective.losses(torch.stack([2 * theta, 3 * theta]))
    objective.log_probability_direction(2 * theta, 1)
    objective.subset(50).loss_and_gradient(2 * theta)
    again = objective.loss_and_gradient(theta)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_that_is_enqueued_waits_for_the_gpu(method, graphs, no_waiting, monkeypatch):
    objective = on("cuda") if graphs else without_graphs(on("cuda"))
    ball = box("keskar", objective.theta, 1e-3)
    for _ in range(2):  # by now the gradient is a graph, if it is to be one
        objective.loss_and_gradient(ball.centre)
    calls, enqueue = [], climb.enqueue

    def strictly(*arguments, **options):
        calls.append(1)
        with no_waiting():
            return enqueue(*arguments, **options)

    monkeypatch.setattr(climb, "enqueue", strictly)
    METHODS[method](objective, ball, iterations=6)
    assert len(calls) >= 2
    assert (objective.settings()["graph"] == "captured") == graphs


def test_streamed_batches_do_not_wait_for_the_gpu(no_waiting, monkeypatch):
    monkeypatch.setattr(hardware, "fit", lambda *_: False)
    objective = on("cuda")
    theta, out = objective.theta, torch.empty_like(objective.theta)
    objective.loss_and_gradient(theta)
    with no_waiting():
        objective.enqueue(theta, out)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch_size", [500, 200, 64])
def test_streamed_data_give_the_same_bits(batch_size, name, monkeypatch):
    def everything(objective):
        theta = objective.theta
        value, gradient = objective.loss_and_gradient(theta)
        found = fast_sharpness(objective, restarts=1)
        return [value, gradient, objective.loss(theta), *objective.output_tangents(theta, gradient), found.point]

    expected = everything(without_graphs(on("cuda", name, batch_size=batch_size)))
    monkeypatch.setattr(hardware, "fit", lambda *_: False)
    streamed = on("cuda", name, batch_size=batch_size)
    assert streamed._evaluator.data.pool.inputs.is_pinned()
    for one, other in zip(everything(streamed), expected, strict=True):
        assert torch.equal(one, other)
    assert streamed.settings()["data"] == "streamed"
    assert streamed.settings()["graph"] == "none: the data are streamed"


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_reports_float32(method):
    if not hardware.bfloat16_products("cuda"):
        pytest.skip("needs a GPU with bfloat16 products")
    objective, single = on("cuda", precision="mixed"), on("cuda")
    found = fast_sharpness(objective, method=method)
    assert found.settings["directions"] == "bfloat16"
    assert found.max_loss == float(single.loss(found.point))
    assert found.value == pytest.approx(fast_sharpness(single, method=method).value, rel=0.05)


def test_a_graph_computes_in_full_float32_whatever_was_set():
    place = torch.backends.cuda.matmul
    before, expected = place.fp32_precision, on("cuda")
    gradients = [expected.loss_and_gradient(expected.theta)[1] for _ in range(3)]
    objective = on("cuda")
    try:
        place.fp32_precision = "tf32"
        found = [objective.loss_and_gradient(objective.theta)[1] for _ in range(3)]
        assert place.fp32_precision == "tf32"
    finally:
        place.fp32_precision = before
    assert objective.settings()["graph"] == "captured"
    for one, other in zip(found, gradients, strict=True):
        assert torch.equal(one, other)


class Looking(nn.Linear):
    """Branches on a value."""

    def forward(self, inputs):
        output = super().forward(inputs)
        return output if output.sum().item() > 0 else 2 * output


class Masking(nn.Linear):
    """Waits for the GPU where it counts what a mask selects."""

    def forward(self, inputs):
        output = super().forward(inputs).clone()
        output[inputs[:, :10] > 0] *= 2
        return output


class Carrying(nn.Linear):
    """Takes a constant from the host to the GPU whenever it runs."""

    def forward(self, inputs):
        return super().forward(inputs) * torch.arange(1.0, 11.0).pin_memory().to(inputs.device, non_blocking=True)


@pytest.mark.parametrize("kind", [Looking, Masking, Carrying])
def test_a_model_that_needs_the_host_runs_as_it_is(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(40, 10)
    objective = Objective(model, data(), device="cuda", precision="float64", batch_size=200)
    found = fast_sharpness(objective)
    assert found.settings["graph"].startswith("none: the model or the loss ")
    assert len(found.settings["notes"]) == 1
    assert torch.rand(3, device="cuda").sum() > 0  # generators and allocator are in order
    torch.cuda.empty_cache()
    if kind is not Carrying:  # which cannot run on a CPU without a GPU's driver
        expected = fast_sharpness(Objective(model, data(), precision="float64", batch_size=200))
        assert found.value == pytest.approx(expected.value, rel=1e-9)


class Remembering(nn.Linear):
    """Keeps a mask for the size of the batch that it met last."""

    def __init__(self):
        super().__init__(40, 10)
        self.mask = None

    def forward(self, inputs):
        if self.mask is None or len(self.mask) != len(inputs):
            self.mask = torch.linspace(0, 1, len(inputs), device=inputs.device, dtype=inputs.dtype)[:, None].clone()
        return super().forward(inputs) * self.mask


def test_memory_that_a_model_lets_go_of_stays_with_its_graph():
    objective = Objective(Remembering(), data(), device="cuda", batch_size=500)
    theta = objective.theta
    expected = [objective.loss_and_gradient(theta) for _ in range(3)][-1]
    assert objective.settings()["graph"] == "captured"
    objective.subset(50).loss(theta)
    rubbish = [torch.full((500,), 1e9, device="cuda") for _ in range(100)]
    found = objective.loss_and_gradient(theta)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    del rubbish


def test_nothing_of_the_caller_changes():
    def state():
        cudnn = torch.backends.cudnn
        return (
            torch.cuda.get_rng_state().tolist(),
            torch.cuda.current_stream(),
            torch.cuda.current_device(),
            torch.cuda.get_sync_debug_mode(),
            (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32),
            torch.backends.cuda.matmul.fp32_precision,
            torch.is_autocast_enabled("cuda"),
        )

    before = state()
    for options in ({}, {"precision": "mixed"}):
        fast_sharpness(on("cuda", "convolutional", **options), restarts=1)
    assert state() == before


def test_work_on_a_stream_of_the_caller():
    expected = fast_sharpness(on("cuda"))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        found = fast_sharpness(on("cuda"))
        assert torch.cuda.current_stream() == stream
    torch.cuda.synchronize()
    assert torch.equal(found.point, expected.point)


def test_a_graph_is_freed_with_its_objective():
    fast_sharpness(on("cuda"))  # what libraries keep for themselves is there now
    gc.collect()
    before = torch.cuda.memory_allocated()
    objective = on("cuda")
    fast_sharpness(objective, restarts=1)
    assert objective.settings()["graph"] == "captured"
    del objective
    gc.collect()
    assert torch.cuda.memory_allocated() <= before


class Hungry(nn.Module):
    """Runs out of memory where a batch is larger than it likes."""

    def __init__(self):
        super().__init__()
        self.inner, self.most = network("dense"), 10**9

    def forward(self, inputs):
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(inputs)


def test_graphs_are_captured_anew_for_smaller_batches():
    objective = Objective(Hungry(), data(), device="cuda", batch_size=500)
    theta = objective.theta
    expected = [objective.loss_and_gradient(theta) for _ in range(3)][-1]
    objective._evaluator.flat.module.most = 130
    objective.loss(theta)  # a graph that is there needs no model
    assert objective.batch_size == 125
    assert objective.settings()["graph"] == "none: nothing was repeated"
    for _ in range(3):
        found = objective.loss_and_gradient(theta)
        assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-6)
        assert float((found[1] - expected[1]).norm()) <= 1e-5 * float(expected[1].norm())
    assert objective.settings()["graph"] == "captured"


def test_memory_that_really_runs_out():
    wide = nn.Sequential(nn.Linear(40, 8192), nn.Tanh(), nn.Linear(8192, 10))
    inputs, targets = data(20000)  # 655 MB of activations in each of two places
    objective = Objective(wide, (inputs, targets), device="cuda", batch_size=1000)
    theta = objective.theta
    expected = objective.loss_and_gradient(theta)
    objective = Objective(wide, (inputs, targets), device="cuda", batch_size=20000)
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 600 * 2**20) / total)
        for _ in range(3):
            found = objective.loss_and_gradient(theta)
            assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-6)
            assert float((found[1] - expected[1]).norm()) <= 1e-5 * float(expected[1].norm())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert objective.batch_size < 20000
    assert f"out of memory: micro-batches were halved, to {objective.batch_size} samples" in objective.notes
