"""Batches as people have them: tensors in tuples, lists, dicts and objects, as one tree whose leaves are tensors.

Containers are those of ``torch.utils._pytree``; :func:`plain` makes dicts of other mappings. An object with ``apply``,
as graphs of PyTorch Geometric have it, is a container too: of tensors that cannot be cut.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

Tree: TypeAlias = Any
"""A tensor, or tensors in containers; what is neither counts as a constant."""


def is_text(part: Any) -> bool:
    """Whether a part of a batch is strings, be it one or one a sample."""
    return isinstance(part, str) or (isinstance(part, list | tuple) and bool(part) and isinstance(part[0], str))


def is_graph(leaf: object) -> bool:
    """Whether something is an object of tensors, such as a graph, that is moved and copied as a whole."""
    return not isinstance(leaf, Tensor | type | dict) and callable(getattr(leaf, "apply", None)) and hasattr(leaf, "to")


def tensors(tree: Tree) -> list[Tensor]:
    """All tensors of a tree, each once, those inside of graphs too."""
    if isinstance(tree, Tensor):
        return [tree]
    found: dict[int, Tensor] = {}

    def note(part: Tensor) -> Tensor:
        return found.setdefault(id(part), part)

    map_tensors(note, tree)
    return [*found.values()]


def stored(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that hold the values of one: of a nested one its parts, of a sparse one indices and values."""
    if tensor.is_nested:
        return [part.contiguous() for part in tensor.unbind()]
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    places = (tensor.crow_indices(), tensor.col_indices()) if rows else (tensor.ccol_indices(), tensor.row_indices())
    return [*places, tensor.values()]


def nbytes(tensor: Tensor) -> int:
    """Bytes that the values of a tensor take."""
    return sum(part.numel() * part.element_size() for part in stored(tensor))


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """A tree of the same form with something made of each tensor; a tensor that stands in it twice does so afterwards.

    Args:
        function: Is called once for each tensor.
        tree: Any tree, which stays as it is.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    known: dict[int, Tensor] = {}

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in known:
            known[id(leaf)] = function(leaf)
        return known[id(leaf)]

    def mapped(leaf: Any) -> Any:  # not recursive: a function that knows itself would hold the tensors until collected
        return copy.copy(leaf).apply(one) if is_graph(leaf) else one(leaf)

    return tree_map(mapped, tree, is_leaf=is_graph)


def plain(tree: Tree) -> Tree:
    """A tree with its mappings, of whatever kind, as dicts."""
    if isinstance(tree, Tensor):
        return tree
    return tree_map(_as_dict, tree, is_leaf=is_graph)


def _as_dict(leaf: Any) -> Any:
    return plain(dict(leaf)) if isinstance(leaf, Mapping) else leaf


def size(tree: Tree) -> int | None:
    """How many samples a tree has, if it can be cut: the first dimension that all of its tensors share.

    Returns:
        Their number; None where there is none: a graph, a number, or tensors of different lengths.
    """
    if isinstance(tree, Tensor):
        return len(tree) if tree.dim() and tree.layout == torch.strided and not tree.is_nested else None
    found: set[int | None] = set()
    for leaf in tree_leaves(tree, is_leaf=is_graph):
        if is_graph(leaf):
            return None
        if isinstance(leaf, Tensor):
            found.add(size(leaf))
    return found.pop() if len(found) == 1 else None


def count(tree: Tree) -> int:
    """How many samples a tree counts for: its :func:`size`; of graphs as many as there are in it; else one."""
    known = known_count(tree)
    return 1 if known is None else known


def known_count(tree: Tree) -> int | None:
    """As :func:`count`; None where it is a guess: tensors of different lengths, and graphs that do not say it."""
    own = size(tree)
    if own is not None:
        return own
    graphs = [leaf for leaf in tree_leaves(tree, is_leaf=is_graph) if is_graph(leaf)]
    counts = [int(graph.num_graphs) for graph in graphs if getattr(graph, "num_graphs", None) is not None]
    return max([1, *counts]) if counts else None


def rows(tree: Tree, chosen: slice | Tensor) -> Tree:
    """Some samples of a tree that can be cut: views where ``chosen`` is a slice."""
    if isinstance(tree, Tensor):
        return tree[chosen]
    return map_tensors(lambda part: part[chosen if isinstance(chosen, slice) else chosen.to(part.device)], tree)


def join(trees: Sequence[Tree]) -> Tree:
    """The samples of several trees of one form, one after the other.

    Raises:
        ValueError: Their forms differ, or the shapes of a sample do.
    """
    if len(trees) == 1:
        return trees[0]
    columns = [tensors(tree) for tree in trees]
    kinds = {tuple((part.shape[1:], part.dtype, part.device) for part in column) for column in columns}
    structures = [tree_structure(tree, is_leaf=is_graph) for tree in trees]
    if len(kinds) > 1 or any(structure != structures[0] for structure in structures):
        raise ValueError("trees of different forms cannot be joined")
    joined = {id(parts[0]): torch.cat(parts) for parts in zip(*columns, strict=True)}
    return map_tensors(lambda part: joined[id(part)], trees[0])


def cast(tree: Tree, dtype: torch.dtype | None, device: torch.device | None = None) -> Tree:
    """A tree with its floating tensors in a type, and all of them on a device; tensors that are so stay the same."""
    return map_tensors(lambda part: part.to(device, dtype if part.is_floating_point() else None), tree)


def observed(output: Any) -> list[Tensor]:
    """The floating tensors of what a model returned, in order, also of a dataclass: what two passes are compared by."""
    if isinstance(output, Tensor):
        return [output]
    found = []
    for leaf in tree_leaves(plain(output), is_leaf=is_graph):
        if isinstance(leaf, Tensor):
            found += [leaf] if leaf.is_floating_point() else []
        elif is_graph(leaf):
            found += [part for part in tensors(leaf) if part.is_floating_point()]
        elif (is_dataclass(leaf) and not isinstance(leaf, type)) or isinstance(leaf, SimpleNamespace):
            found += observed(vars(leaf))
    return found


def detached(output: Any) -> Any:
    """What a model returned, without its graph."""
    return output.detach() if isinstance(output, Tensor) else map_tensors(Tensor.detach, output)


def cloned(tree: Tree) -> Tree:
    """A tree of copies."""
    return map_tensors(torch.clone, tree)


def describe(tree: Tree) -> str:
    """Shapes and dtypes of a tree, for messages."""
    if isinstance(tree, Tensor):
        return f"{tuple(tree.shape)} {str(tree.dtype).removeprefix('torch.')}"
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key}: {describe(part)}" for key, part in tree.items()) + "}"
    if isinstance(tree, tuple | list):
        return "(" + ", ".join(map(describe, tree)) + ")"
    return type(tree).__name__
