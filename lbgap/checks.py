"""Checks of plain arguments, one set for everything, and what a message about a wrong word says of the right one."""

from __future__ import annotations

import difflib
import json
import math
import numbers
import operator
from collections.abc import Iterable, Mapping, Set
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Amount: TypeAlias = int | float | str
"""A number of samples, or a share of them: 256, 0.1 or ``"10%"``."""
SHOWN = 100  # characters of an argument in a message
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
        raise TypeError(f"{name} must be a whole number, got {shown(value)}")
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


def number(value: object) -> float | None:
    """What a real number is as ``float``, infinite where it is too large for one; None for anything else.

    Args:
        value: A number of Python, NumPy or torch, the latter two of no dimension, on any device; no boolean.
    """
    if isinstance(value, Tensor | np.ndarray):
        value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:  # an int beyond float64
        return math.inf if str(value)[0] != "-" else -math.inf


def _scalar(value: Tensor | np.ndarray[Any, Any]) -> object:
    """The Python number of an array without dimensions; None of any other, and of one without a value."""
    if value.ndim or (isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided)):
        return None
    return value.item()  # of a tensor that requires grad too, without a warning


def shown(value: object) -> str:
    """What a message says of an argument: itself where it is short, else its kind and shape."""
    text, shape = repr(value), getattr(value, "shape", None)
    if len(text) <= SHOWN and "\n" not in text:
        return text
    return type(value).__name__ + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) else "")


def real(name: str, value: object, *, positive: bool) -> float:
    """Take a finite number that is positive, or not negative.

    Args:
        name: What the message calls it.
        value: What the user passed: anything that :func:`number` takes.
        positive: Whether zero is refused.

    Returns:
        The value as ``float``.

    Raises:
        TypeError: It is not a number.
        ValueError: It is NaN, infinite, negative or, if ``positive``, zero.
    """
    wanted = f"a finite number {'>' if positive else '>='} 0"
    found = number(value)
    if found is None:
        raise TypeError(f"{name} must be {wanted}, got {shown(value)}")
    if not math.isfinite(found) or found < 0 or (positive and found == 0):
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return found


def any_number(name: str, value: object) -> float:
    """Take a number, be it NaN or infinite.

    Raises:
        TypeError: It is none.
    """
    found = number(value)
    if found is None:
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    return found


def finite(name: str, value: object) -> float:
    """Take a finite number of any sign.

    Raises:
        TypeError: It is not a number.
        ValueError: It is NaN or infinite.
    """
    found = any_number(name, value)
    if not math.isfinite(found):
        raise ValueError(f"{name} must be finite, got {value}")
    return found


def positive(name: str, value: object, example: str, *, zero: bool = False) -> float:
    """Take a number that is finite and above zero, in float32 too; or zero as well where ``zero``.

    Args:
        name: What the message calls it.
        value: What the user passed: anything that :func:`number` takes.
        example: What the message says to try.
        zero: Whether zero is taken.

    Returns:
        The value as ``float``.

    Raises:
        ValueError: It is not.
        TypeError: It is no number.
    """
    found = number(value)
    if found is None:
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: try {example}")
    rounded = torch.tensor(found, dtype=torch.float32, device="cpu").item()
    if not 0 <= rounded < math.inf or (rounded == 0 and not (zero and found == 0)):
        raise ValueError(
            f"{name} must be finite and {'zero or more' if zero else 'above zero'}, got {value}: try {example}"
        )
    return found


def flag(name: str, value: object) -> bool:
    """Take a switch: a boolean of Python, NumPy or torch, the latter two of no dimension.

    Raises:
        TypeError: It is neither True nor False.
    """
    found = _scalar(value) if isinstance(value, Tensor | np.ndarray) else value
    if not isinstance(found, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(found)


def percent(text: str) -> float | None:
    """The share that a percentage is: 0.1 of ``"10%"``; None where the text is none."""
    digits = text.strip()
    try:
        return float(digits[:-1]) / 100 if digits.endswith("%") else None
    except ValueError:
        return None


def amount(name: str, value: object, least: int = 1) -> int | float:
    """Take a number of samples, or a share of all of them, which :func:`counted` counts.

    Args:
        name: What the message calls it.
        value: What the user passed: 256, a whole number, counts samples; 0.1, a float in (0, 1], and ``"10%"`` are
            shares.
        least: The smallest number allowed.

    Returns:
        The number as ``int``, or the share as ``float``.

    Raises:
        TypeError: It is none of these.
        ValueError: It is out of range.
    """
    share = percent(value) if isinstance(value, str) else None if is_whole(value) else number(value)
    if share is None and not is_whole(value):
        raise TypeError(
            f"{name} must be a whole number of samples, or a share such as 0.1 or '10%', got {shown(value)}"
        )
    if share is None:
        return whole(name, value, least)
    if not 0 < share <= 1:
        raise ValueError(
            f"{name} as a {'percentage' if isinstance(value, str) else 'float'} is a share of the samples, above 0 and "
            f"at most all, got {shown(value)}: pass an int to count samples"
        )
    return share


def counted(amount: int | float, total: int) -> int:
    """How many samples an amount is of all, rounded to the nearest number, but one at least of a share."""
    return amount if isinstance(amount, int) else max(1, round(amount * total))


def several(values: object) -> list[Any] | None:
    """What a list holds; None of anything that is none.

    Args:
        values: A list, a tuple, a range or any other iterable of an order; or a one-dimensional array of NumPy or
            tensor of torch, whose numbers are taken as Python's.
    """
    if isinstance(values, Tensor | np.ndarray):
        if values.ndim != 1 or (isinstance(values, Tensor) and (values.is_meta or values.layout != torch.strided)):
            return None
        return list(values.tolist())
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        return None
    return list(values)


def dense(name: str, wanted: str, value: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Take a dense tensor as it is, without a graph; or a NumPy array of floats as a tensor of a dtype on a device.

    Args:
        name: What the message calls it.
        wanted: Its shape, for the message.
        value: What the user passed.
        dtype: Of a tensor that is made of an array.
        device: Of such a tensor.

    Returns:
        The tensor, detached; a copy where it is of inference mode, which nothing outside of that may save.

    Raises:
        TypeError: It is neither.
        ValueError: It is sparse, or of another layout that has no strides.
    """
    with torch.inference_mode(False):
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            plain = np.array(value, dtype=np.float64)  # a copy, which may be written, in the order of this machine
            return torch.from_numpy(plain).to(device, dtype)
        if not isinstance(value, Tensor):
            kind = f" of {value.dtype}" if isinstance(value, np.ndarray) else ""
            raise TypeError(f"{name} must be a tensor {wanted}, got {type(value).__name__}{kind}")
        if value.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor {wanted}, got {value.layout}: pass it as .to_dense()")
        return value.clone() if value.is_inference() else value.detach()


def moved(name: str, wanted: str, value: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Take a tensor or NumPy array of real numbers from anywhere, and bring it into a dtype and to a device.

    Args:
        name: What the message calls it.
        wanted: Its shape, for the message.
        value: What the user passed.
        dtype: Which it gets.
        device: Where it goes.

    Raises:
        TypeError: It is neither.
        ValueError: It is sparse, complex or boolean, or has no values.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        value = value.astype(np.float64)
    found = dense(name, wanted, value, dtype, device)
    if found.is_meta or found.is_complex() or found.dtype == torch.bool:
        raise ValueError(f"{name} must hold real numbers {wanted}, got {found.dtype} on {found.device}")
    return found.to(device, dtype)


def check_finite(name: str, values: Tensor) -> None:
    """Refuse a tensor that holds NaN or infinity.

    Raises:
        ValueError: It does.
    """
    if not values.sum().isfinite() and not values.isfinite().all():  # the sum is one quick pass
        raise ValueError(f"{name} must be finite, but an entry is NaN or infinite")


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
