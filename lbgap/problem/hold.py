"""What a user passes as data, as samples in a fixed order that every pass reads alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lbgap.problem.batch import Batch
from lbgap.problem.call import Call
from lbgap.problem.samples import as_tensors
from lbgap.problem.stored import Samples, Table
from lbgap.problem.trees import Tree


@dataclass(frozen=True)
class Ready:
    """A batch that has been taken apart already, and how it enters the model.

    Attributes:
        batch: Samples.
        call: What took it apart.
    """

    batch: Batch
    call: Call


class Source:
    """What a user has, as batches in a fixed order.

    Attributes:
        batch_size: That of a loader; None if there is none.
        in_memory: The device of data that are tensors in memory, and so are where the user wants them; else None.
        notes: Sentences on what is read otherwise than it was given.
    """

    def __init__(self, data: Any) -> None:
        split, self.batch_size = as_tensors(data)
        self._tree: Tree = (split.inputs, split.targets)
        self.in_memory: torch.device | None = split.inputs.device if isinstance(data, tuple | list) else None
        self.notes: list[str] = []

    def first(self) -> Tree:
        """The first batch, of plain containers and tensors."""
        return self._tree


def take(data: Any) -> Source:
    """Find out what a user's data are; reads one batch at most."""
    return Source(data)


def hold(source: Source, split: Callable[[Tree], Batch], notes: list[str]) -> Samples:
    """Read all samples, into memory where they fit.

    Args:
        source: What the user has.
        split: Takes a batch apart into inputs and targets.
        notes: Takes sentences on what was done.
    """
    batch = split(source._tree)
    return Table(batch, batch.tensors()[0].device)
