"""Why a measure ended and how far its value is to be trusted: every name with its sentence, in one place."""

from __future__ import annotations

from typing import Any

# Name: the sentence, with places for numbers. It says what to try where the value could be better. Statuses that mean
# the same share a name, the part before the dot; the part behind it tells their sentences apart. Before "*." stands
# the name that the caller gives, mostly that of a status inside the sentence.
SENTENCES: dict[str, str] = {
    "exact": "exact, to rounding{what}",
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
    "above.edge": "above the edge; the eigenvalue {found}",
    "at.edge": "at the edge; the eigenvalue {found}",
    "below.edge": "below the edge; the eigenvalue {found}",
    # Landscapes.
    "complete": "the loss was evaluated at all {points:,} points: pass more points to see what is between them",
    "refined": "the loss was evaluated at {evaluated:,} of {points:,} points and interpolated at the others, off by at "
    "most {tolerance:g} of it where both are known: pass a smaller refine for more",
    "points_not_finite": "the loss is NaN or infinite at {bad:,} of {points:,} points, where it overflows: pass a "
    "smaller range or precision='float64'",
    "minimizer_not_finite": "the loss of a minimizer is NaN or infinite, so that there is no value: check data and "
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

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return self.name, str(self)


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
