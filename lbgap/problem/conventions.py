"""What the loss of a head of transformers is a mean over, by the kind of head: what its weight follows from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lbgap.problem.tokens import IGNORED
from lbgap.problem.trees import Tree

ENTRIES = 2**22  # logits that are converted to float64 at once
REGRESSION, SINGLE, MULTI = "regression", "single_label_classification", "multi_label_classification"


class Mean(NamedTuple):
    """The mean by a convention.

    Attributes:
        value: In float64.
        scale: The size of what cancels in it, whose rounding it inherits.
    """

    value: float
    scale: float


class Convention(ABC):
    """What ``.loss`` is a mean over.

    What is raised is the end of a sentence that begins with the loss.

    Attributes:
        name: What a result records.
        keys: The targets in a batch.
        logits: The parts of an output that the loss is made of.
    """

    name: str
    keys: tuple[str, ...] = ("labels",)
    logits: tuple[str, ...] = ("logits",)

    @abstractmethod
    def counts(self, batch: Mapping[str, Tree]) -> Tensor:
        """Which labels count, ``(batch, ...)`` bool.

        Raises:
            ValueError: The mean has no weight that follows from the labels.
        """

    @abstractmethod
    def mean(self, logits: Sequence[Tensor], batch: Mapping[str, Tree]) -> Mean:
        """Compute the loss anew.

        Args:
            logits: The parts of the output, of as many samples.
            batch: Likewise.

        Raises:
            ValueError: The labels do not have the shape of the logits.
        """

    def classes(self, batch: Mapping[str, Tree], count: int) -> int | None:
        """Below what labels have to stay, where they are class indices."""
        return count

    def check(self, batch: Mapping[str, Tree], count: int) -> None:
        """Refuse labels that no class has, which a model would fail on in the middle of a pass.

        Args:
            batch: Any.
            count: The last size of the logits.

        Raises:
            TypeError: Class indices are no integers.
            ValueError: They are out of range.
        """
        if self.classes(batch, count) is None:
            return
        labels = batch["labels"]
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"needs labels that are class indices, got {labels.dtype}: use .long()")
        counted = labels[labels != IGNORED]
        low, high = (int(end) for end in counted.aminmax()) if counted.numel() else (0, 0)
        if low < 0 or high >= count:
            raise ValueError(
                f"needs labels in 0..{count - 1}, or {IGNORED} where none counts, got {low}..{high}: renumber them"
            )


@dataclass(frozen=True)
class OfTokens(Convention):
    """Cross-entropy over the tokens whose label is not -100, of the next token where it is shifted."""

    name: str
    shifted: bool

    def counts(self, batch: Mapping[str, Tree]) -> Tensor:
        """As :meth:`Convention.counts`."""
        labels: Tensor = batch["labels"]
        if labels.dim() != 2:
            raise ValueError(f"needs labels of shape (batch, tokens), got {tuple(labels.shape)}: pass one a token")
        return torch.ne(labels[:, 1:] if self.shifted else labels, IGNORED)

    def mean(self, logits: Sequence[Tensor], batch: Mapping[str, Tree]) -> Mean:
        """As :meth:`Convention.mean`."""
        (found,), labels = logits, batch["labels"]
        if found.dim() != 3 or found.shape[:2] != labels.shape:
            raise _unlike(found, labels)
        if self.shifted:
            found, labels = found[:, :-1], labels[:, 1:]
        return _cross_entropy(found.flatten(0, 1), labels.flatten(), IGNORED)


@dataclass(frozen=True)
class OfSamples(Convention):
    """The loss of one label a sample, or of several, by what ``config.problem_type`` says or the labels do.

    Attributes:
        labels: How many the head has.
        problem: ``config.problem_type``; None where the labels decide.
    """

    labels: int
    problem: str | None
    name: str = "classification"

    def _kind(self, batch: Mapping[str, Tree]) -> str:
        if self.problem is not None:
            return self.problem
        if self.labels == 1:
            return REGRESSION
        return SINGLE if batch["labels"].dtype in (torch.int64, torch.int32) else MULTI

    def classes(self, batch: Mapping[str, Tree], count: int) -> int | None:
        """As :meth:`Convention.classes`."""
        return count if self._kind(batch) == SINGLE else None

    def counts(self, batch: Mapping[str, Tree]) -> Tensor:
        """As :meth:`Convention.counts`."""
        labels: Tensor = batch["labels"]
        if self._kind(batch) == SINGLE:
            return torch.ne(labels, IGNORED)
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)

    def mean(self, logits: Sequence[Tensor], batch: Mapping[str, Tree]) -> Mean:
        """As :meth:`Convention.mean`."""
        (found,), labels, kind = logits, batch["labels"], self._kind(batch)
        if kind == SINGLE or (kind == REGRESSION and self.labels == 1):
            if found.dim() != 2 or labels.numel() != len(found):  # one column or none
                raise _unlike(found, labels)
        elif found.shape != labels.shape:
            raise _unlike(found, labels)
        if kind == SINGLE:
            return _cross_entropy(found, labels.flatten(), IGNORED)
        wanted = labels.reshape(found.shape).double()
        if kind == REGRESSION:
            return Mean(float(F.mse_loss(found.double(), wanted)), 0.0)
        value = F.binary_cross_entropy_with_logits(found.double(), wanted)
        return Mean(float(value), float(found.abs().amax()))


@dataclass(frozen=True)
class OfSpans(Convention):
    """Half the cross-entropy of the first token of an answer, and half that of its last.

    Either is a mean over the positions inside of the inputs; negative ones count as the first token. The half of two
    means is a mean itself where both leave out the same samples.
    """

    name: str = "question_answering"
    keys: tuple[str, ...] = ("start_positions", "end_positions")
    logits: tuple[str, ...] = ("start_logits", "end_logits")

    def classes(self, batch: Mapping[str, Tree], count: int) -> int | None:
        """As :meth:`Convention.classes`: every position is taken."""
        return None

    def counts(self, batch: Mapping[str, Tree]) -> Tensor:
        """As :meth:`Convention.counts`."""
        tokens = _tokens(batch)
        start, end = (torch.lt(batch[key].flatten(), tokens) for key in self.keys)
        if not torch.equal(start, end):
            apart = int((start != end).sum())
            raise ValueError(
                f"is half a mean over start_positions and half one over end_positions, and {apart} of {len(start)} "
                f"samples have only one of them inside of the {tokens} tokens: leave them out, or set both to {tokens}"
            )
        return start

    def mean(self, logits: Sequence[Tensor], batch: Mapping[str, Tree]) -> Mean:
        """As :meth:`Convention.mean`."""
        tokens, means = _tokens(batch), []
        for found, key in zip(logits, self.keys, strict=True):
            positions = batch[key].flatten()
            if found.shape != (len(positions), tokens):
                raise _unlike(found, positions)
            means.append(_cross_entropy(found, positions.clamp(0, tokens), tokens))
        return Mean(sum(mean.value for mean in means) / 2, max(mean.scale for mean in means))


def _tokens(batch: Mapping[str, Tree]) -> int:
    """How many tokens a batch has, past which positions do not count."""
    for key in ("input_ids", "inputs_embeds"):
        if isinstance(batch.get(key), Tensor):
            return int(batch[key].shape[1])
    raise ValueError("needs 'input_ids' or 'inputs_embeds' in the batch, whose length says which positions count")


def _unlike(logits: Tensor, labels: Tensor) -> ValueError:
    return ValueError(
        f"does not fit logits {tuple(logits.shape)} with labels {tuple(labels.shape)} {labels.dtype}: torch would pair "
        "others than those that belong together"
    )


def _cross_entropy(logits: Tensor, labels: Tensor, ignored: int) -> Mean:
    """The mean over the labels that are not ignored, of logits ``(n, classes)``, in float64."""
    total, scale, count = 0.0, 0.0, int((labels != ignored).sum())
    rows = max(1, ENTRIES // max(1, logits.shape[1]))
    for some, wanted in zip(logits.split(rows), labels.long().split(rows), strict=True):
        each = F.cross_entropy(some.double(), wanted, ignore_index=ignored, reduction="none")
        level = some.double().logsumexp(1)[wanted != ignored]
        total += float(each.sum())
        if len(level):
            scale = max(scale, float(level.abs().amax()))
    return Mean(total / max(1, count), scale)
