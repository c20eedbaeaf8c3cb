"""Trace of the Hessian: Hutchinson's estimate, and Hutch++, which takes what is large exactly."""

from __future__ import annotations

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from lbgap.checks import positive, whole
from lbgap.measures.call import Options
from lbgap.measures.hessian.call import Subject, check_limits, ended, estimate
from lbgap.measures.hessian.means import Mean
from lbgap.measures.hessian.probes import AT_ONCE, Probes
from lbgap.measures.hessian.products import Products
from lbgap.measures.hessian.rows import dots, project_out, span
from lbgap.result import Measure
from lbgap.status import status
from lbgap.system.progress import Report, check_progress, products_bar

METHODS = ("hutchinson", "hutch++")
SKETCH = 10


def hessian_trace(
    model: Subject,
    data: Any = None,
    *,
    method: str = "hutchinson",
    kind: str = "hessian",
    relative_error: float | None = 0.05,
    max_products: int = 200,
    sketch: int | None = None,
    seed: int = 0,
    progress: Report = False,
    **options: Unpack[Options],
) -> Measure:
    """Estimate the trace of the Hessian at a minimizer, or of any symmetric matrix.

    ``"hutchinson"``: the mean of ``z' H z`` over vectors z of independent signs (Hutchinson 1990), whose variance is
    ``2 (|H|_F^2 - sum_i H_ii^2)``. ``"hutch++"``: the trace on the span Q of ``H S``, S a few random vectors, is taken
    exactly, and only the rest is estimated, ``tr(Q' H Q) + E g' (I - Q Q') H (I - Q Q') g`` (Meyer et al. 2021, arXiv
    2010.09649, Algorithm 1, but with as many g as the stopping rule asks for). It pays where a few eigenvalues are much
    larger than the others. Of a matrix that is no larger than S every row is multiplied, and the trace is exact.

    Args:
        model: Any ``torch.nn.Module`` that can be differentiated twice, never changed, or an
            :class:`~lbgap.objective.Objective`: the matrix at its parameters is meant. Or any symmetric matrix, as a
            :class:`~lbgap.operators.LinearOperator` or a dense tensor ``(n, n)``.
        data: Of a module: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        method: ``"hutchinson"`` or ``"hutch++"``.
        kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``, as in ``Objective.hvp``.
        relative_error: Stop after eight draws or more once the standard error is at most this share of the estimate;
            None to use all products. Stopping on the error makes it slightly too small.
        max_products: Products at most.
        sketch: Vectors of S, for ``"hutch++"``, each two products; by default 10, and at most the size of the matrix.
        seed: Of the random vectors.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: Of a module, ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device`` and
            ``backend``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        The trace and its standard error over draws (zero where nothing is left to estimate); in ``details``:
        ``variance`` of one draw, ``draws``, ``products``, the ``mean`` eigenvalue and, for ``"hutchinson"``,
        ``frobenius``, the root of the mean of ``|H z|^2``, which estimates the root of the sum of squared eigenvalues.

    Raises:
        ValueError: An argument is out of its range, the model cannot be differentiated twice, or a tensor is no
            symmetric matrix.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The loss or a product is NaN or infinite.

    Example:
        >>> import torch, lbgap
        >>> m = lbgap.hessian_trace(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])), max_products=20)
        >>> m.value > 0
        True
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    max_products, seed = check_limits(kind, max_products, seed, least=2)
    if relative_error is not None:
        relative_error = positive("relative_error", relative_error, "0.05")
    check_progress(progress)
    if sketch is not None:
        sketch = whole("sketch", sketch, 1)
        if method == "hutchinson":
            raise ValueError(f"sketch belongs to method='hutch++', got {sketch} with method='hutchinson'")
    with (
        estimate("hessian_trace", model, data, kind, options) as task,
        products_bar("trace", max_products, progress) as report,
    ):
        operator = task.operator
        if method == "hutch++":
            sketch = min(sketch or SKETCH, operator.size)
            needed = operator.size if sketch == operator.size else 2 * sketch + 2
            if needed > max_products:
                raise ValueError(
                    f"max_products must be at least {needed} with a sketch of {sketch}, got {max_products}"
                )
        base = task.base_loss()
        products, probes = Products(operator, max_products, report), Probes(operator, seed)
        mean, squares = Mean(relative_error), Mean(None)
        exact = sketch == operator.size
        if exact:
            mean.offset = _sum_of_rows(products)
        else:
            basis, mean.offset = _sketched(products, probes, sketch or 0)
            _draw(products, probes, basis, mean, squares)
        details = {"variance": mean.variance, "draws": len(mean.draws), "products": products.count}
        details["mean"] = mean.value / operator.size
        if method == "hutchinson":
            details["frobenius"] = math.sqrt(squares.value)
        own = {
            "method": method,
            "kind": kind,
            "relative_error": relative_error,
            "max_products": max_products,
            "sketch": sketch,
            "seed": seed,
        }
        return task.result(
            mean.value,
            standard_error=mean.error,
            base_loss=base,
            status=status("exact.rows", products=products.count)
            if exact
            else ended(products.count, "the trace", mean.relative, relative_error, mean.reached),
            own=own,
            details=details,
        )


def _sum_of_rows(products: Products) -> float:
    """The trace itself, by one product for each unit vector."""
    to = products.operator
    total = 0.0
    for start in range(0, to.size, AT_ONCE):
        units = torch.zeros(min(AT_ONCE, to.size - start), to.size, dtype=to.dtype, device=to.device)
        units[:, start:].fill_diagonal_(1)
        total += float(dots(units, products(units)).sum())
    return total


def _sketched(products: Products, probes: Probes, sketch: int) -> tuple[Tensor, float]:
    """An orthonormal basis of the products of some random vectors, and the trace on its span."""
    if not sketch:
        return probes.signs(0), 0.0
    basis = span(products(probes.signs(sketch)))
    return basis, float(dots(basis, products(basis)).sum()) if len(basis) else 0.0


def _draw(products: Products, probes: Probes, basis: Tensor, mean: Mean, squares: Mean) -> None:
    """``z' H z`` and ``|H z|^2`` of random z orthogonal to the basis, until the trace is known well enough."""
    for z in probes.signs_for(products):
        project_out(basis, z)
        images = products(z)
        mean.draws += dots(z, images).tolist()
        squares.draws += dots(images, images).tolist()
        if mean.reached:
            break
