"""Whether the engine's products are those of the general way: tried on a few samples before its first use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lbgap.flat import FlatModule
from lbgap.layers import displaced
from lbgap.objective.products import general
from lbgap.objective.products.engine import Engine
from lbgap.objective.products.output import OutputCurvature
from lbgap.problem.batch import Batch
from lbgap.problem.loss import Loss

SAMPLES, PIECE = 8, 3
OTHER_SAMPLES = 4
VECTORS = 2
EXACT_PARAMETERS = 4_000_000  # up to which a copy in float64 and its vectors are no burden
TOLERANCE = 1e-9  # in float64
SMALL_PART = 1e-3  # of the whole product, by which the product in one parameter may be off as if it were so large
LOSS_ROUNDING = 4  # times what rounding makes of a loss's derivatives may be seen in the product
MAX_TOLERANCE = 0.1  # beyond which a comparison says nothing
INPUT_ROUNDING = 16  # roundings of the inputs that stand for those of all layers, where these decide about kinks
NOISE = 4  # times what that makes of the product


class Trial:
    """The engine against the general way: one comparison for each kind of product.

    Networks of usual size are compared in float64. A large one is compared as it is, in place and with one vector, to
    half of its digits: so that beside what the engine takes there are four vectors of its size at most.
    """

    def __init__(self, flat: FlatModule, engine: Engine, loss: Loss, backend: str, batch: Batch) -> None:
        """Begin; nothing is computed yet.

        Args:
            flat: The replica, which is where it was afterwards, to the bit.
            engine: Of the replica.
            loss: The loss.
            backend: ``"native"`` or ``"torch"``: that of the engine.
            batch: Samples to try it on, of which a few are taken.
        """
        few = batch.map(lambda part: torch.cat((part[:SAMPLES], part[-OTHER_SAMPLES:])))
        self._exact = len(flat.theta) <= EXACT_PARAMETERS
        if self._exact:
            flat = FlatModule(flat.module, dtype=torch.float64, call=flat.call)
            few = few.cast(torch.float64)
            engine = Engine(flat, few.inputs, loss, backend)
        self._flat, self._engine, self._loss, self._few = flat, engine, loss, few

    def agrees(self, kind: str) -> bool:
        """Compare in every parameter, here and with other samples at a point some way off.

        There code may take another path. The engine, which cuts batches further, meets the samples in pieces: these
        must not depend on each other.

        Args:
            kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``.

        Returns:
            Whether that says anything: not where the products are NaN.

        Raises:
            ArithmeticError: They disagree, and the message says in which parameter; or rounding leaves open whether.
        """
        vectors = self._vectors(VECTORS if self._exact else 1)
        here, elsewhere = self._few.rows(slice(SAMPLES)), self._few.rows(slice(-OTHER_SAMPLES, None))
        with displaced(self._flat.moving):  # the larger part of the memory first, where holes are fewest
            tolerance = self._tolerance(elsewhere, kind)
            if not self._compare(elsewhere, vectors[:1], kind, tolerance):
                return False
        known = self._compare(here, vectors, kind, self._tolerance(here, kind))
        if known and not tolerance <= MAX_TOLERANCE:
            raise ArithmeticError("the loss of a large network leaves too few digits to compare by")
        return known

    def _vectors(self, count: int) -> Tensor:
        """Gaussian vectors ``(count, n)``, the same each time on each device."""
        generator = torch.Generator().manual_seed(0)
        vectors = self._flat.theta.new_empty(count, len(self._flat.theta))
        for row in vectors:
            for part in self._flat.parts(row):
                part.copy_(torch.randn(part.shape, dtype=part.dtype, generator=generator, device="cpu"))
        return vectors

    def _compare(self, batch: Batch, vectors: Tensor, kind: str, tolerance: float) -> bool:
        found = torch.zeros_like(vectors)
        pieces = zip(*(part.clone().split(PIECE) for part in batch), strict=True)
        self._engine.add_products((Batch(*piece) for piece in pieces), vectors, found, kind)
        self._engine.release()  # its memory, before the other's
        sizes = self._norms(found)
        if not all(map(math.isfinite, sizes)):
            general.add_products(self._flat, self._loss, batch.clone(), vectors, found.zero_(), kind)
            if all(map(math.isfinite, self._norms(found))):
                raise ArithmeticError("NaN or infinity where differentiating twice gives none")
            return False
        vectors.neg_()
        general.add_products(self._flat, self._loss, batch.clone(), vectors, found, kind)  # a difference is left
        vectors.neg_()
        differences = self._norms(found)
        if not all(map(math.isfinite, differences)):
            return False
        whole = SMALL_PART * math.hypot(*sizes)
        close = [one <= tolerance * (size + whole) for one, size in zip(differences, sizes, strict=True)]
        if not all(close) and not self._exact:  # a unit close to its kink may be on either side of it
            noise = self._noise(batch, vectors, kind, found)
            if math.hypot(*noise) <= MAX_TOLERANCE * math.hypot(*sizes):
                allowed = [tolerance * (size + whole) + NOISE * one for size, one in zip(sizes, noise, strict=True)]
                close = [one <= largest for one, largest in zip(differences, allowed, strict=True)]
        if not all(close):
            name = self._flat.names[close.index(False)]
            raise ArithmeticError(f"another product in {name!r} than by differentiating twice")
        return True

    def _noise(self, batch: Batch, vectors: Tensor, kind: str, out: Tensor) -> list[float]:
        """What rounding of the inputs makes of the products in each parameter; ``out`` is overwritten."""
        inputs = batch.inputs.clone()
        if inputs.is_floating_point():
            generator = torch.Generator().manual_seed(2)
            share = torch.rand(inputs.shape, dtype=inputs.dtype, generator=generator, device="cpu").to(inputs)
            inputs.mul_(1 + INPUT_ROUNDING * torch.finfo(inputs.dtype).eps * (2 * share - 1))
        general.add_products(self._flat, self._loss, batch.clone(), vectors, out.zero_(), kind)
        rounded = Batch(inputs, batch.targets.clone())
        vectors.neg_()
        general.add_products(self._flat, self._loss, rounded, vectors, out, kind)
        vectors.neg_()
        return self._norms(out)

    def _norms(self, vectors: Tensor) -> list[float]:
        """Of the part of the vectors in each parameter."""
        sizes = [parameter.numel() for parameter in self._flat.moving]
        norms: list[float] = torch.stack([part.norm() for part in vectors.split(sizes, 1)]).tolist()
        return norms

    def _tolerance(self, batch: Batch, kind: str) -> float:
        """How far products may differ by rounding alone: by half of the digits of their type, or more by the loss.

        Where samples are fitted well, its derivatives in the outputs are small differences of numbers near one.
        """
        if self._exact:
            return TOLERANCE
        with torch.no_grad():
            output = self._flat.run(batch.inputs.clone())
        generator = torch.Generator().manual_seed(1)
        tangents = torch.randn(output.shape, dtype=output.dtype, generator=generator, device="cpu")
        tangents = tangents.unsqueeze(1).to(output)
        rounded = OutputCurvature(self._loss, output, batch.targets.clone(), kind)
        exact = OutputCurvature(self._loss, output.double(), batch.cast(torch.float64).targets.clone(), kind)
        pairs = (rounded.gradient, exact.gradient), (rounded(tangents.clone()), exact(tangents.double()))
        shares = [(one - other).norm() / other.norm() for one, other in pairs if one.any() or other.any()]
        lost = [float(share.nan_to_num(1.0, 1.0)) for share in shares]  # all of it, where nothing is left in float64
        close: float = torch.finfo(output.dtype).eps ** 0.5
        return close + LOSS_ROUNDING * max(lost, default=0.0)
