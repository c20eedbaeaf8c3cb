"""The loss of a model on data, as a function of its flat parameters: the seam under every measure."""

from lbgap.objective.objective import Objective

__all__ = ["Objective"]
