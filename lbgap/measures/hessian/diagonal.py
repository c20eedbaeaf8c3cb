"""The diagonal of the Hessian, parameter by parameter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lbgap.checks import flag, positive
from lbgap.measures.call import Options, call
from lbgap.measures.hessian.probes import FEWEST, Products, check_limits, ended, share
from lbgap.objective import Objective
from lbgap.result import plain
from lbgap.system.progress import products_bar


@dataclass(frozen=True, eq=False)
class Diagonal:
    """An estimate of the diagonal of the Hessian at a minimizer.

    Attributes:
        values: ``(n,)``, in the order of ``Objective.theta``; ``Objective.split`` names its parts.
        standard_errors: ``(n,)``, of each over draws.
        relative_error: The norm of the standard errors divided by that of the values.
        draws: Random vectors, one product each.
        evaluations: Passes over the data, as the objective counts them.
        status: Why it ended, and what to try for a better estimate.
        settings: Everything that the result depends on.
        seconds: Wall-clock time of the call.
    """

    values: Tensor = field(repr=False)
    standard_errors: Tensor = field(repr=False)
    relative_error: float
    draws: int
    evaluations: float
    status: str
    settings: dict[str, Any] = field(repr=False)
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything but the two vectors, ready for JSON, with their sum, extremes and share of negative values."""
        kept = {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}
        del kept["values"], kept["standard_errors"]
        values = self.values.double()
        facts = {"sum": float(values.sum()), "least": float(values.min()), "largest": float(values.max())}
        return {**facts, "negative": float((values < 0).double().mean()), **kept}


def hessian_diagonal(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    kind: str = "hessian",
    relative_error: float | None = 0.1,
    most: int = 200,
    seed: int = 0,
    progress: bool = False,
    **options: Unpack[Options],
) -> Diagonal:
    """Estimate the diagonal of the Hessian at a minimizer.

    The mean of ``z * (H z)``, entry by entry, over vectors z of independent signs: Bekas, Kokiopoulou and Saad 2007,
    "An estimator for the diagonal of a matrix" (with signs, the divisor of their equation 2 is the number of draws).
    The variance of entry i is the sum of the squares of the others in its row.

    Args:
        model: Any ``torch.nn.Module`` that can be differentiated twice, never changed; or an
            :class:`~lbgap.objective.Objective`.
        data: ``(inputs, targets)``, a map-style ``Dataset`` or a ``DataLoader`` that does not shuffle.
        kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``, as in ``Objective.hvp``.
        relative_error: Stop after eight draws or more once the norm of the standard errors is at most this share of the
            norm of the estimate; None to use all products.
        most: Products at most.
        seed: Of the random vectors.
        progress: Show a progress bar on standard error.
        options: ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device`` and ``backend``, as
            in :func:`lbgap.fast_sharpness`.

    Returns:
        The diagonal with a standard error for each entry.

    Raises:
        ValueError: An argument is out of its range, or the model cannot be differentiated twice.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: A product is NaN or infinite.

    Example:
        >>> import torch, lbgap
        >>> d = lbgap.hessian_diagonal(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])), most=20)
        >>> d.values.shape
        torch.Size([6])
    """
    most, seed = check_limits(kind, most, seed, least=2)
    if relative_error is not None:
        relative_error = positive("relative_error", relative_error, "0.1")
    flag("progress", progress)
    with call("hessian_diagonal", model, data, options) as this, products_bar("diagonal", most, progress) as told:
        products = Products(this, kind, most, seed, told)
        mean, spread = torch.zeros_like(this.centre), torch.zeros_like(this.centre)
        draws, relative, reached = 0, float("inf"), False
        for block in products.probes():
            for draw in products(block).mul_(block):  # Welford's update, which loses nothing to cancellation
                draws += 1
                change = draw - mean
                mean += change / draws
                spread.addcmul_(change, draw - mean)
            if draws > 1:
                errors = (spread / (draws * (draws - 1))).sqrt_()
                relative = share(float(errors.double().norm()), float(mean.double().norm()))
            reached = relative_error is not None and draws >= FEWEST and relative <= relative_error
            if reached:
                break
        return Diagonal(
            values=mean,
            standard_errors=errors,
            relative_error=relative,
            draws=draws,
            evaluations=this.evaluations,
            status=ended(products.count, "the diagonal, by norms", relative, relative_error, reached),
            settings=this.settings({"kind": kind, "relative_error": relative_error, "most": most, "seed": seed}),
            seconds=this.seconds,
        )
