"""Batch sizes and learning rates that change during a training or follow from each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from lbgap.checks import Amount, amount, several, whole
from lbgap.training.batches import resolve_batch_size
from lbgap.training.remedies.base import Remedy, Role, Task


@dataclass(frozen=True)
class Batches(Remedy):
    """Another batch size from given epochs on, such as a small batch first, then a large one.

    Keskar et al. 2016, section 4 and figure 5, where LB training starts from the iterates of SB training. Here the
    optimiser goes on with its moments.

    Attributes:
        sizes: Batch sizes by the epoch from which they hold, from 2 on, as ``batch_size`` of the training: an int
            counts samples, a float in (0, 1] or ``"10%"`` is a share of the training set. Kept as pairs.
    """

    sizes: Mapping[int, Amount] | tuple[tuple[int, int | float], ...]

    name: ClassVar[str] = "batches"
    roles: ClassVar[tuple[Role, ...]] = (Role.SIZE,)

    def __post_init__(self) -> None:
        """Check the epochs, and put them in order.

        Raises:
            TypeError: An epoch or a size is not a number.
            ValueError: There is none, or one is out of range.
        """
        pairs = self.sizes.items() if isinstance(self.sizes, Mapping) else self.sizes
        if not isinstance(self.sizes, Mapping | tuple) or not self.sizes:
            raise ValueError(
                "batches needs a batch size by epoch, as {51: 0.1} or on the command line batches:51=10%, got "
                f"{self.sizes!r}"
            )
        sizes = {whole("an epoch of batches", epoch, 2): amount("a size of batches", size) for epoch, size in pairs}
        object.__setattr__(self, "sizes", tuple(sorted(sizes.items())))

    @classmethod
    def keys(cls) -> list[str]:
        """None: the command line names epochs."""
        return []

    @classmethod
    def from_text(cls, options: Mapping[str, Any]) -> Self:
        """As :meth:`Remedy.from_text`; the epochs are the names."""
        wrong = [epoch for epoch in options if not (epoch.isascii() and epoch.isdigit())]
        if wrong:
            raise ValueError(f"batches needs sizes by epoch, such as batches:51=10%, got {wrong[0]!r}")
        return cls({int(epoch): size for epoch, size in options.items()})

    def settings(self) -> dict[str, Any]:
        """As :meth:`Remedy.settings`: the sizes by epoch."""
        return {str(epoch): size for epoch, size in self._pairs()}

    def _pairs(self) -> tuple[tuple[int, int | float], ...]:
        assert isinstance(self.sizes, tuple)
        return self.sizes

    def check(self, task: Task) -> None:
        """As :meth:`Remedy.check`."""
        for epoch, size in self._pairs():
            try:
                resolve_batch_size(size, len(task.train.inputs))
            except (TypeError, ValueError) as error:
                raise type(error)(f"batches, from epoch {epoch}: {error}") from None

    def batch_size(self, task: Task) -> int:
        """As :meth:`Remedy.batch_size`."""
        due = [size for epoch, size in self._pairs() if epoch <= task.epoch]
        return resolve_batch_size(due[-1], len(task.train.inputs)) if due else task.batch_size


@dataclass(frozen=True)
class Grow(Remedy):
    """Grow the batch where one would lower the learning rate (Smith et al. 2018, arXiv 1711.00489).

    Once the batch has reached its limit, the rate falls instead, so that the noise scale of a step, proportional to
    rate / batch, follows the same course throughout.

    Attributes:
        every: Grow after each so many epochs.
        at: Or before these epochs, counted from 1; one of the two is needed.
        factor: By what, greater than 1.
        limit: The largest batch, as ``batch_size`` of the training; a tenth of the training set by default, as in their
            paper.
    """

    every: int | None = None
    at: tuple[int, ...] = ()
    factor: float = 2.0
    limit: Amount = 0.1

    name: ClassVar[str] = "grow"
    roles: ClassVar[tuple[Role, ...]] = (Role.SIZE, Role.RATE)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TypeError: One of them is not a number.
            ValueError: One of them is out of range.
        """
        at = several(self.at) or ([] if self.at == () else [self.at])
        object.__setattr__(self, "at", tuple(sorted(whole("an epoch in `at` of grow", epoch, 2) for epoch in at)))
        if (self.every is None) == (not self.at):
            raise ValueError("grow needs either every=N epochs or the epochs `at` which it grows (grow:every=30)")
        if self.every is not None:
            self._whole("every", 1)
        object.__setattr__(self, "limit", amount("limit of grow", self.limit))
        if self._real("factor", positive=True) <= 1:
            raise ValueError(f"factor of grow must be greater than 1, got {self.factor}")

    def check(self, task: Task) -> None:
        """As :meth:`Remedy.check`."""
        try:
            limit = resolve_batch_size(self.limit, len(task.train.inputs))
        except (TypeError, ValueError) as error:
            raise type(error)(f"limit of grow: {error}") from None
        if limit <= task.batch_size:
            raise ValueError(
                f"limit of grow is {limit} samples, which must be more than batch_size, {task.batch_size}: "
                "raise the one or lower the other"
            )

    def _wanted(self, task: Task) -> float:
        times = sum(epoch <= task.epoch for epoch in self.at)
        if self.every is not None:
            times = (task.epoch - 1) // self.every
        growth = times * math.log(self.factor)  # a factor to the power of an epoch may overflow
        return task.batch_size * (self.factor**times if growth < 500 else math.inf)

    def batch_size(self, task: Task) -> int:
        """As :meth:`Remedy.batch_size`."""
        return round(min(self._wanted(task), resolve_batch_size(self.limit, len(task.train.inputs))))

    def rate(self, task: Task, done: float) -> float:
        """As :meth:`Remedy.rate`."""
        wanted = self._wanted(task)
        limit = resolve_batch_size(self.limit, len(task.train.inputs))
        return 1.0 if wanted <= limit else limit / wanted


@dataclass(frozen=True)
class LinearRate(Remedy):
    """A learning rate proportional to the batch size, with warm-up (Goyal et al. 2017, sections 2.1 and 2.2).

    ``learning_rate`` is that of batches of ``reference``. The rate climbs from it linearly, from batch to batch, over
    the epochs of the warm-up to batch size / reference times it.

    Attributes:
        reference: The batch size for which ``learning_rate`` was chosen; their 256 by default.
        warmup: Epochs of warm-up, their 5 by default; 0 for none.
    """

    reference: int = 256
    warmup: int = 5

    name: ClassVar[str] = "linear-rate"
    roles: ClassVar[tuple[Role, ...]] = (Role.RATE,)
    power: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            TypeError: One of them is not an integer.
            ValueError: One of them is out of range.
        """
        self._whole("reference", 1)
        self._whole("warmup", 0)

    def rate(self, task: Task, done: float) -> float:
        """As :meth:`Remedy.rate`."""
        scale = float((task.size / self.reference) ** self.power)
        share = min(1.0, (task.epoch - 1 + done) / self.warmup) if self.warmup else 1.0
        return 1.0 + share * (scale - 1.0)


@dataclass(frozen=True)
class SqrtRate(LinearRate):
    """A learning rate proportional to the square root of the batch size (Hoffer et al. 2017, arXiv 1705.08741).

    It keeps the covariance of a step of SGD the same for all batch sizes.

    Attributes:
        reference: The batch size for which ``learning_rate`` was chosen; their 128 by default.
        warmup: Epochs of warm-up, as of :class:`LinearRate`.
    """

    reference: int = 128
    warmup: int = 0

    name: ClassVar[str] = "sqrt-rate"
    power: ClassVar[float] = 0.5
