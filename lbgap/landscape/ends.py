"""Two minimizers as the ends of a path, and what makes them fit each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lbgap.flat import Selection, select_parameters
from lbgap.landscape.buffers import combined_buffers
from lbgap.landscape.combined import Combined, Pairs
from lbgap.landscape.given import Given
from lbgap.objective import Objective
from lbgap.system.progress import Report, evaluations_bar
from lbgap.unwrap import unwrapped

BLOCK = 256  # points between two moves of the progress bar; a multiple of what is evaluated at once


class Ends(Combined):
    """Two minimizers, and the loss at combinations of them on one or two data sets.

    Attributes:
        distance: ``|x_l - x_s|``, over all parameters that may move.
    """

    def __init__(self, given: Given, large: nn.Module, data: Any, test_data: Any) -> None:
        """Load models and data.

        Args:
            given: The small-batch minimizer x_s.
            large: The large-batch minimizer x_l.
            data: Training data; None where an objective was given.
            test_data: Test data, or None.

        Raises:
            ValueError: The models differ in architecture or are identical, one has a parameter that is not finite, or
                an option is out of its range.
            TypeError: One is not a module.
        """
        small, large = given.module, another(large, "large-batch", given)
        check_same_architecture(small, large, parameters=given.options.get("parameters", "all"), bare=given.bare)
        for role, model in (("small-batch", small), ("large-batch", large)):
            check_finite(model, role)
        super().__init__(given, data, test_data)
        x_s = self.objectives[0].theta
        x_l = flat_like(large, self.objectives[0])
        if torch.equal(x_s, x_l):
            raise ValueError("the two models have the same parameters: a line needs two different minimizers")
        self.ends = torch.stack([x_s, x_l])
        self.distance = float((x_l.double() - x_s.double()).norm())
        self.buffers = combined_buffers((small, large), self.mode)
        self._models = small, large
        self.check_buffers(self._models)

    def evaluate(self, rows: Sequence[tuple[float, ...]], title: str, progress: Report) -> list[Pairs]:
        """Loss and accuracy at each row of coefficients of the ends, on each data set; accuracies may be NaN."""
        found: list[Pairs] = [[] for _ in self.objectives]
        block = 1 if self.one_by_one else BLOCK
        with evaluations_bar(title, len(rows) * len(found), progress) as report:
            for first in range(0, len(rows), block):
                some = self.at(torch.tensor(rows[first : first + block], dtype=torch.float64, device="cpu"))
                for pairs, new in zip(found, some, strict=True):
                    pairs += new
                    for loss, _ in new if report is not None else ():
                        report(0, loss)  # type: ignore[misc]
        return found

    def check(self) -> str:
        """Compare the ends with the models themselves, on a few samples of the training data.

        Returns:
            Which ends were compared; with ``"freeze"`` and ``"recalibrate"`` batch-norm makes others of them, and so
            do spectral norms, which a model has of weights that it had some steps before.

        Raises:
            ValueError: A model keeps more than its parameters and floating-point buffers.
        """
        if self.norms:
            return "none: spectral norms are those of the weights of each point"
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


def another(model: nn.Module | Objective, role: str, given: Given) -> nn.Module:
    """A model beside the one whose loss is evaluated, without its wrappers; see :func:`lbgap.unwrap.unwrapped`.

    Args:
        model: That.
        role: What it is called in messages.
        given: The one whose loss is evaluated.

    Raises:
        TypeError: It is not a module.
        ValueError: There is no plain module inside.
    """
    if isinstance(model, Objective):
        raise TypeError(
            f"the {role} model must be a torch.nn.Module, got Objective: only the first may be an Objective, so pass "
            "its module"
        )
    return unwrapped(model, f"the {role} model", inside=given.options.get("call") is None)


def check_same_architecture(
    small: nn.Module,
    large: nn.Module,
    names: tuple[str, str] = ("small-batch", "large-batch"),
    *,
    parameters: Selection = "all",
    bare: bool = False,
) -> None:
    """Refuse two models that are not points of one parameter space.

    Args:
        small: The one.
        large: The other.
        names: What they are called.
        parameters: Which may move; see :func:`lbgap.flat.select_parameters`. The others have to be the same in both.
        bare: Whether one of them may lack the running statistics of batch-norm.

    Raises:
        ValueError: They differ; the message names the first parameter, buffer or module that does.
    """
    _check_shapes("parameter", dict(small.named_parameters()), dict(large.named_parameters()))
    _check_what_stays(small, large, parameters)
    ours, theirs = (_buffers(model, bare) for model in (small, large))
    _check_shapes("buffer", ours, theirs)
    for name, value in ours.items():
        counter = name.endswith("num_batches_tracked")  # which enters no evaluation
        if not (counter or value.is_floating_point() or torch.equal(value.cpu(), theirs[name].cpu())):
            raise ValueError(f"the models differ: buffer {name!r} has other values and cannot be interpolated")
    modules = dict(large.named_modules())
    for name, module in small.named_modules():
        kinds = [type(m).__qualname__ for m in (module, modules.get(name, module))]
        if kinds[0] != kinds[1]:
            where = f"module {name!r}" if name else "the whole"
            raise ValueError(f"the models differ: {where} is {kinds[0]} in one and {kinds[1]} in the other")


def _check_what_stays(small: nn.Module, large: nn.Module, parameters: Selection) -> None:
    """Refuse models that disagree on which parameters may move, or on the values of those that may not."""
    theirs, moving = dict(large.named_parameters()), [select_parameters(one, parameters) for one in (small, large)]
    for name, ours in small.named_parameters():
        if (name in moving[0]) != (name in moving[1]):
            raise ValueError(f"parameter {name!r} is frozen in one model only: freeze it in both or in neither")
        if name not in moving[0] and not torch.equal(ours.cpu(), theirs[name].to("cpu", ours.dtype)):
            if ours.requires_grad or theirs[name].requires_grad:
                raise ValueError(f"parameter {name!r} differs between the models: choose it in parameters=, too")
            raise ValueError(f"frozen parameter {name!r} differs between the models: unfreeze it to interpolate it")


def _buffers(model: nn.Module, bare: bool) -> dict[str, Tensor]:
    """The buffers by name; with ``bare`` those of batch-norm are left out."""
    norms = [prefix for prefix, module in model.named_modules() if isinstance(module, _BatchNorm)] if bare else []
    return {name: value for name, value in model.named_buffers() if name.rpartition(".")[0] not in norms}


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
