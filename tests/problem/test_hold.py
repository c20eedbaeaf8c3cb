"""What is held of a user's data: one table, or pieces, or a stream; and what is refused of it."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lbgap.objective.objective import Objective
from lbgap.problem import hold as module
from lbgap.problem.batch import Batch
from lbgap.problem.hold import FROZEN, hold, take
from lbgap.problem.pieces import Pieces
from lbgap.problem.stored import Table
from lbgap.problem.stream import Stream

X, Y = torch.arange(21.0).reshape(7, 3), torch.arange(7) % 3


def pair(tree):
    return Batch(tree[0], tree[1])


def held(data, split=pair, **options):
    notes = []
    return hold(take(data), split, notes, **options), notes


class Linked:
    """As a graph of PyTorch Geometric."""

    def __init__(self, x):
        self.x = x

    def apply(self, function):
        self.x = function(self.x)
        return self

    def to(self, device):
        return self.apply(lambda part: part.to(device))


class Padded(Dataset):
    """Sequences of several lengths."""

    def __len__(self):
        return 9

    def __getitem__(self, index):
        return {"x": torch.arange(1.0, 2 + index), "label": index % 3}


def padded(items):
    inputs = nn.utils.rnn.pad_sequence([item["x"] for item in items], batch_first=True)
    return {"x": inputs, "mask": (inputs > 0).float(), "label": torch.tensor([item["label"] for item in items])}


class Sum(nn.Module):
    """Takes sequences of any length."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 3)

    def forward(self, x, mask):
        return self.head((x * mask).sum(1, keepdim=True))


def test_pairs_in_memory_are_one_table_without_a_copy():
    samples, notes = held((X, Y))
    assert isinstance(samples, Table)
    assert samples.pool.inputs is X
    assert samples.pool.targets is Y
    assert (samples.size, samples.kept, notes) == (7, "resident", [])


@pytest.mark.parametrize("batch_size", [1, 2, 7, 20])
def test_batches_are_joined_into_one_table(batch_size):
    for data in (DataLoader(TensorDataset(X, Y), batch_size=batch_size), lambda: zip(X.split(2), Y.split(2))):  # noqa: B905
        samples, notes = held(data)
        assert torch.equal(samples.table.inputs, X)
        assert torch.equal(samples.table.targets, Y)
        assert notes == []


def test_a_source_may_fill_the_same_memory_again():
    buffer = torch.empty(2, 3)

    def batches():
        for number in range(3):
            yield buffer.fill_(number), torch.zeros(2)

    assert held(batches)[0].table.inputs[:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_more_or_fewer_samples_than_the_data_set_has():
    def doubled(items):
        inputs = torch.stack([item[0] for item in items])
        return torch.cat([inputs, inputs]), torch.zeros(2 * len(items))

    def halved(items):
        return items[0][0][None], torch.zeros(1)

    data = TensorDataset(X, Y)
    more = held(DataLoader(data, batch_size=2, collate_fn=doubled))[0].table.inputs
    assert more[:, 0].tolist() == [0, 3, 0, 3, 6, 9, 6, 9, 12, 15, 12, 15, 18, 18]
    assert held(DataLoader(data, batch_size=2, collate_fn=halved))[0].table.inputs[:, 0].tolist() == [0, 6, 12, 18]


def test_model_and_loss_may_share_tensors():
    for data in (lambda: iter([X[:4], X[4:]]), DataLoader(X, batch_size=2)):
        samples, _ = held(data, lambda tree: Batch(tree, tree))
        assert torch.equal(samples.table.inputs, X)
        assert torch.equal(samples.table.targets, X)
    samples, _ = held(DataLoader([{"x": row} for row in X], batch_size=2), lambda tree: Batch(tree, tree))
    assert samples.table.inputs["x"] is samples.table.targets["x"]


def test_batches_padded_each_for_itself_are_pieces_with_the_loss_of_all_samples():
    loader = DataLoader(Padded(), batch_size=2, collate_fn=padded, shuffle=True)
    model = Sum()
    objective = Objective(model, loader, loss="cross_entropy")
    assert isinstance(objective._evaluator.data, Pieces)
    assert objective.samples == 9
    sums = torch.tensor([[index * (index + 1) / 2] for index in range(1, 10)], dtype=torch.float64)
    labels = torch.arange(9) % 3

    def dense(chosen):
        output = sums[chosen] @ model.head.weight.double().T + model.head.bias.double()
        return float(nn.functional.cross_entropy(output, labels[chosen]).detach())

    everything = torch.arange(9)
    # Sums of at most 45 in float32, of which the largest term decides: 2^-24 of it a product and a sum.
    assert float(objective.loss(objective.theta)) == pytest.approx(dense(everything), rel=1e-6)
    chosen = torch.tensor([7, 2, 3])
    assert float(objective.part(chosen).loss(objective.theta)) == pytest.approx(dense(chosen), rel=1e-6)


def test_pieces_are_cut_where_they_can_be():
    batches = [(X[:4], Y[:4]), (X[4:, :2], Y[4:])]
    samples, _ = held(lambda: iter(batches))
    assert isinstance(samples, Pieces)
    assert samples.size == 7
    assert samples.pool.size == 4
    assert [batch.size for batch in samples.batches(3)] == [3, 1, 3]
    assert [batch.size for batch in samples.batches(None)] == [4, 3]
    assert torch.equal(torch.cat([*samples.targets()]), Y)
    part = samples.part(torch.tensor([6, 1, 0]))
    assert [batch.targets.tolist() for batch in part.chunks()] == [[0, 1], [0]]
    other, _ = held(lambda: iter([(X[:4], Y[:4]), (X[4:, :2] + 1, Y[4:])]))
    assert samples.digest() == held(lambda: iter(batches))[0].digest() != other.digest()
    assert next(samples.placed(torch.device("cpu"), torch.float64).batches(None)).inputs.dtype == torch.float64


def test_batches_that_cannot_be_cut_come_as_they_are():
    batches = [((X, torch.zeros(2, 9)), Y), ((X[:5], torch.zeros(2, 4)), Y[:5])]
    samples, _ = held(lambda: iter(batches))
    assert not samples.cuttable
    assert [batch.inputs[1].shape[1] for batch in samples.batches(1)] == [9, 4]
    with pytest.raises(ValueError, match="a share of the samples needs batches that can be cut"):
        samples.part(torch.tensor([0]))


def test_a_model_may_change_all_of_a_batch_but_its_values():
    for data in ({"x": X, "y": Y}, lambda: iter([{"x": X[:4], "y": Y[:4]}, {"x": X[4:, :2], "y": Y[4:]}])):
        samples, _ = held(data, lambda tree: Batch(tree, tree))
        for _ in range(2):
            for batch in samples.batches(3):
                assert batch.inputs["x"] is batch.targets["x"]
                batch.inputs["x"].requires_grad_(requires_grad=True)
                assert batch.inputs.pop("x").shape[0] == batch.size
        assert not any(part.requires_grad for batch in samples.batches(3) for part in batch.tensors())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool])
def test_integer_targets_become_int64_and_booleans_stay(dtype):
    for data in ((X, Y.to(dtype)), lambda: iter([(X, Y.to(dtype)), (X, Y.to(dtype))])):
        assert held(data)[0].pool.targets.dtype == (torch.bool if dtype == torch.bool else torch.int64)


def test_what_draws_at_random_is_frozen_by_one_reading():
    class Noisy(Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, index):
            return torch.rand(2), 0.0

    before = torch.random.get_rng_state()
    samples, notes = held(Noisy())
    assert notes == [FROZEN]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(2)
    assert torch.equal(held(Noisy())[0].table.inputs, samples.table.inputs)

    own = torch.Generator().manual_seed(1)  # which no state of the process tells of
    _, notes = held(lambda: iter([(torch.rand(3, 2, generator=own), torch.zeros(3))]))
    assert notes == [FROZEN]


def test_strings_do_not_enter():
    data = [{"x": X, "label": Y, "text": ["a"] * 7}] * 2
    split = lambda tree: Batch(tree["x"], tree)  # noqa: E731
    samples, notes = held(lambda: iter(data), split)
    assert sorted(samples.pool.targets) == ["label", "x"]
    assert notes == ["columns of strings are left out: 'text'"]
    with pytest.raises(TypeError, match=r"inputs\['text'\].* got a str: leave 'text' out .* set_format\('torch', col"):
        held(lambda: iter(data), lambda tree: Batch(tree, tree["label"]))


NAN = X.clone()
NAN[4, 1] = float("nan")
INF = X.clone()
INF[4, 1] = -float("inf")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((NAN, Y), "expected finite inputs, got NaN or infinity, first in sample 11: repair or remove it"),
        ((X, INF), "expected finite targets, got NaN or infinity, first in sample 11"),
        (({"a": X, "b": INF}, Y), r"expected finite inputs\['b'\], got NaN or infinity, first in sample 11"),
        (({"a": (X, NAN)}, Y), r"expected finite inputs\['a'\]\[1\], got NaN"),
        (({"attention_mask": NAN}, Y), r"expected numbers in inputs\['attention_mask'\], got NaN, first in sample 11"),
        ((({"x": NAN, "e": X[:2]}), Y), r"expected finite inputs\['x'\], got NaN or infinity, first in batch 1"),
        ((X, Y[:3]), "batch 1: expected as many targets as inputs, got 7 inputs and 3 targets: pass one target"),
        ((X, torch.tensor(1)), r"batch 1: expected targets of shape \(n, ...\), got a single number"),
        ((X, Y.to("meta")), "expected inputs and targets on one device, got cpu and meta: move them with .to"),
        (({"a": X, "b": X.to("meta")}, Y), r"inputs\['.'\] and inputs\['b'\] on one device|and .* on one device"),
    ],
)
def test_refused(batch, message):
    good = tuple(dict.fromkeys(part, X) if isinstance(part, dict) else part for part in (X, Y))
    with pytest.raises(ValueError, match=message) as caught:
        held(lambda: iter([good, batch]))
    assert "\n" not in str(caught.value)


def test_an_infinity_is_allowed_in_a_mask():
    samples, _ = held(({"attention_mask": INF}, Y))
    assert samples.size == 7


def test_data_that_do_not_fit_are_streamed_or_refused(monkeypatch):
    monkeypatch.setattr(module, "budget", lambda: 60)
    loader = DataLoader(TensorDataset(X, Y), batch_size=2)
    for data in (loader, lambda: zip(X.split(2), Y.split(2))):  # noqa: B905
        samples, notes = held(data)
        assert isinstance(samples, Stream)
        assert notes == ["the data do not fit into memory and are read again in each pass"]
    with pytest.raises(MemoryError, match="an iterator can be read only once: pass a function that returns a new"):
        held(zip(X.split(2), Y.split(2)))  # noqa: B905
    with pytest.raises(MemoryError, match="all of them are needed at once: pass fewer samples"):
        held(loader, streams=False)
    assert isinstance(held((X, Y))[0], Table)  # which are in memory already


@pytest.mark.parametrize("inputs", [X, {"x": X}, Linked(X)], ids=["tensor", "dict", "graph"])
def test_a_batch_that_is_done_with_is_freed_at_once(inputs):
    """And not only when Python collects circles of references: the tensors of many batches may lie in those."""
    gc.collect()
    gc.disable()
    try:
        batch = Batch(inputs, Y).clone()
        freed = [weakref.ref(part) for part in batch.tensors()]
        assert len(freed) == 2
        batch.rows(slice(2)) if batch.cuttable else batch.clone()
        del batch
        assert [one() for one in freed] == [None, None]
    finally:
        gc.enable()
