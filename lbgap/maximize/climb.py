"""What every maximiser returns, and the book-keeping that they share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lbgap.maximize.region import Box
from lbgap.objective import Objective
from lbgap.status import Status, status
from lbgap.system import device as hardware


@dataclass(frozen=True, eq=False)
class Maximum:
    """The best point that a maximiser found inside a region.

    Attributes:
        point: Where, ``(n,)``; inside the region.
        value: The loss there, evaluated once more by :meth:`lbgap.objective.Objective.loss`.
        history: ``(evaluations, value)`` of every point visited, in order. With ``precision="mixed"`` these values
            come from bfloat16 and only ``value`` is good to more than two or three digits.
        evaluations: Passes over the data; one over a part of them counts by its share, in ``history`` too.
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
    status: Status
    samples: int
    start: str = "centre"


Listener = Callable[[float, float], None]  # called with (evaluations, value) of every point that is visited


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

    def __init__(self, objective: Objective, region: Region, report: Listener | None) -> None:
        self._objective = objective
        self._report = report
        self._first = objective.evaluated
        self._history: list[tuple[float, float]] = []
        self.best = torch.empty_like(region.centre)
        self.value = -math.inf
        self.gap = math.nan

    def visit(self, point: Tensor, value: float) -> bool:
        """Note the value at a point just evaluated; says whether it is the best yet."""
        evaluation = self._evaluations()
        self._history.append((evaluation, value))
        if self._report is not None:
            self._report(evaluation, value)
        better = value > self.value
        if better:
            self.value = value
            self.best.copy_(point)
        return better

    def finish(self, ended: Status, last: Tensor | None = None) -> Maximum:
        """Evaluate the best point once more, in full precision.

        Args:
            ended: Why the search stopped.
            last: Where it would have gone next: evaluated too, in full precision.
        """
        self.value = float(self._objective.loss(self.best))
        if last is not None:
            try:
                value = float(self._objective.loss(last))
            except FloatingPointError as error:
                ended = status("not_finite", error=error)
            else:
                if self.visit(last, value):
                    self.gap = math.nan
        history, samples = tuple(self._history), self._objective.samples
        return Maximum(self.best, self.value, history, self._evaluations(), self.gap, ended, samples)

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


def evaluate(
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


def stuck(gradient: Tensor, start: Tensor | None, iteration: int) -> Status:
    """Why no coordinate moves at a point where the step along the gradient leads nowhere."""
    if iteration > 1 or (start is not None and gradient.any()):
        return status("converged.vertex", gradients=iteration)
    return status("rounding.box") if gradient.any() else status("no_gradient")


def from_start(objective: Objective, name: str, start: Tensor | None, climb: Callable[..., Maximum]) -> Maximum:
    """Climb from one start; a start whose loss is not finite is a result too, unless it is the centre.

    Args:
        objective: What is climbed.
        name: Of the start.
        start: Where; None for the centre.
        climb: Called with the objective and ``start``.

    Raises:
        FloatingPointError: The loss is NaN or infinite at the centre.
    """
    first = objective.evaluated
    try:
        return dataclasses.replace(climb(objective, start=start), start=name)
    except FloatingPointError as error:
        if start is None:
            raise
        evaluations = (objective.evaluated - first) / objective.samples
        ended = status("not_finite.start", error=error)
        return Maximum(start, -math.inf, (), evaluations, math.nan, ended, objective.samples, name)


def of_part(found: Maximum, share: float) -> Maximum:
    """A maximum over a part of the data, whose passes count by its share of the data."""
    history = tuple((evaluations * share, value) for evaluations, value in found.history)
    return dataclasses.replace(found, evaluations=found.evaluations * share, history=history)
