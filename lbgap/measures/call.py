"""What all measures share: the objective that they are called with, and their keywords."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from lbgap.checks import Amount
from lbgap.flat import Selection
from lbgap.objective import Objective
from lbgap.problem.call import CallFunction
from lbgap.problem.loss import LossFunction
from lbgap.result import Measure, versions
from lbgap.status import Status
from lbgap.system.device import full_float32
from lbgap.system.progress import Report, check_progress


class Options(TypedDict, total=False):
    """Keywords that belong to the :class:`~lbgap.objective.Objective`, as in :func:`lbgap.fast_sharpness`."""

    loss: str | LossFunction | None
    parameters: Selection | None
    batch_norm: str | None
    precision: str | None
    batch_size: Amount | None
    device: str | torch.device | None
    backend: str | None
    coupled: bool | None
    judge: bool | None
    call: CallFunction | None


class Search(Options, total=False):
    """The keywords of :func:`lbgap.fast_sharpness` that measures made of several such calls hand on."""

    method: str
    iterations: int | None
    restarts: int
    scout: Amount | None
    scaling: str | None
    samples: Amount | None
    region: str
    seed: int
    progress: Report


def check_names(measure: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keywords that a measure does not hand on.

    Raises:
        TypeError: One is not known; the message lists those that are.
    """
    known = tuple(known)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise TypeError(
            f"{measure}() got an unexpected keyword argument {unknown[0]!r}: beside its own it takes "
            + ", ".join(known)
        )


def separate(measure: str, search: Search) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords that belong to the objective, and the rest.

    Raises:
        TypeError: A keyword is neither, or ``progress`` is no way to report it.
    """
    check_names(measure, search, Search.__annotations__)
    check_progress(search.get("progress", False))
    own = {name: value for name, value in search.items() if name in Options.__annotations__}
    return own, {name: value for name, value in search.items() if name not in own}


@dataclass(frozen=True, eq=False)
class Work(ABC):
    """A measure under way, whatever it is called on.

    Attributes:
        measure: Its name.
        began: When, in seconds of ``time.perf_counter``.
    """

    measure: str
    began: float

    @property
    @abstractmethod
    def evaluations(self) -> float:
        """Passes over the data so far."""

    @abstractmethod
    def settings(self, own: dict[str, Any]) -> dict[str, Any]:
        """Everything that the result depends on; ``own`` are the keywords of the measure."""

    @property
    def seconds(self) -> float:
        """Wall-clock time so far."""
        return time.perf_counter() - self.began

    def result(
        self,
        value: float,
        *,
        base_loss: float,
        status: Status,
        own: dict[str, Any],
        details: dict[str, Any],
        standard_error: float = math.nan,
    ) -> Measure:
        """The result, with what the call knows about itself.

        Args:
            value: The number that answers the question.
            base_loss: Mean loss at the minimizer.
            status: How far the value is to be trusted.
            own: The keywords of the measure.
            details: Further numbers by name.
            standard_error: Of the value; NaN where nothing is random.
        """
        return Measure(
            value=value,
            standard_error=standard_error,
            base_loss=base_loss,
            evaluations=self.evaluations,
            status=status,
            details=details,
            settings=self.settings(own),
            seconds=self.seconds,
        )


@dataclass(frozen=True, eq=False)
class Call(Work):
    """One call of a measure of an objective.

    Attributes:
        objective: What it is called on.
        centre: The minimizer, ``(n,)``.
        first: Samples that the objective had evaluated before.
    """

    objective: Objective
    centre: Tensor
    first: int

    @property
    def evaluations(self) -> float:
        """Passes over the data so far."""
        return (self.objective.evaluated - self.first) / self.objective.samples

    def settings(self, own: dict[str, Any]) -> dict[str, Any]:
        """Everything that the result depends on; ``own`` are the keywords of the measure."""
        return {"measure": self.measure, **own, **self.objective.settings(), "versions": versions()}


@contextmanager
def call(measure: str, model: nn.Module | Objective, data: Any, options: Options) -> Iterator[Call]:
    """Build the objective, or take the one passed, and run the measure without recording gradients.

    Args:
        measure: Its name.
        model: A module or an objective.
        data: The data; None with an objective.
        options: Keywords of the objective.

    Yields:
        The call, which knows the objective, the minimizer and the cost so far.

    Raises:
        ValueError: An objective came together with data or options that belong to it.
        TypeError: A module came without data, or an option is one that no measure has.
    """
    check_names(measure, options, Options.__annotations__)
    began = time.perf_counter()
    objective = as_objective(model, data, {**options})
    with working(objective.device.type):
        yield Call(measure, began, objective, objective.theta, objective.evaluated)


@contextmanager
def working(device_type: str) -> Iterator[None]:
    """Products of a measure's own are in full precision, and record no gradient, whatever the caller allows."""
    exact = full_float32(device_type)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device_type, enabled=False), exact:
        yield


def as_objective(model: nn.Module | Objective, data: Any, options: dict[str, Any]) -> Objective:
    """Build the objective of a measure, or take the one that was passed in place of ``(model, data)``.

    Args:
        model: A module or an objective.
        data: The data; None with an objective.
        options: Keywords of :class:`~lbgap.objective.Objective`; None where the user gave none.

    Raises:
        ValueError: An objective came together with data or options that belong to it.
        TypeError: A module came without data.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(model, Objective):
        extra = [*(["data"] if data is not None else []), *given]
        if extra:
            raise ValueError(f"{', '.join(extra)} belong to the Objective: give them when you build it")
        return model
    if data is None:
        raise TypeError("data is missing: pass (inputs, targets), a dict of tensors, a Dataset or a DataLoader")
    return Objective(model, data, **given)
