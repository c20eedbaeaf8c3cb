"""How sharp the minima of neural networks are, and why large-batch training generalises worse."""

from lbgap.objective import Objective
from lbgap.sharpness import Sharpness, fast_sharpness

__all__ = ["Objective", "Sharpness", "fast_sharpness"]
