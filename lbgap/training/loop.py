"""One epoch: steps over the batches, then the measurements over all samples."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lbgap.datasets import Split
from lbgap.problem.loss import Loss
from lbgap.replica import OUTSIDE, Watch, originals
from lbgap.training.batches import NOISE, derive_seed, epoch_batches, private_rng, split_batches
from lbgap.training.checkpoint import State
from lbgap.training.descent import Descent
from lbgap.training.pieces import adds_up, draw
from lbgap.training.progress import Metrics, Reporter

EVALUATION_BATCH = 512  # a compromise: fills the cores with a small network, spares memory with a large one
PROBE_SAMPLES = 8


@dataclass
class Loop:
    """Trains a state epoch by epoch; what an epoch does follows from the state, the seed and its number.

    Attributes:
        state: What the epochs change.
        loss: What they lower; once checked, fitted to the training set.
        train: The training set, on the device.
        test: The test set, on the device, or ``None``.
        descent: The steps of an epoch.
        seed: Of the order of the samples and of dropout.
        device: Where everything is.
        test_loss: The loss, fitted to the test set, once checked.
        one_size: Whether model or loss take batches of the training's size, but not a few samples, once checked.
        coupled: Whether the loss of samples does not add up from pieces, once checked: then a measurement is the mean
            over batches of the training's size, each counted by its samples.
    """

    state: State
    loss: Loss
    train: Split
    test: Split | None
    descent: Descent
    seed: int
    device: torch.device
    test_loss: Loss = field(init=False)
    one_size: bool = False
    coupled: bool = False

    def check(self, original: nn.Module) -> None:
        """Run a few samples through model and loss, in evaluation mode; a whole batch where they do not take a few.

        Args:
            original: What the model is a copy of.

        Raises:
            TypeError: The model or the loss returns something else than a tensor, or the targets have the
                wrong kind of dtype.
            ValueError: Data, model and loss do not fit together, the loss has no gradient, or the model computes with
                the original's parameters.
        """
        self.state.model.eval()
        watch = Watch(originals(original))
        with self.surroundings(0):
            self.loss = self._check_split(self.train, "data", watch)
            self.descent.loss = self.loss
            if self.test is not None:
                self.test_loss = self._check_split(self.test, "test_data", watch)
            if not watch.found:
                tested = [] if self.test is None else [(self.test, self.test_loss)]
                self.coupled = any(self._couples(*pair) for pair in [(self.train, self.loss), *tested])
        if watch.found:
            raise ValueError(OUTSIDE.format(name=next(iter(watch.found))))

    def _check_split(self, split: Split, name: str, watch: Watch) -> Loss:
        """Returns the loss as it fits a split."""
        size, samples = self.descent.batch_size, len(split.inputs)
        try:
            return self._probe(split, name, watch, PROBE_SAMPLES)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if min(size, samples) == min(PROBE_SAMPLES, samples):
                raise
            try:
                loss = self._probe(split, name, watch, size)
            except torch.OutOfMemoryError:
                raise
            except Exception:
                raise error from error.__cause__
        self.one_size = True
        last = len(split_batches(split.inputs, size)[-1])
        if last != min(size, samples):
            try:
                with torch.no_grad():
                    loss.sums(self.state.model(split.inputs[-last:].clone()), split.targets[-last:].clone())
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                raise ValueError(
                    f"{samples} samples of {name} in batches of {size} leave a last one of {last}, which the model or "
                    f"the loss does not take ({_one_line(error)}): choose a batch_size that divides {samples}, or pass "
                    "fewer samples"
                ) from error
        return loss

    def _probe(self, split: Split, name: str, watch: Watch, samples: int) -> Loss:
        """Run the first samples of a split; returns the loss as it fits them all."""
        # Clones, for a model may begin with an operation in place, and the data are the user's.
        inputs, targets = (part[:samples].clone() for part in split)
        try:
            with watch:
                output = self.state.model(inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"the model does not accept {name} of shape {tuple(split.inputs.shape)}, {inputs.dtype}: "
                f"{_one_line(error)}"
            ) from error
        loss = self.loss.check(output, split.targets)
        if output.dim() == 0 or len(output) != len(inputs):
            raise ValueError(
                f"the model returned shape {tuple(output.shape)} for {len(inputs)} samples of {name}: "
                "it must return one output for each sample"
            )
        if loss.weighs and not _counts(loss, output, split.targets):
            raise ValueError(
                f"the loss {loss.name!r} returns the weight 0 for all samples of {name}: pass samples that count"
            )
        if not loss.sums(output, targets).total.requires_grad:
            raise ValueError(
                "the loss does not depend on a trainable parameter: check that neither model nor loss "
                "detaches its output"
            )
        return loss

    @torch.no_grad()
    def _couples(self, split: Split, loss: Loss) -> bool:
        """Whether the loss is a mean of a callable that does not add up from pieces of a split."""
        if loss.separable or loss.weighs:
            return False
        if self.one_size:
            return True
        rows = draw(split.targets, self.state.model(split.inputs[:PROBE_SAMPLES].clone())[:1].numel())
        return not adds_up(loss, self.state.model(split.inputs[rows]), split.targets[rows])

    def epoch(self, number: int, reporter: Reporter) -> Metrics:
        """Train for one epoch and measure.

        Args:
            number: The epoch, from 1.
            reporter: Told after each batch.

        Returns:
            The metrics of the epoch, as :class:`lbgap.training.Run` describes them.

        Raises:
            FloatingPointError: The loss is NaN or infinite.
        """
        begun = time.perf_counter()
        with self.surroundings(number):
            self.descend(number, reporter)
            self.descent.end(number)
            row = self.measured(number)
        row["seconds"] = time.perf_counter() - begun
        return row

    def measured(self, number: int) -> Metrics:
        """Measure what an epoch has come to.

        Args:
            number: The epoch, from 1.

        Returns:
            The metrics, but for ``seconds``.

        Raises:
            FloatingPointError: The loss is NaN or infinite.
        """
        row: Metrics = {"epoch": number, **self._measure(self.train, "train", self.loss)}
        if row["train_loss"] is None:
            raise FloatingPointError(f"the training loss is not finite after epoch {number}: {self._advice()}")
        if self.test is not None:
            row |= self._measure(self.test, "test", self.test_loss)
        row["distance"] = self._distance()
        return row | self.descent.metrics()

    def descend(self, number: int, reporter: Reporter) -> None:
        """Take the steps of one epoch.

        Args:
            number: The epoch, from 1.
            reporter: Told after each batch.

        Raises:
            FloatingPointError: The loss of a batch is NaN or infinite.
        """
        losses: list[Tensor] = []
        self.state.model.train()
        batches = epoch_batches(len(self.train.inputs), self.descent.begin(number), self.seed, number)
        with self.descent.surroundings():
            for batch, samples in enumerate(batches):
                index = samples.to(self.device)
                done = batch / len(batches)
                loss = self.descent.step(self.train.inputs[index], self.train.targets[index], done)
                if self.device.type == "cpu":
                    self.check_finite([loss.item()], number, batch + 1, len(batches))
                else:  # a look at every value would stall the queue of a GPU
                    losses.append(loss)
                reporter.batch(number - 1 + (batch + 1) / len(batches))
        if losses:
            self.check_finite(torch.stack(losses).tolist(), number, 1, len(batches))

    def check_finite(self, losses: list[float], epoch: int, first: int, batches: int) -> None:
        """Refuse to go on after a loss that is not finite.

        Args:
            losses: Of batches that follow each other.
            epoch: From 1.
            first: The number of the first of these batches, from 1.
            batches: How many the epoch has.

        Raises:
            FloatingPointError: One is NaN or infinite.
        """
        for batch, value in enumerate(losses, first):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the training loss became {value} at epoch {epoch}, batch {batch} of {batches}: {self._advice()}"
                )

    def _advice(self) -> str:
        rate = self.state.optimizer.param_groups[0]["lr"]
        ignored = (self.loss.separable and not self.loss.even) or self.loss.weighs or self.coupled
        batches = ", or for batches whose targets are all ignored" if ignored else ""
        return f"lower learning_rate (now {rate:g}), or look for inputs that overflow the model{batches}"

    @torch.no_grad()
    def _measure(self, split: Split, prefix: str, loss: Loss) -> Metrics:
        """The loss and, for classification, accuracy in percent, over all samples in evaluation mode."""
        self.state.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        correct = torch.zeros((), dtype=torch.float64, device=self.device)
        weight, weights = loss.weight(split.targets), 0.0
        for inputs, targets in self._batches(split):
            output = self.state.model(inputs)
            if loss.classification:  # before the loss, which may overwrite the output
                correct += loss.correct(output, targets)
            sums = loss.sums(output, targets)
            total += sums.exact
            weights += sums.weight if weight is None else 0.0
        weights = weights if weight is None else weight
        row: Metrics = {f"{prefix}_loss": _finite(float(total) / weights if weights else math.nan)}
        if loss.classification:
            row[f"{prefix}_accuracy"] = 100.0 * int(correct) / loss.counted(split.targets)
        return row

    def _batches(self, split: Split) -> Iterator[Split]:
        """Copies of the samples in the batches of a measurement, drawn as a training's are where their size matters."""
        if self.coupled or self.one_size:  # the same at every epoch, of which the first is number 1
            for samples in epoch_batches(len(split.inputs), self.descent.batch_size, self.seed, 0):
                rows = samples.to(self.device)
                yield Split(split.inputs[rows], split.targets[rows])
        else:
            for inputs, targets in zip(*(torch.split(part, EVALUATION_BATCH) for part in split), strict=True):
                yield Split(inputs.clone(), targets)

    def notes(self) -> list[str]:
        """What whoever reads the metrics must know, sentences."""
        if not self.coupled:
            return []
        return [
            f"losses are means over batches of {self.descent.batch_size}, which the training lowers: the loss "
            f"{self.loss.name!r} does not add up from pieces of a batch"
        ]

    @torch.no_grad()
    def _distance(self) -> float | None:
        """Euclidean distance of the trainable parameters from the start, summed in float64."""
        square = torch.zeros((), dtype=torch.float64, device=self.device)
        for name, parameter in self.state.trainable().items():
            square += (parameter.double() - self.state.start[name].double()).square().sum()
        return _finite(math.sqrt(float(square)))

    @contextmanager
    def surroundings(self, epoch: int) -> Iterator[None]:
        """Random numbers and arithmetic that depend on nothing that the caller has set."""
        cudnn = torch.backends.cudnn
        deterministic, benchmark = cudnn.deterministic, cudnn.benchmark
        with private_rng(self.device, derive_seed(self.seed, epoch, NOISE)):
            try:
                if self.device.type == "cuda":
                    cudnn.deterministic, cudnn.benchmark = True, False
                with torch.autocast(self.device.type, enabled=False):
                    yield
            finally:
                if self.device.type == "cuda":
                    cudnn.deterministic, cudnn.benchmark = deterministic, benchmark


@torch.no_grad()
def _counts(loss: Loss, output: Tensor, targets: Tensor) -> bool:
    """Whether any of the targets has a weight, which follows from them alone: outputs of others serve."""
    parts = targets.split(len(output))
    return any(loss.sums(output[: len(part)].clone(), part.clone()).weight > 0 for part in parts)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _one_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
