"""The seam that every measure shares: the loss of a model as a function of its flat parameters.

What is behind it knows nothing of the rest: :mod:`lbgap.objective.passes` evaluates, :mod:`lbgap.objective.coordinates`
says in which coordinates, :mod:`lbgap.objective.judge` whether it is the user's function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lbgap._extension import resolve_backend
from lbgap.checks import Amount, amount, counted, dense, flag, is_whole, moved
from lbgap.flat import FlatModule, Selection, name_patterns
from lbgap.objective import casts
from lbgap.objective.coordinates import Coordinates
from lbgap.objective.directional import Directional
from lbgap.objective.judge import has_bfloat16
from lbgap.objective.judge import judge as ask
from lbgap.objective.parts import Parts
from lbgap.objective.passes import Evaluator
from lbgap.objective.points.many import Many
from lbgap.objective.points.source import Combinations, Separate, Source
from lbgap.objective.products import choose as products
from lbgap.objective.products.output import check_kind
from lbgap.objective.reading import read
from lbgap.operators import LinearOperator
from lbgap.problem.call import PLAIN, Call, CallFunction
from lbgap.problem.hold import units
from lbgap.problem.loss import Loss, LossFunction, log_probability, resolve_loss
from lbgap.system import device as hardware
from lbgap.unwrap import check_cache, left_out, unwrapped

PRECISIONS = ("float32", "float64", "mixed")


class Objective(Parts, Directional):
    """The mean loss of a model over a data set, as a function of the parameters that may move.

    The model is never changed: a private replica is evaluated, dropout off, buffers constant. The loss is a sum over
    all samples by the sum of their weights, accumulated in float64 over micro-batches of a fixed order: the same call
    gives the same bits. :meth:`settings` says all that its values depend on. Whether it is the loss of the model is
    asked of a few samples first (docs/limits.md).
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
        batch_size: Amount | None = None,
        device: str | torch.device | None = None,
        backend: str = "auto",
        coupled: bool = False,
        judge: bool = True,
        call: CallFunction | None = None,
    ) -> None:
        """Build the replica, load the data and check that they fit.

        Args:
            model: Any module whose parameters are real floating-point numbers.
            data: ``(inputs, targets)``, tensors in any containers, a ``Dataset``, a ``DataLoader``, or a function that
                returns an iterator of batches (docs/data.md); held in memory where they fit, else read in each pass.
            loss: ``"cross_entropy"``, ``"mse"``, ``"bce"``, ``"nll"``, ``"l1"``, ``"huber"``, of tokens
                ``"causal_lm"``, ``"masked_lm"`` or ``"token_classification"``, ``"model"`` for that which a model of
                transformers returns; a loss of torch with any options; or a callable ``loss(output, target)``: the
                mean over the batch, one value a sample, or ``(sum, weight)``. See docs/losses.md.
            parameters: Which parameters may move; see :func:`lbgap.flat.select_parameters`.
            batch_norm: ``"eval"``: running statistics; ``"batch"``: statistics of each evaluation batch, as the
                paper's scripts do, so that the batch size is part of the result.
            precision: ``"float32"``, ``"float64"``, or ``"mixed"``: gradients that only choose a direction run in
                bfloat16, every value that is reported in float32.
            batch_size: Samples in a micro-batch, or a share of all (0.1, ``"10%"``). Chosen by itself otherwise: with
                ``batch_norm="eval"`` from the size of the activations, with ``"batch"`` the loader's or 5,000 as the
                paper's authors use.
            device: Where to compute; the model's device by default.
            backend: ``"auto"``, ``"native"`` or ``"torch"``.
            coupled: Whether the samples of a batch see each other, in model or loss. The value is then the mean
                over the loader's batches, or over those of ``batch_size``, each counted by its weight: its samples, or
                for a ratio what the loss divides by. Their size is part of the result;
                ``batch_norm="batch"`` is one such case.
            judge: Whether to ask, before any number, if this is the loss of the model (docs/limits.md).
            call: ``call(model, batch)``, which returns the output, where batches enter the model in a way of their own.

        Raises:
            ValueError: An argument is out of its range, the data are empty or do not fit the model, the model is
                random in evaluation mode, or model and data are on different devices.
            TypeError: An argument is of the wrong kind.
            MemoryError: Not even one sample fits in the device's memory, or a batch whose samples see each other does
                not; so do all evaluations.
        """
        wanted = resolve_loss(loss)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
        if batch_size is not None:
            batch_size = amount("batch_size", batch_size)
        self.parameters = parameters if isinstance(parameters, str) else name_patterns(parameters)
        self.batch_norm, self.precision = batch_norm, precision
        coupled, judge = flag("coupled", coupled), flag("judge", judge)
        place = None if device is None else hardware.usable(device, torch.device("cpu"))
        given, model = model, unwrapped(model, inside=call is None)
        wanted = wanted.for_model(model)
        notes: list[str] = list(filter(None, [None if call is not None else left_out(given)]))
        with torch.inference_mode(False), torch.no_grad():
            dtype = torch.float64 if precision == "float64" else torch.float32
            flat = FlatModule(
                model,
                parameters=self.parameters,
                batch_norm=batch_norm,
                dtype=dtype,
                device=place,
                call=PLAIN if call is None else Call("own", function=call),
            )
            here = flat.theta.device
            notes += filter(None, [casts.note(model, dtype)])
            self.backend = resolve_backend(backend, here)
            bfloat16 = precision == "mixed" and has_bfloat16(here.type, notes)
            self.coordinates = Coordinates(flat)
            # All that costs nothing has been judged: now the data, which may take long to read.
            samples, flat.call, loader_batch = read(model, data, wanted, call, notes, None if device else here)
            coupled = coupled or (batch_norm == "batch" and flat.has_batch_norm)
            if coupled and batch_size is None:
                samples, loader_batch = units(samples, loader_batch)
            self._evaluator = Evaluator(flat, wanted, samples, notes, coupled=coupled, bfloat16=bfloat16)
        size = None if batch_size is None else counted(batch_size, self._evaluator.samples)
        with torch.inference_mode(False):
            output, self.judged = ask(self._evaluator, model, self.coordinates.centre, size, loader_batch, asked=judge)
        self._products = products.Products(
            flat,
            self._evaluator.loss,
            coupled=coupled,
            bfloat16=self._evaluator.bfloat16,
            backend=self.backend,
            notes=notes,
        )
        self._many = Many(native=self.backend == "native")
        self._whole = None
        self._losses_way = "not used yet"
        self.evaluated = 0
        known = isinstance(output, Tensor) and self._evaluator.data.cuttable
        self.classes = self._evaluator.loss.classes(output, self._evaluator.data.pool.targets) if known else None

    # Values and gradients.

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
        self._begin(theta)
        return self._evaluator.mean(self._evaluator.values()[0])

    def loss_and_accuracy(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate loss and accuracy at one point.

        Args:
            theta: ``(n,)``.

        Returns:
            The mean loss, 0-d float64 (NaN or infinite values are returned as they are), and the share of targets
            that are the class of the largest output, among those that count in the loss, in percent, 0-d float64.

        Raises:
            ValueError: ``theta`` does not fit, or the model is not a classifier.
        """
        if self.classes is None:
            raise ValueError("accuracy needs class indices as targets and an output (batch, classes)")
        self._begin(theta)
        shares, correct = self._evaluator.values(accuracy=True)
        return shares.sum(), 100.0 * correct.sum() / self._evaluator.counted

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
        return self._finished(theta, out)

    def direction(self, theta: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Evaluate loss and gradient only well enough to choose where to go next: their value must not be reported.

        In bfloat16 with ``precision="mixed"``, else exactly what :meth:`loss_and_gradient` returns.
        """
        return self._finished(theta, out, rough=True)

    def enqueue(self, theta: Tensor, out: Tensor, *, rough: bool = False) -> Tensor:
        """Let the device evaluate the loss and its gradient, without waiting for it.

        Args:
            theta: ``(n,)``.
            out: Where the gradient goes, ``(n,)``.
            rough: Whether it only chooses a direction.

        Returns:
            ``(2,)`` float64 on the device: the value, and 1 if value and gradient are finite, else 0. Once the host has
            read them they go to :meth:`settle`, before anything else is evaluated.

        Raises:
            ValueError: ``theta`` has the wrong shape, dtype or device.
            MemoryError: Not even one sample fits in the device's memory.
        """
        self.coordinates.check_out(out, "out")
        return self._enqueue(theta, out, rough)[0]

    def settle(self, value: float, finite: float) -> None:
        """Refuse what the last gradient gave if it is not finite.

        Args:
            value: The first number that :meth:`enqueue` returned.
            finite: The second.

        Raises:
            FloatingPointError: The value or the gradient is NaN or infinite; the message names the batch or parameter.
        """
        if not finite:
            self._evaluator.refuse_gradient(value, self._shares)

    def log_probability_direction(self, theta: Tensor, label: int, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean log-probability of one class over all samples, and its gradient, as exact as a :meth:`direction`.

        Args:
            theta: ``(n,)``.
            label: Index of the class.
            out: Where the gradient goes, ``(n,)``.

        Raises:
            ValueError: The model is not a classifier, or has no such class.
        """
        if self.classes is None or not is_whole(label) or not 0 <= int(label) < self.classes:
            raise ValueError(f"label must be a class index below {self.classes or 0}, got {label}")
        wanted = log_probability(self._evaluator.loss, int(label))
        return self._finished(theta, out, rough=True, loss=wanted)

    def losses(self, points: Tensor) -> Tensor:
        """Evaluate the loss at several points, in one pass over the data where that is faster than one for each.

        Args:
            points: ``(k, n)``.

        Returns:
            ``(k,)`` float64, each as :meth:`loss` gives it but for rounding; NaN and infinite ones as they are.

        Raises:
            ValueError: ``points`` has the wrong shape, dtype or device.
        """
        return self._at_many(Separate(self.coordinates.check_rows(points, "points", "k")))[0]

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
        ends = self.coordinates.check_rows(ends, "ends", "j")
        j = len(ends)
        coefficients = moved("coefficients", f"(k, {j})", coefficients, torch.float64, self.device)
        if coefficients.dim() != 2 or coefficients.shape[1] != j or not j:
            raise ValueError(f"coefficients must be (k, {j}), one an end, got {tuple(coefficients.shape)}")
        if not coefficients.isfinite().all():
            raise ValueError("coefficients must be finite, got NaN or infinity")
        if accuracy and self.classes is None:
            raise ValueError("accuracy needs class indices as targets and an output (batch, classes)")
        own = dict(self._evaluator.flat.module.named_buffers())
        placed = {} if buffers is None else self._placed(buffers, torch.float64)
        for name, value in placed.items():
            if name not in own or value.shape != (j, *own[name].shape):
                raise ValueError(f"the model has no buffer {name!r} of shape {tuple(value.shape[1:])} for {j} ends")
        source = Combinations(coefficients, ends, placed, native=self.backend == "native")
        return self._at_many(source, accuracy, bfloat16=self.mixed)

    @torch.inference_mode(False)
    def statistics(self, theta: Tensor) -> dict[str, Tensor]:
        """Estimate the statistics of batch-norm on these data at one point; see :meth:`set_buffers`.

        Args:
            theta: ``(n,)``.

        Returns:
            Name of each buffer to its value: the mean over even batches of at most 5,000 samples, or over the loader's
            where these cannot be joined, each by its samples. An evaluation.

        Raises:
            ValueError: ``theta`` has the wrong shape, dtype or device, or there is one sample only.
        """
        if self._evaluator.flat.takes_statistics:
            raise ValueError("batch_norm='batch' keeps no statistics: pass batch_norm='eval'")
        if self.samples == 1:
            raise ValueError("one sample has no statistics: pass more data")
        self._begin(theta)
        return self._evaluator.statistics()

    def set_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Give the replica other buffers, for example the running statistics of another minimizer.

        Args:
            buffers: Name to value; those not named stay as they are.

        Raises:
            ValueError: The model has no such buffer, or one of another shape; or a value is sparse or not real.
            TypeError: ``buffers`` is no mapping of tensors.
        """
        self._evaluator.set_buffers(self._placed(buffers, None))

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
                model or the loss cannot be differentiated twice, or their second derivatives are not those of the
                gradient (docs/limits.md); or the kind is ``"fisher"`` where the samples of a
                batch see each other.
            TypeError: ``vectors`` is not a tensor.
            FloatingPointError: A product is NaN or infinite.
        """
        self.coordinates.check_complete()
        vectors = dense("vectors", f"(k, {self.n})", vectors, self.dtype, self.device)
        blocks = flag("blocks", blocks)
        self.coordinates.check(theta, "theta")
        products.check(vectors, self.coordinates.centre, kind)
        products.check_coupled(self.coupled, kind)
        evaluator = self._evaluator
        if kind != "hessian":
            evaluator.check_tensor(f"kind={kind!r}")
        if kind == "fisher" and not evaluator.data.cuttable:
            raise ValueError("kind='fisher' needs the gradient of each sample, got batches that cannot be cut")
        if len(vectors) == 0:
            return torch.empty_like(vectors)
        self._ask_second(kind)
        multiply = self._products.multiply_blocks if blocks else self._products.multiply
        passes, divisor = len(products.layers_of(evaluator.flat)) if blocks else 1, evaluator.divisor(kind)
        self._begin(theta, passes * (1 + len(vectors)))

        def sweep() -> Tensor:
            with evaluator.exact(), evaluator.context(False):
                return multiply(evaluator.batches, vectors, kind).div_(divisor)

        product = evaluator.within_memory(sweep)
        products.check_finite(product)
        return product

    def operator(self, kind: str = "hessian") -> LinearOperator:
        """The matrix of second derivatives at :attr:`theta`, as its products with vectors.

        Args:
            kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``, as in :meth:`hvp`; anything else is a ``ValueError``.
        """
        check_kind(kind)
        theta = self.theta
        multiply = torch.no_grad()(lambda vectors: self.hvp(theta, vectors, kind=kind))
        return LinearOperator(multiply, self.n, self.dtype, self.device, kind, fresh=True)

    # How it is done.

    def _placed(self, buffers: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Buffers on the device, in a dtype, or in their own where that is None."""
        if not isinstance(buffers, Mapping):
            raise TypeError(f"buffers must map names to tensors, got {type(buffers).__name__}")
        own = dict(self._evaluator.flat.module.named_buffers())
        found = {}
        for name, value in buffers.items():
            wanted = dtype or (own[name].dtype if name in own else torch.float64)
            shape = str(tuple(own[name].shape)) if name in own else "of a buffer"
            found[name] = moved(f"buffer {name!r}", shape, value, wanted, self.device)
        return found

    @torch.inference_mode(False)
    def _enqueue(
        self, theta: Tensor, out: Tensor | None, rough: bool, loss: Loss | None = None
    ) -> tuple[Tensor, Tensor]:
        """Enqueue a gradient: what :meth:`enqueue` returns, and the gradient."""
        if out is not None:
            self.coordinates.check_out(out, "out")
        self._begin(theta)
        self._shares, finite = self._evaluator.gradient(rough=rough, loss=loss)
        value = self._shares.sum()
        with torch.no_grad():
            gradient = self.coordinates.pull(self._evaluator.flat.gradient, out)
        return torch.stack([value, value.isfinite() * finite]), gradient

    def _finished(
        self, theta: Tensor, out: Tensor | None, *, rough: bool = False, loss: Loss | None = None
    ) -> tuple[Tensor, Tensor]:
        """Enqueue a gradient, wait for its value and judge it."""
        report, gradient = self._enqueue(theta, out, rough, loss)
        self.settle(*hardware.read(report))
        return report[0].clone(), gradient

    @torch.inference_mode(False)
    @torch.no_grad()
    def _at_many(self, source: Source, accuracy: bool = False, bfloat16: bool = False) -> tuple[Tensor, Tensor | None]:
        """Evaluate many points."""
        check_cache(self._evaluator.flat.module)

        def single(theta: Tensor, accuracy: bool) -> tuple[Tensor, Tensor]:
            self._begin(theta)
            return self._evaluator.values(accuracy=accuracy)

        found = self._many.evaluate(
            self._evaluator,
            source,
            single,
            lambda points: self._count(self.samples * points),
            complete=self.coordinates.complete,
            accuracy=accuracy,
            bfloat16=bfloat16,
        )
        self._losses_way = found.way
        return found.losses, found.accuracies if accuracy else None
