"""Several simulated workers that step by themselves and are averaged now and then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lbgap.training.remedies.base import Evaluate, Remedy, Role, Task


@dataclass
class _Worker:
    """The iterate of a worker and its optimiser's state, parameter by parameter."""

    values: list[Tensor]
    states: list[dict[str, Any]]


@dataclass
class _Round:
    """The steps between two averagings: where they began, and the workers that have stepped so far."""

    begin: _Worker
    batches: int = 0
    workers: list[_Worker] = field(default_factory=list)


@dataclass(frozen=True)
class LocalSGD(Remedy):
    """Local steps of several workers, then their mean (Lin et al. 2020, arXiv 1808.07217), one after the other.

    They are simulated: the batches go to the workers in turn, so that ``batch_size`` is that of one worker; a batch of
    all of them together would be ``workers`` times as large. After ``steps`` steps of each, and at the end of each
    epoch, those that have stepped are averaged: the iterates, and the moments of the optimiser (as Yu et al. 2019,
    arXiv 1905.03817, average momentum). Counts of steps are those of the first. The running statistics of batch-norm
    see all batches.

    Attributes:
        workers: How many, 2 or more.
        steps: Steps of each between two averagings.
    """

    workers: int = 4
    steps: int = 8

    name: ClassVar[str] = "local-sgd"
    roles: ClassVar[tuple[Role, ...]] = (Role.STEPS,)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            TypeError: One of them is not an integer.
            ValueError: One of them is out of range.
        """
        self._whole("workers", 2)
        self._whole("steps", 1)

    def descend(self, task: Task, evaluate: Evaluate) -> Tensor:
        """As :meth:`Remedy.descend`."""
        if self.name not in task.workspace:
            task.workspace[self.name] = _Round(_held(task))
        now: _Round = task.workspace[self.name]
        turn = now.batches % self.workers
        if turn == len(now.workers):
            now.workers.append(_copy(now.begin))
        _hand_over(task, now.workers[turn])
        value = super().descend(task, evaluate)
        now.workers[turn] = _held(task)
        now.batches += 1
        if now.batches == self.workers * self.steps:
            self.end(task)
        return value

    def end(self, task: Task) -> None:
        """As :meth:`Remedy.end`: average."""
        if self.name not in task.workspace:
            return
        now: _Round = task.workspace.pop(self.name)
        with torch.no_grad():
            for index, value in enumerate(now.begin.values):
                value.copy_(_mean([worker.values[index] for worker in now.workers]))
        states = [
            _mean_state([worker.states[index] for worker in now.workers]) for index in range(len(task.parameters))
        ]
        _hand_over(task, _Worker(now.begin.values, states))


def _held(task: Task) -> _Worker:
    states = [task.optimizer.state.get(parameter, {}) for parameter in task.parameters]
    return _Worker([parameter.data for parameter in task.parameters], states)


def _copy(worker: _Worker) -> _Worker:
    states = [
        {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
        for state in worker.states
    ]
    return _Worker([value.clone() for value in worker.values], states)


def _hand_over(task: Task, worker: _Worker) -> None:
    """Let model and optimiser work on what a worker holds."""
    for parameter, value, state in zip(task.parameters, worker.values, worker.states, strict=True):
        parameter.data = value
        if state:
            task.optimizer.state[parameter] = state
        else:  # not yet begun, or a parameter without a gradient
            task.optimizer.state.pop(parameter, None)


def _mean(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).mean(0)


def _mean_state(states: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for state in states for key in state):
        values = [state[key] for state in states if key in state]  # a parameter may get no gradient at some of them
        first = values[0]
        moment = isinstance(first, Tensor) and first.dim() > 0 and first.is_floating_point()
        found[key] = _mean(values) if moment else first
    return found
