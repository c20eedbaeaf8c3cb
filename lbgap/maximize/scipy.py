"""The paper's recipe: SciPy's L-BFGS-B with its defaults, in float64 copies (Keskar et al. 2016, section 2.2.2)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.optimize
import torch
from torch import Tensor

from lbgap.maximize.climb import Climb, Listener, Maximum, starting_point
from lbgap.maximize.region import Box
from lbgap.objective import Objective
from lbgap.status import status

ITERATIONS = 10
NAMES = {0: "converged", 1: "limit"}  # of SciPy's statuses; 2 is a line search that found nothing

Vector = npt.NDArray[np.float64]


def maximise(
    objective: Objective,
    region: Box,
    *,
    start: Tensor | None = None,
    base: float | None = None,
    iterations: int = ITERATIONS,
    report: Listener | None = None,
) -> Maximum:
    """Maximise with ``scipy.optimize.minimize(method="L-BFGS-B")`` on the displacement from the centre.

    Only the number of iterations is set, everything else is SciPy's default. Unlike most scripts, the best point
    visited is returned, not the last. Values are always computed in the objective's full precision.

    Args:
        objective: What to maximise.
        region: Where.
        start: ``(n,)``; the centre by default.
        base: The loss at the centre; not used.
        iterations: Iterations of L-BFGS-B at most; each takes one or more gradients.
        report: Called with ``(evaluations, value)`` of every point.

    Returns:
        The best point visited; the status holds SciPy's own message.

    Raises:
        FloatingPointError: The loss is NaN or infinite at the start.
    """
    climb = Climb(objective, region, report)
    point = starting_point(region, start)
    gradient, vertex = torch.empty_like(point), torch.empty_like(point)
    centre = region.centre.double()
    bound = (region.absolute + region.relative * centre.abs()).cpu().numpy()

    def descend(displacement: Vector) -> tuple[float, Vector]:
        point.copy_(centre + torch.from_numpy(displacement).to(centre.device))
        region.project(point, out=point)
        value = float(objective.loss_and_gradient(point, out=gradient)[0])
        if climb.visit(point, value):
            climb.gap = float(region.vertex(point, gradient, out=vertex)[0])
        return -value, -gradient.double().cpu().numpy()

    first = (point.double() - centre).cpu().numpy()
    try:
        result = scipy.optimize.minimize(
            descend,
            first,
            jac=True,
            method="L-BFGS-B",
            bounds=scipy.optimize.Bounds(-bound, bound),
            options={"maxiter": iterations},
        )
    except FloatingPointError as error:
        if climb.value == -np.inf:
            raise
        return climb.finish(status("not_finite", error=error))
    ended = status(
        "*.scipy",
        name=NAMES.get(result.status, "given_up"),
        message=result.message,
        iterations=result.nit,
        gradients=result.nfev,
    )
    if result.nfev == 1:
        why = status("too_small.scipy") if gradient.any() else status("no_gradient")
        ended = status("*.because", name=why.name, ended=ended, why=why)
    return climb.finish(ended)
