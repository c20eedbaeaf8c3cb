"""The worst case in a Euclidean ball: sharpness as SAM and ASAM see it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lbgap.checks import flag, positive, whole
from lbgap.maximize.climb import Climb, Listener, Maximum, from_start
from lbgap.measures.call import Call, Options, call
from lbgap.measures.draws import normals
from lbgap.measures.sharpness import Sharpness, entry, loss_at_minimizer, or_centre, phi
from lbgap.objective import Objective
from lbgap.status import status
from lbgap.system.progress import Report, check_progress, evaluations_bar

TOLERANCE = 5e-4
SHORTEST_STEP = 1e-3  # in radii
FAR = 1e6  # in radii; beyond it a step is the gradient's direction itself


@dataclass(frozen=True, eq=False)
class Ball:
    """All ``x + T u`` with ``|u|_2 <= radius``.

    Attributes:
        centre: x, ``(n,)``.
        radius: rho.
        scale: The diagonal of T, ``(n,)``; None for the identity.
    """

    centre: Tensor
    radius: float
    scale: Tensor | None = None

    def point(self, u: Tensor) -> Tensor:
        """The point ``x + T u``, to rounding."""
        return self.centre + self.scaled(u)

    def scaled(self, vector: Tensor) -> Tensor:
        """``T vector``."""
        return vector if self.scale is None else self.scale * vector

    def project(self, u: Tensor) -> Tensor:
        """The nearest u in the ball."""
        length = _norm(u)
        return u * (self.radius / length) if length > self.radius else u


def ball_sharpness(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    radius: float = 0.05,
    adaptive: bool = False,
    eta: float = 0.01,
    iterations: int = 20,
    restarts: int = 0,
    seed: int = 0,
    progress: Report = False,
    **options: Unpack[Options],
) -> Sharpness:
    """Measure how much the loss can rise in a Euclidean ball around a minimizer.

    ``max f(x + d) - f(x)`` over ``|d|_2 <= radius``: Foret et al. 2021 (SAM, arXiv 2010.01412, equation 1). With
    ``adaptive``, over ``|T^-1 d|_2 <= radius``, ``T = diag(|x_i| + eta)``: Kwon et al. 2021 (ASAM, arXiv 2102.11600).
    Searched by projected gradient ascent with normalised steps; the first is the SAM step ``radius T^2 g / |T g|``.
    The result is a lower bound, certified as in :func:`lbgap.fast_sharpness`: its ``rise`` is the raw
    difference, its ``value`` the same as phi in percent, its ``gap`` that of the ball, ``radius |T g| - <g, d>``.
    The point is in the ball to the rounding of its coordinates.

    Args:
        model: Any ``torch.nn.Module``, never changed; or an :class:`~lbgap.objective.Objective`.
        data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        radius: rho, in units of the parameters; with ``adaptive`` relative to them. SAM trains with about 0.05, ASAM
            with 0.5 to 1.
        adaptive: Scale the ball by the parameters. With ``eta=0`` the value does not change when the layers of a ReLU
            network are rescaled against each other; ASAM leaves biases unscaled, here they are like all others.
        eta: Least scale of a coordinate; 0.01 as in ASAM. Without ``adaptive`` it means nothing.
        iterations: Gradients at most from each start.
        restarts: Starts beside the minimizer: random points on the sphere.
        seed: Of these points.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device``, ``backend``,
            ``coupled``, ``judge`` and ``call``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        The sharpness with everything it depends on; ``epsilon`` in its settings is the radius.

    Raises:
        ValueError: An argument is out of its range or does not fit the others.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The loss is NaN or infinite at the minimizer.

    Example:
        >>> import torch, lbgap
        >>> s = lbgap.ball_sharpness(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])), radius=0.1)
        >>> s.rise > 0
        True
    """
    radius, eta = positive("radius", radius, "0.05"), positive("eta", eta, "0.01", zero=True)
    adaptive = flag("adaptive", adaptive)
    iterations = whole("iterations", iterations, 1)
    restarts = whole("restarts", restarts, 0)
    seed = whole("seed", seed, 0)
    check_progress(progress)
    own = {
        "region": "adaptive l2" if adaptive else "l2",
        "epsilon": radius,
        **({"eta": eta} if adaptive else {}),
        "method": "projected gradient ascent",
        "iterations": iterations,
        "restarts": restarts,
        "seed": seed,
    }
    with call("ball_sharpness", model, data, options) as task:
        ball = Ball(task.centre, radius, task.centre.abs() + eta if adaptive else None)
        with evaluations_bar("sharpness", (restarts + 1) * iterations, progress) as report:
            return _search(task, ball, own, report)


def _search(task: Call, ball: Ball, own: dict[str, Any], report: Listener | None) -> Sharpness:
    """Climb from every start and keep the highest."""
    base = loss_at_minimizer(task.objective)
    climb = functools.partial(ascend, ball=ball, base=base, iterations=own["iterations"], report=report)
    climbs = [from_start(task.objective, name, u, climb) for name, u in _starts(ball, own["restarts"], own["seed"])]
    best = or_centre(max(climbs, key=lambda found: found.value), ball.centre, base)
    value = phi(best.value, base)
    return Sharpness(
        value=value,
        values=(value,),
        standard_deviation=math.nan,
        base_loss=base,
        max_loss=best.value,
        point=best.point,
        evaluations=task.evaluations,
        history=best.history,
        gap=best.gap,
        status=best.status,
        starts=tuple(map(entry, climbs)),
        settings=task.settings(own),
        seconds=task.seconds,
    )


def _starts(ball: Ball, restarts: int, seed: int) -> Iterator[tuple[str, Tensor | None]]:
    yield "centre", None
    draws = normals(ball.centre, seed)
    for index in range(restarts):
        u = next(draws)
        yield f"random {index}", u * (ball.radius / _norm(u))


def ascend(
    objective: Objective,
    *,
    ball: Ball,
    start: Tensor | None = None,
    base: float,
    iterations: int,
    report: Listener | None = None,
) -> Maximum:
    """Climb in u along the normalised gradient ``T g / |T g|``, projecting onto the ball, from the best point yet.

    The first step has the length of the radius. A step that leads higher doubles the next one, which tends to the full
    Frank-Wolfe step ``u = radius T g / |T g|``; one that does not is undone, and the next is four times shorter. It
    stops where the gap falls under 0.05 % of the rise, or where nothing changes any more. With ``precision="mixed"``
    all gradients but that at the centre are in bfloat16.

    Args:
        objective: What to maximise.
        ball: Where.
        start: u, ``(n,)``; zero, the centre, by default.
        base: The loss at the centre, from which the rise counts.
        iterations: Gradients at most; the point after the last is evaluated too.
        report: Called with ``(evaluations, value)`` of every point.

    Raises:
        FloatingPointError: The loss is NaN or infinite at the start.
    """
    climb = Climb(objective, ball, report)
    u = torch.zeros_like(ball.centre) if start is None else start
    best, up, step = u, u, ball.radius
    for iteration in range(1, iterations + 1):
        exact = start is None and iteration == 1
        point = ball.point(u)
        try:
            value, gradient = (objective.loss_and_gradient if exact else objective.direction)(point)
        except FloatingPointError as error:
            if iteration == 1:
                raise
            return climb.finish(status("not_finite", error=error))
        if climb.visit(point, float(value)):
            slope = ball.scaled(gradient)
            steepness = _norm(slope)
            climb.gap = ball.radius * steepness - float((slope.double() * u.double()).sum())
            if steepness == 0:
                flat = status("converged.ball", gradients=iteration, percent=0)
                return climb.finish(status("no_gradient") if iteration == 1 else flat)
            if climb.gap <= TOLERANCE * (climb.value - base):
                return climb.finish(status("converged.ball", gradients=iteration, percent=100 * TOLERANCE))
            best, up = u, slope / steepness
            step = step if iteration == 1 else min(2 * step, FAR * ball.radius)
        else:
            step = min(step, ball.radius) / 4
            if step < SHORTEST_STEP * ball.radius:
                return climb.finish(status("converged.short", gradients=iteration, radii=4 * step / ball.radius))
        u = ball.project(best + step * up)
        if torch.equal(ball.point(u), climb.best):
            still = status("converged.still", gradients=iteration)
            return climb.finish(status("rounding.ball") if iteration == 1 and start is None else still)
    return climb.finish(status("limit.gradients", gradients=iterations), last=ball.point(u))


def _norm(vector: Tensor) -> float:
    return float(vector.double().norm())
