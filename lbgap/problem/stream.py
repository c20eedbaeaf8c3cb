"""Samples that do not fit into memory: read from their source again in each pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, Self

import torch
from torch import Tensor

from lbgap.problem.ahead import ahead
from lbgap.problem.batch import Batch
from lbgap.problem.gather import Gathered, form, regrouped
from lbgap.problem.pieces import Pieces, chosen_rows
from lbgap.problem.sound import settled, sound
from lbgap.problem.sources.base import EMPTY, Reading, Source
from lbgap.problem.stored import Samples, Table, cut, uploaded
from lbgap.problem.survey import Column, Pool, checksum
from lbgap.problem.trees import Tree
from lbgap.system import device as hardware
from lbgap.system.files import digest

NOTE = "the data do not fit into memory and are read again in each pass"
DREW = "random numbers are drawn while the data are read: in each pass from the same seed"
FROZEN = "the data draw at random (augmentation, masking): each pass draws them from the same seed"
GROUP_BYTES = 8 * 2**20  # of a batch that is joined from several for no more than speed


class Stream(Samples):
    """Samples that each pass reads again, in one thread that is a few batches ahead.

    A first pass counts them and takes a checksum of each batch, which every later pass compares.
    """

    is_streamed = True

    def __init__(self, source: Source, split: Callable[[Tree], Batch], notes: list[str]) -> None:
        """Read all of it once.

        Args:
            source: Can be read again.
            split: Takes a batch apart into inputs and targets.
            notes: Takes sentences on what was found.

        Raises:
            ValueError: There are no samples, or a batch is not :func:`~lbgap.problem.sound.sound`.
        """
        self._source, self._split = source, split
        self._device = torch.device("cpu")
        self._dtype: torch.dtype | None = None
        self._sums: list[int] = []  # checksums of the source's batches
        self._sizes: list[int] = []
        self.size, self._bytes, self._cuttable = 0, 0, True
        forms: list[Any] = []  # the first one, and another if there is one
        pool, targets = Pool(), Column()
        reading = source.read()
        with closing(reading), torch.no_grad():
            same = True
            for number, tree in enumerate(reading):
                same = same and (number > 0 or source.is_first(tree))
                batch = sound(split(tree), f"batch {number}", self.size)
                self._sums.append(checksum(batch))
                self._bytes += batch.nbytes
                self.size += batch.size
                self._sizes.append(batch.size)
                self._cuttable = self._cuttable and batch.cuttable
                if len(forms) < 2 and (own := form(batch)) not in forms:
                    forms.append(own)
                pool.add(batch)
                targets.add(batch.targets)
            # What draws in this process is read in the caller's thread, with the random state put aside.
            self._draws = reading.drew
        if not self.size:
            raise ValueError(EMPTY)
        self._joins = self._cuttable and len(forms) == 1
        self.borders = tuple(self._sizes) if source.has_borders else ()
        self.pool, self._targets = pool.joined(), targets.pieces()
        notes.append(NOTE)
        if not same or self._draws:
            notes.append(FROZEN if not same else DREW)

    @property
    def kept(self) -> str:
        """As :attr:`Samples.kept`."""
        return "streamed from the source"

    @property
    def cuttable(self) -> bool:
        """Whether all batches can be cut."""
        return self._cuttable

    @property
    def joins(self) -> bool:
        """As :attr:`Samples.joins`: where all batches have one form."""
        return self._joins

    def chunks(self) -> Iterator[Batch]:
        """Each batch of one reading, on the host."""
        return self._read()

    def sizes(self) -> list[int]:
        """As :meth:`Samples.sizes`, which the first pass found."""
        return list(self._sizes)

    def targets(self) -> Iterator[Tree]:
        """As :meth:`Samples.targets`; of one reading, where they are too large to be kept."""
        return super().targets() if self._targets is None else iter(self._targets)

    def batches(self, size: int | None) -> Iterator[Batch]:
        """As :meth:`Samples.batches`: where all have one form those of a table, unless they would be large."""
        with closing(self._read(pinned=self._device.type == "cuda")) as found:
            there = uploaded(found, self._device) if self._device.type == "cuda" else found
            if size is not None and self._joins and (self.exact or size * self._bytes <= GROUP_BYTES * self.size):
                yield from regrouped(there, size)
                return
            for batch in there:
                yield from cut(batch, size)

    def part(self, chosen: Tensor) -> Samples:
        """As :meth:`Samples.part`: one reading, of which these samples are kept."""
        kept = Gathered()
        with closing(self._read()) as found:
            for batch in chosen_rows(found, chosen):
                kept.add(batch)
        samples = kept.samples()
        if isinstance(samples, Pieces):
            return samples.placed(self._device, None)
        assert isinstance(samples, Table)
        back = chosen.argsort().argsort()
        return Table(samples.pool.rows(back), self._device).placed(self._device, None)

    def placed(self, device: torch.device, dtype: torch.dtype | None) -> Self:
        """As :meth:`Samples.placed`."""
        other = copy.copy(self)
        other._device, other._dtype = device, dtype
        other.pool = self.pool.cast(dtype, device)
        if self._targets is not None:
            other._targets = [
                part.to(dtype or part.dtype) if part.is_floating_point() else part for part in self._targets
            ]
        return other

    def in_own_borders(self) -> Self:
        """The same, in the batches of the source."""
        other = copy.copy(self)
        other._joins = False
        return other

    def digest(self) -> str:
        """As :meth:`Samples.digest`."""
        with closing(self._read()) as found:
            return digest(part for batch in found for part in batch.stored())

    def _read(self, *, pinned: bool = False) -> Generator[Batch]:
        """One reading: batches on the host, floating values in the type that is computed in."""
        reading = self._source.read()
        reading.guarded = self._draws
        checked = self._checked(reading, pinned)
        with closing(reading), closing(checked if self._draws else ahead(checked)) as batches:
            yield from batches

    def _checked(self, reading: Reading, pinned: bool) -> Generator[Batch]:
        """Batches as they are computed with, each compared with what the first pass read there.

        Raises:
            ValueError: One of them is another.
        """
        count = 0

        def own(part: Tensor) -> Tensor:
            """A copy, as the source may fill the same memory with its next batch."""
            wanted = self._dtype if part.is_floating_point() else None
            part = part.detach()
            if not pinned:
                return part.to("cpu", wanted, copy=True)
            with torch.cuda.device(self._device):  # a thread begins with another
                return hardware.pinned(part, wanted)

        for tree in reading:
            with torch.no_grad():
                batch = settled(self._split(tree))
                if count >= len(self._sums) or checksum(batch) != self._sums[count]:
                    raise ValueError(_differs(f"first in batch {count}"))
                count += 1
                mine = batch.map(own)
            del tree, batch
            yield mine
        if count < len(self._sums):
            raise ValueError(_differs(f"{count} batches where there were {len(self._sums)}"))


def _differs(where: str) -> str:
    return f"the data differ at each reading, {where}: freeze them, or seed what draws inside of the source"
