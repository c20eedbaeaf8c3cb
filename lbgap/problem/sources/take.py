"""What kind of data a user passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lbgap.problem import trees
from lbgap.problem.sources.base import Source
from lbgap.problem.sources.items import Items, Iterated
from lbgap.problem.sources.iterables import Factory, Once, Repeated, Stateful
from lbgap.problem.sources.loaders import from_loader
from lbgap.problem.sources.memory import Memory, is_memory
from lbgap.problem.splits import Data


def take(data: Any) -> Source:
    """Find out what a user's data are, and in which order they can be read; reads nothing.

    Args:
        data: Tensors or arrays, alone or in tuples, lists and mappings; a graph; a map-style data set, a
            ``DataLoader``, an iterable data set; a function that returns an iterator of batches, or batches to iterate
            over.

    Raises:
        TypeError: It is none of these, or has a part that is no tensor.
        ValueError: Its parts are not of one length, or its order is not fixed; the message says what to do.
    """
    if isinstance(data, Data):
        raise TypeError("expected one split, got a Data with train and test: pass data.train or data.test")
    if isinstance(data, Mapping) and data and all(_has_items(part) for part in data.values()):
        raise TypeError(
            f"expected one data set, got a {type(data).__name__} of {', '.join(map(repr, data))}: pass one of them"
        )
    if isinstance(data, DataLoader):
        return from_loader(data)
    if type(data) is TensorDataset:
        return Memory(data.tensors, placed=False)
    if _gives_samples(data):
        return Iterated(data)
    if isinstance(data, Dataset):
        return _items(data)
    if is_memory(data):
        return Memory(data)
    if isinstance(data, str | bytes | type | nn.Module):
        raise TypeError(_refused(data))
    if _has_items(data):
        return Items(data)
    return _of_batches(data)


def _gives_samples(data: Any) -> bool:
    """Whether the items of an iterable are samples: of torch's ``IterableDataset``, and that of Hugging Face."""
    return isinstance(data, IterableDataset) or any(
        base.__name__ == "IterableDataset" and base.__module__.split(".")[0] == "datasets"
        for base in type(data).__mro__
    )


def _has_items(data: Any) -> bool:
    """Whether something has a length and items by index, as map-style data sets have."""
    return (
        hasattr(data, "__len__")
        and hasattr(data, "__getitem__")
        and not is_memory(data)
        and not trees.is_graph(data)
        and not isinstance(data, str | bytes | type | nn.Module)
    )


def _items(data: Dataset[Any]) -> Source:
    if not hasattr(data, "__len__"):
        name = type(data).__name__
        raise TypeError(
            f"expected a Dataset with a length, got {name} without: define __len__, or pass a function that returns "
            "an iterator of batches"
        )
    return Items(data)


def _of_batches(data: Any) -> Source:
    """What is iterated over, or called to be so."""
    if not hasattr(data, "__iter__"):
        if callable(data):
            return Factory(data)
        raise TypeError(_refused(data))
    if hasattr(data, "state_dict") and hasattr(data, "load_state_dict"):
        return Stateful(data)
    if iter(data) is data:
        return Once(data)
    return Repeated(data)


def _refused(data: Any) -> str:
    return (
        f"expected data, got {data.__name__ if isinstance(data, type) else f'a {type(data).__name__}'}: pass (inputs, "
        "targets), a dict of tensors, a Dataset, a DataLoader, or a function that returns an iterator of batches"
    )
