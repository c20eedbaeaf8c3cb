"""How sharp the minima of neural networks are, and why large-batch training generalises worse."""

from lbgap.landscape import Line, line
from lbgap.measures import (
    Measure,
    average_sharpness,
    ball_sharpness,
    critical_sharpness,
    fisher_rao_norm,
    pac_bayes_sigma,
    relative_flatness,
)
from lbgap.objective import Objective
from lbgap.sharpness import Sharpness, fast_sharpness
from lbgap.training import Run, read_run, train

__all__ = [
    "Line",
    "Measure",
    "Objective",
    "Run",
    "Sharpness",
    "average_sharpness",
    "ball_sharpness",
    "critical_sharpness",
    "fast_sharpness",
    "fisher_rao_norm",
    "line",
    "pac_bayes_sigma",
    "read_run",
    "relative_flatness",
    "train",
]
