"""Choose how products with second derivatives are computed, and say how."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lbgap.flat import FlatModule
from lbgap.layers import UnknownError
from lbgap.objective.products import general
from lbgap.objective.products.engine import Engine
from lbgap.objective.products.output import check_kind
from lbgap.objective.products.trial import EXACT_PARAMETERS, Trial
from lbgap.problem.batch import Batch
from lbgap.problem.loss import Loss
from lbgap.system.device import first_line

Batches = Callable[[], Iterable[Batch]]
CHUNK_BYTES = 2**28  # of the engine's copies of the vectors and of their products, which it keeps
COPIES = 4
SMALLEST_CHUNK, LARGEST_CHUNK = 8, 64
MEASURED_SAMPLES = 64


class Products:
    """Products for one objective: by the engine where it is known to be right, else the general way.

    Attributes:
        way: ``"engine"``, or ``"general: "`` and the reason; before the first product ``"not used yet"``.
        error: With bfloat16 the relative error of one product, on a few samples of the last call; else None.
        judged: Kind to whether second derivatives are those of the gradient; filled by who asks.
    """

    def __init__(
        self, flat: FlatModule, loss: Loss, *, coupled: bool, bfloat16: bool, backend: str, notes: list[str]
    ) -> None:
        """Begin; nothing is computed yet.

        Args:
            flat: The replica.
            loss: The loss.
            coupled: Whether the loss of a sample depends on its batch.
            bfloat16: Whether tangents may be rounded to bfloat16.
            backend: ``"native"`` or ``"torch"``: who runs the engine's pointwise parts.
            notes: Takes a sentence on what bfloat16 did to the products.
        """
        self._flat, self._loss, self._notes, self._bfloat16 = flat, loss, notes, bfloat16
        self._backend = backend
        self._engine: Engine | None = None
        self._agreed: set[str] = set()  # kinds
        self.way = "general: the samples of a batch see each other" if coupled else "not used yet"
        self.error: float | None = None
        self.judged: dict[str, str] = {}

    def multiply(self, batches: Batches, vectors: Tensor, kind: str) -> Tensor:
        """Multiply vectors by the matrix of the summed loss.

        Args:
            batches: Gives inputs and targets of every micro-batch.
            vectors: ``(k, n)``.
            kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``.

        Returns:
            ``(k, n)``.

        Raises:
            ValueError: Model or loss cannot be differentiated twice.
        """
        try:
            return self._multiply(batches, vectors, kind)
        except torch.OutOfMemoryError:
            self._engine = None  # with all the memory that it keeps
            raise

    def _multiply(self, batches: Batches, vectors: Tensor, kind: str) -> Tensor:
        engine = self._chosen(batches, kind)
        out = torch.zeros_like(vectors, memory_format=torch.contiguous_format)
        if engine is not None:
            try:
                self._by_engine(engine, batches, vectors, out, kind)
            except UnknownError as error:  # of a batch that is not like the few samples that it was tried on
                self._engine, self.way, self.error = None, f"general: {error}", None
                engine = None
        if engine is None:
            out.zero_()
            self._note(f"Hessian products ran in float32 ({self.way})")
            for batch in batches():
                general.add_products(self._flat, self._loss, batch, vectors, out, kind)
        return out

    def _by_engine(self, engine: Engine, batches: Batches, vectors: Tensor, out: Tensor, kind: str) -> None:
        """Add the products by the engine, some vectors at a time.

        Raises:
            UnknownError: Something in a batch has no rule.
        """
        if self._bfloat16:
            self.error = _rounding(engine, self._some(batches), vectors, kind)
        size = min(LARGEST_CHUNK, max(SMALLEST_CHUNK, CHUNK_BYTES // (COPIES * self._flat.theta.nbytes)))
        for some, products in zip(vectors.split(size), out.split(size), strict=True):
            engine.add_products(batches(), some, products, kind, torch.bfloat16 if self._bfloat16 else None)
        if len(self._flat.theta) > EXACT_PARAMETERS:
            engine.release()  # four times the vectors: of a large network much to keep, and little to find again
        if self._bfloat16:
            self._note(f"Hessian products ran in bfloat16, at first with a relative error of {self.error:.1g}")

    def multiply_blocks(self, batches: Batches, vectors: Tensor, kind: str) -> Tensor:
        """Do the same with the blocks of the matrix on its diagonal, one a layer, and zero elsewhere."""
        out = torch.zeros_like(vectors, memory_format=torch.contiguous_format)
        for block in layers_of(self._flat):
            out += self.multiply(batches, vectors * block, kind) * block
        return out

    def _note(self, note: str) -> None:
        if self._bfloat16 and not any(one.startswith("Hessian products") for one in self._notes):
            self._notes.append(note)

    def _chosen(self, batches: Batches, kind: str) -> Engine | None:
        """The engine, tried on a few samples before its first use for each kind; None for the general way."""
        if self.way.startswith("general"):
            return None
        try:
            if self._engine is None or kind not in self._agreed:
                batch = self._some(batches)
                self._engine = self._engine or Engine(self._flat, batch.inputs, self._loss, self._backend)
                if kind not in self._agreed:
                    trial = Trial(self._flat, self._engine, self._loss, self._backend, batch)
                    if not trial.agrees(kind):
                        return None
                    self._agreed.add(kind)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # in code of the user's, or in ours: the general way decides what is an error
            self._engine, self.way = None, f"general: {first_line(error)}"
            return None
        self.way = "engine"
        return self._engine

    def _some(self, batches: Batches) -> Batch:
        """Samples to try the engine on, of which each counts: ignored ones would show nothing."""
        batch = next(one for one in batches() if len(self._loss.counting(one.targets, 1)))
        if self._loss.even or not (self._loss.separable or self._loss.weighs) or not batch.cuttable:
            return batch
        return batch.rows(self._loss.counting(batch.targets))


def _rounding(engine: Engine, batch: Batch, vectors: Tensor, kind: str) -> float:
    """Relative error that bfloat16 makes in one product over a few samples."""
    batch = batch.rows(slice(MEASURED_SAMPLES))
    vector = vectors[torch.linalg.vector_norm(vectors, dim=1).argmax()][None]
    exact, rounded = torch.zeros_like(vector), torch.zeros_like(vector)
    engine.add_products([batch], vector, exact, kind)
    engine.add_products([batch], vector, rounded, kind, torch.bfloat16)
    return float((rounded - exact).norm() / exact.norm().clamp_min(torch.finfo(exact.dtype).tiny))


def layers_of(flat: FlatModule) -> list[Tensor]:
    """For each layer with parameters of its own a mask ``(n,)``, true where they are."""
    masks: dict[str, Tensor] = {}
    start = 0
    for name, parameter in zip(flat.names, flat.moving, strict=True):
        mask = masks.setdefault(name.rpartition(".")[0], torch.zeros_like(flat.theta, dtype=torch.bool))
        mask[start : start + parameter.numel()] = True
        start += parameter.numel()
    return list(masks.values())


def check(vectors: Tensor, like: Tensor, kind: str) -> None:
    """Refuse what cannot be multiplied.

    Args:
        vectors: Should be ``(k, n)``, finite.
        like: ``(n,)``, of the dtype and on the device that they should have.
        kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``.

    Raises:
        ValueError: The shape, dtype, device or a value of the vectors, or the kind.
        TypeError: The vectors are no tensor.
    """
    check_kind(kind)
    if not isinstance(vectors, Tensor):
        raise TypeError(f"vectors must be a tensor (k, {len(like)}), got {type(vectors).__name__}: use torch.stack")
    if vectors.dim() != 2 or vectors.shape[1] != len(like):
        raise ValueError(
            f"vectors must be (k, {len(like)}), one column for each parameter that may move, got "
            f"{tuple(vectors.shape)}: pass one row for each vector"
        )
    if vectors.dtype != like.dtype or vectors.device != like.device:
        raise ValueError(
            f"vectors must be {like.dtype} on {like.device}, got {vectors.dtype} on {vectors.device}: convert them "
            "with .to(theta)"
        )
    if not vectors.sum().isfinite() and not (finite := vectors.isfinite().all(1)).all():  # the sum is one quick pass
        raise ValueError(f"vectors must be finite, but row {int((~finite).nonzero()[0])} holds NaN or infinity")


def check_coupled(coupled: bool, kind: str) -> None:
    """Refuse what needs the gradient of each sample where the samples of a batch see each other.

    The other kinds are those of a mean over fixed batches: the mean of the batches' own matrices.

    Args:
        coupled: Whether they do.
        kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``.

    Raises:
        ValueError: It is ``"fisher"``, and they do.
    """
    if coupled and kind == "fisher":
        raise ValueError(
            "kind='fisher' needs the gradient of each sample, which with coupled=True or batch_norm='batch' depends on "
            "the others of its batch: use kind='ggn' or 'hessian', or batch_norm='eval'"
        )


def check_finite(products: Tensor) -> None:
    """Refuse products ``(k, n)`` that hold NaN or infinity.

    Raises:
        FloatingPointError: One does; the message says which.
    """
    if not products.sum().isfinite() and not (finite := products.isfinite().all(1)).all():
        bad = int((~finite).nonzero()[0])
        raise FloatingPointError(f"the product with vector {bad} is NaN or infinite: check the model's weights")
