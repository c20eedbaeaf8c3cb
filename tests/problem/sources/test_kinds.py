"""Every kind of data that a user has, as batches of tensors in order; and what is refused."""

import functools
import random
from collections import OrderedDict, UserDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lbgap.datasets import Data, Split
from lbgap.problem import trees
from lbgap.problem.sources.take import take

X, Y = torch.arange(21.0).reshape(7, 3), torch.arange(7) % 3


class Plain:
    """Has a length and items, as a Hugging Face ``Dataset``; no class of torch's."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Listed(Plain, Dataset):
    """The same as torch has it."""


class Coming(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


class Again:
    """Can be iterated over any number of times."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Counted(Again):
    """Goes on from where its state is."""

    def __init__(self, batches, place=0):
        super().__init__(batches)
        self.place = place

    def __iter__(self):
        while self.place < len(self.batches):
            self.place += 1
            yield self.batches[self.place - 1]
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class Graph:
    """As a graph of PyTorch Geometric: tensors of several lengths."""

    def __init__(self, **parts):
        self.parts = parts

    def to_dict(self):
        return dict(self.parts)

    def apply(self, function):
        self.parts = {name: function(part) for name, part in self.parts.items()}
        return self

    def to(self, device):
        return self.apply(lambda part: part.to(device))


def joined(data):
    """All that is read, as one tree."""
    return trees.join([*take(data).read()])


def equal(tree, other):
    leaves, others = trees.tensors(tree), trees.tensors(other)
    same = len(leaves) == len(others)
    return same and all(
        one.dtype == two.dtype and torch.equal(one, two) for one, two in zip(leaves, others, strict=True)
    )


PAIRS = [(X[:4], Y[:4]), (X[4:], Y[4:])]
ITEMS = [(X[i], int(Y[i])) for i in range(7)]
DICTS = [{"x": X[i].tolist(), "label": int(Y[i])} for i in range(7)]


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [X, Y],
        Split(X, Y),
        (X.numpy(), Y.numpy()),
        TensorDataset(X, Y),
        Listed(ITEMS),
        Plain(ITEMS),
        Coming(ITEMS),
        DataLoader(Listed(ITEMS), batch_size=2),
        DataLoader(Listed(PAIRS), batch_size=None),
        DataLoader(Coming(ITEMS), batch_size=2),
        lambda: iter(PAIRS),
        lambda: PAIRS,
        Again(PAIRS),
        iter(PAIRS),
        Counted(PAIRS),
    ],
    ids=lambda data: type(data).__name__,
)
def test_pairs(data):
    assert equal(joined(data), (X, Y))


@pytest.mark.parametrize(
    "data",
    [
        {"x": X.double(), "label": Y},
        UserDict(x=X.double(), label=Y.numpy()),
        OrderedDict(x=X.double(), label=Y),
        Listed(DICTS),
        Plain(DICTS),
        Coming(DICTS),
        DataLoader(
            Listed(DICTS),
            batch_size=3,
            collate_fn=lambda items: UserDict(
                x=np.array([item["x"] for item in items]), label=torch.tensor([item["label"] for item in items])
            ),
        ),
        lambda: iter([{"x": X[:5].double(), "label": Y[:5]}, {"x": X[5:].double(), "label": Y[5:]}]),
    ],
    ids=lambda data: type(data).__name__,
)
def test_dicts(data):
    tree = joined(data)
    assert isinstance(tree, dict)
    assert sorted(tree) == ["label", "x"]
    assert equal(tree["x"], X.double())
    assert equal(tree["label"], Y)


def test_nested_parts_one_tensor_and_graphs():
    data = ((X, {"more": -X.numpy()}), Y)
    assert equal(take(data).first(), ((X, {"more": -X}), Y))
    assert take(X).first() is X
    graph = Graph(x=X, edges=torch.zeros(2, 5))
    assert take(graph).first() is graph
    ((inputs, more), targets) = joined(Listed([((X[i], [1.5, 2.5]), np.float32(i)) for i in range(7)]))
    assert equal((inputs, more, targets), (X, torch.tensor([[1.5, 2.5]] * 7).double(), torch.arange(7).double()))


def test_tensors_in_memory_are_not_copied():
    source = take({"x": X, "label": Y})
    assert source.first()["x"] is X
    assert source.is_whole
    assert source.in_memory == torch.device("cpu")
    assert take(TensorDataset(X, Y)).in_memory is None  # which has no place that the user chose
    assert take((X.numpy(), Y)).in_memory is None
    array = X.numpy().copy()
    assert take((array, Y)).first()[0].data_ptr() == array.ctypes.data


def test_arrays_that_torch_cannot_share_are_copied():
    array = X.numpy().copy()
    array.flags.writeable = False
    for given in (array, X.numpy().astype(">f4"), X.flip(0).numpy()[::-1]):
        assert equal(take((given, Y)).first()[0], X)


def test_strings_are_kept_as_they_are():
    batch = take(Listed([{**item, "text": "hello"} for item in DICTS])).first()
    assert batch["text"] == ["hello"] * 7


def test_a_state_is_put_back():
    data = Counted(PAIRS, place=1)
    source = take(data)
    for _ in range(2):
        assert equal(trees.join([*source.read()]), PAIRS[1])
    reading = source.read()
    next(reading)
    reading.close()
    assert data.place == 1


# Random draws.


class Drawn(Listed):
    """Draws from all three generators that a process has."""

    def __getitem__(self, index):
        return torch.rand(2) + np.random.rand() + random.random(), 0  # noqa: NPY002


def states():
    return torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


def test_draws_are_alike_in_each_reading_whatever_the_process_drew():
    source = take(Drawn(range(5)))
    torch.manual_seed(1)
    once = joined(source._data)
    before = states()
    torch.rand(7)
    assert equal(joined(source._data), once)
    reading = source.read()
    torch.random.set_rng_state(before[0])
    next(reading)  # in the middle, too
    assert all(np.array_equal(one, other) for one, other in zip(states()[:2], before[:2], strict=True))
    assert states()[2] == before[2]
    reading.close()
    assert reading.drew
    assert not source.is_first(once)
    plain = take(Listed(ITEMS))
    assert plain.is_first(next(plain.read()))


def test_an_error_leaves_the_random_state():
    class Broken(Listed):
        def __getitem__(self, index):
            torch.rand(3)
            raise KeyError("no such file")

    before = states()
    with pytest.raises(KeyError, match="no such file"):
        take(Broken(range(3))).first()
    assert torch.equal(states()[0], before[0])


# Refusals.

NO_TENSOR = "expected data, got"


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (Data("own", Split(X, Y), None, 7), TypeError, "got a Data with train and test: pass data.train or data.test"),
        (None, TypeError, f"{NO_TENSOR} a NoneType: pass"),
        ("mnist", TypeError, f"{NO_TENSOR} a str: pass"),
        (Listed, TypeError, f"{NO_TENSOR} Listed: pass"),
        (nn.Linear(2, 2), TypeError, f"{NO_TENSOR} a Linear: pass"),
        (3, TypeError, f"{NO_TENSOR} a int: pass"),
        ({"train": Listed(ITEMS), "test": Plain(ITEMS)}, TypeError, "got a dict of 'train', 'test': pass one of them"),
        (
            PAIRS,
            TypeError,
            r"got a list of 2 tuples: for a list of samples pass .*DataLoader\(samples, ba",
        ),
        ([{"x": X}], TypeError, r"got a list of 1 dict: .* for one of batches a function, lambda: iter\(batches\)"),
        ([Graph(x=X), Graph(x=X)], TypeError, "got a list of 2 graphs .Graph.: pass a loader that joins them"),
        ([X, X[:3], X], ValueError, "got 7 in part 1 and 3 in part 2: for a list of samples"),
        ({"x": X, "y": Y[:3]}, ValueError, r"got 7 in 'x' and 3 in 'y': lambda: iter\(\[batch\]\)"),
        (((X, X[:3]), Y), ValueError, r"got 7 in inputs\[0\] and 3 in inputs\[1\]"),
        ({"x": X, "y": [1, 2]}, TypeError, r"'y' as a tensor, got a list of numbers: .* return_tensors='pt'"),
        ({"x": X, "y": "a"}, TypeError, "'y' as a tensor, got a str: make it one"),
        ({}, TypeError, "got a dict of 0 without any"),
        ((X, torch.tensor(1)), ValueError, r"targets of shape \(n, ...\), got a single number: add a dimension"),
    ],
)
def test_refused_by_its_form(data, error, message):
    with pytest.raises(error, match=message) as caught:
        take(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (Listed([]), ValueError, "expected at least one sample, got none"),
        (lambda: iter([]), ValueError, "expected at least one sample, got none"),
        (iter([]), ValueError, "expected at least one sample, got none"),
        (lambda: (X, Y), TypeError, "a function must return an iterator of batches, got a tuple: pass what it returns"),
        (lambda: None, TypeError, "a function must return an iterator of batches, got a NoneType"),
        (
            Listed([(X[0], 0), (X[0, :2], 0)]),
            ValueError,
            r"inputs of one shape, .*\(3,\).* sample 1: pad, .* collate",
        ),
        (Listed([{"x": X[0]}, {"y": X[0]}]), ValueError, r"with keys \['x'\] in sample 0 but keys \['y'\] in sample 1"),
        (Listed([{"x": X[0]}, X[0]]), ValueError, "in sample 0 but a Tensor in sample 1: give all the same parts"),
        (Listed([(X[0], 0), (X[0],)]), ValueError, "with parts 2 in sample 0 but parts 1 in sample 1"),
        (Listed([{"x": [1, 2]}, {"x": [1]}]), ValueError, "'x' of one shape, dtype and device"),
        (Listed([{"x": [[1, 2], [1]]}]), ValueError, "sample 0: expected 'x' as rows of one length"),
        (
            Listed([Graph(x=X)]),
            TypeError,
            r"sample 0: .* got a Graph: pass a loader .*torch_geometric.loader.Data",
        ),
        (Listed([(object(), 0)]), TypeError, "sample 0: expected inputs as tensors, arrays or numbers, got a object"),
    ],
)
def test_refused_by_its_samples(data, error, message):
    with pytest.raises(error, match=message) as caught:
        take(data).first()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [lambda size: iter(PAIRS), functools.partial(lambda a, b: iter(PAIRS), 1)])
def test_a_function_with_arguments(make):
    message = (
        r"data as a function must be callable without arguments, got .* \(missing a required argument: '\w+'\): wrap"
    )
    with pytest.raises(TypeError, match=message):
        take(make)


def test_a_function_with_defaults():
    assert take(lambda size=1: iter(PAIRS)).repeats


def test_a_function_that_returns_one_iterator_twice_is_refused():
    batches = iter(PAIRS)
    source = take(lambda: batches)
    source.first()
    with pytest.raises(ValueError, match="got the same one twice, which is used up: make it inside of the function"):
        source.read()


def test_samples_that_a_loader_cannot_stack():
    ragged = [(torch.randn(1 + index % 3), 0) for index in range(6)]
    message = r"samples of a batch differ in shape \(stack expects .*\): give the loader a collate_fn that pads them"
    with pytest.raises(ValueError, match=message):
        take(DataLoader(ragged, batch_size=3)).first()
