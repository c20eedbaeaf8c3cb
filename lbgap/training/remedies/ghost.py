"""Batch normalisation over small parts of a large batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lbgap.training.batches import split_batches
from lbgap.training.remedies.base import Remedy, Role, Task


@dataclass(frozen=True)
class GhostBatchNorm(Remedy):
    """Each batch-norm layer normalises parts of the batch by their own statistics (Hoffer et al. 2017, alg. 1).

    The running statistics take up one part after the other, with the momentum of the layer. The model itself is not
    changed: after training its layers are what they were.

    Attributes:
        size: Samples in a part, 2 or more; their 128 by default. A single sample left over joins the part before.
    """

    size: int = 128

    name: ClassVar[str] = "ghost"
    roles: ClassVar[tuple[Role, ...]] = (Role.NORM,)

    def __post_init__(self) -> None:
        """Check the size.

        Raises:
            TypeError: It is not an integer.
            ValueError: It is less than 2.
        """
        self._whole("size", 2)

    def check(self, task: Task) -> None:
        """As :meth:`Remedy.check`."""
        if not task.batch_norms():
            raise ValueError("ghost changes batch-norm, of which the model has none: leave it out")

    @contextmanager
    def surroundings(self, task: Task) -> Iterator[None]:
        """As :meth:`Remedy.surroundings`."""
        layers = task.batch_norms()
        own = [vars(layer).get("forward") for layer in layers]
        try:
            for layer in layers:
                vars(layer)["forward"] = partial(self._in_parts, layer.forward)
            yield
        finally:
            for layer, forward in zip(layers, own, strict=True):
                del vars(layer)["forward"]
                if forward is not None:
                    vars(layer)["forward"] = forward

    def _in_parts(self, forward: Any, inputs: Tensor) -> Tensor:
        return torch.cat([forward(part) for part in split_batches(inputs, self.size)])
