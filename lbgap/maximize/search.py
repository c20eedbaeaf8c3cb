"""Maximise an objective inside a region by any method: from which points, and on which samples first."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lbgap.checks import Amount, amount, counted, whole
from lbgap.maximize import apgd, lbfgsb, scipy, vertex
from lbgap.maximize.climb import Listener, Maximum, from_start, of_part
from lbgap.maximize.region import Box
from lbgap.objective import Objective

METHODS: dict[str, Callable[..., Maximum]] = {
    "vertex": vertex.maximise,
    "apgd": apgd.maximise,
    "lbfgsb": lbfgsb.maximise,
    "scipy": scipy.maximise,
}
Start = tuple[str, Tensor | None]
SCOUT_SHARE, SMALLEST_SCOUT, LARGEST_SCOUT_SHARE = 32, 128, 8
SCOUT_ITERATIONS, SCOUT_TOLERANCE = 12, 1e-2
DEFAULT_ITERATIONS = {
    "vertex": vertex.ITERATIONS,
    "apgd": apgd.ITERATIONS,
    "lbfgsb": lbfgsb.ITERATIONS,
    "scipy": scipy.ITERATIONS,
}


def starts(objective: Objective, region: Box, restarts: int, seed: int) -> Iterator[Start]:
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
        uniform = torch.rand(region.centre.shape, generator=generator, dtype=torch.float64, device="cpu")
        share = uniform.mul_(2).sub_(1).to(region.centre)
        point = region.centre + share * region.half_width()
        region.project(point, out=point)
        yield f"random {index}", point


def check(method: str, iterations: int | None, restarts: int, scout: Amount | None, seed: int) -> dict[str, Any]:
    """Judge the arguments of :func:`maximise` that need no data; returns them, the method's own iterations by default.

    Raises:
        ValueError: Unknown method, or a number out of range.
        TypeError: A number is not whole.
    """
    if method not in tuple(METHODS):  # nor is a list, which has no hash
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    iterations = DEFAULT_ITERATIONS[method] if iterations is None else iterations
    return {
        "method": method,
        "iterations": whole("iterations", iterations, 1),
        "restarts": whole("restarts", restarts, 0),
        "scout": None if scout is None else amount("scout", scout, 0),
        "seed": whole("seed", seed, 0),
    }


def check_scaling(method: str, scaling: str | None) -> str | None:
    """Judge the scaling of the loss, which only L-BFGS-B knows; returns what it uses, None for the other methods.

    Raises:
        ValueError: Unknown scaling, or one given for another method.
    """
    if method != "lbfgsb":
        if scaling is not None:
            raise ValueError(
                f"scaling belongs to method='lbfgsb', got {scaling!r} with method={method!r}: leave it out"
            )
        return None
    if scaling is not None and scaling not in lbfgsb.SCALINGS:
        raise ValueError(f"scaling must be one of {', '.join(map(repr, lbfgsb.SCALINGS))}, got {scaling!r}")
    return scaling or lbfgsb.SCALINGS[0]


def scout_samples(objective: Objective, method: str, restarts: int, scout: int | float | None) -> int:
    """How many samples the restarts climb on before all of them; 0 for no scouting.

    Args:
        objective: What is maximised.
        method: Only ``"vertex"`` scouts, and only where a loss does not depend on the batch.
        restarts: Starts beside the centre, which never scouts.
        scout: What the user asked for; None for a thirty-second of the samples, at least 128, and none at all where
            that is more than an eighth.

    Raises:
        ValueError: ``scout`` is more than all samples.
    """
    scout = None if scout is None else counted(scout, objective.samples)
    if scout is not None and scout > objective.samples:
        raise ValueError(f"scout must be between 0 and {objective.samples} samples, got {scout}")
    if method != "vertex" or not restarts or objective.coupled:
        return 0
    chosen = max(SMALLEST_SCOUT, objective.samples // SCOUT_SHARE)
    return scout if scout is not None else chosen if chosen * LARGEST_SCOUT_SHARE <= objective.samples else 0


def maximise(
    objective: Objective,
    region: Box,
    *,
    method: str = "vertex",
    base: float | None = None,
    iterations: int | None = None,
    restarts: int = 0,
    scout: Amount | None = None,
    seed: int = 0,
    scaling: str | None = None,
    also: Sequence[Start] = (),
    report: Listener | None = None,
) -> Iterator[Maximum]:
    """Maximise from every start, the centre first.

    In vertex ascent the restarts scout: each climbs on a few samples first, and goes on with all of them if its loss
    on all is above that of every scout before it. So what is climbed does not depend on the starts that follow, and
    more restarts never find less. The centre does not scout: where a minimum is flat, the vertex that a few samples
    lead to is that of another function. The other methods, and ``scout=0``, climb on all samples from every start.

    Where there are restarts, a vertex that is higher than all before is refined by APGD, whose steps become small: near
    it a point that lies inside the box in some coordinates may be higher by up to a percent.

    Args:
        objective: What to maximise.
        region: Where.
        method: ``"vertex"``, ``"apgd"``, ``"lbfgsb"`` or ``"scipy"``.
        base: The loss at the centre, evaluated by default.
        iterations: Iterations a start; each method has its own default.
        restarts: Starts beside the centre; see :func:`starts`.
        scout: Samples to scout on; see :func:`scout_samples`.
        seed: Of the random starts.
        scaling: See :func:`lbgap.maximize.lbfgsb.maximise`.
        also: Names and points of further starts, right behind the centre; they do not scout either.
        report: Called with ``(evaluations, value)`` of every point.

    Returns:
        One maximum for each climb, as it ends; those of scouts have fewer ``samples``. One that could not start,
        because the loss there is not finite, has the value -inf and says so.

    Raises:
        ValueError: Unknown method, or a number out of range.
        TypeError: A number is not whole.
        FloatingPointError: The loss is NaN or infinite at the centre.
    """
    own = check(method, iterations, restarts, scout, seed)
    iterations, restarts, seed = (own[name] for name in ("iterations", "restarts", "seed"))
    samples = scout_samples(objective, method, restarts, own["scout"])
    few = objective.subset(samples) if samples else None
    base = float(objective.loss(region.centre)) if base is None else base
    shared: dict[str, Any] = {"region": region, "base": base, "report": report}
    shared |= {} if scaling is None else {"scaling": scaling}
    climb = functools.partial(METHODS[method], iterations=iterations, **shared)
    ways = starts(few or objective, region, restarts, seed)
    climbs = _climbs(objective, few, region, [next(ways), *also], ways, climb)
    if method != "vertex" or not restarts:
        return climbs
    steps = iterations * apgd.ITERATIONS // vertex.ITERATIONS
    return _refined(objective, climbs, functools.partial(apgd.maximise, iterations=max(steps, 1), **shared))


def _refined(objective: Objective, climbs: Iterator[Maximum], climb: Callable[..., Maximum]) -> Iterator[Maximum]:
    """Every climb, and from the vertex where it led higher than those before another with smaller steps."""
    highest = -math.inf
    for found in climbs:
        yield found
        if found.samples == objective.samples and found.value > highest:
            highest = found.value
            yield from_start(objective, f"{found.start}, refined", found.point, climb)


def _climbs(
    objective: Objective,
    few: Objective | None,
    region: Box,
    first: Sequence[Start],
    ways: Iterator[Start],
    climb: Callable[..., Maximum],
) -> Iterator[Maximum]:
    """Climb from the first starts; from every other on a few samples, and then on all where that leads higher."""
    for start in first:
        yield from_start(objective, *start, climb)
    if few is None:
        for start in ways:
            yield from_start(objective, *start, climb)
        return
    scouting = functools.partial(
        vertex.maximise,
        region=region,
        base=float(few.loss(region.centre)),
        iterations=SCOUT_ITERATIONS,
        tolerance=SCOUT_TOLERANCE,
    )
    highest = -math.inf
    for name, point in ways:
        scout = of_part(from_start(few, name, point, scouting), few.samples / objective.samples)
        yield scout
        value = float(objective.losses(scout.point[None]))
        if highest < value < math.inf:
            highest = value
            yield from_start(objective, name, scout.point, climb)
