"""What every kind of data is to whoever reads it."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import torch

from lbgap.problem import trees
from lbgap.problem.sources.chance import SEED, Chance
from lbgap.problem.sources.leaves import to_tree
from lbgap.problem.trees import Tree

UNEQUAL = "stack expects each tensor to be equal size"  # what torch says of samples that cannot be stacked
EMPTY = "expected at least one sample, got none: pass data that is not empty"


class Source(ABC):
    """What a user has, as batches in a fixed order.

    Attributes:
        batch_size: That of a loader; None if there is none.
        in_memory: The device of data that are tensors in memory, and so are where the user wants them; else None.
        is_whole: Whether the only batch is all samples, in memory already.
        has_borders: Whether its batches are the user's own.
        repeats: Whether it can be read more than once.
        size: How many samples there are, where that is known before they are read.
        notes: Sentences on what is read otherwise than it was given.
        name: What a message calls the data.
    """

    batch_size: int | None = None
    in_memory: torch.device | None = None
    is_whole = False
    has_borders = True
    repeats = True
    size: int | None = None
    name = "data"

    def __init__(self) -> None:
        """Begin without notes."""
        self.notes: list[str] = []
        self._first: Tree = None

    @abstractmethod
    def open(self) -> Iterator[Any]:
        """Begin to read: batches, in containers of whatever kind."""

    def open_for_first(self) -> Iterator[Any]:
        """Likewise, where only the first batch will be read."""
        return self.open()

    def close(self) -> None:  # noqa: B027
        """Put back what :meth:`open` changed of the user's; called when a reading ends, however it does."""

    def first(self) -> Tree:
        """The first batch, of plain containers and tensors; read once, from another seed than all else.

        Raises:
            ValueError: There is none.
        """
        if self._first is None:
            reading = Reading(self, self.open_for_first, SEED + 1)
            try:
                self._first = next(reading)
            except StopIteration:
                raise ValueError(EMPTY) from None
            finally:
                reading.close()
        return self._first

    def read(self) -> Reading:
        """All batches, of plain containers and tensors, from the beginning."""
        return Reading(self, self.open)

    def is_first(self, tree: Tree) -> bool:
        """Whether a batch is the one that :meth:`first` gave, value by value."""
        mine, other = (
            [part for tensor in trees.tensors(one) for part in trees.stored(tensor)] for one in (self.first(), tree)
        )
        return len(mine) == len(other) and all(
            one.shape == two.shape and one.dtype == two.dtype and bool(((one == two) | (one != one)).all())
            for one, two in zip(mine, other, strict=True)
        )


class Reading(Iterator[Tree]):
    """One pass over a source, which draws from random state of its own, always the same.

    Attributes:
        guarded: Whether the process's random state is put aside at each step; needed where the source draws.
    """

    def __init__(self, source: Source, begin: Any, seed: int = SEED) -> None:
        """Open the source.

        Args:
            source: What is read.
            begin: Its :meth:`Source.open`, or another beginning.
            seed: Where its draws begin.
        """
        self.guarded, self._source, self._chance = True, source, Chance(seed)
        self._closed = False
        try:
            with self._chance.lent():
                self._batches = begin()
        except BaseException:
            source.close()
            raise

    @property
    def drew(self) -> bool:
        """Whether a batch was made with random numbers of this process."""
        return self._chance.used

    def __iter__(self) -> Self:
        """Itself."""
        return self

    def __next__(self) -> Tree:
        """The next batch; after the last one, and after an error, the reading is closed."""
        try:
            with self._chance.lent(watch=True) if self.guarded else contextlib.nullcontext():
                return to_tree(next(self._batches))
        except RuntimeError as error:
            self.close()
            if UNEQUAL not in str(error):
                raise
            what = str(error)[str(error).index(UNEQUAL) :].splitlines()[0]
            raise ValueError(
                f"the samples of a batch differ in shape ({what}): give the loader a collate_fn that pads them"
            ) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it, early or not; no harm if it is ended already."""
        if self._closed:
            return
        self._closed = True
        batches, self._batches = self._batches, iter(())
        try:
            with self._chance.lent() if self.guarded else contextlib.nullcontext():
                end = getattr(batches, "close", None)
                if callable(end):
                    end()
                del batches, end  # which ends worker processes
        finally:
            self._source.close()
