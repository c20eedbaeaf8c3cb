"""The box ops, one thin wrapper each; see :mod:`lbgap.ops`."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from lbgap import _extension, reference
from lbgap.ops._common import (
    DTYPES,
    contiguous_rows,
    differentiable,
    on_one_device,
    overlaps_itself,
    register,
    writable,
)


def _check(centre: Tensor, absolute: float, relative: float, **rows: Tensor) -> None:
    y = rows["y"]
    if y.dtype not in DTYPES:
        raise TypeError(f"y must be float32 or float64, got {y.dtype}: convert it first")
    if y.dim() not in (1, 2):
        raise ValueError(f"y must be (n,) or (k, n), got shape {tuple(y.shape)}: reshape it")
    if centre.shape != y.shape[-1:]:
        raise ValueError(f"centre must have shape ({y.shape[-1]},) for y {tuple(y.shape)}, got {tuple(centre.shape)}")
    for name, tensor in {"centre": centre, **rows}.items():
        if name != "centre" and tensor.shape != y.shape:
            raise ValueError(f"{name} must have the shape of y, {tuple(y.shape)}, got {tuple(tensor.shape)}")
        if tensor.dtype != y.dtype:
            raise TypeError(f"{name} must have the dtype of y, {y.dtype}, got {tensor.dtype}")
        if tensor.device != y.device:
            raise ValueError(f"{name} must be on the device of y, {y.device}, got {tensor.device}")
        if differentiable(tensor):
            raise ValueError(f"{name} requires a gradient, and the box ops have none: pass {name}.detach()")
    if overlaps_itself(rows["out"]):
        raise ValueError("out has elements that share memory: pass a fresh tensor")
    largest = torch.finfo(y.dtype).max
    for name, width in (("absolute", absolute), ("relative", relative)):
        if not 0 <= width <= largest:
            raise ValueError(f"{name} half-width must be finite in {y.dtype} and not negative, got {width}")


def _run(
    name: str, y: Tensor, args: tuple[Tensor | float, ...], box: tuple[Tensor, float, float], out: Tensor
) -> Tensor:
    """Run one op on whichever backend serves the device of ``y``."""
    if y.device.type not in _extension.NATIVE_DEVICES:
        return cast(Tensor, getattr(reference, name)(y, *args, *box, out))
    op = getattr(torch.ops.lbgap, name).default
    rows = [contiguous_rows(arg) if isinstance(arg, Tensor) else arg for arg in (y, *args)]
    if writable(out):
        return cast(Tensor, op(*rows, contiguous_rows(box[0]), *box[1:], out))
    scratch = torch.empty_like(y, memory_format=torch.contiguous_format)
    sums = op(*rows, contiguous_rows(box[0]), *box[1:], scratch)
    out.copy_(scratch)
    return cast(Tensor, sums)


def box_project(y: Tensor, centre: Tensor, absolute: float, relative: float, out: Tensor) -> None:
    """Project ``y`` onto the box.

    Args:
        y: Points, ``(n,)`` or ``(k, n)``, float32 or float64.
        centre: Centre of the box, ``(n,)``, same dtype and device.
        absolute: Half-width that every coordinate has.
        relative: Half-width per unit of ``|centre|``.
        out: Where the projected points go, shaped like ``y``; may be ``y``.

    Raises:
        ValueError: Shapes or devices differ, a half-width is negative or not finite in the dtype, or an input
            requires a gradient.
        TypeError: Dtypes differ or are not float32 or float64.
    """
    _check(centre, absolute, relative, y=y, out=out)
    _run("box_project", y, (), (centre, absolute, relative), out)


def box_step(
    y: Tensor,
    direction: Tensor,
    alpha: float,
    centre: Tensor,
    absolute: float,
    relative: float,
    out: Tensor,
) -> Tensor:
    """Step from ``y`` along ``direction`` and project onto the box, in one pass.

    Args:
        y: Points, ``(n,)`` or ``(k, n)``, float32 or float64.
        direction: Where to go, shaped like ``y``.
        alpha: Step length.
        centre: Centre of the box, ``(n,)``.
        absolute: Half-width that every coordinate has.
        relative: Half-width per unit of ``|centre|``.
        out: Where ``project(y + alpha * direction)`` goes, shaped like ``y``; may be ``y``.

    Returns:
        ``|out - y|^2``, ``<direction, out - y>`` and the number of coordinates that the projection moved:
        float64, ``(3,)`` or ``(k, 3)``.

    Raises:
        ValueError: As :func:`box_project`, or ``alpha`` is not finite in the dtype.
        TypeError: As :func:`box_project`.
    """
    _check(centre, absolute, relative, y=y, direction=direction, out=out)
    if not abs(alpha) <= torch.finfo(y.dtype).max:
        raise ValueError(f"alpha must be finite in {y.dtype}, got {alpha}")
    return _run("box_step", y, (direction, alpha), (centre, absolute, relative), out)


def box_vertex(y: Tensor, gradient: Tensor, centre: Tensor, absolute: float, relative: float, out: Tensor) -> Tensor:
    """Go to the vertex of the box that is furthest along ``gradient``: ``x + r sign(g)``.

    Where the gradient is exactly zero every value is as good, and ``y`` keeps its own.

    Args:
        y: Points, ``(n,)`` or ``(k, n)``, float32 or float64.
        gradient: Gradient of the function at ``y``, shaped like ``y``.
        centre: Centre of the box, ``(n,)``.
        absolute: Half-width that every coordinate has.
        relative: Half-width per unit of ``|centre|``.
        out: Where the vertex goes, shaped like ``y``; may be ``y``.

    Returns:
        The Frank-Wolfe gap ``<gradient, out - y>`` and the number of coordinates where ``out`` differs from
        ``y``: float64, ``(2,)`` or ``(k, 2)``.

    Raises:
        ValueError: As :func:`box_project`.
        TypeError: As :func:`box_project`.
    """
    _check(centre, absolute, relative, y=y, gradient=gradient, out=out)
    return _run("box_vertex", y, (gradient,), (centre, absolute, relative), out)


def _fake(name: str, sums: int) -> None:
    """Tell torch what an op returns without running it: ``sums`` float64 numbers a row, or nothing."""

    def fake(y: Tensor, *args: Tensor | float) -> Tensor | None:
        on_one_device(name, y, *args)
        return y.new_empty((*y.shape[:-1], sums), dtype=torch.float64) if sums else None

    register(name, fake)


for _name, _sums in (("box_project", 0), ("box_step", 3), ("box_vertex", 2)):
    _fake(_name, _sums)
