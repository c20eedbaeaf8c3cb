"""The noise that a classifier stands: sigma of the magnitude-aware PAC-Bayesian bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lbgap.checks import positive, whole
from lbgap.measures.call import Options, call
from lbgap.measures.draws import mean_and_error, normals
from lbgap.objective import Objective
from lbgap.result import Measure
from lbgap.status import Status, status
from lbgap.system.progress import Report, check_progress, products_bar

FIRST, SMALLEST, LARGEST = 0.1, 1e-8, 1e3  # sigma: tried first, and the range of the search
APART = 1.2  # ratio to the sigma between which the slope is taken: far enough for errors that are counts


def pac_bayes_sigma(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    deviation: float = 0.1,
    eps: float = 1e-3,
    draws: int = 10,
    tolerance: float = 0.02,
    seed: int = 0,
    progress: Report = False,
    **options: Unpack[Options],
) -> Measure:
    """Find the largest relative noise on the parameters that a classifier stands.

    The largest sigma with ``E error(x + u) <= error(x) + deviation``, ``u_i ~ N(0, sigma^2 x_i^2 + eps^2)``, where the
    error is the share of training samples that are misclassified: the magnitude-aware sigma' of Jiang et al. 2019
    (arXiv 1912.02178, appendix on PAC-Bayesian bounds). The larger, the flatter. With ``eps=0`` it does not change when
    the layers of a ReLU network are rescaled against each other.

    A bisection in log sigma on common random numbers: all sigma see the same draws of a standard normal. Where
    the error is not monotone in sigma, this is one of the places where it crosses.

    Args:
        model: A classifier, never changed; or an :class:`~lbgap.objective.Objective` of one.
        data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        deviation: Rise of the error that is allowed, as a share; 0.1 in the source.
        eps: Noise that also parameters near zero get, in their units; 1e-3 in the source.
        draws: Independent draws, two or more.
        tolerance: Relative width of the interval at which the bisection ends; the value is its lower end.
        seed: Of the noise.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device``, ``backend``,
            ``coupled``, ``judge`` and ``call``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        sigma, with its standard error to first order: that of the mean error at sigma, divided by the slope of the
        error in sigma. In ``details``: ``inverse_square``, 1 / sigma^2, the complexity that the source compares;
        ``error`` at x, ``noisy_error`` at sigma and its standard error; and ``kl``, the divergence that enters the
        bound (in nats) between N(x, diag(sigma^2 x_i^2 + eps^2)) and N(0, s^2 I) for the s that makes it least: ``1/2
        sum_i log((eps^2 + (sigma^2 + 1) |x|^2 / n) / (eps^2 + sigma^2 x_i^2))``. The bound adds the cost of choosing s
        and sigma, which is left out; so is the distance from the start of training, which is not known here.

    Raises:
        ValueError: An argument is out of its range, or the model is not a classifier.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import torch, lbgap
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)
        >>> 0.1 < lbgap.pac_bayes_sigma(model, (torch.eye(2), torch.tensor([0, 1])), draws=50).value < 10
        True
    """
    draws = whole("draws", draws, 2)
    seed = whole("seed", seed, 0)
    own: dict[str, Any] = {
        "deviation": positive("deviation", deviation, "0.1"),
        "eps": positive("eps", eps, "1e-3", zero=True),
        "draws": draws,
        "tolerance": positive("tolerance", tolerance, "0.02"),
        "seed": seed,
    }
    check_progress(progress)
    bisections = max(0, math.ceil(-math.log2(math.log2(1 + own["tolerance"]))))
    sigmas = 4 + math.ceil(math.log2(FIRST / SMALLEST)) + bisections  # at most; four are beside the search itself
    with (
        call("pac_bayes_sigma", model, data, options) as task,
        products_bar("PAC-Bayesian sigma", draws * sigmas, progress, "evaluations") as report,
    ):
        if task.objective.classes is None:
            raise ValueError(
                "pac_bayes_sigma counts misclassified samples: it needs class indices as targets and an output "
                "(batch, classes); for other models use average_sharpness"
            )
        loss, accuracy = task.objective.loss_and_accuracy(task.centre)
        error = 1 - float(accuracy) / 100
        search = Search(task.objective, task.centre, own, error, report)
        low, why = search.run()
        noisy, spread = mean_and_error(search.errors(low))
        details = {
            "error": error,
            "noisy_error": noisy,
            "noisy_error_standard_error": spread,
            "inverse_square": low**-2 if low else math.inf,
            "kl": _divergence(task.centre, low, own["eps"]),
        }
        return task.result(
            low,
            standard_error=spread / search.slope(low) if 0 < low < LARGEST else math.nan,
            base_loss=float(loss),
            status=why,
            own=own,
            details=details,
        )


class Search:
    """The bisection, and the errors at all sigma tried so far."""

    def __init__(
        self, objective: Objective, centre: Tensor, own: dict[str, Any], error: float, report: Callable[[int], None]
    ) -> None:
        self._objective, self._centre, self._own, self._report = objective, centre, own, report
        # Errors are counts over targets: half a target keeps rounding from deciding where they meet the limit.
        self._limit: float = error + own["deviation"] + 0.5 / (objective.counted * own["draws"])
        self._found: dict[float, list[float]] = {}

    def errors(self, sigma: float) -> list[float]:
        """The share of misclassified samples in each draw."""
        if sigma not in self._found:
            spread = (sigma**2 * self._centre**2 + self._own["eps"] ** 2).sqrt()
            draws = islice(normals(self._centre, self._own["seed"]), self._own["draws"])
            points = (self._centre + spread * draw for draw in draws)
            self._found[sigma] = [1 - float(self._objective.loss_and_accuracy(point)[1]) / 100 for point in points]
            self._report(len(self._found[sigma]))
        return self._found[sigma]

    def run(self) -> tuple[float, Status]:
        """The largest sigma that is allowed, and how it was found."""
        low, high = FIRST, FIRST
        while self._allowed(high):
            if high >= LARGEST:
                return high, status("no_rise.sigma", largest=high, deviation=self._own["deviation"])
            low, high = high, 2 * high
        if high == FIRST and self._own["eps"] and not self._allowed(0.0):
            return 0.0, status("rises.eps", eps=self._own["eps"])
        while low == high or not self._allowed(low):
            low, high = low / 2, low
            if low < SMALLEST:
                return 0.0, status("rises.sigma", smallest=high)
        while high / low - 1 > self._own["tolerance"]:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self._allowed(middle) else (low, middle)
        return low, status("converged.sigma", percent=100 * (high / low - 1), above=high)

    def slope(self, sigma: float) -> float:
        """Rise of the error per unit of sigma, from one sigma on either side; NaN where it does not rise."""
        below, above = (mean_and_error(self.errors(other))[0] for other in (sigma / APART, sigma * APART))
        return (above - below) / (sigma * APART - sigma / APART) if above > below else math.nan

    def _allowed(self, sigma: float) -> bool:
        return mean_and_error(self.errors(sigma))[0] <= self._limit


def _divergence(centre: Tensor, sigma: float, eps: float) -> float:
    """Least Kullback-Leibler divergence of the noisy parameters from a normal distribution around zero, in nats."""
    squares = centre.double() ** 2
    variance = eps**2 + sigma**2 * squares
    prior = eps**2 + (sigma**2 + 1) * squares.mean()
    return float(0.5 * torch.log(prior / variance).sum())
