"""Samples that cannot be joined: batches with borders of their own, in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from lbgap.problem.batch import Batch
from lbgap.problem.stored import Cuts, Samples, cut, fresh, placing, uploaded
from lbgap.problem.trees import Tree
from lbgap.system.files import digest

FIRST = 32  # batches among which the largest becomes the pool
UNCUT = (
    "a share of the samples needs batches that can be cut, got batches whose parts differ in length, or graphs: use "
    "all samples"
)


class Pieces(Samples):
    """Batches, each of which is cut where it can be: padded each for itself, or graphs."""

    def __init__(self, pieces: Sequence[Batch], device: torch.device, *, is_streamed: bool = False) -> None:
        """Take them as they are.

        Args:
            pieces: One or more, in order; for a stream in pinned memory.
            device: Where they are used.
            is_streamed: Whether they are copied there in each pass.
        """
        self._pieces, self.is_streamed, self._device = list(pieces), is_streamed, device
        self._cuts = Cuts(self._pieces)
        self.size = sum(piece.size for piece in self._pieces)
        first = self._pieces[:FIRST]
        self.pool = max([piece for piece in first if piece.cuttable] or first, key=lambda piece: piece.size)
        self._cuttable = all(piece.cuttable for piece in self._pieces)

    @property
    def cuttable(self) -> bool:
        """Whether all batches can be cut."""
        return self._cuttable

    def chunks(self) -> Iterator[Batch]:
        """Each batch."""
        return map(fresh, self._pieces)

    def targets(self) -> Iterator[Tree]:
        """As :meth:`Samples.targets`, those of the pool first."""
        others = (piece.targets for piece in self._pieces if piece is not self.pool)
        return itertools.chain([self.pool.targets], others)

    def batches(self, size: int | None) -> Iterator[Batch]:
        """As :meth:`Samples.batches`; what cannot be cut comes as it is."""
        if not self.is_streamed:
            return self._cuts.batches(size)
        return (micro for piece in uploaded(iter(self._pieces), self._device) for micro in cut(piece, size))

    def part(self, chosen: Tensor) -> Samples:
        """As :meth:`Samples.part`, in ascending order.

        Raises:
            ValueError: A batch cannot be cut.
        """
        return Pieces([*chosen_rows(self._pieces, chosen)], self._device).placed(self._device, None)

    def placed(self, device: torch.device, dtype: torch.dtype | None) -> Self:
        """As :meth:`Samples.placed`."""
        tensors = (part for piece in self._pieces for part in piece.tensors())
        place, fits = placing(tensors, device, dtype)
        return type(self)([piece.map(place) for piece in self._pieces], device, is_streamed=not fits)

    def digest(self) -> str:
        """As :meth:`Samples.digest`."""
        return digest(part for piece in self._pieces for part in piece.stored())


def chosen_rows(batches: Iterator[Batch] | Sequence[Batch], chosen: Tensor) -> Iterator[Batch]:
    """Some samples of batches, those of each batch together, in ascending order.

    Args:
        batches: All samples, in order.
        chosen: Their indices, ``(samples,)`` int64 on the CPU; one that stands twice comes twice.

    Raises:
        ValueError: A batch cannot be cut.
    """
    order, start, begin = chosen.sort().values, 0, 0
    for batch in batches:
        if begin == len(order):
            return
        if not batch.cuttable:
            raise ValueError(UNCUT)
        end = int(torch.searchsorted(order, start + batch.size))
        if end > begin:
            yield batch.rows(order[begin:end] - start)
        start, begin = start + batch.size, end
