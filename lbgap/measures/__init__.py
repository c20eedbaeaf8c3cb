"""The measures that later work uses beside Keskar's box, one a module; each takes a model and data or an Objective."""

from lbgap.measures.average import average_sharpness
from lbgap.measures.ball import ball_sharpness
from lbgap.measures.critical import critical_sharpness
from lbgap.measures.fisher_rao import fisher_rao_norm
from lbgap.measures.flatness import relative_flatness
from lbgap.measures.pac_bayes import pac_bayes_sigma
from lbgap.measures.result import Measure

__all__ = [
    "Measure",
    "average_sharpness",
    "ball_sharpness",
    "critical_sharpness",
    "fisher_rao_norm",
    "pac_bayes_sigma",
    "relative_flatness",
]
