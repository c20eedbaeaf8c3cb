"""Lanczos iterations on flat vectors: a block of them with thick restarts, and many single ones side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from lbgap.measures.hessian.probes import Products

COLUMNS = 1 << 18  # of a basis that are rotated at a time
ROUNDING = 16  # in units of the dtype's epsilon and of the largest product: what is shorter has no direction


class Basis:
    """Orthonormal vectors of a block Krylov space, and a symmetric matrix projected onto them.

    Block Lanczos with full reorthogonalisation: each new block is multiplied, projected on all vectors before, and
    what is left over becomes the next block (Golub and Van Loan, "Matrix Computations", section 10.3.6). Since the
    projections on all vectors are kept, restarting with Ritz vectors (Wu and Simon 2000, "Thick-restart Lanczos method
    for large symmetric eigenvalue problems") needs no further bookkeeping.

    Attributes:
        size: Vectors that have been multiplied.
        width: Vectors of the next block; zero once the basis spans the whole space.
        ended: Whether the Krylov space has ended, so that the next block is random in part: what lies outside of it
            has not been seen yet.
        largest: Largest norm of a product so far.
    """

    def __init__(self, products: Products, room: int, block: int) -> None:
        """Begin with a random block.

        Args:
            products: The matrix; also draws the start, and replacements for directions that vanish.
            room: Vectors at most, beside the next block.
            block: Vectors of a block.
        """
        self._products, self._block, self._like = products, block, products.like
        like = products.like
        self._rows = like.new_empty(min(room + block, len(like)), len(like))
        self._projected = torch.zeros(len(self._rows), len(self._rows), dtype=torch.float64)
        self._gram = torch.zeros(0, 0, dtype=torch.float64)
        self.room, self.size, self.width, self.largest, self.ended = min(room, len(like)), 0, 0, 0.0, False
        self._fill()

    @property
    def full(self) -> bool:
        """Whether the next block has no room."""
        return self.size + self.width > self.room

    def expand(self) -> None:
        """Multiply the next block and find the one after it."""
        old, new = self.size, self.size + self.width
        basis, images = self._rows[:new], self._products(self._rows[old:new])
        length = float(_lengths(images).max())
        inner = project_out(basis, images)
        # Twice is enough (Parlett, "The Symmetric Eigenvalue Problem", section 6.9).
        inner = (inner + project_out(basis, images)).double().cpu()
        self._projected[:new, old:new] = inner
        self._projected[old:new, :new] = inner.T
        corner = self._projected[old:new, old:new]
        self._projected[old:new, old:new] = (corner + corner.T) / 2
        self.largest = max(self.largest, length)
        self._gram = _gram(images)
        self.size = new
        self._follow(images)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values ``(size,)`` ascending, their coordinates ``(size, size)`` in columns, and their residuals.

        All float64 on the CPU. A residual is ``|H y - theta y|`` but for rounding: since all products lie in the basis
        and the next block, it is the length of what the last block leaves over.
        """
        values, coordinates = torch.linalg.eigh(self._projected[: self.size, : self.size])
        last = coordinates[self.size - len(self._gram) :]
        squares = (last * (self._gram @ last)).sum(0)
        return values, coordinates, squares.clamp_min(0).sqrt()

    def vectors(self, coordinates: Tensor) -> Tensor:
        """The vectors of some coordinates: ``(size, k)`` to ``(k, n)``."""
        return coordinates.T.to(self._rows) @ self._rows[: self.size]

    def restart(self, values: Tensor, coordinates: Tensor) -> None:
        """Keep only these Ritz vectors, and go on with the next block."""
        kept, rotation = len(values), coordinates.T.to(self._rows)
        follow = self._rows[self.size : self.size + self.width]
        for start in range(0, len(self._like), COLUMNS):  # so that no second basis is needed
            part = slice(start, start + COLUMNS)
            self._rows[:kept, part] = rotation @ self._rows[: self.size, part]
        self._rows[kept : kept + self.width] = follow.clone()
        self._projected.zero_()
        self._projected[:kept, :kept] = values.diag()
        self.size = kept
        self._gram = torch.zeros(0, 0, dtype=torch.float64)

    def _follow(self, left: Tensor) -> None:
        """Make the next block of what the products left over, without the directions that vanish in rounding."""
        values, vectors = torch.linalg.eigh(self._gram)
        floor = ROUNDING * torch.finfo(left.dtype).eps * self.largest
        kept = values > floor**2
        self.width = 0
        if kept.any():
            scaled = (vectors[:, kept] / values[kept].sqrt()).T.flip(0)  # the longest first
            self._append(scaled.to(left) @ left)
        self._fill()

    def _fill(self) -> None:
        """Complete the next block by random directions."""
        missing = min(self._block, len(self._like) - self.size) - self.width
        self.ended = missing > 0 and self.size > 0
        if missing > 0:
            self._append(self._products.normals(missing))

    def _append(self, rows: Tensor) -> None:
        """Orthonormalise rows against the basis and among themselves, and put them into the next block."""
        rows = rows[: min(self._block, len(self._like) - self.size) - self.width]
        if not len(rows):
            return
        start = self.size + self.width
        for _ in range(3):
            project_out(self._rows[:start], rows)
            rows = _orthonormal(rows)
        self._rows[start : start + len(rows)] = rows
        self.width += len(rows)


def span(rows: Tensor) -> Tensor:
    """Orthonormal rows of the same span, without directions that vanish in rounding: ``(k, n)`` to ``(<= k, n)``."""
    values, vectors = torch.linalg.eigh(_gram(rows))
    kept = values > (ROUNDING * torch.finfo(rows.dtype).eps) ** 2 * values[-1].clamp_min(0)
    rows = (vectors[:, kept] / values[kept].sqrt()).T.to(rows) @ rows
    for _ in range(2 if len(rows) else 0):
        rows = _orthonormal(rows)
    return rows


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


def _lengths(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return lengths


def _gram(rows: Tensor) -> Tensor:
    """Inner products of rows, summed in float64, on the CPU."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(1 << 20, dim=1):
        total += part.double() @ part.double().T
    return total.cpu()


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows of the same span: SVQB (Stathopoulos and Wu 2002), by one product with a small matrix.

    Repeated by the caller, since one pass leaves an error of epsilon times the squared condition number.
    """
    gram = _gram(rows)
    lengths = gram.diagonal().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    values, vectors = torch.linalg.eigh(gram / lengths / lengths[:, None])
    values = values.clamp_min(values.max() * torch.finfo(torch.float64).eps)
    found: Tensor = (vectors / values.sqrt() / lengths[:, None]).T.to(rows) @ rows
    return found


def tridiagonals(products: Products, starts: Tensor, steps: int, against: Tensor | None = None) -> tuple[Tensor, ...]:
    """Run Lanczos from several vectors at once, each on its own, with full reorthogonalisation.

    Args:
        products: The matrix.
        starts: Unit vectors ``(k, n)``.
        steps: Products for each of them.
        against: Orthonormal rows; the matrix is restricted to what is orthogonal to them, and so must the starts be.

    Returns:
        The diagonals ``(k, steps)`` and the off-diagonals ``(k, steps - 1)`` of the tridiagonal matrices, float64 on
        the device. Where a Krylov space ends early, the rest is zero and decoupled.
    """
    count, n = starts.shape
    basis = starts.new_zeros(count, steps, n)
    diagonal, off = (torch.zeros(count, steps, dtype=torch.float64, device=starts.device) for _ in range(2))
    basis[:, 0] = starts
    largest = torch.zeros(count, dtype=torch.float64, device=starts.device)
    for step in range(steps):
        images = products(basis[:, step])
        largest = torch.maximum(largest, _lengths(images))
        so_far = basis[:, : step + 1]
        for _ in range(2):
            if against is not None:
                project_out(against, images)
            inner = torch.bmm(so_far, images[:, :, None])
            images.sub_(torch.bmm(inner.mT, so_far)[:, 0])
            diagonal[:, step] += inner[:, step, 0].double()
        if step + 1 < steps:
            lengths = _lengths(images)
            alive = lengths > ROUNDING * torch.finfo(images.dtype).eps * largest
            off[:, step] = torch.where(alive, lengths, 0.0)
            inverse = torch.where(alive, 1 / lengths, 0.0)
            basis[:, step + 1] = images * inverse[:, None].to(images)
    return diagonal, off[:, : steps - 1]
