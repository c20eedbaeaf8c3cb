"""Trace of the Hessian: Hutchinson's estimate, and Hutch++, which takes what is large exactly."""

from __future__ import annotations

import math
from typing import Any, Unpack

from torch import Tensor, nn

from lbgap.checks import flag, positive, whole
from lbgap.measures.call import Options, call
from lbgap.measures.hessian.lanczos import project_out, span
from lbgap.measures.hessian.probes import Mean, Products, check_limits, dots, ended
from lbgap.objective import Objective
from lbgap.result import Measure
from lbgap.system.progress import products_bar

METHODS = ("hutchinson", "hutch++")
SKETCH = 10


def hessian_trace(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    method: str = "hutchinson",
    kind: str = "hessian",
    relative_error: float | None = 0.05,
    most: int = 200,
    sketch: int | None = None,
    seed: int = 0,
    progress: bool = False,
    **options: Unpack[Options],
) -> Measure:
    """Estimate the trace of the Hessian at a minimizer.

    ``"hutchinson"``: the mean of ``z' H z`` over vectors z of independent signs (Hutchinson 1990), whose variance is
    ``2 (|H|_F^2 - sum_i H_ii^2)``. ``"hutch++"``: the trace on the span Q of ``H S``, S a few random vectors, is taken
    exactly, and only the rest is estimated, ``tr(Q' H Q) + E g' (I - Q Q') H (I - Q Q') g`` (Meyer et al. 2021, arXiv
    2010.09649, Algorithm 1, but with as many g as the stopping rule asks for). It pays where a few eigenvalues are much
    larger than the others.

    Args:
        model: Any ``torch.nn.Module`` that can be differentiated twice, never changed; or an
            :class:`~lbgap.objective.Objective`.
        data: ``(inputs, targets)``, a map-style ``Dataset`` or a ``DataLoader`` that does not shuffle.
        method: ``"hutchinson"`` or ``"hutch++"``.
        kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``, as in ``Objective.hvp``.
        relative_error: Stop after eight draws or more once the standard error is at most this share of the estimate;
            None to use all products. Stopping on the error makes it slightly too small.
        most: Products at most.
        sketch: Vectors of S, for ``"hutch++"``, each two products; by default 10, or the number of parameters if that
            is fewer.
        seed: Of the random vectors.
        progress: Show a progress bar on standard error.
        options: ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device`` and ``backend``, as
            in :func:`lbgap.fast_sharpness`.

    Returns:
        The trace and its standard error over draws (zero where nothing is left to estimate); in ``details``:
        ``variance`` of one draw, ``draws``, ``products``, the ``mean`` eigenvalue and, for ``"hutchinson"``,
        ``frobenius``, the root of the mean of ``|H z|^2``, which estimates the root of the sum of squared eigenvalues.

    Raises:
        ValueError: An argument is out of its range, or the model cannot be differentiated twice.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The loss or a product is NaN or infinite.

    Example:
        >>> import torch, lbgap
        >>> m = lbgap.hessian_trace(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])), most=20)
        >>> m.value > 0
        True
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    most, seed = check_limits(kind, most, seed, least=2)
    if relative_error is not None:
        relative_error = positive("relative_error", relative_error, "0.05")
    flag("progress", progress)
    if sketch is not None:
        sketch = whole("sketch", sketch, 1)
        if method == "hutchinson":
            raise ValueError(f"sketch belongs to method='hutch++', got {sketch} with method='hutchinson'")
    with call("hessian_trace", model, data, options) as this, products_bar("trace", most, progress) as told:
        if method == "hutch++":
            sketch = min(sketch or SKETCH, this.objective.n)
            if 2 * sketch + 2 > most:
                raise ValueError(f"most must be at least {2 * sketch + 2} with a sketch of {sketch}, got {most}")
        base = float(this.objective.loss(this.centre))
        products = Products(this, kind, most, seed, told)
        basis, known = _sketched(products, sketch) if sketch else (this.centre.new_empty(0, this.objective.n), 0.0)
        mean, squares = Mean(relative_error, offset=known), Mean(None)
        if len(basis) < this.objective.n:
            _draw(products, basis, mean, squares)
        own = {
            "method": method,
            "kind": kind,
            "relative_error": relative_error,
            "most": most,
            "sketch": sketch,
            "seed": seed,
        }
        details = {"variance": mean.variance, "draws": len(mean.draws), "products": products.count}
        details["mean"] = mean.value / this.objective.n
        if method == "hutchinson":
            details["frobenius"] = math.sqrt(squares.value)
        status = ended(products.count, "the trace", mean.relative, relative_error, mean.reached)
        return this.result(
            mean.value,
            standard_error=mean.error,
            base_loss=base,
            status=status if mean.draws else f"exact, to rounding: {products.count} products span all parameters",
            own=own,
            details=details,
        )


def _sketched(products: Products, sketch: int) -> tuple[Tensor, float]:
    """An orthonormal basis of the products of a few random vectors, and the trace on its span."""
    basis = span(products(products.signs(sketch)))
    return basis, float(dots(basis, products(basis)).sum()) if len(basis) else 0.0


def _draw(products: Products, basis: Tensor, mean: Mean, squares: Mean) -> None:
    """``z' H z`` and ``|H z|^2`` of random z orthogonal to the basis, until the trace is known well enough."""
    for z in products.probes():
        project_out(basis, z)
        images = products(z)
        mean.draws += dots(z, images).tolist()
        squares.draws += dots(images, images).tolist()
        if mean.reached:
            break
