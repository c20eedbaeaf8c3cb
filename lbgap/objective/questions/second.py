"""Are the second derivatives those of the gradient? Products with a vector against differences of gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lbgap.layers import displace
from lbgap.objective import tangents
from lbgap.objective.products import general
from lbgap.objective.products.output import OutputCurvature
from lbgap.objective.products.trial import EXACT_PARAMETERS
from lbgap.objective.questions.case import YES, Case
from lbgap.objective.questions.fresh import copied, precisely, seeded
from lbgap.objective.questions.rounding import Narrowest
from lbgap.problem import trees
from lbgap.problem.batch import Batch
from lbgap.problem.trees import Tree
from lbgap.system.device import first_line

SAMPLES, MORE_SAMPLES = 8, 64  # more where the loss of the first is flat: a mask of the user's may leave none of them
LOSS_ENTRIES = 2**21  # outputs that the loss is differentiated in
STEPS = (1e-7, 1e-5, 1e-2, 2e-2)  # relative: below kinks, and above the rounding of what runs in float32 inside
ABOVE_ROUNDING = 5e4  # times the rounding of the narrowest type in a pass: smaller steps may vanish in it
AGREE = 1e-4  # relative: the differences at two steps
OFF = 1e-3  # relative: product and differences
SMALL_PART = 1e-3  # of the whole vector, by which the part of one parameter may be off as if it were so large
NOT = "not judged: "
ROUNDING = NOT + "rounding, or kinks, are larger than the differences"


class OtherError(Exception):
    """A product is not that of the differences."""


def ask(case: Case, kind: str) -> str:
    """Ask it at a point some way off of the loss in the outputs, then of a copy of the model: in float64 if they can.

    A backward pass made of values that the forward pass has stored gives the right gradient, and counts as a constant
    in the second. A large network is not copied.

    Args:
        case: Its replica may be anywhere; it is left at the minimizer.
        kind: ``"hessian"`` or ``"ggn"``.

    Raises:
        ValueError: A product is another than the differences, which agree with each other.
    """
    with torch.no_grad():
        case.evaluator.flat.theta.copy_(case.centre)
    try:
        with seeded(case, 0), case.evaluator.exact(), case.evaluator.context(False):
            answer = precisely(case, lambda dtype: _ask(case, kind, dtype))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of the user's code, or of what has no second derivative: the product itself says so
        return f"{NOT}model or loss do not run where that is asked ({first_line(error)})"
    if isinstance(answer, OtherError):
        raise ValueError(str(answer))
    return answer


def _ask(case: Case, kind: str, dtype: torch.dtype) -> str | OtherError:
    """The answer, or what is wrong, by passes in a type."""
    parameters = len(case.evaluator.flat.theta)
    try:
        batch, answer = _ask_loss(case, dtype)
        if batch is None:
            return answer
        if parameters > EXACT_PARAMETERS:
            of_loss = "only the loss was" if answer == YES else "nor was the loss"
            return f"{NOT}the model has over {EXACT_PARAMETERS:,} parameters; {of_loss}"
        other = _ask_model(case, batch, kind, dtype)
    except OtherError as error:
        return error
    return answer if other == YES and kind == "ggn" else other


def _ask_loss(case: Case, dtype: torch.dtype) -> tuple[Batch | None, str]:
    """The samples, None if the loss of all of them is flat, and the answer for the loss as a function of the outputs.

    Raises:
        OtherError: It has other second derivatives in the outputs.
    """
    loss = case.evaluator.loss
    for batch in _samples(case):
        with case.elsewhere():
            output = case.output(batch.clone().inputs)
        if not isinstance(output, Tensor) or not batch.cuttable:
            return batch, YES  # the loss is asked with the model
        output = _cast(output, dtype)
        rows = slice(None) if case.evaluator.coupled else slice(max(1, LOSS_ENTRIES // output[:1].numel()))
        output, targets = output[rows], trees.cast(trees.rows(batch.targets, rows), dtype)

        def slope(output: Tensor, targets: Tree) -> Tensor:
            with torch.enable_grad():
                return tangents.output_gradient(loss, output, trees.cloned(targets)).flatten().double()

        if slope(output.clone(), targets).any():
            break
    else:
        return None, NOT + "the gradient of the loss is zero"
    direction = _gaussian([output])
    try:
        curvature = OutputCurvature(loss, output.clone(), trees.cloned(targets), "ggn")
        product = curvature(direction.view_as(output).unsqueeze(1).clone()).flatten().double()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return batch, f"{NOT}the loss cannot be differentiated twice ({first_line(error)})"
    along = direction.view_as(output)
    what = f"the loss {loss.name!r} has other second derivatives in the outputs"
    answer = _compare(product, lambda step: slope(output + step * along, targets), [output.numel()], what)
    return batch, answer


def _samples(case: Case) -> Sequence[Batch]:
    """A few samples that count, spread over all, and more of them; or those that belong together."""
    evaluator = case.evaluator
    if evaluator.coupled or not evaluator.data.cuttable:
        return [evaluator.few()]
    counting = evaluator.loss.counting(evaluator.data.pool.targets).cpu()
    few = min(SAMPLES, evaluator.few_samples)
    sizes = dict.fromkeys(min(size, len(counting)) for size in (few, MORE_SAMPLES * few // SAMPLES))
    return [case.rows(counting[torch.arange(size, device="cpu") * len(counting) // size]) for size in sizes if size]


def _ask_model(case: Case, batch: Batch, kind: str, dtype: torch.dtype) -> str:
    """The answer for the whole Hessian, or for the derivatives of the outputs along a direction.

    Raises:
        OtherError: They are others.
    """
    flat, loss = copied(case, dtype, case.evaluator.flat.module), case.evaluator.loss
    batch = batch.cast(dtype)
    displace(flat.moving)
    start, vector = flat.theta.clone(), _gaussian(flat.moving)

    def move(step: float) -> Batch:
        with torch.no_grad():
            torch.add(start, vector, alpha=step, out=flat.theta)
        return batch.clone()

    def outputs(step: float) -> Tensor:
        output: Tensor = flat.run(move(step).inputs)
        return output.detach().flatten().double()

    def slope(step: float) -> Tensor:
        inputs, targets = move(step)
        total = loss.sums(flat.run(inputs), targets).total
        found = torch.autograd.grad(total, flat.moving, allow_unused=True)
        pairs = zip(found, flat.moving, strict=True)
        dense = (torch.zeros_like(like) if part is None else part.to_dense() for part, like in pairs)
        return torch.cat([part.flatten() for part in dense]).double()

    with tangents.differentiable():
        if kind == "ggn":
            _, tangent = tangents.backward(flat, batch.clone().inputs, vector)
            what = "the outputs have other derivatives along a direction by two backward passes"
            return _compare(tangent.flatten().double(), outputs, [tangent.numel()], what)
        product = torch.zeros_like(vector)
        general.add_products(flat, loss, batch.clone(), vector[None], product[None], kind)
        sizes = [parameter.numel() for parameter in flat.moving]
        return _compare(
            product.double(), slope, sizes, "model and loss have other second derivatives in the parameters"
        )


def _compare(product: Tensor, slope: Callable[[float], Tensor], sizes: list[int], what: str) -> str:
    """Compare a product with differences, whichever of them fits.

    Args:
        product: ``(m,)`` float64.
        slope: Gives ``(m,)``, whose derivative the product should be, a step along the direction.
        sizes: Of the parts of the product that are compared each for itself.
        what: Is wrong where they do not agree.

    Returns:
        The answer.

    Raises:
        OtherError: The differences agree with each other, and not with the product.
    """
    differences: list[tuple[float, Tensor]] = []
    for step in STEPS:
        near, far = slope(step) - slope(-step), slope(2 * step) - slope(-2 * step)
        difference = (8 * near - far) / (12 * step)  # of fourth order
        if _close(product, difference, OFF, sizes):
            return YES
        differences.append((step, difference))
    narrowest = Narrowest()
    with narrowest:
        slope(0.0)
    smallest = ABOVE_ROUNDING * torch.finfo(narrowest.dtype).eps
    usable = [difference for step, difference in differences if step >= smallest and difference.any()]
    if any(_close(one, other, AGREE, sizes) for one, other in itertools.pairwise(usable)):
        raise OtherError(
            f"{what} than differences say: a backward() that is made of stored values counts as a "
            "constant when it is differentiated; write it in operations that can be differentiated (save the inputs "
            "with ctx.save_for_backward), take it out, or pass judge=False"
        )
    return ROUNDING


def _close(one: Tensor, other: Tensor, tolerance: float, sizes: list[int]) -> bool:
    """Whether two vectors agree in each part; not where they are not finite."""
    whole = float(other.norm())
    parts = zip(one.split(sizes), other.split(sizes), strict=True)
    return all(float((a - b).norm()) <= tolerance * (float(b.norm()) + SMALL_PART * whole) for a, b in parts)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _gaussian(parts: Sequence[Tensor]) -> Tensor:
    """A random vector, the same each time, in each part as large as that is, flat."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for part in parts:
        size = part.detach().square().mean().sqrt()
        noise = torch.randn(part.numel(), dtype=part.dtype, generator=generator, device="cpu").to(part.device)
        found.append(noise * torch.where(size > 0, size, 1))
    return torch.cat(found)
