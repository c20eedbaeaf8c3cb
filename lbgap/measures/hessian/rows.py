"""Inner products, spans and orthonormal bases of vectors that are the rows of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 16  # in units of the dtype's epsilon and of the largest length: what is shorter has no direction
COLUMNS = 1 << 20  # of rows that are taken in float64 at a time


def dots(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of rows, ``(k,)`` float64: the sum over each block of columns in full precision."""
    total = torch.zeros(len(one), dtype=torch.float64, device=one.device)
    for a, b in zip(one.split(COLUMNS, dim=-1), other.split(COLUMNS, dim=-1), strict=True):
        total += (a.double() * b.double()).sum(-1)
    return total


def lengths(rows: Tensor) -> Tensor:
    """Norms of rows, ``(k,)`` float64."""
    found: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return found


def gram(rows: Tensor) -> Tensor:
    """Inner products of all rows with each other, ``(k, k)``, summed in float64, on the CPU."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(COLUMNS, dim=1):
        total += part.double() @ part.double().T
    return total.cpu()


def project_out(basis: Tensor, rows: Tensor) -> Tensor:
    """Subtract from rows their projection on orthonormal rows, in place.

    Args:
        basis: ``(j, n)``.
        rows: ``(k, n)``.

    Returns:
        The inner products ``(j, k)``.
    """
    inner = basis @ rows.T
    rows.addmm_(inner.T, basis, alpha=-1)
    return inner


def span(rows: Tensor) -> Tensor:
    """Orthonormal rows whose span holds the given ones: ``(k, n)`` to ``(<= k, n)``.

    Directions that vanish in rounding are left out. In float64 some that inner products do not resolve, below about
    1e-8 of the longest, come out as arbitrary ones orthogonal to the rest.
    """
    values, vectors = torch.linalg.eigh(gram(rows))
    kept = values > (ROUNDING * torch.finfo(rows.dtype).eps) ** 2 * values[-1].clamp_min(0)
    rows = (vectors[:, kept] / values[kept].sqrt()).T.to(rows) @ rows
    for _ in range(2):
        rows = orthonormal(rows)
    return rows


def orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows of the same span: SVQB (Stathopoulos and Wu 2002), by one product with a small matrix.

    Repeated by the caller, since one pass leaves an error of epsilon times the squared condition number.

    Returns:
        ``(<= k, n)``: rows that depend on the others to the rounding of their inner products have no direction of
        their own.
    """
    if not len(rows):
        return rows
    eps = torch.finfo(torch.float64).eps
    inner = gram(rows)
    sizes = inner.diagonal().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    values, vectors = torch.linalg.eigh(inner / sizes / sizes[:, None])
    kept = values > ROUNDING * len(rows) * eps * values.max()
    if not kept.all():
        values, vectors = values[kept], vectors[:, kept]
    found: Tensor = (vectors / values.sqrt() / sizes[:, None]).T.to(rows) @ rows
    return found
