"""How sharp the minima of neural networks are, and why large-batch training generalises worse."""

from lbgap.landscape import Line, line
from lbgap.objective import Objective
from lbgap.sharpness import Sharpness, fast_sharpness
from lbgap.training import Run, read_run, train

__all__ = ["Line", "Objective", "Run", "Sharpness", "fast_sharpness", "line", "read_run", "train"]
