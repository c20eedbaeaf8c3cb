"""How sharp the minima of neural networks are, and why large-batch training generalises worse."""

from lbgap.hessian.density import Density, spectral_density
from lbgap.hessian.diagonal import Diagonal, hessian_diagonal
from lbgap.hessian.eigenvalues import Eigenvalues, eigenvalues
from lbgap.hessian.mass import positive_mass
from lbgap.hessian.stability import edge_of_stability
from lbgap.hessian.trace import hessian_trace
from lbgap.landscape import Asymmetry, Connection, Line, Plane, Shape, asymmetry, connect, curve, line, plane
from lbgap.measures import (
    Measure,
    SharpnessCurve,
    average_sharpness,
    ball_sharpness,
    batch_sharpness,
    critical_sharpness,
    fisher_rao_norm,
    layer_sharpness,
    noise_scale,
    pac_bayes_sigma,
    relative_flatness,
    sharpness_curve,
)
from lbgap.objective import Objective
from lbgap.sharpness import Sharpness, fast_sharpness
from lbgap.sweeps import read_sweep
from lbgap.training import Run, read_run, remedies, train, train_together

__all__ = [
    "Asymmetry",
    "Connection",
    "Density",
    "Diagonal",
    "Eigenvalues",
    "Line",
    "Measure",
    "Objective",
    "Plane",
    "Run",
    "Shape",
    "Sharpness",
    "SharpnessCurve",
    "asymmetry",
    "average_sharpness",
    "ball_sharpness",
    "batch_sharpness",
    "connect",
    "critical_sharpness",
    "curve",
    "edge_of_stability",
    "eigenvalues",
    "fast_sharpness",
    "fisher_rao_norm",
    "hessian_diagonal",
    "hessian_trace",
    "layer_sharpness",
    "line",
    "noise_scale",
    "pac_bayes_sigma",
    "plane",
    "positive_mass",
    "read_run",
    "read_sweep",
    "relative_flatness",
    "remedies",
    "sharpness_curve",
    "spectral_density",
    "train",
    "train_together",
]
