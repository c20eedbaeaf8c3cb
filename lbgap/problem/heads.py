"""The loss that a model of transformers returns itself: a mean, whose weight the kind of its head says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from lbgap.problem import trees
from lbgap.problem.base import Loss, Sums, described, tolerance
from lbgap.problem.conventions import Convention, OfSamples, OfSpans, OfTokens
from lbgap.problem.trees import Tree

OWN = "model"  # what a user passes as loss
REMEDY = "pass a callable loss(output, batch) that returns (sum, weight)"
CAUSAL = ("ForCausalLM", "LMHeadModel")  # how names end of models of the next token
SAME_TOKEN = ("cross_entropy", "nll", "masked_lm", "token_classification", "CrossEntropyLoss", "NLLLoss")
ROUNDINGS = 64  # by which a mean in a type may miss that of the same logits in float64


def _tokens(name: str, *, shifted: bool = False) -> Callable[[Any], Convention]:
    return lambda config: OfTokens(name, shifted)


def _samples(config: Any) -> Convention:
    return OfSamples(int(config.num_labels), getattr(config, "problem_type", None))


HEADS: dict[str, Callable[[Any], Convention]] = {
    "ForCausalLM": _tokens("causal_lm", shifted=True),
    "LMHeadModel": _tokens("causal_lm", shifted=True),
    "ForMaskedLM": _tokens("masked_lm"),
    "ForTokenClassification": _tokens("token_classification"),
    "ForSequenceClassification": _samples,
    "ForImageClassification": _samples,
    "ForQuestionAnswering": lambda config: OfSpans(),
}
"""By the end of a class's name, as transformers names them."""


@dataclass(frozen=True)
class Head(Loss):
    """``.loss`` of what the model returns, times the number of labels that count.

    Attributes:
        model: Name of the model's class, once it is known.
        convention: What the mean is over.
    """

    name: str = OWN
    given: str = OWN
    model: str = ""
    convention: Convention | None = None
    raw: bool = True

    def facts(self) -> dict[str, Any]:
        """As :meth:`Loss.facts`; ``loss_head`` names the kind of head."""
        return {**super().facts(), **({"loss_head": self.convention.name} if self.convention else {})}

    def for_model(self, model: nn.Module) -> Head:
        """As :meth:`Loss.for_model`: find the head of the model by the name of its class.

        Raises:
            ValueError: It is none of :data:`HEADS`, or adds other terms to its loss.
        """
        model = _inside(model)
        name, parents = type(model).__name__, type(model).__mro__
        if not any(one.__name__ == "PreTrainedModel" for one in parents):
            raise ValueError(
                f"loss={OWN!r} takes the loss that a model of transformers returns, got {name}: pass a loss by name, "
                "or a callable loss(output, batch)"
            )
        if any(one.__name__.endswith("ForConditionalGeneration") for one in parents):
            raise ValueError(
                f"loss={OWN!r} does not take {name}: a head for conditional generation may shift, smooth or join "
                f"its labels: {REMEDY}"
            )
        config: Any = model.config
        if _routes(config):
            raise ValueError(
                f"loss={OWN!r} does not take {name} with auxiliary terms of its routers: set "
                f"model.config.output_router_logits = False, or {REMEDY}"
            )
        found = next((HEADS[end] for one in parents for end in HEADS if one.__name__.endswith(end)), None)
        if found is None:
            known = ", ".join(f"...{end}" for end in HEADS)
            raise ValueError(f"loss={OWN!r} knows the loss of {known}, got {name}: {REMEDY}")
        return replace(self, model=name, convention=found(config))

    def sums(self, output: Any, target: Tree) -> Sums:
        """As :meth:`Loss.sums`; where no label counts, zero with a graph: the mean is NaN there."""
        convention, weight = self._known, self.weight(target)
        if weight:
            total = self.mean(output, target) * weight
        else:
            total = torch.stack([part.flatten()[:0].sum() for part in self._logits(output, convention)]).sum()
        return Sums(total, total.detach().double(), lambda: weight)

    def weight(self, target: Tree) -> float:
        """As :meth:`Loss.weight`: the number of labels that count."""
        return float(self._counts(target).sum())

    def mean(self, output: Any, target: Tree) -> Tensor:
        """As :meth:`Loss.mean`."""
        value = _part(output, "loss")
        if value is None:
            lacking = [key for key in self._known.keys if not (isinstance(target, Mapping) and key in target)]
            close = [key for key in ("label", "targets", "target") if isinstance(target, Mapping) and key in target]
            if "labels" in lacking and close:
                raise ValueError(
                    f"loss={OWN!r} needs outputs with .loss, which need a key 'labels' of the batches: rename "
                    f"{close[0]!r}"
                )
            why = f"the model was called without {' and '.join(map(repr, lacking or self._known.keys))}"
            raise ValueError(
                f"loss={OWN!r} needs outputs with .loss, got {type(output).__name__} without: {why}, which has to be "
                "a key of the batches that forward takes"
            )
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"loss={OWN!r} needs .loss to be one number, got {described(value)}: {REMEDY}")
        return value.reshape(())

    def _counts(self, target: Tree) -> Tensor:
        convention = self._known
        if not isinstance(target, Mapping) or not all(isinstance(target.get(key), Tensor) for key in convention.keys):
            raise ValueError(
                f"loss={OWN!r} needs batches that are dicts with {' and '.join(map(repr, convention.keys))} for "
                f"{self.model}, got {described(target)}: add what the model computes its loss from"
            )
        try:
            return convention.counts(target)
        except ValueError as error:
            raise ValueError(f"the loss of {self.model} {error}") from None

    @property
    def _known(self) -> Convention:
        if self.convention is None:
            raise ValueError(f"loss={OWN!r} is the loss that a model of transformers returns: {REMEDY}")
        return self.convention

    # What it is fitted to.

    def check_all(self, output: Any, targets: Iterable[Tree]) -> Self:
        """As :meth:`Loss.check_all`; compares the loss on the samples of the output with the mean by the convention.

        Args:
            output: What the model returned for the first samples of the first piece, with its loss.
            targets: Whole batches.
        """
        logits, weight = None, 0.0
        for batch in targets:
            weight += self.weight(batch)
            first = logits is None
            logits = logits or self._logits(output, self._known)
            self._check_labels(batch, logits[0].shape[-1])
            if first:
                self._verify(output, logits, batch)
            del batch  # before the next one is read
        if not weight > 0:
            raise ValueError(
                f"the loss of {self.model} counts no label of these data: all of them are ignored, pass labels that "
                "count"
            )
        return self

    def _check_labels(self, batch: Mapping[str, Tree], classes: int) -> None:
        try:
            self._known.check(batch, classes)
        except (TypeError, ValueError) as error:
            raise type(error)(f"the loss of {self.model} {error}") from None

    def _logits(self, output: Any, convention: Convention) -> list[Tensor]:
        """The parts of an output that the loss is made of."""
        found = [_part(output, name) for name in convention.logits]
        if not all(isinstance(part, Tensor) and part.dim() for part in found):
            names = " and ".join(f".{name}" for name in convention.logits)
            raise ValueError(
                f"loss={OWN!r} needs outputs with .loss and {names}, got {described(output)}: set "
                f"model.config.return_dict = True, or {REMEDY}"
            )
        return found

    def _verify(self, output: Any, logits: list[Tensor], batch: Mapping[str, Tree]) -> None:
        """Refuse a loss that is another one than its labels and logits make."""
        loss = self.mean(output, batch).detach()
        few, samples = len(logits[0]), trees.size(batch)
        if samples is not None and few < samples:
            batch = trees.rows(batch, slice(few))
        if not self.weight(batch):
            return
        with torch.no_grad():
            batch = trees.map_tensors(lambda part: part.to(loss.device), batch)
            try:
                expected = self._known.mean([part.detach() for part in logits], batch)
            except ValueError as error:
                raise ValueError(f"the loss of {self.model} {error}") from None
        if not math.isfinite(expected.value):
            return  # which is refused where it is evaluated
        allowed = min(tolerance(loss.dtype), ROUNDINGS * float(torch.finfo(loss.dtype).eps))
        allowed *= abs(expected.value) + expected.scale
        found, extra = float(loss), _part(output, "aux_loss") is not None
        if extra or not abs(found - expected.value) <= allowed:
            raise ValueError(
                f"the loss of {self.model} is not the mean over its labels that count, {expected.value:g} on the first "
                f"samples, got {found:g} (auxiliary terms, label smoothing, num_items_in_batch?): {REMEDY}"
            )


def _part(output: Any, name: str) -> Any:
    """What an output has by a name, as a key or an attribute; None if it has none."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def check_shift(model: nn.Module, loss: Loss, targets: Sequence[str]) -> None:
    """Refuse a loss of the same token for a model that is trained on the next one.

    Args:
        model: The user's.
        loss: The user's.
        targets: Keys of the batches that the loss takes.

    Raises:
        ValueError: The model is a causal one of transformers, the targets are its labels, and the loss does not shift.
    """
    kinds = [one.__name__ for one in type(_inside(model)).__mro__]
    causal = "PreTrainedModel" in kinds and kinds[0].endswith(CAUSAL)
    if causal and tuple(targets) == ("labels",) and loss.name in SAME_TOKEN:
        raise ValueError(
            f"{kinds[0]} is trained on the next token, got loss={loss.name!r}, which compares each with its own label: "
            f"pass loss='causal_lm' or loss={OWN!r}"
        )


def _inside(model: nn.Module) -> nn.Module:
    """What is wrapped: by ``torch.compile``, by data-parallel modules, by adapters."""
    for _ in range(8):
        inner = getattr(model, "_orig_mod", None)
        if inner is None and callable(getattr(model, "get_base_model", None)):
            inner = model.get_base_model()  # type: ignore[operator]
        if inner is None and type(model).__name__.endswith(("DataParallel", "AveragedModel")):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module) or inner is model:
            break
        model = inner
    return model


def _routes(config: Any) -> bool:
    """Whether a mixture of experts adds what its routers are trained by."""
    parts = [config, *(getattr(config, name, None) for name in ("text_config", "decoder", "encoder"))]
    return any(getattr(one, "output_router_logits", False) for one in parts)
