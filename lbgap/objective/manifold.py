"""The random manifold of Metric 2.1: the loss on the few coordinates that a random matrix spans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lbgap import ops, reference
from lbgap.checks import whole
from lbgap.losses import Loss
from lbgap.objective.objective import Objective

DISTRIBUTIONS = (*reference.DISTRIBUTIONS, "unit")
TRIALS = 5  # as many as the paper has


def check(subspace: int | None, trials: int | None, distribution: str | None) -> tuple[int | None, int, str]:
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


def spaces(
    objective: Objective,
    *,
    seed: int = 0,
    subspace: int | None = None,
    trials: int = TRIALS,
    distribution: str = "normal",
) -> Iterator[Objective]:
    """Yield what is climbed: the objective itself, or a manifold for each trial."""
    if subspace is None:
        yield objective
        return
    for trial in range(trials):
        yield Manifold(objective, subspace, seed=seed, trial=trial, distribution=distribution)


class Manifold(Objective):
    """An objective on a random manifold: ``f(x + A (w - w0))`` as a function of p coordinates w.

    The columns of A ``(n, p)`` are random and never stored: every use draws them anew, bit for bit. ``w0 = A+ x`` are
    the coordinates of the minimizer x, so that the Keskar box around them is the set of Metric 2.1 of Keskar et al.
    2016 (arXiv 1609.04836), ``|z_i| <= epsilon (|(A+ x)_i| + 1)``. The paper does not say how A is distributed; its
    scale matters, and normal entries give values of the size of its Table 4.

    It is climbed like any other objective, in float64 coordinates; it shares the replica of the objective that it was
    made of, and its evaluations count there too. Points are rounded to that objective's precision.

    Attributes:
        n: Number of coordinates, p.
        distribution: Of the entries of A.
        seed: Of A.
        trial: Which of the seed's matrices.
    """

    def __init__(
        self, objective: Objective, subspace: int, *, seed: int = 0, trial: int = 0, distribution: str = "normal"
    ) -> None:
        """Draw the manifold and find the minimizer's coordinates.

        Args:
            objective: The loss in the full space; x is its ``theta``.
            subspace: Number of columns p of A, from 1 to n.
            seed: Of A.
            trial: Every trial of a seed is another A.
            distribution: Of the entries: ``"normal"``; ``"uniform"`` on [-1, 1); ``"rademacher"``, -1 or 1; or
                ``"unit"``, normal with every column scaled to length 1.

        Raises:
            ValueError: A number is out of range, the distribution is not known, or the columns drawn do not span p
                dimensions to working precision.
            TypeError: A number is not whole.
        """
        subspace = whole("subspace", subspace, 1, 2**32)
        check(subspace, None, distribution)
        seed, trial = whole("seed", seed, 0), whole("trial", trial, 0, 2**32)
        if isinstance(objective, Manifold):
            raise ValueError("objective is a random manifold already: pass the objective that it was made of")
        if subspace > objective.n:
            raise ValueError(
                f"subspace must be at most the number of parameters that may move, {objective.n}, got {subspace}"
            )
        self.__dict__.update(objective.__dict__)
        self._full, self._whole, self.evaluated, self._restricted = objective, objective, 0, True
        self._x = objective._centre
        self.n, self.dtype = subspace, torch.float64
        self.distribution, self.seed, self.trial = distribution, seed, trial
        entries = "normal" if distribution == "unit" else distribution
        self._matrix = (seed, trial, entries)
        self._ops: Any = ops if self.backend == "native" else reference
        with torch.inference_mode(False), torch.no_grad():
            gram = self._ops.subspace_gram(self._x.numel(), subspace, *self._matrix, self.device)
            self._scale = gram.diagonal().rsqrt() if distribution == "unit" else torch.ones_like(gram[0])
            self._centre = self._scale.reciprocal() * self._solve(gram)

    def point(self, w: Tensor) -> Tensor:
        """The point of the full space at coordinates ``(p,)`` or ``(k, p)``: a fresh ``(n,)`` or ``(k, n)``."""
        out = self._x.new_empty((*w.shape[:-1], self._x.numel()))
        self._to_full(w, out)
        return out

    def settings(self) -> dict[str, Any]:
        """As those of the full space, and which manifold it is."""
        full = self._full.settings()
        mine = {"subspace": self.n, "distribution": self.distribution, "seed": self.seed, "trial": self.trial}
        return {**super().settings(), "n": full["n"], "directions": full["directions"], **mine}

    def _solve(self, gram: Tensor) -> Tensor:
        """``(A'A)^-1 A'x``, once the columns are scaled to the same length, which is as well as scaling can do."""
        length = gram.diagonal().sqrt()
        scaled = gram / length.outer(length)
        factor, failed = torch.linalg.cholesky_ex(scaled)
        # The square of a pivot is what is left of a column of length 1 beside those before it.
        if int(failed) or not bool((factor.diagonal().square() > self.n * torch.finfo(torch.float64).eps).all()):
            raise ValueError(
                f"the {self.n} random columns do not span {self.n} dimensions of {self._x.numel()}: choose a smaller "
                "subspace, another seed, or distribution='normal'"
            )
        inner = self._ops.subspace_project(self._x, self.n, *self._matrix)
        solution = torch.cholesky_solve((inner / length)[:, None], factor)
        return solution[:, 0] / length

    def _to_full(self, w: Tensor, out: Tensor) -> None:
        self._ops.subspace_apply(self._x, (w - self._centre) * self._scale, *self._matrix, out)

    # Where an objective meets its parameters.

    def _move(self, theta: Tensor) -> None:
        self._to_full(theta, self._flat.theta)

    def _gradient(self, theta: Tensor, out: Tensor | None, loss: Loss, *, bfloat16: bool) -> tuple[Tensor, Tensor]:
        full = self._flat.gradient  # where it is already: nothing is copied
        report, _ = super()._gradient(theta, full, loss, bfloat16=bfloat16)
        with torch.no_grad():
            gradient = self._ops.subspace_project(full, self.n, *self._matrix) * self._scale
        return report, gradient if out is None else out.copy_(gradient)
