"""Tables of the report, and the numbers in their cells."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lbgap.experiments.paper.values import Pair
from lbgap.experiments.tables import short


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        title: Above it.
        columns: Their heads.
        rows: Of text.
        note: Below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def mean_and_deviation(values: Sequence[float], planned: int | None = None) -> str:
    """As the paper prints them; one value has no deviation, and where one is not finite there is no mean.

    Args:
        values: Of the trials that there are.
        planned: How many there should be; fewer are told. None to tell nothing.
    """
    covered = "" if planned in (None, len(values)) else f"{len(values)} of {planned}"
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < len(values):
        shown = f"{len(values) - len(finite)} of {len(values)} not finite"
    elif not finite:
        return covered
    else:
        mean = short(statistics.fmean(finite), 4)
        shown = f"{mean} ± {short(statistics.stdev(finite), 2)}" if len(finite) > 1 else mean
    return f"{shown} ({covered})" if covered else shown


def pair(values: Pair) -> str:
    """The same for what the paper gives."""
    return f"{values[0]:g} ± {values[1]:g}"
