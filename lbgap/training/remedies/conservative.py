"""Conservative training: several steps a batch, held near the iterate before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lbgap.system.device import scalars_on_host
from lbgap.training.remedies.base import Evaluate, Remedy, Role, Task


@dataclass(frozen=True)
class Conservative(Remedy):
    """x_{k+1} = argmin_x f_B(x) + lam / 2 |x - x_k|^2, inexactly (Keskar et al. 2016, appendix; Li et al. 2014).

    The minimum is approached by some steps of the training's own optimiser, by default the paper's ADAM, whose moments
    go on from batch to batch. (The paper does not say whether they do.) So a batch costs so many gradients.

    Attributes:
        lam: The weight of the distance, not negative; the paper's by default.
        iterations: Steps a batch; the paper's by default.
    """

    lam: float = 1e-3
    iterations: int = 3

    name: ClassVar[str] = "conservative"
    roles: ClassVar[tuple[Role, ...]] = (Role.STEPS,)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            TypeError: One of them is not a number.
            ValueError: One of them is out of range.
        """
        self._real("lam", positive=False)
        self._whole("iterations", 1)

    def descend(self, task: Task, evaluate: Evaluate) -> Tensor:
        """As :meth:`Remedy.descend`."""
        before = [parameter.detach().clone() for parameter in task.parameters]
        value = super().descend(task, evaluate)  # the first pull is zero
        for _ in range(self.iterations - 1):
            evaluate()
            with torch.no_grad():
                for parameter, anchor in zip(task.parameters, before, strict=True):
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter - anchor, alpha=self.lam)
            with scalars_on_host():
                task.optimizer.step()
        return value
