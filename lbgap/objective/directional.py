"""Derivatives of an objective along directions of its parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from lbgap.checks import check_finite
from lbgap.objective import tangents
from lbgap.objective.held import Held
from lbgap.objective.questions import second
from lbgap.objective.questions.case import Case


class Directional(Held):
    """What an objective knows of directions in the space of all parameters."""

    def output_tangents(self, theta: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of all samples, and their derivatives along one direction: ``J d`` without forming J.

        By forward-mode differentiation, which costs about two evaluations of the loss and no memory for a backward
        pass; where a layer has no forward rule, or a wrong one, by differentiating a backward pass.

        Args:
            theta: ``(n,)``.
            direction: ``(n,)``, d.

        Returns:
            The outputs, ``(samples, ...)``, and ``d/dt output(theta + t d)`` at t = 0, of the same shape.

        Raises:
            ValueError: ``theta`` or ``direction`` has the wrong shape, dtype or device, or the model can be
                differentiated in neither way.
        """
        pairs = self._along(theta, direction, lambda output, tangent, _: torch.stack((output, tangent), 1))
        return pairs[:, 0], pairs[:, 1]

    def directional_derivatives(self, theta: Tensor, direction: Tensor) -> Tensor:
        """Derivative of every sample's loss along one direction: ``<d, grad l_i(theta)>``, no gradient formed.

        One pass of :meth:`output_tangents`, then ``<dl_i/d output_i, J_i d>``. A callable loss takes part as it is,
        provided that it is a mean of one term a sample, which is tried out on a few.

        Args:
            theta: ``(n,)``.
            direction: ``(n,)``, d.

        Returns:
            ``(samples,)`` float64; their mean is ``<d, gradient>``.

        Raises:
            ValueError: An argument has the wrong shape, dtype or device, the model has no such derivatives,
                or the term of a sample in a callable loss depends on the others of its batch.
            FloatingPointError: A derivative is NaN or infinite.
        """
        evaluator = self._evaluator
        scale = evaluator.samples / evaluator.weight
        each = self._along(theta, direction, tangents.derivative_of(evaluator.loss, scale))
        if not each.isfinite().all():
            bad = int((~each.isfinite()).nonzero()[0])
            raise FloatingPointError(
                f"the derivative of the loss of sample {bad} is {float(each[bad])}: check its input and target, and "
                "the model's weights"
            )
        return each

    @torch.inference_mode(False)
    def curvatures(self, theta: Tensor, vectors: Tensor) -> Tensor:
        """Second derivatives of the loss along vectors: ``v' H v`` by differentiating the gradient once more.

        Only the parameters in which a vector is not zero take part, so that vectors within one layer are cheap. The
        gradient counts as one pass over the data, and so does each vector.

        Args:
            theta: ``(n,)``.
            vectors: ``(k, n)``.

        Returns:
            ``(k,)`` float64.

        Raises:
            ValueError: ``theta`` or ``vectors`` has the wrong shape, dtype or device, or the model
                or the loss cannot be differentiated twice, or their second derivatives are not those of the gradient.
            FloatingPointError: A second derivative is NaN or infinite.
        """
        self.coordinates.check_complete()
        vectors = self.coordinates.check_rows(vectors, "vectors", "k")
        check_finite("vectors", vectors)
        self.coordinates.check(theta, "theta")
        self._ask_second("hessian")
        self._begin(theta, 1 + len(vectors))
        total = self._evaluator.curvatures(vectors)
        if not total.isfinite().all():
            raise FloatingPointError("a second derivative of the loss is NaN or infinite: check the model's weights")
        return total

    def _ask_second(self, kind: str) -> None:
        """Ask, before the first use of them, whether second derivatives are those of the gradient.

        Args:
            kind: ``"hessian"`` or ``"ggn"``; ``"fisher"`` needs none.

        Raises:
            ValueError: They are not.
        """
        answers = self._products.judged
        if kind == "fisher" or kind in answers or not isinstance(self.judged, dict):
            return
        evaluator, centre = self._evaluator, self.coordinates.centre
        case = Case(evaluator, evaluator.flat.module, centre, centre)
        answers[kind] = evaluator.within_memory(lambda: second.ask(case, kind))
        alike = len(set(answers.values())) == 1
        every = answers[kind] if alike else "; ".join(f"{kind}: {answer}" for kind, answer in answers.items())
        self.judged["second derivatives"] = every

    @torch.inference_mode(False)
    def _along(self, theta: Tensor, direction: Tensor, reduce: tangents.Reduce) -> Tensor:
        """One pass along a direction."""
        self.coordinates.check_complete()
        self.check_cuttable("a derivative of each sample")
        direction = self.coordinates.check(direction, "direction")
        check_finite("direction", direction)
        self._begin(theta)
        return self._evaluator.along(direction, reduce)
