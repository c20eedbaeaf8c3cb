"""The ops on the history of a quasi-Newton method, one thin wrapper each; see :mod:`lbgap.ops`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from lbgap import _extension, reference
from lbgap.ops._common import register


def _history(name: str, x: Tensor, *args: Tensor | float) -> Any:
    """Run a history op with whatever backend serves the device of ``x``."""
    if x.device.type not in _extension.NATIVE_DEVICES:
        return getattr(reference, name)(*args)
    return getattr(torch.ops.lbgap, name).default(*args)


def history_append(x_new: Tensor, x: Tensor, g_new: Tensor, g: Tensor, s: Tensor, y: Tensor, row: int) -> Tensor:
    """Write one more pair of differences into the history of a quasi-Newton method.

    The history is c pairs in the rows of ``s`` and ``y``, in any order; the 2c rows ``[y; s]`` are called W. This and
    the next five ops are the parts of L-BFGS-B that touch n coordinates. All vectors are contiguous ``(n,)``, all
    float32 or all float64; the bounds are ``lower - (absolute + relative |lower|)`` and
    ``upper + (absolute + relative |upper|)``.

    Args:
        x_new: Point, of which ``x_new - x`` goes to ``s[row]``.
        x: Point before.
        g_new: Gradient, of which ``g_new - g`` goes to ``y[row]``.
        g: Gradient before.
        s: Differences of points, ``(c, n)``.
        y: Differences of gradients, ``(c, n)``.
        row: Where the new pair goes.

    Returns:
        Inner products of all pairs with the new one, ``(c, 4)`` float64: s.s, s.y, y.s, y.y, the new one second.
    """
    return cast(Tensor, _history("history_append", x, x_new, x, g_new, g, s, y, row))


def history_cauchy(
    x: Tensor,
    g: Tensor,
    s: Tensor,
    y: Tensor,
    middle: Tensor,
    theta: float,
    lower: Tensor,
    upper: Tensor,
    absolute: float,
    relative: float,
    out: Tensor,
) -> Tensor:
    """Find the generalized Cauchy point: the first minimizer of the model along the projected gradient path.

    The model is ``<g, z - x> + (z - x)' B (z - x) / 2`` with ``B = theta I - W' middle W`` (Byrd, Lu, Nocedal, Zhu
    1995, eq. 3.2 and algorithm CP).

    Args:
        x: Point inside the bounds.
        g: Gradient there.
        s: Differences of points, ``(c, n)``.
        y: Differences of gradients, ``(c, n)``.
        middle: ``(2c, 2c)`` float64 on the CPU.
        theta: Scale of the model, above zero.
        lower: Lower bounds.
        upper: Upper bounds.
        absolute: Half-width that is added to every bound.
        relative: Half-width that is added per unit of a bound.
        out: Where the point goes.

    Returns:
        Where it is on the path ``P(x - t g)``, the largest coordinate of ``|P(x - g) - x|``, and ``W (out - x)``:
        ``(2 + 2c,)`` float64.
    """
    return cast(Tensor, _history("history_cauchy", x, x, g, s, y, middle, theta, lower, upper, absolute, relative, out))


def history_gram(
    point: Tensor,
    x: Tensor,
    g: Tensor,
    s: Tensor,
    y: Tensor,
    theta: float,
    lower: Tensor,
    upper: Tensor,
    absolute: float,
    relative: float,
) -> Tensor:
    """Multiply the history and the reduced gradient with each other over the coordinates free at ``point``.

    Arguments are those of :func:`history_cauchy`; the reduced gradient is ``h = g + theta (point - x)``.

    Returns:
        Inner products of the rows of W and of h, ``(2c + 1, 2c + 1)`` float64.
    """
    return cast(Tensor, _history("history_gram", x, point, x, g, s, y, theta, lower, upper, absolute, relative))


def history_combine(
    point: Tensor,
    x: Tensor,
    g: Tensor,
    s: Tensor,
    y: Tensor,
    q: Tensor,
    theta: float,
    lower: Tensor,
    upper: Tensor,
    absolute: float,
    relative: float,
    project: bool,
) -> None:
    """Add ``-(h + W' q) / theta`` to the free coordinates of ``point``, and project the result if asked to.

    Arguments are those of :func:`history_gram`; ``q`` is ``(2c,)`` float64 on the CPU.
    """
    _history("history_combine", x, point, x, g, s, y, q, theta, lower, upper, absolute, relative, project)


def history_line(
    g: Tensor, x: Tensor, z: Tensor, lower: Tensor, upper: Tensor, absolute: float, relative: float
) -> Tensor:
    """Measure the direction ``d = z - x`` for a line search.

    Returns:
        ``<g, d>``, ``|d|^2`` and the longest step from ``x`` inside the bounds: ``(3,)`` float64.
    """
    return cast(Tensor, _history("history_line", x, g, x, z, lower, upper, absolute, relative))


def history_step(
    x: Tensor, z: Tensor, alpha: float, lower: Tensor, upper: Tensor, absolute: float, relative: float, out: Tensor
) -> None:
    """Write ``x + alpha (z - x)``, projected onto the bounds, to ``out``."""
    _history("history_step", x, x, z, alpha, lower, upper, absolute, relative, out)


def _fake_history(name: str, shape: Callable[[int], tuple[int, ...]] | None) -> None:
    """Tell torch what an op returns without running it: ``shape`` of the sums from the number of pairs."""

    def fake(first: Tensor, *args: Tensor | float) -> Tensor | None:
        pairs = next((arg.shape[0] for arg in args if isinstance(arg, Tensor) and arg.dim() == 2), 0)
        return None if shape is None else first.new_empty(shape(pairs), dtype=torch.float64)

    register(name, fake)


_HISTORY: dict[str, Callable[[int], tuple[int, ...]] | None] = {
    "history_append": lambda pairs: (pairs, 4),
    "history_cauchy": lambda pairs: (2 + 2 * pairs,),
    "history_gram": lambda pairs: (2 * pairs + 1, 2 * pairs + 1),
    "history_combine": None,
    "history_line": lambda _: (3,),
    "history_step": None,
}

for _name, _shape in _HISTORY.items():
    _fake_history(_name, _shape)
