"""Extreme eigenvalues of the Hessian, with a residual for each that says how exact it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lbgap.checks import flag, positive, whole
from lbgap.measures.call import Options, call
from lbgap.measures.hessian.lanczos import Basis
from lbgap.measures.hessian.probes import LARGEST, Products, check_limits, dots
from lbgap.objective import Objective
from lbgap.result import plain
from lbgap.system.progress import products_bar

WHICH = ("largest", "smallest", "both")
BLOCK = 2  # vectors of a block, at most, unless the caller says otherwise
ROOM = 60  # vectors of a basis, at least four for each pair, if they fit
EXPLORED = 8  # blocks after a Krylov space has ended
SPARE = 4  # Ritz vectors that a restart keeps beside those that are wanted


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """Some eigenpairs of the Hessian at a minimizer.

    Attributes:
        values: Descending. Each is the Rayleigh quotient ``v' H v`` of its vector, taken from one more product.
        vectors: Unit vectors, one a row, ``(len(values), n)``, in the objective's dtype; their signs mean nothing.
        residuals: ``|H v - value v|`` of each, from the same product: an eigenvalue of H is at most this far.
        converged: Whether each residual is at most ``tolerance`` times the largest absolute eigenvalue.
        products: Hessian-vector products.
        evaluations: Passes over the data, as the objective counts them.
        status: Why the iteration stopped, and what to try for more.
        settings: Everything that the result depends on.
        seconds: Wall-clock time of the call.
    """

    values: tuple[float, ...]
    vectors: Tensor = field(repr=False)
    residuals: tuple[float, ...]
    converged: tuple[bool, ...]
    products: int
    evaluations: float
    status: str
    settings: dict[str, Any] = field(repr=False)
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything but the vectors, ready for JSON; NaN and infinity become None."""
        return {name: plain(getattr(self, name)) for name in self.__dataclass_fields__ if name != "vectors"}

    def __str__(self) -> str:
        """A few lines: each eigenvalue with its residual, and how they were found."""
        s = self.settings
        pairs = (f"{value:.6g} (residual {size:.1e})" for value, size in zip(self.values, self.residuals, strict=True))
        return "\n".join(
            (
                f"eigenvalues of the {s['kind']}: {', '.join(pairs)}",
                f"  {s['n']:,} parameters, {s['samples']:,} samples, batch-norm {s['batch_norm']}, "
                f"{self.products} products, {self.seconds:.2f} s, {s['precision']} on {s['device']}",
                f"  {self.status}",
                *(f"  note: {note}" for note in s["notes"]),
            )
        )


def eigenvalues(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    k: int = 5,
    which: str = "largest",
    kind: str = "hessian",
    tolerance: float = 1e-3,
    most: int = 1000,
    block: int | None = None,
    room: int | None = None,
    seed: int = 0,
    progress: bool = False,
    **options: Unpack[Options],
) -> Eigenvalues:
    """Find the largest or smallest eigenvalues of the Hessian at a minimizer, and their vectors.

    Block Lanczos with full reorthogonalisation and thick restarts (Wu and Simon 2000, SIAM J. Matrix Anal. Appl. 22).
    It stops when the residual of each wanted pair is at most ``tolerance`` times the largest absolute eigenvalue seen,
    or at the limit of products; then each pair is multiplied once more, so that the residuals returned are true ones.

    An eigenvalue that is repeated up to ``block`` times is found that often. Of one that is repeated more often copies
    may be missed, unless the Krylov space ends (as with few distinct eigenvalues), after which random vectors go on.

    Args:
        model: Any ``torch.nn.Module`` that can be differentiated twice, never changed; or an
            :class:`~lbgap.objective.Objective`.
        data: ``(inputs, targets)``, a map-style ``Dataset`` or a ``DataLoader`` that does not shuffle.
        k: How many at each end.
        which: ``"largest"``, ``"smallest"`` (the most negative) or ``"both"``.
        kind: ``"hessian"``, ``"ggn"`` (generalised Gauss-Newton) or ``"fisher"``, as in ``Objective.hvp``.
        tolerance: Of the residuals, relative to the largest absolute eigenvalue.
        most: Products at most, those of the final check included.
        block: Vectors that are multiplied at once; by default 2, or 1 for a single pair.
        room: Vectors of the basis, at least k (``"both"``: 2 k) and two blocks; a restart follows when it is full. By
            default 60, or four for each pair, or as many as fit into 2^28 numbers.
        seed: Of the random start.
        progress: Show a progress bar on standard error.
        options: ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device`` and ``backend``, as
            in :func:`lbgap.fast_sharpness`.

    Returns:
        The pairs. In float32 residuals end near 1e-6 of the largest eigenvalue, or of the error of the products.

    Raises:
        ValueError: An argument is out of its range, or the model cannot be differentiated twice.
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
    most, seed = check_limits(kind, most, seed)
    tolerance = positive("tolerance", tolerance, "1e-3")
    flag("progress", progress)
    if block is not None:
        block = whole("block", block, 1)
    if room is not None:
        room = whole("room", room, 1)
    with call("eigenvalues", model, data, options) as this:
        wanted, block, room = _sizes(this.objective.n, k, which, most, block, room)
        own = {
            "k": k,
            "which": which,
            "kind": kind,
            "tolerance": tolerance,
            "most": most,
            "block": block,
            "room": room,
            "seed": seed,
        }
        with products_bar("eigenvalues", most, progress) as told:
            products = Products(this, kind, most, seed, told)
            basis = Basis(products, room, block)
            reached = _iterate(basis, products, k, which, wanted, tolerance)
            values, vectors, residuals = _checked(basis, products, k, which)
        scale = float(basis.ritz()[0].abs().max())
        converged = tuple(size <= tolerance * scale for size in residuals)
        return Eigenvalues(
            values=values,
            vectors=vectors,
            residuals=residuals,
            converged=converged,
            products=products.count,
            evaluations=this.evaluations,
            status=_status(products, converged, reached, tolerance, scale) + _copies(values, block, tolerance * scale),
            settings=this.settings(own),
            seconds=this.seconds,
        )


def _sizes(n: int, k: int, which: str, most: int, block: int | None, room: int | None) -> tuple[int, int, int]:
    """How many pairs there will be, and the sizes of a block and of the basis.

    Raises:
        ValueError: They do not fit together.
    """
    if k > n:
        raise ValueError(f"k must be at most the number of parameters that may move, {n}, got {k}")
    wanted = min(2 * k, n) if which == "both" else k
    block = min(block or min(k, BLOCK), n)
    least = min(wanted + 2 * block, n)
    if room is None:
        room = max(least, min(max(ROOM, 4 * wanted), LARGEST // n))
    elif room < least:
        raise ValueError(f"room must be at least {least}, for {wanted} pairs and two blocks of {block}, got {room}")
    if most < 2 * wanted + block:
        raise ValueError(
            f"most must be at least {2 * wanted + block}, to find {wanted} pairs and check them, got {most}"
        )
    return wanted, block, min(room, n)


def _ends(values: Tensor, k: int, which: str) -> Tensor:
    """Indices of the wanted Ritz values, of values that ascend, the largest first."""
    count = len(values)
    order = torch.arange(count - 1, -1, -1)
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
            kept = min(max(wanted + SPARE, basis.room // 2), basis.room - basis.width)
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


def _copies(values: tuple[float, ...], block: int, same: float) -> str:
    """What to add where an eigenvalue was found as often as a block can hold, so that further copies may be missed."""
    most = max(sum(abs(value - other) <= same for other in values) for value in values)
    if same == 0 or not 1 < block <= most or block >= len(values):
        return ""
    return f"; {most} of the values are the same, of which a block of {block} may miss more: try block={len(values)}"


def _status(products: Products, converged: tuple[bool, ...], reached: bool, tolerance: float, scale: float) -> str:
    if scale == 0:
        return f"every one of {products.count} products was zero"
    if all(converged):
        return f"converged after {products.count} products: each residual is within {tolerance:g} of the largest"
    good = f"{sum(converged)} of {len(converged)} pairs converged after {products.count} products"
    if reached:
        return f"{good}; the others ended at the rounding of the products: try precision='float64'"
    return f"{good}, the limit: try a larger most"
