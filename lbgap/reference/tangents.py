"""Plain-PyTorch twins of the ops on tangents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def tangents_scale(t: Tensor, first: Tensor, out: Tensor) -> None:
    """Multiply by what all vectors share; see :func:`lbgap.ops.tangents_scale`."""
    if t.dtype == first.dtype:
        torch.mul(t, first.unsqueeze(1), out=out)
    else:
        out.copy_(_product(t, first.unsqueeze(1)))


def tangents_curve(r: Tensor, first: Tensor, curve: Tensor, t: Tensor, out: Tensor) -> None:
    """Take R{gradient} back through an activation; see :func:`lbgap.ops.tangents_curve`."""
    bent = _product(t, curve.unsqueeze(1))
    out.copy_(bent.addcmul_(first.unsqueeze(1), _wide(r)))


def tangents_affine(
    t: Tensor, scale: Tensor, slopes: Tensor | None, values: Tensor | None, shifts: Tensor | None, out: Tensor
) -> None:
    """Take tangents through a scale and a shift of each channel; see :func:`lbgap.ops.tangents_affine`."""
    rest = [1] * (t.dim() - 3)
    result = _product(t, scale.view(-1, *rest))
    if slopes is not None and values is not None:
        result.addcmul_(slopes.view(*slopes.shape, *rest), values.unsqueeze(1))
    if shifts is not None:
        result += shifts.view(*shifts.shape, *rest)
    out.copy_(result)


def tangents_softmax(t: Tensor, p: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """Multiply by the Hessians of cross-entropy in the logits; see :func:`lbgap.ops.tangents_softmax`."""
    p, t = p.unsqueeze(1), _wide(t)
    result = p * (t - (p * t).sum(2, keepdim=True, dtype=torch.float64).to(p.dtype))
    out.copy_(result if weights is None else result.mul_(weights.view(-1, 1, 1)))


def tangents_gather(t: Tensor, places: Tensor, out: Tensor) -> None:
    """Pick the elements that max-pooling picked; see :func:`lbgap.ops.tangents_gather`."""
    flat, at = t.flatten(3), places.flatten(2).unsqueeze(1).expand(-1, t.shape[1], -1, -1)
    if 0 in flat.shape:
        out.fill_(math.nan)
        return
    there = (at >= 0) & (at < flat.shape[3])
    found = flat.gather(3, at.where(there, 0))
    out.copy_(found.masked_fill_(~there, math.nan).view(out.shape))


def tangents_scatter(
    r: Tensor,
    places: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out: Tensor,
) -> None:
    """Take R{gradient} back through max-pooling; see :func:`lbgap.ops.tangents_scatter`.

    Each window adds to the place that it took its element from, so that it need not be known which windows cover one.
    """
    at = places.flatten(2).unsqueeze(1).expand(-1, r.shape[1], -1, -1)
    r = _wide(r)
    wide = r.new_zeros(*out.shape[:3], math.prod(out.shape[3:]))
    wide.scatter_add_(3, at, r.flatten(3))
    out.copy_(wide.view(out.shape))


def _wide(t: Tensor) -> Tensor:
    """Tangents in the dtype of the arithmetic: operations on two dtypes at once take several times as long."""
    return t.float() if t.dtype == torch.bfloat16 else t


def _product(t: Tensor, shared: Tensor) -> Tensor:
    """Tangents times what they share, in the dtype of the latter and in memory of its own."""
    return t * shared if t.dtype == shared.dtype else t.to(shared.dtype).mul_(shared)
