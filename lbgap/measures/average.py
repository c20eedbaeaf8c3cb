"""The average case: how much the loss rises under Gaussian noise."""

from __future__ import annotations

from typing import Any, Unpack

from torch import nn

from lbgap.checks import flag, positive, whole
from lbgap.measures.call import Options, call
from lbgap.measures.draws import ended, known, mean_and_error, normals
from lbgap.objective import Objective
from lbgap.result import Measure
from lbgap.system.progress import Report, check_progress, products_bar


def average_sharpness(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    sigma: float = 0.01,
    draws: int = 20,
    adaptive: bool = False,
    antithetic: bool = True,
    relative_error: float | None = None,
    seed: int = 0,
    progress: Report = False,
    **options: Unpack[Options],
) -> Measure:
    """Measure how much the loss rises on average under Gaussian noise on the parameters.

    ``E f(x + u) - f(x)`` with ``u ~ N(0, sigma^2 I)``: the expected sharpness of Neyshabur et al. 2017 (arXiv
    1706.08947). With ``adaptive``, ``u_i ~ N(0, sigma^2 x_i^2)``, so that the value does not change when the
    layers of a ReLU network are rescaled against each other. To second order it is ``sigma^2 / 2`` times the trace of
    the Hessian.

    With ``antithetic`` a draw is the mean of ``u`` and ``-u``. Both have the same distribution, so the mean stays
    unbiased, and the first-order term, which is most of the variance away from a minimum, cancels.

    Args:
        model: Any ``torch.nn.Module``, never changed; or an :class:`~lbgap.objective.Objective`.
        data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        sigma: Standard deviation of the noise, in units of the parameters; with ``adaptive`` relative to them.
        draws: Independent draws at most, two or more.
        adaptive: Scale the noise by the parameters.
        antithetic: Use each draw in both directions, two evaluations.
        relative_error: Stop after eight draws or more once the standard error is at most this share of the mean; None
            for all draws. Stopping on the error makes the value, and more so the error, slightly too small.
        seed: Of the noise.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device``, ``backend``,
            ``coupled``, ``judge`` and ``call``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        The mean rise and its standard error over draws; in ``details`` the rise of each draw.

    Raises:
        ValueError: An argument is out of its range or does not fit the others.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The loss is NaN or infinite, at the minimizer or under noise.

    Example:
        >>> import torch, lbgap
        >>> m = lbgap.average_sharpness(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])), draws=4)
        >>> len(m.details["rises"])
        4
    """
    draws = whole("draws", draws, 2)
    seed = whole("seed", seed, 0)
    own: dict[str, Any] = {
        "sigma": positive("sigma", sigma, "0.01"),
        "draws": draws,
        "adaptive": flag("adaptive", adaptive),
        "antithetic": flag("antithetic", antithetic),
        "relative_error": None if relative_error is None else positive("relative_error", relative_error, "0.05"),
        "seed": seed,
    }
    check_progress(progress)
    with (
        call("average_sharpness", model, data, options) as task,
        products_bar("average sharpness", draws, progress, "draws") as report,
    ):
        objective, centre = task.objective, task.centre
        base = float(objective.loss(centre))
        noise = normals(centre, seed)
        rises: list[float] = []
        while len(rises) < draws and not known(rises, own["relative_error"]):
            u = own["sigma"] * next(noise) * (centre if adaptive else 1)
            points = (centre + u, centre - u) if antithetic else (centre + u,)
            try:
                rises.append(sum(float(objective.loss(point)) for point in points) / len(points) - base)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"under noise, in draw {len(rises) + 1} (try a smaller sigma), {error}"
                ) from error
            report(1)
        value, spread = mean_and_error(rises)
        return task.result(
            value,
            standard_error=spread,
            base_loss=base,
            status=ended(rises, own["relative_error"]),
            own=own,
            details={"rises": rises},
        )
