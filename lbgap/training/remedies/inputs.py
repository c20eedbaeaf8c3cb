"""Losses of a batch that look at perturbed inputs besides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lbgap.training.remedies.base import Remedy, Role, Task
from lbgap.training.remedies.displace import step_length


def _check_inputs(name: str, task: Task) -> None:
    if not task.train.inputs.is_floating_point():
        raise TypeError(f"{name} perturbs the inputs, which must be floating-point, got {task.train.inputs.dtype}")


def _draws(kind: Callable[..., Tensor], task: Task, inputs: Tensor) -> Tensor:
    """One draw an element; the same for models of all precisions, up to rounding."""
    found = kind(inputs.shape, generator=task.generator(Role.LOSS), dtype=torch.float32, device=task.device)
    return found.to(inputs.dtype)


@dataclass(frozen=True)
class Adversarial(Remedy):
    """Adversarial training: weight f(x) + (1 - weight) f(x_adv), over perturbations of the inputs |dx|_inf <= epsilon.

    With one step x_adv = x + epsilon sign(grad_x f), the fast gradient sign method (FGSM; Goodfellow et al. 2015,
    section 6). With more, projected gradient ascent from a random point of the box (PGD; Madry et al. 2018, section
    2.1); their robust training is ``weight=0``. Inputs may leave the range of the data. With a weight, the running
    statistics of batch-norm are those of the clean inputs.

    Attributes:
        epsilon: Half the width of the box, in the units of the inputs, positive.
        steps: Steps of the ascent.
        weight: Of the clean loss, in [0, 1); Goodfellow's one half by default.
        step_size: Of PGD; 2.5 epsilon / steps by default, at most epsilon.
    """

    epsilon: float
    steps: int = 1
    weight: float = 0.5
    step_size: float | None = None

    name: ClassVar[str] = "adversarial"
    roles: ClassVar[tuple[Role, ...]] = (Role.LOSS,)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            TypeError: One of them is not a number.
            ValueError: One of them is out of range.
        """
        self._real("epsilon", positive=True)
        self._whole("steps", 1)
        if self.step_size is not None:
            self._real("step_size", positive=True)
        if self._real("weight", positive=False) >= 1:
            raise ValueError(f"weight of adversarial is that of the clean loss, in [0, 1), got {self.weight}")

    def check(self, task: Task) -> None:
        """As :meth:`Remedy.check`."""
        _check_inputs(self.name, task)

    def batch_loss(self, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
        """As :meth:`Remedy.batch_loss`."""
        with task.untraced():
            worst = self._climb(task, inputs, targets)
        if not self.weight:
            return task.batch_loss(worst, targets)
        clean = task.batch_loss(inputs, targets)
        with task.untraced():
            attacked = task.batch_loss(worst, targets)
        return self.weight * clean + (1 - self.weight) * attacked

    def _climb(self, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
        """Inputs in the box around the clean ones at which the loss is large."""
        length, point = step_length(self.epsilon, self.steps, self.step_size), inputs
        if self.steps > 1:
            start = _draws(torch.rand, task, inputs)
            point = inputs + self.epsilon * (2 * start - 1)
        for _ in range(self.steps):
            point = point.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(task.batch_loss(point, targets), point)
            moved = point.detach() + length * gradient.sign() - inputs
            point = inputs + moved.clamp_(-self.epsilon, self.epsilon)
        return point


@dataclass(frozen=True)
class Stability(Remedy):
    """Stability training: f(x) + alpha D(x, x + noise), Gaussian noise on the inputs (Zheng et al. 2016).

    D compares the outputs: for cross-entropy -sum_j P(j | x) log P(j | x + noise), for other losses the Euclidean
    distance, each the mean over the samples. Both arguments are trained. The running statistics of batch-norm are those
    of the clean inputs.

    Attributes:
        alpha: The weight of D, positive; 0.01 by default.
        sigma: Standard deviation of the noise, in the units of the inputs, positive; 0.04 by default.
    """

    alpha: float = 0.01
    sigma: float = 0.04

    name: ClassVar[str] = "stability"
    roles: ClassVar[tuple[Role, ...]] = (Role.LOSS,)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            TypeError: One of them is not a number.
            ValueError: One of them is out of range.
        """
        self._real("alpha", positive=True)
        self._real("sigma", positive=True)

    def check(self, task: Task) -> None:
        """As :meth:`Remedy.check`."""
        _check_inputs(self.name, task)

    def batch_loss(self, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
        """As :meth:`Remedy.batch_loss`."""
        output = task.model(inputs.clone())
        mean = task.loss.mean(output, targets)
        noise = _draws(torch.randn, task, inputs)
        with task.untraced():
            other = task.model(inputs + self.sigma * noise)
        if task.loss.classification:
            dim = task.loss.class_dim
            apart = F.cross_entropy(other.movedim(dim, 1), output.movedim(dim, 1).softmax(1))
        else:
            apart = torch.linalg.vector_norm((output - other).flatten(1), dim=1).mean()
        return mean + self.alpha * apart
