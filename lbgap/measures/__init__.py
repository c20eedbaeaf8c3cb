"""Curves and layers of Keskar's box, and the measures that later work uses beside it, one a module."""

from lbgap.measures.average import average_sharpness
from lbgap.measures.ball import ball_sharpness
from lbgap.measures.batch import batch_sharpness, noise_scale
from lbgap.measures.critical import critical_sharpness
from lbgap.measures.curve import SharpnessCurve, sharpness_curve
from lbgap.measures.fisher_rao import fisher_rao_norm
from lbgap.measures.flatness import relative_flatness
from lbgap.measures.layers import layer_sharpness
from lbgap.measures.pac_bayes import pac_bayes_sigma
from lbgap.result import Measure

__all__ = [
    "Measure",
    "SharpnessCurve",
    "average_sharpness",
    "ball_sharpness",
    "batch_sharpness",
    "critical_sharpness",
    "fisher_rao_norm",
    "layer_sharpness",
    "noise_scale",
    "pac_bayes_sigma",
    "relative_flatness",
    "sharpness_curve",
]
