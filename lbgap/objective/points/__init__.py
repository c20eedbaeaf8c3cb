"""Many points of one network evaluated together: batched where that is faster, the plain loop elsewhere."""

from lbgap.layers import UnknownError
from lbgap.objective.points.engine import Plan, make_plan
from lbgap.objective.points.source import Combinations, Separate, Source

__all__ = ["Combinations", "Plan", "Separate", "Source", "UnknownError", "make_plan"]
