"""The spectral density of the Hessian, by stochastic Lanczos quadrature."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from lbgap.checks import positive, whole
from lbgap.measures.call import Options
from lbgap.measures.draws import share
from lbgap.measures.hessian.call import Spectral, Subject, Task, check_limits, estimate
from lbgap.measures.hessian.eigenvalues import Eigenvalues
from lbgap.measures.hessian.lanczos import tridiagonals
from lbgap.measures.hessian.probes import AT_ONCE, LARGEST, Probes
from lbgap.measures.hessian.products import Products
from lbgap.measures.hessian.quadrature import FALL, extent, nodes_and_weights, smooth, sums
from lbgap.measures.hessian.rows import project_out, span
from lbgap.status import Status, status
from lbgap.system.progress import Report, check_progress, products_bar

STREAM = 0x5DEECE66D  # mixed into the seed: probes drawn like the start of the known vectors would lie in their span
FEWEST_PROBES = 4  # before a standard error is believed


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Density(Spectral):
    """The density of the eigenvalues of a symmetric matrix, smoothed by Gaussians; its integral is one.

    ``value`` is the estimate of the trace.

    Attributes:
        grid: Where, ascending, ``(points,)``.
        density: Share of the eigenvalues per unit, at each point of the grid.
        standard_error: Of each, over the probes.
        width: Standard deviation of the Gaussians, in units of an eigenvalue.
        relative_error: Integral of the standard error.
        nodes: Nodes of the quadrature of each probe, ``(probes, steps)`` float64 on the CPU.
        weights: Their weights, ``(probes, steps)``; those of a probe add up to one.
        known: Eigenvalues that were taken out beforehand and count exactly.
        n: Number of eigenvalues.
    """

    apart: ClassVar[frozenset[str]] = frozenset({"nodes", "weights"})

    grid: tuple[float, ...]
    density: tuple[float, ...]
    standard_error: tuple[float, ...]
    width: float
    relative_error: float
    nodes: Tensor
    weights: Tensor
    known: tuple[float, ...]
    n: int

    def each(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The sum of a function over all eigenvalues as each probe sees it, ``(probes,)`` float64.

        Args:
            function: From a float64 tensor to one of the same shape, or with more dimensions in front.
        """
        return sums(function, self.nodes, self.weights, self.known, self.n)

    def sum(self, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """The sum of a function over all eigenvalues, and its standard error over the probes.

        ``density.sum(torch.square)`` is the squared Frobenius norm, ``density.sum(lambda x: (x > 1).double())`` the
        number of eigenvalues above one.

        Args:
            function: From a float64 tensor to one of the same shape.
        """
        values = self.each(function)
        return float(values.mean()), float(values.std()) / math.sqrt(len(values))

    @property
    def resolution(self) -> float:
        """Distance at which two eigenvalues can be told apart."""
        return self.width * 2 * math.sqrt(2 * math.log(FALL))

    def at(self, resolution: float) -> Density:
        """The same quadrature, smoothed for another resolution: densities are compared at the same one.

        Args:
            resolution: Distance at which two eigenvalues can be told apart, above zero.
        """
        resolution = positive("resolution", resolution, "0.01")
        shape = resolution, self.settings["points"]
        grid, density, error, width, relative = smooth(self.nodes, self.weights, self.known, self.n, 1, *shape)
        return dataclasses.replace(
            self,
            grid=tuple(grid.tolist()),
            density=tuple(density.tolist()),
            standard_error=tuple(error.tolist()),
            width=width,
            relative_error=relative,
            settings={**self.settings, "resolution": resolution},
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON, nodes and weights as lists; NaN and infinity become None."""
        return {**super().to_dict(), "nodes": self.nodes.tolist(), "weights": self.weights.tolist()}

    def _headline(self) -> str:
        error = self.sum(lambda x: x)[1]
        low, high = extent(self.nodes, self.weights, self.known)
        return (
            f"spectral density of the {self.matrix}: from {low:.6g} to {high:.6g}, trace {self.value:.6g} +- "
            f"{error:.2g} (standard error)"
        )

    def _numbers(self) -> list[str]:
        return [
            f"{len(self.nodes)} probes of {self.nodes.shape[1]} steps, width {self.width:.3g}, {len(self.known)} known "
            "eigenvalues"
        ]


@dataclass(frozen=True)
class StoppingRule:
    """When probes are enough.

    Attributes:
        relative_error: Largest error that is asked for; None to go on to the limit.
        threshold: Above which the sum of eigenvalues must be known as well; None without.
        known: Eigenvalues that were taken out.
        n: Number of eigenvalues.
    """

    relative_error: float | None
    threshold: float | None
    known: tuple[float, ...]
    n: int

    def reached(self, nodes: Tensor, weights: Tensor, relative: float) -> bool:
        """Whether they are; ``relative`` is the error of the density."""
        if self.relative_error is None or len(nodes) < FEWEST_PROBES or relative > self.relative_error:
            return False
        return self.threshold is None or self.of_sum(nodes, weights) <= self.relative_error

    def of_sum(self, nodes: Tensor, weights: Tensor) -> float:
        """Relative standard error of the sum of the eigenvalues above the threshold."""
        limit = self.threshold or 0.0
        exact = math.fsum(value for value in self.known if value > limit)
        each = exact + (self.n - len(self.known)) * (weights * nodes * (nodes > limit)).sum(1)
        return share(float(each.std()) / math.sqrt(len(each)), float(each.mean()))

    def status(self, nodes: Tensor, weights: Tensor, relative: float) -> Status:
        """Why it ended, and what to try for a better estimate."""
        name = "converged" if self.reached(nodes, weights, relative) else "limit"
        name = "complete" if self.relative_error is None else name
        numbers: dict[str, Any] = {
            "probes": len(nodes),
            "error": 100 * relative,
            "asked": 100 * (self.relative_error or 0),
        }
        if self.threshold is None:
            return status(f"{name}.probes", **numbers)
        return status(f"{name}.sum", threshold=self.threshold, of_sum=100 * self.of_sum(nodes, weights), **numbers)


def spectral_density(
    model: Subject,
    data: Any = None,
    *,
    kind: str = "hessian",
    steps: int = 40,
    known: Eigenvalues | None = None,
    resolution: float | None = None,
    points: int = 512,
    relative_error: float | None = 0.05,
    threshold: float | None = None,
    max_products: int = 320,
    seed: int = 0,
    progress: Report = False,
    **options: Unpack[Options],
) -> Density:
    """Estimate the density of the eigenvalues of the Hessian at a minimizer, or of any symmetric matrix.

    Stochastic Lanczos quadrature: each probe, a random unit vector v, gives by Lanczos with full reorthogonalisation
    the nodes and weights of a Gauss quadrature of ``v' f(H) v``, and their mean over probes is the density (Lin, Saad
    and Yang 2016, SIAM Review 58, arXiv 1308.5467; for networks Ghorbani, Krishnan and Xiao 2019, arXiv 1901.10159).
    Several probes are multiplied at once.

    The density is smoothed by Gaussians whose standard deviation follows from the resolution: half of it away, a
    Gaussian has fallen by a factor of 1.25. A Lanczos run of ``steps`` steps does not resolve more than about its range
    divided by the steps, which is the default.

    Args:
        model: Any ``torch.nn.Module`` that can be differentiated twice, never changed, or an
            :class:`~lbgap.objective.Objective`: the matrix at its parameters is meant. Or any symmetric matrix, as a
            :class:`~lbgap.operators.LinearOperator` or a dense tensor ``(n, n)``.
        data: Of a module: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``, as in ``Objective.hvp``.
        steps: Products for each probe, at most the size of the matrix.
        known: What :func:`lbgap.eigenvalues` found of the same matrix: these count exactly, and the probes see only
            what is orthogonal to them. A few outliers, which single probes hit by chance, are then no longer noise.
        resolution: Distance at which two eigenvalues can be told apart.
        points: Of the grid, two or more.
        relative_error: Stop after four probes or more once the integral of the standard error is at most this; None to
            use all products.
        threshold: Stop only once the sum of the eigenvalues above it is known to ``relative_error``, too: near a
            minimizer nearly all eigenvalues are near zero, so that the density is known long before those that matter.
        max_products: Products at most, enough for two probes or more.
        seed: Of the probes.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: Of a module, ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device`` and
            ``backend``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        The density, with the nodes and weights for sums of any function of the eigenvalues.

    Raises:
        ValueError: An argument is out of its range, the model cannot be differentiated twice, or a tensor is no
            symmetric matrix.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: A product is NaN or infinite.

    Example:
        >>> import torch, lbgap
        >>> d = lbgap.spectral_density(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])))
        >>> d.nodes.shape[1], d.weights.sum(1).allclose(torch.ones(1, dtype=torch.float64))
        (6, True)
    """
    max_products, seed = check_limits(kind, max_products, seed)
    steps = whole("steps", steps, 1)
    points = whole("points", points, 2)
    check_progress(progress)
    if known is not None and not isinstance(known, Eigenvalues):
        raise TypeError(f"known must be what lbgap.eigenvalues returned, got {type(known).__name__}")
    if resolution is not None:
        resolution = positive("resolution", resolution, "0.01")
    if relative_error is not None:
        relative_error = positive("relative_error", relative_error, "0.05")
    if threshold is not None:
        threshold = positive("threshold", threshold, "0.1")
    with (
        estimate("spectral_density", model, data, kind, options) as task,
        products_bar("density", max_products, progress) as report,
    ):
        n = task.operator.size
        against = None if known is None else _taken_out(known, task)
        values = () if known is None else known.values
        steps = min(steps, n - len(values))
        if max_products < 2 * steps:
            raise ValueError(
                f"max_products must be at least {2 * steps}, two probes of {steps} steps, got {max_products}"
            )
        products = Products(task.operator, max_products, report)
        rule = StoppingRule(relative_error, threshold, values, n)
        probes = Probes(task.operator, seed ^ STREAM)
        nodes, weights = _run(products, probes, steps, against, rule, resolution, points)
        grid, density, error, width, relative = smooth(nodes, weights, values, n, steps, resolution, points)
        own: dict[str, Any] = {"kind": kind, "steps": steps, "known": len(values), "resolution": resolution}
        own |= {"points": points, "relative_error": relative_error, "threshold": threshold}
        own |= {"max_products": max_products, "seed": seed}
        return Density(
            value=float(sums(lambda x: x, nodes, weights, values, n).mean()),
            grid=tuple(grid.tolist()),
            density=tuple(density.tolist()),
            standard_error=tuple(error.tolist()),
            width=width,
            relative_error=relative,
            nodes=nodes,
            weights=weights,
            known=values,
            n=n,
            products=products.count,
            evaluations=task.evaluations,
            status=rule.status(nodes, weights, relative),
            settings=task.settings(own),
            seconds=task.seconds,
        )


def _taken_out(known: Eigenvalues, task: Task) -> Tensor:
    """Orthonormal rows of the vectors that are known.

    Raises:
        ValueError: They belong to another matrix.
    """
    n, name = task.operator.size, task.operator.name
    if known.vectors.shape[1] != n or known.matrix != name:
        raise ValueError(
            f"known must be eigenvalues of the same matrix, the {name} with {n} {task.rows}, got "
            f"those of the {known.matrix} with {known.vectors.shape[1]}"
        )
    if len(known.values) >= n:
        raise ValueError(f"known holds all {len(known.values)} eigenvalues: there is nothing left to estimate")
    return span(known.vectors.to(task.operator.device, task.operator.dtype))


def _run(
    products: Products,
    probes: Probes,
    steps: int,
    against: Tensor | None,
    rule: StoppingRule,
    resolution: float | None,
    points: int,
) -> tuple[Tensor, Tensor]:
    """Probe until the density is known well enough, or the products run out; nodes and weights."""
    n = products.operator.size
    at_once = max(1, min(AT_ONCE // 2, LARGEST // (steps * n)))
    nodes, weights = [], []
    while True:
        # At least two probes in all, so that there is an error.
        count = min(at_once, max(1, products.left // steps))
        starts = probes.normals(count)
        if against is not None:
            project_out(against, starts)
            project_out(against, starts)
        starts /= torch.linalg.vector_norm(starts, dim=1, keepdim=True)
        found = nodes_and_weights(*tridiagonals(products, starts, steps, against))
        nodes.append(found[0])
        weights.append(found[1])
        joined = torch.cat(nodes), torch.cat(weights)
        if products.left < steps:
            return joined
        if rule.relative_error is not None and len(joined[0]) >= FEWEST_PROBES:
            relative = smooth(*joined, rule.known, n, steps, resolution, points)[-1]
            if rule.reached(*joined, relative):
                return joined
