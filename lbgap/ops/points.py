"""The ops on many points, one thin wrapper each; see :mod:`lbgap.ops`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from lbgap import _extension, reference
from lbgap.ops._common import (
    DTYPES,
    check_tensors,
    contiguous_rows,
    on_one_device,
    overlaps_itself,
    register,
    writable,
)

WIDEST, DEEPEST = 128, 64  # units of a layer of a narrow chain and layers, as csrc/points.h has it


def blend_points(coefficients: Tensor, ends: Tensor, out: Tensor) -> None:
    """Combine a few ends to many points, in one pass: ``coefficients @ ends``.

    Each number is summed in float64, in the order of the ends, and rounded once. An end of coefficient zero takes no
    part, whatever is in it; a row with a single coefficient that is one is that end.

    Args:
        coefficients: ``(k, j)``, float64.
        ends: ``(j, m)``, float32 or float64, same device.
        out: Where the points go, ``(k, m)``, dtype of ``ends``; apart from ``ends`` in memory.

    Raises:
        ValueError: Shapes or devices do not fit, ``out`` has elements that share memory, or an input requires a
            gradient.
        TypeError: A dtype does not fit.
    """
    check_tensors("points", coefficients=coefficients, ends=ends, out=out)
    if not coefficients.dim() == ends.dim() == out.dim() == 2 or (
        (*coefficients.shape, ends.shape[1]) != (out.shape[0], *ends.shape[:1], out.shape[1])
    ):
        raise ValueError(
            f"coefficients must be (k, j), ends (j, m) and out (k, m), got {tuple(coefficients.shape)}, "
            f"{tuple(ends.shape)} and {tuple(out.shape)}"
        )
    _check_dtypes(coefficients, ends=ends, out=out)
    if overlaps_itself(out):
        raise ValueError("out has elements that share memory: pass a fresh tensor")
    if ends.device.type not in _extension.NATIVE_DEVICES:
        reference.blend_points(coefficients, ends, out)
        return
    target = out if writable(out) else torch.empty_like(out, memory_format=torch.contiguous_format)
    torch.ops.lbgap.blend_points.default(contiguous_rows(coefficients), contiguous_rows(ends), target)
    if target is not out:
        out.copy_(target)


def chain_points(coefficients: Tensor, first: Tensor, ends: Tensor, widths: Sequence[int], targets: Tensor) -> Tensor:
    """Evaluate many points of a chain of narrow layers, from its first layer's products to the loss.

    The network is linear, ReLU, linear, ..., linear, cross-entropy. For each point a tile of samples stays in cache
    through all layers. Weights are blended as by :func:`blend_points`; products are formed in the dtype, and sums of
    losses in float64 over a fixed tree.

    Args:
        coefficients: ``(k, j)``, float64.
        first: What the first layer makes of the data at each end, ``(j, widths[0], N)``, float32 or float64.
        ends: The other layers at each end, ``(j, m)``: weight ``(out, in)`` and bias ``(out,)`` of the second layer,
            then of the third, and so on.
        widths: Outputs of each of at most 64 layers, at most 128; the last one is the number of classes.
        targets: Class indices, ``(N,)`` int64.

    Returns:
        The summed cross-entropy and the number of correct samples of each point: float64, ``(k, 2)``.

    Raises:
        ValueError: Shapes or devices do not fit, a width is out of range, a target is no class (on a GPU the sums are
            NaN then), or an input requires a gradient.
        TypeError: A dtype does not fit.
    """
    check_tensors("points", coefficients=coefficients, first=first, ends=ends, targets=targets)
    if not 1 <= len(widths) <= DEEPEST or not all(1 <= width <= WIDEST for width in widths):
        raise ValueError(
            f"widths must be 1 to {DEEPEST} numbers between 1 and {WIDEST}, got {list(widths)}: evaluate larger "
            "networks layer by layer"
        )
    numel = sum(width * (before + 1) for before, width in itertools.pairwise(widths))
    shapes = [tuple(tensor.shape) for tensor in (coefficients, first, ends)]
    if (
        coefficients.dim() != 2
        or first.dim() != 3
        or shapes[1][:2] != (shapes[0][1], widths[0])
        or shapes[2] != (shapes[0][1], numel)
    ):
        raise ValueError(
            f"coefficients must be (k, j), first (j, {widths[0]}, N) and ends (j, {numel}) for layers of "
            f"{list(widths)}, got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    _check_dtypes(coefficients, first=first, ends=ends)
    _check_targets(targets, first.shape[2], widths[-1])
    if first.device.type not in _extension.NATIVE_DEVICES:
        return reference.chain_points(coefficients, first, ends, widths, targets)
    op = torch.ops.lbgap.chain_points.default
    rows = (contiguous_rows(tensor) for tensor in (coefficients, first, ends))
    return cast(Tensor, op(*rows, list(widths), targets.contiguous()))


def xent_points(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum the cross-entropy of many networks over the samples, and count the correct ones, in one pass.

    Infinite and NaN losses come out as they are. Of several classes with the largest logit the first counts.

    Args:
        logits: ``(k, N, c)``, float32 or float64, in any layout.
        targets: Class indices, ``(N,)`` int64, same device.

    Returns:
        The summed cross-entropy and the number of correct samples: float64, ``(k, 2)``, summed over a fixed tree.

    Raises:
        ValueError: Shapes or devices do not fit, a target is no class (on a GPU the sums are NaN then), or an input
            requires a gradient.
        TypeError: A dtype does not fit.
    """
    check_tensors("points", logits=logits, targets=targets)
    if logits.dim() != 3 or logits.shape[2] < 1:
        raise ValueError(f"logits must be (k, N, c) with one class or more, got shape {tuple(logits.shape)}")
    if logits.dtype not in DTYPES:
        raise TypeError(f"logits must be float32 or float64, got {logits.dtype}: convert them first")
    _check_targets(targets, logits.shape[1], logits.shape[2])
    if logits.device.type not in _extension.NATIVE_DEVICES:
        return reference.xent_points(logits, targets)
    return cast(Tensor, torch.ops.lbgap.xent_points.default(logits, targets.contiguous()))


def _check_dtypes(coefficients: Tensor, **ends: Tensor) -> None:
    if coefficients.dtype != torch.float64:
        raise TypeError(f"coefficients must be float64, got {coefficients.dtype}: convert them first")
    (one, a), (other, b) = ends.items()
    if a.dtype not in DTYPES or b.dtype != a.dtype:
        raise TypeError(f"{one} and {other} must both be float32 or both float64, got {a.dtype} and {b.dtype}")


def _check_targets(targets: Tensor, samples: int, classes: int) -> None:
    """Judge class indices; those on a GPU are not waited for."""
    if targets.shape != (samples,):
        raise ValueError(f"targets must be ({samples},), one class index a sample, got shape {tuple(targets.shape)}")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64, got {targets.dtype}: convert them first")
    if targets.device.type != "cpu" or not samples or torch.compiler.is_compiling():
        return
    low, high = (int(end) for end in targets.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"targets must be class indices in 0..{classes - 1}, got {low}..{high}: renumber the classes")


def _fake_blend(coefficients: Tensor, *args: Tensor) -> None:
    on_one_device("blend_points", coefficients, *args)


def _fake_chain(coefficients: Tensor, *args: Tensor | Sequence[int]) -> Tensor:
    on_one_device("chain_points", coefficients, *args)
    return coefficients.new_empty((coefficients.shape[0], 2), dtype=torch.float64)


def _fake_xent(logits: Tensor, targets: Tensor) -> Tensor:
    on_one_device("xent_points", logits, targets)
    return logits.new_empty((logits.shape[0], 2), dtype=torch.float64)


register("blend_points", _fake_blend)
register("chain_points", _fake_chain)
register("xent_points", _fake_xent)
