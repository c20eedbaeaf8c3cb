"""The losses of sequences by name: logits ``(batch, tokens, classes)`` against one class index a token."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor

from lbgap.problem.base import Loss, Sums, check_output
from lbgap.problem.forms import CROSS_ENTROPY
from lbgap.problem.known import Known

IGNORED = -100  # the label that does not count, as in transformers
SHIFTED = {"causal_lm": True, "masked_lm": False, "token_classification": False}


@dataclass(frozen=True)
class Tokens(Loss):
    """Cross-entropy over the tokens whose label is not -100: a mean over all tokens of all samples that count.

    The classes are in the last dimension, however many tokens there are. Where the loss is shifted, the logits of a
    token are compared with the label of the next one.

    Attributes:
        shifted: Whether it is.
        inner: The loss of labels that stand where their logits do.
    """

    name: str
    given: str
    shifted: bool
    inner: Known = field(repr=False)
    class_dim: int = -1

    @property
    def separable(self) -> bool:
        """Always."""
        return True

    @property
    def even(self) -> bool:
        """As :attr:`Loss.even`."""
        return self.inner.even

    @property
    def classification(self) -> bool:
        """Always."""
        return True

    def sums(self, output: Tensor, target: Tensor) -> Sums:
        """As :meth:`Loss.sums`."""
        sums = self.inner.sums(output, self._beside(target))
        return Sums(sums.total, sums.exact, functools.partial(self.weight, target))

    def weight(self, target: Tensor) -> float:
        """As :meth:`Loss.weight`; always a number."""
        return self.inner.weight(self._labels(target))

    def mean(self, output: Tensor, target: Tensor) -> Tensor:
        """As :meth:`Loss.mean`."""
        return self.inner.mean(output, self._beside(target))

    def classes(self, output: Tensor, target: Tensor) -> int | None:
        """As :meth:`Loss.classes`."""
        return self.inner.classes(output, target)

    def correct(self, outputs: Tensor, target: Tensor) -> Tensor:
        """As :meth:`Loss.correct`."""
        return self.inner.correct(outputs[..., :-1, :] if self.shifted else outputs, self._labels(target))

    def _counts(self, target: Tensor) -> Tensor | None:
        return self.inner._counts(self._labels(target))

    def counted(self, target: Tensor) -> int:
        """As :meth:`Loss.counted`."""
        return self.inner.counted(self._labels(target))

    def _labels(self, target: Tensor) -> Tensor:
        """The labels that are compared with logits."""
        if target.dim() < 2:
            raise ValueError(
                f"loss {self.name!r} needs labels (batch, tokens), got shape {tuple(target.shape)}: pass one a token"
            )
        return target[:, 1:] if self.shifted else target

    def _beside(self, target: Tensor) -> Tensor:
        """Labels where their logits are, int64; none beside the last ones, so that the logits need not be cut."""
        target = target.long()
        return F.pad(target[:, 1:], (0, 1), value=IGNORED) if self.shifted else target

    # What it is fitted to.

    def check_all(self, output: Any, targets: Iterable[Tensor]) -> Self:
        """As :meth:`Loss.check_all`."""
        output = check_output(output)
        if output.dim() != 3:
            raise ValueError(
                f"the loss {self.name!r} needs logits (batch, tokens, classes), got shape {tuple(output.shape)}: pass "
                "loss='cross_entropy' for one class a sample"
            )
        if output.shape[2] < 2:
            raise ValueError(
                f"the loss {self.name!r} needs logits (batch, tokens, classes) of two classes or more, got shape "
                f"{tuple(output.shape)}: return one logit per class"
            )
        longest = output.shape[1]

        def checked() -> Iterator[Tensor]:
            nonlocal longest
            for target in self._checked(output, targets):
                longest = max(longest, target.shape[1] + self.shifted)
                yield target
            if self.shifted and longest < 2:
                raise ValueError(
                    f"the loss {self.name!r} needs two tokens or more, for it compares each label with the logits of "
                    f"the token before, got logits of shape {tuple(output.shape)}: pass longer sequences"
                )

        before = output[:, :-1] if self.shifted else output
        return replace(self, inner=self.inner.check_all(before, checked()))

    def joined(self, other: Self) -> Self:
        """As :meth:`Loss.joined`."""
        return replace(self, inner=self.inner.joined(other.inner))

    def _checked(self, output: Tensor, targets: Iterable[Tensor]) -> Iterator[Tensor]:
        """The labels of each piece that are compared with logits, refused where they are none of these outputs."""
        length: int | None = output.shape[1]  # of the first piece; batches may be padded each for itself
        for target in targets:
            if target.dim() != 2 or (length is not None and target.shape[1] != length):
                shape = f"(n, {'tokens' if length is None else length})"
                raise ValueError(
                    f"the loss {self.name!r} needs labels of shape {shape} for logits {tuple(output.shape)}, got "
                    f"{tuple(target.shape)}: pass one class index a token, {IGNORED} where none counts"
                )
            if target.is_floating_point() or target.is_complex():
                raise TypeError(f"the loss {self.name!r} needs class indices, got {target.dtype}: use .long()")
            length = None
            yield self._labels(target)
            del target  # before the next one is read


def tokens(name: str) -> Tokens:
    """The loss of a name in :data:`SHIFTED`."""
    return Tokens(name, name, SHIFTED[name], Known(name, name, CROSS_ENTROPY, {}, class_dim=-1))
