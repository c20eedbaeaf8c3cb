"""Maximise an objective inside a region: one method a module, starting points for all of them.

Every method is ``maximise(objective, region, *, start, iterations, visited) -> Maximum``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lbgap.maximize import apgd, scipy, vertex
from lbgap.maximize.climb import Maximum, Visited
from lbgap.objective import Objective
from lbgap.region import Box

__all__ = ["METHODS", "Maximum", "maximise", "starts"]

METHODS: dict[str, Callable[..., Maximum]] = {
    "vertex": vertex.maximise,
    "apgd": apgd.maximise,
    "scipy": scipy.maximise,
}
DEFAULT_ITERATIONS = {"vertex": vertex.ITERATIONS, "apgd": apgd.ITERATIONS, "scipy": scipy.ITERATIONS}


def starts(objective: Objective, region: Box, restarts: int, seed: int) -> Iterator[tuple[str, Tensor | None]]:
    """Yield the names and points of the starts: the centre, then targeted ones, then random interior ones.

    A targeted start takes two vertex steps up the mean log-probability of one class, two gradients: it leads out
    of the basin that plain ascent falls into, as in targeted attacks on robust classifiers.

    Args:
        objective: What is maximised; targeted starts exist where it has classes.
        region: Where.
        restarts: How many starts beside the centre.
        seed: Of the random starts.
    """
    yield "centre", None
    targeted = min(restarts, objective.classes or 0)
    for label in range(targeted):
        point = region.centre.clone()
        gradient = torch.empty_like(point)
        with contextlib.suppress(FloatingPointError):  # the maximiser will meet the same point and say so
            for _ in range(2):
                objective.log_probability_direction(point, label, out=gradient)
                region.vertex(point, gradient, out=point)
        yield f"class {label}", point
    generator = torch.Generator().manual_seed(seed)
    for index in range(restarts - targeted):
        uniform = torch.rand(region.centre.shape, generator=generator, dtype=torch.float64)
        share = uniform.mul_(2).sub_(1).to(region.centre)
        point = region.centre + share * region.half_width()
        region.project(point, out=point)
        yield f"random {index}", point


def maximise(
    objective: Objective,
    region: Box,
    *,
    method: str = "vertex",
    iterations: int | None = None,
    restarts: int = 0,
    seed: int = 0,
    visited: Visited | None = None,
) -> list[Maximum]:
    """Maximise from every start.

    Args:
        objective: What to maximise.
        region: Where.
        method: ``"vertex"``, ``"apgd"`` or ``"scipy"``.
        iterations: Iterations a start; each method has its own default.
        restarts: Starts beside the centre; see :func:`starts`.
        seed: Of the random starts.
        visited: Called with ``(evaluation, value)`` of every point.

    Returns:
        One maximum a start, in the order of the starts. Their evaluations include those that made the start. One
        that could not start, because the loss there is not finite, has the value -inf and says so.

    Raises:
        ValueError: Unknown method, or ``iterations`` or ``restarts`` out of range.
        FloatingPointError: The loss is NaN or infinite at the centre.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    iterations = DEFAULT_ITERATIONS[method] if iterations is None else iterations
    for name, value, least in (("iterations", iterations, 1), ("restarts", restarts, 0), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    found: list[Maximum] = []
    before = objective.evaluations
    for name, point in starts(objective, region, restarts, seed):
        try:
            maximum = METHODS[method](objective, region, start=point, iterations=iterations, visited=visited)
        except FloatingPointError as error:
            if point is None:
                raise
            maximum = Maximum(point, -math.inf, (), 0, math.nan, f"could not start: {error}")
        evaluations, before = objective.evaluations - before, objective.evaluations
        found.append(dataclasses.replace(maximum, start=name, evaluations=evaluations))
    return found
