"""Where the largest eigenvalue stands against what a learning rate tolerates."""

from __future__ import annotations

import math
from typing import Any, Unpack

from torch import nn

from lbgap.checks import flag, positive
from lbgap.measures.call import Options, call
from lbgap.measures.hessian.call import check_limits
from lbgap.measures.hessian.eigenvalues import eigenvalues
from lbgap.objective import Objective
from lbgap.result import Measure
from lbgap.status import status
from lbgap.system.progress import Report, check_progress


def edge_of_stability(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    tolerance: float = 1e-3,
    max_products: int = 1000,
    seed: int = 0,
    progress: Report = False,
    **options: Unpack[Options],
) -> Measure:
    """Divide the largest eigenvalue of the Hessian by the one at which gradient descent ceases to be stable.

    On a quadratic, gradient descent with learning rate eta diverges along an eigenvector whose eigenvalue is above
    ``2 / eta``; with Polyak momentum beta above ``(2 + 2 beta) / eta``, with Nesterov's above ``(2 + 2 beta) / (eta (1
    + 2 beta))``. Cohen et al. 2021 (arXiv 2103.00065) saw full-batch training hover at that edge. It says nothing about
    adaptive methods such as ADAM, whose steps are preconditioned; for mini-batches see :func:`lbgap.batch_sharpness`.

    Args:
        model: Any ``torch.nn.Module`` that can be differentiated twice, never changed; or an
            :class:`~lbgap.objective.Objective`.
        data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        learning_rate: eta.
        momentum: beta, from 0 to below 1.
        nesterov: Whether the momentum is Nesterov's.
        tolerance: Residual of the eigenvalue, relative to it.
        max_products: Products at most.
        seed: Of the random start.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: Of a module, ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device`` and
            ``backend``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        The ratio: one at the edge, above it where gradient descent would leave the minimizer. In ``details``:
        ``lambda_max``, its ``residual``, the ``limit`` and ``products``.

    Raises:
        ValueError: An argument is out of its range, or the model cannot be differentiated twice.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The loss or a product is NaN or infinite.

    Example:
        >>> import torch, lbgap
        >>> data = torch.eye(2), torch.tensor([0, 1])
        >>> lbgap.edge_of_stability(torch.nn.Linear(2, 2), data, learning_rate=0.1).value < 1
        True
    """
    max_products, seed = check_limits("hessian", max_products, seed)
    learning_rate = positive("learning_rate", learning_rate, "0.1")
    momentum = positive("momentum", momentum, "0.9", zero=True)
    if momentum >= 1:
        raise ValueError(f"momentum must be below one, got {momentum}: try 0.9")
    nesterov = flag("nesterov", nesterov)
    tolerance = positive("tolerance", tolerance, "1e-3")
    check_progress(progress)
    limit = (2 + 2 * momentum) / learning_rate / (1 + 2 * momentum if nesterov else 1)
    with call("edge_of_stability", model, data, options) as task:
        base = float(task.objective.loss(task.centre))
        found = eigenvalues(
            task.objective, k=1, tolerance=tolerance, max_products=max_products, seed=seed, progress=progress
        )
        (largest,), (residual,) = found.values, found.residuals
        ratio = largest / limit if limit else math.inf
        side = "above" if largest - residual > limit else "below" if largest + residual < limit else "at"
        own = {
            "learning_rate": learning_rate,
            "momentum": momentum,
            "nesterov": nesterov,
            "tolerance": tolerance,
            "max_products": max_products,
            "seed": seed,
        }
        details = {"lambda_max": largest, "residual": residual, "limit": limit, "products": found.products}
        ended = status(f"{side}.edge", found=found.status)
        return task.result(ratio, base_loss=base, status=ended, own=own, details=details)
