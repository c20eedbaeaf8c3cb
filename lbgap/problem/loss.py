"""The losses that training and measuring share, by what the user passed as ``loss``."""

from __future__ import annotations

from torch import Tensor

from lbgap.problem.apart import take_apart
from lbgap.problem.base import Loss, LossFunction, Sums
from lbgap.problem.heads import OWN, Head
from lbgap.problem.names import NAMES, Named
from lbgap.problem.own import Own, own
from lbgap.problem.tokens import SHIFTED, tokens

__all__ = ["Loss", "LossFunction", "Sums", "log_probability", "resolve_loss"]

_KNOWN = ", ".join(map(repr, (*NAMES, *SHIFTED, OWN)))


def resolve_loss(loss: str | LossFunction) -> Loss:
    """Turn what the user passed as ``loss`` into a :class:`Loss`.

    Args:
        loss: ``"cross_entropy"``, ``"mse"``, ``"bce"`` (with logits), ``"nll"``, ``"l1"`` or ``"huber"``; of sequences
            ``"causal_lm"``, ``"masked_lm"`` or ``"token_classification"``; ``"model"``, the one that a model of
            transformers returns; a loss of torch, module or function, with any options; or a callable
            ``loss(output, target)`` that returns the mean over the batch, one value a sample, or ``(sum, weight)``.

    Returns:
        The loss; :meth:`Loss.for_model`, then :meth:`Loss.check` fit it to a model, to outputs and targets.

    Raises:
        ValueError: The name is not known, or the loss has trainable parameters.
        TypeError: It is neither a name nor a callable.
    """
    if isinstance(loss, str):
        if loss == OWN:
            return Head()
        if loss in SHIFTED:
            return tokens(loss)
        if loss not in NAMES:
            raise ValueError(f"loss must be {_KNOWN} or a callable, got {loss!r}")
        form, options = NAMES[loss]
        return Named(loss, loss, form, options)
    if isinstance(loss, type):
        raise TypeError(
            f"loss must be a function of (output, target), got the class {loss.__name__}: pass an instance of it"
        )
    if not callable(loss):
        raise TypeError(f"loss must be {_KNOWN} or a callable, got {type(loss).__name__}")
    return take_apart(loss) or own(loss)


def log_probability(loss: Loss, label: int) -> Loss:
    """The mean log-probability of one class, as a loss of the same outputs.

    Args:
        loss: Which knows where the classes are.
        label: Index of the class.
    """
    dim = loss.class_dim

    def mean(output: Tensor, _: Tensor) -> Tensor:
        return output.log_softmax(dim).select(dim, label).mean()

    return Own("log_probability", mean, mean)
