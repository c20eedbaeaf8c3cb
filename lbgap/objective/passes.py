"""How a loss is evaluated: passes of a private replica over samples in micro-batches, on the device that they need.

The evaluator knows neither coordinates nor minimizers: whoever calls it has written the parameters into its replica.
It sees :class:`~lbgap.problem.stored.Samples` as batches that know their size, and a loss as sums and their weights.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from lbgap.flat import FlatModule
from lbgap.objective import tangents
from lbgap.objective.cuda_graphs import Graphs
from lbgap.objective.plain import NoFastPath, has_fast_path
from lbgap.problem import trees
from lbgap.problem.batch import Batch
from lbgap.problem.loss import Loss, Sums
from lbgap.problem.stored import Samples, even
from lbgap.system import device as hardware
from lbgap.system.device import first_line

BATCH_NORM_BATCH = 5000  # what the paper's authors evaluate with
PROBE_SAMPLES = 32
HALVED, STREAMED = "out of memory: ", "the data stay on the host: "  # how notes begin

Result = TypeVar("Result")


class Evaluator:
    """A replica, the samples that it is evaluated on, and how.

    On a GPU the data are resident where they fit, and streamed from the host otherwise; a gradient that is evaluated
    again is one CUDA graph where the model allows it; and where memory runs out the micro-batch is halved and the pass
    repeated.

    Attributes:
        flat: The replica.
        loss: The loss.
        data: All samples.
        coupled: Whether the loss of a sample depends on the batch that it is evaluated in.
        bfloat16: Whether gradients that only choose a direction run in bfloat16.
        batch_size: Samples in a micro-batch (the last may hold fewer); halved where memory runs out.
        few_samples: How many samples are enough to try something out; halved likewise.
        overwrites: Whether model or loss write into their inputs, so that each batch is copied.
        returns_tensor: Whether the loss takes one tensor of the model, and no more of what it returns.
        needs_grad: Whether the model differentiates inside its forward pass, so that values record a graph too.
        device: Where everything is.
        notes: Sentences on what was not done as asked.
        given: Floating-point types of the inputs before they were cast to the replica's.
        graphs: The CUDA graphs of gradients.
    """

    def __init__(
        self,
        flat: FlatModule,
        loss: Loss,
        data: Samples,
        notes: list[str],
        *,
        coupled: bool = False,
        bfloat16: bool = False,
        whole: Evaluator | None = None,
    ) -> None:
        """Take the samples to the device where they fit, else to where it can fetch them from.

        Args:
            flat: The replica.
            loss: The loss.
            data: All samples.
            notes: Takes sentences on what was not done as asked.
            coupled: Whether the statistics of a batch enter the loss of its samples.
            bfloat16: Whether directions run in bfloat16.
            whole: The evaluator that these samples are a part of; it shares what is known of memory.
        """
        self.flat, self.loss, self.notes, self.coupled, self.bfloat16 = flat, loss, notes, coupled, bfloat16
        self.device = flat.theta.device
        self._whole = whole
        inputs = trees.tensors(data.pool.inputs) if whole is None else []
        self.given = {part.dtype for part in inputs if part.is_floating_point()}
        self.data = data.placed(self.device, flat.theta.dtype) if whole is None else data
        self.data.exact = coupled
        none = "cpu" if self.device.type == "cpu" else None if self.device.type == "cuda" else "no CUDA device"
        if self.data.is_streamed:
            none = "the data are streamed"
        if self.data.kept == "streamed":
            self.note(STREAMED, f"they are too large for {self.device} and are copied there batch by batch")
        self.graphs = Graphs(self.device, notes, none, moving=flat.moving)
        self._weight: float | None = None
        self._counted: int | None = None
        self._few: slice | Tensor | None = None  # some samples that count
        self.few_samples = self.batch_size = PROBE_SAMPLES
        self.overwrites = self.needs_grad = False
        self.returns_tensor = True
        self._ends = [0]
        if whole is None:
            self._has_fast_path = has_fast_path(flat.module)
        else:
            self._has_fast_path, self.needs_grad = whole._has_fast_path, whole.needs_grad
            self.few_samples, self.overwrites = whole.few_samples, whole.overwrites
            self.returns_tensor = whole.returns_tensor
            self.batch_size = min(whole.batch_size, self.samples)

    @property
    def samples(self) -> int:
        """How many there are."""
        return self.data.size

    def fit(self, output: Any, few: Batch) -> None:
        """Fit the loss to all samples.

        Args:
            output: What the model returned for a few samples.
            few: Those.

        Raises:
            TypeError: As :meth:`Loss.check`.
            ValueError: Likewise.
        """
        self.returns_tensor = isinstance(output, Tensor)
        targets = self.data.targets()
        if not self.returns_tensor or (self.loss.raw and not self.data.cuttable):
            targets = itertools.chain([few.targets], targets)  # such outputs are called with their own targets
        self.loss = self.loss.check_all(output, targets)
        self._weight = self._counted = self._few = None

    @property
    def coupling(self) -> str:
        """The keyword by which the samples of a batch see each other, for messages."""
        return "batch_norm='batch'" if self.flat.takes_statistics else "coupled=True"

    @property
    def weight(self) -> float:
        """Of all samples, which the sum of the loss is divided by; a pass finds it where only the loss itself knows it.

        Raises:
            ValueError: It is zero.
        """
        weight = self._known_weight()
        if not weight > 0:
            raise ValueError(
                f"the loss {self.loss.name!r} counts none of these {self.samples} samples: the sum of their "
                f"weights is {weight:g}, so that they have no mean; take others, or more"
            )
        return weight

    @property
    def empty(self) -> bool:
        """Whether none of the samples counts, so that they have no mean."""
        return not self._known_weight() > 0

    @property
    def counted(self) -> int:
        """How many targets an accuracy is a share of."""
        if self._counted is None:
            self._counted = sum(map(self.loss.counted, self.data.targets()))
        return self._counted

    def divisor(self, kind: str) -> float:
        """What the products of the summed loss are divided by.

        Args:
            kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``, which is of second order in the term of a sample.
        """
        return self.weight * (self.weight / self.samples) if kind == "fisher" else self.weight

    def part(self, chosen: Tensor) -> Evaluator:
        """Evaluate these samples alone, ``(samples,)`` int64, with the same replica."""
        return Evaluator(
            self.flat,
            self.loss,
            self.data.part(chosen),
            self.notes,
            coupled=self.coupled,
            bfloat16=self.bfloat16,
            whole=self,
        )

    def few(self) -> Batch:
        """A fresh copy of a few samples on the device, for trying something out; of ones that count, where some do."""
        if self._few is None:
            self._few = self._first_that_count()
        rows = self._few[: self.few_samples] if isinstance(self._few, Tensor) else slice(self.few_samples)
        return self.copied(self.data.pool.rows(rows) if self.data.cuttable else self.data.pool)

    def copied(self, batch: Batch) -> Batch:
        """A fresh copy of a batch on the device, which model and loss may overwrite."""
        return batch.map(lambda part: part.to(self.device, copy=True))

    def batches(self) -> Iterator[Batch]:
        """The micro-batches of a pass, in order."""
        self._ends = [0]
        for batch in self.data.batches(None if self.coupled and not self.data.joins else self.batch_size):
            self._ends.append(self._ends[-1] + batch.size)
            yield batch.clone() if self.overwrites else batch

    # Passes at the replica's parameters.

    def values(self, *, accuracy: bool = False) -> tuple[Tensor, Tensor]:
        """Evaluate the loss, and the accuracy if asked for.

        Returns:
            Each batch's share of the mean loss, ``(batches,)`` float64; and its number of correct answers, or an empty
            tensor.
        """
        weight = self.weight

        def sweep() -> tuple[Tensor, Tensor]:
            shares, correct = [], []
            with self.unrecorded(), self.exact():
                for batch in self.batches():
                    output = self._output(batch)
                    output = output.detach() if isinstance(output, Tensor) else output
                    if accuracy:  # before the loss, which may overwrite the output
                        correct.append(self.loss.correct(output, batch.targets))
                    shares.append(self._sums(self.loss, output, batch).exact / weight)
            values = torch.stack(shares)
            return values, torch.stack(correct) if accuracy else values.new_empty(0)

        return self.within_memory(sweep)

    def gradient(self, *, rough: bool = False, loss: Loss | None = None) -> tuple[Tensor, Tensor]:
        """Evaluate the loss and its gradient, which is left in ``flat.gradient``.

        Args:
            rough: Whether it only chooses a direction, and may run in bfloat16.
            loss: Another loss, a mean over samples, for a start or two: not worth a graph.

        Returns:
            Each batch's share of the mean loss, ``(batches,)`` float64; and 1.0 if the gradient is finite, else 0.0.
        """
        bfloat16 = rough and self.bfloat16
        weight = self.weight if loss is None else float(self.samples)
        work = functools.partial(self._slopes, loss or self.loss, weight, bfloat16)

        def sweep() -> tuple[Tensor, ...]:
            if loss is not None:
                return work()
            dtype = torch.bfloat16 if bfloat16 else self.flat.theta.dtype
            return self.graphs.run((self.batch_size, bfloat16), work, self.flat.gradient, dtype)

        shares, finite = self.within_memory(sweep)
        return shares, finite

    def along(self, direction: Tensor, reduce: tangents.Reduce) -> Tensor:
        """What is made of the outputs of each batch, their derivatives along a direction and the targets, joined."""

        def sweep() -> Tensor:
            found = []
            self.check_tensor("a derivative of the outputs along a direction")
            with self.exact(), self.context(False), tangents.differentiable():
                tangent_of = tangents.choose(self.flat, lambda: self.few().inputs, direction)
                for batch in self.batches():
                    found.append(reduce(*tangent_of(self.flat, batch.inputs, direction), batch.targets))
            try:
                return torch.cat(found)
            except RuntimeError as error:
                raise ValueError(
                    f"the outputs of the batches differ in shape ({first_line(error)}), so that they cannot be joined: "
                    "pass samples of one shape"
                ) from error

        return self.within_memory(sweep)

    def check_tensor(self, what: str) -> None:
        """Refuse outputs that are not one tensor, for what needs that.

        Raises:
            ValueError: They are not.
        """
        if not self.returns_tensor:
            raise ValueError(
                f"{what} needs a model that returns one tensor: pass a loss by name, or call=lambda model, batch: ... "
                "that returns it"
            )

    def curvatures(self, vectors: Tensor) -> Tensor:
        """Second derivatives of the mean loss along vectors ``(k, n)``: ``(k,)`` float64."""
        parts, weight = [self.flat.parts(vector) for vector in vectors], self.weight

        def sweep() -> Tensor:
            total = torch.zeros(len(vectors), dtype=torch.float64, device=self.device)
            with self.exact(), self.context(False), tangents.differentiable():
                for batch in self.batches():
                    sums = self.loss.sums(self.flat.run(batch.inputs), batch.targets)
                    total += tangents.curvatures(sums.total / weight, self.flat.moving, parts)
            return total

        return self.within_memory(sweep)

    def statistics(self) -> dict[str, Tensor]:
        """The statistics of batch-norm over all samples: name of each buffer to its value."""
        with self.exact(), self.context(False):
            parts = even(self.data, BATCH_NORM_BATCH)
            placed = ((batch.cast(None, self.device), size) for batch, size in parts)
            copied = (((batch.clone() if self.overwrites else batch).inputs, size) for batch, size in placed)
            return self.flat.statistics(copied, grad=self.needs_grad)

    def _first_that_count(self) -> slice | Tensor:
        first = slice(self.few_samples)
        if self.coupled or not self.data.cuttable:  # where samples see each other they are those of a batch
            return first
        pool = self.data.pool
        with self.context(False):
            if len(self.loss.counting(pool.rows(first).targets)) == min(self.few_samples, pool.size):
                return first
            counting = self.loss.counting(pool.targets, self.few_samples)
        return counting if len(counting) else first

    def _known_weight(self) -> float:
        if self._weight is None:
            weights = [self.loss.weight(targets) for targets in self.data.targets()]
            known = [weight for weight in weights if weight is not None]
            self._weight = math.fsum(known) if len(known) == len(weights) else self._weighed()
        return self._weight

    def _weighed(self) -> float:
        """The sum of the weights that the loss returns, at whatever point the replica is: they depend on none."""

        def sweep() -> float:
            with torch.inference_mode(False), self.unrecorded(), self.exact():
                return math.fsum(self._sums(self.loss, self._output(batch), batch).weight for batch in self.batches())

        return self.within_memory(sweep)

    def _slopes(self, loss: Loss, weight: float, bfloat16: bool) -> tuple[Tensor, Tensor]:
        shares = []
        self.flat.gradient.zero_()
        with torch.enable_grad(), self.exact():
            for batch in self.batches():
                sums = self._sums(loss, self._output(batch, bfloat16), batch)
                with self.context(False):
                    torch.autograd.backward(sums.total / weight, inputs=self.flat.moving)
                shares.append(sums.exact / weight)
        return torch.stack(shares), self.flat.gradient.isfinite().all().double()

    def _output(self, batch: Batch, bfloat16: bool = False) -> Any:
        """The output for a batch, in the replica's precision: what the loss takes.

        Raises:
            ValueError: It is not one output for each sample.
        """
        with self.context(bfloat16):
            output = self.flat.run(batch.inputs)
        if not isinstance(output, Tensor):
            return trees.cast(output, self.flat.theta.dtype) if bfloat16 else output
        if batch.cuttable and output.shape[:1] != (batch.size,):
            raise ValueError(
                f"the model must return one output per sample, got shape {tuple(output.shape)} for a batch of "
                f"{batch.size}: make its first dimension that of the samples"
            )
        return output.to(self.flat.theta.dtype) if output.is_floating_point() else output

    def _sums(self, loss: Loss, output: Any, batch: Batch) -> Sums:
        """The loss of a batch."""
        with self.context(False):
            return loss.sums(output, batch.targets)

    # What a pass is judged by.

    def mean(self, shares: Tensor) -> Tensor:
        """Add the batches up, 0-d float64.

        Raises:
            FloatingPointError: The sum is NaN or infinite; the message names the first batch that has one.
        """
        value = shares.sum()
        if not math.isfinite(hardware.read(value[None])[0]):
            bad = int((~shares.isfinite()).nonzero()[0]) if not shares.isfinite().all() else 0
            first, last = self._ends[bad], self._ends[bad + 1] - 1
            raise FloatingPointError(
                f"the loss is {float(shares[bad])} in samples {first}..{last} (batch {bad + 1} of {len(shares)}): "
                "check their inputs and targets, and the model's weights"
            )
        return value

    def refuse_gradient(self, value: float, shares: Tensor) -> None:
        """Say where the last gradient, or its loss, is not finite.

        Raises:
            FloatingPointError: Always.
        """
        self.mean(shares)
        parts = zip(self.flat.names, (parameter.grad for parameter in self.flat.moving), strict=True)
        bad = next(name for name, part in parts if part is None or not part.isfinite().all())
        raise FloatingPointError(
            f"the loss is {value}, but its gradient with respect to {bad!r} is NaN or infinite: look for a "
            "square root or a logarithm at zero in the model or the loss"
        )

    def set_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Give the replica other buffers.

        Args:
            buffers: Name to value; those not named stay as they are.

        Raises:
            ValueError: The model has no such buffer, or one of another shape.
        """
        own = dict(self.flat.module.named_buffers())
        for name, value in buffers.items():
            if name not in own or own[name].shape != value.shape:
                raise ValueError(f"the model has no buffer {name!r} of shape {tuple(value.shape)}")
            with torch.no_grad():
                own[name].copy_(value)

    # Precision and memory.

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """One function in every pass: full float32, kernels that repeat their bits, and no fast path of attention."""
        slow = NoFastPath() if self._has_fast_path else contextlib.nullcontext()
        with hardware.full_float32(self.device.type), hardware.repeatable(self.device.type), slow:
            yield

    def unrecorded(self) -> torch.set_grad_enabled:
        """No graph, unless the model differentiates inside its forward pass and needs one."""
        return torch.set_grad_enabled(self.needs_grad)

    def context(self, bfloat16: bool) -> torch.autocast:
        """The precision of one pass, whatever the caller's autocast is."""
        # Inside a caller's autocast its cache would outlive the pass, and with it the parameters of another point.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False)

    def within_memory(self, work: Callable[[], Result]) -> Result:
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
            if not self.data.cuttable:
                raise MemoryError(
                    f"a batch of {self.batch_size} samples does not fit in the memory of {self.device}, and it cannot "
                    "be cut: let the loader make smaller ones"
                )
            if self.coupled:
                remedy = ", or batch_norm='eval'" if self.flat.takes_statistics else ""
                raise MemoryError(
                    f"a batch of {self.batch_size} samples does not fit in the memory of {self.device}, and with "
                    f"{self.coupling} another size is another function: pass a smaller batch_size{remedy}"
                )
            if self.batch_size == 1:
                raise MemoryError(
                    f"not even one sample fits in the memory of {self.device}: free some of it, pass device='cpu', or "
                    "evaluate a smaller model"
                )
            self._shrink(self.batch_size // 2)

    def note(self, beginning: str, rest: str) -> None:
        """Write down a fact, in place of what an earlier note of this beginning said."""
        kept = [note for note in self.notes if not note.startswith(beginning)]
        self.notes[:] = [*kept, beginning + rest]  # in place: parts share the list

    def _empty(self) -> None:
        """Free the memory of graphs, also of what this is a part of, and what torch keeps."""
        self.graphs.drop()
        if self._whole is not None:
            self._whole._empty()
        hardware.release(self.device)

    def _shrink(self, batch_size: int) -> None:
        """Make micro-batches no larger than this, also those of what this is a part of."""
        self.batch_size = min(self.batch_size, batch_size)
        self.few_samples = min(self.few_samples, batch_size)
        self.note(HALVED, f"micro-batches were halved, to {batch_size} samples")
        if self._whole is not None:
            self._whole._shrink(batch_size)
