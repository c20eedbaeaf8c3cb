"""The mean of independent draws, and the rule that ends it."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from lbgap.measures.draws import FEWEST, share


@dataclass
class Mean:
    """The mean of independent draws, which stops once it is known as well as was asked.

    Attributes:
        relative_error: Largest standard error as a share of the estimate; None to go on to the limit.
        draws: The draws so far.
        offset: What is known exactly and added to their mean.
    """

    relative_error: float | None
    draws: list[float] = field(default_factory=list)
    offset: float = 0.0

    @property
    def value(self) -> float:
        """The estimate."""
        return self.offset + (statistics.fmean(self.draws) if self.draws else 0.0)

    @property
    def variance(self) -> float:
        """Unbiased, of one draw; NaN of a single one, zero of none."""
        return statistics.variance(self.draws) if len(self.draws) > 1 else math.nan if self.draws else 0.0

    @property
    def error(self) -> float:
        """Standard error of the estimate."""
        return math.sqrt(self.variance / len(self.draws)) if self.draws else 0.0

    @property
    def relative(self) -> float:
        """The standard error as a share of the estimate."""
        return share(self.error, self.value)

    @property
    def reached(self) -> bool:
        """Whether the standard error is believed, and as small as was asked."""
        return self.relative_error is not None and len(self.draws) >= FEWEST and self.relative <= self.relative_error
