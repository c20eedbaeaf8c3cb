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
from lbgap.training.batches import NOISE, derive_seed, epoch_batches, private_rng
from lbgap.training.checkpoint import State
from lbgap.training.descent import Descent
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
    """

    state: State
    loss: Loss
    train: Split
    test: Split | None
    descent: Descent
    seed: int
    device: torch.device
    test_loss: Loss = field(init=False)

    def check(self, original: nn.Module) -> None:
        """Run a few samples through model and loss, in evaluation mode.

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
        if watch.found:
            raise ValueError(OUTSIDE.format(name=next(iter(watch.found))))

    def _check_split(self, split: Split, name: str, watch: Watch) -> Loss:
        """Returns the loss as it fits a split."""
        # Clones, for a model may begin with an operation in place, and the data are the user's.
        inputs, targets = (part[:PROBE_SAMPLES].clone() for part in split)
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
        if not loss.sums(output, targets).total.requires_grad:
            raise ValueError(
                "the loss does not depend on a trainable parameter: check that neither model nor loss "
                "detaches its output"
            )
        return loss

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
        ignored = self.loss.separable and not self.loss.even
        batches = ", or for batches whose targets are all ignored" if ignored else ""
        return f"lower learning_rate (now {rate:g}), or look for inputs that overflow the model{batches}"

    @torch.no_grad()
    def _measure(self, split: Split, prefix: str, loss: Loss) -> Metrics:
        """The loss and, for classification, accuracy in percent, over all samples in evaluation mode."""
        self.state.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        correct = torch.zeros((), dtype=torch.float64, device=self.device)
        weight, weights = loss.weight(split.targets), 0.0
        for inputs, targets in zip(*(torch.split(part, EVALUATION_BATCH) for part in split), strict=True):
            output = self.state.model(inputs.clone())
            if loss.classification:  # before the loss, which may overwrite the output
                correct += loss.correct(output, targets)
            sums = loss.sums(output, targets)
            total += sums.exact
            weights += sums.weight if weight is None else 0.0
        row: Metrics = {f"{prefix}_loss": _finite(float(total) / (weights if weight is None else weight))}
        if loss.classification:
            row[f"{prefix}_accuracy"] = 100.0 * int(correct) / loss.counted(split.targets)
        return row

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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _one_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
