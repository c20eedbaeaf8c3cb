"""Why a measure ended and how far its value is to be trusted: every name with its sentence, in one place."""

from __future__ import annotations

from typing import Any

# Name: the sentence, with places for numbers. It says what to try where the value could be better. Statuses that mean
# the same share a name, the part before the dot; the part behind it tells their sentences apart. Before "*." stands
# the name that the caller gives, mostly that of a status inside the sentence.
SENTENCES: dict[str, str] = {
    "exact": "exact, to rounding",
    # Searches.
    "converged.vertex": (
        "converged after {gradients} gradients: the point is the vertex that its own gradient points to"
    ),
    "converged.gap": "converged after {gradients} gradients: the next vertex promises less than {percent:g} % more",
    "converged.gain": "converged after {gradients} gradients: the last vertex gained less than {percent:g} %",
    "converged.gradient": "converged: no coordinate has a projected gradient left",
    "converged.step": "converged: the last step gained nothing",
    "converged.ball": (
        "converged after {gradients} gradients: the ball promises less than {percent:g} % more to first order"
    ),
    "converged.short": "converged after {gradients} gradients: no step up to {radii:g} radii leads higher",
    "converged.still": "converged after {gradients} gradients: the next step does not change the point",
    "limit.gradients": "stopped after {gradients} gradients, the limit: more iterations may find a larger value",
    "limit.iterations": "stopped at the limit of iterations",
    "no_gradient": "could not move: the gradient is exactly zero; try restarts, or precision='float64'",
    "too_small.scaling": "could not move: the gradient is too small for scaling='paper'; try scaling='box'",
    "too_small.scipy": "could not move: the gradient is too small for SciPy's defaults; try method='vertex'",
    "rounding.box": (
        "could not move: wherever the gradient is not zero the region is narrower than the spacing of the numbers; try "
        "a larger epsilon, or precision='float64'"
    ),
    "rounding.ball": (
        "could not move: the ball is narrower than the spacing of the numbers; try a larger radius or float64"
    ),
    "rounding.line": "ended: no lower value along the gradient, rounding hides it",
    "not_finite": "stopped at a point without a finite loss: {error}",
    "not_finite.start": "could not start: {error}",
    "no_rise": "nothing larger than the loss at the minimizer was found: {ended}",
    "*.lbfgsb": "L-BFGS-B {ended} ({iterations} iterations, {gradients} gradients)",
    "*.scipy": "SciPy: {message} ({iterations} iterations, {gradients} gradients)",
    "*.because": "{ended}; {why}",
    "*.more": "{ended}: more iterations may find a larger value",
    # Measures.
    "exact.products": "exact, to rounding: {products} Hessian-vector products",
    "exact.batch": "exact, to rounding: the batch is all of the data",
    "converged.draws": ("{draws} draws: the standard error{what} is {percent:.2g} %, within the {asked:g} % asked for"),
    "converged.bracket": "bracketed to {percent:.2g} %",
    "converged.sigma": "found to {percent:.2g} %: {above:.6g} already raises the error by more",
    "complete.draws": "{draws} draws, all that were asked for: the standard error{what} is {percent:.2g} %",
    "complete.estimate": "estimated from {draws} draws; {products} products would be exact (exact=True)",
    "complete.sides": "along each direction the loss rises on a side",
    "limit.draws": "{draws} draws, the limit: the standard error{what} is {percent:.2g} %; try more draws",
    "no_gradient.direction": "the gradient is exactly zero: there is no direction; give one",
    "no_gradient.batch": (
        "the gradient of a batch is exactly zero: there is no direction; try float64 or a larger batch"
    ),
    "no_gradient.noise": ("the squared gradient cannot be told from zero: give more data, or population='data'"),
    "no_rise.samples": ("the point found on {samples} samples does not raise the loss on all of them: search on more"),
    "no_rise.steps": "no step up to {largest:g} raises the loss: try more doublings, or a larger initial",
    "no_rise.sigma": "no sigma up to {largest:g} raises the error by {deviation:g}: at least this one",
    "no_rise.sides": "the loss rises on neither side along {names}: try larger distances",
    "not_finite.samples": ("the point found on {samples} samples has a loss of {loss} on all of them: search on more"),
    "rises": "the loss rises at once along this direction: turn it round for a step that lowers it",
    "rises.steps": "every step down to {smallest:g} raises the loss: try precision='float64', or a smaller initial",
    "rises.eps": "the noise eps = {eps:g} alone raises the error by more: try a smaller eps",
    "rises.sigma": "even sigma = {smallest:g} raises the error by more: nothing in the range is allowed",
    "rounding.bracket": (
        "bracketed to {percent:.2g} %; but on the way the loss falls by no more than its rounding: try "
        "precision='float64'"
    ),
    "smaller_box": "the largest loss found is that of the box before, which lies inside this one: {ended}",
    # Curvature.
    "exact.rows": "exact, to rounding: {products} products, one for each row",
    "zero": "every one of {products} products was zero",
    "converged.pairs": "converged after {products} products: each residual is within {tolerance:g} of the largest",
    "converged.products": (
        "{products} products: the standard error is {error:.2g} % of {what}, within the {asked:g} % asked for"
    ),
    "converged.probes": (
        "{probes} probes: the standard error of the density is {error:.2g} % of its integral, within the {asked:g} % "
        "asked for"
    ),
    "converged.sum": (
        "{probes} probes: the standard error of the density is {error:.2g} % of its integral, that of the sum above "
        "{threshold:.4g} {of_sum:.2g} % of it, within the {asked:g} % asked for"
    ),
    "complete.products": (
        "{products} products, all that were asked for: the standard error is {error:.2g} % of {what}"
    ),
    "complete.probes": (
        "{probes} probes, all that were asked for: the standard error of the density is {error:.2g} % of its integral"
    ),
    "complete.sum": (
        "{probes} probes, all that were asked for: the standard error of the density is {error:.2g} % of its integral, "
        "that of the sum above {threshold:.4g} {of_sum:.2g} % of it"
    ),
    "limit.pairs": (
        "{good} of {pairs} pairs converged after {products} products, the limit: try a larger max_products"
    ),
    "limit.products": (
        "{products} products, the limit: the standard error is {error:.2g} % of {what}; try a larger max_products"
    ),
    "limit.probes": (
        "{probes} probes, the limit: the standard error of the density is {error:.2g} % of its integral; try a larger "
        "max_products"
    ),
    "limit.sum": (
        "{probes} probes, the limit: the standard error of the density is {error:.2g} % of its integral, that of the "
        "sum above {threshold:.4g} {of_sum:.2g} % of it; try a larger max_products"
    ),
    "rounding.pairs": (
        "{good} of {pairs} pairs converged after {products} products; the others ended at the rounding of the "
        "products: try float64"
    ),
    "*.copies": (
        "{found}; {count} of the values are the same, of which a block of {block} may miss more: try block={wanted}"
    ),
    "*.one_by_one": "all of them are among the {count} eigenvalues found one by one; of the rest: {rest}",
    "*.beyond": "beyond {count} eigenvalues found one by one it is an estimate: {rest}",
    "*.not_converged": "the eigenvalues found one by one are not exact: {found}; of the rest: {rest}",
    "above.edge": "above the edge; of the eigenvalue: {found}",
    "at.edge": "at the edge; of the eigenvalue: {found}",
    "below.edge": "below the edge; of the eigenvalue: {found}",
    # Landscapes.
    "complete": "the loss was evaluated at all {points:,} points: pass more points to see what is between them",
    "refined": "the loss was evaluated at {evaluated:,} of {points:,} points and interpolated at the others, off by at "
    "most {tolerance:g} of it where both are known: pass a smaller refine for more",
    "not_finite.points": "the loss is NaN or infinite at {bad:,} of {points:,} points, where it overflows: pass a "
    "smaller range or precision='float64'",
    "not_finite.minimizer": "the loss of a minimizer is NaN or infinite, so that there is no value: check data and "
    "models",
    "nothing_between": "no point between the minimizers was evaluated, so that the barrier is not known: pass more "
    "points, or a low below 1 and a high above 0",
    "trained": "an upper bound: a path that is trained for more epochs, or with more bends, may have a lower barrier",
    "not_lower": "the path is no lower than the straight line: pass more epochs, more bends or another learning_rate",
    "untrained": "the path is the straight line, for epochs is 0: pass epochs to train it",
}


class Status(str):
    """The sentence of a status, which also has a name that programs can compare.

    Attributes:
        name: One word, the same for all that mean the same; see docs/measures.md.
    """

    __slots__ = ("name",)
    name: str

    def __new__(cls, name: str, sentence: str) -> Status:
        """Join a name and its sentence; :func:`status` is how a measure makes one."""
        made = super().__new__(cls, sentence)
        made.name = name
        return made

    def __reduce__(self) -> tuple[type[Status], tuple[str, str]]:
        return Status, (self.name, str(self))


def status(key: str, /, *, name: str | None = None, **numbers: Any) -> Status:
    """The status of this key.

    Args:
        key: One of :data:`SENTENCES`.
        name: Of the status, where the key begins with ``*``; else it is the key up to its dot.
        **numbers: What its sentence has places for.
    """
    own = key.partition(".")[0]
    if (own == "*") != (name is not None):
        raise ValueError(f"name is that of a status whose key begins with '*', got {name!r} with {key!r}")
    return Status(own if name is None else name, SENTENCES[key].format(**numbers))
