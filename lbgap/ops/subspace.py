"""The ops on the random matrix A, one thin wrapper each; see :mod:`lbgap.ops`."""

from __future__ import annotations

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


def subspace_apply(
    centre: Tensor, z: Tensor, seed: int, stream: int, distribution: str, out: Tensor, *, first: int = 0
) -> None:
    """Go from ``centre`` along the columns of the random matrix A: ``centre + A z``, rounded once.

    Args:
        centre: ``(n,)``, float32 or float64.
        z: Coordinates, ``(p,)`` or ``(k, p)``, float64, same device; A is drawn once for all k.
        seed: Of A, below 2**63.
        stream: Which of the seed's matrices, below 2**32.
        distribution: ``"normal"``, ``"uniform"`` on [-1, 1) or ``"rademacher"``.
        out: Where the points go, ``(n,)`` or ``(k, n)``, dtype of ``centre``; may be ``centre``.
        first: Index of the first row, where the vectors are a part of longer ones.

    Raises:
        ValueError: Shapes or devices do not fit, a number is out of range, the distribution is not known, or an
            input requires a gradient.
        TypeError: A dtype does not fit, or a number is not whole.
    """
    code = _check_matrix(seed, stream, distribution, first, centre=centre, z=z, out=out)
    if z.dim() not in (1, 2) or centre.dim() != 1 or out.shape != (*z.shape[:-1], len(centre)):
        raise ValueError(
            f"centre must be (n,), z (p,) or (k, p) and out (n,) or (k, n), got {tuple(centre.shape)}, "
            f"{tuple(z.shape)} and {tuple(out.shape)}"
        )
    if z.dtype != torch.float64:
        raise TypeError(f"z must be float64, got {z.dtype}: convert it first")
    if centre.dtype not in DTYPES or out.dtype != centre.dtype:
        raise TypeError(f"centre and out must both be float32 or both float64, got {centre.dtype} and {out.dtype}")
    if overlaps_itself(out):
        raise ValueError("out has elements that share memory: pass a fresh tensor")
    if centre.device.type not in _extension.NATIVE_DEVICES:
        reference.subspace_apply(centre, z, seed, stream, distribution, out, first=first)
        return
    target = out if writable(out) else torch.empty_like(out, memory_format=torch.contiguous_format)
    torch.ops.lbgap.subspace_apply.default(
        contiguous_rows(centre), contiguous_rows(z), code, seed, stream, first, target
    )
    if target is not out:
        out.copy_(target)


def subspace_project(g: Tensor, p: int, seed: int, stream: int, distribution: str, *, first: int = 0) -> Tensor:
    """Inner products of vectors with the columns of the random matrix A: ``A'g``.

    Args:
        g: ``(n,)`` or ``(k, n)``, float32 or float64; A is drawn once for all k.
        p: Number of columns.
        seed: Of A, as in :func:`subspace_apply`.
        stream: Which of the seed's matrices.
        distribution: ``"normal"``, ``"uniform"`` or ``"rademacher"``.
        first: Index of the first row.

    Returns:
        ``(p,)`` or ``(k, p)`` float64, summed in float64 over a fixed tree.

    Raises:
        ValueError: As :func:`subspace_apply`.
        TypeError: As :func:`subspace_apply`.
    """
    code = _check_matrix(seed, stream, distribution, first, p=p, g=g)
    if g.dim() not in (1, 2):
        raise ValueError(f"g must be (n,) or (k, n), got shape {tuple(g.shape)}: reshape it")
    if g.dtype not in DTYPES:
        raise TypeError(f"g must be float32 or float64, got {g.dtype}: convert it first")
    if g.device.type not in _extension.NATIVE_DEVICES:
        return reference.subspace_project(g, p, seed, stream, distribution, first=first)
    op = torch.ops.lbgap.subspace_project.default
    return cast(Tensor, op(contiguous_rows(g), p, code, seed, stream, first))


def subspace_gram(
    n: int, p: int, seed: int, stream: int, distribution: str, device: torch.device, *, first: int = 0
) -> Tensor:
    """Inner products of the columns of the random matrix A with each other: ``A'A``.

    Args:
        n: Number of rows.
        p: Number of columns.
        seed: Of A, as in :func:`subspace_apply`.
        stream: Which of the seed's matrices.
        distribution: ``"normal"``, ``"uniform"`` or ``"rademacher"``.
        device: Where to compute.
        first: Index of the first row.

    Returns:
        ``(p, p)`` float64, symmetric.

    Raises:
        ValueError: As :func:`subspace_apply`.
        TypeError: As :func:`subspace_apply`.
    """
    code = _check_matrix(seed, stream, distribution, first, n=n, p=p)
    if device.type not in _extension.NATIVE_DEVICES:
        return reference.subspace_gram(n, p, seed, stream, distribution, device, first=first)
    like = torch.empty(0, dtype=torch.float32, device=device)
    return cast(Tensor, torch.ops.lbgap.subspace_gram.default(like, n, p, code, seed, stream, first))


def _check_matrix(seed: int, stream: int, distribution: str, first: int, **rest: int | Tensor) -> int:
    """Judge what every op on A shares; returns the number of the distribution."""
    if distribution not in reference.DISTRIBUTIONS:
        names = ", ".join(map(repr, reference.DISTRIBUTIONS))
        raise ValueError(f"distribution must be one of {names}, got {distribution!r}")
    tensors = {name: value for name, value in rest.items() if isinstance(value, Tensor)}
    sizes = {name: value for name, value in rest.items() if not isinstance(value, Tensor)}
    most = {"stream": 2**32, "p": 2**33}
    for name, number in {"seed": seed, "stream": stream, "first": first, **sizes}.items():
        if isinstance(number, bool) or not isinstance(number, int | torch.SymInt):
            raise TypeError(f"{name} must be a whole number, got {number!r}")
        if not 0 <= number < most.get(name, 2**63):
            raise ValueError(f"{name} must be at least 0 and below {most.get(name, 2**63)}, got {number}")
    check_tensors("subspace", **tensors)
    return reference.DISTRIBUTIONS.index(distribution)


def _fake_projection(g: Tensor, p: int, *_: int) -> Tensor:
    return g.new_empty((*g.shape[:-1], p), dtype=torch.float64)


def _fake_gram(like: Tensor, n: int, p: int, *_: int) -> Tensor:
    return like.new_empty((p, p), dtype=torch.float64)


def _fake_points(centre: Tensor, *args: Tensor | int) -> None:
    on_one_device("subspace_apply", centre, *args)


register("subspace_apply", _fake_points)
register("subspace_project", _fake_projection)
register("subspace_gram", _fake_gram)
