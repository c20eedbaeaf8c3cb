"""Samples that are read again in each pass: right values, equal passes, bounded memory, threads that end."""

import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lbgap.objective.objective import Objective
from lbgap.problem import hold as module
from lbgap.problem.batch import Batch
from lbgap.problem.hold import hold, take
from lbgap.problem.pieces import Pieces
from lbgap.problem.stored import Table
from lbgap.problem.stream import FROZEN, NOTE, Stream
from lbgap.problem.survey import Column, checksum


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y = draw(0, 50, 6), torch.arange(50) % 3
CPU = torch.device("cpu")


def batches():
    return zip(X.split(8), Y.split(8), strict=True)


def pair(tree):
    return Batch(tree[0], tree[1])


def stream(data, split=pair):
    notes = []
    samples = hold(take(data), split, notes)
    assert isinstance(samples, Stream)
    return samples.placed(CPU, torch.float32), notes


@pytest.fixture(autouse=True)
def nothing_fits(monkeypatch):
    monkeypatch.setattr(module, "budget", lambda: 0)
    yield
    assert [thread for thread in threading.enumerate() if thread.name == "lbgap reads ahead"] == []


def test_every_pass_gives_all_samples_in_order():
    samples, notes = stream(batches)
    assert notes == [NOTE]
    assert (samples.size, samples.kept, samples.is_streamed, samples.table) == (
        50,
        "streamed from the source",
        True,
        None,
    )
    for size, sizes in ((None, [8] * 6 + [2]), (3, [3] * 16 + [2]), (20, [20, 20, 10]), (99, [50])):
        for _ in range(2):
            found = [*samples.batches(size)]
            assert [batch.size for batch in found] == sizes
            assert torch.equal(torch.cat([batch.inputs for batch in found]), X)
            assert torch.equal(torch.cat([batch.targets for batch in found]), Y)
    assert torch.equal(torch.cat([*samples.targets()]), Y)


def test_targets_too_large_to_be_kept_are_read_again(monkeypatch):
    monkeypatch.setattr("lbgap.problem.survey.TARGET_BYTES", 100)
    samples, _ = stream(batches)
    assert samples._targets is None
    assert torch.equal(torch.cat([*samples.targets()]), Y)


def test_targets_of_several_kinds_are_not_kept():
    for pieces in ([Y, Y.float()], [Y, Y[:, None]], [{"y": Y}], [torch.zeros(3, 0)]):
        column = Column()
        for piece in pieces:
            column.add(piece)
        assert column.pieces() is None
    column = Column()
    for piece in (X[:3].bool(), X[3:4].bool()):
        column.add(piece)
    assert torch.equal(torch.cat(column.pieces()), X[:4].bool())


def test_an_objective_of_a_stream_is_that_of_the_same_data_in_memory():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    streamed, resident = (Objective(model, data, batch_size=12) for data in (batches, (X, Y)))
    assert streamed.settings()["data"] == "streamed from the source"
    assert streamed.notes == [NOTE]
    theta = resident.theta
    exact = Objective(model, (X, Y), precision="float64")
    value, gradient = exact.loss_and_gradient(exact.theta)
    found, slope = streamed.loss_and_gradient(theta)
    # Each of 50 terms is rounded to float32 a few times; sums are in float64.
    assert float(found) == pytest.approx(float(value), rel=1e-6)
    assert torch.allclose(slope.double(), gradient, rtol=1e-5, atol=1e-7)
    assert float(streamed.loss(theta)) == float(found)
    for one, other in zip((found, slope), resident.loss_and_gradient(theta), strict=True):
        assert torch.equal(one, other)
    vectors = draw(1, 2, len(theta))
    assert torch.allclose(streamed.hvp(theta, vectors), resident.hvp(theta, vectors), rtol=1e-4, atol=1e-6)
    chosen = torch.tensor([31, 2, 49, 8])
    assert float(streamed.part(chosen).loss(theta)) == float(resident.part(chosen).loss(theta))
    assert streamed.loss_and_accuracy(theta)[1] == resident.loss_and_accuracy(theta)[1]


def test_batches_whose_samples_see_each_other_are_those_of_the_same_data_in_memory():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    values = []
    for data in (batches, (X, Y)):
        objective = Objective(model, data, batch_norm="batch", batch_size=20)
        values.append(float(objective.loss(objective.theta)))
    assert values[0] == values[1]


def test_a_part_is_resident_and_in_the_order_that_was_asked_for():
    samples, _ = stream(batches)
    chosen = torch.tensor([49, 0, 17, 8, 17])
    part = samples.part(chosen)
    assert isinstance(part, Table)
    assert torch.equal(part.pool.inputs, X[chosen])
    assert torch.equal(part.pool.targets, Y[chosen])

    samples, _ = stream(lambda: iter([(X[:5], Y[:5]), (X[5:9, :2], Y[5:9])]))
    part = samples.part(torch.tensor([6, 1]))
    assert isinstance(part, Pieces)
    assert [batch.targets.tolist() for batch in part.chunks()] == [[1], [0]]


def test_the_pool_is_spread_over_the_data():
    samples, _ = stream(lambda: ((torch.full((100, 2), float(i)), torch.zeros(100)) for i in range(200)))
    seen = samples.pool.inputs[:, 0].unique()
    assert seen[0] == 0
    assert seen[-1] > 100
    assert len(seen) > 8
    assert 300 <= samples.pool.size <= 1024


def test_a_digest_tells_data_from_others():
    samples, _ = stream(batches)
    assert samples.digest() == stream(batches)[0].digest()
    other = X.clone()
    other[49, 5] += 1
    assert samples.digest() != stream(lambda: zip(other.split(8), Y.split(8), strict=True))[0].digest()


def test_data_that_differ_are_refused():
    calls = []

    def changing():
        calls.append(0)
        for number, (inputs, targets) in enumerate(batches()):
            yield (inputs + (number == 3) * len(calls), targets)

    samples, _ = stream(changing)
    with pytest.raises(ValueError, match="the data differ at each reading, first in batch 3: freeze them, or seed"):
        [*samples.batches(None)]

    for change, message in ((-1, "6 batches where there were 7"), (1, "first in batch 7")):
        lengths = iter([0, 0, 0, change])

        def longer(lengths=lengths):
            found = [*batches()]
            length = len(found) + next(lengths)
            return iter([*found, found[0]][:length])

        samples, _ = stream(longer)
        with pytest.raises(ValueError, match=message):
            [*samples.batches(None)]


def test_draws_are_alike_in_each_pass_and_the_process_keeps_its_own():
    class Noisy(Dataset):
        def __len__(self):
            return 70

        def __getitem__(self, index):
            return torch.rand(2), 0.0

    before = torch.random.get_rng_state()
    samples, notes = stream(DataLoader(Noisy(), batch_size=8))
    assert notes == [NOTE, FROZEN]
    passes = []
    for _ in range(2):
        torch.rand(3)
        before = torch.random.get_rng_state()
        passes.append(torch.cat([batch.inputs for batch in samples.batches(None)]))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(*passes)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_loader_with_workers():
    samples, _ = stream(DataLoader(TensorDataset(X, Y), batch_size=8, num_workers=2, shuffle=True))
    assert torch.equal(torch.cat([batch.inputs for batch in samples.batches(None)]), X)
    next(samples.batches(None))  # given up: the fixture looks for the thread


def test_a_source_may_fill_the_same_memory_again():
    buffer = torch.empty(2, 3)

    def refilled():
        for number in range(20):
            yield buffer.fill_(number), torch.zeros(2)

    samples, _ = stream(refilled)
    assert [float(batch.inputs[0, 0]) for batch in samples.batches(None)] == [*range(20)]


def test_errors_of_the_source_reach_the_caller_and_end_the_pass():
    closed = []

    passes = []

    def failing():
        passes.append(0)
        try:
            for number, batch in enumerate(batches()):
                if number == 2 and len(passes) == 4:
                    raise OSError("the disk is gone")
                yield batch
        finally:
            closed.append(0)

    samples, _ = stream(failing)
    with pytest.raises(OSError, match="the disk is gone"):
        [*samples.batches(None)]
    assert len(closed) == 4
    given_up = samples.batches(4)
    next(given_up)
    given_up.close()
    assert len(closed) == 5
    assert sum(batch.size for batch in samples.batches(None)) == 50


def test_batches_that_are_not_finite_are_refused():
    bad = X.clone()
    bad[17, 2] = float("nan")
    with pytest.raises(ValueError, match="expected finite inputs, got NaN or infinity, first in sample 17"):
        stream(lambda: zip(bad.split(8), Y.split(8), strict=True))


def test_a_checksum_is_of_form_and_bytes():
    part = draw(0, 40, 50, 60)
    own = checksum(Batch(part, Y[:40]))
    assert checksum(Batch(part.clone(), Y[:40].clone())) == own
    others = [part.reshape(40, 60, 50), part.double(), part + 1e-6, part.flip(0)]
    assert len({own, *(checksum(Batch(other, Y[:40])) for other in others)}) == 5
    for kind in (torch.bool, torch.bfloat16, torch.complex64):
        checksum(Batch(part.to(kind).transpose(1, 2), Y[:0]))


LIMITED = """
    import resource, torch
    from torch import nn
    import lbgap
    from lbgap.objective.objective import Objective

    WIDTH, ROWS, COUNT, LIMIT = 4096, 128, 800, 160 * 2**20
    torch.set_num_threads(1)
    pattern = torch.arange(WIDTH, dtype=torch.float32).remainder(7)

    def batches():
        for number in range(COUNT):
            yield pattern.expand(ROWS, -1) + number % 5, torch.full((ROWS, 1), float(number % 3))

    assert COUNT * ROWS * WIDTH * 4 >= 10 * LIMIT
    model = nn.Linear(WIDTH, 1)
    nn.init.constant_(model.weight, 2.0**-12)
    nn.init.zeros_(model.bias)
    used = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT,) * 2)
    objective = Objective(model, batches, loss="mse", judge=False)
    assert objective.settings()["data"] == "streamed from the source"
    value = float(objective.loss(objective.theta))
    mean = pattern.double().mean()
    exact = sum(float(mean + number % 5 - number % 3) ** 2 for number in range(COUNT)) / COUNT
    assert abs(value - exact) < 1e-5 * exact, (value, exact)
    print("right")
"""


def test_ten_times_what_the_memory_holds():
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(LIMITED)], capture_output=True, text=True, check=False)
    assert done.stdout == "right\n", done.stderr
