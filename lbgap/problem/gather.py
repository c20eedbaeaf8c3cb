"""Batches that are kept: joined into one table where they can be, else side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten

from lbgap.problem import trees
from lbgap.problem.batch import Batch
from lbgap.problem.pieces import Pieces
from lbgap.problem.sources.base import EMPTY
from lbgap.problem.stored import Samples, Table


def form(batch: Batch) -> Any:
    """What two batches must have in common for their samples to be joined; two forms are compared by ``==``."""
    inputs, targets = batch
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
        return _kind(inputs), _kind(targets)
    leaves, structure = tree_flatten((inputs, targets), is_leaf=trees.is_graph)
    place = {id(tensor): number for number, tensor in enumerate(batch.tensors())}
    return structure, [(place[id(one)], *_kind(one)) if isinstance(one, Tensor) else one for one in leaves]


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape[1:], tensor.dtype, tensor.device


class Gathered:
    """Copies of batches, one after the other.

    Attributes:
        bytes: How many they take.
    """

    def __init__(self, expected: int | None = None) -> None:
        """Begin with none.

        Args:
            expected: How many samples there will be, if that is known: then there are never two copies of all of them.
        """
        self.bytes = 0
        self._expected = expected
        self._joins, self._form = True, None  # whether all have one form, and which
        self._pieces: list[Batch] = []
        self._whole: Batch | None = None  # with a place for all that are expected
        self._borders = [0]  # of the batches that are in it

    def add(self, batch: Batch) -> None:
        """Copy a batch."""
        mine = form(batch) if batch.cuttable else None
        if not self.bytes:
            self._form = mine
            if self._expected is not None and mine is not None and batch.size < self._expected:
                rows = self._expected
                self._whole = batch.map(lambda part: part.detach().new_empty((rows, *part.shape[1:])))
        self.bytes += batch.nbytes
        self._joins = self._joins and mine is not None and mine == self._form
        filled = self._borders[-1]
        if self._whole is not None and self._joins and filled + batch.size <= self._whole.size:
            for own, given in zip(tensors(self._whole), tensors(batch), strict=True):
                own[filled : filled + batch.size].copy_(given.detach())
            self._borders.append(filled + batch.size)
            return
        self._unjoin()
        self._pieces.append(batch.map(lambda part: part.detach().clone()))

    def samples(self, *, own: bool = False) -> Samples:
        """All of them.

        Args:
            own: Whether the borders of the batches are worth keeping.

        Raises:
            ValueError: There are none.
        """
        if self._whole is not None:
            whole, filled = self._whole, self._borders[-1]
            sizes = [end - start for start, end in itertools.pairwise(self._borders)]
            return _table(whole if filled == whole.size else whole.rows(slice(filled)), sizes if own else ())
        if not self._pieces:
            raise ValueError(EMPTY)
        if self._joins:
            return _table(joined(self._pieces), [piece.size for piece in self._pieces] if own else ())
        return Pieces(self._pieces, self._pieces[0].tensors()[0].device)

    def _unjoin(self) -> None:
        """Take what was joined for batches again, as one came that does not fit."""
        if self._whole is not None:
            whole, self._whole = self._whole, None
            self._pieces = [whole.rows(slice(*borders)) for borders in itertools.pairwise(self._borders)]


def joined(batches: Sequence[Batch]) -> Batch:
    """The samples of several batches of one form."""
    return batches[0] if len(batches) == 1 else Batch(*trees.join([(one.inputs, one.targets) for one in batches]))


def regrouped(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The samples of batches of one form in batches of another size, in order, the last as small as it comes."""
    held: list[Batch] = []
    lacking = size
    for batch in batches:
        start = 0
        while batch.size - start >= lacking:
            held.append(batch.rows(slice(start, start + lacking)))
            yield joined(held)
            start, held, lacking = start + lacking, [], size
        if start < batch.size:
            held.append(batch.rows(slice(start, None)))
            lacking -= batch.size - start
    if held:
        yield joined(held)


def tensors(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, as often as :meth:`Batch.map` makes one of them."""
    inputs, targets = batch
    return [inputs, targets] if isinstance(inputs, Tensor) and isinstance(targets, Tensor) else batch.tensors()


def _table(batch: Batch, borders: Sequence[int] = ()) -> Table:
    return Table(batch, batch.tensors()[0].device, borders=borders)
