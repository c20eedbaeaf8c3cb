"""The commands ``lbgap measure NAME``: every measure of ``lbgap``, each with the options that are its own.

The signature of a function here is what its command takes, its docstring the help; :func:`measure` enters it in
``MEASURES``. A parameter has the name and the default of the keyword that it is handed to as.
"""

from __future__ import annotations

from typing import Annotated

from typer import Option

from lbgap.cli.measured import (
    MEASURES,
    Column,
    by_layer,
    by_size,
    draw_curves,
    draw_densities,
    draw_sides,
    measure,
    of_density,
    of_diagonal,
    of_pairs,
    of_sides,
)
from lbgap.cli.options import (
    Draws,
    Epsilons,
    Iterations,
    Kind,
    MaxProducts,
    Method,
    Region,
    RelativeError,
    Scaling,
    Scout,
    SearchSamples,
    Seed,
    Steps,
    Threshold,
    amount,
    words,
)

__all__ = ["MEASURES"]

Restarts = Annotated[int, Option(help="Further starts.")]
Adaptive = Annotated[bool, Option("--adaptive", help="Relative to each parameter.")]
Tolerance = Annotated[float, Option(help="Residual of an eigenvalue, relative to the largest.")]
ERROR: Column = ("standard\nerror", "standard_error")


@measure("ball_sharpness", ("phi %", "value"), ("rise", "rise"))
def ball(
    radius: Annotated[float, Option(help="Of the ball.")] = 0.05,
    adaptive: Adaptive = False,
    eta: Annotated[float, Option(help="Least scale of a parameter with --adaptive.")] = 0.01,
    iterations: Annotated[int, Option(help="Gradients at most from each start.")] = 20,
    restarts: Restarts = 0,
    seed: Seed = 0,
) -> None:
    """Find the largest loss in a ball around minimizers, as SAM does, or ASAM with --adaptive; a lower bound."""


@measure("average_sharpness", ("mean rise", "value"), ERROR)
def average(
    sigma: Annotated[float, Option(help="Standard deviation of the noise.")] = 0.01,
    draws: Draws = 20,
    adaptive: Adaptive = False,
    antithetic: Annotated[
        bool, Option(" /--no-antithetic", help="Use each draw in one direction alone.", show_default=False)
    ] = True,
    relative_error: Annotated[
        float | None, Option(help="Standard error to stop at, as a share.", show_default="all draws")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Average the rise of the loss over Gaussian noise on the parameters."""


@measure("pac_bayes_sigma", ("sigma", "value"), ERROR)
def pac_bayes(
    deviation: Annotated[float, Option(help="Rise of the error that is allowed, as a share.")] = 0.1,
    eps: Annotated[float, Option(help="Noise that all parameters get.")] = 1e-3,
    draws: Annotated[int, Option(help="Random draws at each sigma.")] = 10,
    tolerance: Annotated[float, Option(help="Relative width of the interval to stop at.")] = 0.02,
    seed: Seed = 0,
) -> None:
    """Find the noise, relative to each parameter, that a classifier stands; large is flat."""


@measure("fisher_rao_norm", ("norm^2", "value"), ("norm", "norm"))
def fisher_rao(labels: Annotated[str, words("data model", "Over which labels to average: {}.")] = "data") -> None:
    """Measure the Fisher-Rao norm of the parameters."""


@measure("relative_flatness", ("kappa", "value"), ERROR)
def relative_flatness(
    layer: Annotated[str | None, Option(help="Name of a layer.", show_default="the last")] = None,
    exact: Annotated[bool | None, Option(help="All products, or an estimate.", show_default="what is cheaper")] = None,
    draws: Annotated[int, Option(help="Random draws of the estimate.")] = 32,
    seed: Seed = 0,
) -> None:
    """Measure the relative flatness of a layer: the trace of its Hessian, weighted by its weights."""


@measure("critical_sharpness", ("lambda_c", "value"), ("step", "step"))
def critical(
    initial: Annotated[float | None, Option(help="Step to try first.", show_default="by the slope")] = None,
    tolerance: Annotated[float, Option(help="Relative width of the bracket to stop at.")] = 0.02,
    doublings: Annotated[int, Option(help="Doublings or halvings of the step at most.")] = 30,
) -> None:
    """Find the least step along the gradient that raises the loss, and the curvature that it stands for."""


@measure("batch_sharpness", ("sharpness", "value"), ERROR, ("draws", "draws"))
def batch_sharpness(
    batch: Annotated[int, amount("Samples in a batch, or a share of all (10%).")],
    relative_error: RelativeError = 0.05,
    draws: Draws = 200,
    seed: Seed = 0,
) -> None:
    """Measure the curvature of the loss of random batches along their own gradients."""


@measure("noise_scale", ("samples", "value"), ERROR, ("draws", "draws"))
def noise_scale(
    batch: Annotated[int, amount("Samples in a batch, or a share of all (10%).")] = 32,
    population: Annotated[str, words("data distribution", "Of what the gradient is the mean: {}.")] = "data",
    relative_error: RelativeError = 0.05,
    draws: Draws = 200,
    seed: Seed = 0,
) -> None:
    """Measure the gradient noise scale: the batch size from which larger ones help less."""


@measure("hessian_trace", ("trace", "value"), ERROR, ("products", "products"))
def trace(
    method: Annotated[str, words("hutchinson hutch++")] = "hutchinson",
    kind: Kind = "hessian",
    relative_error: RelativeError = 0.05,
    max_products: MaxProducts = 200,
    sketch: Annotated[int | None, Option(help="Vectors in the sketch of hutch++.", show_default="10")] = None,
    seed: Seed = 0,
) -> None:
    """Estimate the trace of the Hessian."""


@measure("hessian_diagonal", rows=of_diagonal)
def diagonal(
    kind: Kind = "hessian", relative_error: RelativeError = 0.1, max_products: MaxProducts = 200, seed: Seed = 0
) -> None:
    """Estimate the diagonal of the Hessian, and show its sum and extremes."""


@measure("eigenvalues", rows=of_pairs)
def eigenvalues(
    k: Annotated[int, Option("--k", help="How many at each end.")] = 5,
    which: Annotated[str, words("largest smallest both")] = "largest",
    kind: Kind = "hessian",
    tolerance: Tolerance = 1e-3,
    max_products: MaxProducts = 1000,
    block: Annotated[
        int | None, Option(help="Vectors that are multiplied at once.", show_default="2; 1 for one pair")
    ] = None,
    max_basis: Annotated[int | None, Option(help="Vectors kept before a restart.", show_default="60 or more")] = None,
    seed: Seed = 0,
) -> None:
    """Find the largest or smallest eigenvalues of the Hessian, each with its residual."""


@measure("spectral_density", rows=of_density, draw=draw_densities)
def density(
    kind: Kind = "hessian",
    steps: Steps = 40,
    resolution: Annotated[
        float | None, Option(help="Distance of two eigenvalues that are told apart.", show_default="by --steps")
    ] = None,
    points: Annotated[int, Option(help="Of the grid.")] = 512,
    relative_error: RelativeError = 0.05,
    threshold: Annotated[
        float | None, Option(help="Know the sum of the eigenvalues above it, too.", show_default="none")
    ] = None,
    max_products: MaxProducts = 320,
    seed: Seed = 0,
) -> None:
    """Estimate the density of all eigenvalues of the Hessian, and draw it."""


@measure(
    "positive_mass",
    ("threshold", "threshold"),
    ("large", "value"),
    ERROR,
    ("sum of\nlarge", "sum"),
    shared="threshold",
)
def positive_mass(
    threshold: Threshold = None,
    top: Annotated[int, Option(help="Eigenvalues to find one by one.")] = 10,
    kind: Kind = "hessian",
    steps: Steps = 40,
    relative_error: RelativeError = 0.05,
    max_products: MaxProducts = 500,
    seed: Seed = 0,
) -> None:
    """Count the large positive eigenvalues of the Hessian, and add them up.

    Several minimizers are compared at one --threshold.
    """


@measure("edge_of_stability", ("ratio", "value"), ("lambda_max", "lambda_max"), ("limit", "limit"))
def edge_of_stability(
    learning_rate: Annotated[float, Option(help="Of gradient descent.")],
    momentum: Annotated[float, Option(help="From 0 to below 1.")] = 0.0,
    nesterov: Annotated[bool, Option("--nesterov", help="Whether the momentum is Nesterov's.")] = False,
    tolerance: Tolerance = 1e-3,
    max_products: MaxProducts = 1000,
    seed: Seed = 0,
) -> None:
    """Compare the largest eigenvalue with the largest that a learning rate tolerates; above 1 it is unstable."""


@measure("asymmetry", rows=of_sides, draw=draw_sides)
def asymmetry(
    top: Annotated[int, Option(help="Eigenvectors of the largest eigenvalues.")] = 3,
    random: Annotated[int, Option(help="Random directions.")] = 3,
    distances: Annotated[
        list[float] | None,
        Option(
            "--distance",
            help="From the minimizer; may be given several times.",
            show_default="13 up to its norm",
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Measure the sharpness on both sides of minimizers, along eigenvectors and random directions.

    The table is of the largest distance; each minimizer has a figure.
    """


@measure("layer_sharpness", ("phi %", "value"), split=by_layer)
def layers(
    epsilon: Annotated[float, Option(help="Size of the boxes.")] = 1e-3,
    method: Method = "vertex",
    iterations: Iterations = None,
    restarts: Restarts = 0,
    scout: Scout = None,
    scaling: Scaling = None,
    samples: SearchSamples = None,
    region: Region = "keskar",
    seed: Seed = 0,
) -> None:
    """Measure the sharpness of each layer's box alone."""


@measure("sharpness_curve", ("phi %", "value"), split=by_size, draw=draw_curves)
def sharpness_curve(
    epsilons: Epsilons = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3],  # noqa: B006
    method: Method = "vertex",
    iterations: Iterations = None,
    restarts: Restarts = 0,
    scout: Scout = None,
    scaling: Scaling = None,
    samples: SearchSamples = None,
    region: Region = "keskar",
    seed: Seed = 0,
) -> None:
    """Measure the sharpness at several sizes of the box, and draw it."""
