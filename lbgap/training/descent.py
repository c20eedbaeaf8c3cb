"""The steps of an epoch: a gradient a batch and a step of the optimiser."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lbgap.problem.loss import Loss
from lbgap.system.device import scalars_on_host
from lbgap.training.checkpoint import State


@dataclass
class Descent:
    """What the loop asks at the places where a remedy may change something; here nothing is changed.

    Attributes:
        state: What the steps change.
        loss: What they lower.
        batch_size: Samples in a batch.
    """

    state: State
    loss: Loss
    batch_size: int

    def begin(self, epoch: int) -> int:
        """Prepare for an epoch.

        Args:
            epoch: From 1.

        Returns:
            Samples in a batch of it.
        """
        return self.batch_size

    def surroundings(self) -> AbstractContextManager[None]:
        """What surrounds the steps of an epoch."""
        return nullcontext()

    def step(self, inputs: Tensor, targets: Tensor, done: float) -> Tensor:
        """Take the step of a batch.

        Args:
            inputs: Of the batch, a copy that may be changed.
            targets: Of the batch.
            done: Share of the epoch before it.

        Returns:
            The mean loss of the batch before the step, 0-d, without a gradient.
        """
        self.state.optimizer.zero_grad(set_to_none=True)
        mean = self.loss.mean(self.state.model(inputs), targets)
        mean.backward()
        with scalars_on_host():
            self.state.optimizer.step()
        return mean.detach()

    def end(self, epoch: int) -> None:
        """Finish an epoch, before it is measured.

        Args:
            epoch: From 1.
        """

    def metrics(self) -> dict[str, Any]:
        """What to note of an epoch besides the measurements."""
        return {}
