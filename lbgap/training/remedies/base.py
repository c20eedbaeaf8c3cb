"""What every remedy shares: the places where it may change a training, and what it sees of it there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lbgap.checks import json_value, real, whole
from lbgap.datasets import Split
from lbgap.problem.loss import Loss
from lbgap.system.device import scalars_on_host
from lbgap.training.batches import REMEDY, derive_seed

Evaluate = Callable[[], Tensor]
"""Sets the gradient of the batch at the current parameters, and returns its summed loss, float64."""


class Role(Enum):
    """A place in the training; no two remedies may take the same. The value completes "both ...".

    Their order tells the random numbers of one from those of another: new ones come last.
    """

    INPUTS = "change the inputs of a batch"
    LOSS = "choose the loss of a batch"
    GRADIENT = "choose where the gradient is taken"
    STEPS = "choose the steps of a batch"
    SIZE = "choose the size of the batches"
    RATE = "choose the learning rate"
    NORM = "choose over which samples batch-norm normalises"
    RESULT = "choose the point that is returned"


@dataclass
class Task:
    """What a remedy sees of a training.

    Attributes:
        model: The copy that is trained.
        loss: What is lowered.
        optimizer: Over the trainable parameters.
        parameters: These, tied ones once.
        train: The training set, on the device.
        batch_size: Samples in a batch, as the training was asked for.
        epochs: How many, or ``None`` if that is not fixed.
        seed: Of the training.
        device: Where everything is.
        tensors: What a remedy carries from epoch to epoch, by name; part of ``state.safetensors``.
        workspace: What a remedy holds within an epoch, by its name; gone at the end.
        epoch: The current one, from 1.
        size: Samples in a batch of it.
    """

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    parameters: list[Parameter]
    train: Split
    batch_size: int
    epochs: int | None
    seed: int
    device: torch.device
    tensors: dict[str, Tensor] = field(default_factory=dict)
    workspace: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    size: int = 0
    _generators: dict[Role, torch.Generator] = field(default_factory=dict)

    def begin(self, epoch: int) -> None:
        """Enter an epoch, which has random draws of its own.

        Args:
            epoch: From 1.
        """
        self.epoch = epoch
        self.workspace.clear()
        self._generators.clear()

    def generator(self, role: Role) -> torch.Generator:
        """The random numbers of a role in this epoch, on the device; no other draws are changed by them."""
        if role not in self._generators:
            seed = derive_seed(self.seed, self.epoch, REMEDY + list(Role).index(role))
            self._generators[role] = torch.Generator(self.device).manual_seed(seed)
        return self._generators[role]

    def batch_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, differentiable.

        Args:
            inputs: Of the batch; not changed, even where the model begins with an operation in place.
            targets: Of the batch.
        """
        return self.loss.mean(self.model(inputs.clone()), targets)

    @contextmanager
    def untraced(self) -> Iterator[None]:
        """Forward passes that leave no trace in the buffers, such as running statistics.

        The buffers are exchanged for copies rather than put back, for a graph of an earlier pass may hold them.
        """
        held = [(module, dict(module._buffers)) for module in self.model.modules() if module._buffers]
        try:
            for module, buffers in held:
                module._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
            yield
        finally:
            for module, buffers in held:
                module._buffers.update(buffers)

    def batch_norms(self) -> list[_BatchNorm]:
        """The layers of batch normalisation in the model."""
        return [module for module in self.model.modules() if isinstance(module, _BatchNorm)]


class Remedy:
    """Changes a training at the places named by ``roles``; the base changes nothing.

    Subclasses are frozen dataclasses of plain settings. What they carry from epoch to epoch is in ``Task.tensors``,
    and their random draws follow from seed and epoch, so that a training resumes to the same bits.

    Attributes:
        name: What the command line calls it.
        roles: The places that it takes.
    """

    name: ClassVar[str] = ""
    roles: ClassVar[tuple[Role, ...]] = ()

    @classmethod
    def keys(cls) -> list[str]:
        """The settings that the command line may name."""
        return [entry.name for entry in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @classmethod
    def from_text(cls, options: Mapping[str, Any]) -> Self:
        """Build it from what the command line says.

        Args:
            options: Its settings by name, parsed as numbers, booleans, tuples or strings.

        Returns:
            The remedy.

        Raises:
            TypeError: A setting is of the wrong kind.
            ValueError: A setting is out of range.
        """
        return cls(**options)

    def _whole(self, key: str, least: int) -> int:
        """Check a setting that is an integer, and keep it as ``int``."""
        value = whole(f"{key} of {self.name}", getattr(self, key), least)
        object.__setattr__(self, key, value)
        return value

    def _real(self, key: str, *, positive: bool) -> float:
        """Check a setting that is a finite number, positive or not negative, and keep it as ``float``."""
        value = real(f"{key} of {self.name}", getattr(self, key), positive=positive)
        object.__setattr__(self, key, value)
        return value

    def settings(self) -> dict[str, Any]:
        """Its settings, as ``config.json`` records them.

        Returns:
            Plain values by name.
        """
        return {name: json_value(name, getattr(self, name)) for name in self.keys()}

    def check(self, task: Task) -> None:
        """Refuse a training that it does not fit, and lay out what it carries.

        Args:
            task: Before the first epoch.

        Raises:
            TypeError: The data are of the wrong kind.
            ValueError: It does not fit.
        """

    def batch_size(self, task: Task) -> int:
        """Samples in a batch of the current epoch."""
        return task.batch_size

    def rate(self, task: Task, done: float) -> float:
        """By what to multiply the learning rate.

        Args:
            task: In the current epoch.
            done: Share of the epoch before this batch.
        """
        return 1.0

    def surroundings(self, task: Task) -> AbstractContextManager[None]:
        """What surrounds the steps of an epoch."""
        return nullcontext()

    def inputs(self, task: Task, inputs: Tensor) -> Tensor:
        """The inputs of a batch that the training sees."""
        return inputs

    def batch_loss(self, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, as :meth:`Task.batch_loss`."""
        return task.batch_loss(inputs, targets)

    def gradient(self, task: Task, evaluate: Evaluate) -> Tensor:
        """Set the gradient of a batch.

        Args:
            task: In the current epoch.
            evaluate: Does so at the current parameters.

        Returns:
            The mean loss of the batch there, without a gradient.
        """
        return evaluate()

    def descend(self, task: Task, evaluate: Evaluate) -> Tensor:
        """Set the gradient of a batch and step, once or more often.

        Args:
            task: In the current epoch.
            evaluate: Sets the gradient.

        Returns:
            The mean loss of the batch before the first step, without a gradient.
        """
        value = evaluate()
        with scalars_on_host():
            task.optimizer.step()
        return value

    def end(self, task: Task) -> None:
        """Finish the current epoch, before it is measured."""

    def __str__(self) -> str:
        options = ",".join(f"{key}={_text(value)}" for key, value in self.settings().items() if value not in (None, []))
        return f"{self.name}:{options}" if options else self.name


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)
