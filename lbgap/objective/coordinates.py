"""In which coordinates a loss is a function: all parameters that may move, some of them, or a random manifold.

An :class:`~lbgap.objective.Objective` holds one of these. It says where the minimizer is, writes a point into the
replica's parameters, and pulls a gradient in all parameters back to its own coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lbgap import ops, reference
from lbgap.checks import dense, whole
from lbgap.flat import FlatModule

DISTRIBUTIONS = (*reference.DISTRIBUTIONS, "unit")
TRIALS = 5  # as many as the paper has


class Coordinates:
    """All parameters that may move, one coordinate each; the others derive from it.

    Attributes:
        centre: The minimizer, ``(n,)``.
        names: Names of the parameters that move.
        complete: Whether these are all parameters, so that vectors have parts, and directions derivatives.
    """

    complete = True

    def __init__(self, flat: FlatModule) -> None:
        """Begin at the replica's own parameters."""
        self.centre = flat.theta.clone()
        self.names: tuple[str, ...] = flat.names

    @property
    def n(self) -> int:
        """Number of coordinates."""
        return self.centre.numel()

    def check(self, vector: object, name: str) -> Tensor:
        """Take a point, as :func:`lbgap.checks.dense` does: a tensor, or an array of NumPy in any precision.

        Raises:
            ValueError: Its shape, dtype, device or layout is another one.
            TypeError: It is neither.
        """
        taken = dense(name, f"({self.n},)", vector, self.centre.dtype, self.centre.device)
        self._check_like(taken, name)
        return taken

    def check_out(self, out: object, name: str) -> None:
        """Refuse what no point can be written into.

        Raises:
            ValueError: Its shape, dtype, device or layout is another one, or its memory is not its own.
            TypeError: It is no tensor.
        """
        if not isinstance(out, Tensor):
            raise TypeError(f"{name} must be a tensor ({self.n},), got {type(out).__name__}")
        dense(name, f"({self.n},)", out, self.centre.dtype, self.centre.device)
        self._check_like(out, name)
        if self.n > 1 and out.stride(0) == 0:
            raise ValueError(f"{name} must have memory for each entry, got an expanded tensor: pass its .contiguous()")
        if out.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(f"{name} must not be a tensor of inference mode, which cannot be written outside of it")

    def _check_like(self, vector: Tensor, name: str) -> None:
        like = self.centre
        if vector.shape != like.shape or vector.dtype != like.dtype or vector.device != like.device:
            raise ValueError(
                f"{name} must be ({self.n},) {like.dtype} on {like.device}, got {tuple(vector.shape)} {vector.dtype} "
                f"on {vector.device}"
            )

    def check_rows(self, rows: object, name: str, count: str) -> Tensor:
        """Take points ``(count, n)`` as :meth:`check` takes one.

        Raises:
            ValueError: Their shape, dtype, device or layout is another one.
            TypeError: They are neither a tensor nor an array of NumPy.
        """
        taken = dense(name, f"({count}, {self.n})", rows, self.centre.dtype, self.centre.device)
        if taken.dim() != 2 or taken.shape[1] != self.n:
            raise ValueError(f"{name} must be ({count}, {self.n}), got shape {tuple(taken.shape)}")
        if len(taken):
            self._check_like(taken[0], name)
        return taken

    def check_complete(self) -> None:
        """Refuse to take derivatives along directions of a part of the space.

        Raises:
            ValueError: This is one.
        """
        if not self.complete:
            raise ValueError(
                "derivatives along directions are those of the full space: pass the objective of all of it"
            )

    def full(self, point: Tensor) -> Tensor:
        """The parameters of a point ``(n,)``, or of points ``(k, n)``: fresh."""
        return point.clone()

    def write(self, point: Tensor, theta: Tensor) -> None:
        """Write the parameters of a point ``(n,)`` into the replica's, ``(all,)``."""
        theta.copy_(point)

    def pull(self, gradient: Tensor, out: Tensor | None) -> Tensor:
        """The gradient in these coordinates of one in all parameters, ``(all,)``; in ``out``, or a fresh ``(n,)``."""
        return gradient.clone() if out is None else out.copy_(gradient)

    def settings(self) -> dict[str, Any]:
        """What a result keeps of them, ready for JSON."""
        return {"n": self.n}


class SomeParameters(Coordinates):
    """Some of the parameters, the others resting at the minimizer."""

    complete = False

    def __init__(self, flat: FlatModule, full: Tensor, names: Sequence[str]) -> None:
        """Choose them.

        Args:
            flat: The replica, which says where each parameter is.
            full: The minimizer in all parameters, ``(all,)``.
            names: Of the parameters that move.

        Raises:
            ValueError: A name is none of the replica's, or there are none.
        """
        unknown = [name for name in names if name not in flat.names]
        if unknown or not names:
            raise ValueError(f"names must be one or more of {', '.join(flat.names)}, got {unknown or list(names)}")
        self._flat, self._full = flat, full
        self.names = tuple(name for name in flat.names if name in names)
        self.centre = self._own(full)

    def full(self, point: Tensor) -> Tensor:
        """The point of all parameters with these: ``(n,)`` to a fresh ``(all,)``, or ``(k, n)`` to ``(k, all)``."""
        if point.dim() > 1:
            return torch.stack([self.full(row) for row in point])
        out = torch.empty_like(self._full)
        self.write(point, out)
        return out

    def write(self, point: Tensor, theta: Tensor) -> None:
        """Write these parameters, and the minimizer's others."""
        theta.copy_(self._full)
        views = self._views(theta)
        for view, value in zip(views, point.split([view.numel() for view in views]), strict=True):
            view.copy_(value.view_as(view))

    def pull(self, gradient: Tensor, out: Tensor | None) -> Tensor:
        """The entries that belong to these parameters."""
        own = self._own(gradient)
        return own if out is None else out.copy_(own)

    def settings(self) -> dict[str, Any]:
        """How many they are, and which."""
        return {"n": self.n, "parameters": list(self.names)}

    def _views(self, full: Tensor) -> list[Tensor]:
        pieces = zip(self._flat.names, self._flat.parts(full), strict=True)
        return [piece for name, piece in pieces if name in self.names]

    def _own(self, full: Tensor) -> Tensor:
        return torch.cat([piece.reshape(-1) for piece in self._views(full)])


class RandomManifold(Coordinates):
    """A random manifold: ``x + A (w - w0)`` as a function of p coordinates w.

    The columns of A ``(n, p)`` are random and never stored: every use draws them anew, bit for bit. ``w0 = A+ x`` are
    the coordinates of the minimizer x, so that the Keskar box around them is the set of Metric 2.1 of Keskar et al.
    2016 (arXiv 1609.04836), ``|z_i| <= epsilon (|(A+ x)_i| + 1)``. The paper does not say how A is distributed; its
    scale matters, and normal entries give values of the size of its Table 4.

    Coordinates are float64; the points they stand for are rounded to the precision of x.

    Attributes:
        centre: ``w0``, ``(p,)`` float64.
        distribution: Of the entries of A.
        seed: Of A.
        trial: Which of the seed's matrices.
    """

    complete = False

    def __init__(
        self,
        flat: FlatModule,
        full: Tensor,
        subspace: int,
        *,
        seed: int = 0,
        trial: int = 0,
        distribution: str = "normal",
        backend: str = "torch",
    ) -> None:
        """Draw the manifold and find the minimizer's coordinates.

        Args:
            flat: The replica.
            full: The minimizer x in all parameters, ``(n,)``.
            subspace: Number of columns p of A, from 1 to n.
            seed: Of A.
            trial: Every trial of a seed is another A.
            distribution: Of the entries: ``"normal"``; ``"uniform"`` on [-1, 1); ``"rademacher"``, -1 or 1; or
                ``"unit"``, normal with every column scaled to length 1.
            backend: ``"native"`` or ``"torch"``: who runs the ops.

        Raises:
            ValueError: A number is out of range, the distribution is not known, or the columns drawn do not span p
                dimensions to working precision.
            TypeError: A number is not whole.
        """
        subspace = whole("subspace", subspace, 1, 2**32)
        check_manifold(subspace, None, distribution)
        self.seed, self.trial = whole("seed", seed, 0), whole("trial", trial, 0, 2**32)
        if subspace > full.numel():
            raise ValueError(
                f"subspace must be at most the number of parameters that may move, {full.numel()}, got {subspace}"
            )
        self.names, self.distribution, self._full = flat.names, distribution, full
        self._matrix = (self.seed, self.trial, "normal" if distribution == "unit" else distribution)
        self._ops: Any = ops if backend == "native" else reference
        gram = self._ops.subspace_gram(full.numel(), subspace, *self._matrix, full.device)
        self._scale = gram.diagonal().rsqrt() if distribution == "unit" else torch.ones_like(gram[0])
        self.centre = self._scale.reciprocal() * self._solve(gram)

    def full(self, point: Tensor) -> Tensor:
        """The point of all parameters at coordinates ``(p,)`` or ``(k, p)``: a fresh ``(n,)`` or ``(k, n)``."""
        out = self._full.new_empty((*point.shape[:-1], self._full.numel()))
        self.write(point, out)
        return out

    def write(self, point: Tensor, theta: Tensor) -> None:
        """Write ``x + A (w - w0)``."""
        self._ops.subspace_apply(self._full, (point - self.centre) * self._scale, *self._matrix, theta)

    def pull(self, gradient: Tensor, out: Tensor | None) -> Tensor:
        """``A'g``."""
        own: Tensor = self._ops.subspace_project(gradient, self.n, *self._matrix) * self._scale
        return own if out is None else out.copy_(own)

    def settings(self) -> dict[str, Any]:
        """How many parameters there are, and which manifold this is."""
        mine = {"subspace": self.n, "distribution": self.distribution, "seed": self.seed, "trial": self.trial}
        return {"n": self._full.numel(), **mine}

    def _solve(self, gram: Tensor) -> Tensor:
        """``(A'A)^-1 A'x``, once the columns are scaled to the same length, which is as well as scaling can do."""
        p, length = len(gram), gram.diagonal().sqrt()
        scaled = gram / length.outer(length)
        factor, failed = torch.linalg.cholesky_ex(scaled)
        # The square of a pivot is what is left of a column of length 1 beside those before it.
        if int(failed) or not bool((factor.diagonal().square() > p * torch.finfo(torch.float64).eps).all()):
            raise ValueError(
                f"the {p} random columns do not span {p} dimensions of {self._full.numel()}: choose a smaller "
                "subspace, another seed, or distribution='normal'"
            )
        inner = self._ops.subspace_project(self._full, p, *self._matrix)
        solution = torch.cholesky_solve((inner / length)[:, None], factor)
        return solution[:, 0] / length


def check_manifold(subspace: int | None, trials: int | None, distribution: str | None) -> tuple[int | None, int, str]:
    """Judge what can be judged without data; returns all three, 1 trial in the full space.

    Raises:
        ValueError: A number is out of range, the distribution is not known, or one is given without a subspace.
        TypeError: A number is not whole.
    """
    given = {"trials": trials, "distribution": distribution}
    if subspace is None:
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name} belongs to a random manifold, got {value!r} without subspace: pass subspace=100"
                )
        return None, 1, "normal"
    subspace = whole("subspace", subspace, 1, 2**32)
    trials = whole("trials", TRIALS if trials is None else trials, 1, 2**32)
    distribution = "normal" if distribution is None else distribution
    if distribution not in DISTRIBUTIONS:
        names = ", ".join(map(repr, DISTRIBUTIONS))
        raise ValueError(f"distribution must be one of {names}, got {distribution!r}")
    return subspace, trials, distribution
