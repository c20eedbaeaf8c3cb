"""The loss at combinations of a few vectors: what lines, curves and planes share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lbgap.landscape.given import Given
from lbgap.objective import Objective

Pairs = list[tuple[float, float]]


class Combined:
    """The loss at combinations of a few vectors, the ends, on one or two data sets.

    Attributes:
        objectives: One for each data set, the training data's first.
        mode: What batch-norm does, one of :data:`lbgap.landscape.given.MODES`.
        ends: ``(j, n)``.
        buffers: The buffers that are combined with the same coefficients; see ``Objective.combination_losses``.
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

    def at(self, rows: Tensor) -> list[Pairs]:
        """Loss and accuracy at each row of coefficients ``(k, j)``, on each data set; accuracies may be NaN."""
        found: list[Pairs] = [[] for _ in self.objectives]
        for some in rows.split(1) if self.recalibrates else [rows]:
            if self.recalibrates:
                self._recalibrate(some)
            for objective, pairs in zip(self.objectives, found, strict=True):
                pairs += self._block(objective, some)
        return found

    def _block(self, objective: Objective, rows: Tensor) -> Pairs:
        losses, accuracies = objective.combination_losses(
            rows, self.ends, buffers=self.buffers, accuracy=objective.classes is not None
        )
        shown = [math.nan] * len(rows) if accuracies is None else accuracies.tolist()
        return list(zip(losses.tolist(), shown, strict=True))

    def _recalibrate(self, row: Tensor) -> None:
        """Give all objectives, none of which is the caller's, the statistics of the training data at one point."""
        point = (row.to(self.ends.device) @ self.ends.double())[0].to(self.ends)
        statistics = self.objectives[0].statistics(point)
        for objective in self.objectives:
            objective.set_buffers(statistics)

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
        few = self.objectives[0].few()
        options = {**self._given.options, "batch_size": few.size, "device": self.ends.device}
        if options.get("precision") == "mixed":
            options["precision"] = "float32"
        own = [Objective(model, few, batch_norm=self._given.within, **options) for _, _, model in models]
        found, _ = own[0].combination_losses(
            torch.eye(len(self.ends))[: len(models)], self.ends.to(own[0].dtype), buffers=self.buffers
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
        if first.has_batch_norm:
            found["batch_norm"] = self.mode
        if len(self.objectives) > 1:
            test = self.objectives[1]
            found |= {"test_samples": test.samples, "test_batch_size": test.batch_size}
        return found
