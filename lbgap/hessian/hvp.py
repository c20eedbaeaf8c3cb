"""Products of the Hessian, the Gauss-Newton matrix or the empirical Fisher matrix with vectors, for any module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lbgap import _tangents
from lbgap._hardware import first_line
from lbgap.flat import FlatModule
from lbgap.losses import Loss

KINDS = ("hessian", "ggn", "fisher")


def add_products(flat: FlatModule, loss: Loss, batch: tuple[Tensor, Tensor], vectors: Tensor, out: Tensor) -> None:
    """Add ``H v`` of the summed loss of one batch, for each vector, by differentiating the gradient once more.

    The graph of the gradient is built once and serves all vectors.

    Args:
        flat: The replica, at the point concerned.
        loss: The loss.
        batch: Inputs and targets.
        vectors: ``(k, n)``.
        out: ``(k, n)``, added to.

    Raises:
        ValueError: The model cannot be differentiated twice.
    """
    inputs, targets = batch
    try:
        total, _ = loss.total(flat.module(inputs), targets)
        slopes = torch.autograd.grad(total, flat.moving, create_graph=True, allow_unused=True)
        for vector, product in zip(vectors, out, strict=True):
            along = _inner(slopes, flat.parts(vector))
            if not along.requires_grad:  # linear in these parameters
                continue
            _tangents._check_whole(along)
            found = torch.autograd.grad(along, flat.moving, retain_graph=True, allow_unused=True)
            for part, place in zip(found, flat.parts(product), strict=True):
                if part is not None:
                    place += part
    except RuntimeError as error:
        raise ValueError(f"the model cannot be differentiated twice: {first_line(error)}") from error


def _inner(slopes: Sequence[Tensor | None], parts: Sequence[Tensor]) -> Tensor:
    """Inner product of a gradient in parts, some of which may be missing, and a vector."""
    terms = [(slope * part).sum() for slope, part in zip(slopes, parts, strict=True) if slope is not None]
    return torch.stack(terms).sum() if terms else torch.zeros(())
