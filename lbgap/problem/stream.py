"""Samples that do not fit into memory: read from their source again in each pass."""

from __future__ import annotations

import copy
import hashlib
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Self

import torch
from torch import Tensor

from lbgap.problem import trees
from lbgap.problem.ahead import ahead
from lbgap.problem.batch import Batch
from lbgap.problem.gather import Gathered, form
from lbgap.problem.pieces import Pieces, chosen_rows, cut, uploaded
from lbgap.problem.sound import settled, sound
from lbgap.problem.sources.base import EMPTY, Reading, Source
from lbgap.problem.stored import Samples, Table
from lbgap.problem.trees import Tree
from lbgap.system import device as hardware

NOTE = "the data do not fit into memory and are read again in each pass"
FROZEN = "the data draw at random (augmentation, masking): each pass draws them from the same seed"
TARGET_BYTES = 32 * 2**20  # of targets that are kept, as they are asked for alone
POOL_SAMPLES, POOL_BYTES = 1024, 64 * 2**20
SPREAD = 16  # later batches that have a share in the pool
BLOCKS, BLOCK_BYTES = 32, 2048  # of each tensor, that its checksum is of


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
        self._sums: list[int] = []
        self.size, self._cuttable = 0, True
        self._targets: list[Tree] | None = []
        left, pool = TARGET_BYTES, _Pool()
        reading = source.read()
        with closing(reading), torch.no_grad():
            same = True
            for number, tree in enumerate(reading):
                same = same and (number > 0 or source.is_first(tree))
                batch = sound(split(tree), f"batch {number}", self.size)
                self._sums.append(checksum(batch))
                self.size += batch.size
                self._cuttable = self._cuttable and batch.cuttable
                pool.add(batch)
                left -= sum(part.nbytes for part in trees.tensors(batch.targets))
                if left < 0:
                    self._targets = None
                elif self._targets is not None:
                    self._targets.append(
                        trees.map_tensors(lambda part: part.detach().to("cpu", copy=True), batch.targets)
                    )
            # What draws in this process is read in the caller's thread, with the random state put aside.
            self._draws = reading.drew
        if not self.size:
            raise ValueError(EMPTY)
        self.pool = pool.joined()
        notes.append(NOTE)
        if not same:
            notes.append(FROZEN)

    @property
    def kept(self) -> str:
        """As :attr:`Samples.kept`."""
        return "streamed from the source"

    @property
    def cuttable(self) -> bool:
        """Whether all batches can be cut."""
        return self._cuttable

    def chunks(self) -> Iterator[Batch]:
        """Each batch of one reading, on the host."""
        return self._read()

    def targets(self) -> Iterator[Tree]:
        """As :meth:`Samples.targets`; of one reading, where they are too large to be kept."""
        return super().targets() if self._targets is None else iter(self._targets)

    def batches(self, size: int | None) -> Iterator[Batch]:
        """As :meth:`Samples.batches`."""
        with closing(self._read(pinned=self._device.type == "cuda")) as found:
            there = uploaded(found, self._device) if self._device.type == "cuda" else found
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
            return samples.on(self._device)
        assert isinstance(samples, Table)
        back = chosen.argsort().argsort()
        return Table(samples.pool.rows(back), self._device).placed(self._device, torch.float32, cast=False)

    def placed(self, device: torch.device, dtype: torch.dtype) -> Self:
        """As :meth:`Samples.placed`."""
        other = copy.copy(self)
        other._device, other._dtype = device, dtype
        other.pool = self.pool.cast(dtype, device)
        if self._targets is not None:
            other._targets = [trees.cast(targets, dtype) for targets in self._targets]
        return other

    def digest(self) -> str:
        """As :meth:`Samples.digest`."""
        state = hashlib.sha256()
        with closing(self._read()) as found:
            for batch in found:
                for part in batch.tensors():
                    state.update(f"{part.dtype} {tuple(part.shape)};".encode())
                    state.update(_bytes(part).numpy().data)
        return state.hexdigest()

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
            return hardware.pinned(part, wanted) if pinned else part.to("cpu", wanted, copy=True)

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


def checksum(batch: Batch) -> int:
    """A number that differs between batches that differ in shape, type or one of some blocks of their bytes."""
    total = batch.size
    for part in batch.tensors():
        total = zlib.crc32(f"{part.dtype} {tuple(part.shape)}".encode(), total)
        flat = _bytes(part).numpy()
        if flat.size <= BLOCKS * BLOCK_BYTES:
            total = zlib.crc32(flat.data, total)
            continue
        last = flat.size - BLOCK_BYTES
        for block in range(BLOCKS):
            start = last * block // (BLOCKS - 1)
            total = zlib.crc32(flat[start : start + BLOCK_BYTES].data, total)
    return total


def _bytes(part: Tensor) -> Tensor:
    """The bytes of a tensor, ``(bytes,)`` uint8 on the host; no copy where it lies there in one piece."""
    return part.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


class _Pool:
    """Some samples of the first batch, and of batches that are spread over all that follow."""

    def __init__(self) -> None:
        self._first: Batch | None = None
        self._later: list[Batch] = []
        self._stride, self._seen, self._form = 1, 0, None

    def add(self, batch: Batch) -> None:
        """Take note of the next batch."""
        self._seen += 1
        if self._first is None:
            self._first = _some(batch, POOL_SAMPLES // 2, POOL_BYTES // 2)
            self._form = form(self._first)
        elif self._seen % self._stride == 0 and batch.cuttable and form(batch) == self._form:
            if len(self._later) == SPREAD:
                self._later = self._later[1::2]
                self._stride *= 2
                if self._seen % self._stride:
                    return
            self._later.append(_some(batch, POOL_SAMPLES // 2 // SPREAD, POOL_BYTES // 2 // SPREAD))

    def joined(self) -> Batch:
        """All of them as one."""
        assert self._first is not None
        kept = Gathered()
        for batch in [self._first, *(self._later if self._first.cuttable else ())]:
            kept.add(batch)
        return kept.samples().pool


def _some(batch: Batch, samples: int, size: int) -> Batch:
    """A copy of the first samples of a batch, no more than a number or that many bytes, but one."""
    if not batch.cuttable:
        return batch.map(_copied)
    each = max(1, sum(part.nbytes for part in batch.tensors()) // batch.size)
    count = max(1, min(samples, batch.size, size // each))
    return batch.rows(slice(count)).map(_copied)


def _copied(part: Tensor) -> Tensor:
    return part.detach().to("cpu", copy=True)
