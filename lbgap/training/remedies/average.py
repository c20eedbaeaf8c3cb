"""The mean of the iterates instead of the last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.optim.swa_utils import update_bn

from lbgap.checks import is_whole
from lbgap.training.batches import split_batches
from lbgap.training.remedies.base import Remedy, Role, Task


@dataclass(frozen=True)
class SWA(Remedy):
    """Stochastic weight averaging: the mean of iterates of the last epochs (Izmailov et al. 2018, arXiv 1803.05407).

    Needs a fixed number of epochs. The metrics of all epochs but the last are those of the iterates; after the last one
    the model is the mean, with the statistics of its batch-norm layers estimated anew on the training set, and so are
    its metrics and what a folder keeps of that epoch. The learning rate is that of the training: theirs is larger at
    the end, or cyclic.

    Attributes:
        start: The first epoch that counts; a float in [0, 1) is the share of the epochs before it, three quarters by
            default, as in their experiments.
        every: Take each so many epochs.
    """

    start: int | float = 0.75
    every: int = 1

    name: ClassVar[str] = "swa"
    roles: ClassVar[tuple[Role, ...]] = (Role.RESULT,)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            TypeError: One of them is not a number.
            ValueError: One of them is out of range.
        """
        if is_whole(self.start):
            self._whole("start", 1)
        elif self._real("start", positive=False) >= 1:
            raise ValueError(f"start of swa must be an epoch (an int) or a share in [0, 1), got {self.start}")
        self._whole("every", 1)

    def _first(self, epochs: int) -> int:
        return self.start if isinstance(self.start, int) else int(self.start * epochs) + 1

    def check(self, task: Task) -> None:
        """As :meth:`Remedy.check`."""
        if task.epochs is None:
            raise ValueError("swa needs a fixed number of epochs: pass epochs (--epochs)")
        if self._first(task.epochs) > task.epochs:
            raise ValueError(f"swa starts at epoch {self.start}, but there are only {task.epochs}: start it earlier")
        task.tensors["count"] = torch.zeros((), dtype=torch.int64, device=task.device)
        for name, parameter in task.model.named_parameters():
            if parameter.requires_grad:
                task.tensors[f"mean.{name}"] = torch.zeros_like(parameter, requires_grad=False)

    def end(self, task: Task) -> None:
        """As :meth:`Remedy.end`."""
        assert task.epochs is not None
        since = task.epoch - self._first(task.epochs)
        means = {name.removeprefix("mean."): value for name, value in task.tensors.items() if name != "count"}
        trained = {name: value.detach() for name, value in task.model.named_parameters() if name in means}
        if since >= 0 and since % self.every == 0:
            count = task.tensors["count"].add_(1)
            for name, mean in means.items():
                mean += (trained[name] - mean) / count
        if task.epoch == task.epochs:
            for name, mean in means.items():
                trained[name].copy_(mean)
            self._estimate(task)

    def _estimate(self, task: Task) -> None:
        """Batch-norm's running statistics as the mean over the batches of one pass."""
        with torch.no_grad():
            update_bn((batch.clone() for batch in split_batches(task.train.inputs, task.size)), task.model)
