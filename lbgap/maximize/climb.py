"""What every maximiser returns, and the book-keeping that they share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lbgap.maximize.region import Box
from lbgap.objective import Objective
from lbgap.system import device as hardware

FIXED = "converged after {} gradients: the point is the vertex that its own gradient points to"
NO_GRADIENT = "could not move: the gradient is exactly zero; try restarts, or precision='float64'"
NARROW = (
    "could not move: wherever the gradient is not zero the region is narrower than the spacing of the numbers; try a "
    "larger epsilon, or precision='float64'"
)
NOT_FINITE = "stopped at a point without a finite loss: {}"
ENDED = "stopped after {} gradients, the limit: more iterations may find a larger value"


@dataclass(frozen=True, eq=False)
class Maximum:
    """The best point that a maximiser found inside a region.

    Attributes:
        point: Where, ``(n,)``; inside the region.
        value: The loss there, evaluated once more by :meth:`lbgap.objective.Objective.loss`.
        history: ``(evaluations, value)`` of every point visited, in order. With ``precision="mixed"`` these values
            come from bfloat16 and only ``value`` is good to more than two or three digits.
        evaluations: Passes over the data of the objective that was climbed.
        gap: Frank-Wolfe gap ``max_v <g, v - y>`` at ``point``: zero at a stationary point, and an upper bound on
            what is missing where the loss is concave. NaN where the gradient was not evaluated.
        status: Why it stopped, and what to try if it should have gone on.
        start: ``"centre"``, ``"class c"`` (targeted) or ``"random i"``.
        samples: How many samples the value is a mean over: fewer than all for a scout.
    """

    point: Tensor
    value: float
    history: tuple[tuple[float, float], ...]
    evaluations: float
    gap: float
    status: str
    samples: int
    start: str = "centre"


Visited = Callable[[float, float], None]


class Region(Protocol):
    """Where a climb takes place: a box, or a ball."""

    @property
    def centre(self) -> Tensor:
        """The minimizer, ``(n,)``."""


class Climb:
    """The best point so far, and the path to it.

    Attributes:
        best: The best point visited, ``(n,)``; rubbish before the first visit.
        value: The loss there, as the maximiser saw it.
        gap: The Frank-Wolfe gap there, once the maximiser knows it.
    """

    def __init__(self, objective: Objective, region: Region, visited: Visited | None) -> None:
        self._objective = objective
        self._visited = visited
        self._first = objective.evaluated
        self._history: list[tuple[float, float]] = []
        self.best = torch.empty_like(region.centre)
        self.value = -math.inf
        self.gap = math.nan

    def visit(self, point: Tensor, value: float) -> bool:
        """Note the value at a point just evaluated; says whether it is the best yet."""
        evaluation = self._evaluations()
        self._history.append((evaluation, value))
        if self._visited is not None:
            self._visited(evaluation, value)
        better = value > self.value
        if better:
            self.value = value
            self.best.copy_(point)
        return better

    def finish(self, status: str, last: Tensor | None = None) -> Maximum:
        """Evaluate the best point once more, in full precision.

        Args:
            status: Why the search stopped.
            last: Where it would have gone next: evaluated too, in full precision.
        """
        self.value = float(self._objective.loss(self.best))
        if last is not None:
            try:
                value = float(self._objective.loss(last))
            except FloatingPointError as error:
                status = NOT_FINITE.format(error)
            else:
                if self.visit(last, value):
                    self.gap = math.nan
        history, samples = tuple(self._history), self._objective.samples
        return Maximum(self.best, self.value, history, self._evaluations(), self.gap, status, samples)

    def _evaluations(self) -> float:
        return (self._objective.evaluated - self._first) / self._objective.samples


def enqueue(
    objective: Objective, region: Box, point: Tensor, gradient: Tensor, vertex: Tensor, *, rough: bool
) -> Tensor:
    """Let the device evaluate a point and find the vertex that its gradient points to, without waiting for it.

    Args:
        objective: What is climbed.
        region: Where.
        point: ``(n,)``.
        gradient: Where its gradient goes, ``(n,)``.
        vertex: Where the vertex goes, ``(n,)``.
        rough: Whether the gradient only chooses a direction; see :meth:`lbgap.objective.Objective.direction`.

    Returns:
        ``(4,)`` float64 on the device: the value, whether it and the gradient are finite, the Frank-Wolfe gap, and the
        number of coordinates in which the vertex is another point.
    """
    report = objective.enqueue(point, gradient, rough=rough)
    return torch.cat([report, region.vertex(point, gradient, out=vertex)])


def look(
    objective: Objective, region: Box, point: Tensor, gradient: Tensor, vertex: Tensor, *, rough: bool
) -> tuple[float, float, float]:
    """Enqueue as :func:`enqueue`, and wait for it: the only time in an iteration that the host waits for the device.

    Returns:
        The value, the Frank-Wolfe gap, and the number of coordinates in which the vertex is another point.

    Raises:
        FloatingPointError: The value or the gradient is NaN or infinite.
    """
    report = enqueue(objective, region, point, gradient, vertex, rough=rough)
    value, finite, gap, flips = hardware.read(report)
    objective.settle(value, finite)
    return value, gap, flips


def starting_point(region: Box, start: Tensor | None) -> Tensor:
    """A fresh copy of where to start: the centre, or a point that is projected onto the region."""
    point = region.centre.clone()
    if start is not None:
        region.project(start, out=point)
    return point


def stuck(gradient: Tensor, start: Tensor | None, iteration: int) -> str:
    """Why no coordinate moves at a point where the step along the gradient leads nowhere."""
    if iteration > 1 or (start is not None and gradient.any()):
        return FIXED.format(iteration)
    return NARROW if gradient.any() else NO_GRADIENT
