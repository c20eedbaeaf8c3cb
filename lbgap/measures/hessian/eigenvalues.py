"""Extreme eigenvalues of the Hessian, with a residual for each that says how exact it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from lbgap.checks import positive, whole
from lbgap.measures.call import Options
from lbgap.measures.hessian.call import Spectral, Subject, check_limits, estimate
from lbgap.measures.hessian.lanczos import Basis
from lbgap.measures.hessian.probes import LARGEST, Probes
from lbgap.measures.hessian.products import Products
from lbgap.measures.hessian.rows import dots
from lbgap.status import Status, status
from lbgap.system.progress import Report, check_progress, products_bar

WHICH = ("largest", "smallest", "both")
BLOCK = 2  # vectors of a block, at most, unless the caller says otherwise
BASIS = 60  # vectors of a basis, at least four for each pair, if they fit
EXPLORED = 8  # blocks after a Krylov space has ended
SPARE = 4  # Ritz vectors that a restart keeps beside those that are wanted


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Eigenvalues(Spectral):
    """Some eigenpairs of a symmetric matrix; ``value`` is the first of ``values``.

    Attributes:
        values: Descending. Each is the Rayleigh quotient ``v' H v`` of its vector, taken from one more product.
        vectors: Unit vectors, one a row, ``(len(values), n)``, in the matrix's dtype; their signs mean nothing.
        residuals: ``|H v - value v|`` of each, from the same product: an eigenvalue of H is at most this far.
        converged: Whether each residual is at most ``tolerance`` times the largest absolute eigenvalue.
    """

    apart: ClassVar[frozenset[str]] = frozenset({"vectors"})

    values: tuple[float, ...]
    vectors: Tensor
    residuals: tuple[float, ...]
    converged: tuple[bool, ...]

    def _headline(self) -> str:
        pairs = (f"{value:.6g} (residual {size:.1e})" for value, size in zip(self.values, self.residuals, strict=True))
        return f"eigenvalues of the {self.matrix}: {', '.join(pairs)}"


def eigenvalues(
    model: Subject,
    data: Any = None,
    *,
    k: int = 5,
    which: str = "largest",
    kind: str = "hessian",
    tolerance: float = 1e-3,
    max_products: int = 1000,
    block: int | None = None,
    max_basis: int | None = None,
    seed: int = 0,
    progress: Report = False,
    **options: Unpack[Options],
) -> Eigenvalues:
    """Find the largest or smallest eigenvalues of the Hessian at a minimizer, or of any symmetric matrix.

    Block Lanczos with full reorthogonalisation and thick restarts (Wu and Simon 2000, SIAM J. Matrix Anal. Appl. 22).
    It stops when the residual of each wanted pair is at most ``tolerance`` times the largest absolute eigenvalue seen,
    or at the limit of products; then each pair is multiplied once more, so that the residuals returned are true ones.

    An eigenvalue that is repeated up to ``block`` times is found that often. Of one that is repeated more often copies
    may be missed, unless the Krylov space ends (as with few distinct eigenvalues), after which random vectors go on.

    Args:
        model: Any ``torch.nn.Module`` that can be differentiated twice, never changed, or an
            :class:`~lbgap.objective.Objective`: the matrix at its parameters is meant. Or any symmetric matrix, as a
            :class:`~lbgap.operators.LinearOperator` or a dense tensor ``(n, n)``.
        data: Of a module: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        k: How many at each end.
        which: ``"largest"``, ``"smallest"`` (the most negative) or ``"both"``.
        kind: ``"hessian"``, ``"ggn"`` (generalised Gauss-Newton) or ``"fisher"``, as in ``Objective.hvp``.
        tolerance: Of the residuals, relative to the largest absolute eigenvalue.
        max_products: Products at most, those of the final check included.
        block: Vectors that are multiplied at once; by default 2, or 1 for a single pair.
        max_basis: Vectors of the basis, at least k (``"both"``: 2 k) and two blocks; a restart follows when it is
            full. By default 60, or four for each pair, or as many as fit into 2^28 numbers.
        seed: Of the random start.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: Of a module, ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device`` and
            ``backend``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        The pairs. In float32 residuals end near 1e-6 of the largest eigenvalue, or of the error of the products.

    Raises:
        ValueError: An argument is out of its range, the model cannot be differentiated twice, or a tensor is no
            symmetric matrix.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: A product is NaN or infinite.

    Example:
        >>> import torch, lbgap
        >>> found = lbgap.eigenvalues(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])), k=2)
        >>> found.converged
        (True, True)
    """
    if which not in WHICH:
        raise ValueError(f"which must be one of {', '.join(map(repr, WHICH))}, got {which!r}")
    k = whole("k", k, 1)
    max_products, seed = check_limits(kind, max_products, seed)
    tolerance = positive("tolerance", tolerance, "1e-3")
    check_progress(progress)
    if block is not None:
        block = whole("block", block, 1)
    if max_basis is not None:
        max_basis = whole("max_basis", max_basis, 1)
    with estimate("eigenvalues", model, data, kind, options) as task:
        operator = task.operator
        if k > operator.size:
            raise ValueError(f"k must be at most the number of {task.rows}, {operator.size}, got {k}")
        wanted, block, max_basis = _sizes(operator.size, k, which, max_products, block, max_basis)
        with products_bar("eigenvalues", max_products, progress) as report:
            products = Products(operator, max_products, report)
            basis = Basis(products, Probes(operator, seed), max_basis, block)
            reached = _iterate(basis, products, k, which, wanted, tolerance)
            values, vectors, residuals = _checked(basis, products, k, which)
        scale = float(basis.ritz()[0].abs().max())
        converged = tuple(size <= tolerance * scale for size in residuals)
        own = {
            "k": k,
            "which": which,
            "kind": kind,
            "tolerance": tolerance,
            "max_products": max_products,
            "block": block,
            "max_basis": max_basis,
            "seed": seed,
        }
        return Eigenvalues(
            value=values[0],
            values=values,
            vectors=vectors,
            residuals=residuals,
            converged=converged,
            products=products.count,
            evaluations=task.evaluations,
            status=_copies(
                _status(products.count, converged, reached, tolerance, scale), values, block, tolerance * scale
            ),
            settings=task.settings(own),
            seconds=task.seconds,
        )


def _sizes(
    n: int, k: int, which: str, max_products: int, block: int | None, max_basis: int | None
) -> tuple[int, int, int]:
    """How many pairs there will be, and the sizes of a block and of the basis.

    Raises:
        ValueError: They do not fit together.
    """
    wanted = min(2 * k, n) if which == "both" else k
    block = min(block or min(k, BLOCK), n)
    least = min(wanted + 2 * block, n)
    if max_basis is None:
        max_basis = max(least, min(max(BASIS, 4 * wanted), LARGEST // n))
    elif max_basis < least:
        raise ValueError(
            f"max_basis must be at least {least}, for {wanted} pairs and two blocks of {block}, got {max_basis}"
        )
    if max_products < 2 * wanted + block:
        raise ValueError(
            f"max_products must be at least {2 * wanted + block}, to find {wanted} pairs and check them, got "
            f"{max_products}"
        )
    return wanted, block, min(max_basis, n)


def _ends(values: Tensor, k: int, which: str) -> Tensor:
    """Indices of the wanted Ritz values, of values that ascend, the largest first."""
    count = len(values)
    order = torch.arange(count - 1, -1, -1, device="cpu")
    if which == "both" and 2 * k < count:
        return torch.cat((order[:k], order[-k:]))
    return {"largest": order[:k], "smallest": order[-k:], "both": order}[which]


def _iterate(basis: Basis, products: Products, k: int, which: str, wanted: int, tolerance: float) -> bool:
    """Expand and restart until the wanted pairs are good enough, or the products run out; returns whether they are."""
    before: Tensor | None = None  # the wanted values when the Krylov space ended last
    wait = 0  # blocks that go on from random vectors after such an end, in search of copies that it cannot hold
    while True:
        basis.expand()
        values, coordinates, residuals = basis.ritz()
        chosen = _ends(values, k, which)
        limit = tolerance * float(values.abs().max())
        good = basis.size >= wanted and float(residuals[chosen].max()) <= limit
        if good and basis.ended:
            now = values[chosen]
            wait = 0 if before is not None and float((now - before).abs().max()) <= limit else EXPLORED
            before = now
        elif good and wait:
            wait -= 1
        if basis.width == 0 or (good and not wait):
            return True
        if products.left < basis.width + wanted and basis.size >= wanted:
            return False
        if basis.full:
            kept = min(max(wanted + SPARE, basis.max_size // 2), basis.max_size - basis.width)
            keep = _ends(values, max(k, kept // 2) if which == "both" else kept, which)
            basis.restart(values[keep], coordinates[:, keep])


def _checked(
    basis: Basis, products: Products, k: int, which: str
) -> tuple[tuple[float, ...], Tensor, tuple[float, ...]]:
    """Rayleigh quotients of the wanted vectors, the vectors, and their residuals, from one more product each."""
    values, coordinates, _ = basis.ritz()
    vectors = basis.vectors(coordinates[:, _ends(values, k, which)])
    vectors /= torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    images = products(vectors)
    quotients = dots(vectors, images)
    images -= quotients[:, None].to(vectors) * vectors
    sizes = dots(images, images).sqrt()
    order = quotients.argsort(descending=True, stable=True)
    return tuple(quotients[order].tolist()), vectors[order], tuple(sizes[order].tolist())


def _status(products: int, converged: tuple[bool, ...], reached: bool, tolerance: float, scale: float) -> Status:
    if scale == 0:
        return status("zero", products=products)
    if all(converged):
        return status("converged.pairs", products=products, tolerance=tolerance)
    name = "rounding.pairs" if reached else "limit.pairs"
    return status(name, good=sum(converged), pairs=len(converged), products=products)


def _copies(found: Status, values: tuple[float, ...], block: int, same: float) -> Status:
    """Add where an eigenvalue was found as often as a block can hold, so that further copies may be missed."""
    count = max(sum(abs(value - other) <= same for other in values) for value in values)
    if same == 0 or not 1 < block <= count or block >= len(values):
        return found
    return status("*.copies", name=found.name, found=found, count=count, block=block, wanted=len(values))
