"""Products with k vectors at once for chains and residual networks of usual layers.

Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 6 (1994): the derivative along a vector is
carried through the network forwards and backwards beside the values. One pass of values and gradients serves all
vectors, and each layer multiplies the tangents of all vectors in one product; see
:mod:`lbgap.objective.products.weighted`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lbgap import ops, reference
from lbgap.flat import FlatModule
from lbgap.layers import UnknownError
from lbgap.objective import tangents
from lbgap.objective.products.output import OutputCurvature
from lbgap.objective.products.rules import Run
from lbgap.objective.products.steps import Step, steps_of
from lbgap.problem.batch import Batch
from lbgap.problem.loss import Loss

CPU_BATCH_BYTES = 96 * 2**20  # of a batch's values and tangents: half as much slows the products with bfloat16
GPU_BATCH_BYTES = 2 * 2**30
SMALLEST_BATCH = 32
SAME_GRADIENT = 1e-4  # of a loss for a batch and for its pieces, but for rounding


class Engine:
    """A network as a list of layers whose tangent rules are known."""

    def __init__(self, flat: FlatModule, inputs: Tensor, loss: Loss, backend: str = "torch") -> None:
        """Find the layers.

        Args:
            flat: The replica.
            inputs: One sample or more, by which its layers are found.
            loss: The loss.
            backend: ``"native"`` or ``"torch"``: who runs the pointwise parts.

        Raises:
            UnknownError: Something in the network has no rule; the message says what.
        """
        self._flat, self._loss = flat, loss
        self._ops: Any = ops if backend == "native" else reference
        self._steps = steps_of(flat, inputs)
        self._buffers: dict[tuple[int, str, torch.dtype], Tensor] = {}
        self._floats = 0  # of one sample's values, counted at the first call

    def release(self) -> None:
        """Free the memory that is kept from one set of vectors to the next."""
        self._buffers.clear()

    @torch.no_grad()
    def add_products(
        self,
        batches: Iterable[Batch],
        vectors: Tensor,
        out: Tensor,
        kind: str,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Add the products of the summed loss of some batches.

        Args:
            batches: Inputs and targets of each; they are cut into smaller ones that fit the cache.
            vectors: ``(k, n)``.
            out: ``(k, n)``, added to.
            kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``.
            dtype: Of the tangents and of the values that meet them in products; that of the vectors by default.

        Raises:
            ValueError: The loss cannot be differentiated twice in the outputs.
            UnknownError: A layer has no rule for the shape that it meets; or a callable loss is no sum over the smaller
                batches.
        """
        parts, products = self._by_parameter(vectors), self._by_parameter(out)
        run = Run(len(vectors), kind == "hessian", dtype or vectors.dtype, parts, products, self._ops, self._buffers)
        for step in self._steps:
            step.rule.begin(run)
        for inputs, targets in batches:
            pieces = [self._add(run, piece.inputs, piece.targets, kind) for piece in self._cut(inputs, targets, run)]
            self._check_pieces([piece for piece in pieces if piece is not None], targets)
        for step in self._steps:
            step.rule.finish()

    def _by_parameter(self, vectors: Tensor) -> list[Tensor]:
        moving = self._flat.moving
        pieces = vectors.split([parameter.numel() for parameter in moving], 1)
        return [piece.view(-1, *parameter.shape) for piece, parameter in zip(pieces, moving, strict=True)]

    def _cut(self, inputs: Tensor, targets: Tensor, run: Run) -> Iterable[Batch]:
        """Cut a batch into even pieces, small enough for their tangents."""
        budget = CPU_BATCH_BYTES if inputs.device.type == "cpu" else GPU_BATCH_BYTES
        self._floats = self._floats or self._count(inputs[:1])
        each = self._floats * (self._flat.theta.element_size() + run.k * run.dtype.itemsize)
        size = max(SMALLEST_BATCH, budget // each)
        size = math.ceil(len(inputs) / math.ceil(len(inputs) / size))
        return (Batch(*piece) for piece in zip(inputs.split(size), targets.split(size), strict=True))

    def _count(self, sample: Tensor) -> int:
        """Numbers in all values of one sample."""
        values = [sample]
        for step in self._steps:
            values.append(step.rule.forward(*(values[source] for source in step.sources))[0])
        return sum(value.numel() for value in values)

    def _check_pieces(self, pieces: list[tuple[Tensor, Tensor]], targets: Tensor) -> None:
        """Refuse a loss that is another one for pieces of a batch, such as a mean by the weights of classes.

        Args:
            pieces: Outputs of each, and the gradients in them.
            targets: Of the batch.

        Raises:
            UnknownError: It is; the few samples of the first trial may not have shown that.
        """
        if self._loss.separable or len(pieces) < 2:
            return
        output, found = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        with torch.enable_grad():
            whole = tangents.output_gradient(self._loss, output, targets)
        if not (found - whole).norm() <= SAME_GRADIENT * whole.norm() and whole.isfinite().all():
            raise UnknownError("a loss whose terms depend on the other samples of a batch")

    def _add(self, run: Run, inputs: Tensor, targets: Tensor, kind: str) -> tuple[Tensor, Tensor] | None:
        """One batch: values and their tangents forwards, gradients and their tangents backwards.

        Returns:
            The outputs and the gradient in them; None where they depend on nothing that moves.
        """
        values, saved = [inputs], []
        tangents: list[Tensor | None] = [None]
        for step in self._steps:
            value, kept = step.rule.forward(*(values[source] for source in step.sources))
            tangents.append(step.rule.tangent(kept, _of(tangents, step), step.owned))
            values.append(value)
            saved.append(kept)
        last = tangents[-1]
        if last is None:
            return None
        curvature = OutputCurvature(self._loss, values[-1], targets, kind, self._ops)
        self._backward(saved, tangents, curvature.gradient if run.second else None, curvature(last))
        return values[-1], curvature.gradient

    def _backward(self, saved: list[Any], tangents: list[Tensor | None], gradient: Tensor | None, push: Tensor) -> None:
        """Gradients and their tangents, from the outputs back to the first layer that has a parameter that moves."""
        last = len(self._steps)
        gradients, pushes = {last: gradient}, {last: push}
        for step in reversed(self._steps):
            kept, g, r = saved.pop(), gradients.pop(last, None), pushes.pop(last, None)
            last -= 1
            if r is None or not (step.wanted or step.rule.moves):
                continue
            further = step.rule.backward(kept, g) if step.wanted and g is not None else ()
            back = step.rule.backward_tangent(kept, g, r, _of(tangents, step), step.owned, step.wanted)
            for source, other in zip(step.sources, further, strict=False):
                before = gradients.get(source)
                gradients[source] = other if before is None else before + other
            for source, part in zip(step.sources, back, strict=True):
                if part is not None:
                    pushes[source] = pushes[source].add_(part) if source in pushes else part


def _of(tangents: list[Tensor | None], step: Step) -> tuple[Tensor | None, ...]:
    return tuple(tangents[source] for source in step.sources)
