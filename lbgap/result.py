"""What every measure returns, the versions behind it, and a form that JSON knows."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from lbgap.status import Status

_OF_THE_OBJECTIVE = {
    *("measure", "versions", "loss", "parameters", "n", "samples", "batch_norm", "batch_size", "precision"),
    *("directions", "device", "threads", "backend", "data", "graph", "notes", "coupled", "judged", "weight"),
    *("call", "inputs", "targets", "loss_head", "loss_options"),
}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Result:
    """What everything that measures returns, whatever else belongs to it.

    ``print`` shows a few lines: what was found, what belongs to it, on what and at what cost, the status and notes. A
    result with more to say replaces ``_headline`` and ``_numbers``.

    Attributes:
        value: The number that answers the question; each result says which one that is.
        status: Why the work ended, how far the value is to be trusted, and what to try for a better one; its ``name``
            is for programs.
        settings: Everything that the result depends on.
        evaluations: Passes over the data: a loss or a gradient is one, one over a part of the data counts by its share.
        seconds: Wall-clock time of the call.
    """

    apart: ClassVar[frozenset[str]] = frozenset()  # fields that are too large for JSON

    value: float
    status: Status
    settings: dict[str, Any]
    evaluations: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything but large tensors, ready for JSON; NaN and infinity become None."""
        shared = [one.name for one in fields(Result)]
        own = [one.name for one in fields(self) if one.name not in shared]
        kept = (name for name in ("value", *own, "evaluations", "seconds", "status") if name not in self.apart)
        record = {name: plain(getattr(self, name)) for name in kept}
        return {**record, "status_name": self.status.name, "settings": plain(self.settings)}

    def __str__(self) -> str:
        """A few lines: the value, what belongs to it, how it was found, and how far it is to be trusted."""
        lines = (*self._numbers(), self._cost(), self.status, *(f"note: {note}" for note in self._notes()))
        return "\n".join((self._headline(), *(f"  {line}" for line in lines)))

    def __repr__(self) -> str:
        """One line: the value and the name of the status; ``print`` shows more."""
        return f"{type(self).__name__}(value={self.value:.6g}, status={self.status.name!r})"

    def _headline(self) -> str:
        """What was measured, and its value."""
        return f"{self.settings.get('measure', type(self).__name__)}: {self.value:.6g}"

    def _numbers(self) -> list[str]:
        """Lines of further numbers and settings."""
        return []

    def _cost(self) -> str:
        """On what the value was measured, and what that took."""
        s, of_model = self.settings, "samples" in self.settings
        forms = {"n": "{:,} parameters" if of_model else "{:,} rows", "samples": "{:,} samples"}
        if s.get("weight", s.get("samples")) != s.get("samples"):  # of a loss that is no mean over samples
            forms["weight"] = "of weight {:,.6g}"
        if s.get("coupled"):
            forms["batch_size"] = "coupled in batches of {:,}"
        forms |= {"test_samples": "{:,} test samples", "batch_norm": "batch-norm {}"}
        said = [form.format(s[name]) for name, form in forms.items() if name in s]
        said = [part.removesuffix("s") if part in ("1 samples", "1 parameters") else part for part in said]
        said += self._work()
        precision = s.get("precision", s.get("dtype"))
        where = [f"{precision} on {s['device']}"] if precision and "device" in s else []
        return ", ".join((*said, f"{self.seconds:.2f} s", *where))

    def _work(self) -> list[str]:
        """How much work it was, in the unit that matters here; nothing of a matrix that needs no data."""
        needs_data = "samples" in self.settings or "n" not in self.settings
        return [f"{self.evaluations:.4g} evaluations"] if needs_data else []

    def _notes(self) -> list[str]:
        """What the objective has to say of the way in which it was evaluated."""
        return list(self.settings.get("notes", ()))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Measure(Result):
    """The value of a measure at a minimizer, with everything that it depends on.

    Attributes:
        value: The measure; NaN where it does not exist, in which case ``status`` says why.
        standard_error: Of ``value`` over random draws; NaN where nothing is random.
        base_loss: Mean loss at the minimizer; NaN of what has none, such as a matrix.
        details: Further numbers of this measure by name.
    """

    standard_error: float = math.nan
    base_loss: float
    details: dict[str, Any] = field(default_factory=dict)

    def _headline(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" +- {self.standard_error:.2g} (standard error)"
        loss = "" if math.isnan(self.base_loss) else f", at a loss of {self.base_loss:.6g}"
        return f"{super()._headline()}{error}{loss}"

    def _numbers(self) -> list[str]:
        given = {name: value for name, value in self.settings.items() if value is not None}
        own = {name: value for name, value in given.items() if name not in _OF_THE_OBJECTIVE}
        numbers = {name: value for name, value in self.details.items() if isinstance(value, int | float)}
        return [named(each) for each in (own, numbers) if each]


def named(numbers: dict[str, Any]) -> str:
    """Names and values in one line."""
    return ", ".join(
        f"{name} {f'{value:.6g}' if isinstance(value, float) else value}" for name, value in numbers.items()
    )


def own_version() -> str | None:
    """The version of lbgap; None where it runs from a checkout that is not installed."""
    try:
        return importlib.metadata.version("lbgap")
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of everything that computes a result."""
    others = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")}
    return {"python": platform.python_version(), "lbgap": own_version(), **others}


def plain(value: Any) -> Any:
    """Turn a value into what JSON knows; NaN and infinity become None."""
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, Status):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value
