"""Checks of plain arguments, one set for everything, and what a message about a wrong word says of the right one."""

from __future__ import annotations

import difflib
import json
import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

import torch

LARGEST = 2**63  # whole numbers are smaller, as those of torch and SQLite are


def whole(name: str, value: object, least: int, below: int = LARGEST) -> int:
    """Take a whole number.

    Args:
        name: What the message calls it.
        value: What the user passed: an ``int``, an integer of NumPy or a 0-d tensor of integers; no boolean.
        least: The smallest value allowed.
        below: The first that is too large.

    Returns:
        The value as ``int``.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is out of range.
    """
    number = _index(value)
    if number is None:
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if least <= number < below:
        return number
    if below < LARGEST:
        raise ValueError(f"{name} must be between {least} and {below - 1:,}, got {number}")
    raise ValueError(f"{name} must be {f'at least {least}' if number < least else 'below 2**63'}, got {number}")


def is_whole(value: object) -> bool:
    """Whether :func:`whole` takes a value for a number at all."""
    return _index(value) is not None


def _index(value: object) -> int | None:
    if isinstance(value, bool) or getattr(value, "shape", ()) != () or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):  # torch's, of a tensor that has no value
        return None


def real(name: str, value: object, *, positive: bool) -> float:
    """Take a finite number that is positive, or not negative.

    Args:
        name: What the message calls it.
        value: What the user passed.
        positive: Whether zero is refused.

    Returns:
        The value as ``float``.

    Raises:
        TypeError: It is not a number.
        ValueError: It is NaN, infinite, negative or, if ``positive``, zero.
    """
    wanted = f"a finite number {'>' if positive else '>='} 0"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    number = float(value)
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return number


def positive(name: str, value: float, example: str, *, zero: bool = False) -> float:
    """Take a number that is finite and above zero, in float32 too; or zero as well where ``zero``.

    Raises:
        ValueError: It is not.
        TypeError: It is no number.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: try {example}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond float64
        number = math.inf
    rounded = torch.tensor(number, dtype=torch.float32, device="cpu").item()
    if not 0 <= rounded < math.inf or (rounded == 0 and not (zero and number == 0)):
        raise ValueError(
            f"{name} must be finite and {'zero or more' if zero else 'above zero'}, got {value}: try {example}"
        )
    return number


def flag(name: str, value: bool) -> None:
    """Check a switch.

    Raises:
        TypeError: It is neither True nor False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def json_value(name: str, value: object) -> Any:
    """Take a value that JSON can hold, as JSON would give it back (tuples become lists).

    Args:
        name: What the message calls it.
        value: What the user passed.

    Returns:
        An independent copy.

    Raises:
        TypeError: Something in it has no JSON form, or is NaN or infinite.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{name} must hold only strings, finite numbers, lists and dicts: {error}") from error


def meant(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant; None if none is close."""
    return next(iter(difflib.get_close_matches(word, list(known), 1)), None)


def hint(word: str, known: Iterable[str]) -> str:
    """That word as the end of a message; nothing if none is close."""
    close = meant(word, known)
    return f": did you mean {close!r}?" if close else ""


def advice(word: str, known: Iterable[str], otherwise: str) -> str:
    """That word as what to do; if none is close, ``otherwise`` and all that are known."""
    names = list(known)
    close = meant(word, names)
    return f"did you mean {close!r}?" if close else f"{otherwise} {', '.join(names)}"
