"""Data as training takes them: inputs and targets, two tensors in memory."""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor

from lbgap.problem.batch import Batch
from lbgap.problem.hold import hold, take
from lbgap.problem.sound import checked
from lbgap.problem.splits import Data, Split
from lbgap.problem.trees import Tree

DataLike: TypeAlias = Any
"""Whatever :func:`as_tensors` takes."""


def as_tensors(data: DataLike) -> tuple[Split, int | None]:
    """Hold the user's data in memory as two tensors, in a fixed order.

    A pair of tensors, and a ``TensorDataset`` of two, are taken as they are: no copy. Everything else is read once, and
    its first samples once more before. The global random state is left as it was, and so is that of the loader's
    generator; what draws at random (augmentation) is frozen as this one reading finds it.

    Args:
        data: A pair ``(inputs, targets)`` of tensors or arrays ``(n, ...)``; a map-style ``Dataset`` of such pairs of
            samples; a ``DataLoader``, whose data set is read in order; a function that returns an iterator of batches,
            or batches to iterate over.

    Returns:
        Inputs and targets, and the batch size of the loader (``None`` if there is none). Integer targets
        become int64, but booleans stay; floating ones keep their dtype, and Python floats become float64 as in
        ``default_collate``.

    Raises:
        TypeError: ``data``, or a batch of it, is not a pair of tensors.
        ValueError: No samples, lengths, shapes or devices that disagree, NaN or infinite values, or a loader
            that repeats samples or orders them in a way of its own.
        MemoryError: They do not fit into memory.
    """
    source = take(data)
    samples = hold(source, _pair, [], streams=False)
    if samples.table is None:
        _refuse_pieces([*samples.chunks()])
    assert samples.table is not None
    return Split(*samples.table), source.batch_size


def _pair(tree: Tree) -> Batch:
    """A batch as inputs and targets.

    Raises:
        TypeError: It is no pair of tensors.
    """
    if not isinstance(tree, tuple | list) or len(tree) != 2:
        got = f"a {type(tree).__name__}" + (f" of {len(tree)}" if isinstance(tree, tuple | list | dict) else "")
        raise TypeError(f"data: expected a pair (inputs, targets), got {got}: pass two tensors, inputs first")
    for role, part, remedy in zip(("inputs", "targets"), tree, (_ONE_INPUT, "make it one"), strict=True):
        if not isinstance(part, Tensor):
            raise TypeError(f"data: expected {role} as one tensor, got a {type(part).__name__}: {remedy}")
        if not part.dim():
            raise ValueError(f"data: expected {role} of shape (n, ...), got a single number: add a dimension")
    return Batch(*tree)


_ONE_INPUT = "wrap the model so that it takes one tensor"


def _refuse_pieces(pieces: list[Batch]) -> None:
    """Say which batches cannot be joined."""
    kinds = [[f"{tuple(part.shape[1:])} {part.dtype} {part.device}" for part in piece] for piece in pieces]
    for number, kind in enumerate(kinds):
        for role, first, other in zip(("inputs", "targets"), kinds[0], kind, strict=True):
            if first != other:
                raise ValueError(
                    f"expected {role} of one shape, dtype and device, got {first} in batch 0 but {other} in batch "
                    f"{number}: pad, crop or convert the samples"
                )


__all__ = ["Data", "DataLike", "Split", "as_tensors", "checked"]
