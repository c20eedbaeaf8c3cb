"""All samples that a loss is a mean over, however they are kept."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from lbgap.problem.batch import Batch
from lbgap.problem.trees import Tree, map_tensors
from lbgap.system import device as hardware
from lbgap.system.files import digest

MAX_CUTS = 4096  # micro-batches of a structured table that are cut once for all passes


class Samples(ABC):
    """Samples in a fixed order, the same in every pass.

    Attributes:
        size: How many there are.
        pool: Some of them, evaluated together, in which cuts are tried out: all, where they are one tree in memory.
        is_streamed: Whether each pass brings them to the device anew.
        borders: Sizes of the batches that the user made, in order; empty where there are none.
        exact: Whether batches must have the very size that is asked for, as the samples of each see each other.
    """

    size: int
    pool: Batch
    is_streamed: bool = False
    exact: bool = False
    borders: Sequence[int] = ()

    @property
    def kept(self) -> str:
        """Where they are between passes, in words: ``"resident"`` on the device, or ``"streamed"`` from the host."""
        return "streamed" if self.is_streamed else "resident"

    @property
    def cuttable(self) -> bool:
        """Whether batches can be cut into smaller ones."""
        return self.pool.cuttable

    @property
    def table(self) -> Batch | None:
        """All samples as one batch in memory, where they are that and can be cut anywhere."""
        return None

    @property
    def joins(self) -> bool:
        """Whether batches of any size can be made; else their borders are the loader's, or nearer together."""
        return self.table is not None

    @abstractmethod
    def chunks(self) -> Iterator[Batch]:
        """All samples in order, wherever they are, in as few pieces as there are: for what is asked of targets."""

    @abstractmethod
    def batches(self, size: int | None) -> Iterator[Batch]:
        """The micro-batches of a pass, in order, on the device.

        Args:
            size: Samples in each, at most; None for the borders that the batches have.
        """

    @abstractmethod
    def part(self, chosen: Tensor) -> Samples:
        """Some samples, kept where they are used.

        Args:
            chosen: Their indices, ``(samples,)`` int64 on the CPU, in any order.
        """

    @abstractmethod
    def placed(self, device: torch.device, dtype: torch.dtype | None) -> Self:
        """The samples on a device if they fit there, else where it can fetch them from.

        Args:
            device: That.
            dtype: Of floating tensors; None for their own.
        """

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of all samples as they are evaluated, in hexadecimal: tells these data from others."""

    def sizes(self) -> list[int]:
        """How many samples each piece of :meth:`chunks` has."""
        return [chunk.size for chunk in self.chunks()]

    def targets(self) -> Iterator[Tree]:
        """The targets of all samples, piece by piece."""
        return (chunk.targets for chunk in self.chunks())


class Table(Samples):
    """Samples that are one tree in memory, which is cut anywhere."""

    def __init__(
        self, pool: Batch, device: torch.device, *, is_streamed: bool = False, borders: Sequence[int] = ()
    ) -> None:
        """Take a tree as it is.

        Args:
            pool: All samples; for a stream in pinned memory.
            device: Where they are used.
            is_streamed: Whether they are copied there in each pass.
            borders: As the attribute.
        """
        self.borders = tuple(borders)
        self.pool, self.size, self.is_streamed, self._device = pool, pool.size, is_streamed, device
        self._cuts = Cuts([pool])

    @property
    def table(self) -> Batch | None:
        """All samples, if they can be cut."""
        return self.pool if self.cuttable else None

    def chunks(self) -> Iterator[Batch]:
        """All samples at once."""
        yield self.pool

    def batches(self, size: int | None) -> Iterator[Batch]:
        """As :meth:`Samples.batches`; all samples are one batch if there is no size."""
        size = size if size and self.cuttable else self.size
        if self.is_streamed and not self.cuttable:
            return uploaded(iter([self.pool]), self._device)
        if self.is_streamed:
            return streamed(self.pool, size, self._device)
        return self._cuts.batches(size)

    def part(self, chosen: Tensor) -> Samples:
        """As :meth:`Samples.part`."""
        part = Table(self.pool.rows(chosen), self._device)
        return part.placed(self._device, None) if self.is_streamed else part

    def placed(self, device: torch.device, dtype: torch.dtype | None) -> Self:
        """As :meth:`Samples.placed`."""
        place, fits = placing(self.pool.tensors(), device, dtype)
        return type(self)(self.pool.map(place), device, is_streamed=not fits, borders=self.borders)

    def digest(self) -> str:
        """As :meth:`Samples.digest`."""
        return digest(self.pool.stored())


def placing(
    tensors: Iterable[Tensor], device: torch.device, dtype: torch.dtype | None
) -> tuple[Callable[[Tensor], Tensor], bool]:
    """What takes tensors to a device if all of them fit there, else to pinned memory; and whether they fit."""
    fits = hardware.fit(tensors, device, dtype or torch.float32)

    def place(tensor: Tensor) -> Tensor:
        tensor = tensor.clone() if tensor.is_inference() else tensor.detach()
        wanted = dtype if tensor.is_floating_point() else None
        return tensor.to(device, wanted) if fits else hardware.pinned(tensor, wanted)

    return place, fits


class Cuts:
    """Micro-batches of batches that stay where they are: of trees of many parts cut once for all passes."""

    def __init__(self, pieces: Sequence[Batch]) -> None:
        """Take batches; nothing is cut."""
        self._pieces = pieces
        self._known: tuple[int | None, list[Batch]] | None = None

    def batches(self, size: int | None) -> Iterator[Batch]:
        """Micro-batches of at most a size, in order; None for the batches as they are."""
        first = self._pieces[0]
        if len(self._pieces) == 1 and isinstance(first.inputs, Tensor) and isinstance(first.targets, Tensor):
            return resident(first, size or first.size)  # two views, whose making costs nothing
        found = (micro for piece in self._pieces for micro in cut(piece, size))
        if self._known is None or self._known[0] != size:
            if size is not None and sum(piece.size for piece in self._pieces) > MAX_CUTS * size:
                return map(fresh, found)
            self._known = size, list(found)
        return map(fresh, self._known[1])


def cut(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Micro-batches of at most a size, where the batch can be cut."""
    if size is None or not batch.cuttable or batch.size <= size:
        yield batch
    else:
        yield from resident(batch, size)


def fresh(batch: Batch) -> Batch:
    """The same values in containers and tensors of their own, which share memory.

    A model may change what it is given but for the values: it may pop keys, or let a tensor require a gradient.
    """
    other, known = copy.copy(batch), dict[int, Tensor]()
    other.inputs, other.targets = _fresh(batch.inputs, known), _fresh(batch.targets, known)
    return other


def _fresh(tree: Tree, known: dict[int, Tensor]) -> Tree:
    if isinstance(tree, Tensor):
        if id(tree) not in known:
            known[id(tree)] = tree.detach()
        return known[id(tree)]
    kind = type(tree)
    if kind is dict:
        return {key: _fresh(part, known) for key, part in tree.items()}
    if kind is list or kind is tuple:
        return kind([_fresh(part, known) for part in tree])
    return map_tensors(torch.detach, tree)


def resident(data: Batch, size: int) -> Iterator[Batch]:
    """Yield micro-batches of data that lie where they are used: views, in order, the last as small as it comes."""
    if size == data.size:
        yield fresh(data)
        return
    for start in range(0, data.size, size):
        yield data.rows(slice(start, start + size))


def streamed(data: Batch, size: int, device: torch.device) -> Iterator[Batch]:
    """Yield micro-batches of data in pinned host memory on a GPU, each copied while the one before is computed with.

    The copies run on a stream of their own into two buffers by turns. A batch is overwritten once the work that was
    enqueued on it is done: what is enqueued after the next batch was asked for must not read it.

    Args:
        data: All samples, in pinned memory.
        size: Samples in a micro-batch.
        device: Where the batches go.
    """
    copier = torch.cuda.Stream(device)
    host = data.tensors()
    buffers = [[torch.empty_like(part[:size], device=device) for part in host] for _ in range(2)]
    copier.wait_stream(torch.cuda.current_stream(device))  # which may still work in what was freed for the buffers
    for part in (*buffers[0], *buffers[1]):
        part.record_stream(copier)  # so that a pass that is broken off does not free them under a copy

    def fetch(number: int) -> Batch:
        """Let the copier fill a buffer, behind the work that it has been told to wait for."""
        rows = slice(number * size, (number + 1) * size)
        filled: dict[int, Tensor] = {}
        with torch.cuda.stream(copier):
            for part, buffer in zip(host, buffers[number % 2], strict=True):
                filled[id(part)] = buffer[: len(part[rows])]
                filled[id(part)].copy_(part[rows], non_blocking=True)
        return data.map(lambda part: filled[id(part)])

    count = -(-data.size // size)
    ahead = fetch(0)
    for number in range(count):
        batch, current = ahead, torch.cuda.current_stream(device)
        current.wait_event(copier.record_event())
        if number + 1 < count:
            ahead = fetch(number + 1)
        yield batch
        copier.wait_event(torch.cuda.current_stream(device).record_event())


def uploaded(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy batches from pinned memory to a GPU, on a stream of their own, while it computes with the one before."""
    copier = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copier):
            there = batch.map(lambda part: part.to(device, non_blocking=True))
        current = torch.cuda.current_stream(device)
        current.wait_stream(copier)
        for part in there.tensors():
            part.record_stream(current)  # whose memory is the copier's
        yield there


def even(data: Samples, largest: int) -> Iterator[tuple[Batch, int | None]]:
    """All samples in batches of two or more, as few and as even as can be.

    Args:
        data: All samples.
        largest: Samples in a batch, at most, where batches can be joined.

    Yields:
        Batches, and how many samples each has; None where it is as many in all of them, but for one.

    Raises:
        ValueError: A batch has one sample, and cannot be joined with others.
    """
    count = math.ceil(data.size / largest)
    if data.table is not None:
        size, longer = divmod(data.size, count)
        first = 0
        for number in range(count):
            end = first + size + (number < longer)
            yield data.table.rows(slice(first, end)), None
            first = end
        return
    exactly, size = copy.copy(data), max(2, math.ceil(data.size / count))
    exactly.exact = True
    for batch in exactly.batches(size + (data.size % size == 1) if data.joins else None):
        if batch.cuttable and batch.size == 1:
            raise ValueError("a batch of one sample has no statistics: let the loader make others")
        yield batch, batch.size
