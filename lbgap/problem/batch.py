"""Samples that are evaluated together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lbgap.problem import trees
from lbgap.problem.trees import Tree


class Batch:
    """What the model is called with, and what the loss compares its output with.

    Both are trees of tensors, which may share some of them. Where a batch can be cut, one index of the first dimension
    of all of them is a sample.

    Attributes:
        inputs: What enters the model: ``(batch, ...)``, or a tree of such tensors.
        targets: What the loss takes beside the output: likewise.
        size: Number of samples.
        cuttable: Whether it can be cut into smaller ones.
    """

    __slots__ = ("cuttable", "inputs", "size", "targets")

    def __init__(self, inputs: Tree, targets: Tree) -> None:
        """Take both as they are."""
        self.inputs, self.targets = inputs, targets
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor) and trees.size(inputs) is not None:
            self.size, self.cuttable = len(inputs), True
        else:
            size = trees.size((inputs, targets))
            self.cuttable = size is not None
            self.size = trees.count((inputs, targets)) if size is None else size

    def __iter__(self) -> Iterator[Tree]:
        """Inputs, then targets."""
        yield self.inputs
        yield self.targets

    def tensors(self) -> list[Tensor]:
        """All of its tensors, each once."""
        return trees.tensors((self.inputs, self.targets))

    def stored(self) -> list[Tensor]:
        """The dense tensors that hold all of its values."""
        return [part for tensor in self.tensors() for part in trees.stored(tensor)]

    @property
    def nbytes(self) -> int:
        """Bytes that its values take."""
        return sum(map(trees.nbytes, self.tensors()))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """A batch of something made of each tensor; what inputs and targets share they share afterwards."""
        if isinstance(self.inputs, Tensor) and isinstance(self.targets, Tensor):
            return Batch(function(self.inputs), function(self.targets))
        return Batch(*trees.map_tensors(function, (self.inputs, self.targets)))

    def rows(self, chosen: slice | Tensor) -> Batch:
        """Some of the samples, of a batch that can be cut: views where ``chosen`` is a slice."""
        if isinstance(chosen, slice):
            return self.map(lambda part: part[chosen])
        return self.map(lambda part: part[chosen.to(part.device)])

    def cast(self, dtype: torch.dtype | None, device: torch.device | None = None) -> Batch:
        """The same with floating values in a type, on a device."""
        return self.map(lambda part: part.to(device, dtype if part.is_floating_point() else None))

    def clone(self) -> Batch:
        """A copy, which model and loss may overwrite."""
        return self.map(torch.clone)
