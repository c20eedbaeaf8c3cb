"""What is measured at a minimizer, one measure a module: Keskar's box, what later work uses beside it, curvature."""

from lbgap.measures.asymmetry import Asymmetry, asymmetry
from lbgap.measures.average import average_sharpness
from lbgap.measures.ball import ball_sharpness
from lbgap.measures.batch import batch_sharpness, noise_scale
from lbgap.measures.critical import critical_sharpness
from lbgap.measures.fisher_rao import fisher_rao_norm
from lbgap.measures.flatness import relative_flatness
from lbgap.measures.hessian.density import Density, spectral_density
from lbgap.measures.hessian.diagonal import Diagonal, hessian_diagonal
from lbgap.measures.hessian.eigenvalues import Eigenvalues, eigenvalues
from lbgap.measures.hessian.mass import positive_mass
from lbgap.measures.hessian.stability import edge_of_stability
from lbgap.measures.hessian.trace import hessian_trace
from lbgap.measures.layer_sharpness import LayerSharpness, layer_sharpness
from lbgap.measures.pac_bayes import pac_bayes_sigma
from lbgap.measures.sharpness import Sharpness, fast_sharpness
from lbgap.measures.sharpness_curve import SharpnessCurve, sharpness_curve
from lbgap.result import Measure

__all__ = [
    "Asymmetry",
    "Density",
    "Diagonal",
    "Eigenvalues",
    "LayerSharpness",
    "Measure",
    "Sharpness",
    "SharpnessCurve",
    "asymmetry",
    "average_sharpness",
    "ball_sharpness",
    "batch_sharpness",
    "critical_sharpness",
    "edge_of_stability",
    "eigenvalues",
    "fast_sharpness",
    "fisher_rao_norm",
    "hessian_diagonal",
    "hessian_trace",
    "layer_sharpness",
    "noise_scale",
    "pac_bayes_sigma",
    "positive_mass",
    "relative_flatness",
    "sharpness_curve",
    "spectral_density",
]
