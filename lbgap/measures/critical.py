"""Critical sharpness: how long a step along the update direction may be before the loss rises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lbgap.checks import dense, moved, positive, whole
from lbgap.measures.call import Call, Options, call
from lbgap.objective import Objective
from lbgap.result import Measure
from lbgap.status import Status, status
from lbgap.system.progress import Report, check_progress, products_bar


def critical_sharpness(
    model: nn.Module | Objective,
    data: Any = None,
    direction: Tensor | None = None,
    *,
    initial: float | None = None,
    tolerance: float = 0.02,
    doublings: int = 30,
    progress: Report = False,
    **options: Unpack[Options],
) -> Measure:
    """Find the longest step along the update direction that does not raise the loss, as a sharpness.

    ``lambda_c = 2 / eta_c`` with eta_c the smallest step at which ``f(x + eta d) > f(x)``: Kalra 2026 (arXiv
    2601.16979). For a quadratic and ``d = -g`` it is ``g' H g / g' g``, the curvature along the gradient, at most the
    largest eigenvalue. For another direction it depends on the length of d.

    Doubling or halving until the loss has crossed, then bisection: where the loss crosses its value several times
    within a doubling, or dips between, a later crossing may be found.

    Args:
        model: Any ``torch.nn.Module``, never changed; or an :class:`~lbgap.objective.Objective`.
        data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        direction: d, ``(n,)``, in the order of ``Objective.theta``; minus the gradient by default.
        initial: The step tried first; by default where the parabola through the loss at x, its slope and the loss one
            Polyak step away, ``f(x) / |<g, d>|``, comes back to f(x), so that a quadratic is bracketed at once.
        tolerance: Relative width of the bracket at which the bisection ends; eta_c is its middle.
        doublings: Doublings or halvings at most.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device``, ``backend``,
            ``coupled``, ``judge`` and ``call``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        lambda_c. In ``details``: ``step`` eta_c; ``below`` and ``above``, the bracket; ``slope`` ``<g, d>``; ``length``
        of d; and ``dip``, the largest fall of the loss seen. Infinite where the loss rises at once along d, NaN where
        no step in the range raises it.

    Raises:
        ValueError: An argument is out of its range, or the direction does not fit the parameters.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The loss is NaN or infinite at the minimizer.

    Example:
        >>> import torch, lbgap
        >>> lbgap.critical_sharpness(torch.nn.Linear(2, 1), (torch.eye(2), torch.ones(2, 1)), loss="mse").value > 0
        True
    """
    doublings = whole("doublings", doublings, 1)
    own: dict[str, Any] = {
        "direction": "minus the gradient" if direction is None else "given",
        "initial": None if initial is None else positive("initial", initial, "0.1"),
        "tolerance": positive("tolerance", tolerance, "0.02"),
        "doublings": doublings,
    }
    if direction is not None:
        direction = dense("direction", "(n,)", direction, torch.float64, torch.device("cpu"))
    check_progress(progress)
    bisections = math.ceil(max(0.0, -math.log2(own["tolerance"])))
    with (
        call("critical_sharpness", model, data, options) as task,
        products_bar("critical sharpness", 3 + doublings + bisections, progress, "evaluations") as report,
    ):
        base, gradient = task.objective.loss_and_gradient(task.centre)
        report(1)
        d = -gradient if direction is None else _checked(direction, task.centre)
        slope = float((gradient.double() * d.double()).sum())
        below, above, why, dip = _bracket(task, float(base), d, slope, own, report)
        step = below / 2 + above / 2
        return task.result(
            2 / step if step else math.inf,
            base_loss=float(base),
            status=why,
            own=own,
            details={
                "step": step,
                "below": below,
                "above": above,
                "slope": slope,
                "length": float(d.double().norm()),
                "dip": dip,
            },
        )


def _checked(direction: Tensor, centre: Tensor) -> Tensor:
    if direction.shape != centre.shape:
        raise ValueError(f"direction must be ({len(centre)},), one number a parameter, got {tuple(direction.shape)}")
    direction = moved("direction", f"({len(centre)},)", direction, centre.dtype, centre.device)
    if not direction.isfinite().all() or not direction.any():
        raise ValueError("direction must be finite and not zero everywhere, got one that is not")
    return direction


def _bracket(
    task: Call, base: float, d: Tensor, slope: float, own: dict[str, Any], report: Callable[[int], None]
) -> tuple[float, float, Status, float]:
    """A step that does not raise the loss and a longer one that does, the status, and the largest fall seen."""
    dip = 0.0

    def rises(step: float) -> bool:
        nonlocal dip
        value = float(task.objective.losses((task.centre + step * d)[None]))
        dip = max(dip, base - value)
        report(1)
        return not value <= base  # neither does a loss that is not finite count as lower

    if slope == 0 and own["direction"] != "given":
        return math.nan, math.nan, status("no_gradient.direction"), dip
    if slope > 0:
        return 0.0, 0.0, status("rises"), dip
    step = own["initial"] or _first(task, base, d, slope, report)
    below, above = 0.0, math.inf
    for _ in range(own["doublings"] + 1):
        if rises(step):
            above = step
        else:
            below = step
        if below and above < math.inf:
            break
        step = step / 2 if above < math.inf else step * 2
    if above == math.inf:
        return math.nan, math.nan, status("no_rise.steps", largest=below), dip
    if not below:
        return 0.0, 0.0, status("rises.steps", smallest=above), dip
    while above / below - 1 > own["tolerance"]:
        middle = (below + above) / 2
        below, above = (below, middle) if rises(middle) else (middle, above)
    hidden = dip <= 10 * torch.finfo(task.objective.dtype).eps * abs(base)
    key = "rounding.bracket" if hidden else "converged.bracket"
    return below, above, status(key, percent=100 * (above / below - 1)), dip


def _first(task: Call, base: float, d: Tensor, slope: float, report: Callable[[int], None]) -> float:
    """Where the parabola through the loss and slope at x and the loss a Polyak step away comes back to f(x)."""
    polyak = abs(base / slope) if slope and base else 1.0
    if not 0 < torch.tensor(polyak, dtype=torch.float32, device="cpu").item() < math.inf:
        return 1.0
    value = float(task.objective.losses((task.centre + polyak * d)[None]))
    report(1)
    bend = value - base - slope * polyak
    step = -slope * polyak**2 / bend if bend > 0 and math.isfinite(bend) else polyak
    return step or polyak
