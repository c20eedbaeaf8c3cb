"""The operators, one thin wrapper each: native where a compiled library serves the device.

The box is (centre x, absolute a, relative b): coordinate i may be anywhere in x_i -+ (a + b |x_i|). It is
never stored as bounds. The random matrix A is ``(n, p)`` and never stored either: entry (i, j) is a function of
``(distribution, seed, stream, first + i, j)``, a float32 number whatever the dtype of the vectors.

Everywhere else than on a natively served device the call goes to the twin in :mod:`lbgap.reference`. None of these
ops has derivatives, so all refuse inputs that require a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from lbgap import _extension, reference

_DTYPES = (torch.float32, torch.float64)


def _differentiable(tensor: Tensor) -> bool:
    """Whether a derivative with respect to the tensor is asked for, in reverse or in forward mode."""
    return tensor.requires_grad or unpack_dual(tensor).tangent is not None


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements may share memory; certain for every layout that slicing and transposing give."""
    dims = [dim for dim in zip(tensor.stride(), tensor.shape, strict=True) if dim[1] != 1]
    if tensor.numel() == 0 or not dims:
        return False
    (a, m), (b, n) = dims if len(dims) == 2 else (dims[0], (1, 1))
    return a == 0 or b == 0 or (a <= b * (n - 1) and b <= a * (m - 1))


def _check(centre: Tensor, absolute: float, relative: float, **rows: Tensor) -> None:
    y = rows["y"]
    if y.dtype not in _DTYPES:
        raise TypeError(f"y must be float32 or float64, got {y.dtype}: convert it first")
    if y.dim() not in (1, 2):
        raise ValueError(f"y must be (n,) or (k, n), got shape {tuple(y.shape)}: reshape it")
    if centre.shape != y.shape[-1:]:
        raise ValueError(f"centre must have shape ({y.shape[-1]},) for y {tuple(y.shape)}, got {tuple(centre.shape)}")
    for name, tensor in {"centre": centre, **rows}.items():
        if name != "centre" and tensor.shape != y.shape:
            raise ValueError(f"{name} must have the shape of y, {tuple(y.shape)}, got {tuple(tensor.shape)}")
        if tensor.dtype != y.dtype:
            raise TypeError(f"{name} must have the dtype of y, {y.dtype}, got {tensor.dtype}")
        if tensor.device != y.device:
            raise ValueError(f"{name} must be on the device of y, {y.device}, got {tensor.device}")
        if _differentiable(tensor):
            raise ValueError(f"{name} requires a gradient, and the box ops have none: pass {name}.detach()")
    if _overlaps_itself(rows["out"]):
        raise ValueError("out has elements that share memory: pass a fresh tensor")
    largest = torch.finfo(y.dtype).max
    for name, width in (("absolute", absolute), ("relative", relative)):
        if not 0 <= width <= largest:
            raise ValueError(f"{name} half-width must be finite in {y.dtype} and not negative, got {width}")


def _rows(tensor: Tensor) -> Tensor:
    """The tensor itself if its rows are contiguous, else a copy whose rows are."""
    return tensor if tensor.shape[-1] <= 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def _writable(out: Tensor) -> bool:
    """Whether the native op can write into ``out`` as it is."""
    n = out.shape[-1]
    return (n <= 1 or out.stride(-1) == 1) and (out.dim() == 1 or out.shape[0] <= 1 or out.stride(0) >= n)


def _run(
    name: str, y: Tensor, args: tuple[Tensor | float, ...], box: tuple[Tensor, float, float], out: Tensor
) -> Tensor:
    """Run one op on whichever backend serves the device of ``y``."""
    if y.device.type not in _extension.NATIVE_DEVICES:
        return cast(Tensor, getattr(reference, name)(y, *args, *box, out))
    op = getattr(torch.ops.lbgap, name).default
    rows = [_rows(arg) if isinstance(arg, Tensor) else arg for arg in (y, *args)]
    if _writable(out):
        return cast(Tensor, op(*rows, _rows(box[0]), *box[1:], out))
    scratch = torch.empty_like(y, memory_format=torch.contiguous_format)
    sums = op(*rows, _rows(box[0]), *box[1:], scratch)
    out.copy_(scratch)
    return cast(Tensor, sums)


def box_project(y: Tensor, centre: Tensor, absolute: float, relative: float, out: Tensor) -> None:
    """Project ``y`` onto the box.

    Args:
        y: Points, ``(n,)`` or ``(k, n)``, float32 or float64.
        centre: Centre of the box, ``(n,)``, same dtype and device.
        absolute: Half-width that every coordinate has.
        relative: Half-width per unit of ``|centre|``.
        out: Where the projected points go, shaped like ``y``; may be ``y``.

    Raises:
        ValueError: Shapes or devices differ, a half-width is negative or not finite in the dtype, or an input
            requires a gradient.
        TypeError: Dtypes differ or are not float32 or float64.
    """
    _check(centre, absolute, relative, y=y, out=out)
    _run("box_project", y, (), (centre, absolute, relative), out)


def box_step(
    y: Tensor,
    direction: Tensor,
    alpha: float,
    centre: Tensor,
    absolute: float,
    relative: float,
    out: Tensor,
) -> Tensor:
    """Step from ``y`` along ``direction`` and project onto the box, in one pass.

    Args:
        y: Points, ``(n,)`` or ``(k, n)``, float32 or float64.
        direction: Where to go, shaped like ``y``.
        alpha: Step length.
        centre: Centre of the box, ``(n,)``.
        absolute: Half-width that every coordinate has.
        relative: Half-width per unit of ``|centre|``.
        out: Where ``project(y + alpha * direction)`` goes, shaped like ``y``; may be ``y``.

    Returns:
        ``|out - y|^2``, ``<direction, out - y>`` and the number of coordinates that the projection moved:
        float64, ``(3,)`` or ``(k, 3)``.

    Raises:
        ValueError: As :func:`box_project`, or ``alpha`` is not finite in the dtype.
        TypeError: As :func:`box_project`.
    """
    _check(centre, absolute, relative, y=y, direction=direction, out=out)
    if not abs(alpha) <= torch.finfo(y.dtype).max:
        raise ValueError(f"alpha must be finite in {y.dtype}, got {alpha}")
    return _run("box_step", y, (direction, alpha), (centre, absolute, relative), out)


def box_vertex(y: Tensor, gradient: Tensor, centre: Tensor, absolute: float, relative: float, out: Tensor) -> Tensor:
    """Go to the vertex of the box that is furthest along ``gradient``: ``x + r sign(g)``.

    Where the gradient is exactly zero every value is as good, and ``y`` keeps its own.

    Args:
        y: Points, ``(n,)`` or ``(k, n)``, float32 or float64.
        gradient: Gradient of the function at ``y``, shaped like ``y``.
        centre: Centre of the box, ``(n,)``.
        absolute: Half-width that every coordinate has.
        relative: Half-width per unit of ``|centre|``.
        out: Where the vertex goes, shaped like ``y``; may be ``y``.

    Returns:
        The Frank-Wolfe gap ``<gradient, out - y>`` and the number of coordinates where ``out`` differs from
        ``y``: float64, ``(2,)`` or ``(k, 2)``.

    Raises:
        ValueError: As :func:`box_project`.
        TypeError: As :func:`box_project`.
    """
    _check(centre, absolute, relative, y=y, gradient=gradient, out=out)
    return _run("box_vertex", y, (gradient,), (centre, absolute, relative), out)


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


def subspace_apply(
    centre: Tensor, z: Tensor, seed: int, stream: int, distribution: str, out: Tensor, *, first: int = 0
) -> None:
    """Go from ``centre`` along the columns of the random matrix A: ``centre + A z``, rounded once.

    Args:
        centre: ``(n,)``, float32 or float64.
        z: Coordinates, ``(p,)`` or ``(k, p)``, float64, same device; A is drawn once for all k.
        seed: Of A, below 2**63.
        stream: Which of the seed's matrices, below 2**32.
        distribution: ``"normal"``, ``"uniform"`` on [-1, 1) or ``"rademacher"``.
        out: Where the points go, ``(n,)`` or ``(k, n)``, dtype of ``centre``; may be ``centre``.
        first: Index of the first row, where the vectors are a part of longer ones.

    Raises:
        ValueError: Shapes or devices do not fit, a number is out of range, the distribution is not known, or an
            input requires a gradient.
        TypeError: A dtype does not fit, or a number is not whole.
    """
    code = _check_matrix(seed, stream, distribution, first, centre=centre, z=z, out=out)
    if z.dim() not in (1, 2) or centre.dim() != 1 or out.shape != (*z.shape[:-1], len(centre)):
        raise ValueError(
            f"centre must be (n,), z (p,) or (k, p) and out (n,) or (k, n), got {tuple(centre.shape)}, "
            f"{tuple(z.shape)} and {tuple(out.shape)}"
        )
    if z.dtype != torch.float64:
        raise TypeError(f"z must be float64, got {z.dtype}: convert it first")
    if centre.dtype not in _DTYPES or out.dtype != centre.dtype:
        raise TypeError(f"centre and out must both be float32 or both float64, got {centre.dtype} and {out.dtype}")
    if _overlaps_itself(out):
        raise ValueError("out has elements that share memory: pass a fresh tensor")
    if centre.device.type not in _extension.NATIVE_DEVICES:
        reference.subspace_apply(centre, z, seed, stream, distribution, out, first=first)
        return
    target = out if _writable(out) else torch.empty_like(out, memory_format=torch.contiguous_format)
    torch.ops.lbgap.subspace_apply.default(_rows(centre), _rows(z), code, seed, stream, first, target)
    if target is not out:
        out.copy_(target)


def subspace_project(g: Tensor, p: int, seed: int, stream: int, distribution: str, *, first: int = 0) -> Tensor:
    """Inner products of vectors with the columns of the random matrix A: ``A'g``.

    Args:
        g: ``(n,)`` or ``(k, n)``, float32 or float64; A is drawn once for all k.
        p: Number of columns.
        seed: Of A, as in :func:`subspace_apply`.
        stream: Which of the seed's matrices.
        distribution: ``"normal"``, ``"uniform"`` or ``"rademacher"``.
        first: Index of the first row.

    Returns:
        ``(p,)`` or ``(k, p)`` float64, summed in float64 over a fixed tree.

    Raises:
        ValueError: As :func:`subspace_apply`.
        TypeError: As :func:`subspace_apply`.
    """
    code = _check_matrix(seed, stream, distribution, first, p=p, g=g)
    if g.dim() not in (1, 2):
        raise ValueError(f"g must be (n,) or (k, n), got shape {tuple(g.shape)}: reshape it")
    if g.dtype not in _DTYPES:
        raise TypeError(f"g must be float32 or float64, got {g.dtype}: convert it first")
    if g.device.type not in _extension.NATIVE_DEVICES:
        return reference.subspace_project(g, p, seed, stream, distribution, first=first)
    op = torch.ops.lbgap.subspace_project.default
    return cast(Tensor, op(_rows(g), p, code, seed, stream, first))


def subspace_gram(
    n: int, p: int, seed: int, stream: int, distribution: str, device: torch.device, *, first: int = 0
) -> Tensor:
    """Inner products of the columns of the random matrix A with each other: ``A'A``.

    Args:
        n: Number of rows.
        p: Number of columns.
        seed: Of A, as in :func:`subspace_apply`.
        stream: Which of the seed's matrices.
        distribution: ``"normal"``, ``"uniform"`` or ``"rademacher"``.
        device: Where to compute.
        first: Index of the first row.

    Returns:
        ``(p, p)`` float64, symmetric.

    Raises:
        ValueError: As :func:`subspace_apply`.
        TypeError: As :func:`subspace_apply`.
    """
    code = _check_matrix(seed, stream, distribution, first, n=n, p=p)
    if device.type not in _extension.NATIVE_DEVICES:
        return reference.subspace_gram(n, p, seed, stream, distribution, device, first=first)
    like = torch.empty(0, device=device)
    return cast(Tensor, torch.ops.lbgap.subspace_gram.default(like, n, p, code, seed, stream, first))


def _check_matrix(seed: int, stream: int, distribution: str, first: int, **rest: int | Tensor) -> int:
    """Judge what every op on A shares; returns the number of the distribution."""
    if distribution not in reference.DISTRIBUTIONS:
        names = ", ".join(map(repr, reference.DISTRIBUTIONS))
        raise ValueError(f"distribution must be one of {names}, got {distribution!r}")
    tensors = {name: value for name, value in rest.items() if isinstance(value, Tensor)}
    sizes = {name: value for name, value in rest.items() if not isinstance(value, Tensor)}
    most = {"stream": 2**32, "p": 2**33}
    for name, number in {"seed": seed, "stream": stream, "first": first, **sizes}.items():
        if isinstance(number, bool) or not isinstance(number, int | torch.SymInt):
            raise TypeError(f"{name} must be a whole number, got {number!r}")
        if not 0 <= number < most.get(name, 2**63):
            raise ValueError(f"{name} must be at least 0 and below {most.get(name, 2**63)}, got {number}")
    devices = {tensor.device for tensor in tensors.values()}
    if len(devices) > 1:
        found = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"all tensors must be on one device, got {found}: move them")
    for name, tensor in tensors.items():
        if _differentiable(tensor):
            raise ValueError(f"{name} requires a gradient, and the subspace ops have none: pass {name}.detach()")
    return reference.DISTRIBUTIONS.index(distribution)


def _refuse_gradients(name: str) -> None:
    """Make the raw op refuse inputs that require a gradient, and count what it writes.

    Without a kernel at this dispatch key torch would run the op, give no gradient, and warn in the backward
    pass at best; and a graph that had saved ``out`` would go on with the new values, unnoticed.
    """
    op = getattr(torch.ops.lbgap, name).default
    written = [place for place, arg in enumerate(op._schema.arguments) if arg.is_write]

    def kernel(keys: Any, *args: Tensor | float) -> Any:
        if any(isinstance(arg, Tensor) and _differentiable(arg) for arg in args):
            raise ValueError(f"an input of {name} requires a gradient, and this op has none: detach() it")
        for place in written:
            torch.autograd.graph.increment_version(cast(Tensor, args[place]))
        return op.redispatch(keys & torch._C._after_autograd_keyset, *args)

    _library.impl(name, kernel, "Autograd", with_keyset=True, allow_override=True)


def _fake(name: str, sums: int) -> None:
    """Tell torch what the op returns without running it: ``sums`` float64 numbers a row, or nothing."""

    def fake(y: Tensor, *args: Tensor | float) -> Tensor | None:
        for arg in args:
            if isinstance(arg, Tensor) and arg.device != y.device:
                raise ValueError(f"the inputs of {name} must be on one device, got {y.device} and {arg.device}")
        return y.new_empty((*y.shape[:-1], sums), dtype=torch.float64) if sums else None

    torch.library.register_fake(f"lbgap::{name}", fake, allow_override=True)


def _fake_history(name: str, shape: Callable[[int], tuple[int, ...]] | None) -> None:
    """As :func:`_fake`, for the history ops: ``shape`` of the sums from the number of pairs."""

    def fake(first: Tensor, *args: Tensor | float) -> Tensor | None:
        pairs = next((arg.shape[0] for arg in args if isinstance(arg, Tensor) and arg.dim() == 2), 0)
        return None if shape is None else first.new_empty(shape(pairs), dtype=torch.float64)

    torch.library.register_fake(f"lbgap::{name}", fake, allow_override=True)


_HISTORY: dict[str, Callable[[int], tuple[int, ...]] | None] = {
    "history_append": lambda pairs: (pairs, 4),
    "history_cauchy": lambda pairs: (2 + 2 * pairs,),
    "history_gram": lambda pairs: (2 * pairs + 1, 2 * pairs + 1),
    "history_combine": None,
    "history_line": lambda _: (3,),
    "history_step": None,
}


def _fake_projection(g: Tensor, p: int, *_: int) -> Tensor:
    return g.new_empty((*g.shape[:-1], p), dtype=torch.float64)


def _fake_gram(like: Tensor, n: int, p: int, *_: int) -> Tensor:
    return like.new_empty((p, p), dtype=torch.float64)


if _extension.NATIVE_DEVICES:
    _library = torch.library.Library("lbgap", "IMPL")
    for _name, _sums in (("box_project", 0), ("box_step", 3), ("box_vertex", 2), ("subspace_apply", 0)):
        _refuse_gradients(_name)
        _fake(_name, _sums)
    for _name, _shape in _HISTORY.items():
        _refuse_gradients(_name)
        _fake_history(_name, _shape)

    for _name, _function in (("subspace_project", _fake_projection), ("subspace_gram", _fake_gram)):
        _refuse_gradients(_name)
        torch.library.register_fake(f"lbgap::{_name}", _function, allow_override=True)
