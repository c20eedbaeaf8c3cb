"""How sharp the minima of neural networks are, and why large-batch training generalises worse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "Asymmetry",
    "Connection",
    "Density",
    "Diagonal",
    "Eigenvalues",
    "LayerSharpness",
    "Line",
    "LinearOperator",
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
    "load_weights",
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
__version__ = "0.1.0"

if TYPE_CHECKING:
    from lbgap.landscape.connect import Connection, connect
    from lbgap.landscape.curve import curve
    from lbgap.landscape.line import Line, line
    from lbgap.landscape.plane import Plane, plane
    from lbgap.landscape.shape import Shape
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
    from lbgap.objective import Objective
    from lbgap.operators import LinearOperator
    from lbgap.result import Measure
    from lbgap.sweeps import read_sweep
    from lbgap.training import Run, read_run, remedies, train, train_together
    from lbgap.weights import load_weights
else:
    # A name is loaded when it is first used, for PyTorch takes seconds; the imports above are for type checkers.
    _HOMES = {
        "landscape": ("Connection", "Line", "Plane", "Shape", "connect", "curve", "line", "plane"),
        "objective": ("Objective",),
        "operators": ("LinearOperator",),
        "sweeps": ("read_sweep",),
        "training": ("Run", "read_run", "remedies", "train", "train_together"),
        "weights": ("load_weights",),
    }
    _HOME_OF = {name: home for home, names in _HOMES.items() for name in names}  # of all others: measures

    def __getattr__(name: str) -> Any:
        """Load a public name, or a package such as ``lbgap.datasets``.

        Raises:
            AttributeError: There is none of that name; the message has the one that was probably meant.
        """
        import importlib

        if name in __all__:
            home = importlib.import_module(f"lbgap.{_HOME_OF.get(name, 'measures')}")
            return globals().setdefault(name, getattr(home, name))
        hint = ""
        if name.isidentifier() and not name.startswith("_"):
            try:
                return importlib.import_module(f"lbgap.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"lbgap.{name}":
                    raise
            from lbgap.checks import hint as close

            hint = close(name, __all__)
        raise AttributeError(f"module 'lbgap' has no attribute {name!r}{hint}")

    def __dir__() -> list[str]:
        """What users call."""
        return [*__all__, "__version__"]
