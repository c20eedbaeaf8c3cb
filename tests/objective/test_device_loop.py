"""What the host and a GPU have to do with each other: waits, graphs, streamed data, memory. All of it on the CPU."""

import contextlib
import math
import re
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap import Objective, fast_sharpness
from lbgap.maximize import apgd, climb, vertex
from lbgap.maximize.region import box
from lbgap.objective import cuda_graphs
from lbgap.objective.cuda_graphs import Graphs, watched
from lbgap.problem import stored
from lbgap.problem.batch import Batch
from lbgap.system import device as hardware

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def network(width=16, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def data(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def equal(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# One wait an iteration.


@pytest.fixture
def reads(monkeypatch):
    """The sizes of all that the host reads."""
    seen, read = [], hardware.read
    monkeypatch.setattr(hardware, "read", lambda tensor: seen.append(len(tensor)) or read(tensor))
    return seen


@pytest.mark.parametrize("batch_size", [40, 7])
@pytest.mark.parametrize("maximise", [vertex.maximise, apgd.maximise])
def test_the_host_reads_four_numbers_an_iteration(maximise, batch_size, reads):
    objective = Objective(network(), data(), batch_size=batch_size)
    ball = box("keskar", objective.theta, 1e-2)
    reads.clear()
    found = maximise(objective, ball, iterations=6)
    gradients = sum(size == 4 for size in reads)
    ended = found.evaluations - gradients  # each loss in full precision at the end is one read too
    assert gradients >= 2
    assert reads == [4] * gradients + [1] * int(ended)


@pytest.mark.parametrize("on", ["full space", "manifold"])
@pytest.mark.parametrize("maximise", [vertex.maximise, apgd.maximise])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_nothing_between_two_reads_needs_the_host(maximise, on, backend, monkeypatch):
    """From the first gradient to the end of the climb, reads aside, no operation waits for a value."""
    objective = Objective(network(), data(), batch_size=16, backend=backend)
    space = objective if on == "full space" else objective.manifold(5)
    ball = box("keskar", space.theta, 1e-2, objective.backend)
    unfit, enqueued, enqueue, finish = [], [], climb.enqueue, climb.Climb.finish
    watch = contextlib.ExitStack()

    def begin(*arguments, **options):
        if not enqueued:
            seen = watch.enter_context(watched(CPU))
            watch.callback(lambda: unfit.append(seen.unfit))
        enqueued.append(enqueue(*arguments, **options))
        return enqueued[-1]

    def end(self, *arguments, **options):
        watch.close()
        return finish(self, *arguments, **options)

    monkeypatch.setattr(climb, "enqueue", begin)
    monkeypatch.setattr(climb.Climb, "finish", end)
    found = maximise(space, ball, iterations=5)
    assert len(enqueued) >= 2
    assert unfit == [None]
    assert found.value > 0
    assert all(report.shape == (4,) and report.dtype == torch.float64 for report in enqueued)


def test_errors_are_found_after_the_read():
    def loss(output, target):
        return output.mean() + torch.where(target == 7, math.inf, 0.0).sum()

    targets = torch.zeros(9, 1)
    targets[5] = 7
    objective = Objective(nn.Linear(4, 1), (data(9)[0], targets), loss=loss, batch_size=3)
    report = objective.enqueue(objective.theta, torch.empty(5))
    assert report.tolist() == [math.inf, 0]
    with pytest.raises(FloatingPointError, match=r"the loss is inf in samples 3..5 \(batch 2 of 3\)"):
        objective.settle(*report.tolist())
    objective.settle(1.0, 1.0)


# Graphs.


def by_hand(work, device):
    """A graph as a CUDA graph is one: fixed memory for the outputs, and a replay that computes them anew."""
    outputs = tuple(torch.zeros_like(output) for output in work())

    def replay():
        for output, value in zip(outputs, work(), strict=True):
            output.copy_(value)

    return replay, outputs


class Work:
    """Something that is written beside the outputs, both functions of ``at``; counts its runs."""

    def __init__(self, how=torch.sin):
        self.at, self.written, self.runs, self.how = torch.ones(3), torch.zeros(3), 0, how

    def __call__(self):
        self.runs += 1
        self.written.copy_(self.how(self.at))
        return self.written.sum()[None].double(), torch.ones(())

    def run(self, graphs, key="key"):
        return graphs.run(key, self, self.written, torch.float32)


def test_work_runs_is_recorded_and_is_replayed():
    work, recorded = Work(), []
    graphs = Graphs(CPU, notes := [], record=lambda *a: recorded.append(1) or by_hand(*a))
    assert graphs.status == "none: nothing was repeated"
    values, records = [], []
    for number in range(4):
        work.at.fill_(number + 1)
        values.append(work.run(graphs)[0])
        records.append(len(recorded))
        assert torch.equal(work.written, torch.sin(work.at))
    assert records == [0, 1, 1, 1]
    assert graphs.status == "captured"
    expected = [torch.sin(torch.full((3,), number + 1.0)).sum()[None].double() for number in range(4)]
    assert equal(values, expected)  # also the earlier ones: they are no part of the graph
    work.run(graphs, "another")
    assert len(recorded) == 1
    graphs.drop()
    assert graphs.status == "none: nothing was repeated"
    work.run(graphs)
    assert len(recorded) == 1
    work.run(graphs)
    assert (len(recorded), graphs.status, notes) == (2, "captured", [])


def test_a_refusal_from_the_start():
    work, notes = Work(), []
    graphs = Graphs(CPU, notes, "cpu", record=lambda *_: pytest.fail("recorded"))
    for _ in range(3):
        work.run(graphs)
    assert (work.runs, graphs.status, notes) == (3, "none: cpu", [])


def stale(work, device):
    """A graph whose replay gives another value than the work."""
    return (lambda: None), tuple(output + 1e-2 for output in work())


def broken(error):
    def record(work, device):
        raise error

    return record


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (stale, "a replay did not repeat the gradient"),
        (broken(RuntimeError("operation not permitted\nwhen stream is capturing")), "(operation not permitted)"),
        (broken(torch.OutOfMemoryError("CUDA out of memory")), "the capture failed (CUDA out of memory)"),
        (broken(KeyError("device")), "the capture failed ('device')"),
    ],
)
def test_a_graph_that_is_wrong_or_fails_is_not_used(record, reason):
    work, notes = Work(), []
    graphs = Graphs(CPU, notes, record=record)
    for number in range(4):
        work.at.fill_(number)
        value, _ = work.run(graphs)
        assert torch.equal(value, torch.sin(work.at).sum()[None].double())
        assert torch.equal(work.written, torch.sin(work.at))
    assert graphs.status.startswith("none: ")
    assert graphs.status.endswith(reason)
    assert notes == [graphs.status.replace("none", "no CUDA graph of the gradient")]
    assert "\n" not in notes[0]


@pytest.mark.parametrize("off", [1e-6, 1e-2])
def test_a_replay_may_differ_by_rounding(off):
    def record(work, device):
        replay, outputs = by_hand(work, device)
        return (lambda: (replay(), work.written.mul_(1 + off))), outputs

    work, notes = Work(), []
    graphs = Graphs(CPU, notes, record=record)
    work.run(graphs), work.run(graphs)
    assert graphs.status == ("captured" if off == 1e-6 else "none: a replay did not repeat the gradient")


def test_a_gradient_that_is_not_finite_can_be_recorded():
    work = Work(lambda at: at / 0)
    graphs = Graphs(CPU, [], record=by_hand)
    work.run(graphs), work.run(graphs)
    assert graphs.status == "captured"


def baked(work, device):
    """A graph in which a number that the host has made of the parameters stands as a constant."""
    scale = work.at.sum().item()
    outputs = tuple(torch.zeros_like(output) for output in work())

    def replay():
        work.written.copy_(work.at * scale)
        outputs[0].copy_(work.written.sum()[None])
        outputs[1].fill_(1)

    return replay, outputs


@pytest.mark.parametrize("record", [by_hand, baked])
def test_a_new_graph_is_compared_where_the_parameters_are_others_too(record):
    work, notes = Work(lambda at: at * at.sum()), []
    work.at.copy_(torch.tensor([0.1, 0.2, 0.7]))
    graphs = Graphs(CPU, notes, record=record, moving=[work.at])
    before = work.at.clone()
    for _ in range(2):
        value, _ = work.run(graphs)
        assert torch.equal(work.at, before)
        assert torch.equal(work.written, before * before.sum())
        assert torch.equal(value, work.written.sum()[None].double())
    work.at.mul_(2)
    work.run(graphs)
    assert torch.equal(work.written, work.at * work.at.sum())
    reason = "a replay did not repeat the gradient where the parameters are others"
    assert graphs.status == ("captured" if record is by_hand else f"none: {reason}")
    assert notes == ([] if record is by_hand else [f"no CUDA graph of the gradient: {reason}"])


def test_work_that_fails_elsewhere_is_not_recorded():
    def how(at):
        return torch.linalg.cholesky(torch.diag(1.0 - at.abs())).diagonal()

    work = Work(how)
    work.at.copy_(torch.tensor([0.9999, 0.9999, 0.9999]))
    graphs = Graphs(CPU, [], record=by_hand, moving=[work.at])
    work.run(graphs), work.run(graphs)
    assert graphs.status.startswith("none: the model or the loss fails some way off (linalg.cholesky")
    assert torch.equal(work.written, how(torch.tensor([0.9999, 0.9999, 0.9999])))


def test_the_replica_is_where_it_was_when_a_graph_has_been_compared():
    objective, expected = graphed(), Objective(network(), data(), batch_size=16)
    theta = objective.theta + 0.1
    for _ in range(3):
        found = objective.loss_and_gradient(theta)
        assert equal(found, expected.loss_and_gradient(theta))
        assert torch.equal(objective._evaluator.flat.theta, theta)
    assert objective.settings()["graph"] == "captured"


MASK, ROWS = torch.tensor([True, False, True]), torch.tensor([0, 2, 1])
UNFIT = {
    "item": (lambda at: at * at.sum().item(), "decides on values (aten._local_scalar_dense.default)"),
    "branch": (lambda at: at if at.sum() > 0 else -at, "decides on values (aten._local_scalar_dense.default)"),
    "mask": (lambda at: at + at[MASK].sum(), "decides on values (aten.index.Tensor)"),
    "nonzero": (lambda at: at + at.nonzero().sum(), "decides on values (aten.nonzero.default)"),
    "away": (lambda at: at + 0 * len(at.to("meta")), "moves data between cpu and meta (aten._to_copy.default)"),
    "numbers": (lambda at: at[ROWS], None),
    "constant": (lambda at: torch.tensor(2.0) * at, None),
    "sort": (lambda at: at.sort().values.cumsum(0).roll(1), None),
}


@pytest.mark.parametrize("name", UNFIT)
def test_work_that_needs_the_host_is_never_recorded(name):
    how, reason = UNFIT[name]
    recorded, work = [], Work(how)
    graphs = Graphs(CPU, notes := [], record=lambda *a: recorded.append(1) or by_hand(*a))
    for _ in range(3):
        work.run(graphs)
    assert bool(recorded) == (reason is None)
    assert graphs.status == ("captured" if reason is None else f"none: the model or the loss {reason}")
    assert len(notes) == (reason is not None)


def test_a_backward_pass_is_watched_too():
    class Peeking(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float(gradient.sum())

    weight = torch.ones(3, requires_grad=True)
    with watched(CPU) as seen:
        Peeking.apply(2 * weight).sum().backward()
    assert seen.unfit is not None


def test_memory_that_the_work_reads_is_held():
    """A model may keep a mask for the shape it met last, and let go of it while a graph still reads it."""
    inside, kept = [], torch.ones(3)

    def how(at):
        inside.append(at + kept)
        return inside[-1] * inside[-1]

    work = Work(how)
    with watched(CPU) as seen:
        work()
    places = {tensor.data_ptr() for tensor in seen.held}
    assert places == {kept.data_ptr(), work.at.data_ptr(), work.written.data_ptr()}


@pytest.fixture
def streams(monkeypatch):
    """Streams and captures of a GPU, on the CPU, and a log of what they are told."""
    current, log, fails = ["caller"], [], []

    class Stream:
        def __init__(self, device=None, name="side"):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def stream(to):
        before = current[0]
        current[0] = to.name
        try:
            yield
        finally:
            current[0] = before

    @contextlib.contextmanager
    def graph(graph, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        log.append("capture")
        before, current[0] = current[0], stream.name
        yield
        if fails:  # as torch: without putting the stream back
            raise RuntimeError("operation failed due to a previous error during capture")
        current[0] = before

    replayed = SimpleNamespace(replay=lambda: log.append(f"replay on {current[0]}"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(name=current[0]))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: replayed)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    cuda_graphs._stream.cache_clear()
    yield SimpleNamespace(current=current, log=log, fails=fails)
    cuda_graphs._stream.cache_clear()


THERE, BACK = "side waits for caller", "caller waits for side"


def test_a_graph_is_recorded_and_replayed_on_one_stream(streams):
    replay, outputs = cuda_graphs.record_cuda(lambda: (streams.log.append(f"work on {streams.current[0]}"),), CPU)
    assert outputs == (None,)
    assert streams.log == [THERE, "work on side", "capture", "work on side", BACK]
    streams.log.clear()
    replay()
    assert streams.log == [THERE, "replay on side", BACK]
    assert streams.current == ["caller"]


def test_the_caller_keeps_his_stream_where_a_capture_fails(streams):
    """On leaving a capture that failed, torch does not put the stream back."""
    streams.fails.append(True)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        cuda_graphs.record_cuda(lambda: (), CPU)
    assert streams.current == ["caller"]
    assert streams.log == [THERE, "capture", BACK]


def graphed(record=by_hand, **options):
    objective = Objective(network(), data(), batch_size=16, **options)
    objective._evaluator.graphs = Graphs(CPU, objective.notes, record=record, moving=objective._evaluator.flat.moving)
    return objective


@pytest.mark.parametrize("search", [{"method": "vertex"}, {"method": "apgd"}, {"method": "lbfgsb"}, {"subspace": 5}])
def test_a_search_by_graphs_is_the_same_search(search):
    found = [
        fast_sharpness(objective, epsilon=1e-2, restarts=2, **search)
        for objective in (Objective(network(), data(), batch_size=16), graphed())
    ]
    assert torch.equal(found[0].point, found[1].point)
    assert found[0].starts == found[1].starts
    assert [one.settings["graph"] for one in found] == ["none: cpu", "captured"]
    assert found[0].evaluations == found[1].evaluations


def test_restarts_use_the_same_graph():
    recorded = []
    objective = graphed(lambda *a: recorded.append(1) or by_hand(*a))
    for epsilon in (1e-3, 1e-2):
        fast_sharpness(objective, epsilon=epsilon, restarts=5, scout=0)
        fast_sharpness(objective, epsilon=epsilon, method="apgd", subspace=3, trials=2)
    assert len(recorded) == 1


def test_a_subset_has_graphs_of_its_own():
    objective = graphed()
    part = objective.subset(8)
    assert part._evaluator.graphs is not objective._evaluator.graphs
    whole = objective.manifold(3)
    assert whole._evaluator.graphs is objective._evaluator.graphs


def test_a_model_that_looks_at_its_values_runs_as_it_is():
    class Looking(nn.Linear):
        def forward(self, inputs):
            output = super().forward(inputs)
            return output if output.sum() > 0 else 2 * output

    objective = Objective(Looking(4, 3), data())
    expected = fast_sharpness(objective)
    objective._evaluator.graphs = Graphs(CPU, objective.notes, record=by_hand)
    found = fast_sharpness(objective)
    assert torch.equal(found.point, expected.point)
    reason = "the model or the loss decides on values (aten._local_scalar_dense.default)"
    assert found.settings["graph"] == f"none: {reason}"
    assert found.settings["notes"] == [f"no CUDA graph of the gradient: {reason}"]


# Data on the device or on the host.

GPU = torch.device("cuda:0")


@pytest.fixture
def free(monkeypatch):
    """A function that sets how many bytes a GPU has free, as torch would say it: some of them in its own cache."""

    def have(count):
        cached = count // 4
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (count - cached, 10**12))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1000 + cached)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)

    return have


def test_a_micro_batch_takes_a_quarter_of_the_free_memory_at_most(free):
    budgets = {}
    for count in (80 * 2**30, 8 * 2**30, 8 * 2**30 - 4, 5 * 2**30, 4096, 3, 0):
        free(count)
        budgets[count] = hardware.batch_budget(GPU)
    assert list(budgets.values()) == [2**31, 2**31, 2**30, 2**30, 1024, 1, 1]
    assert hardware.batch_budget(CPU) == hardware.CPU_CACHE_BYTES


def test_data_fit_in_half_of_the_free_memory(free):
    inputs, targets = torch.zeros(100, 3, dtype=torch.float64), torch.zeros(100, dtype=torch.long)
    for dtype, size in ((torch.float32, 2000), (torch.float64, 3200)):
        free(2 * size)
        assert hardware.fit((inputs, targets), GPU, dtype)
        free(2 * size - 2)
        assert not hardware.fit((inputs, targets), GPU, dtype)
        assert hardware.fit((inputs, targets), CPU, dtype)
        assert hardware.fit(  # what is there needs no more room
            [SimpleNamespace(device=GPU, dtype=dtype, is_floating_point=lambda: True, numel=lambda: 10**9)], GPU, dtype
        )


class Lane:
    """A stream that remembers what it was told; an event is what was enqueued before it."""

    log: ClassVar[list] = []

    def __init__(self, device=None, name="copier"):
        self.name = name

    def wait_stream(self, other):
        self.log.append((self.name, "waits", other.name))

    def record_event(self):
        return self.name, len(self.log)

    def wait_event(self, event):
        self.log.append((self.name, "waits", *event))


@pytest.fixture
def lanes(monkeypatch):
    """Streams of a GPU, on the CPU; the list of what they are told, copies and computations by name."""
    Lane.log = log = []

    @contextlib.contextmanager
    def stream(lane):
        log.append((lane.name, "copies"))
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Lane)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Lane(name="current"))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, lane: log.append((lane.name, "uses")))
    return log


@pytest.mark.parametrize(("count", "size"), [(10, 4), (8, 4), (3, 4), (1, 1), (5, 1)])
def test_batches_are_copied_one_ahead_into_two_buffers(lanes, count, size):
    split, places, taken = Batch(*data(count)), [], []
    for inputs, targets in stored.streamed(split, size, CPU):
        lanes.append(("current", "computes"))
        taken.append((inputs.clone(), targets.clone()))
        places.append(inputs.data_ptr())
    assert equal([torch.cat(parts) for parts in zip(*taken, strict=True)], [*split])
    assert [len(inputs) for inputs, _ in taken] == [len(part) for part in split.inputs.split(size)]
    assert len(set(places)) == min(2, len(taken))
    copies = [index for index, entry in enumerate(lanes) if entry == ("copier", "copies")]
    computations = [index for index, entry in enumerate(lanes) if entry == ("current", "computes")]
    assert lanes[0] == ("copier", "waits", "current")
    assert lanes[1:5] == [("copier", "uses")] * 4
    assert len(copies) == len(computations) == len(taken)
    for number, (copy, compute) in enumerate(zip(copies, computations, strict=True)):
        waits = [entry for entry in lanes[:compute] if entry[:2] == ("current", "waits")]
        assert copy < waits[-1][3] <= compute  # computed with once its copy is done
        if number:
            assert copy < computations[number - 1]  # one ahead
        if number > 1:
            assert copy > computations[number - 2]  # and not more
            waits = [entry for entry in lanes[:copy] if entry[:2] == ("copier", "waits")]
            assert waits[-1][3] > computations[number - 2]  # copied once the buffer is free
            assert waits[-1][3] <= computations[number - 1]  # while the batch before is computed with


@pytest.fixture
def streaming(monkeypatch, lanes):
    """Objectives of more than 20 samples stream their data."""
    monkeypatch.setattr(hardware, "fit", lambda tensors, device, dtype: len(tensors[0]) <= 20)
    monkeypatch.setattr(hardware, "pinned", lambda tensor, dtype: tensor.to(dtype).clone())


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_streamed_data_give_the_same_bits(precision, request):
    def everything():
        objective = Objective(network(), data(), precision=precision, batch_size=16)
        theta = objective.theta
        value, gradient = objective.loss_and_gradient(theta)
        found = [objective.loss(theta), value, gradient, *objective.loss_and_accuracy(theta)]
        found += [*objective.output_tangents(theta, gradient), objective.curvatures(theta, gradient[None])]
        return objective, [*found, fast_sharpness(objective, restarts=1, epsilon=1e-2).point]

    resident, expected = everything()
    request.getfixturevalue("streaming")
    streamed, found = everything()
    assert equal(found, expected)
    assert [one.settings()["data"] for one in (resident, streamed)] == ["resident", "streamed"]
    assert streamed.settings()["graph"] == "none: the data are streamed"
    assert streamed.notes == [
        "the data stay on the host: they are too large for cpu and are copied there batch by batch"
    ]
    small, large = streamed.subset(8), streamed.sample(30)
    assert [part.settings()["data"] for part in (small, large)] == ["resident", "streamed"]
    assert float(small.loss(small.theta)) == float(resident.subset(8).loss(small.theta))
    assert len(streamed.notes) == 1


# Too little memory.


class Hungry(nn.Module):
    """Runs out of memory where a batch is larger than it likes."""

    def __init__(self, most):
        super().__init__()
        self.inner, self.most, self.batches = network(), most, []

    def forward(self, inputs):
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nSee the documentation.")
        self.batches.append(len(inputs))
        return self.inner(inputs)


def starved(most, **options):
    """An objective that came to be while there was memory."""
    objective = Objective(Hungry(10**9), data(), **options)
    objective._evaluator.flat.module.most = most
    objective._evaluator.flat.module.batches.clear()
    return objective


CALLS = {
    "loss": lambda o, theta, v: [o.loss(theta)],
    "loss_and_gradient": lambda o, theta, v: o.loss_and_gradient(theta),
    "direction": lambda o, theta, v: o.direction(theta),
    "log_probability_direction": lambda o, theta, v: o.log_probability_direction(theta, 1),
    "losses": lambda o, theta, v: [o.losses(torch.stack([theta, theta + v]))],
    "loss_and_accuracy": lambda o, theta, v: o.loss_and_accuracy(theta),
    "output_tangents": lambda o, theta, v: o.output_tangents(theta, v),
    "directional_derivatives": lambda o, theta, v: [o.directional_derivatives(theta, v)],
    "curvatures": lambda o, theta, v: [o.curvatures(theta, torch.stack([v, theta]))],
}


@pytest.mark.parametrize("name", CALLS)
def test_a_pass_is_repeated_with_smaller_batches(name, monkeypatch):
    released = []
    monkeypatch.setattr(hardware, "release", released.append)
    small, objective = Objective(Hungry(10**9), data(), batch_size=5), starved(7, batch_size=40)
    v = torch.linspace(-1, 1, small.n)
    expected = CALLS[name](small, small.theta, v)
    found = CALLS[name](objective, objective.theta, v)
    assert equal(found, expected)
    assert objective.evaluations == small.evaluations
    assert objective.batch_size == objective.settings()["batch_size"] == 5
    assert objective.notes == ["out of memory: micro-batches were halved, to 5 samples"]
    assert released == [CPU] * 3
    CALLS[name](objective, objective.theta, v)
    assert len(released) == 3


def test_memory_may_run_out_in_the_middle_of_a_pass():
    objective, small = starved(10**9, batch_size=8), Objective(network(), data(), batch_size=4)
    calls = []

    def forward(inputs):
        calls.append(len(inputs))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return type(objective._evaluator.flat.module).forward(objective._evaluator.flat.module, inputs)

    objective._evaluator.flat.module.forward = forward
    found = objective.loss_and_gradient(objective.theta)
    assert equal(found, small.loss_and_gradient(small.theta))
    assert calls == [8] * 3 + [4] * 10


def test_a_batch_of_one_that_does_not_fit():
    objective = starved(0, batch_size=4)
    message = (
        "not even one sample fits in the memory of cpu: free some of it, pass device='cpu', or evaluate a smaller model"
    )
    with pytest.raises(MemoryError, match=re.escape(message)) as caught:
        objective.loss(objective.theta)
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None  # which would hold on to the memory
    assert objective.batch_size == 1


def test_a_batch_that_is_part_of_the_function_is_not_halved():
    class Normed(Hungry):
        def __init__(self, most):
            super().__init__(most)
            self.inner = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))

    objective = Objective(Normed(10**9), data(), batch_norm="batch", batch_size=20)
    objective._evaluator.flat.module.most = 10
    with pytest.raises(
        MemoryError, match=r"a batch of 20 samples does not fit in the memory of cpu, and with batch_norm"
    ):
        objective.loss_and_gradient(objective.theta)
    assert (objective.batch_size, objective.notes) == (20, [])


def test_a_model_is_tried_out_on_as_few_samples_as_fit():
    objective = Objective(Hungry(7), data())
    assert objective.batch_size == 4
    assert objective.notes == ["out of memory: micro-batches were halved, to 4 samples"]
    with pytest.raises(MemoryError, match="not even one sample fits"):
        Objective(Hungry(0), data())


@pytest.mark.parametrize("search", [{"method": "vertex"}, {"method": "apgd"}, {"subspace": 3}, {"restarts": 2}])
def test_a_search_that_runs_out_of_memory_goes_on(search):
    found = fast_sharpness(starved(5, batch_size=40), epsilon=1e-2, **search)
    expected = fast_sharpness(Objective(network(), data(), batch_size=5), epsilon=1e-2, **search)
    assert torch.equal(found.point, expected.point)
    assert found.starts == expected.starts
    assert found.settings["batch_size"] == 5
    assert "note: out of memory: micro-batches were halved, to 5 samples" in str(found)


def test_graphs_are_recorded_anew_for_smaller_batches():
    recorded, objective = [], starved(10**9, batch_size=16)
    objective._evaluator.graphs = Graphs(CPU, objective.notes, record=lambda *a: recorded.append(1) or by_hand(*a))
    theta = objective.theta
    for _ in range(3):
        expected = objective.loss_and_gradient(theta)
    assert (len(recorded), objective.settings()["graph"]) == (1, "captured")
    part = objective.subset(10)
    objective._evaluator.flat.module.most = 8
    part.loss(theta)  # empties what its objective holds too
    assert (part.batch_size, objective.batch_size) == (5, 5)
    assert objective.settings()["graph"] == "none: nothing was repeated"
    for _ in range(2):
        found = objective.loss_and_gradient(theta)
        torch.testing.assert_close(found, expected)
    assert (len(recorded), objective.settings()["graph"]) == (2, "captured")


# Nothing of the process changes.


def test_settings_of_cudnn_are_put_back():
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    try:
        cudnn.deterministic, cudnn.benchmark = False, True
        with hardware.repeatable("cpu"):
            assert (cudnn.deterministic, cudnn.benchmark) == (False, True)
        with contextlib.suppress(KeyError), hardware.repeatable("cuda"):
            assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
            raise KeyError
        assert (cudnn.deterministic, cudnn.benchmark) == (False, True)
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def test_nothing_of_the_caller_changes(caller_state):
    state = caller_state()
    fast_sharpness(graphed(), restarts=1)
    fast_sharpness(starved(3))
    assert caller_state() == state


def test_a_callable_loss_is_watched_too():
    def loss(output, target):
        return F.cross_entropy(output[target >= 0], target)

    objective = Objective(network(), data(), loss=loss)
    objective._evaluator.graphs = Graphs(CPU, objective.notes, record=by_hand)
    fast_sharpness(objective)
    assert objective.settings()["graph"] == "none: the model or the loss decides on values (aten.index.Tensor)"


def test_samples_in_memory_are_views():
    split = Batch(*data(5))
    batches = list(stored.resident(split, 2))
    assert [len(batch.inputs) for batch in batches] == [2, 2, 1]
    assert batches[0].inputs.data_ptr() == split.inputs.data_ptr()
