"""The ops on tangents of k vectors, one thin wrapper each; see :mod:`lbgap.ops`.

Tangents are ``(batch, k, ...)``, float32, float64 or bfloat16. What all k vectors share lies beside them as
``(batch, ...)``; its dtype is theirs, but float32 where they are bfloat16, and a result is rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lbgap import _extension, reference
from lbgap.ops._common import differentiable, on_one_device, overlaps_itself, register

TANGENTS = (torch.float32, torch.float64, torch.bfloat16)


def tangents_scale(t: Tensor, first: Tensor, out: Tensor) -> None:
    """Take tangents through an activation y = f(x): R{y} = f' R{x}.

    Also the way back through one without second derivative, such as ReLU: R{g_x} = f' R{g}.

    Args:
        t: Tangents, ``(batch, k, ...)``, float32, float64 or bfloat16.
        first: f', ``(batch, ...)``, dtype of ``t`` or float32 for bfloat16, same device.
        out: Where ``first * t`` goes, like ``t``; may be ``t``.

    Raises:
        ValueError: Shapes or devices do not fit, ``out`` has elements that share memory, or an input requires a
            gradient.
        TypeError: A dtype does not fit.
    """
    _check(t, out, t.shape, first=(first, t.shape[:1] + t.shape[2:]))
    _run("tangents_scale", t, (t, first), out)


def tangents_curve(r: Tensor, first: Tensor, curve: Tensor, t: Tensor, out: Tensor) -> None:
    """Take R{gradient} back through an activation y = f(x): R{g_x} = f' R{g} + f'' g R{x}.

    Args:
        r: R{g}, ``(batch, k, ...)``, float32, float64 or bfloat16.
        first: f', ``(batch, ...)``, dtype of ``r`` or float32 for bfloat16, same device.
        curve: f'' g, like ``first``.
        t: R{x}, like ``r``.
        out: Where ``first * r + curve * t`` goes, like ``r``; may be ``r`` or ``t``.

    Raises:
        ValueError: As :func:`tangents_scale`.
        TypeError: As :func:`tangents_scale`.
    """
    shared = r.shape[:1] + r.shape[2:]
    _check(r, out, r.shape, first=(first, shared), curve=(curve, shared))
    _check_like("t", t, r, r.shape)
    _run("tangents_curve", r, (r, first, curve, t), out)


def tangents_affine(
    t: Tensor, scale: Tensor, slopes: Tensor | None, values: Tensor | None, shifts: Tensor | None, out: Tensor
) -> None:
    """Take tangents through a batch-norm y = s x^ + b by running statistics: scale R{x} + R{s} x^ + R{b}.

    Backwards R{g_x} = s' R{g} + R{s'} g is the same map, of other slopes and values and without shifts.

    Args:
        t: Tangents, ``(batch, k, channels, ...)``, float32, float64 or bfloat16.
        scale: ``(channels,)``, dtype of ``t`` or float32 for bfloat16, same device, as all that follow.
        slopes: ``(k, channels)``; None, together with ``values``, is zero.
        values: ``(batch, channels, ...)``.
        shifts: ``(k, channels)``; None is zero.
        out: Where ``scale * t + slopes * values + shifts`` goes, like ``t``; may be ``t``.

    Raises:
        ValueError: As :func:`tangents_scale`, or one of ``slopes`` and ``values`` is missing.
        TypeError: As :func:`tangents_scale`.
    """
    if t.dim() < 3:
        raise ValueError(f"t must be (batch, k, channels, ...), got shape {tuple(t.shape)}: reshape it")
    if (slopes is None) != (values is None):
        raise ValueError("slopes and values must be given together: pass both, or None for both")
    own = t.shape[1:3]
    _check(
        t,
        out,
        t.shape,
        scale=(scale, t.shape[2:3]),
        slopes=(slopes, own),
        values=(values, t.shape[:1] + t.shape[2:]),
        shifts=(shifts, own),
    )
    _run("tangents_affine", t, (t, scale, slopes, values, shifts), out)


def tangents_softmax(t: Tensor, p: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """Multiply tangents of logits by the Hessian of each sample's cross-entropy in them: ``w (diag(p) - p p')``.

    Args:
        t: ``(batch, k, classes)``, float32, float64 or bfloat16.
        p: The softmax of the logits, ``(batch, classes)``, dtype of ``t`` or float32 for bfloat16, same device.
        weights: w, of each sample, ``(batch,)``, dtype of ``p``: what its target probabilities add up to; None is one.
        out: Where the products go, like ``t``; may be ``t``.

    Raises:
        ValueError: As :func:`tangents_scale`.
        TypeError: As :func:`tangents_scale`.
    """
    if t.dim() != 3:
        raise ValueError(f"t must be (batch, k, classes), got shape {tuple(t.shape)}: reshape it")
    _check(t, out, t.shape, p=(p, t.shape[:1] + t.shape[2:]), weights=(weights, t.shape[:1]))
    _run("tangents_softmax", t, (t, p, weights), out)


def tangents_gather(t: Tensor, places: Tensor, out: Tensor) -> None:
    """Take tangents through max-pooling: the elements of ``t`` where the largest values were.

    Args:
        t: ``(batch, k, channels, length)`` or ``(batch, k, channels, height, width)``, float32, float64 or bfloat16.
        places: What ``F.max_pool1d`` or ``F.max_pool2d`` return as indices, ``(batch, channels, ...)`` int64.
        out: ``(batch, k, channels, ...)``, dtype of ``t``; NaN where a place is none of the plane.

    Raises:
        ValueError: As :func:`tangents_scale`.
        TypeError: As :func:`tangents_scale`.
    """
    _check_places(t, places, out, out)
    _run("tangents_gather", t, (t, places), out)


def tangents_scatter(
    r: Tensor,
    places: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out: Tensor,
) -> None:
    """Take R{gradient} back through max-pooling: each element is the sum over the windows that it is the largest of.

    The sums have a fixed order: a thread looks at the windows that cover its element, and no two add to one number.

    Args:
        r: ``(batch, k, channels, ...)`` as max-pooling returns them, float32, float64 or bfloat16.
        places: As in :func:`tangents_gather`, each inside of its window.
        kernel: Of the windows, one number for each of the one or two last dimensions.
        stride: The same.
        padding: The same.
        dilation: The same.
        out: ``(batch, k, channels, ...)`` as before max-pooling, dtype of ``r``.

    Raises:
        ValueError: As :func:`tangents_scale`, or a window has not as many numbers as dimensions, or one too small.
        TypeError: As :func:`tangents_scale`.
    """
    _check_places(out, places, r, out)
    for name, numbers, least in (
        ("kernel", kernel, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if len(numbers) != out.dim() - 3 or min(numbers) < least:
            raise ValueError(f"{name} must be {out.dim() - 3} numbers of at least {least}, got {tuple(numbers)}")
    windows = (list(kernel), list(stride), list(padding), list(dilation))
    _run("tangents_scatter", r, (r, places, *windows), out)


def _check(t: Tensor, out: Tensor, shape: torch.Size, **shared: tuple[Tensor | None, Sequence[int]]) -> None:
    """Judge the tangents, what they share with the shapes that it should have, and the output."""
    if t.dtype not in TANGENTS:
        raise TypeError(f"tangents must be float32, float64 or bfloat16, got {t.dtype}: convert them first")
    if t.dim() < 2:
        raise ValueError(f"tangents must be (batch, k, ...), got shape {tuple(t.shape)}: reshape them")
    if differentiable(t):
        raise ValueError("the tangents require a gradient, and these ops have none: detach() them")
    _check_like("out", out, t, shape)
    if overlaps_itself(out):
        raise ValueError("out has elements that share memory: pass a fresh tensor")
    dtype = torch.float32 if t.dtype == torch.bfloat16 else t.dtype
    for name, (tensor, expected) in shared.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != tuple(expected):
            raise ValueError(
                f"{name} must have shape {tuple(expected)} for tangents {tuple(t.shape)}, got {tuple(tensor.shape)}"
            )
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype} for tangents in {t.dtype}, got {tensor.dtype}")
        _check_place(name, tensor, t)


def _check_like(name: str, tensor: Tensor, t: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.dtype != t.dtype:
        raise TypeError(f"{name} must have the dtype of the tangents, {t.dtype}, got {tensor.dtype}")
    _check_place(name, tensor, t)


def _check_place(name: str, tensor: Tensor, t: Tensor) -> None:
    if tensor.device != t.device:
        raise ValueError(f"{name} must be on the device of the tangents, {t.device}, got {tensor.device}")
    if differentiable(tensor):
        raise ValueError(f"{name} requires a gradient, and these ops have none: pass {name}.detach()")


def _check_places(wide: Tensor, places: Tensor, pooled: Tensor, out: Tensor) -> None:
    """Judge tangents before and after max-pooling."""
    if wide.dim() not in (4, 5) or pooled.dim() != wide.dim() or pooled.shape[:3] != wide.shape[:3]:
        raise ValueError(
            "tangents before and after pooling must be (batch, k, channels, ...) in one or two further dimensions, got "
            f"{tuple(wide.shape)} and {tuple(pooled.shape)}"
        )
    _check(wide, out, out.shape)
    _check_like("the other tangents", pooled, wide, pooled.shape)
    if places.dtype != torch.int64 or places.shape != pooled.shape[:1] + pooled.shape[2:]:
        raise ValueError(
            f"places must be int64 {tuple(pooled.shape[:1] + pooled.shape[2:])} for tangents {tuple(pooled.shape)}, "
            f"got {places.dtype} {tuple(places.shape)}"
        )
    _check_place("places", places, wide)


def _run(name: str, t: Tensor, args: tuple[Any, ...], out: Tensor) -> None:
    """Run one op on whichever backend serves the device of the tangents."""
    if t.device.type not in _extension.NATIVE_DEVICES:
        getattr(reference, name)(*args, out)
        return
    args = tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)
    target = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    getattr(torch.ops.lbgap, name).default(*args, target)
    if target is not out:
        out.copy_(target)


def _fake(name: str) -> None:
    def fake(t: Tensor, *args: Any) -> None:
        on_one_device(name, t, *args)

    register(name, fake)


for _name in ("scale", "curve", "affine", "softmax", "gather", "scatter"):
    _fake(f"tangents_{_name}")
