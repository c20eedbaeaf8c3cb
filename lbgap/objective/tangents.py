"""Derivatives along a direction: of the outputs, forward or by differentiating a backward pass, and second ones."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lbgap.flat import FlatModule
from lbgap.objective.plain import PlainOperations
from lbgap.problem import trees
from lbgap.problem.loss import Loss
from lbgap.problem.trees import Tree
from lbgap.system.device import first_line

TangentOf = Callable[[FlatModule, Tensor, Tensor], tuple[Tensor, Tensor]]
Reduce = Callable[[Tensor, Tensor, Tensor], Tensor]  # of outputs, their derivatives and the targets of a batch
SUMS = 8  # of outputs that are compared where entries cannot be
TERMS = 8  # samples on which a callable loss is tried out


@functools.cache
def _load_rules() -> None:
    """Let torch compile its forward rules, once; in doing so it warns of its own deprecated calls."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        zero = torch.zeros((), dtype=torch.float32, device="cpu")
        forward_ad.make_dual(zero, zero.clone())


@contextmanager
def differentiable() -> Iterator[None]:
    """Fused kernels in plain operations, which have both derivatives, and a graph."""
    with PlainOperations(), torch.enable_grad():
        yield


def forward(flat: FlatModule, inputs: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and their derivatives along a direction, by dual numbers in the replica's own parameters.

    Args:
        flat: The replica, at the point concerned.
        inputs: ``(batch, ...)``.
        direction: ``(n,)``.

    Raises:
        RuntimeError: An operation has no forward rule (``NotImplementedError`` is one of them).
    """
    _load_rules()
    with torch.no_grad(), forward_ad.dual_level():
        for parameter, part in zip(flat.moving, flat.parts(direction), strict=True):
            # Written in place, so that it reaches a parameter that the model keeps elsewhere too; gone with the level.
            parameter.copy_(forward_ad.make_dual(parameter.detach().clone(), part))
        output, tangent = forward_ad.unpack_dual(flat.run(inputs))
        return output.clone(), torch.zeros_like(output) if tangent is None else tangent.clone()


def backward(flat: FlatModule, inputs: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same by two backward passes: ``J d`` is the derivative of ``<J' u, d>`` in u.

    Raises:
        ValueError: The model cannot be differentiated twice.
    """
    output = flat.run(inputs)
    weights = torch.zeros_like(output, requires_grad=True)
    try:
        pulled = torch.autograd.grad(output, flat.moving, weights, create_graph=True, allow_unused=True)
        pairs = zip(pulled, flat.parts(direction), strict=True)
        along = torch.stack([(part * step).sum() for part, step in pairs if part is not None]).sum()
        check_whole(along)
        (tangent,) = torch.autograd.grad(along, weights)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"the model has no derivative along a direction, neither forward nor by a second backward pass: "
            f"{first_line(error)}"
        ) from error
    return output.detach(), tangent


def choose(flat: FlatModule, inputs: Callable[[], Tensor], direction: Tensor) -> TangentOf:
    """Decide between the two on a few samples: forward where it exists and agrees with what a backward pass says.

    An operation whose forward rule is missing raises, but a custom one may also drop the derivative without a word, and
    forward derivatives go on where ``torch.no_grad`` ends a backward pass.

    Args:
        flat: The replica, at the point concerned.
        inputs: Gives a fresh copy of the samples, since the model may overwrite them.
        direction: ``(n,)``.
    """
    try:
        _, tangent = forward(flat, inputs(), direction)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return backward
    try:
        _, expected = backward(flat, inputs(), direction)
    except ValueError:  # it cannot be differentiated twice, so that entries are not known, but sums of them are
        return forward if all(_sums_agree(flat, inputs(), direction, tangent, k + 1) for k in range(SUMS)) else backward
    return forward if float((tangent - expected).norm()) <= 1e-3 * float(expected.norm()) else backward


def _sums_agree(flat: FlatModule, inputs: Tensor, direction: Tensor, tangent: Tensor, frequency: int) -> bool:
    """Whether a weighted sum of the outputs' derivatives is what one backward pass says of it."""
    output = flat.run(inputs)
    numbers = torch.arange(output.numel(), dtype=torch.float64, device=output.device)
    weights = (frequency * numbers).cos().view_as(output)
    pulled = torch.autograd.grad(output, flat.moving, weights.to(output), allow_unused=True)
    expected = [
        part.double() * step.double()
        for part, step in zip(pulled, flat.parts(direction), strict=True)
        if part is not None
    ]
    found = weights * tangent
    # Rounding grows with the size of the terms, not with that of their sum; a lost derivative is of that size.
    size = found.abs().sum() + torch.stack([terms.abs().sum() for terms in expected]).sum()
    missed = (found.sum() - torch.stack([terms.sum() for terms in expected]).sum()).abs()
    return bool(missed <= torch.finfo(output.dtype).eps ** 0.6 * size)


def check_whole(value: Tensor) -> None:
    """Refuse a gradient whose graph is cut by a ``once_differentiable`` function: what lies behind would count as zero.

    Raises:
        RuntimeError: It is.
    """
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("a function in it is marked once_differentiable")
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]


def output_gradient(loss: Loss, output: Tensor, targets: Tree) -> Tensor:
    """Gradient of the summed loss of a batch with respect to its outputs."""
    leaf = output.detach().requires_grad_()
    total = loss.sums(leaf.view_as(leaf), targets).total  # a view, which a loss may overwrite
    (gradient,) = torch.autograd.grad(total, leaf)
    return gradient


def derivative_of(loss: Loss, scale: float) -> Reduce:
    """What makes of outputs, their derivatives along a direction and targets each sample's derivative of the loss.

    It returns ``(batch,)`` float64.

    Args:
        loss: The loss.
        scale: The number of samples over their weight: with it the mean of the terms of the samples is the value.

    Raises:
        ValueError: When it is called: the term of a sample depends on the others of its batch.
    """

    def derivative(output: Tensor, tangent: Tensor, targets: Tensor) -> Tensor:
        check_terms(loss, output, targets)
        slope = output_gradient(loss, output, targets)
        return (slope.double() * tangent.double()).reshape(len(slope), -1).sum(1) * scale

    return derivative


def check_terms(loss: Loss, output: Tensor, targets: Tree) -> None:
    """Refuse a callable loss in which the term of a sample depends on the other samples of its batch.

    Raises:
        ValueError: It does.
    """
    half = min(len(output), TERMS) // 2
    if loss.separable or half == 0:
        return
    spread = torch.arange(2 * half, device=output.device) * len(output) // (2 * half)  # samples may be sorted by class
    output, targets = output[spread], trees.rows(targets, spread)
    alone, among = (
        output_gradient(loss, output[:size], trees.cloned(trees.rows(targets, slice(size))))[:half]
        for size in (half, 2 * half)
    )
    if not torch.allclose(alone, among, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"the loss {loss.name!r} must be a mean of one term a sample, but the term of a sample depends on the "
            "others of its batch: this measure needs the loss of each sample"
        )


def curvatures(value: Tensor, moving: Sequence[Tensor], vectors: Sequence[Sequence[Tensor]]) -> Tensor:
    """Second derivatives of a scalar along vectors, ``(k,)`` float64.

    Args:
        value: 0-d, with its graph.
        moving: The tensors it depends on.
        vectors: k vectors, each in parts of the shapes of ``moving``; parts that are zero in all of them are skipped.

    Raises:
        ValueError: It cannot be differentiated twice.
    """
    used = [index for index in range(len(moving)) if any(vector[index].any() for vector in vectors)]
    result = torch.zeros(len(vectors), dtype=torch.float64, device=value.device)
    if not used:
        return result
    chosen = [moving[index] for index in used]
    try:
        # From a one that has a gradient itself: a once_differentiable function would pass for a constant otherwise.
        one = torch.ones_like(value, requires_grad=True)
        slopes = torch.autograd.grad(value, chosen, one, create_graph=True, allow_unused=True)
        for number, vector in enumerate(vectors):
            steps = [vector[index] for index in used]
            terms = [(slope * step).sum() for slope, step in zip(slopes, steps, strict=True) if slope is not None]
            along = torch.stack(terms).sum() if terms else value.detach()
            if not along.requires_grad:  # linear in these parameters
                continue
            check_whole(along)
            products = torch.autograd.grad(along, chosen, retain_graph=True, allow_unused=True)
            for product, step in zip(products, steps, strict=True):
                if product is not None:
                    result[number] += (product.double() * step.double()).sum()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"the model or the loss cannot be differentiated twice: {first_line(error)}") from error
    return result
