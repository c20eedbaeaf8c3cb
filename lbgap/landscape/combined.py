"""The loss at combinations of a few vectors: what lines, curves and planes share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lbgap.landscape.buffers import differing_buffers
from lbgap.landscape.given import Given
from lbgap.landscape.spectral import NOTE, SpectralNorms
from lbgap.objective import Objective
from lbgap.objective.points.source import Combinations

Pairs = list[tuple[float, float]]


class Combined:
    """The loss at combinations of a few vectors, the ends, on one or two data sets.

    Attributes:
        objectives: One for each data set, the training data's first.
        mode: What batch-norm does, one of :data:`lbgap.landscape.given.MODES`.
        ends: ``(j, n)``.
        buffers: The buffers that are combined with the same coefficients; see ``Objective.combination_losses``.
        norms: The spectral norms, which are computed at each point.
    """

    ends: Tensor
    buffers: Mapping[str, Tensor]

    def __init__(self, given: Given, data: Any, test_data: Any) -> None:
        """Load the data.

        Args:
            given: Whose buffers and frozen parameters all points have.
            data: Training data; None where an objective was given.
            test_data: Test data, or None.

        Raises:
            ValueError: As :class:`lbgap.Objective`.
            TypeError: Likewise.
        """
        self._given, self.mode = given, given.batch_norm
        self.objectives = given.objectives(data, test_data)
        moving, own = given.options.get("parameters", "all"), given.options.get("call")
        self.norms = SpectralNorms(given.module, self.objectives[0], moving, own)
        self._before = self.objectives[0].evaluations

    @property
    def evaluations(self) -> float:
        """Passes over the training data since the beginning."""
        return self.objectives[0].evaluations - self._before

    @property
    def has_batch_norm(self) -> bool:
        """Whether the mode of batch-norm matters."""
        return self.objectives[0].has_batch_norm

    @property
    def recalibrates(self) -> bool:
        """Whether each point has statistics of its own, so that points are evaluated one by one."""
        return self.mode == "recalibrate" and self.has_batch_norm

    @property
    def one_by_one(self) -> bool:
        """Whether each point has buffers of its own."""
        return self.recalibrates or len(self.norms) > 0

    def at(self, rows: Tensor) -> list[Pairs]:
        """Loss and accuracy at each row of coefficients ``(k, j)``, on each data set; accuracies may be NaN."""
        found: list[Pairs] = [[] for _ in self.objectives]
        for some in rows.split(1) if self.one_by_one else [rows]:
            ends, buffers = self.ends, self.buffers
            if self.one_by_one:
                some, ends, buffers = self._alone(some)
            for objective, pairs in zip(self.objectives, found, strict=True):
                pairs += _losses(objective, some, ends, buffers)
        return found

    def _alone(self, row: Tensor) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        """One point as rows, ends and buffers, with the statistics or the spectral norms that are its own."""
        point = (row.to(self.ends.device) @ self.ends.double())[0].to(self.ends)
        if not self.norms:
            self._recalibrate(point)
            return row, self.ends, self.buffers
        buffers = self.buffers_at(row, point, self.buffers)
        if self.recalibrates:
            for objective in self.objectives:
                objective.set_buffers(buffers)
            self._recalibrate(point)
        return row.new_ones(1, 1), point[None], {name: value[None] for name, value in buffers.items()}

    def buffers_at(self, row: Tensor, point: Tensor, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The buffers of one point, in float64: those that are combined, and its spectral norms.

        Args:
            row: Coefficients, ``(1, j)``.
            point: ``(n,)``, what they make of the ends.
            buffers: Name to ``(j, *shape)``, combined with the same coefficients.
        """
        if not buffers and not self.norms:
            return {}
        placed = {name: value.to(point.device) for name, value in buffers.items()}
        combined = Combinations(row.to(point.device, torch.float64), point.expand(row.shape[1], -1), placed)
        return combined.buffers_at(0) | self.norms.at(point)

    @contextmanager
    def lent(self, objective: Objective) -> Iterator[None]:
        """An objective of the first end, whose buffers may be set inside, and which has its own again afterwards."""
        module = self._given.module
        try:
            yield
        finally:
            objective.set_buffers({name: module.get_buffer(name) for name in (*self.buffers, *self.norms.own)})

    def _recalibrate(self, point: Tensor) -> None:
        """Give all objectives, none of which is the caller's, the statistics of the training data at one point."""
        statistics = self.objectives[0].statistics(point)
        for objective in self.objectives:
            objective.set_buffers(statistics)

    def check_buffers(self, models: Sequence[nn.Module]) -> None:
        """Refuse buffers that make another function of each end, and have no value between them.

        Args:
            models: The ends.

        Raises:
            ValueError: There is one; the message names it.
        """
        others = differing_buffers(models, self.norms.own, self.ends.dtype)
        if others and self._enter(others):
            name = next((name for name, values in others.items() if self._enter({name: values})), next(iter(others)))
            raise ValueError(
                f"buffer {name!r} differs between the models and enters their loss, but is no statistic of batch-norm, "
                f"so that it has no value between them: make it the same in all, or fold it into the weights{_by(name)}"
            )

    def _enter(self, buffers: Mapping[str, Tensor]) -> bool:
        """Whether an end, or the point between all of them, has another training loss with buffers of another end."""
        one, count = torch.ones(1, 1, dtype=torch.float64, device="cpu"), len(self.ends)
        for end in (*self.ends, self.ends.mean(0)):
            losses = [
                self.objectives[0].combination_losses(
                    one, end[None], buffers={name: values[i, None] for name, values in buffers.items()}
                )[0]
                for i in range(count)
            ]
            if not all(torch.equal(loss.nan_to_num(), losses[0].nan_to_num()) for loss in losses[1:]):
                return True
        return False

    @property
    def own_statistics(self) -> bool:
        """Whether batch-norm makes of an end something else than its model."""
        return self.has_batch_norm and self.mode in ("freeze", "recalibrate")

    def compare(self, models: Sequence[tuple[str, str, nn.Module]]) -> None:
        """Compare the first ends with the models that they are, on a few samples of the training data.

        Args:
            models: Of each end: where it is, what it is called, and the model.

        Raises:
            ValueError: A model keeps more than its parameters and floating-point buffers.
        """
        few = self.objectives[0].ready()
        options = {**self._given.options, "batch_size": few.batch.size, "device": self.ends.device}
        if options.get("precision") == "mixed":
            options["precision"] = "float32"
        own = [Objective(model, few, batch_norm=self._given.within, **options) for _, _, model in models]
        found, _ = own[0].combination_losses(
            torch.eye(len(models), len(self.ends), dtype=torch.float32, device="cpu"),
            self.ends.to(own[0].dtype),
            buffers=self.buffers,
        )
        for (place, name, _), objective, value in zip(models, own, found, strict=True):
            expected = objective.losses(objective.theta[None])[0]
            if not torch.isclose(value, expected, rtol=1e-4, atol=1e-6, equal_nan=True):
                raise ValueError(
                    f"at {place} the loss of a few samples is {float(value):g}, but the {name} model's own is "
                    f"{float(expected):g}: it depends on more than parameters and floating-point buffers"
                )

    def settings(self) -> dict[str, Any]:
        """Everything that the values depend on."""
        first = self.objectives[0]
        found = first.settings()
        if self.norms:
            found["notes"] = [*found["notes"], NOTE]
        if first.has_batch_norm:
            found["batch_norm"] = self.mode
        if len(self.objectives) > 1:
            test = self.objectives[1]
            found |= {"test_samples": test.samples, "test_batch_size": test.batch_size}
        return found


def _by(buffer: str) -> str:
    """The function of torch that folds a buffer into the weights, for messages."""
    owner, _, name = buffer.rpartition(".")
    if name.endswith("_mask"):
        return f" by torch.nn.utils.prune.remove(module, {name.removesuffix('_mask')!r})"
    _, known, after = f".{owner}.".partition(".parametrizations.")
    if known:
        return f" by torch.nn.utils.parametrize.remove_parametrizations(module, {after.partition('.')[0]!r})"
    return ""


def _losses(objective: Objective, rows: Tensor, ends: Tensor, buffers: Mapping[str, Tensor]) -> Pairs:
    """Loss and accuracy at each row of coefficients."""
    losses, accuracies = objective.combination_losses(
        rows, ends, buffers=buffers, accuracy=objective.classes is not None
    )
    shown = [math.nan] * len(rows) if accuracies is None else accuracies.tolist()
    return list(zip(losses.tolist(), shown, strict=True))
