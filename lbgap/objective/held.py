"""What an objective holds, and what it says of itself."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from lbgap.checks import dense
from lbgap.objective.coordinates import Coordinates
from lbgap.objective.passes import Evaluator
from lbgap.objective.points.many import Many
from lbgap.objective.products.choose import Products
from lbgap.problem.batch import Batch
from lbgap.problem.hold import Ready
from lbgap.replica import replicate
from lbgap.system.device import first_line
from lbgap.unwrap import check_cache


class Held:
    """A loss as a function of coordinates: where it is, who evaluates it, and how many samples were evaluated.

    Attributes:
        coordinates: What it is a function of: all parameters that may move, some of them, or a random manifold.
        classes: Number of classes if the targets are class indices, one a sample or several, else None.
        parameters: Which parameters may move, as they were chosen.
        batch_norm: ``"eval"`` or ``"batch"``.
        precision: As it was asked for.
        backend: ``"native"`` or ``"torch"``: who runs the ops of a measure.
        judged: What was asked before any number was believed, and the answers; or that nothing was.
        evaluated: Samples evaluated so far, those of parts included.
    """

    coordinates: Coordinates
    classes: int | None
    parameters: str | tuple[str, ...]
    batch_norm: str
    precision: str
    backend: str
    judged: dict[str, str] | str
    evaluated: int
    _evaluator: Evaluator
    _products: Products
    _many: Many
    _losses_way: str
    _whole: Held | None  # what this was made of

    @property
    @torch.inference_mode(False)
    def theta(self) -> Tensor:
        """The minimizer: the model's parameters, flat, or its coordinates: a fresh ``(n,)`` tensor."""
        return self.coordinates.centre.clone()

    @property
    def n(self) -> int:
        """Number of parameters that may move, or of coordinates."""
        return self.coordinates.n

    @property
    def dtype(self) -> torch.dtype:
        """Of ``theta`` and of gradients."""
        return self.coordinates.centre.dtype

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self._evaluator.device

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self._evaluator.samples

    @property
    def batch_size(self) -> int:
        """Samples in a micro-batch (the last may hold fewer); halved where memory runs out."""
        return self._evaluator.batch_size

    @property
    def notes(self) -> list[str]:
        """Sentences on what was not done as asked, e.g. why mixed precision fell back."""
        return self._evaluator.notes

    @property
    def mixed(self) -> bool:
        """Whether :meth:`direction` runs in bfloat16, and so is less exact than :meth:`loss_and_gradient`."""
        return self._evaluator.bfloat16

    @property
    def evaluations(self) -> float:
        """Passes over the data so far; those of a part count by its share."""
        return self.evaluated / self.samples

    @property
    def coupled(self) -> bool:
        """Whether the loss of a sample depends on the batch that it is evaluated in."""
        return self._evaluator.coupled

    @property
    def coupling(self) -> str:
        """The keyword by which the samples of a batch see each other, for messages; empty where they do not."""
        return self._evaluator.coupling if self.coupled else ""

    @property
    def uncoupling(self) -> str:
        """What to do where samples must not see each other, for messages."""
        return "use batch_norm='eval'" if self._evaluator.flat.takes_statistics else "leave out coupled=True"

    @property
    def has_batch_norm(self) -> bool:
        """Whether statistics of batch-norm enter the output."""
        return self._evaluator.flat.has_batch_norm

    @property
    def by_class(self) -> bool:
        """Whether the loss is plain cross-entropy with one class index a sample, each of which counts alike."""
        targets = self._evaluator.data.pool.targets
        return isinstance(targets, Tensor) and self._evaluator.loss.by_class(targets)

    @property
    def counted(self) -> int:
        """How many targets an accuracy is a share of: those that are not ignored, and whose class has a weight."""
        return self._evaluator.counted

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that may move, in the order of ``theta``."""
        return self.coordinates.names

    @property
    def losses_way(self) -> str:
        """How the last call evaluated many points; ``"not used yet"`` before.

        ``"one after the other"``; ``"layer by layer"``, many points at once; or ``"tile by tile"``, for narrow
        networks, a few samples through all layers of each point.
        """
        return self._losses_way

    @property
    def hvp_way(self) -> str:
        """How ``hvp`` computes: ``"engine"``, or ``"general: "`` and the reason, or ``"not used yet"``."""
        return self._products.way

    @property
    def hvp_error(self) -> float | None:
        """Relative error that bfloat16 made in one product of the last ``hvp``, on a few samples; None without."""
        return self._products.error

    def settings(self) -> dict[str, Any]:
        """Everything that the values of this objective depend on, ready for JSON."""
        evaluator = self._evaluator
        flat = str(evaluator.flat.theta.dtype).removeprefix("torch.")
        return {
            **evaluator.loss.facts(),
            "parameters": self.parameters if isinstance(self.parameters, str) else list(self.parameters),
            "samples": self.samples,
            "batch_norm": self.batch_norm if self.has_batch_norm else "none in the model",
            "batch_size": self.batch_size,
            "coupled": self.coupled,
            "weight": evaluator.weight,
            "precision": self.precision,
            "directions": "bfloat16" if self.mixed else flat,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "backend": self.backend,
            **evaluator.flat.call.facts(),
            "data": evaluator.data.kept,
            "graph": evaluator.graphs.status,
            "judged": dict(self.judged) if isinstance(self.judged, dict) else self.judged,
            "notes": list(self.notes),
            **self.coordinates.settings(),
        }

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Name the parts of a vector ``(n,)`` that belong to each parameter: views in the parameters' shapes.

        Raises:
            ValueError: The vector has another shape, or this is the loss on a part of the space, whose vectors have no
                such parts.
            TypeError: It is no tensor.
        """
        if not self.coordinates.complete:
            raise ValueError("only vectors of the full space have a part for each parameter: pass the objective of it")
        taken = dense("vector", f"({self.n},)", vector, self.dtype, self.device)
        if taken.shape != (self.n,):
            raise ValueError(f"vector must be ({self.n},), got {tuple(taken.shape)}")
        vector = vector if isinstance(vector, Tensor) else taken  # itself, of which the parts are views
        return dict(zip(self.names, self._evaluator.flat.parts(vector), strict=True))

    def point(self, coordinates: Tensor) -> Tensor:
        """The parameters at some coordinates: ``(n,)`` or ``(k, n)`` to a fresh vector or rows of all parameters.

        Raises:
            ValueError: The coordinates have another shape, dtype or device.
            TypeError: They are no tensor.
        """
        if isinstance(coordinates, Tensor | np.ndarray) and coordinates.ndim == 2:
            return self.coordinates.full(self.coordinates.check_rows(coordinates, "coordinates", "k"))
        return self.coordinates.full(self.coordinates.check(coordinates, "coordinates"))

    def few(self) -> Batch:
        """A fresh copy of some 32 samples, for trying something out."""
        return self._evaluator.few()

    def ready(self) -> Ready:
        """The same samples, to build an objective of another model on them."""
        return Ready(self.few(), self._evaluator.flat.call)

    def digest(self) -> str:
        """SHA-256 of all samples as they are evaluated, in hexadecimal: tells these data from others."""
        return self._evaluator.data.digest()

    @torch.inference_mode(False)
    @torch.no_grad()
    def model(self) -> nn.Module:
        """Copy what is evaluated, at the minimizer: dropout off, parameters in the objective's precision.

        Raises:
            ValueError: This is the loss on a part of the space, or the model keeps something that cannot be copied.
        """
        values, replica = self.split(self.theta), self._evaluator.flat.module
        try:
            module, _ = replicate(replica)
        except Exception as error:
            raise ValueError(
                f"what the Objective evaluates cannot be copied ({first_line(error)}): pass model and data in its place"
            ) from error
        parameters = dict(module.named_parameters())
        for name, value in values.items():
            parameters[name].copy_(value)
        return module

    def options(self) -> dict[str, Any]:
        """The keywords with which an objective of another model or other data is the same function of these."""
        loss = self._evaluator.loss
        return {
            "loss": loss.given,
            "parameters": self.parameters,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "device": self.device,
            "backend": self.backend,
            "coupled": self.coupled,
            "judge": isinstance(self.judged, dict),
            "call": self._evaluator.flat.call.function,
        }

    def check_cuttable(self, what: str) -> None:
        """Refuse to take single samples out of batches that cannot be cut.

        Args:
            what: Needs single samples.

        Raises:
            ValueError: The batches cannot be cut.
        """
        if not self._evaluator.data.cuttable:
            raise ValueError(
                f"{what} needs batches that can be cut into samples, got graphs, or parts of other lengths"
            )

    # How it is done.

    def _beside(self, *, evaluator: Evaluator | None = None, coordinates: Coordinates | None = None) -> Self:
        """The same function, otherwise evaluated or in other coordinates; what it evaluates counts here too."""
        other = object.__new__(type(self))
        other.coordinates = coordinates or self.coordinates
        other._evaluator = evaluator or self._evaluator
        other.parameters, other.batch_norm, other.precision = self.parameters, self.batch_norm, self.precision
        other.backend, other.classes, other.judged = self.backend, self.classes, self.judged
        other._products, other._many = self._products, self._many
        other._whole, other._losses_way, other.evaluated = self, self._losses_way, 0
        return other

    @torch.inference_mode(False)
    def _begin(self, theta: Tensor, passes: int = 1) -> None:
        """Give the replica these parameters, and count the passes that follow."""
        check_cache(self._evaluator.flat.module)
        point = self.coordinates.check(theta, "theta")
        with torch.no_grad():
            self.coordinates.write(point, self._evaluator.flat.theta)
        self._count(self.samples * passes)

    def _count(self, samples: int) -> None:
        self.evaluated += samples
        if self._whole is not None:
            self._whole._count(samples)
