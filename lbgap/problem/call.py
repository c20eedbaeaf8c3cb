"""How a batch enters the model, and what of its output goes to the loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lbgap.problem import trees
from lbgap.problem.base import Loss
from lbgap.problem.batch import Batch
from lbgap.problem.trees import Tree
from lbgap.system.device import first_line

CallFunction = Callable[[nn.Module, Tree], Any]
NUMBERED = 4  # samples of the first batch that tell whether a part numbers them
LABELS = ("labels", "label", "label_ids", "targets", "target", "y")  # keys of targets, the first that a batch has


class Call:
    """How a batch enters the model, chosen once for all batches.

    Attributes:
        kind: ``"one"``: the inputs are the model's one argument; ``"positions"``: a tuple of them; ``"keywords"``: a
            dict of them; ``"own"``: a callable of the user's takes the whole batch.
        names: Keys of a batch that enter the model.
        targets: Keys that the loss takes; empty where it takes the batch.
        raw: Whether the loss takes the output as it is, and not only its one tensor.
        function: ``call(model, batch)`` of the user's.
    """

    def __init__(
        self,
        kind: str = "one",
        *,
        split: Callable[[Tree], tuple[Tree, Tree]] = lambda tree: (tree[0], tree[1]),
        names: Sequence[str] = (),
        targets: Sequence[str] = (),
        raw: bool = True,
        function: CallFunction | None = None,
    ) -> None:
        """Remember what was chosen; see :func:`choose`.

        Args:
            kind: As the attribute.
            split: Takes a batch apart into inputs and targets.
            names: As the attribute.
            targets: As the attribute.
            raw: As the attribute.
            function: ``call(model, batch)`` of the user's.
        """
        self.kind, self.names, self.targets, self.raw = kind, tuple(names), tuple(targets), raw
        self._split, self.function = split, function
        self.parts: int | None = None  # of a batch that is a tuple
        self.index: int | None = None  # which of them numbers the samples, and is left out

    def split(self, tree: Tree) -> Batch:
        """Take a batch as the user has it apart.

        Raises:
            ValueError: A key that other batches have is missing.
        """
        try:
            if self.index is not None and not _rises(tree[self.index]):
                raise ValueError(
                    f"part {self.index + 1} of the batches numbers the samples in the first, but not in another: pass "
                    "call=lambda model, batch: model(...), with the target as their last part"
                )
            if self.parts is not None and len(tree) != self.parts:
                raise ValueError(
                    f"expected batches of one form, got {len(tree)} parts in one and {self.parts} in the first: give "
                    "all the same parts"
                )
            return Batch(*self._split(tree))
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"expected batches of one form, got another than the first ({first_line(error)}): give all the same "
                "parts"
            ) from error

    def run(self, module: nn.Module, inputs: Tree) -> Any:
        """Call a model with the inputs of a batch.

        Returns:
            What the loss takes: the output as it is, or its one tensor.

        Raises:
            OutputError: There is not one tensor.
        """
        if self.kind == "one":
            output = module(inputs)
        elif self.kind == "keywords":
            output = module(**inputs)
        elif self.kind == "positions":
            output = module(*inputs)
        else:
            assert self.function is not None
            output = self.function(module, inputs)
        return output if self.raw or isinstance(output, Tensor) else one_tensor(output)

    def facts(self) -> dict[str, Any]:
        """What a result records of it, ready for JSON: nothing where a pair of tensors is taken as it is."""
        own = getattr(self.function, "__name__", type(self.function).__name__)
        facts: dict[str, Any] = {"call": self.kind if self.function is None else own}
        if self.kind == "one":
            facts = {}
        if self.names:
            facts["inputs"] = list(self.names)
        if self.targets:
            facts["targets"] = list(self.targets)
        return facts


PLAIN = Call()


def one_tensor(output: Any) -> Tensor:
    """The tensor that a loss by name takes of an output: its ``logits``, or the only floating tensor in it.

    Raises:
        OutputError: There is none, or more than one.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    many = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    found = [part for part in many if isinstance(part, Tensor) and part.is_floating_point()]
    if len(found) == 1:
        return found[0]
    got = f"{type(output).__name__} with {len(found)} of them" if found else type(output).__name__
    raise OutputError(
        f"the model must return one tensor, or an output with .logits, got {got}: pass call=lambda model, batch: ... "
        "that returns it, or a callable loss(output, batch) that takes the output as it is"
    )


class OutputError(TypeError):
    """What a model returned is not what a loss takes."""


class Chosen(NamedTuple):
    """How batches are called.

    Attributes:
        call: That.
        notes: Sentences on what is left out.
    """

    call: Call
    notes: list[str]


def choose(model: nn.Module, loss: Loss, first: Tree, call: CallFunction | None = None) -> Chosen:
    """Find out how batches enter a model, by its signature and the first of them.

    A dict enters as keywords: all of its keys that ``forward`` names, or all if it takes ``**kwargs``, but for the
    target; a tuple by positions, its last part being the target. A callable loss takes the target of a tuple, and of
    everything else the batch.

    Args:
        model: The user's, or a copy.
        loss: Says whether it takes outputs and batches as they are.
        first: A batch.
        call: ``call(model, batch)`` of the user's; returns the output.

    Raises:
        ValueError: The batch does not fit the model, or it has no target for the loss; the message says what to do.
        TypeError: ``call`` is not callable, or the target is not one tensor.
    """
    if call is not None and not callable(call):
        raise TypeError(f"call must be a function of (model, batch), got {type(call).__name__}")
    signature = _Signature(model)
    if isinstance(first, tuple | list):
        index = None if call is not None else _index(signature, first)
        chosen = _by_position(signature, loss, first, call, index)
        chosen.call.parts, chosen.call.index = len(first), index
        return chosen
    if isinstance(first, dict):
        return _by_name(signature, loss, first, call)
    if loss.raw:
        made = Call("own" if call else "one", split=lambda tree: (tree, tree), function=call)
        return Chosen(made, [])
    return _of_object(loss, first, call)


def _of_object(loss: Loss, first: Tree, call: CallFunction | None) -> Chosen:
    """A batch that is an object or one tensor, with a loss that needs a target."""
    masks = [name for name in ("train_mask", "val_mask", "test_mask") if getattr(first, name, None) is not None]
    key = next((name for name in LABELS if isinstance(getattr(first, name, None), Tensor)), None)
    if isinstance(first, Tensor) or key is None or masks:
        got = "one tensor" if isinstance(first, Tensor) else f"a {type(first).__name__}"
        got += f" with {masks[0]!r}, which such a loss would not heed" if masks else ""
        raise ValueError(
            f"the loss {loss.name!r} needs a target beside the inputs, got batches of {got}: pass pairs (inputs, "
            "targets), or a callable loss(output, batch)"
        )
    found = key
    made = Call(
        "own" if call else "one",
        split=lambda tree: (tree, getattr(tree, found)),
        targets=[found],
        raw=False,
        function=call,
    )
    return Chosen(made, [])


def _by_name(signature: _Signature, loss: Loss, first: dict[str, Tree], call: CallFunction | None) -> Chosen:
    """A batch that is a dict."""
    found = [] if loss.raw else [name for name in LABELS if name in first]
    apart = [name for name in found if not signature.names(name)]  # what enters the model conditions it
    key = next(iter([*(apart if len(found) > 1 else ()), *found]), None)
    if not loss.raw and key is None:
        raise ValueError(
            f"the loss {loss.name!r} needs a target, which a dict has as one of {', '.join(map(repr, LABELS))}, got "
            f"{_listed(first)}: rename it, or pass a callable loss(output, batch)"
        )

    if key is not None:
        _check_target(loss, first[key])

    def target(tree: Tree) -> Tree:
        return tree if key is None else tree[key]

    targets = [] if key is None else [key]
    names = [
        name
        for name, part in first.items()
        if name not in targets
        and signature.takes(name, also=(loss.raw or name not in LABELS) and not trees.is_text(part))
    ]
    alone = not names and len(signature.required) == 1  # forward(self, batch)
    if call is not None or alone:
        kind = "own" if call is not None else "one"
        made = Call(kind, split=lambda tree: (tree, target(tree)), targets=targets, raw=loss.raw, function=call)
        return Chosen(made, [])
    lacking = [name for name in signature.required if name not in names]
    if lacking or not names:
        what = f"{lacking[0]!r}" if lacking else "one of its arguments"
        raise ValueError(
            f"{signature.name}.forward needs {what}, got batches with {_listed(first)}: rename the keys, or pass "
            "call=lambda model, batch: model(...)"
        )
    unused = [name for name in first if name not in names and name not in targets]
    left = [name for name in unused if not (loss.raw and name in LABELS)]

    def split(tree: Tree) -> tuple[Tree, Tree]:
        _check_late(signature, first, tree)
        return {name: tree[name] for name in names}, target(tree)

    made = Call(
        "keywords",
        split=split,
        names=names,
        targets=targets,
        raw=loss.raw,
    )
    return Chosen(made, _left_out(signature, "batches", left))


def _check_late(signature: _Signature, first: Mapping[str, Any], tree: Mapping[str, Any]) -> None:
    """Refuse a batch with a part that the first did not have and the model takes: it would be dropped."""
    late = [name for name in tree if name not in first and signature.takes(name, also=name not in LABELS)]
    if late:
        raise ValueError(
            f"expected batches of one form, got {late[0]!r}, which {signature.name}.forward takes, in some and not in "
            "the first: give it in all of them (None where there is none)"
        )


def _check_target(loss: Loss, target: Tree) -> None:
    """Refuse targets that are not one tensor, for a loss that takes nothing else."""
    if not isinstance(target, Tensor):
        raise TypeError(
            f"the loss {loss.name!r} needs targets as one tensor, got a {type(target).__name__}: make it one, or pass "
            "a callable loss(output, targets)"
        )


def _left_out(signature: _Signature, where: str, names: Sequence[str]) -> list[str]:
    """A note on keys that do not enter the model, if there are any."""
    return [f"keys of the {where} that {signature.name}.forward does not take: {_listed(names)}"] if names else []


def _by_position(
    signature: _Signature, loss: Loss, first: Sequence[Tree], call: CallFunction | None, index: int | None
) -> Chosen:
    """A batch that is a tuple or a list: the inputs, and the target last."""
    parts, notes = [*range(len(first))], list[str]()
    if index is not None:
        parts.remove(index)
        notes.append(f"part {index + 1} of the batches was left out: it numbers the samples")
    *inputs, last = parts
    if not inputs:
        if not loss.raw:
            raise ValueError(
                f"the loss {loss.name!r} needs a target beside the inputs, got batches of one part: pass pairs "
                "(inputs, targets), or a callable loss(output, inputs)"
            )
        inputs = [last]
    if not loss.raw:
        _check_target(loss, first[last])
    if call is not None:
        return Chosen(Call("own", split=lambda tree: (tree, tree[last]), raw=loss.raw, function=call), notes)
    if len(inputs) > signature.positions:
        taken = f"{signature.positions:g} input{'s' * (signature.positions != 1)}"
        raise ValueError(
            f"{signature.name}.forward takes {taken}, got batches of {len(first)} parts: pass call=lambda model, "
            "batch: model(...), with the target as their last part"
        )
    if len(inputs) > 1:
        made = Call("positions", split=lambda tree: (tuple(tree[place] for place in inputs), tree[last]), raw=loss.raw)
        return Chosen(made, notes)
    return _lone(signature, loss, first[inputs[0]], inputs[0], last, notes)


def _lone(signature: _Signature, loss: Loss, inputs: Tree, place: int, last: int, notes: list[str]) -> Chosen:
    """A tuple of inputs and a target, where the inputs may be a dict or a tuple themselves."""
    if isinstance(inputs, dict):
        names = [name for name in inputs if signature.takes(name)]
        if names and all(name in names for name in signature.required):

            def split(tree: Tree) -> tuple[Tree, Tree]:
                _check_late(signature, inputs, tree[place])
                return {name: tree[place][name] for name in names}, tree[last]

            made = Call(
                "keywords",
                split=split,
                names=names,
                raw=loss.raw,
            )
            return Chosen(made, notes + _left_out(signature, "inputs", [name for name in inputs if name not in names]))
    several = isinstance(inputs, tuple | list) and 1 < len(inputs) <= signature.positions
    made = Call("positions" if several else "one", split=lambda tree: (tree[place], tree[last]), raw=loss.raw)
    return Chosen(made, notes)


def _index(signature: _Signature, parts: Sequence[Tree]) -> int | None:
    """Which part of a batch numbers the samples, and does not enter the model."""
    if len(parts) > 2 and len(parts) - 1 > signature.positions:
        return _index_column(parts) if len(parts) - 2 <= signature.positions else None
    return _numbers(parts) if len(parts) > 2 and len(parts) - 1 > len(signature.required) else None


def _index_column(parts: Sequence[Tree]) -> int | None:
    """Which part of a batch, the first or the last, numbers its samples: by integers that rise with every sample."""
    found = [place for place in (0, len(parts) - 1) if _rises(parts[place]) and len(parts[place]) >= NUMBERED]
    return found[0] if len(found) == 1 else None


def _rises(part: Tree) -> bool:
    """Whether a part is one integer a sample, each larger than the one before."""
    if not isinstance(part, Tensor) or part.dim() != 1:
        return False
    whole = not (part.is_floating_point() or part.is_complex() or part.dtype == torch.bool)
    return whole and bool((part.diff() > 0).all())


def _numbers(parts: Sequence[Tree]) -> int | None:
    """Which part, the first or the last, numbers the samples one by one."""
    for place in (len(parts) - 1, 0):
        part = parts[place]
        if _rises(part) and len(part) >= NUMBERED and bool((part.diff() == 1).all()):
            return place
    return None


class _Signature:
    """What ``forward`` of a model takes.

    Attributes:
        name: Of the model's class.
        positions: How many arguments may be passed by position.
        required: Names of those that have no default.
    """

    def __init__(self, model: nn.Module) -> None:
        self.name = type(model).__name__
        self.positions: float = math.inf
        self.required: list[str] = []
        self._names: set[str] = set()
        self._any = True
        try:
            parameters = inspect.signature(model.forward).parameters.values()
        except (TypeError, ValueError):  # a compiled or built-in forward
            return
        kinds = inspect.Parameter
        self._any = any(one.kind == kinds.VAR_KEYWORD for one in parameters)
        by_place = [one for one in parameters if one.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        if not any(one.kind == kinds.VAR_POSITIONAL for one in parameters):
            self.positions = len(by_place)
        named = [one for one in parameters if one.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
        self._names = {one.name for one in named}
        self.required = [one.name for one in named if one.default is kinds.empty]

    def names(self, name: str) -> bool:
        """Whether a keyword is named."""
        return name in self._names

    def takes(self, name: str, *, also: bool = True) -> bool:
        """Whether a keyword enters: it is named, or all are taken and it is meant ``also``."""
        return name in self._names or (self._any and also)


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(map(repr, names)) or "no keys"


__all__ = ["LABELS", "PLAIN", "Call", "CallFunction", "Chosen", "OutputError", "choose", "one_tensor"]
