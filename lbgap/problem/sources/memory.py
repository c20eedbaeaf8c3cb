"""Data that are one tree of tensors in memory already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lbgap.problem import trees
from lbgap.problem.sources.base import Source
from lbgap.problem.sources.leaves import parts, shown, to_tree
from lbgap.problem.trees import Tree

LIST_REMEDY = (
    "for a list of samples pass torch.utils.data.DataLoader(samples, batch_size=32), for one of batches a function, "
    "lambda: iter(batches)"
)


class Memory(Source):
    """One tree, taken as it is: no copy."""

    is_whole = True

    def __init__(self, data: Any, *, placed: bool = True) -> None:
        """Look at its form.

        Args:
            data: Tensors or arrays, in containers of any kind.
            placed: Whether its tensors are where the user wants them.

        Raises:
            TypeError: A part is no tensor.
            ValueError: The tensors are not of one length.
        """
        super().__init__()
        tree = to_tree(data)
        _check_form(tree)
        self._tree = tree
        found = trees.tensors(data) if not isinstance(data, Mapping) else trees.tensors(tree)
        if placed and found and not _has_arrays(data):
            self.in_memory = found[0].device
        self.size = trees.size(tree)

    def open(self) -> Iterator[Tree]:
        """The one batch."""
        return iter([self._tree])

    def first(self) -> Tree:
        """All of it."""
        return self._tree


def _has_arrays(data: Any) -> bool:
    """Whether an array stands in it, which is on the host whatever the user wants."""
    if isinstance(data, np.ndarray):
        return True
    many = data.values() if isinstance(data, Mapping) else data if isinstance(data, tuple | list) else ()
    return any(_has_arrays(part) for part in many)


def _check_form(tree: Tree) -> None:
    """Refuse what is not samples along one first dimension, but for graphs, which are one batch as they are."""
    if trees.is_graph(tree):
        return
    if isinstance(tree, list) and tree and all(isinstance(part, tuple | list | dict) for part in tree):
        raise TypeError(f"expected tensors, got a list of {len(tree)} {type(tree[0]).__name__}s: {LIST_REMEDY}")
    if isinstance(tree, tuple | list | dict) and any(trees.is_graph(part) for part in _values(tree)):
        if isinstance(tree, list):
            raise TypeError(
                f"expected tensors, got a list of {len(tree)} {type(tree[0]).__name__}s: pass a loader that joins "
                "them, such as torch_geometric.loader.DataLoader(samples, batch_size=32)"
            )
        return
    pair = isinstance(tree, tuple | list) and len(tree) == 2
    lengths: dict[str, int] = {}
    for path, leaf in parts(tree):
        where = (("inputs", "targets")[path[0]], *path[1:]) if pair and isinstance(path[0], int) else path
        if leaf is None:
            continue
        single = isinstance(leaf, int | float) and pair
        if not isinstance(leaf, Tensor) and not single:
            raise TypeError(_not_a_tensor(shown(where), leaf, tree))
        if single or not leaf.dim():
            raise ValueError(f"data: expected {shown(where)} of shape (n, ...), got a single number: add a dimension")
        lengths[shown(where)] = len(leaf)
    if not lengths:
        got = f"a {type(tree).__name__}" + ("" if isinstance(tree, Tensor) else f" of {len(tree)}")
        raise TypeError(f"data: expected tensors, got {got} without any: pass (inputs, targets)")
    _check_lengths(lengths, tree)


def _check_lengths(lengths: dict[str, int], tree: Tree) -> None:
    if len(set(lengths.values())) == 1:
        return
    names = [*lengths]
    if names == ["inputs", "targets"]:
        raise ValueError(
            f"data: expected as many targets as inputs, got {lengths['inputs']} inputs and {lengths['targets']} "
            "targets: pass one target per sample"
        )
    other = next(name for name in names if lengths[name] != lengths[names[0]])
    remedy = LIST_REMEDY if isinstance(tree, list | tuple) else "lambda: iter([batch]) gives it as one whole batch"
    raise ValueError(
        f"data: expected tensors with one first dimension, the samples, got {lengths[names[0]]} in {names[0]} and "
        f"{lengths[other]} in {other}: {remedy}"
    )


def _not_a_tensor(where: str, leaf: Any, tree: Tree) -> str:
    kind = "list of numbers" if isinstance(leaf, list) else type(leaf).__name__
    remedy = "make it one, or leave it out"
    if isinstance(tree, dict):
        remedy = "make it one (a tokenizer: return_tensors='pt'), or leave it out"
    elif isinstance(tree, list) or len(tree) > 2:
        remedy = LIST_REMEDY
    return f"data: expected {where} as a tensor, got a {kind}: {remedy}"


def _values(tree: Tree) -> list[Any]:
    return [*(tree.values() if isinstance(tree, dict) else tree)]


def is_memory(data: Any) -> bool:
    """Whether something is a tree of tensors: a tensor, an array, a graph, a mapping, a tuple or a list."""
    return isinstance(data, Tensor | np.ndarray | Mapping | tuple | list) or (
        trees.is_graph(data) and not isinstance(data, torch.nn.Module)
    )
