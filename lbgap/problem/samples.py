"""The one door for the user's own data: whatever is passed becomes two tensors in memory."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, TensorDataset


class Split(NamedTuple):
    """Samples held in memory.

    Attributes:
        inputs: ``(n, ...)``.
        targets: ``(n, ...)``; int64 class indices, booleans, or floating values for regression.
    """

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Data:
    """A named data set with its training and test samples.

    Attributes:
        name: What a result records.
        train: The training samples.
        test: The test samples, or ``None`` if there are none.
        classes: Number of classes; 0 when the targets are floating (regression).
    """

    name: str
    train: Split
    test: Split | None
    classes: int

    @property
    def features(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def outputs(self) -> int:
        """How many numbers a network must return for a sample: one a class, or as many as a target has."""
        return self.classes or self.train.targets[0].numel()

    @property
    def loss(self) -> str:
        """The loss that goes with the targets: ``"cross_entropy"``, or ``"mse"`` for regression."""
        return "cross_entropy" if self.classes else "mse"


DataLike: TypeAlias = tuple[Tensor, Tensor] | list[Tensor] | Dataset[Any] | DataLoader[Any]


def as_tensors(data: DataLike) -> tuple[Split, int | None]:
    """Hold the user's data in memory as two tensors, in a fixed order.

    A pair of tensors, and a ``TensorDataset`` of two, are taken as they are: no copy. Everything else is
    read once. The global random state is left as it was, and so is that of the loader's generator; a
    dataset that draws at random (augmentation) is frozen as this one reading finds it.

    Args:
        data: A pair ``(inputs, targets)`` of tensors ``(n, ...)``, a map-style ``Dataset`` of such pairs of
            samples, or a ``DataLoader`` that reads one in order.

    Returns:
        Inputs and targets, and the batch size of the loader (``None`` if there is none). Integer targets
        become int64, but booleans stay; floating ones keep their dtype, and Python floats become float64 as in
        ``default_collate``.

    Raises:
        TypeError: ``data``, or an item of it, is not a pair of tensors.
        ValueError: No samples, lengths, shapes or devices that disagree, NaN or infinite values, or a loader
            that would shuffle or drop samples.
    """
    if isinstance(data, Data):
        raise TypeError("expected one split, got a Data with train and test: pass data.train or data.test")
    if isinstance(data, DataLoader):
        batch_size = _ordered_batch_size(data)
        return checked(_read_loader(data)), batch_size
    if isinstance(data, IterableDataset):
        raise TypeError(_ITERABLE)
    if type(data) is TensorDataset and len(data.tensors) == 2:
        return checked(Split(*data.tensors)), None
    if isinstance(data, Dataset):
        return checked(_read_dataset(data)), None
    return checked(_pair(data, "data")), None


_ITERABLE = (
    "expected data with a length and an order, got an IterableDataset: read it yourself and pass a pair of "
    "tensors (inputs, targets)"
)
_FIXED_ORDER = "results would not repeat: pass shuffle=False, or loader.dataset"


def _ordered_batch_size(loader: DataLoader[Any]) -> int:
    """The batch size of a loader that reads all of its dataset in order; a refusal of any other."""
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(_ITERABLE)
    batches: object = loader.batch_sampler
    if batches is None:
        raise ValueError(
            "expected a loader that makes batches, got batch_size=None: pass a batch_size, or loader.dataset"
        )
    if type(batches) is not BatchSampler:
        raise ValueError(
            f"expected a loader with the standard BatchSampler, got {type(batches).__name__}: {_FIXED_ORDER}"
        )
    sampler, samples = batches.sampler, _length(loader.dataset)
    if type(sampler) is not SequentialSampler:
        raise ValueError(f"expected a loader that reads in order, got a {type(sampler).__name__}: {_FIXED_ORDER}")
    if len(sampler) != samples:
        raise ValueError(
            f"expected a loader that reads all {samples} samples, got a sampler of {len(sampler)}: "
            "pass loader.dataset, or a Subset of it"
        )
    if batches.drop_last and samples % batches.batch_size:
        raise ValueError(
            f"expected a loader that reads all {samples} samples, got drop_last=True, which drops "
            f"{samples % batches.batch_size}: pass drop_last=False, or loader.dataset"
        )
    return batches.batch_size


def _length(dataset: Dataset[Any]) -> int:
    if not hasattr(dataset, "__len__"):
        name = type(dataset).__name__
        raise TypeError(f"expected a Dataset with a length, got {name} without: define __len__, or pass tensors")
    return len(dataset)


def _read_loader(loader: DataLoader[Any]) -> Split:
    # A loader draws a seed for its workers, from its own generator or else the global one.
    before = None if loader.generator is None else loader.generator.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            # Batches from worker processes lie in shared memory, an open file each: copy to close it.
            return _collect(loader, "batch", copy=loader.num_workers > 0)
    finally:
        if before is not None:
            loader.generator.set_state(before)


def _read_dataset(dataset: Dataset[Any]) -> Split:
    with torch.random.fork_rng(devices=[]):
        return _collect((dataset[index] for index in range(_length(dataset))), "sample")


def _collect(items: Iterable[Any], unit: str, copy: bool = False) -> Split:
    """Join samples, or batches of them, into two tensors."""
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    for number, item in enumerate(items):
        where = f"{unit} {number}"
        pair = _pair(item, where)
        if unit == "sample":
            pair = Split(pair.inputs[None], pair.targets[None])
        _check_lengths(pair, where)
        for role, part, parts in (("inputs", pair.inputs, inputs), ("targets", pair.targets, targets)):
            if parts and _kind(part) != _kind(parts[0]):
                raise ValueError(
                    f"expected {role} of one shape, dtype and device, got {_kind(parts[0])} in {unit} 0 but "
                    f"{_kind(part)} in {where}: pad, crop or convert the samples"
                )
            parts.append(part.clone() if copy else part)
    if not inputs:
        raise ValueError(_EMPTY)
    return Split(torch.cat(inputs), torch.cat(targets))


_EMPTY = "expected at least one sample, got none: pass data that is not empty"


def _kind(part: Tensor) -> str:
    return f"{tuple(part.shape[1:])} {part.dtype} {part.device}"


def _pair(item: object, where: str) -> Split:
    """What one item holds, as two tensors; numbers are taken for targets."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        got = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, (tuple, list, dict)) else "")
        raise TypeError(f"{where}: expected a pair (inputs, targets), got {got}: pass two tensors, inputs first")
    inputs, targets = item
    for role, part in (("inputs", inputs), ("targets", targets)):
        if isinstance(part, np.ndarray):
            raise TypeError(f"{where}: expected {role} as a tensor, got a numpy.ndarray: use torch.from_numpy")
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"{where}: expected inputs as one tensor, got a {type(inputs).__name__}: "
            "wrap the model so that it takes one tensor"
        )
    if isinstance(targets, numbers.Integral):
        targets = torch.tensor(int(targets), device=inputs.device)
    elif isinstance(targets, numbers.Real):
        targets = torch.tensor(float(targets), dtype=torch.float64, device=inputs.device)
    if not isinstance(targets, Tensor):
        raise TypeError(f"{where}: expected targets as one tensor, got a {type(targets).__name__}: make it one")
    return Split(inputs, targets)


def _check_lengths(split: Split, where: str, roles: tuple[str, str] = ("inputs", "targets")) -> None:
    for role, part in zip(roles, split, strict=True):
        if part.dim() == 0:
            raise ValueError(f"{where}: expected {role} of shape (n, ...), got a single number: add a dimension")
    if len(split.inputs) != len(split.targets):
        raise ValueError(
            f"{where}: expected as many {roles[1]} as {roles[0]}, got {len(split.inputs)} {roles[0]} and "
            f"{len(split.targets)} {roles[1]}: pass one target per sample"
        )


def checked(split: Split, roles: tuple[str, str] = ("inputs", "targets")) -> Split:
    """Refuse what no measure can use; make integer targets int64, but for booleans."""
    _check_lengths(split, "data", roles)
    inputs, targets = split
    if len(inputs) == 0:
        raise ValueError(_EMPTY)
    if inputs.device != targets.device:
        raise ValueError(
            f"expected {roles[0]} and {roles[1]} on one device, got {inputs.device} and {targets.device}: "
            "move them with .to(device)"
        )
    for role, part in zip(roles, split, strict=True):
        if (bad := _first_not_finite(part)) is not None:
            raise ValueError(f"expected finite {role}, got NaN or infinity, first in sample {bad}: repair or remove it")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype in (torch.int64, torch.bool):
        return split
    return Split(inputs, targets.long())


def _first_not_finite(part: Tensor) -> int | None:
    """The index of the first sample with a NaN or an infinity, without a mask as large as the data."""
    if part.numel() == 0 or not (part.is_floating_point() or part.is_complex()):
        return None
    flat = (torch.view_as_real(part.detach()) if part.is_complex() else part.detach()).reshape(len(part), -1)
    low, high = flat.aminmax()
    if torch.isfinite(low) and torch.isfinite(high):
        return None
    return int(torch.isfinite(flat).all(1).logical_not().nonzero()[0])
