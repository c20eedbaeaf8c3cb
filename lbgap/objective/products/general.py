"""Products with the Hessian, the Gauss-Newton matrix or the empirical Fisher matrix, for any module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lbgap.flat import FlatModule
from lbgap.objective import tangents
from lbgap.objective.products.output import OutputCurvature
from lbgap.problem.batch import Batch
from lbgap.problem.loss import Loss
from lbgap.system.device import first_line


def add_products(flat: FlatModule, loss: Loss, batch: Batch, vectors: Tensor, out: Tensor, kind: str) -> None:
    """Add the products of one batch's summed loss.

    Args:
        flat: The replica, at the point concerned.
        loss: The loss.
        batch: Inputs and targets.
        vectors: ``(k, n)``.
        out: ``(k, n)``, added to.
        kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``.

    Raises:
        ValueError: Model or loss cannot be differentiated twice.
    """
    products = _hessian if kind == "hessian" else _through_outputs
    try:
        with tangents.differentiable():
            products(flat, loss, batch, vectors, out, kind)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"the model or the loss cannot be differentiated twice ({first_line(error)}): write what stops it in "
            "operations that have a second derivative"
        ) from error


def _hessian(flat: FlatModule, loss: Loss, batch: Batch, vectors: Tensor, out: Tensor, kind: str) -> None:
    """Differentiate ``<gradient, v>``, by Pearlmutter (1994); the graph of the gradient serves all vectors."""
    inputs, targets = batch
    total = loss.sums(flat.run(inputs), targets).total
    # From a one that has a gradient itself: a once_differentiable function would pass for a constant otherwise.
    one = torch.ones_like(total, requires_grad=True)
    slopes = torch.autograd.grad(total, flat.moving, one, create_graph=True, allow_unused=True)
    for vector, product in zip(vectors, out, strict=True):
        along = _inner(slopes, flat.parts(vector))
        if along is not None:
            tangents.check_whole(along)
            _add(flat, torch.autograd.grad(along, flat.moving, retain_graph=True, allow_unused=True), product)


def _through_outputs(flat: FlatModule, loss: Loss, batch: Batch, vectors: Tensor, out: Tensor, kind: str) -> None:
    """``J' C J v``: J v is the derivative of ``<J' u, v>`` in u; the graphs of the outputs and of J' u serve all."""
    inputs, targets = batch
    output = flat.run(inputs)
    curvature = OutputCurvature(loss, output.detach(), targets, kind)
    weights = torch.zeros_like(output, requires_grad=True)
    pulled = torch.autograd.grad(output, flat.moving, weights, create_graph=True, allow_unused=True)
    for vector, product in zip(vectors, out, strict=True):
        along = _inner(pulled, flat.parts(vector))
        if along is not None:
            tangents.check_whole(along)
            (tangent,) = torch.autograd.grad(along, weights, retain_graph=True)
            pushed = curvature(tangent.unsqueeze(1)).squeeze(1)
            _add(flat, torch.autograd.grad(output, flat.moving, pushed, retain_graph=True, allow_unused=True), product)


def _inner(slopes: Sequence[Tensor | None], parts: Sequence[Tensor]) -> Tensor | None:
    """Inner product of a gradient in parts, some of which may be missing, and a vector; None if it is a constant."""
    terms = [(slope * part).sum() for slope, part in zip(slopes, parts, strict=True) if slope is not None]
    along = torch.stack(terms).sum() if terms else None
    return along if along is not None and along.requires_grad else None


def _add(flat: FlatModule, found: Sequence[Tensor | None], product: Tensor) -> None:
    for part, place in zip(found, flat.parts(product), strict=True):
        if part is not None:
            place += part
