"""Many points of one network evaluated together: batched where that is faster, the plain loop elsewhere."""

from lbgap._layers import UnknownError
from lbgap.points.engine import Plan, make_plan
from lbgap.points.source import Combinations, Separate, Source

__all__ = ["Combinations", "Plan", "Separate", "Source", "UnknownError", "make_plan"]
