"""Why a measure ended and how far its value is to be trusted: every name with its sentence, in one place."""

from __future__ import annotations

from typing import Any

# Name: the sentence, with places for numbers. It says what to try where the value could be better.
SENTENCES: dict[str, str] = {
    "exact": "exact, to rounding{what}",
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
        name: One of :data:`SENTENCES`.
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


def status(name: str, **numbers: Any) -> Status:
    """The status of this name.

    Args:
        name: One of :data:`SENTENCES`.
        **numbers: What its sentence has places for.
    """
    return Status(name, SENTENCES[name].format(**numbers))
