"""Relative flatness of a layer: the trace of its Hessian, weighted by the inner products of its rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lbgap.checks import flag, whole
from lbgap.measures.call import Call, Options, call
from lbgap.measures.draws import mean_and_error
from lbgap.objective import Objective
from lbgap.result import Measure
from lbgap.status import status
from lbgap.system.progress import Report, check_progress, products_bar

AT_ONCE = 16  # vectors that share one gradient
LARGEST = 1 << 24  # numbers in them, at most


def relative_flatness(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    layer: str | None = None,
    exact: bool | None = None,
    draws: int = 32,
    seed: int = 0,
    progress: Report = False,
    **options: Unpack[Options],
) -> Measure:
    """Measure the relative flatness of a layer; small is flat.

    ``kappa = sum_{s,s'} <w_s, w_s'> Tr(H_{s,s'})`` over the rows w_s of the weight matrix W ``(out, in)``, one an
    output neuron, with H_{s,s'} the ``(in, in)`` block of the Hessian of the loss: Petzka et al. 2021 (arXiv
    2001.00939). It does not change when the layers of a ReLU network are rescaled against each other.

    With W = C B', B orthonormal, kappa is the sum of ``z' H z`` over ``z = c_k e_j'``, c_k the columns of C and e_j
    unit vectors: exact, ``rank(W) in`` Hessian-vector products. The estimate is Hutchinson's: ``z = W R`` with R ``(in,
    in)`` independent signs has ``E z_sj z_s'j' = <w_s, w_s'> [j = j']``, so ``E z' H z = kappa``, whatever H.

    Args:
        model: Any ``torch.nn.Module`` that can be differentiated twice, never changed; or an
            :class:`~lbgap.objective.Objective`.
        data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        layer: Name of a layer (``"4"``) or of its weight (``"4.weight"``), which must have two dimensions; by default
            the last of the parameters that may move and have them.
        exact: Take all products, or estimate. By default exact where that takes no more products than ``draws``.
        draws: Random z of the estimate, two or more.
        seed: Of these.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device``, ``backend``,
            ``coupled``, ``judge`` and ``call``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        kappa and, where it is estimated, its standard error over draws.

    Raises:
        ValueError: An argument is out of its range; no such layer (the message lists them); or the model cannot be
            differentiated twice.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The loss or a second derivative is NaN or infinite.

    Example:
        >>> import torch, lbgap
        >>> m = lbgap.relative_flatness(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])), exact=True)
        >>> m.settings["layer"], m.value > 0
        ('weight', True)
    """
    if layer is not None and not isinstance(layer, str):
        raise TypeError(f"layer must be a name such as '4' or '4.weight', got {layer!r}")
    exact = None if exact is None else flag("exact", exact)
    draws = whole("draws", draws, 2)
    seed = whole("seed", seed, 0)
    check_progress(progress)
    with call("relative_flatness", model, data, options) as task:
        name = _layer(task.objective, layer)
        weight = task.objective.split(task.centre)[name]
        factor = _factor(weight)
        products = factor.shape[1] * weight.shape[1]
        exact = products <= draws if exact is None else exact
        base = float(task.objective.loss(task.centre))
        matrices = _units(factor, weight) if exact else _signs(weight, draws, seed)
        with products_bar("relative flatness", products if exact else draws, progress) as report:
            found = _curvatures(task, name, matrices, report)
        own = {"layer": name, "exact": exact, "draws": None if exact else draws, "seed": None if exact else seed}
        details = {"outputs": weight.shape[0], "inputs": weight.shape[1], "rank": factor.shape[1]}
        value, error = (math.fsum(found), math.nan) if exact else mean_and_error(found)
        if exact:
            why = status("exact.products", products=products)
        else:
            why = status("complete.estimate", draws=draws, products=products)
        return task.result(value, standard_error=error, base_loss=base, status=why, own=own, details=details)


def _layer(objective: Objective, layer: str | None) -> str:
    """The name of the weight matrix that the user means."""
    matrices = [name for name, part in objective.split(objective.theta).items() if part.dim() == 2]
    if not matrices:
        raise ValueError(
            "relative flatness needs a weight with two dimensions among the parameters that may move, which are "
            + ", ".join(objective.names)
        )
    if layer is None:
        return matrices[-1]
    for name in (layer, f"{layer}.weight"):
        if name in matrices:
            return name
    raise ValueError(f"layer must be one of {', '.join(map(repr, matrices))}, got {layer!r}")


def _factor(weight: Tensor) -> Tensor:
    """C with ``C C' = W W'``, ``(out, rank)``, in the dtype of W."""
    left, values, _ = torch.linalg.svd(weight.double(), full_matrices=False)
    kept = values > values.max() * max(weight.shape) * torch.finfo(torch.float64).eps
    factor: Tensor = (left * values)[:, kept].to(weight)
    return factor


def _units(factor: Tensor, weight: Tensor) -> Iterator[Tensor]:
    for column in factor.T:
        for index in range(weight.shape[1]):
            z = torch.zeros_like(weight)
            z[:, index] = column
            yield z


def _signs(weight: Tensor, draws: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = weight.shape[1]
    for _ in range(draws):
        bits = torch.randint(0, 2, (width, width), generator=generator, device="cpu", dtype=torch.int8)
        yield weight @ (2 * bits - 1).to(weight)


def _curvatures(task: Call, name: str, matrices: Iterator[Tensor], report: Callable[[int], None]) -> list[float]:
    """``z' H z`` for each z, several to a gradient."""
    vectors = task.centre.new_zeros(max(1, min(AT_ONCE, LARGEST // len(task.centre))), len(task.centre))
    parts = [task.objective.split(vector)[name] for vector in vectors]
    found: list[float] = []
    filled = 0
    for matrix in matrices:
        parts[filled].copy_(matrix)
        filled += 1
        if filled == len(parts):
            found += task.objective.curvatures(task.centre, vectors).tolist()
            report(filled)
            filled = 0
    if filled:
        found += task.objective.curvatures(task.centre, vectors[:filled]).tolist()
        report(filled)
    return found
