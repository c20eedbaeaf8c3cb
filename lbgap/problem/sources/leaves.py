"""What stands in a user's batches and samples, as tensors."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lbgap.problem import trees
from lbgap.problem.trees import Tree

Path = tuple[str | int, ...]
"""Keys and places that lead to a part of a tree."""


def to_tree(batch: Any) -> Tree:
    """A batch with its mappings as dicts and its arrays as tensors, which share their memory where they can.

    Raises:
        TypeError: PyTorch has no such type, or too little that it can do with it.
    """
    if isinstance(batch, Tensor):
        return _leaf(batch)
    return tree_map(_leaf, batch, is_leaf=trees.is_graph)


def _leaf(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        if leaf.is_nested and leaf.layout != torch.jagged:
            raise TypeError("expected nested tensors of layout=torch.jagged, got one of torch.strided: make it anew")
        return leaf
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        return from_array(leaf)
    if isinstance(leaf, np.generic) and leaf.dtype.kind in "biuf":
        return leaf.item()
    return to_tree(dict(leaf)) if isinstance(leaf, Mapping) else leaf


def from_array(array: npt.NDArray[Any]) -> Tensor:
    """A tensor of a numeric array: in the same memory, unless torch cannot have it there.

    Raises:
        TypeError: PyTorch has no such type.
    """
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    if not native.flags.writeable or any(stride < 0 for stride in native.strides):
        native = native.copy()
    try:
        return torch.from_numpy(native)
    except TypeError as error:
        raise TypeError(f"expected numbers that PyTorch has, got an array of {array.dtype}: convert it") from error


def stack(samples: Sequence[Any], start: int) -> Tree:
    """Make a batch of samples of one form.

    Args:
        samples: Each in containers of any kind: tensors, arrays, numbers, lists of numbers; strings and None are kept.
        start: The index of the first of them, for messages.

    Raises:
        TypeError: A part is nothing that can be stacked.
        ValueError: Samples differ in form.
    """
    return _stacked(samples, (), start)


def _stacked(samples: Sequence[Any], path: Path, start: int) -> Tree:
    head = samples[0]
    if isinstance(head, Mapping):
        _check_alike(samples, path, start, Mapping, "keys", lambda one: sorted(map(str, one)))
        return {key: _stacked([one[key] for one in samples], (*path, key), start) for key in head}
    if isinstance(head, tuple | list) and (not path or not is_numbers(head)):
        _check_alike(samples, path, start, (tuple, list), "parts", len)
        if not path and len(head) == 2:
            names: Sequence[str | int] = ("inputs", "targets")
        else:
            names = range(len(head))
        columns = zip(*samples, strict=True)
        stacked = [_stacked(column, (*path, name), start) for name, column in zip(names, columns, strict=True)]
        return stacked if isinstance(head, list) else tuple(stacked)
    if head is None or isinstance(head, str):
        return None if head is None else list(samples)
    tensors = [_tensor(one, path, start + number) for number, one in enumerate(samples)]
    for number, one in enumerate(tensors):
        if (one.shape, one.dtype, one.device) != (tensors[0].shape, tensors[0].dtype, tensors[0].device):
            raise ValueError(
                f"expected {shown(path)} of one shape, dtype and device, got {_kind(tensors[0])} in sample {start} but "
                f"{_kind(one)} in sample {start + number}: pad, crop or convert the samples, or pass a DataLoader "
                "whose collate_fn pads them"
            )
    return torch.stack(tensors)


def _check_alike(samples: Sequence[Any], path: Path, start: int, kinds: Any, what: str, form: Any) -> None:
    for number, one in enumerate(samples):
        if not isinstance(one, kinds) or form(one) != form(samples[0]):
            got = f"{what} {form(one)}" if isinstance(one, kinds) else f"a {type(one).__name__}"
            raise ValueError(
                f"expected samples of one form, got {shown(path)} with {what} {form(samples[0])} in sample {start} but "
                f"{got} in sample {start + number}: give all the same parts"
            )


def _tensor(part: Any, path: Path, sample: int) -> Tensor:
    """A part of a sample as a tensor; whole numbers become int64, others float64."""
    if isinstance(part, Tensor):
        return part
    if isinstance(part, np.ndarray) and part.dtype.kind in "biufc":
        return from_array(part)
    if isinstance(part, numbers.Integral | np.bool_):
        return torch.tensor(int(part), device="cpu")
    if isinstance(part, numbers.Real):
        return torch.tensor(float(part), dtype=torch.float64, device="cpu")
    if isinstance(part, list) and is_numbers(part):
        try:
            return from_array(np.asarray(part))
        except ValueError:
            raise ValueError(
                f"sample {sample}: expected {shown(path)} as rows of one length, got lists of several: pad them"
            ) from None
    remedy = "convert it to a tensor in the data set"
    if trees.is_graph(part):
        remedy = "pass a loader that joins them, such as torch_geometric.loader.DataLoader(dataset, batch_size=32)"
    raise TypeError(
        f"sample {sample}: expected {shown(path)} as tensors, arrays or numbers, got a {type(part).__name__}: {remedy}"
    )


def is_numbers(part: Any) -> bool:
    """Whether it is a list, or a list of lists, of nothing but numbers."""
    while isinstance(part, list):
        if not part:
            return True
        part = part[0]
    return isinstance(part, numbers.Real | np.bool_)


def parts(tree: Tree, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All leaves of a tree with what leads to them; of a graph its tensors, by name where it has names.

    A list of nothing but numbers is one leaf.
    """
    if isinstance(tree, Mapping):
        for key, part in tree.items():
            yield from parts(part, (*path, key))
    elif isinstance(tree, tuple | list) and not (isinstance(tree, list) and is_numbers(tree)):
        for place, part in enumerate(tree):
            yield from parts(part, (*path, place))
    elif trees.is_graph(tree):
        named = tree.to_dict() if callable(getattr(tree, "to_dict", None)) else None
        if isinstance(named, dict):
            yield from ((one, part) for one, part in parts(named, path) if isinstance(part, Tensor))
        else:
            yield from ((path, part) for part in trees.tensors(tree))
    elif isinstance(tree, Tensor | list) or trees.tensors(tree) == []:
        yield path, tree
    else:  # a container of another kind that torch knows
        yield from ((path, part) for part in trees.tensors(tree))


def shown(path: Path) -> str:
    """A path in a user's batch as a message names it: ``inputs['mask'][0]``, ``'mask'[0]`` or ``part 1[0]``."""
    if not path:
        return "samples"
    first, *rest = path
    if first in ("inputs", "targets"):
        return located(path)
    return located((f"part {first + 1}" if isinstance(first, int) else repr(first), *rest))


def located(path: Path) -> str:
    """A path whose first step is a name of its own, such as ``inputs``, as a message names it."""
    return str(path[0]) + "".join(f"[{step!r}]" for step in path[1:])


def _kind(part: Tensor) -> str:
    return f"{tuple(part.shape)} {part.dtype} {part.device}"
