"""Lanczos iterations on flat vectors: a block of them with thick restarts, and many single ones side by side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lbgap.measures.hessian.probes import Probes
from lbgap.measures.hessian.products import Products
from lbgap.measures.hessian.rows import ROUNDING, gram, lengths, orthonormal, project_out

COLUMNS = 1 << 18  # of a basis that are rotated at a time


class Basis:
    """Orthonormal vectors of a block Krylov space, and a symmetric matrix projected onto them.

    Block Lanczos with full reorthogonalisation: each new block is multiplied, projected on all vectors before, and
    what is left over becomes the next block (Golub and Van Loan, "Matrix Computations", section 10.3.6). Since the
    projections on all vectors are kept, restarting with Ritz vectors (Wu and Simon 2000, "Thick-restart Lanczos method
    for large symmetric eigenvalue problems") needs no further bookkeeping.

    Attributes:
        size: Vectors that have been multiplied.
        max_size: Of these, at most.
        width: Vectors of the next block; zero once the basis spans the whole space.
        ended: Whether the Krylov space has ended, so that the next block is random in part: what lies outside of it
            has not been seen yet.
        largest: Largest norm of a product so far.
    """

    def __init__(self, products: Products, probes: Probes, max_size: int, block: int) -> None:
        """Begin with a random block.

        Args:
            products: The matrix.
            probes: Draws the start, and replacements for directions that vanish.
            max_size: Vectors at most, beside the next block.
            block: Vectors of a block.
        """
        operator = products.operator
        self._products, self._probes, self._block, self._n = products, probes, block, operator.size
        held = min(max_size + block, operator.size)
        self._rows = torch.empty(held, operator.size, dtype=operator.dtype, device=operator.device)
        self._projected = torch.zeros(held, held, dtype=torch.float64, device="cpu")
        self._gram = torch.zeros(0, 0, dtype=torch.float64, device="cpu")
        self.max_size, self.size, self.width = min(max_size, operator.size), 0, 0
        self.largest, self.ended = 0.0, False
        self._fill()

    @property
    def full(self) -> bool:
        """Whether the next block does not fit."""
        return self.size + self.width > self.max_size

    def expand(self) -> None:
        """Multiply the next block and find the one after it."""
        old, new = self.size, self.size + self.width
        basis, images = self._rows[:new], self._products(self._rows[old:new])
        length = float(lengths(images).max())
        inner = project_out(basis, images)
        # Twice is enough (Parlett, "The Symmetric Eigenvalue Problem", section 6.9).
        inner = (inner + project_out(basis, images)).double().cpu()
        self._projected[:new, old:new] = inner
        self._projected[old:new, :new] = inner.T
        corner = self._projected[old:new, old:new]
        self._projected[old:new, old:new] = (corner + corner.T) / 2
        self.largest = max(self.largest, length)
        self._gram = gram(images)
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
        for start in range(0, self._n, COLUMNS):  # so that no second basis is needed
            part = slice(start, start + COLUMNS)
            self._rows[:kept, part] = rotation @ self._rows[: self.size, part]
        self._rows[kept : kept + self.width] = follow.clone()
        self._projected.zero_()
        self._projected[:kept, :kept] = values.diag()
        self.size = kept
        self._gram = torch.zeros(0, 0, dtype=torch.float64, device="cpu")

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
        missing = min(self._block, self._n - self.size) - self.width
        self.ended = missing > 0 and self.size > 0
        if missing > 0:
            self._append(self._probes.normals(missing))

    def _append(self, rows: Tensor) -> None:
        """Orthonormalise rows against the basis and among themselves, and put them into the next block."""
        rows = rows[: min(self._block, self._n - self.size) - self.width]
        if not len(rows):
            return
        start = self.size + self.width
        for _ in range(3):
            project_out(self._rows[:start], rows)
            rows = orthonormal(rows)
        self._rows[start : start + len(rows)] = rows
        self.width += len(rows)


def tridiagonals(
    products: Callable[[Tensor], Tensor], starts: Tensor, steps: int, against: Tensor | None = None
) -> tuple[Tensor, ...]:
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
        largest = torch.maximum(largest, lengths(images))
        so_far = basis[:, : step + 1]
        for _ in range(2):
            if against is not None:
                project_out(against, images)
            inner = torch.bmm(so_far, images[:, :, None])
            images.sub_(torch.bmm(inner.mT, so_far)[:, 0])
            diagonal[:, step] += inner[:, step, 0].double()
        if step + 1 < steps:
            left = lengths(images)
            alive = left > ROUNDING * torch.finfo(images.dtype).eps * largest
            off[:, step] = torch.where(alive, left, 0.0)
            inverse = torch.where(alive, 1 / left, 0.0)
            basis[:, step + 1] = images * inverse[:, None].to(images)
    return diagonal, off[:, : steps - 1]
