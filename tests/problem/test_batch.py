"""Batches: their size, whether they can be cut, and that inputs and targets share what they shared."""

from types import SimpleNamespace

import pytest
import torch

from lbgap.problem.batch import Batch

X, Y = torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 2, 0])


class Graph(SimpleNamespace):
    def apply(self, function):
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, function(value))
        return self

    def to(self, device):
        return self.apply(lambda part: part.to(device))


@pytest.mark.parametrize(
    ("inputs", "targets", "size", "cuttable"),
    [
        (X, Y, 4, True),
        (X[:0], Y[:0], 0, True),
        ({"x": X, "n": 2}, Y, 4, True),
        ((X, (X, Y)), {"a": Y}, 4, True),
        ({"x": X}, Y[:2], 1, False),
        ((X, torch.tensor(3.0)), Y, 1, False),
        (Graph(x=X, num_graphs=3), Y, 3, False),
        (Graph(x=X), Graph(x=X, num_graphs=2), 2, False),
    ],
)
def test_sizes(inputs, targets, size, cuttable):
    batch = Batch(inputs, targets)
    assert (batch.size, batch.cuttable) == (size, cuttable)
    assert tuple(batch) == (inputs, targets)


def test_what_inputs_and_targets_share_they_share_afterwards():
    whole = {"x": X, "y": Y}
    batch = Batch({"x": X}, whole)
    assert [id(part) for part in batch.tensors()] == [id(X), id(Y)]
    for made in (
        batch.map(lambda part: part + 1),
        batch.clone(),
        batch.cast(torch.float64),
        batch.rows(slice(1, 3)),
        batch.rows(torch.tensor([2, 0])),
    ):
        assert made.inputs["x"] is made.targets["x"]
        assert made.inputs["x"] is not X
        assert len(made.tensors()) == 2
    graph = Graph(x=X, y=Y)
    mapped = Batch(graph, graph).map(torch.neg)
    assert mapped.inputs is not graph
    assert mapped.inputs.x is mapped.targets.x
    assert torch.equal(graph.x, X)


def test_a_map_of_tensors_takes_inputs_then_targets():
    calls = []
    Batch(X, Y).map(lambda part: calls.append(part) or part)
    assert calls[0] is X
    assert calls[1] is Y


@pytest.mark.parametrize("chosen", [slice(1, 3), torch.tensor([3, 3, 0])])
def test_rows(chosen):
    for inputs, targets in ((X, Y), ({"x": X}, (Y, 7))):
        found = Batch(inputs, targets).rows(chosen)
        one, other = found.tensors()
        assert torch.equal(one, X[chosen])
        assert torch.equal(other, Y[chosen])
        assert found.size == len(X[chosen])
        assert (one.data_ptr() == X[1:].data_ptr()) == isinstance(chosen, slice)
    assert found.targets[1] == 7


def test_casts_take_floating_values_alone():
    found = Batch({"x": X, "m": Y.bool()}, Y).cast(torch.float64)
    assert found.inputs["x"].dtype == torch.float64
    assert found.inputs["m"].dtype == torch.bool
    assert found.targets is Y
    plain = Batch(X, Y).cast(torch.bfloat16)
    assert (plain.inputs.dtype, plain.targets.dtype) == (torch.bfloat16, torch.int64)
    assert Batch(X, Y).cast(None).inputs is X
    assert Batch(X, Y).cast(None, torch.device("meta")).targets.is_meta


def test_a_copy_may_be_overwritten():
    copy = Batch({"x": X}, Y).clone()
    copy.inputs["x"].zero_()
    copy.targets.zero_()
    assert torch.equal(X, torch.arange(12.0).reshape(4, 3))
    assert Y.tolist() == [0, 1, 2, 0]
