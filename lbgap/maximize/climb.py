"""What every maximiser returns, and the book-keeping that they share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lbgap.objective import Objective
from lbgap.region import Box


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
            what is missing where the loss is concave.
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


class Climb:
    """The best point so far, and the path to it.

    Attributes:
        best: The best point visited, ``(n,)``; rubbish before the first visit.
        value: The loss there, as the maximiser saw it.
        gap: The Frank-Wolfe gap there, once the maximiser knows it.
    """

    def __init__(self, objective: Objective, region: Box, visited: Visited | None) -> None:
        self._objective = objective
        self._visited = visited
        self._first = objective.evaluations
        self._history: list[tuple[float, float]] = []
        self.best = torch.empty_like(region.centre)
        self.value = -math.inf
        self.gap = math.nan

    def visit(self, point: Tensor, value: float) -> bool:
        """Note the value at a point just evaluated; says whether it is the best yet."""
        evaluation = self._objective.evaluations - self._first
        self._history.append((evaluation, value))
        if self._visited is not None:
            self._visited(evaluation, value)
        better = value > self.value
        if better:
            self.value = value
            self.best.copy_(point)
        return better

    def finish(self, status: str) -> Maximum:
        """Evaluate the best point once more, in full precision."""
        value = float(self._objective.loss(self.best))
        evaluations = self._objective.evaluations - self._first
        return Maximum(self.best, value, tuple(self._history), evaluations, self.gap, status, self._objective.samples)


def starting_point(region: Box, start: Tensor | None) -> Tensor:
    """A fresh copy of where to start: the centre, or a point that is projected onto the region."""
    point = region.centre.clone()
    if start is not None:
        region.project(start, out=point)
    return point
