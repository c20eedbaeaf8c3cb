"""Checks of plain arguments that several modules of the training share."""

from __future__ import annotations

import json
import math
import numbers
from typing import Any


def whole(name: str, value: object, least: int) -> int:
    """Take an integer.

    Args:
        name: What the message calls it.
        value: What the user passed; NumPy's integers count, booleans do not.
        least: The smallest value allowed.

    Returns:
        The value as ``int``.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is too small.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer >= {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value}")
    return int(value)


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


def plain(name: str, value: object) -> Any:
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
