"""The steps of an epoch with remedies in their places."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor

from lbgap.training.checkpoint import State
from lbgap.training.descent import Descent
from lbgap.training.remedies.base import Remedy, Role, Task

_NONE = Remedy()


class Treated(Descent):
    """A descent that asks in each place the remedy that has taken it.

    Args:
        state: What the steps change; gets what the remedies carry from epoch to epoch.
        task: The training.
        remedies: No two of them in one place.

    Raises:
        TypeError: The data are of the wrong kind for a remedy.
        ValueError: A remedy does not fit the training.
    """

    def __init__(self, state: State, task: Task, remedies: Sequence[Remedy]) -> None:
        super().__init__(state, task.loss, task.batch_size)
        self._task = task
        self._taken = {role: remedy for remedy in remedies for role in remedy.roles}
        for remedy in remedies:
            remedy.check(task)
        state.remedies = task.tensors

    def _in(self, role: Role) -> Remedy:
        return self._taken.get(role, _NONE)

    def begin(self, epoch: int) -> int:
        """As :meth:`Descent.begin`."""
        self._task.begin(epoch)
        self._task.size = self._in(Role.SIZE).batch_size(self._task)
        return self._task.size

    def surroundings(self) -> AbstractContextManager[None]:
        """As :meth:`Descent.surroundings`."""
        return self._in(Role.NORM).surroundings(self._task)

    def step(self, inputs: Tensor, targets: Tensor, done: float) -> Tensor:
        """As :meth:`Descent.step`."""
        task = self._task
        if Role.RATE in self._taken:
            rate = task.optimizer.defaults["lr"] * self._in(Role.RATE).rate(task, done)
            for group in task.optimizer.param_groups:
                group["lr"] = rate
        inputs = self._in(Role.INPUTS).inputs(task, inputs)
        evaluate = partial(self._evaluate, inputs, targets)
        return self._in(Role.STEPS).descend(task, partial(self._in(Role.GRADIENT).gradient, task, evaluate))

    def _evaluate(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self._task.optimizer.zero_grad(set_to_none=True)
        mean = self._in(Role.LOSS).batch_loss(self._task, inputs, targets)
        mean.backward()
        return mean.detach()

    def end(self, epoch: int) -> None:
        """As :meth:`Descent.end`."""
        for role in (Role.STEPS, Role.RESULT):  # in this order, for the result may be a mean over where the steps end
            self._in(role).end(self._task)

    def metrics(self) -> dict[str, Any]:
        """As :meth:`Descent.metrics`."""
        noted: dict[str, Any] = {}
        if Role.SIZE in self._taken:
            noted["batch_size"] = self._task.size
        if Role.RATE in self._taken:
            noted["learning_rate"] = self._task.optimizer.param_groups[0]["lr"]
        return noted
