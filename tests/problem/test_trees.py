"""Trees of tensors: what is shared stays shared; sizes, graphs, joins, casts, rows; what two passes are compared by."""

import copy
import gc
import weakref
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from lbgap.problem import trees

X, Y = torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 2, 0])


class Pair(NamedTuple):
    one: torch.Tensor
    other: object


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None
    name: str = "output"


class Graph:
    """A small graph with what lbgap asks of one: ``apply`` in place, ``to``, and a number of graphs."""

    def __init__(self, x, edges, num_graphs=1):
        self.x, self.edges, self.num_graphs = x, edges, num_graphs

    def apply(self, function):
        self.x, self.edges = function(self.x), function(self.edges)
        return self

    def to(self, device):
        return self.apply(lambda part: part.to(device))


def graph(count=1):
    return Graph(X.clone(), Y.clone(), count)


def same(one, other):
    return all(map(torch.equal, trees.tensors(one), trees.tensors(other)))


# What is one tensor, one leaf, one container.


def test_a_tensor_that_stands_twice_is_found_once_and_made_once():
    calls = []

    def double(part):
        calls.append(part)
        return part * 2

    tree = {"x": X, "again": [X, (Y, X)], "number": 3, "nothing": None}
    assert [id(part) for part in trees.tensors(tree)] == [id(X), id(Y)]
    mapped = trees.map_tensors(double, tree)
    assert len(calls) == 2
    assert mapped["x"] is mapped["again"][0] is mapped["again"][1][1]
    assert torch.equal(mapped["x"], X * 2)
    assert torch.equal(mapped["again"][1][0], Y * 2)
    assert (mapped["number"], mapped["nothing"]) == (3, None)
    assert tree["x"] is X


def test_containers_keep_their_kinds():
    tree = OrderedDict(pair=Pair(X, [Y]), parts=(X, None))
    mapped = trees.map_tensors(torch.neg, tree)
    assert isinstance(mapped, OrderedDict)
    assert isinstance(mapped["pair"], Pair)
    assert isinstance(mapped["pair"].other, list)
    assert isinstance(mapped["parts"], tuple)
    assert torch.equal(mapped["pair"].one, -X)


def test_one_tensor_is_a_tree():
    assert trees.tensors(X) == [X]
    assert torch.equal(trees.map_tensors(torch.neg, X), -X)
    assert (trees.size(X), trees.count(X)) == (4, 4)
    assert torch.equal(trees.rows(X, slice(1, 3)), X[1:3])
    assert trees.plain(X) is X
    assert trees.join([X]) is X


@pytest.mark.parametrize(
    ("leaf", "answer"),
    [
        (Graph(X, Y), True),
        (X, False),
        (Graph, False),  # the class
        (torch.nn.Linear(2, 2), True),  # moved and copied as a whole, whatever it is
        ({"apply": 1}, False),
        (SimpleNamespace(apply=lambda f: f), False),  # nothing moves it
        (3, False),
    ],
)
def test_what_is_a_graph(leaf, answer):
    assert trees.is_graph(leaf) is answer


def test_graphs_are_copied_and_what_they_share_stays_shared():
    first = graph()
    tree = (first, first.x)
    mapped = trees.map_tensors(lambda part: part + 1, tree)
    assert mapped[0] is not first
    assert mapped[0].x is mapped[1]
    assert torch.equal(first.x, X)  # left as it was
    assert torch.equal(mapped[0].x, X + 1)
    assert torch.equal(mapped[0].edges, Y + 1)
    assert [id(part) for part in trees.tensors(tree)] == [id(first.x), id(first.edges)]


def test_a_map_keeps_nothing_alive():
    part = torch.zeros(3)
    gone = weakref.ref(part)
    gc.disable()
    try:
        trees.map_tensors(torch.neg, {"x": part, "y": [part]})
        trees.tensors((part, part))
        del part
        assert gone() is None
    finally:
        gc.enable()


def test_mappings_of_any_kind_become_dicts():
    tree = UserDict(x=X, inner=UserDict(y=Y, list=[UserDict(z=X)]))
    found = trees.plain(tree)
    assert type(found) is dict
    assert type(found["inner"]) is dict
    assert type(found["inner"]["list"][0]) is dict
    assert found["inner"]["list"][0]["z"] is X
    assert trees.plain((UserDict(x=X), 1))[0] == {"x": X}
    kept = graph()
    assert trees.plain([kept])[0] is kept


# Sizes.


@pytest.mark.parametrize(
    ("tree", "size", "count"),
    [
        ((X, Y), 4, 4),
        ({"x": X, "y": [Y, {"z": Y}]}, 4, 4),
        ({"x": X, "n": 3, "none": None}, 4, 4),
        ((X, Y[:2]), None, 1),
        ((X, torch.tensor(1.0)), None, 1),
        (torch.tensor(1.0), None, 1),
        ([torch.tensor(1.0), torch.tensor(2.0)], None, 1),
        ({"n": 3}, None, 1),
        ((), None, 1),
        (torch.zeros(0, 3), 0, 0),
        (graph(), None, 1),
        (graph(5), None, 5),
        ((graph(5), X), None, 5),
        ((graph(2), graph(7)), None, 7),
        (SimpleNamespace(x=X), None, 1),  # no container
    ],
)
def test_sizes(tree, size, count):
    assert trees.size(tree) == size
    assert trees.count(tree) == count


# Rows and joins.


def test_rows_by_a_slice_are_views():
    tree = {"x": X, "y": (Y, X), "n": 3}
    some = trees.rows(tree, slice(1, 3))
    assert some["x"].data_ptr() == X[1:].data_ptr()
    assert some["x"] is some["y"][1]
    assert torch.equal(some["y"][0], Y[1:3])
    assert some["n"] == 3
    assert trees.size(some) == 2


def test_rows_by_indices():
    chosen = torch.tensor([3, 0, 3])
    some = trees.rows((X, {"y": Y}), chosen)
    assert torch.equal(some[0], X[chosen])
    assert torch.equal(some[1]["y"], Y[chosen])


def test_a_join_is_the_inverse_of_rows():
    tree = {"x": X, "y": Pair(Y, [X]), "n": 3}
    pieces = [trees.rows(tree, slice(start, start + size)) for start, size in ((0, 1), (1, 2), (3, 1))]
    joined = trees.join(pieces)
    assert isinstance(joined["y"], Pair)
    assert joined["x"] is joined["y"].other[0]
    assert torch.equal(joined["x"], X)
    assert torch.equal(joined["y"].one, Y)
    assert joined["n"] == 3


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.zeros(4, 2), "y": Y},
        {"x": X.double(), "y": Y},
        {"x": X},
        {"x": X, "y": Y, "z": Y},
        {"x": X, "z": Y},
    ],
    ids=["another shape", "another type", "fewer", "more", "another name"],
)
def test_other_forms_are_not_joined(other):
    with pytest.raises(ValueError, match=r"^trees of different forms cannot be joined$"):
        trees.join([{"x": X, "y": Y}, other])


# Types.


def test_a_cast_takes_floating_tensors_alone():
    tree = {"x": X, "y": Y, "m": Y.bool(), "g": graph(), "w": X.bfloat16()}
    wide = trees.cast(tree, torch.float64)
    assert [part.dtype for part in (wide["x"], wide["w"], wide["g"].x)] == [torch.float64] * 3
    assert [part.dtype for part in (wide["y"], wide["m"], wide["g"].edges)] == [torch.int64, torch.bool, torch.int64]
    assert torch.equal(wide["x"], X.double())
    assert tree["g"].x.dtype == torch.float32
    assert wide["y"] is Y
    assert trees.cast({"x": X}, None)["x"] is X
    assert trees.cast({"x": X}, torch.float32, torch.device("cpu"))["x"] is X
    moved = trees.cast(tree, None, torch.device("meta"))
    assert {part.device.type for part in trees.tensors(moved)} == {"meta"}


def test_copies_and_what_has_no_graph():
    leaf = X.clone().requires_grad_()
    made = {"x": leaf * 2, "y": Y}
    free = trees.detached(made)
    assert not free["x"].requires_grad
    assert free["x"].data_ptr() == made["x"].data_ptr()
    assert torch.equal(free["x"], X * 2)
    assert not trees.detached(leaf * 2).requires_grad
    copies = trees.cloned((X, [X, Y]))
    assert copies[0] is copies[1][0]
    copies[0].zero_()
    assert torch.equal(X, torch.arange(12.0).reshape(4, 3))


# What two passes are compared by.


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (X, [X]),
        (Y, [Y]),  # one tensor is compared, whatever its type
        ((X, Y, X[:1]), [X, X[:1]]),
        ({"loss": torch.tensor(2.0), "logits": X, "labels": Y}, [torch.tensor(2.0), X]),
        (UserDict(logits=X), [X]),
        (Pair(X, {"y": X[1:]}), [X, X[1:]]),
        (Output(X, torch.tensor(2.0)), [X, torch.tensor(2.0)]),
        ([Output(X), Output(X[:2])], [X, X[:2]]),
        (SimpleNamespace(logits=X, more=Output(X[:1])), [X, X[:1]]),
        (graph(), [X]),
        ((graph(), X[:1]), [X, X[:1]]),
        (Output, []),  # the class
        (None, []),
        (object(), []),
        ({"ids": Y}, []),
    ],
)
def test_what_outputs_are_compared_by(output, expected):
    found = trees.observed(output)
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


def test_dataclasses_registered_by_no_one_are_constants_of_a_tree():
    output = Output(X)
    assert trees.tensors(output) == []
    assert trees.size((output, X)) == 4
    assert trees.map_tensors(torch.neg, (output, X))[0] is output


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (X, "(4, 3) float32"),
        ({"x": X, "y": (Y, 3)}, "{x: (4, 3) float32, y: ((4,) int64, int)}"),
        ([X.bool()], "((4, 3) bool)"),
        (graph(), "Graph"),
    ],
)
def test_descriptions(tree, words):
    assert trees.describe(tree) == words


def test_a_copy_of_a_tree_is_a_tree():
    tree = {"x": X, "g": graph()}
    assert same(trees.cloned(tree), copy.deepcopy(tree))
