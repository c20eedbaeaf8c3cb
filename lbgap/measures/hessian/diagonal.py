"""The diagonal of the Hessian, parameter by parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from lbgap.checks import positive
from lbgap.measures.call import Options
from lbgap.measures.draws import FEWEST, share
from lbgap.measures.hessian.call import Spectral, Subject, check_limits, ended, estimate
from lbgap.measures.hessian.probes import Probes
from lbgap.measures.hessian.products import Products
from lbgap.system.progress import Report, check_progress, products_bar


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Diagonal(Spectral):
    """An estimate of the diagonal of a symmetric matrix; ``value`` is its sum, an estimate of the trace.

    Attributes:
        values: ``(n,)``; of an objective in the order of ``Objective.theta``, and ``Objective.split`` names its parts.
        standard_errors: ``(n,)``, of each over draws.
        relative_error: The norm of the standard errors divided by that of the values.
        draws: Random vectors, one product each.
    """

    apart: ClassVar[frozenset[str]] = frozenset({"values", "standard_errors"})

    values: Tensor
    standard_errors: Tensor
    relative_error: float
    draws: int

    def to_dict(self) -> dict[str, Any]:
        """Everything but the two vectors, ready for JSON, with their extremes and share of negative values."""
        return {**super().to_dict(), **self._facts()}

    def _facts(self) -> dict[str, float]:
        values = self.values.double()
        extremes = {"least": float(values.min()), "largest": float(values.max())}
        return {**extremes, "negative": float((values < 0).double().mean())}

    def _headline(self) -> str:
        facts = self._facts()
        return (
            f"diagonal of the {self.matrix}: from {facts['least']:.6g} to {facts['largest']:.6g}, "
            f"{100 * facts['negative']:.3g} % negative, sum {self.value:.6g}"
        )

    def _numbers(self) -> list[str]:
        return [f"{self.draws} draws, norm of the standard errors {100 * self.relative_error:.2g} % of the diagonal's"]


def hessian_diagonal(
    model: Subject,
    data: Any = None,
    *,
    kind: str = "hessian",
    relative_error: float | None = 0.1,
    max_products: int = 200,
    seed: int = 0,
    progress: Report = False,
    **options: Unpack[Options],
) -> Diagonal:
    """Estimate the diagonal of the Hessian at a minimizer, or of any symmetric matrix.

    The mean of ``z * (H z)``, entry by entry, over vectors z of independent signs: Bekas, Kokiopoulou and Saad 2007,
    "An estimator for the diagonal of a matrix" (with signs, the divisor of their equation 2 is the number of draws).
    The variance of entry i is the sum of the squares of the others in its row.

    Args:
        model: Any ``torch.nn.Module`` that can be differentiated twice, never changed, or an
            :class:`~lbgap.objective.Objective`: the matrix at its parameters is meant. Or any symmetric matrix, as a
            :class:`~lbgap.operators.LinearOperator` or a dense tensor ``(n, n)``.
        data: Of a module: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``, as in ``Objective.hvp``.
        relative_error: Stop after eight draws or more once the norm of the standard errors is at most this share of the
            norm of the estimate; None to use all products.
        max_products: Products at most.
        seed: Of the random vectors.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: Of a module, ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device`` and
            ``backend``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        The diagonal with a standard error for each entry.

    Raises:
        ValueError: An argument is out of its range, the model cannot be differentiated twice, or a tensor is no
            symmetric matrix.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: A product is NaN or infinite.

    Example:
        >>> import torch, lbgap
        >>> d = lbgap.hessian_diagonal(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])), max_products=20)
        >>> d.values.shape
        torch.Size([6])
    """
    max_products, seed = check_limits(kind, max_products, seed, least=2)
    if relative_error is not None:
        relative_error = positive("relative_error", relative_error, "0.1")
    check_progress(progress)
    with (
        estimate("hessian_diagonal", model, data, kind, options) as task,
        products_bar("diagonal", max_products, progress) as report,
    ):
        products, probes = Products(task.operator, max_products, report), Probes(task.operator, seed)
        mean, errors, draws, relative, reached = _mean(products, probes, relative_error)
        own = {"kind": kind, "relative_error": relative_error, "max_products": max_products, "seed": seed}
        return Diagonal(
            value=float(mean.double().sum()),
            values=mean,
            standard_errors=errors,
            relative_error=relative,
            draws=draws,
            products=products.count,
            evaluations=task.evaluations,
            status=ended(products.count, "the diagonal, by norms", relative, relative_error, reached),
            settings=task.settings(own),
            seconds=task.seconds,
        )


def _mean(products: Products, probes: Probes, asked: float | None) -> tuple[Tensor, Tensor, int, float, bool]:
    """The mean of ``z * (H z)``, its standard errors, the draws, the relative error, and whether it is as was asked."""
    to = products.operator
    mean, spread = (torch.zeros(to.size, dtype=to.dtype, device=to.device) for _ in range(2))
    unit = 1.0  # of the changes, whose squares would vanish where a matrix is tiny
    draws, relative, reached = 0, float("inf"), False
    for block in probes.signs_for(products):
        for draw in products(block).mul_(block):  # Welford's update, which loses nothing to cancellation
            draws += 1
            unit = unit if draws > 1 else _unit(draw)
            change = draw - mean
            mean += change / draws
            spread.addcmul_(change / unit, (draw - mean) / unit)
        if draws > 1:
            errors = (spread / (draws * (draws - 1))).sqrt_().mul_(unit)
            relative = share(float(errors.double().norm()), float(mean.double().norm()))
        reached = asked is not None and draws >= FEWEST and relative <= asked
        if reached:
            break
    return mean, errors, draws, relative, reached


def _unit(draw: Tensor) -> float:
    """A power of two of the size of some numbers where their squares vanish, else one: no other bit changes."""
    largest, tiny = float(draw.abs().max()), torch.finfo(draw.dtype).tiny
    return 1.0 if largest == 0 or largest**2 > tiny / torch.finfo(draw.dtype).eps else 2.0 ** math.frexp(largest)[1]
