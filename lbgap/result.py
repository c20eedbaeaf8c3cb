"""What every measure returns, the versions behind it, and a form that JSON knows."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from lbgap.status import Status

_OF_THE_OBJECTIVE = {
    *("measure", "versions", "loss", "parameters", "n", "samples", "batch_norm", "batch_size", "precision"),
    *("directions", "device", "threads", "backend", "notes"),
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
        evaluations: Passes over the data.
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
        kept = {one.name: plain(getattr(self, one.name)) for one in fields(self) if one.name not in self.apart}
        return {**kept, "status_name": self.status.name}

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
        forms = {"n": "{:,} parameters", "samples": "{:,} samples", "batch_norm": "batch-norm {}"}
        said = [form.format(self.settings[name]) for name, form in forms.items() if name in self.settings]
        said += [f"{self.evaluations:.4g} evaluations", f"{self.seconds:.2f} s"]
        if {"precision", "device"} <= self.settings.keys():
            said.append(f"{self.settings['precision']} on {self.settings['device']}")
        return ", ".join(said)

    def _notes(self) -> list[str]:
        """What the objective has to say of the way in which it was evaluated."""
        return list(self.settings.get("notes", ()))


@dataclass(frozen=True, eq=False)
class Measure:
    """The value of a measure at a minimizer, with everything that it depends on.

    Attributes:
        value: The measure; NaN where it does not exist, in which case ``status`` says why.
        standard_error: Of ``value`` over random draws; NaN where nothing is random.
        base_loss: Mean loss at the minimizer.
        evaluations: Passes over the data.
        status: How far the value is to be trusted, and what to try for a better one.
        details: Further numbers of this measure by name.
        settings: Everything that the result depends on.
        seconds: Wall-clock time of the call.
    """

    value: float
    standard_error: float
    base_loss: float
    evaluations: float
    status: str
    details: dict[str, Any] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; NaN and infinity become None."""
        return {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}

    def __str__(self) -> str:
        """A few lines: the value, how it was found, and what else belongs to it."""
        s = self.settings
        error = "" if math.isnan(self.standard_error) else f" +- {self.standard_error:.2g} (standard error)"
        own = ", ".join(f"{name} {_short(value)}" for name, value in s.items() if name not in _OF_THE_OBJECTIVE)
        numbers = ", ".join(
            f"{name} {_short(value)}" for name, value in self.details.items() if isinstance(value, int | float)
        )
        on = f"{s['n']:,} rows, {self.seconds:.2f} s on {s['device']}"
        if "samples" in s:  # of a model, and not of a matrix alone
            on = (
                f"{s['n']:,} parameters, {s['samples']:,} samples, batch-norm {s['batch_norm']}, "
                f"{self.evaluations:.4g} evaluations, {self.seconds:.2f} s, {s['precision']} on {s['device']}"
            )
        return "\n".join(
            (
                f"{s['measure']}: {self.value:.6g}{error}"
                + ("" if math.isnan(self.base_loss) else f", at a loss of {self.base_loss:.6g}"),
                f"  {own}",
                *([f"  {numbers}"] if numbers else []),
                f"  {on}",
                f"  {self.status}",
                *(f"  note: {note}" for note in s.get("notes", ())),
            )
        )


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


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
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value
