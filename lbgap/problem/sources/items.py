"""Data that are samples one by one: map-style data sets, and iterables of samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from lbgap.problem.sources.base import Source
from lbgap.problem.sources.leaves import stack
from lbgap.problem.trees import Tree

CHUNK = 32  # samples that are stacked at once


class Items(Source):
    """A data set with a length, whose samples are read by their indices."""

    has_borders = False

    def __init__(self, data: Any) -> None:
        """Remember it; nothing is read."""
        super().__init__()
        self._data, self.size, self.name = data, len(data), type(data).__name__

    def open(self) -> Iterator[Tree]:
        """Samples in order, stacked."""
        assert self.size is not None
        many = getattr(self._data, "__getitems__", None)
        for start in range(0, self.size, CHUNK):
            chosen = [*range(start, min(start + CHUNK, self.size))]
            yield stack(many(chosen) if callable(many) else [self._data[index] for index in chosen], start)


class Iterated(Source):
    """An iterable whose items are samples."""

    has_borders = False

    def __init__(self, data: Iterable[Any]) -> None:
        """Remember it; nothing is read."""
        super().__init__()
        self._data, self.name = data, type(data).__name__

    def open(self) -> Iterator[Tree]:
        """Samples as they come, stacked."""
        items = iter(self._data)
        start = 0
        while samples := [*itertools.islice(items, CHUNK)]:
            yield stack(samples, start)
            start += len(samples)
