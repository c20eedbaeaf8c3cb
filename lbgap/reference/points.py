"""Plain-PyTorch twins of the ops on many points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def blend_points(coefficients: Tensor, ends: Tensor, out: Tensor) -> None:
    """Combine the ends; see :func:`lbgap.ops.blend_points`."""
    out.copy_(_blend(coefficients, ends))


def chain_points(coefficients: Tensor, first: Tensor, ends: Tensor, widths: Sequence[int], targets: Tensor) -> Tensor:
    """Evaluate chains of narrow layers; see :func:`lbgap.ops.chain_points`."""
    k, samples, before = len(coefficients), first.shape[2], first.shape[1]
    x = _blend(coefficients, first.flatten(1)).view(k, before, samples).to(first.dtype)
    weights = _blend(coefficients, ends).to(ends.dtype)
    begin = 0
    for width in widths[1:]:
        weight, bias, rest = weights[:, begin:].tensor_split((width * before, width * (before + 1)), dim=1)
        x = torch.baddbmm(bias[..., None], weight.reshape(k, width, before), x.relu())
        begin, before = weights.shape[1] - rest.shape[1], width
    return xent_points(x.mT, targets)


def xent_points(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum cross-entropies, and count the correct samples; see :func:`lbgap.ops.xent_points`."""
    k, samples, classes = logits.shape
    known = (targets >= 0) & (targets < classes)
    labels = targets.where(known, 0).expand(k, samples)
    each = F.cross_entropy(logits.movedim(2, 1), labels, reduction="none").masked_fill(~known, torch.nan)
    correct = logits.argmax(2) == targets
    return torch.stack([part.sum(1, dtype=torch.float64) for part in (each, correct)], dim=1)


def _blend(coefficients: Tensor, ends: Tensor) -> Tensor:
    """``coefficients @ ends`` in float64, without the ends of coefficient zero, in the order of the ends."""
    total = ends.new_zeros((len(coefficients), ends.shape[1]), dtype=torch.float64)
    begun = torch.zeros_like(coefficients[:, :1], dtype=torch.bool)
    for column, end in zip(coefficients.unbind(1), ends, strict=True):
        takes_part = (column != 0)[:, None]
        term = column[:, None] * end.double()
        total = torch.where(takes_part, torch.where(begun, total + term, term), total)
        begun = begun | takes_part
    return total
