"""How many large positive eigenvalues a Hessian has: the paper's words on sharp minimizers, as numbers."""

from __future__ import annotations

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from lbgap.checks import positive, whole
from lbgap.measures.call import Options
from lbgap.measures.hessian.call import Subject, check_limits, estimate
from lbgap.measures.hessian.density import Density, spectral_density
from lbgap.measures.hessian.eigenvalues import Eigenvalues, eigenvalues
from lbgap.result import Measure
from lbgap.status import Status, status
from lbgap.system.progress import Report, check_progress

COUNTED = 1e-6  # error of a number of eigenvalues, as a share, that is rounding
SHARE = 0.01  # of the largest eigenvalue: the threshold unless the caller gives one


def positive_mass(
    model: Subject,
    data: Any = None,
    *,
    threshold: float | None = None,
    top: int = 10,
    kind: str = "hessian",
    steps: int = 40,
    relative_error: float | None = 0.05,
    max_products: int = 500,
    seed: int = 0,
    progress: Report = False,
    **options: Unpack[Options],
) -> Measure:
    """Count the eigenvalues of the Hessian, or of any symmetric matrix, above a threshold, and add them up.

    Keskar et al. 2016 (arXiv 1609.04836) say that large-batch minimizers have "a large number of large positive
    eigenvalues". The largest ``top`` are found one by one, the rest by the spectral density of what is orthogonal to
    them. To compare minimizers, give the same ``threshold`` to all of them.

    Args:
        model: Any ``torch.nn.Module`` that can be differentiated twice, never changed, or an
            :class:`~lbgap.objective.Objective`: the matrix at its parameters is meant. Or any symmetric matrix, as a
            :class:`~lbgap.operators.LinearOperator` or a dense tensor ``(n, n)``.
        data: Of a module: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        threshold: Of an eigenvalue that counts as large; by default a hundredth of the largest absolute one found.
        top: Eigenvalues to find one by one, at most one less than the matrix has rows.
        kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``, as in ``Objective.hvp``.
        steps: Products for each probe of the density.
        relative_error: Stop after four probes or more once the standard errors of the density and of the sum above the
            threshold are at most this share; None to use all products.
        max_products: Products at most, for the density; as many again for the eigenvalues.
        seed: Of the random vectors.
        progress: True for bars on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: Of a module, ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device`` and
            ``backend``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        The number above the threshold, and its standard error over probes (zero where all of them were found one by
        one). In ``details``, those of sums with a ``_standard_error`` each: ``threshold``; ``sum`` of the eigenvalues
        above it; ``positive`` and ``negative``, the sums of all of either sign; ``negative_share``, the part of the
        negative ones in the sum of absolute values; ``trace``; and ``eigenvalues``, those found one by one.

    Raises:
        ValueError: An argument is out of its range, the model cannot be differentiated twice, or a tensor is no
            symmetric matrix.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The loss or a product is NaN or infinite.

    Example:
        >>> import torch, lbgap
        >>> m = lbgap.positive_mass(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])), top=2)
        >>> m.value >= 2
        True
    """
    max_products, seed = check_limits(kind, max_products, seed)
    top = whole("top", top, 1)
    steps = whole("steps", steps, 1)
    check_progress(progress)
    if threshold is not None:
        threshold = positive("threshold", threshold, "0.1")
    if relative_error is not None:
        relative_error = positive("relative_error", relative_error, "0.05")
    with estimate("positive_mass", model, data, kind, options) as task:
        n = task.operator.size
        if n < 2:
            raise ValueError(f"positive_mass needs two or more {task.rows}, got 1")
        base = task.base_loss()
        top = min(top, n - 1)
        shared: dict[str, Any] = {"kind": kind, "max_products": max_products, "seed": seed, "progress": progress}
        found = eigenvalues(task.matrix, k=top, **shared)
        limit = default_threshold([found]) if threshold is None else threshold
        rule: dict[str, Any] = {"relative_error": relative_error, "threshold": limit}
        rest = spectral_density(task.matrix, known=found, steps=steps, **rule, **shared)
        details = mass(rest, limit)
        count, error = details.pop("count"), details.pop("count_standard_error")
        own = {
            "threshold": threshold,
            "top": top,
            "kind": kind,
            "steps": steps,
            "relative_error": relative_error,
            "max_products": max_products,
            "seed": seed,
        }
        return task.result(
            count,
            standard_error=error,
            base_loss=base,
            status=_status(found, limit, rest, error),
            own=own,
            details={**details, "products": found.products + rest.products, "eigenvalues": list(found.values)},
        )


def default_threshold(found: list[Eigenvalues]) -> float:
    """A hundredth of the largest absolute eigenvalue of some minimizers; one where all are zero."""
    return SHARE * max(abs(value) for each in found for value in each.values) or 1.0


def mass(density: Density, threshold: float) -> dict[str, float]:
    """Number and sums of eigenvalues, from a density.

    Args:
        density: What :func:`lbgap.spectral_density` returned.
        threshold: Of an eigenvalue that counts as large, above zero.

    Returns:
        ``count`` above the threshold, ``sum`` of these, ``positive``, ``negative`` and ``trace`` of all, and
        ``negative_share``, each also with ``_standard_error``; and the ``threshold``.
    """

    def above(x: Tensor) -> Tensor:
        return (x > threshold).to(x)

    sums = {
        "count": density.sum(above),
        "sum": density.sum(lambda x: x * above(x)),
        "positive": density.sum(lambda x: x.clamp_min(0)),
        "negative": density.sum(lambda x: x.clamp_max(0)),
        "trace": density.sum(lambda x: x),
    }
    negative, whole_mass = density.each(lambda x: x.clamp_max(0).neg()), density.each(torch.abs)
    total = float(whole_mass.mean())
    share = float(negative.mean()) / total if total else 0.0
    # To first order, as of any ratio of means.
    spread = float((negative - share * whole_mass).std()) / math.sqrt(len(negative)) / total if total else 0.0
    sums["negative_share"] = share, spread
    errors = {f"{name}_standard_error": error for name, (_, error) in sums.items()}
    return {"threshold": threshold, **{name: value for name, (value, _) in sums.items()}, **errors}


def _status(found: Eigenvalues, threshold: float, rest: Density, error: float) -> Status:
    if not all(found.converged):
        return status("*.not_converged", name=found.status.name, found=found.status, rest=rest.status)
    below = found.values[-1] + found.residuals[-1] < threshold
    # Copies that a block missed show in the density: then the count has an error.
    key = "*.one_by_one" if below and error <= COUNTED * max(1, len(found.values)) else "*.beyond"
    return status(key, name=rest.status.name, count=len(found.values), rest=rest.status)
