"""Batches as users make them: what counts by what in a mean, borders of their own, and what would be lost of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lbgap import Objective
from lbgap.objective.passes import Evaluator
from lbgap.problem import hold

X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50) % 3
SIZES = (20, 7, 23)


def net(kind=nn.Linear):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        return kind(4, 3)


def pieces(sizes=SIZES):
    return [*zip(X.split(sizes), Y.split(sizes), strict=True)]


def refused(message, data, model=None, **options):
    with pytest.raises(ValueError, match=message) as caught:
        Objective(model or net(), data, **options)
    assert "\n" not in str(caught.value)


def value(objective):
    return float(objective.loss(objective.theta))


# What a mean is over.


class OfDicts(nn.Linear):
    def forward(self, x):
        return super().forward(x)


def with_a_scale():
    """One tensor of each batch has another length, so that no batch can be cut."""
    return ({"x": x, "y": y, "scale": torch.ones(3)} for x, y in pieces())


def mean(output, batch):
    return F.cross_entropy(output, batch["y"])


def test_a_mean_over_nobody_knows_how_many_samples_is_refused():
    message = r"mean over a batch whose tensors do not share their first dimension, .*: return \(sum, weight\)"
    refused(message, with_a_scale, net(OfDicts), loss=mean)
    exact = Objective(
        net(OfDicts), with_a_scale, loss=lambda output, batch: (len(output) * mean(output, batch), len(output))
    )
    assert value(exact) == pytest.approx(float(F.cross_entropy(net()(X), Y).detach()), rel=1e-6)


class Graph:
    """As a batch of graphs of PyTorch Geometric."""

    def __init__(self, x, y, num_graphs):
        self.x, self.y, self.num_graphs = x, y, num_graphs

    def apply(self, function):
        self.x, self.y = function(self.x), function(self.y)
        return self

    def to(self, device):
        return self.apply(lambda part: part.to(device))


class OfGraphs(nn.Linear):
    def forward(self, graph):
        return super().forward(graph.x)


def test_graphs_count_in_a_mean_by_their_number():
    def graphs():
        return (Graph(x, y, count) for (x, y), count in zip(pieces(), (4, 1, 5), strict=True))

    objective = Objective(net(OfGraphs), graphs, loss=lambda output, graph: F.cross_entropy(output, graph.y))
    means = [float(F.cross_entropy(net()(x), y).detach()) for x, y in pieces()]
    assert value(objective) == pytest.approx((4 * means[0] + means[1] + 5 * means[2]) / 10, rel=1e-6)
    assert objective.notes == [
        "each batch counts by its graphs in the mean of the loss: return (sum, weight) to count nodes or tokens"
    ]


class Tokens(nn.Embedding):
    def __init__(self, *_):
        super().__init__(5, 5)

    def forward(self, tokens):
        return super().forward(tokens)


def texts(ignored=False):
    """Batches of two lengths, in order; labels in the last one that may not count."""
    generator = torch.Generator().manual_seed(0)
    for number, length in enumerate((6,) * 33 + (3,)):
        tokens = torch.randint(5, (4, length), generator=generator)
        labels = tokens.roll(1, 1)
        labels = labels.where(torch.arange(4)[:, None] > length - 3, -100) if ignored and number == 33 else labels
        yield {"tokens": tokens, "labels": labels}


def of_tokens(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch["labels"].flatten())


def test_batches_of_several_lengths_count_by_their_samples():
    objective = Objective(net(Tokens), texts, loss=of_tokens)
    assert any(note.startswith("batches differ in form, and each counts by its samples") for note in objective.notes)
    means = [float(of_tokens(net(Tokens)(batch["tokens"]), batch).detach()) for batch in texts()]
    assert value(objective) == pytest.approx(sum(means) / len(means), rel=1e-6)  # of four samples each


def test_sums_are_asked_of_batches_unlike_the_first_ones():
    def last():
        batches = [*texts()]
        batches[-1]["labels"][0, :2] = -100
        return iter(batches)

    refused(
        r"is no mean over samples: .*return \(sum, weight\).*loss='model' or 'causal_lm'",
        last,
        net(Tokens),
        loss=of_tokens,
    )


# Borders.


def contrast(output, target):
    return F.cross_entropy(output @ output.T, torch.arange(len(output))) + 0 * target.sum()


@pytest.mark.parametrize("streams", [False, True])
def test_batches_whose_samples_see_each_other_keep_their_borders(streams, monkeypatch):
    if streams:
        monkeypatch.setattr(hold, "budget", lambda: 0.0)
    objective = Objective(net(), lambda: iter(pieces()), loss=contrast, coupled=True)
    expected = sum(len(x) * float(contrast(net()(x), y).detach()) for x, y in pieces()) / 50
    assert value(objective) == pytest.approx(expected, rel=1e-6)
    assert objective.batch_size == max(SIZES)


def test_even_borders_are_a_batch_size():
    objective = Objective(net(), lambda: iter(pieces((20, 20, 10))), loss=contrast, coupled=True)
    assert objective.batch_size == 20
    assert value(objective) == value(Objective(net(), (X, Y), loss=contrast, coupled=True, batch_size=20))


def test_a_size_that_padded_batches_do_not_have():
    def padded():
        return ({"x": F.pad(x, (0, width)), "y": y} for (x, y), width in zip(pieces(), (0, 1, 2), strict=True))

    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * x[:, :4]

    def loss(output, batch):
        return contrast(output, batch["y"])

    message = "batch_size=5 cannot be had of batches that differ in form, of 7 to 23 samples, .*: leave it out"
    refused(message, padded, Sums(), loss=loss, coupled=True, batch_size=5)


def test_a_batch_of_one_sample_has_no_statistics():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    model(X[:2])

    class Any(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x[:, :4])

    def batches():
        return iter([(X[:49], Y[:49]), (F.pad(X[49:], (0, 1)), Y[49:])])

    objective = Objective(Any(), batches)
    with pytest.raises(ValueError, match="a batch of one sample has no statistics: let the loader"):
        objective.statistics(objective.theta)


def test_what_cannot_be_cut_and_does_not_fit(monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError

    def graphs():
        return (Graph(x, y, 1) for x, y in pieces())

    objective = Objective(net(OfGraphs), graphs, loss=lambda output, graph: (output.sum(), 1.0))
    monkeypatch.setattr(Evaluator, "_output", too_large)
    with pytest.raises(MemoryError, match=r"does not fit .* cannot be cut: let the loader make smaller"):
        objective.loss(objective.theta)


def test_outputs_of_several_shapes_cannot_be_joined():
    objective = Objective(net(Tokens), texts, loss="token_classification")
    with pytest.raises(
        ValueError, match=r"the outputs of the batches differ in shape \(.*\), .*: pass samples of one shape"
    ):
        objective.output_tangents(objective.theta, objective.theta)


# What would be lost.


class Reader:
    """Can be iterated over once, and does not say so."""

    def __init__(self):
        self.batches = iter(pieces())

    def __iter__(self):
        yield from self.batches


class Samples(IterableDataset):
    def __init__(self):
        self.samples = iter([*zip(X, Y, strict=True)])

    def __iter__(self):
        yield from self.samples


def used_up():
    batches = iter(pieces())
    return lambda: map(tuple, batches)


@pytest.mark.parametrize("make", [Reader, Samples, lambda: DataLoader(Samples(), batch_size=5), used_up])
def test_what_is_used_up_by_being_looked_at_is_refused(make):
    refused("are used up by one reading, of which the first batch was taken already: pass a function", make())


class Shifted(nn.Linear):
    def forward(self, x, shift=None):
        return super().forward(x if shift is None else x + shift)


@pytest.mark.parametrize("nested", [False, True])
def test_a_key_that_the_first_batch_lacks(nested):
    def batches():
        for number, (x, y) in enumerate(pieces()):
            given = {"x": x, "shift": torch.ones_like(x)} if number else {"x": x}
            yield (given, y) if nested else {**given, "label": y}

    refused(
        "got 'shift', which Shifted.forward takes, in some and not in the first: give it in all", batches, net(Shifted)
    )


def test_numbers_drawn_without_a_difference_are_noted():
    def batches():
        torch.rand(())
        for batch in pieces():
            torch.rand(())
            yield batch

    objective = Objective(net(), batches)
    assert objective.notes == [
        "random numbers are drawn while the data are read: they are kept as one reading from a fixed seed found them"
    ]


def test_one_index_out_of_range_may_be_what_is_ignored():
    message = r"got 1..255: renumber .*, or pass torch.nn.CrossEntropyLoss\(ignore_index=255\) if that marks what"
    refused(message, (X, Y.where(Y > 0, 255)))
    refused(r"got 2..4: renumber the classes or widen the last layer$", (X, Y + 2))
