"""Gradients taken beside the iterate: at a random place near it, or where the loss is larger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lbgap.training.remedies.base import Evaluate, Remedy, Role, Task


@contextmanager
def _back_again(task: Task) -> Iterator[list[Tensor]]:
    """The iterate; at the end the parameters are put back there, to the bit."""
    before = [parameter.detach().clone() for parameter in task.parameters]
    try:
        yield before
    finally:
        with torch.no_grad():
            for parameter, value in zip(task.parameters, before, strict=True):
                parameter.copy_(value)


def _gradients(task: Task) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in task.parameters]


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all together, float64, 0-d."""
    norms = torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors])
    return norms.square().sum().sqrt()


@dataclass(frozen=True)
class SmoothOut(Remedy):
    """Noise is added to the parameters for each gradient and then taken off (Wen et al. 2018, arXiv 1805.07898).

    So the loss is smoothed over a box: their stochastic SmoothOut, with one uniform draw a batch. Noise that adapts to
    the norms of filters (their AdaSmoothOut) is not here.

    Attributes:
        radius: Half the width of the box: each coordinate gets a draw from [-radius, radius].
    """

    radius: float

    name: ClassVar[str] = "smoothout"
    roles: ClassVar[tuple[Role, ...]] = (Role.GRADIENT,)

    def __post_init__(self) -> None:
        """Check the radius.

        Raises:
            TypeError: It is not a number.
            ValueError: It is not positive.
        """
        self._real("radius", positive=True)

    def gradient(self, task: Task, evaluate: Evaluate) -> Tensor:
        """As :meth:`Remedy.gradient`."""
        generator = task.generator(Role.GRADIENT)
        with _back_again(task):
            with torch.no_grad():
                for parameter in task.parameters:
                    noise = torch.empty_like(parameter).uniform_(-self.radius, self.radius, generator=generator)
                    parameter.add_(noise)
            return evaluate()


@dataclass(frozen=True)
class SAM(Remedy):
    """Sharpness-aware minimisation: the gradient at x + rho g / |g| (Foret et al. 2021, eqs. 2 and 3).

    Two gradients a batch; the second leaves no trace in the running statistics of batch-norm.

    Attributes:
        rho: The radius of the ball, positive; their 0.05 by default.
    """

    rho: float = 0.05

    name: ClassVar[str] = "sam"
    roles: ClassVar[tuple[Role, ...]] = (Role.GRADIENT,)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TypeError: One of them is not a number.
            ValueError: One of them is out of range.
        """
        self._real("rho", positive=True)

    def gradient(self, task: Task, evaluate: Evaluate) -> Tensor:
        """As :meth:`Remedy.gradient`."""
        value = evaluate()
        with _back_again(task) as before:
            with torch.no_grad():
                gradients = _gradients(task)
                scales = self._scales(before)
                scaled = [g if t is None else t * g for g, t in zip(gradients, scales, strict=True)]
                length = _norm(scaled)
                share = torch.where(length > 0, self.rho / length, 0.0)
                for parameter, step, scale in zip(task.parameters, scaled, scales, strict=True):
                    step = step if scale is None else scale * step
                    parameter.add_(step * share.to(step.dtype))
            with task.untraced():
                evaluate()
        return value

    def _scales(self, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """The operator T_x for each parameter, ``None`` for the identity."""
        return [None] * len(parameters)


@dataclass(frozen=True)
class ASAM(SAM):
    """Adaptive SAM: the gradient at x + rho T^2 g / |T g| with T = |x| + eta (Kwon et al. 2021).

    The ball is not changed by a rescaling of the weights that leaves the network's function the same.

    Attributes:
        rho: The radius, positive; their 0.5 by default.
        eta: Keeps coordinates near zero movable, not negative; their 0.01 by default.
    """

    rho: float = 0.5
    eta: float = 0.01

    name: ClassVar[str] = "asam"

    def __post_init__(self) -> None:
        """As :meth:`SAM.__post_init__`."""
        super().__post_init__()
        self._real("eta", positive=False)

    def _scales(self, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        return [parameter.abs() + self.eta for parameter in parameters]


@dataclass(frozen=True)
class Robust(Remedy):
    """Robust training: min_x max_{|dx|_inf <= epsilon} f_B(x + dx) (Keskar et al. 2016, appendix), x the parameters.

    The maximum is approached by steps along the sign of the gradient, projected on the box; so a batch costs one
    gradient more than there are steps. For a maximum over the inputs see :class:`Adversarial`.

    Attributes:
        epsilon: Half the width of the box, positive.
        steps: How many; one reaches a vertex of the box.
        step_size: Their length in each coordinate; 2.5 epsilon / steps by default, at most epsilon.
    """

    epsilon: float
    steps: int = 1
    step_size: float | None = None

    name: ClassVar[str] = "robust"
    roles: ClassVar[tuple[Role, ...]] = (Role.GRADIENT,)

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

    def gradient(self, task: Task, evaluate: Evaluate) -> Tensor:
        """As :meth:`Remedy.gradient`."""
        length = step_length(self.epsilon, self.steps, self.step_size)
        value = evaluate()
        with _back_again(task) as before, task.untraced():
            for _ in range(self.steps):
                with torch.no_grad():
                    for parameter, gradient, centre in zip(task.parameters, _gradients(task), before, strict=True):
                        moved = parameter - centre + length * gradient.sign()
                        parameter.copy_(centre + moved.clamp_(-self.epsilon, self.epsilon))
                evaluate()
        return value


def step_length(epsilon: float, steps: int, step_size: float | None) -> float:
    """The length of the steps of a projected ascent.

    Args:
        epsilon: Half the width of the box.
        steps: How many.
        step_size: What was asked for, or ``None`` for that of Madry et al. 2018, 2.5 epsilon / steps.

    Returns:
        The length, at most epsilon if it was not asked for.
    """
    return min(epsilon, 2.5 * epsilon / steps) if step_size is None else step_size
