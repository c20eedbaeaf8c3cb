"""The spectral density of the Hessian, by stochastic Lanczos quadrature."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lbgap.checks import flag, positive, whole
from lbgap.measures.call import Call, Options, call
from lbgap.measures.hessian.eigenvalues import Eigenvalues
from lbgap.measures.hessian.lanczos import project_out, span, tridiagonals
from lbgap.measures.hessian.probes import AT_ONCE, LARGEST, Products, check_limits, share
from lbgap.objective import Objective
from lbgap.result import plain
from lbgap.system.progress import products_bar

STREAM = 0x5DEECE66D  # mixed into the seed: probes drawn like the start of the known vectors would lie in their span
FEWEST_PROBES = 4  # before a standard error is believed
TOLD_APART = 1.25  # two Gaussians one resolution apart: each has fallen by this factor in the middle
NO_WEIGHT = 1e-20  # of a node beyond the end of a Krylov space
TAILS = 6.0  # widths that the grid goes beyond the outermost node


@dataclass(frozen=True, eq=False)
class Density:
    """The density of the eigenvalues of a Hessian, smoothed by Gaussians; its integral is one.

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
        products: Hessian-vector products.
        evaluations: Passes over the data, as the objective counts them.
        status: Why it ended, and what to try for a better estimate.
        settings: Everything that the result depends on.
        seconds: Wall-clock time of the call.
    """

    grid: tuple[float, ...] = field(repr=False)
    density: tuple[float, ...] = field(repr=False)
    standard_error: tuple[float, ...] = field(repr=False)
    width: float
    relative_error: float
    nodes: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    known: tuple[float, ...] = field(repr=False)
    n: int
    products: int
    evaluations: float
    status: str
    settings: dict[str, Any] = field(repr=False)
    seconds: float

    def each(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The sum of a function over all eigenvalues as each probe sees it, ``(probes,)`` float64.

        Args:
            function: From a float64 tensor to one of the same shape, or with more dimensions in front.
        """
        exact = function(torch.tensor(self.known, dtype=torch.float64)).sum(-1)
        rest = (self.weights * function(self.nodes)).sum(-1)
        return exact[..., None] + (self.n - len(self.known)) * rest

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
        return self.width * 2 * math.sqrt(2 * math.log(TOLD_APART))

    def at(self, resolution: float) -> Density:
        """The same quadrature, smoothed for another resolution: densities are compared at the same one.

        Args:
            resolution: Distance at which two eigenvalues can be told apart, above zero.
        """
        resolution = positive("resolution", resolution, "0.01")
        shape = resolution, self.settings["points"]
        grid, density, error, width, relative = _smooth(self.nodes, self.weights, self.known, self.n, 1, *shape)
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
        """Everything, ready for JSON; NaN and infinity become None."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return plain({**fields, "nodes": self.nodes.tolist(), "weights": self.weights.tolist()})  # type: ignore[no-any-return]

    def __str__(self) -> str:
        """A few lines: the extent, the trace, and how they were found."""
        s = self.settings
        trace, error = self.sum(lambda x: x)
        low, high = extent(self.nodes, self.weights, self.known)
        return "\n".join(
            (
                f"spectral density of the {s['kind']}: from {low:.6g} to {high:.6g}, trace {trace:.6g} +- {error:.2g} "
                "(standard error)",
                f"  {len(self.nodes)} probes of {s['steps']} steps, width {self.width:.3g}, {len(self.known)} known "
                "eigenvalues",
                f"  {s['n']:,} parameters, {s['samples']:,} samples, batch-norm {s['batch_norm']}, "
                f"{self.products} products, {self.seconds:.2f} s, {s['precision']} on {s['device']}",
                f"  {self.status}",
                *(f"  note: {note}" for note in s["notes"]),
            )
        )


@dataclass(frozen=True)
class Rule:
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

    def status(self, nodes: Tensor, weights: Tensor, relative: float) -> str:
        """Why it ended, and what to try for a better estimate."""
        size = f"the standard error of the density is {100 * relative:.2g} % of its integral"
        if self.threshold is not None:
            size += f", that of the sum above {self.threshold:.4g} {100 * self.of_sum(nodes, weights):.2g} % of it"
        if self.reached(nodes, weights, relative):
            return f"{len(nodes)} probes: {size}, within the {100 * (self.relative_error or 0):g} % asked for"
        if self.relative_error is None:
            return f"{len(nodes)} probes, all that were asked for: {size}"
        return f"{len(nodes)} probes, the limit: {size}; try a larger most"


def spectral_density(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    kind: str = "hessian",
    steps: int = 40,
    known: Eigenvalues | None = None,
    resolution: float | None = None,
    points: int = 512,
    relative_error: float | None = 0.05,
    threshold: float | None = None,
    most: int = 320,
    seed: int = 0,
    progress: bool = False,
    **options: Unpack[Options],
) -> Density:
    """Estimate the density of the eigenvalues of the Hessian at a minimizer.

    Stochastic Lanczos quadrature: each probe, a random unit vector v, gives by Lanczos with full reorthogonalisation
    the nodes and weights of a Gauss quadrature of ``v' f(H) v``, and their mean over probes is the density (Lin, Saad
    and Yang 2016, SIAM Review 58, arXiv 1308.5467; for networks Ghorbani, Krishnan and Xiao 2019, arXiv 1901.10159).
    Several probes are multiplied at once.

    The density is smoothed by Gaussians whose standard deviation follows from the resolution: half of it away, a
    Gaussian has fallen by a factor of 1.25. A Lanczos run of ``steps`` steps does not resolve more than about its range
    divided by the steps, which is the default.

    Args:
        model: Any ``torch.nn.Module`` that can be differentiated twice, never changed; or an
            :class:`~lbgap.objective.Objective`.
        data: ``(inputs, targets)``, a map-style ``Dataset`` or a ``DataLoader`` that does not shuffle.
        kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``, as in ``Objective.hvp``.
        steps: Products for each probe, at most the number of parameters.
        known: What :func:`lbgap.eigenvalues` found on the same objective: these count exactly, and the probes see only
            what is orthogonal to them. A few outliers, which single probes hit by chance, are then no longer noise.
        resolution: Distance at which two eigenvalues can be told apart.
        points: Of the grid, two or more.
        relative_error: Stop after four probes or more once the integral of the standard error is at most this; None to
            use all products.
        threshold: Stop only once the sum of the eigenvalues above it is known to ``relative_error``, too: near a
            minimizer nearly all eigenvalues are near zero, so that the density is known long before those that matter.
        most: Products at most, enough for two probes or more.
        seed: Of the probes.
        progress: Show a progress bar on standard error.
        options: ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device`` and ``backend``, as
            in :func:`lbgap.fast_sharpness`.

    Returns:
        The density, with the nodes and weights for sums of any function of the eigenvalues.

    Raises:
        ValueError: An argument is out of its range, or the model cannot be differentiated twice.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: A product is NaN or infinite.

    Example:
        >>> import torch, lbgap
        >>> d = lbgap.spectral_density(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])))
        >>> d.nodes.shape[1], d.weights.sum(1).allclose(torch.ones(1, dtype=torch.float64))
        (6, True)
    """
    most, seed = check_limits(kind, most, seed)
    steps = whole("steps", steps, 1)
    points = whole("points", points, 2)
    flag("progress", progress)
    if known is not None and not isinstance(known, Eigenvalues):
        raise TypeError(f"known must be what lbgap.eigenvalues returned, got {type(known).__name__}")
    if resolution is not None:
        resolution = positive("resolution", resolution, "0.01")
    if relative_error is not None:
        relative_error = positive("relative_error", relative_error, "0.05")
    if threshold is not None:
        threshold = positive("threshold", threshold, "0.1")
    with call("spectral_density", model, data, options) as this, products_bar("density", most, progress) as told:
        against = None if known is None else _taken_out(known, this, kind)
        values = () if known is None else known.values
        steps = min(steps, this.objective.n - len(values))
        if most < 2 * steps:
            raise ValueError(f"most must be at least {2 * steps}, two probes of {steps} steps, got {most}")
        products = Products(this, kind, most, seed ^ STREAM, told)
        rule = Rule(relative_error, threshold, values, this.objective.n)
        nodes, weights = _run(products, steps, against, rule, resolution, points)
        shape = steps, resolution, points
        grid, density, error, width, relative = _smooth(nodes, weights, values, this.objective.n, *shape)
        own: dict[str, Any] = {"kind": kind, "steps": steps, "known": len(values), "resolution": resolution}
        own |= {"points": points, "relative_error": relative_error, "threshold": threshold, "most": most, "seed": seed}
        return Density(
            grid=tuple(grid.tolist()),
            density=tuple(density.tolist()),
            standard_error=tuple(error.tolist()),
            width=width,
            relative_error=relative,
            nodes=nodes,
            weights=weights,
            known=values,
            n=this.objective.n,
            products=products.count,
            evaluations=this.evaluations,
            status=rule.status(nodes, weights, relative),
            settings=this.settings(own),
            seconds=this.seconds,
        )


def _taken_out(known: Eigenvalues, this: Call, kind: str) -> Tensor:
    """Orthonormal rows of the vectors that are known.

    Raises:
        ValueError: They belong to another matrix.
    """
    if known.vectors.shape[1:] != this.centre.shape or known.settings["kind"] != kind:
        raise ValueError(
            f"known must be eigenvalues of the {kind} of the same objective with {len(this.centre)} parameters, got "
            f"those of the {known.settings['kind']} with {known.vectors.shape[1]}"
        )
    if len(known.values) >= len(this.centre):
        raise ValueError(f"known holds all {len(known.values)} eigenvalues: there is nothing left to estimate")
    return span(known.vectors.to(this.centre))


def _run(
    products: Products,
    steps: int,
    against: Tensor | None,
    rule: Rule,
    resolution: float | None,
    points: int,
) -> tuple[Tensor, Tensor]:
    """Probe until the density is known well enough, or the products run out; nodes and weights."""
    n = len(products.like)
    at_once = max(1, min(AT_ONCE // 2, LARGEST // (steps * n)))
    nodes, weights = [], []
    while True:
        # At least two probes in all, so that there is an error.
        count = min(at_once, max(1, products.left // steps))
        starts = products.normals(count)
        if against is not None:
            project_out(against, starts)
            project_out(against, starts)
        starts /= torch.linalg.vector_norm(starts, dim=1, keepdim=True)
        found = quadrature(*tridiagonals(products, starts, steps, against))
        nodes.append(found[0])
        weights.append(found[1])
        joined = torch.cat(nodes), torch.cat(weights)
        if products.left < steps:
            return joined
        if len(joined[0]) >= FEWEST_PROBES:
            relative = _smooth(*joined, rule.known, n, steps, resolution, points)[-1]
            if rule.reached(*joined, relative):
                return joined


def quadrature(diagonal: Tensor, off: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss quadratures of some tridiagonal matrices (Golub and Welsch 1969).

    Args:
        diagonal: ``(k, steps)`` float64.
        off: ``(k, steps - 1)``.

    Returns:
        Two ``(k, steps)`` on the CPU: eigenvalues, and the squared first entries of the eigenvectors.
    """
    matrices = torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    nodes, vectors = torch.linalg.eigh(matrices.cpu())
    return nodes, vectors[:, 0].square()


def extent(nodes: Tensor, weights: Tensor, known: tuple[float, ...]) -> tuple[float, float]:
    """The least and the largest node that has a weight, or eigenvalue that is known."""
    values = [*nodes[weights > NO_WEIGHT].tolist(), *known]
    return min(values), max(values)


def _width(low: float, high: float, steps: int, resolution: float | None) -> float:
    """Standard deviation of the Gaussians."""
    resolution = resolution or max((high - low) / steps, 1e-3 * max(-low, high)) or 1e-3
    return resolution / (2 * math.sqrt(2 * math.log(TOLD_APART)))


def _smooth(
    nodes: Tensor, weights: Tensor, known: tuple[float, ...], n: int, steps: int, resolution: float | None, points: int
) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """Grid, density, its standard error, the width, and the integral of the error."""
    exact = torch.tensor(known, dtype=torch.float64)
    low, high = extent(nodes, weights, known)
    width = _width(low, high, steps, resolution)
    low, high = low - TAILS * width, high + TAILS * width
    grid = torch.linspace(low, high, points, dtype=torch.float64)

    def gaussians(centres: Tensor) -> Tensor:
        """``(..., points)``: one at each centre."""
        away = (grid - centres[..., None]) / width
        return torch.exp(-away.square() / 2) / (width * math.sqrt(2 * math.pi))

    each = torch.stack([(w[:, None] * gaussians(t)).sum(0) for t, w in zip(nodes, weights, strict=True)])
    each = (1 - len(known) / n) * each + gaussians(exact).sum(0) / n
    error = each.std(0) / math.sqrt(len(each))
    return grid, each.mean(0), error, width, float(torch.trapezoid(error, grid))
