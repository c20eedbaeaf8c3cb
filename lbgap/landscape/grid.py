"""The points of a plane: where they are, their values, and which of them are evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lbgap.checks import number, several, shown, whole
from lbgap.landscape.combined import Combined
from lbgap.landscape.frame import SNAP, Frame, Range
from lbgap.landscape.record import Record
from lbgap.landscape.refine import refine

MAX_POINTS = 1_000_000
CHUNK = 64  # points evaluated together and written together: never another number, for it is part of their bits
Rows = tuple[tuple[float, ...], ...]
Reporter = Callable[[float, float], None]  # of evaluations and a value


class Grid:
    """The points of a plane and their values.

    Attributes:
        x: Of the columns.
        y: Of the rows.
        values: Losses and accuracies of each data set, ``(2 sets, rows, columns)`` float64.
        evaluated: ``(rows, columns)``.
    """

    def __init__(
        self,
        frame: Frame,
        combined: Combined,
        record: Record,
        points: tuple[int, int],
        ranges: tuple[Range | None, Range | None],
    ) -> None:
        """Begin with no value known.

        Args:
            frame: Where the plane lies.
            combined: The loss at combinations of its ends.
            record: What keeps the values.
            points: Columns and rows.
            ranges: Of x and y; those of the frame where they are None.
        """
        self._frame, self._combined, self._record = frame, combined, record
        bounds = [own if asked is None else asked for asked, own in zip(ranges, frame.ranges, strict=True)]
        self._x, self._y = (_axis(low, high, count) for (low, high), count in zip(bounds, points, strict=True))
        self.x, self.y = self._x.tolist(), self._y.tolist()
        shape = len(self.y), len(self.x)
        self.values = torch.full((2 * len(combined.objectives), *shape), math.nan, dtype=torch.float64, device="cpu")
        self.evaluated = torch.zeros(shape, dtype=torch.bool, device="cpu")

    def at_marks(self, report: Reporter | None) -> tuple[float, ...]:
        """The training loss at the marks."""
        count = len(self._frame.marks)
        rows = torch.eye(len(self._frame.ends), dtype=torch.float64, device="cpu")[:count]
        places = torch.tensor([[-1, index] for index in range(count)], dtype=torch.int64, device="cpu")
        return tuple(self._chunk(places, rows, report)[0, :, 0].tolist())

    def fill(self, tolerance: float | None, report: Reporter | None) -> None:
        """Evaluate all points, or with a tolerance as many as are needed."""
        shape = self.evaluated.shape[0], self.evaluated.shape[1]
        if tolerance is None:
            self._evaluate([(row, column) for row in range(shape[0]) for column in range(shape[1])], report)
            return
        present = [i for i in range(len(self.values)) if i % 2 == 0 or self._classes(i // 2)]
        some = self.values[present]
        share = torch.tensor([[[0.0 if i % 2 else tolerance]] for i in present], dtype=torch.float64, device="cpu")
        least = torch.tensor(
            [[[self._apart(i // 2, tolerance) if i % 2 else 0.0]] for i in present], dtype=torch.float64, device="cpu"
        )

        def evaluate(wanted: list[tuple[int, int]]) -> None:
            self._evaluate(wanted, report)
            some.copy_(self.values[present])

        refine(shape, evaluate, some, self.evaluated, lambda values: share * values.abs() + least)
        self.values[present] = some
        self.values[1::2].clamp_(0, 100)

    def _apart(self, number: int, tolerance: float) -> float:
        """How far an interpolated accuracy may be off: its steps are no finer than its own sampling error."""
        return 100.0 * tolerance + 50.0 / math.sqrt(self._combined.objectives[number].counted)

    def _classes(self, number: int) -> bool:
        return self._combined.objectives[number].classes is not None

    def _evaluate(self, wanted: list[tuple[int, int]], report: Reporter | None) -> None:
        for some in torch.tensor(wanted, dtype=torch.int64, device="cpu").view(-1, 2).split(CHUNK):
            row, column = some.unbind(1)
            rows = self._frame.coefficients(torch.stack((self._x[column], self._y[row]), 1))
            found = self._chunk(some, rows, report)
            self.values[:, row, column] = found.transpose(1, 2).flatten(0, 1)
            self.evaluated[row, column] = True

    def _chunk(self, places: Tensor, rows: Tensor, report: Reporter | None) -> Tensor:
        """Losses and accuracies at some points, ``(sets, k, 2)``."""
        at = self._combined.at
        found = self._record.chunk(places, lambda: torch.tensor(at(rows), dtype=torch.float64, device="cpu"))
        for loss in found[..., 0].flatten().tolist() if report is not None else ():
            report(0, loss)  # type: ignore[misc]
        return found

    def loss(self, number: int) -> Rows:
        """The losses of one data set."""
        return tuple(tuple(row) for row in self.values[2 * number].tolist())

    def accuracy(self, number: int) -> Rows | None:
        """The accuracies of one data set, in percent; None where there are none."""
        return tuple(tuple(row) for row in self.values[2 * number + 1].tolist()) if self._classes(number) else None


def check_grid(points: Any, x_range: Any, y_range: Any) -> tuple[tuple[int, int], tuple[Range | None, Range | None]]:
    """Refuse a grid that is none; returns columns and rows, and the two ranges.

    Raises:
        TypeError: A number is of the wrong kind.
        ValueError: It is out of its range.
    """
    pair = several(points) or [points, points]
    if len(pair) != 2:
        raise ValueError(f"points must be one number, or columns and rows, got {shown(points)}")
    columns, rows = (whole("points", count, 2) for count in pair)
    if columns * rows > MAX_POINTS:
        raise ValueError(f"points must be at most {MAX_POINTS:,} in all, got {columns} x {rows}")
    return (columns, rows), (_range("x_range", x_range), _range("y_range", y_range))


def _axis(low: float, high: float, count: int) -> Tensor:
    """Evenly spaced coordinates; zero itself where rounding has missed it."""
    found = torch.linspace(low, high, count, dtype=torch.float64, device="cpu")
    return torch.where(found.abs() < SNAP * (high - low), 0.0, found)


def _range(name: str, bounds: Any) -> Range | None:
    if bounds is None:
        return None
    pair = several(bounds)
    if pair is None or len(pair) != 2:
        raise TypeError(f"{name} must be two numbers, got {shown(bounds)}")
    found = [number(bound) for bound in pair]
    for bound, value in zip(pair, found, strict=True):
        if value is None:
            raise TypeError(f"{name} must be two numbers, got {shown(bound)}")
    low, high = (float(value) for value in found if value is not None)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name} must be finite and ascend, got {pair[0]} and {pair[1]}")
    return low, high
