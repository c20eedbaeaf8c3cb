"""Samples that lie in memory as two tensors: what is trained on, and what a named data set has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


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
