"""The last step of every product: from the derivative of the outputs along a vector back to a gradient in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lbgap import reference
from lbgap.objective import tangents
from lbgap.problem.loss import Loss
from lbgap.system.device import first_line

KINDS = ("hessian", "ggn", "fisher")


def check_kind(kind: str) -> None:
    """Refuse what is no matrix known here.

    Raises:
        ValueError: ``kind`` is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")


class OutputCurvature:
    """What the summed loss of one batch is made of in the outputs: its gradient, and a matrix for each sample.

    The matrix is the Hessian H of the loss in the outputs, for the Hessian and for the Gauss-Newton matrix J' H J
    (Schraudolph, "Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent", Neural Computation 14
    (2002), eq. 9); for the empirical Fisher matrix it is g g', g the gradient in the outputs.

    Attributes:
        gradient: Of the loss in the outputs, ``(batch, ...)``.
    """

    def __init__(self, loss: Loss, output: Tensor, targets: Tensor, kind: str, ops: Any = reference) -> None:
        """Evaluate the gradient.

        Args:
            loss: The loss.
            output: ``(batch, ...)``, without a graph.
            targets: ``(batch, ...)``.
            kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``.
            ops: Who multiplies: :mod:`lbgap.ops` or :mod:`lbgap.reference`.

        Raises:
            ValueError: The loss cannot be differentiated twice in the outputs; or, for ``"fisher"``, the term of a
                sample depends on the others of its batch.
        """
        self._loss, self._kind, self._ops = loss, kind, ops
        self._probabilities: Tensor | None = None
        self._weights: Tensor | None = None  # of the samples: what their soft targets add up to
        if kind == "fisher":
            with torch.enable_grad():
                tangents.check_terms(loss, output, targets)
                self.gradient = tangents.output_gradient(loss, output, targets)
        elif loss.by_class(targets):
            self._probabilities = output.softmax(1)
            self.gradient = self._probabilities.clone()
            self.gradient[torch.arange(len(output), device=output.device), targets] -= 1
        elif (soft := loss.soft_targets(output, targets)) is not None:
            self._probabilities, self._weights = output.softmax(1), soft.sum(1)
            self.gradient = self._probabilities * self._weights[:, None] - soft
        else:
            self._differentiate(output, targets)

    def _differentiate(self, output: Tensor, targets: Tensor) -> None:
        self._leaf = output.detach().requires_grad_()
        with torch.enable_grad():
            total = self._loss.sums(self._leaf.view_as(self._leaf), targets).total
            # From a one that has a gradient itself: a once_differentiable loss would pass for a linear one otherwise.
            one = torch.ones_like(total, requires_grad=True)
            try:
                (self._slope,) = torch.autograd.grad(total, self._leaf, one, create_graph=True)
                tangents.check_whole(self._slope.sum())
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise self._refusal(error) from error
        self.gradient = self._slope.detach()

    def __call__(self, tangents: Tensor) -> Tensor:
        """Multiply by the matrices of the samples.

        Args:
            tangents: ``(batch, k, ...)``, derivatives of the outputs along k vectors, in the dtype of the outputs or
                bfloat16; they may be overwritten.

        Returns:
            The same shape.

        Raises:
            ValueError: The loss cannot be differentiated twice in the outputs.
        """
        if self._probabilities is not None:
            self._ops.tangents_softmax(tangents, self._probabilities, self._weights, tangents)
            return tangents
        return self._multiply(tangents.to(self.gradient.dtype)).to(tangents.dtype)

    def _multiply(self, tangents: Tensor) -> Tensor:
        if self._kind == "fisher":
            along = (tangents * self.gradient.unsqueeze(1)).reshape(*tangents.shape[:2], -1).sum(2)
            return along.view(*along.shape, *[1] * (tangents.dim() - 2)) * self.gradient.unsqueeze(1)
        if (second := self._loss.quadratic(self.gradient)) is not None:
            return tangents * second
        slope, leaf = self._slope, self._leaf
        try:
            found = [
                torch.autograd.grad(slope, leaf, tangent, retain_graph=True, materialize_grads=True)[0]
                for tangent in tangents.unbind(1)
            ]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise self._refusal(error) from error
        return torch.stack(found, 1)

    def _refusal(self, error: RuntimeError) -> ValueError:
        return ValueError(
            f"the loss {self._loss.name!r} cannot be differentiated twice in the outputs ({first_line(error)}): use a "
            "loss that can, or kind='fisher', which needs only its gradient"
        )
