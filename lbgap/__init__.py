"""How sharp the minima of neural networks are, and why large-batch training generalises worse."""

from lbgap.landscape import Line, Shape, curve, line
from lbgap.measures import (
    Measure,
    SharpnessCurve,
    average_sharpness,
    ball_sharpness,
    critical_sharpness,
    fisher_rao_norm,
    layer_sharpness,
    pac_bayes_sigma,
    relative_flatness,
    sharpness_curve,
)
from lbgap.objective import Objective
from lbgap.sharpness import Sharpness, fast_sharpness
from lbgap.training import Run, read_run, train

__all__ = [
    "Line",
    "Measure",
    "Objective",
    "Run",
    "Shape",
    "Sharpness",
    "SharpnessCurve",
    "average_sharpness",
    "ball_sharpness",
    "critical_sharpness",
    "curve",
    "fast_sharpness",
    "fisher_rao_norm",
    "layer_sharpness",
    "line",
    "pac_bayes_sigma",
    "read_run",
    "relative_flatness",
    "sharpness_curve",
    "train",
]
