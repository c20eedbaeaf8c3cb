"""The seam that every measure shares: the loss of a model as a function of its flat parameters."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lbgap._extension import resolve_backend
from lbgap.checks import whole
from lbgap.flat import FlatModule, Selection, name_patterns
from lbgap.losses import Loss, LossFunction, resolve_loss
from lbgap.objective import tangents
from lbgap.objective.cuda_graphs import Graphs
from lbgap.objective.points import Combinations, Plan, Separate, Source, UnknownError, make_plan
from lbgap.objective.products import choose as _products
from lbgap.objective.products.output import check_kind
from lbgap.operators import LinearOperator
from lbgap.samples import Split, as_tensors, resident, streamed
from lbgap.system import device as hardware
from lbgap.system.device import first_line
from lbgap.system.files import digest

PRECISIONS = ("float32", "float64", "mixed")
BATCH_NORM_BATCH = 5000  # what the paper's authors evaluate with
SMALLEST_BATCH = 32
PROBE_SAMPLES = 32
ONE_BY_ONE, LAYERS, TILES = "one after the other", "layer by layer", "tile by tile"  # ways to evaluate many points
HALVED, STREAMED = "out of memory: ", "the data stay on the host: "  # how notes begin

Result = TypeVar("Result")


class Objective:
    """The mean loss of a model over a data set, as a function of the parameters that may move.

    The model is never changed: a private replica is evaluated, dropout off, buffers constant. The loss is a
    mean over all samples, weighted by sample, accumulated in float64 over micro-batches of a fixed order: the
    same call gives the same bits.

    On a GPU the data are resident where they fit, and streamed from the host otherwise; a gradient that is evaluated
    again is one CUDA graph where the model allows it; and where memory runs out the micro-batch is halved and the pass
    repeated. :meth:`settings` says what happened.

    Attributes:
        n: Number of parameters that may move.
        samples: Number of samples.
        classes: Number of classes if the targets are class indices and the output ``(batch, classes)``, else
            None.
        batch_size: Samples in a micro-batch (the last may hold fewer); halved where memory runs out.
        evaluated: Samples evaluated so far, those of subsets included.
        backend: ``"native"`` or ``"torch"``: who runs the ops of a measure.
        device: Where everything is.
        dtype: Of ``theta`` and of gradients.
        notes: Sentences on what was not done as asked, e.g. why mixed precision fell back.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        loss: str | LossFunction = "cross_entropy",
        parameters: Selection = "all",
        batch_norm: str = "eval",
        precision: str = "float32",
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        backend: str = "auto",
    ) -> None:
        """Build the replica, load the data and check that they fit.

        Args:
            model: Any module whose parameters are real floating-point numbers.
            data: ``(inputs, targets)``, a map-style ``Dataset`` or a ``DataLoader`` that does not shuffle; held in
                memory.
            loss: ``"cross_entropy"``, ``"mse"`` or a callable ``loss(output, target)``, the mean over a batch.
            parameters: Which parameters may move; see :func:`lbgap.flat.select_parameters`.
            batch_norm: ``"eval"``: running statistics; ``"batch"``: statistics of each evaluation batch, as the
                paper's scripts do, so that the batch size is part of the result.
            precision: ``"float32"``, ``"float64"``, or ``"mixed"``: gradients that only choose a direction run in
                bfloat16, every value that is reported in float32.
            batch_size: Samples in a micro-batch. Chosen by itself otherwise: with ``batch_norm="eval"`` from the
                size of the activations, with ``"batch"`` the loader's or 5,000 as the paper's authors use.
            device: Where to compute; the model's device by default.
            backend: ``"auto"``, ``"native"`` or ``"torch"``.

        Raises:
            ValueError: An argument is out of its range, the data are empty or do not fit the model, the model is
                random in evaluation mode, or model and data are on different devices.
            TypeError: An argument is of the wrong kind.
            MemoryError: Not even one sample fits in the device's memory, or with ``batch_norm="batch"`` a batch does
                not; so do all evaluations.
        """
        self._restricted = False  # to a part of the space, by a class derived from this one
        self._loss = resolve_loss(loss)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
        if batch_size is not None:
            batch_size = whole("batch_size", batch_size, 1)
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self.parameters = parameters if isinstance(parameters, str) else name_patterns(parameters)
        self.batch_norm = batch_norm
        self.precision = precision
        self.notes: list[str] = []
        self.evaluated = 0
        self._whole: Objective | None = None
        self._losses_way = "not used yet"
        self._plans: dict[bool, Plan | str] = {}  # for points as they are and for combinations; or why there is none
        place = None if device is None else hardware.usable(device, torch.device("cpu"))
        with torch.inference_mode(False), torch.no_grad():
            self._flat = FlatModule(
                model,
                parameters=self.parameters,
                batch_norm=batch_norm,
                dtype=self.dtype,
                device=place,
            )
            self.device = self._flat.theta.device
            self.backend = resolve_backend(backend, self.device)
            self._bfloat16 = precision == "mixed" and self._has_bfloat16()
            self._centre = self._flat.theta.clone()
            # All that costs nothing has been judged: now the data, which may take long to read.
            (inputs, targets), loader_batch = as_tensors(data)
            if device is None and isinstance(data, tuple | list) and inputs.device != self.device:
                raise ValueError(
                    f"the model is on {self.device} and the data on {inputs.device}: move one of them, or pass device="
                )
            self._load(inputs, targets)
        self._products = _products.Products(
            self._flat,
            self._loss,
            by_batch=self.by_batch,
            bfloat16=self._bfloat16,
            backend=self.backend,
            notes=self.notes,
        )
        self.n = self._centre.numel()
        self.samples = len(self._inputs)
        self._few = self.batch_size = PROBE_SAMPLES
        if self.by_batch:
            self.batch_size = self._statistics_batch(batch_size or loader_batch or BATCH_NORM_BATCH)
        output, bytes_each = self._within_memory(self._probe)
        if not self.by_batch:
            self.batch_size = self._micro_batch(batch_size, bytes_each)
        indices = output.dim() == 2 and output.shape[1] > 1 and self._targets.dtype == torch.int64
        self.classes = output.shape[1] if indices and self._targets.dim() == 1 else None

    # What a measure calls.

    @property
    @torch.inference_mode(False)
    def theta(self) -> Tensor:
        """The model's parameters, flat: a fresh ``(n,)`` tensor."""
        return self._centre.clone()

    @property
    def mixed(self) -> bool:
        """Whether :meth:`direction` runs in bfloat16, and so is less exact than :meth:`loss_and_gradient`."""
        return self._bfloat16

    @property
    def evaluations(self) -> float:
        """Passes over the data so far; those of a subset count by its share."""
        return self.evaluated / self.samples

    @property
    def by_batch(self) -> bool:
        """Whether the loss of a sample depends on the batch that it is evaluated in."""
        return self.batch_norm == "batch" and self._flat.has_batch_norm

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that may move, in the order of ``theta``."""
        return self._flat.names

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Name the parts of a vector ``(n,)`` that belong to each parameter: views in the parameters' shapes.

        Raises:
            ValueError: This is the loss on a part of the space, whose vectors have no such parts.
        """
        if self._restricted:
            raise ValueError("only vectors of the full space have a part for each parameter: pass the objective of it")
        return dict(zip(self.names, self._flat.parts(vector), strict=True))

    def loss(self, theta: Tensor) -> Tensor:
        """Evaluate the loss at one point.

        Args:
            theta: ``(n,)``.

        Returns:
            The mean over all samples, 0-d float64.

        Raises:
            ValueError: ``theta`` has the wrong shape, dtype or device.
            FloatingPointError: The loss is NaN or infinite; the message names the first batch concerned.
        """
        shares, _ = self._pass(theta, self._loss)
        return self._finite(shares)

    def loss_and_gradient(self, theta: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Evaluate the loss and its gradient at one point.

        Args:
            theta: ``(n,)``.
            out: Where the gradient goes, ``(n,)``; a fresh tensor by default.

        Returns:
            The mean over all samples, 0-d float64, and its gradient, ``(n,)``.

        Raises:
            ValueError: ``theta`` has the wrong shape, dtype or device.
            FloatingPointError: The loss is NaN or infinite (the message names the first batch concerned), or its
                gradient is (the message names the parameter).
        """
        return self._evaluate(theta, out, self._loss, bfloat16=False)

    def direction(self, theta: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`loss_and_gradient`, but only good enough to choose where to go next.

        With ``precision="mixed"`` it runs in bfloat16: its value must not be reported.
        """
        return self._evaluate(theta, out, self._loss, bfloat16=self._bfloat16)

    def enqueue(self, theta: Tensor, out: Tensor, *, rough: bool = False) -> Tensor:
        """Let the device evaluate the loss and its gradient, without waiting for it.

        Args:
            theta: ``(n,)``.
            out: Where the gradient goes, ``(n,)``.
            rough: As :meth:`direction`, else as :meth:`loss_and_gradient`.

        Returns:
            ``(2,)`` float64 on the device: the value, and 1 if value and gradient are finite, else 0. Once the host has
            read them they go to :meth:`settle`, before anything else is evaluated.

        Raises:
            ValueError: ``theta`` has the wrong shape, dtype or device.
            MemoryError: Not even one sample fits in the device's memory.
        """
        return self._gradient(theta, out, self._loss, bfloat16=rough and self._bfloat16)[0]

    def settle(self, value: float, finite: float) -> None:
        """Refuse what the last gradient gave if it is not finite.

        Args:
            value: As :meth:`enqueue` returned it.
            finite: The same.

        Raises:
            FloatingPointError: As :meth:`loss_and_gradient`.
        """
        if finite:
            return
        self._finite(self._shares)
        parts = zip(self._flat.names, (parameter.grad for parameter in self._flat.moving), strict=True)
        bad = next(name for name, part in parts if part is None or not part.isfinite().all())
        raise FloatingPointError(
            f"the loss is {value}, but its gradient with respect to {bad!r} is NaN or infinite: look for a "
            "square root or a logarithm at zero in the model or the loss"
        )

    def log_probability_direction(self, theta: Tensor, label: int, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean log-probability of one class over all samples, and its gradient, as :meth:`direction`.

        Args:
            theta: ``(n,)``.
            label: Index of the class.
            out: Where the gradient goes, ``(n,)``.

        Raises:
            ValueError: The model is not a classifier, or has no such class.
        """
        if self.classes is None or not 0 <= label < self.classes:
            raise ValueError(f"label must be a class index below {self.classes or 0}, got {label}")

        def log_probability(output: Tensor, _: Tensor) -> Tensor:
            return output.log_softmax(1)[:, label].mean()

        wanted = Loss("log_probability", classification=True, function=log_probability)
        return self._evaluate(theta, out, wanted, bfloat16=self._bfloat16)

    def losses(self, points: Tensor) -> Tensor:
        """Evaluate the loss at several points, in one pass over the data where that is faster than one for each.

        Args:
            points: ``(k, n)``.

        Returns:
            ``(k,)`` float64, each as :meth:`loss` gives it but for rounding; NaN and infinite ones as they are.

        Raises:
            ValueError: ``points`` has the wrong shape, dtype or device.
        """
        self._check_rows(points, "points", "k")
        return self._many(Separate(points))[0]

    def combination_losses(
        self,
        coefficients: Tensor,
        ends: Tensor,
        *,
        buffers: Mapping[str, Tensor] | None = None,
        accuracy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Evaluate the loss at combinations of a few points, ``coefficients @ ends``, which are never formed.

        A network of usual layers is evaluated layer by layer for all combinations, with j products in its first layer
        instead of k, where by a count of the operations that is faster than one point after the other. A row of the
        coefficients that is a unit vector gives the end's :meth:`loss` to the bit; the others agree with that of the
        combined point but for rounding. With ``precision="mixed"`` products run in bfloat16, but for the first and the
        last layer's, and all rows agree only to its rounding.

        Args:
            coefficients: ``(k, j)``, finite.
            ends: ``(j, n)``.
            buffers: Name to ``(j, *shape)``: buffers that are combined too, in float64, variances no lower than zero.
            accuracy: Whether to return the accuracies too.

        Returns:
            The losses, ``(k,)`` float64, NaN and infinite ones as they are; the accuracies in percent, ``(k,)``
            float64, or None.

        Raises:
            ValueError: A tensor has the wrong shape, dtype or device, a coefficient is not finite, the model has no
                such buffer, or it is no classifier.
        """
        self._check_rows(ends, "ends", "j")
        j = len(ends)
        if coefficients.dim() != 2 or coefficients.shape[1] != j or not j:
            raise ValueError(f"coefficients must be (k, {j}), one an end, got {tuple(coefficients.shape)}")
        if not coefficients.isfinite().all():
            raise ValueError("coefficients must be finite, got NaN or infinity")
        if accuracy and self.classes is None:
            raise ValueError("accuracy needs class indices as targets and an output (batch, classes)")
        own = dict(self._flat.module.named_buffers())
        for name, value in (buffers or {}).items():
            if name not in own or value.shape != (j, *own[name].shape):
                raise ValueError(f"the model has no buffer {name!r} of shape {tuple(value.shape[1:])} for {j} ends")
        placed = {name: value.to(self.device, torch.float64) for name, value in (buffers or {}).items()}
        source = Combinations(
            coefficients.to(self.device, torch.float64), ends, placed, native=self.backend == "native"
        )
        return self._many(source, accuracy, bfloat16=self._bfloat16)

    @torch.inference_mode(False)
    def statistics(self, theta: Tensor) -> dict[str, Tensor]:
        """Estimate the statistics of batch-norm on these data at one point; see :meth:`set_buffers`.

        Args:
            theta: ``(n,)``.

        Returns:
            Name of each buffer to its value: the mean over even batches of at most 5,000 samples. An evaluation.

        Raises:
            ValueError: ``theta`` has the wrong shape, dtype or device, or there is one sample only.
        """
        if self.samples == 1:
            raise ValueError("one sample has no statistics: pass more data")
        with torch.no_grad():
            self._set(theta)
        self._count(self.samples)
        with self._exact(), self._context(False):
            parts = self._inputs.tensor_split(math.ceil(self.samples / BATCH_NORM_BATCH))
            return self._flat.statistics(part.to(self.device, copy=self._overwrites) for part in parts)

    def few(self) -> Split:
        """A fresh copy of some 32 samples, for trying something out."""
        return self._first_few()

    def digest(self) -> str:
        """SHA-256 of all samples as they are evaluated, in hexadecimal: tells these data from others."""
        return digest((self._inputs, self._targets))

    @property
    def has_batch_norm(self) -> bool:
        """Whether statistics of batch-norm enter the output."""
        return self._flat.has_batch_norm

    def _check_rows(self, rows: Tensor, name: str, count: str) -> None:
        if rows.dim() != 2 or rows.shape[1] != self.n:
            raise ValueError(f"{name} must be ({count}, {self.n}), got shape {tuple(rows.shape)}")
        if len(rows):
            self._check(rows[0], name)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _many(self, source: Source, accuracy: bool = False, bfloat16: bool = False) -> tuple[Tensor, Tensor | None]:
        """Evaluate many points, by a plan of the network where there is one that pays."""
        found = torch.zeros(2, source.k, dtype=torch.float64, device=self.device)
        plan = self._plan(source, bfloat16)
        if bfloat16 and plan is None and source.k:
            why = self._plans.get(True)
            self._note(
                "combinations ran in float32: ",
                why if isinstance(why, str) else "buffers besides batch-norm's, or a restricted space",
            )
        bfloat16 = bfloat16 and plan is not None
        narrow = plan is not None and self._narrow(plan, bfloat16)
        self._losses_way = ONE_BY_ONE if plan is None else TILES if narrow else LAYERS
        alone = [end and not bfloat16 for end in source.is_end()] if plan else [True] * source.k
        rest = torch.tensor([i for i, one in enumerate(alone) if not one], dtype=torch.int64, device=self.device)
        if plan is not None and len(rest):
            low = torch.bfloat16 if bfloat16 else self._flat.theta.dtype

            def sweep() -> tuple[Tensor, Tensor]:
                chunk = plan.chunk(self.batch_size, source, hardware.batch_budget(self.device))
                with torch.no_grad(), self._exact(), self._context(False):
                    batches = self._micro_batches()
                    return plan.sweep(
                        source[rest],
                        batches,
                        self._loss,
                        chunk=chunk,
                        low=low,
                        accuracy=accuracy,
                        native=self.backend == "native",
                        narrow=narrow,
                    )

            self._count(self.samples * len(rest))
            totals, correct = self._within_memory(sweep)
            found[0, rest], found[1, rest] = totals / self.samples, correct
        before = {name: self._flat.module.get_buffer(name).clone() for name in source.buffers}
        try:
            for index in (i for i, one in enumerate(alone) if one):
                self.set_buffers(source.buffers_at(index))
                shares, correct = self._pass(source.point(index), self._loss, accuracy=accuracy)
                found[0, index], found[1, index] = shares.sum(), correct.sum()
        finally:
            self.set_buffers(before)
        return found[0], 100.0 * found[1] / self.samples if accuracy else None

    def _plan(self, source: Source, bfloat16: bool) -> Plan | None:
        """The plan for these points; None where one pass a point is as fast, or the only way."""
        if self._restricted or source.k < 2 - bfloat16:
            return None
        spans = source.j > 0
        if spans not in self._plans:
            try:
                with self._exact(), self._context(False):
                    self._plans[spans] = self._within_memory(
                        lambda: make_plan(self._flat, self._first_few().inputs, spans)
                    )
            except UnknownError as error:
                self._plans[spans] = str(error)
        plan = self._plans[spans]
        if isinstance(plan, str) or not source.buffers <= plan.statistics():
            return None
        chunk = plan.chunk(self.batch_size, source, hardware.batch_budget(self.device))
        batches = math.ceil(self.samples / self.batch_size)
        narrow = self._narrow(plan, bfloat16)
        return plan if bfloat16 or plan.better(source, self.samples, batches, chunk, narrow) else None

    def _narrow(self, plan: Plan, bfloat16: bool) -> bool:
        """Whether the op for narrow chains evaluates a plan."""
        able = self.backend == "native" and not bfloat16 and self._loss.by_class(self._targets)
        return able and plan.chain is not None

    def loss_and_accuracy(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate loss and accuracy at one point.

        Args:
            theta: ``(n,)``.

        Returns:
            The mean loss, 0-d float64 (NaN or infinite values are returned as they are), and the share of samples
            whose largest output is their class, in percent, 0-d float64.

        Raises:
            ValueError: ``theta`` does not fit, or the model is not a classifier.
        """
        if self.classes is None:
            raise ValueError("accuracy needs class indices as targets and an output (batch, classes)")
        shares, correct = self._pass(theta, self._loss, accuracy=True)
        return shares.sum(), 100.0 * correct.sum() / self.samples

    def output_tangents(self, theta: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of all samples, and their derivatives along one direction: ``J d`` without forming J.

        By forward-mode differentiation, which costs about two evaluations of the loss and no memory for a backward
        pass; where a layer has no forward rule, or a wrong one, by differentiating a backward pass.

        Args:
            theta: ``(n,)``.
            direction: ``(n,)``, d.

        Returns:
            The outputs, ``(samples, ...)``, and ``d/dt output(theta + t d)`` at t = 0, of the same shape.

        Raises:
            ValueError: ``theta`` or ``direction`` has the wrong shape, dtype or device, or the model can be
                differentiated in neither way.
        """
        pairs = self._along(theta, direction, lambda output, tangent, _: torch.stack((output, tangent), 1))
        return pairs[:, 0], pairs[:, 1]

    def directional_derivatives(self, theta: Tensor, direction: Tensor) -> Tensor:
        """Derivative of every sample's loss along one direction: ``<d, grad l_i(theta)>``, no gradient formed.

        One pass of :meth:`output_tangents`, then ``<dl_i/d output_i, J_i d>``. A callable loss takes part as it is,
        provided that it is a mean of one term a sample, which is tried out on a few.

        Args:
            theta: ``(n,)``.
            direction: ``(n,)``, d.

        Returns:
            ``(samples,)`` float64; their mean is ``<d, gradient>``.

        Raises:
            ValueError: As :meth:`output_tangents`; or the term of a sample in a callable loss depends on the others
                of its batch.
            FloatingPointError: A derivative is NaN or infinite.
        """

        def derivative(output: Tensor, tangent: Tensor, targets: Tensor) -> Tensor:
            tangents.check_terms(self._loss, output, targets)
            slope = tangents.output_gradient(self._loss, output, targets)
            return (slope.double() * tangent.double()).flatten(1).sum(1)

        each = self._along(theta, direction, derivative)
        if not each.isfinite().all():
            bad = int((~each.isfinite()).nonzero()[0])
            raise FloatingPointError(
                f"the derivative of the loss of sample {bad} is {float(each[bad])}: check its input and target, and "
                "the model's weights"
            )
        return each

    @torch.inference_mode(False)
    def curvatures(self, theta: Tensor, vectors: Tensor) -> Tensor:
        """Second derivatives of the loss along vectors: ``v' H v`` by differentiating the gradient once more.

        Only the parameters in which a vector is not zero take part, so that vectors within one layer are cheap. The
        gradient counts as one pass over the data, and so does each vector.

        Args:
            theta: ``(n,)``.
            vectors: ``(k, n)``.

        Returns:
            ``(k,)`` float64.

        Raises:
            ValueError: ``theta`` or ``vectors`` has the wrong shape, dtype or device, or the model cannot be
                differentiated twice.
            FloatingPointError: A second derivative is NaN or infinite.
        """
        if vectors.dim() != 2:
            raise ValueError(f"vectors must be (k, {self.n}), got shape {tuple(vectors.shape)}")
        for vector in vectors:
            self._check_direction(vector, "vectors")
        with torch.no_grad():
            self._set(theta)
        self._count(self.samples * (1 + len(vectors)))
        parts = [self._flat.parts(vector) for vector in vectors]

        def sweep() -> Tensor:
            total = torch.zeros(len(vectors), dtype=torch.float64, device=self.device)
            with self._exact(), self._context(False), tangents.differentiable():
                for inputs, targets in self._micro_batches():
                    mean = self._loss.total(self._flat.module(inputs), targets)[0] / self.samples
                    total += tangents.curvatures(mean, self._flat.moving, parts)
            return total

        total = self._within_memory(sweep)
        if not total.isfinite().all():
            raise FloatingPointError("a second derivative of the loss is NaN or infinite: check the model's weights")
        return total

    @torch.inference_mode(False)
    def hvp(self, theta: Tensor, vectors: Tensor, *, kind: str = "hessian", blocks: bool = False) -> Tensor:
        """Multiply k vectors by a matrix of second derivatives of the loss, in one pass over the data.

        Networks of usual layers run through an engine that shares all but the vectors' own work (see
        :mod:`lbgap.objective.products.engine`), others by differentiating the gradient once more; :attr:`hvp_way` says
        which. With ``precision="mixed"`` the engine rounds to bfloat16; :attr:`hvp_error` says what that does. The
        gradient counts as one pass over the data, and so does each vector, for each layer with ``blocks``; none if k
        is 0.

        Args:
            theta: ``(n,)``.
            vectors: ``(k, n)``.
            kind: ``"hessian"``; ``"ggn"``, the Gauss-Newton matrix J' H J with the Hessian H of the loss in the
                outputs; or ``"fisher"``, the mean of g g' with the gradient g of each sample's loss.
            blocks: Multiply by the diagonal blocks of the layers alone: zero across layers.

        Returns:
            ``(k, n)``, of the objective's dtype.

        Raises:
            ValueError: ``theta`` or ``vectors`` has the wrong shape, dtype or device, or ``vectors`` holds NaN; the
                model or the loss cannot be differentiated twice; or the statistics of a batch-norm couple the
                samples of a micro-batch.
            TypeError: ``vectors`` is not a tensor.
            FloatingPointError: A product is NaN or infinite.
        """
        self._check_direction(theta, "theta")
        _products.check(vectors, self._centre, kind)
        if self.by_batch and self.batch_size < self.samples:
            raise ValueError(
                "products with second derivatives need a loss that is a mean over single samples, but with "
                f"batch_norm='batch' {self.samples} samples in micro-batches of {self.batch_size} are coupled by their "
                "statistics: use batch_norm='eval', or a batch_size that holds all samples"
            )
        if self.by_batch and kind == "fisher":
            raise ValueError("kind='fisher' needs the gradient of each sample, got batch_norm='batch': use 'eval'")
        if len(vectors) == 0:
            return torch.empty_like(vectors)
        with torch.no_grad():
            self._set(theta)
        multiply = self._products.multiply_blocks if blocks else self._products.multiply
        passes = len(_products.layers_of(self._flat)) if blocks else 1
        self._count(self.samples * passes * (1 + len(vectors)))

        def sweep() -> Tensor:
            with self._exact(), self._context(False):
                return multiply(self._micro_batches, vectors, kind).div_(self.samples)

        product = self._within_memory(sweep)
        if not product.sum().isfinite() and not (finite := product.isfinite().all(1)).all():
            bad = int((~finite).nonzero()[0])
            raise FloatingPointError(f"the product with vector {bad} is NaN or infinite: check the model's weights")
        return product

    def operator(self, kind: str = "hessian") -> LinearOperator:
        """The matrix of second derivatives at :attr:`theta`, as what it makes of vectors.

        Args:
            kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``, as in :meth:`hvp`.

        Raises:
            ValueError: ``kind`` is unknown.
        """
        check_kind(kind)
        theta = self.theta

        @torch.no_grad()
        def multiply(vectors: Tensor) -> Tensor:
            return self.hvp(theta, vectors, kind=kind)

        return LinearOperator(multiply, self.n, self.dtype, self.device, name=kind)

    @property
    def losses_way(self) -> str:
        """How the last call evaluated many points; ``"not used yet"`` before.

        ``"one after the other"``; ``"layer by layer"``, many points at once; or ``"tile by tile"``, for narrow
        networks, a few samples through all layers of each point.
        """
        return self._losses_way

    @property
    def hvp_way(self) -> str:
        """How :meth:`hvp` computes: ``"engine"``, or ``"general: "`` and the reason, or ``"not used yet"``."""
        return self._products.way

    @property
    def hvp_error(self) -> float | None:
        """Relative error that bfloat16 made in one product of the last :meth:`hvp`, on a few samples; None without."""
        return self._products.error

    @torch.inference_mode(False)
    def subset(self, samples: int) -> Objective | None:
        """The same function on fewer samples, spread evenly over the data; it shares this one's replica.

        Args:
            samples: How many, at most all.

        Returns:
            The objective, whose evaluations also count here, by its share; or None where it would be another
            function: the statistics of an evaluation batch depend on who else is in it.

        Raises:
            ValueError: ``samples`` is less than one or more than all.
        """
        samples = whole("samples", samples, 1, self.samples + 1)
        if self.by_batch:
            return None
        return self._part(torch.arange(samples, device="cpu") * self.samples // samples)

    @torch.inference_mode(False)
    def sample(self, samples: int, seed: int = 0) -> Objective:
        """The same function on samples drawn at random, as many of each class as it has of all; as :meth:`subset`.

        Args:
            samples: How many, at most all.
            seed: Of the draw.

        Raises:
            ValueError: ``samples`` is less than one or more than all, or the loss depends on the batches
                (``batch_norm="batch"``).
            TypeError: ``samples`` is not a whole number.
        """
        samples = whole("samples", samples, 1, self.samples + 1)
        if self.by_batch:
            raise ValueError(
                "samples needs a loss that is a mean over single samples, got batch_norm='batch', under which fewer "
                "samples are another function: use batch_norm='eval'"
            )
        generator = torch.Generator().manual_seed(whole("seed", seed, 0))
        drawn = torch.randperm(self.samples, generator=generator, device="cpu")
        if self.classes is not None:
            # Sorted by class, the order inside a class random: evenly spread places hold each class by its share.
            drawn = drawn[self._targets.cpu()[drawn].argsort(stable=True)]
            drawn = drawn[(torch.arange(samples, device="cpu") * self.samples + self.samples // 2) // samples]
        return self._part(drawn[:samples].sort().values)

    @torch.inference_mode(False)
    def part(self, chosen: Tensor) -> Objective:
        """The same function on these samples; as :meth:`subset`.

        With ``batch_norm="batch"`` it is that of a batch of them, with its own statistics.

        Args:
            chosen: Their indices, ``(samples,)`` int64, in the order in which they are evaluated.

        Raises:
            ValueError: It is empty, or an index is out of range; or with ``batch_norm="batch"`` there is only one
                sample, or more than fit into one batch.
        """
        if chosen.dim() != 1 or not len(chosen) or not 0 <= int(chosen.min()) <= int(chosen.max()) < self.samples:
            raise ValueError(f"chosen must be one or more indices below {self.samples}, got {chosen.tolist()[:5]}")
        if self.by_batch and not 2 <= len(chosen) <= self.batch_size:
            raise ValueError(
                f"batch_norm='batch' needs 2 to batch_size = {self.batch_size} samples for their own statistics, got "
                f"{len(chosen)}"
            )
        return self._part(chosen.to(self.device))

    def _part(self, chosen: Tensor) -> Objective:
        """These samples, evaluated with this one's replica and counted here too."""
        samples, smaller = len(chosen), copy.copy(self)
        chosen = chosen.to(self._inputs.device)
        smaller._load(self._inputs[chosen], self._targets[chosen])
        smaller.samples, smaller.evaluated, smaller._whole = samples, 0, self
        smaller.batch_size = min(self.batch_size, samples)
        return smaller

    def set_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Give the replica other buffers, for example the running statistics of another minimizer.

        Args:
            buffers: Name to value; those not named stay as they are.

        Raises:
            ValueError: The model has no such buffer, or one of another shape.
        """
        own = dict(self._flat.module.named_buffers())
        for name, value in buffers.items():
            if name not in own or own[name].shape != value.shape:
                raise ValueError(f"the model has no buffer {name!r} of shape {tuple(value.shape)}")
            with torch.no_grad():
                own[name].copy_(value)

    def settings(self) -> dict[str, Any]:
        """Everything that the values of this objective depend on, ready for JSON."""
        return {
            "loss": self._loss.name,
            "parameters": self.parameters if isinstance(self.parameters, str) else list(self.parameters),
            "n": self.n,
            "samples": self.samples,
            "batch_norm": self.batch_norm if self._flat.has_batch_norm else "none in the model",
            "batch_size": self.batch_size,
            "precision": self.precision,
            "directions": "bfloat16" if self._bfloat16 else str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "backend": self.backend,
            "data": "streamed" if self._streamed else "resident",
            "graph": self._graphs.status,
            "notes": list(self.notes),
        }

    # How it is done.

    def _load(self, inputs: Tensor, targets: Tensor) -> None:
        """Take the samples: to the device where they fit, else to where it can fetch them from."""
        self._streamed = not hardware.fit((inputs, targets), self.device, self._flat.theta.dtype)
        self._inputs, self._targets = self._place(inputs), self._place(targets)
        none = "cpu" if self.device.type == "cpu" else None if self.device.type == "cuda" else "no CUDA device"
        if self._streamed:
            none = "the data are streamed"
            self._note(STREAMED, f"they are too large for {self.device} and are copied there batch by batch")
        self._graphs = Graphs(self.device, self.notes, none)

    def _place(self, tensor: Tensor) -> Tensor:
        tensor = tensor.clone() if tensor.is_inference() else tensor.detach()
        dtype = self._flat.theta.dtype if tensor.is_floating_point() else None
        return hardware.pinned(tensor, dtype) if self._streamed else tensor.to(self.device, dtype)

    def _note(self, beginning: str, rest: str) -> None:
        """Write down a fact, in place of what an earlier note of this beginning said."""
        kept = [note for note in self.notes if not note.startswith(beginning)]
        self.notes[:] = [*kept, beginning + rest]  # in place: the parts of this objective share the list

    def _has_bfloat16(self) -> bool:
        if hardware.bfloat16_products(self.device.type):
            return True
        note = f"precision='mixed' ran in float32: no bfloat16 matrix products on this {self.device.type}"
        self.notes.append(note)
        warnings.warn(note, stacklevel=3)
        return False

    @torch.inference_mode(False)
    def _probe(self) -> tuple[Tensor, int]:
        """Run a few samples: do model, loss and data fit, do they repeat, how large is a sample's activations?"""
        module, devices = self._flat.module, [self.device] if self.device.type == "cuda" else []
        inputs, targets = self._first_few()
        versions = inputs._version, targets._version
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers() if buffer.layout == torch.strided}
        saved = hardware.SavedBytes([*module.parameters(), *module.buffers()])
        with self._context(False), torch.random.fork_rng(devices):
            try:
                with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(saved.note, lambda tensor: tensor):
                    output = module(inputs)
                with torch.no_grad():
                    once, again = (module(self._first_few().inputs) for _ in range(2))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                raise ValueError(
                    f"the model does not accept inputs of shape {tuple(inputs.shape)}, {inputs.dtype}: "
                    f"{first_line(error)}"
                ) from error
            self._loss.check(output, self._targets)
            if len(output) != len(inputs):
                raise ValueError(f"the model must return one output per sample, got {len(output)} for {len(inputs)}")
            with torch.enable_grad():
                self._check_gradient(self._loss.total(output, targets)[0])
                self._loss.check_mean(once, again, self._first_few().targets)
        self._flat.check_views()
        if not torch.allclose(once, again, rtol=1e-5, atol=1e-6, equal_nan=True):
            raise ValueError(
                "the model gives different outputs for the same inputs in evaluation mode: a sharpness of it "
                "would not repeat; turn its randomness off (functional dropout without training=self.training?)"
            )
        now = dict(module.named_buffers())
        for name, before in buffers.items():
            if name not in now or not torch.equal(now[name].nan_to_num(), before.nan_to_num()):
                raise ValueError(
                    f"the model changes its buffer {name!r} in evaluation mode: its loss would depend on what was "
                    "evaluated before; change it only where self.training"
                )
        same = all(torch.equal(*parts) for parts in zip((inputs, targets), self._first_few(), strict=True))
        self._overwrites = not same or (inputs._version, targets._version) != versions
        return output.detach(), max(1, saved.total() // len(inputs))

    def _first_few(self) -> Split:
        """A fresh copy of a few samples on the device, for trying something out."""
        return Split(*(part[: self._few].to(self.device, copy=True) for part in (self._inputs, self._targets)))

    def _check_gradient(self, total: Tensor) -> None:
        """Refuse a loss without a gradient in the parameters that may move."""
        try:
            found = total.requires_grad and any(
                part is not None for part in torch.autograd.grad(total, self._flat.moving, allow_unused=True)
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(f"the loss cannot be differentiated: {first_line(error)}") from error
        if not found:
            raise ValueError(
                "the loss does not depend on the parameters that may move: check parameters= and that neither "
                "model nor loss detaches its output"
            )

    def _statistics_batch(self, wanted: int) -> int:
        """The batch that batch-norm takes its statistics from."""
        size = min(wanted, self.samples)
        if self.samples % size == 1 or size == 1:
            raise ValueError(
                f"batch_norm='batch' with {self.samples} samples in batches of {size} leaves a batch of one "
                "sample, which has no statistics: choose another batch_size"
            )
        return size

    def _micro_batch(self, wanted: int | None, bytes_each: int) -> int:
        """A batch that decides about speed and memory alone."""
        if wanted is not None:
            return min(wanted, self.samples)
        fitting = max(SMALLEST_BATCH, hardware.batch_budget(self.device) // bytes_each)
        fitting = fitting if self._few == PROBE_SAMPLES else self._few  # as many as the probe came down to
        return math.ceil(self.samples / math.ceil(self.samples / fitting))

    def _within_memory(self, work: Callable[[], Result]) -> Result:
        """Do all of some work, with smaller micro-batches once more wherever the device's memory is too small for it.

        Raises:
            MemoryError: They cannot be smaller.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                pass  # on leaving this block the error lets go of all tensors of the work
            self._empty()
            if self.by_batch:
                raise MemoryError(
                    f"a batch of {self.batch_size} samples does not fit in the memory of {self.device}, and with "
                    "batch_norm='batch' another size is another function: pass a smaller batch_size, or "
                    "batch_norm='eval'"
                )
            if self.batch_size == 1:
                raise MemoryError(
                    f"not even one sample fits in the memory of {self.device}: free some of it, pass device='cpu', or "
                    "evaluate a smaller model"
                )
            self._shrink(self.batch_size // 2)

    def _empty(self) -> None:
        """Free the memory of graphs, also of the objective that this one is a part of, and what torch keeps."""
        self._graphs.drop()
        if self._whole is not None:
            self._whole._empty()
        hardware.release(self.device)

    def _shrink(self, batch_size: int) -> None:
        """Make micro-batches no larger than this, also those of the objective that this one is a part of."""
        self.batch_size = min(self.batch_size, batch_size)
        self._few = min(self._few, batch_size)
        self._note(HALVED, f"micro-batches were halved, to {batch_size} samples")
        if self._whole is not None:
            self._whole._shrink(batch_size)

    @contextlib.contextmanager
    def _exact(self) -> Iterator[None]:
        """Products in full float32, by kernels that repeat their bits, whatever the caller allows."""
        with hardware.full_float32(self.device.type), hardware.repeatable(self.device.type):
            yield

    def _context(self, bfloat16: bool) -> torch.autocast:
        """The precision of one pass, whatever the caller's autocast is."""
        # Inside a caller's autocast its cache would outlive the pass, and with it the parameters of another point.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False)

    def _set(self, theta: Tensor) -> None:
        self._check(theta, "theta")
        self._move(theta)

    def _move(self, theta: Tensor) -> None:
        """Give the replica these parameters."""
        self._flat.theta.copy_(theta)

    def _check(self, vector: Tensor, name: str) -> None:
        if vector.shape != (self.n,) or vector.dtype != self.dtype or vector.device != self.device:
            raise ValueError(
                f"{name} must be ({self.n},) {self.dtype} on {self.device}, got {tuple(vector.shape)} {vector.dtype} "
                f"on {vector.device}"
            )

    def _check_direction(self, vector: Tensor, name: str) -> None:
        if self._restricted:
            raise ValueError(
                "derivatives along directions are those of the full space: pass the objective of all of it"
            )
        self._check(vector, name)

    def _micro_batches(self) -> Iterator[Split]:
        data = Split(self._inputs, self._targets)
        on_device = streamed(data, self.batch_size, self.device) if self._streamed else resident(data, self.batch_size)
        for batch in on_device:
            yield Split(batch.inputs.clone(), batch.targets.clone()) if self._overwrites else batch

    @torch.inference_mode(False)
    def _along(self, theta: Tensor, direction: Tensor, reduce: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """One pass: what ``reduce(output, its derivative, targets)`` makes of each batch, joined."""
        self._check_direction(direction, "direction")
        with torch.no_grad():
            self._set(theta)
        self._count(self.samples)

        def sweep() -> Tensor:
            found = []
            with self._exact(), self._context(False), tangents.differentiable():
                tangent_of = tangents.choose(self._flat, lambda: self._first_few().inputs, direction)
                for inputs, targets in self._micro_batches():
                    found.append(reduce(*tangent_of(self._flat, inputs, direction), targets))
            return torch.cat(found)

        return self._within_memory(sweep)

    @torch.inference_mode(False)
    def _pass(
        self,
        theta: Tensor,
        loss: Loss,
        *,
        gradient: bool = False,
        bfloat16: bool = False,
        accuracy: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """One pass over the data, enqueued on the device.

        Returns:
            Each batch's share of the mean loss; and with ``gradient`` 1.0 if all of it is finite, else 0.0; with
            ``accuracy`` each batch's number of correct samples.
        """
        with torch.no_grad():
            self._set(theta)
        self._count(self.samples)
        if not gradient:
            return self._within_memory(lambda: self._values(loss, accuracy))

        def sweep() -> tuple[Tensor, ...]:
            work = functools.partial(self._slopes, loss, bfloat16)
            if loss is not self._loss:  # used for a start or two: not worth a graph
                return work()
            dtype = torch.bfloat16 if bfloat16 else self._flat.theta.dtype
            return self._graphs.run((self.batch_size, bfloat16), work, self._flat.gradient, dtype)

        shares, finite = self._within_memory(sweep)
        return shares, finite

    def _values(self, loss: Loss, accuracy: bool) -> tuple[Tensor, Tensor]:
        """The batches of a pass without a gradient."""
        shares, correct = [], []
        with torch.no_grad(), self._exact():
            for inputs, targets in self._micro_batches():
                output, _, value = self._output(loss, inputs, targets)
                shares.append(value / self.samples)
                if accuracy:
                    correct.append((output.argmax(1) == targets).sum(dtype=torch.float64))
        return torch.stack(shares), torch.stack(correct) if accuracy else torch.empty(0)

    def _slopes(self, loss: Loss, bfloat16: bool) -> tuple[Tensor, Tensor]:
        """The batches of a pass with its gradient, which is left in the replica."""
        shares = []
        self._flat.gradient.zero_()
        with torch.enable_grad(), self._exact():
            for inputs, targets in self._micro_batches():
                _, total, value = self._output(loss, inputs, targets, bfloat16)
                with self._context(False):
                    torch.autograd.backward(total / self.samples, inputs=self._flat.moving)
                shares.append(value / self.samples)
        return torch.stack(shares), self._flat.gradient.isfinite().all().double()

    def _output(
        self, loss: Loss, inputs: Tensor, targets: Tensor, bfloat16: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output of a batch, its summed loss with a graph, and in float64."""
        with self._context(bfloat16):
            output = self._flat.module(inputs)
        with self._context(False):
            output = output.to(self._flat.theta.dtype) if output.is_floating_point() else output
            return output, *loss.total(output, targets)

    def _count(self, samples: int) -> None:
        self.evaluated += samples
        if self._whole is not None:
            self._whole._count(samples)

    def _evaluate(self, theta: Tensor, out: Tensor | None, loss: Loss, *, bfloat16: bool) -> tuple[Tensor, Tensor]:
        """Enqueue a gradient, wait for its value and judge it."""
        report, gradient = self._gradient(theta, out, loss, bfloat16=bfloat16)
        self.settle(*hardware.read(report))
        return report[0].clone(), gradient

    def _gradient(self, theta: Tensor, out: Tensor | None, loss: Loss, *, bfloat16: bool) -> tuple[Tensor, Tensor]:
        """Enqueue a gradient: a report ``(2,)`` as that of :meth:`enqueue`, and the gradient."""
        self._shares, finite = self._pass(theta, loss, gradient=True, bfloat16=bfloat16)
        value, gradient = self._shares.sum(), self._flat.gradient
        report = torch.stack([value, value.isfinite() * finite])
        return report, gradient.clone() if out is None else out.copy_(gradient)

    def _finite(self, shares: Tensor) -> Tensor:
        """Add the batches up; refuse NaN and infinity by the name of the first batch that has one."""
        value = shares.sum()
        if not math.isfinite(hardware.read(value[None])[0]):
            bad = int((~shares.isfinite()).nonzero()[0]) if not shares.isfinite().all() else 0
            first, last = bad * self.batch_size, min((bad + 1) * self.batch_size, self.samples) - 1
            raise FloatingPointError(
                f"the loss is {float(shares[bad])} in samples {first}..{last} (batch {bad + 1} of {len(shares)}): "
                "check their inputs and targets, and the model's weights"
            )
        return value
