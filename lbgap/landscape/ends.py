"""Two minimizers as the ends of a path, and what makes them fit each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lbgap.landscape.combined import Combined, Pairs, check_batch_norm
from lbgap.objective import Objective
from lbgap.system.progress import evaluations_bar

BLOCK = 256  # points between two moves of the progress bar; a multiple of what is evaluated at once


class Ends(Combined):
    """Two minimizers, and the loss at combinations of them on one or two data sets.

    Attributes:
        distance: ``|x_l - x_s|``, over all parameters that may move.
    """

    def __init__(
        self, small: nn.Module, large: nn.Module, sets: Sequence[Any], batch_norm: str, options: Mapping[str, Any]
    ) -> None:
        """Load models and data.

        Args:
            small: The small-batch minimizer x_s.
            large: The large-batch minimizer x_l.
            sets: Training data, and test data if there are any.
            batch_norm: One of :data:`MODES`.
            options: Those of an :class:`lbgap.Objective`.

        Raises:
            ValueError: The models differ in architecture or are identical, one has a parameter that is not finite, or
                an option is out of its range.
            TypeError: One is not a module.
        """
        check_batch_norm(batch_norm)
        check_same_architecture(small, large)
        for role, model in (("small-batch", small), ("large-batch", large)):
            check_finite(model, role)
        super().__init__(small, sets, batch_norm, options)
        x_s = self.objectives[0].theta
        x_l = flat_like(large, self.objectives[0])
        if torch.equal(x_s, x_l):
            raise ValueError("the two models have the same parameters: a line needs two different minimizers")
        self.ends = torch.stack([x_s, x_l])
        self.distance = float((x_l.double() - x_s.double()).norm())
        self.buffers = combined_buffers((small, large), batch_norm)
        self._models = small, large

    def evaluate(self, rows: Sequence[tuple[float, ...]], title: str, progress: bool) -> list[Pairs]:
        """Loss and accuracy at each row of coefficients of the ends, on each data set; accuracies may be NaN."""
        found: list[Pairs] = [[] for _ in self.objectives]
        block = 1 if self.mode == "recalibrate" else BLOCK
        with evaluations_bar(title, len(rows) * len(found), progress) as visited:
            for first in range(0, len(rows), block):
                some = self.at(torch.tensor(rows[first : first + block], dtype=torch.float64))
                for pairs, new in zip(found, some, strict=True):
                    pairs += new
                    for loss, _ in new if visited is not None else ():
                        visited(0, loss)  # type: ignore[misc]
        return found

    def check(self) -> str:
        """Compare the ends with the models themselves, on a few samples of the training data.

        Returns:
            Which ends were compared; with ``"freeze"`` and ``"recalibrate"`` batch-norm makes others of them.

        Raises:
            ValueError: A model keeps more than its parameters and floating-point buffers.
        """
        if self.own_statistics and self.mode == "recalibrate":
            return "none: statistics are those of each point"
        small, large = self._models
        ends = [("alpha = 0", "small-batch", small), ("alpha = 1", "large-batch", large)]
        self.compare(ends[:1] if self.own_statistics else ends)
        return "small: statistics are those of the small-batch model" if self.own_statistics else "both"

    def settings(self) -> dict[str, Any]:
        """Everything that the values depend on."""
        return {**super().settings(), "distance": self.distance}


def flat_like(model: nn.Module, objective: Objective) -> Tensor:
    """The parameters of a model of the same architecture, ``(n,)`` as those of an objective."""
    named = dict(model.named_parameters())
    theta = objective.theta
    return torch.cat([named[name].detach().reshape(-1).to(theta) for name in objective.names])


def combined_buffers(models: Sequence[nn.Module], batch_norm: str) -> dict[str, Tensor]:
    """The floating buffers that enter the output and are combined, ``(j, *shape)``, one a model."""
    others = [dict(model.named_buffers()) for model in models[1:]]
    found = {}
    for prefix, module in models[0].named_modules():
        if batch_norm != "eval" and isinstance(module, _BatchNorm):
            continue
        for name, ours in module.named_buffers(prefix, recurse=False):
            if ours.is_floating_point():
                every = [ours, *(theirs[name] for theirs in others)]
                found[name] = torch.stack([values.to(ours.device, torch.float64) for values in every])
    return found


def check_same_architecture(
    small: nn.Module, large: nn.Module, names: tuple[str, str] = ("small-batch", "large-batch")
) -> None:
    """Refuse two models that are not points of one parameter space.

    Args:
        small: The one.
        large: The other.
        names: What they are called.

    Raises:
        TypeError: One is not a module.
        ValueError: They differ; the message names the first parameter, buffer or module that does.
    """
    for role, model in zip(names, (small, large), strict=True):
        if not isinstance(model, nn.Module):
            raise TypeError(f"the {role} model must be a torch.nn.Module, got {type(model).__name__}")
    parameters = dict(large.named_parameters())
    _check_shapes("parameter", dict(small.named_parameters()), parameters)
    for name, ours in small.named_parameters():
        if ours.requires_grad != parameters[name].requires_grad:
            raise ValueError(f"parameter {name!r} is frozen in one model only: freeze it in both or in neither")
        if not ours.requires_grad and not torch.equal(ours.cpu(), parameters[name].cpu()):
            raise ValueError(f"frozen parameter {name!r} differs between the models: unfreeze it to interpolate it")
    buffers = dict(large.named_buffers())
    _check_shapes("buffer", dict(small.named_buffers()), buffers)
    for name, value in small.named_buffers():
        counter = name.endswith("num_batches_tracked")  # which enters no evaluation
        if not (counter or value.is_floating_point() or torch.equal(value.cpu(), buffers[name].cpu())):
            raise ValueError(f"the models differ: buffer {name!r} has other values and cannot be interpolated")
    modules = dict(large.named_modules())
    for name, module in small.named_modules():
        kinds = [type(m).__qualname__ for m in (module, modules.get(name, module))]
        if kinds[0] != kinds[1]:
            where = f"module {name!r}" if name else "the whole"
            raise ValueError(f"the models differ: {where} is {kinds[0]} in one and {kinds[1]} in the other")


def check_finite(model: nn.Module, role: str) -> None:
    """Refuse a model that is no minimizer, and would make every other point NaN.

    Raises:
        ValueError: A parameter holds NaN or infinity.
    """
    for name, value in model.named_parameters():
        if not value.isfinite().all():
            raise ValueError(
                f"parameter {name!r} of the {role} model holds NaN or infinity: it is no minimizer; train it with a "
                "smaller learning rate"
            )


def _check_shapes(kind: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        shapes = [tuple(tensors[name].shape) if name in tensors else "absent" for tensors in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the models differ: {kind} {name!r} is {shapes[0]} in one and {shapes[1]} in the other")
