"""Samples that a GPU fetches from the host in each pass: what is copied when, on streams that a test stands in for."""

import contextlib

import pytest
import torch

from lbgap.problem.batch import Batch
from lbgap.problem.hold import hold, take
from lbgap.problem.pieces import Pieces
from lbgap.problem.stored import uploaded
from lbgap.system import device as hardware

X, Y = torch.arange(21.0).reshape(7, 3), torch.arange(7)
CPU = torch.device("cpu")


class Lane:
    """Stands in for a stream of CUDA."""

    log = None

    def __init__(self, device=None, name="copier"):
        self.name = name

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def lanes(monkeypatch):
    Lane.log = log = []

    @contextlib.contextmanager
    def stream(lane):
        log.append(f"{lane.name} copies")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Lane)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Lane(name="current"))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, lane: log.append(f"{lane.name} uses"))
    return log


def test_a_batch_is_computed_with_once_it_is_copied(lanes):
    for batch in uploaded(iter([Batch(X, Y), Batch({"x": X}, Y)]), CPU):
        assert batch.size == 7
        lanes.append("computes")
    once = ["copier copies", "current waits for copier", "current uses", "current uses", "computes"]
    assert lanes == once * 2


def test_pieces_that_do_not_fit_are_copied_in_each_pass(lanes, monkeypatch):
    monkeypatch.setattr(hardware, "fit", lambda *_: False)
    monkeypatch.setattr(hardware, "pinned", lambda tensor, dtype=None: tensor.to(dtype, copy=True))
    samples = hold(take(lambda: iter([(X[:4], Y[:4]), (X[4:, :2], Y[4:])])), lambda tree: Batch(*tree), [])
    assert isinstance(samples, Pieces)
    there = samples.placed(CPU, torch.float64)
    assert (there.is_streamed, there.kept) == (True, "streamed")
    for _ in range(2):
        found = [*there.batches(3)]
        assert [batch.size for batch in found] == [3, 1, 3]
        assert torch.equal(torch.cat([batch.targets for batch in found]), Y)
        assert found[0].inputs.dtype == torch.float64
    assert lanes.count("copier copies") == 4
