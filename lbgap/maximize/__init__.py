"""Maximise an objective inside a region: one method a module, starting points for all of them.

Every method is ``maximise(objective, region, *, start, base, iterations, visited) -> Maximum``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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
SCOUT_SHARE, SMALLEST_SCOUT, LARGEST_SCOUT_SHARE = 32, 128, 8
SCOUT_ITERATIONS, SCOUT_TOLERANCE = 12, 1e-2
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


def scout_samples(objective: Objective, scout: int | None) -> int:
    """How many samples the starts climb on before all of them; 0 for no scouting.

    Args:
        objective: What is maximised.
        scout: What the user asked for; None for a thirty-second of the samples, at least 128, and none at all where
            that is more than an eighth.

    Raises:
        ValueError: ``scout`` is more than all samples.
    """
    if scout is None:
        chosen = max(SMALLEST_SCOUT, objective.samples // SCOUT_SHARE)
        return chosen if chosen * LARGEST_SCOUT_SHARE <= objective.samples else 0
    if scout > objective.samples:
        raise ValueError(f"scout must be between 0 and {objective.samples} samples, got {scout}")
    return scout


def maximise(
    objective: Objective,
    region: Box,
    *,
    method: str = "vertex",
    base: float = -math.inf,
    iterations: int | None = None,
    restarts: int = 0,
    scout: int | None = None,
    seed: int = 0,
    visited: Visited | None = None,
) -> list[Maximum]:
    """Maximise from every start.

    Vertex ascent scouts: from each start it climbs on a few samples, and only from there on all of them; from
    the centre its first step is taken with all samples, since that step chooses the basin. With restarts, all
    scouts are evaluated on all samples, and two of them go on: the centre's and the best of the others. The other
    methods, and vertex ascent with ``scout=0``, climb on all samples from every start.

    Args:
        objective: What to maximise.
        region: Where.
        method: ``"vertex"``, ``"apgd"`` or ``"scipy"``.
        base: The loss at the centre.
        iterations: Iterations a start; each method has its own default.
        restarts: Starts beside the centre; see :func:`starts`.
        scout: Samples to scout on; see :func:`scout_samples`.
        seed: Of the random starts.
        visited: Called with ``(evaluations, value)`` of every point.

    Returns:
        One maximum for each climb, scouts first (they have fewer ``samples``). One that could not start, because
        the loss there is not finite, has the value -inf and says so.

    Raises:
        ValueError: Unknown method, or a number out of range.
        TypeError: A number is not whole.
        FloatingPointError: The loss is NaN or infinite at the centre.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    iterations = DEFAULT_ITERATIONS[method] if iterations is None else iterations
    numbers = {
        "iterations": (iterations, 1),
        "restarts": (restarts, 0),
        "seed": (seed, 0),
        "scout": (scout or 0, 0),
    }
    for name, (value, least) in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    samples = scout_samples(objective, scout) if method == "vertex" else 0
    climb = functools.partial(METHODS[method], objective, region, base=base, iterations=iterations, visited=visited)
    few = objective.subset(samples) if samples else None
    if few is None:
        return [_from(name, point, climb) for name, point in starts(objective, region, restarts, seed)]
    scouts = _scout(objective, few, region, restarts, seed)
    chosen = scouts[:1]
    if restarts:
        losses = objective.losses(torch.stack([scout.point for scout in scouts[1:]]))
        losses[~losses.isfinite()] = -math.inf
        chosen.append(scouts[1 + int(losses.argmax())])
    return [*scouts, *(_from(scout.start, scout.point, climb) for scout in chosen)]


def _scout(objective: Objective, few: Objective, region: Box, restarts: int, seed: int) -> list[Maximum]:
    """Climb on a few samples from every start, the centre first."""
    first = region.centre.clone()
    region.vertex(first, objective.direction(first)[1], out=first)
    climb = functools.partial(
        vertex.maximise,
        few,
        region,
        base=float(few.loss(region.centre)),
        iterations=SCOUT_ITERATIONS,
        tolerance=SCOUT_TOLERANCE,
    )
    scouts = [
        _from(name, first if point is None else point, climb) for name, point in starts(few, region, restarts, seed)
    ]
    objective.evaluations += few.evaluations * few.samples / objective.samples
    return scouts


def _from(name: str, point: Tensor | None, climb: Callable[..., Maximum]) -> Maximum:
    """Climb from one start; a start whose loss is not finite is a result too, unless it is the centre."""
    try:
        return dataclasses.replace(climb(start=point), start=name)
    except FloatingPointError as error:
        if point is None:
            raise
        return Maximum(point, -math.inf, (), 0, math.nan, f"could not start: {error}", 0, name)
