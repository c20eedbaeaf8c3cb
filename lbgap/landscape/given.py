"""A minimizer as the caller gives it: a module with data, or an objective to which all of that belongs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lbgap.checks import is_whole
from lbgap.flat import name_patterns
from lbgap.measures.call import as_objective
from lbgap.objective import Objective
from lbgap.unwrap import left_out, unwrapped

MODES = ("eval", "batch", "freeze", "recalibrate")


@dataclass(frozen=True)
class Given:
    """A minimizer, and how its loss is evaluated.

    Attributes:
        module: The minimizer; of an objective, a copy of what it evaluates.
        objective: The objective, where the caller passed one.
        batch_norm: One of :data:`MODES`.
        options: The other keywords of an :class:`lbgap.Objective` of this loss.
        note: A sentence on what of the caller's module is left out, if anything is.
    """

    module: nn.Module
    objective: Objective | None
    batch_norm: str
    options: Mapping[str, Any]
    note: str | None = None

    @property
    def within(self) -> str:
        """What an objective calls the mode of batch-norm: all but ``"batch"`` are statistics that it is given."""
        return "batch" if self.batch_norm == "batch" else "eval"

    @property
    def bare(self) -> bool:
        """Whether the module has been stripped of batch-norm's running statistics, which enter no value."""
        return self.objective is not None and self.batch_norm == "batch"

    def objectives(self, data: Any, test_data: Any) -> list[Objective]:
        """The loss on the training data, and on the test data if there are any.

        Args:
            data: The training data; None with an objective.
            test_data: The test data, or None.

        Raises:
            ValueError: As :class:`lbgap.Objective`.
            TypeError: Likewise; or a module came without data.
        """
        options = {**self.options, "batch_norm": self.within}
        first = self.objective
        if first is None:
            first = as_objective(self.module, data, options)
            first.notes[:0] = [] if self.note is None else [self.note]
            if not is_whole(options.get("batch_size", 1)):  # a share, of the training data
                options["batch_size"] = first.batch_size
        elif first.batch_size == first.samples:
            # All samples at once: so are those of the test data, where they can be.
            options["batch_size"] = sys.maxsize if first.coupled else None
        return [first] if test_data is None else [first, Objective(self.module, test_data, **options)]


def take(
    minimizer: nn.Module | Objective,
    data: Any,
    batch_norm: str | None,
    options: Mapping[str, Any],
    default: str = "eval",
    role: str = "small-batch",
) -> Given:
    """Tell a module from an objective, and find out how its loss is evaluated.

    Args:
        minimizer: The one or the other.
        data: What the caller passed as training data.
        batch_norm: One of :data:`MODES`, or None.
        options: The other keywords of an :class:`lbgap.Objective`; None where the caller gave none.
        default: The mode of batch-norm where the caller gave none.
        role: What the minimizer is called in messages.

    Raises:
        ValueError: There is no such mode; or an objective came together with data or options that belong to it, or is
            the loss on a part of the space.
        TypeError: ``parameters`` names none, or the minimizer is no module.
    """
    if isinstance(minimizer, Objective):
        objective = as_objective(minimizer, data, {"batch_norm": batch_norm, **options})
        return Given(objective.model(), objective, objective.batch_norm, objective.options())
    mode = default if batch_norm is None else batch_norm
    check_batch_norm(mode)
    own = {name: value for name, value in options.items() if value is not None}
    if not isinstance(own.get("parameters", ""), str):
        own["parameters"] = name_patterns(own["parameters"])  # which may be read only once
    plain = unwrapped(minimizer, f"the {role} model", inside="call" not in own)
    return Given(plain, None, mode, own, None if "call" in own else left_out(minimizer))


def check_batch_norm(batch_norm: str) -> None:
    """Refuse a mode of batch-norm that is none.

    Raises:
        ValueError: It is not one of :data:`MODES`.
    """
    if batch_norm not in MODES:
        raise ValueError(f"batch_norm must be {', '.join(map(repr, MODES[:-1]))} or 'recalibrate', got {batch_norm!r}")
