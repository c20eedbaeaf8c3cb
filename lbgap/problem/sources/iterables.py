"""Data that are batches one by one: functions, iterables, and what has a state that can be loaded."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Generator, Tensor

from lbgap.problem.sources.base import EMPTY, Source
from lbgap.problem.sources.leaves import to_tree
from lbgap.problem.trees import Tree


class Repeated(Source):
    """Something that gives batches each time that it is iterated over."""

    def __init__(self, data: Iterable[Any], *, generator: Generator | None = None, size: int | None = None) -> None:
        """Remember it; nothing is read.

        Args:
            data: Gives batches.
            generator: What it draws from; begins alike in each reading, and is put back after.
            size: How many samples it has, if that is known.
        """
        super().__init__()
        self._data, self._generator, self.size = data, generator, size
        self.name = type(data).__name__
        self._before: Tensor | None = None

    def open(self) -> Iterator[Any]:
        """Its batches."""
        if self._generator is not None and self._before is None:
            self._before = self._generator.get_state()
        if self._generator is not None:
            self._generator.manual_seed(0)
        return iter(self._data)

    def close(self) -> None:
        """Put the generator back."""
        if self._generator is not None and self._before is not None:
            self._generator.set_state(self._before)
            self._before = None


class Stateful(Repeated):
    """Something with ``state_dict`` and ``load_state_dict``: each reading begins from the state that it had."""

    def __init__(self, data: Any, **options: Any) -> None:
        """Take the state.

        Args:
            data: Gives batches from there.
            **options: As :class:`Repeated` takes them.
        """
        super().__init__(data, **options)
        self._loaded: Any = data
        self._state = copy.deepcopy(data.state_dict())

    def open(self) -> Iterator[Any]:
        """Its batches from that state on."""
        self._loaded.load_state_dict(copy.deepcopy(self._state))
        return super().open()

    def close(self) -> None:
        """Load it again."""
        super().close()
        self._loaded.load_state_dict(copy.deepcopy(self._state))


class Factory(Source):
    """A function that returns an iterator of batches, a new one at each call."""

    def __init__(self, make: Callable[[], Any]) -> None:
        """Remember it; it is called at each reading.

        Raises:
            TypeError: It has arguments without a default.
        """
        super().__init__()
        self._make, self._last = make, None
        self.name = getattr(make, "__name__", type(make).__name__)
        try:
            inspect.signature(make).bind()
        except ValueError:  # a built-in without a signature: it is tried
            pass
        except TypeError as error:
            raise TypeError(
                f"data as a function must be callable without arguments, got {self.name} ({error}): wrap it in a "
                "function that fills them in"
            ) from error

    def open(self) -> Iterator[Any]:
        """Call it.

        Raises:
            TypeError: It does not return an iterator.
            ValueError: It returned the same one as before.
        """
        made: Any = self._make()
        if isinstance(made, Tensor | tuple | Mapping) or not hasattr(made, "__iter__"):
            raise TypeError(
                f"data as a function must return an iterator of batches, got a {type(made).__name__}: pass what it "
                "returns, or write iter([batch])"
            )
        batches: Iterator[Any] = iter(made)
        if batches is made and made is self._last:
            raise ValueError(
                "data as a function must return a new iterator at each call, got the same one twice, which is used up: "
                "make it inside of the function"
            )
        self._last = made
        return batches


class Once(Source):
    """An iterator of batches, which can be read once."""

    repeats = False

    def __init__(self, batches: Iterator[Any]) -> None:
        """Remember it; nothing is read."""
        super().__init__()
        self._batches, self.name = batches, type(batches).__name__

    def open(self) -> Iterator[Tree]:
        """What :meth:`first` took off, and the rest."""
        return itertools.chain([self.first()], self._batches)

    def first(self) -> Tree:
        """The first batch, which stays for :meth:`open`."""
        if self._first is None:
            try:
                self._first = to_tree(next(self._batches))
            except StopIteration:
                raise ValueError(EMPTY) from None
        return self._first
