"""Several networks of one architecture as one: each layer's parameters in one tensor, of which each network has a part.

A step of a small network is little arithmetic and many calls; stacked, k networks take the calls of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from lbgap.layers import HOOKS, POINTWISE, hooked_everywhere, is_hooked
from lbgap.problem.loss import Loss
from lbgap.system.device import scalars_on_host
from lbgap.training.checkpoint import State

ELEMENTWISE = ("Adam", "AdamW", "Adamax", "Adadelta", "Adagrad", "ASGD", "NAdam", "RAdam", "RMSprop", "SGD")
"""Optimisers that treat each element of a parameter like any other, so that it may lie in a larger tensor."""


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a plain chain, in the order in which they run.

    Args:
        model: ``Linear``, ``BatchNorm1d`` and activations, alone or in ``Sequential``; ``Flatten`` may begin it.

    Raises:
        ValueError: It holds something else; the message names it.
    """
    kind = type(model)
    if is_hooked(model, HOOKS):
        raise ValueError(f"{kind.__name__} with a hook")
    if isinstance(model, nn.Sequential) and kind is nn.Sequential:
        return [layer for child in model for layer in layers_of(child)]
    if kind not in (nn.Linear, nn.BatchNorm1d, nn.Flatten, nn.Identity, *POINTWISE):
        raise ValueError(kind.__name__)
    if getattr(model, "start_dim", 1) != 1 or getattr(model, "momentum", 0) is None:
        raise ValueError(str(model))
    return [model]


class Stack:
    """Trains several states of one architecture at once; their tensors become parts of its own.

    Args:
        states: Of plain chains, as :func:`check_alike` lets pass, at the same epoch. Until :meth:`release` the
            parameters, buffers and optimisers of each are views of the stack's.
    """

    def __init__(self, states: Sequence[State]) -> None:
        self._states = list(states)
        self._layers = [layers_of(state.model) for state in states]
        own: list[Parameter] = []
        self._tensors: list[dict[str, Tensor]] = []
        for alike in zip(*self._layers, strict=True):
            tensors: dict[str, Tensor] = {}
            for name, value in alike[0].named_parameters(recurse=False):
                stacked = Parameter(torch.stack([getattr(one, name).detach() for one in alike]), value.requires_grad)
                for one, part in zip(alike, stacked.detach(), strict=True):
                    getattr(one, name).data = part
                tensors[name] = stacked
                own += [stacked] if value.requires_grad else []
            for name, _ in alike[0].named_buffers(recurse=False):
                tensors[name] = torch.stack([getattr(one, name) for one in alike])
                for one, part in zip(alike, tensors[name], strict=True):
                    one._buffers[name] = part
            self._tensors.append(tensors)
        first = self._states[0].optimizer
        with scalars_on_host():
            self._optimizer = type(first)(own, lr=first.defaults["lr"])  # type: ignore[call-arg]
        settings = {key: value for key, value in first.param_groups[0].items() if key != "params"}
        self._optimizer.param_groups[0].update(settings)
        self._take_moments()

    def _parts(self) -> list[tuple[Parameter, list[Parameter]]]:
        """Each stacked parameter that is trained, and those of the states that are parts of it."""
        stacked = iter(self._optimizer.param_groups[0]["params"])
        theirs = zip(*(state.trainable().values() for state in self._states), strict=True)
        return list(zip(stacked, map(list, theirs), strict=True))

    def _take_moments(self) -> None:
        """Stack what the optimisers of the states carry."""
        for stacked, parts in self._parts():
            held = [state.optimizer.state.get(part, {}) for state, part in zip(self._states, parts, strict=True)]
            self._optimizer.state[stacked] = {
                key: torch.stack([one[key] for one in held]) if _is_of(value, parts[0]) else _cloned(value)
                for key, value in held[0].items()
            }
        self.share_moments()

    def share_moments(self) -> None:
        """Give the optimiser of each state its parts of what the stack's own carries."""
        for stacked, parts in self._parts():
            held = self._optimizer.state.get(stacked, {})
            for index, (state, part) in enumerate(zip(self._states, parts, strict=True)):
                state.optimizer.state[part] = {
                    key: value[index] if _is_of(value, stacked) else value for key, value in held.items()
                }

    def release(self) -> None:
        """Give each state tensors of its own again."""
        for state in self._states:
            for parameter in state.model.parameters():
                parameter.data = parameter.data.clone()
            for module in state.model.modules():
                module._buffers.update({name: b.clone() for name, b in module._buffers.items() if b is not None})
            for held in state.optimizer.state.values():
                held.update({key: _cloned(value) for key, value in held.items()})

    def step(self, inputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        """Take one step of every network, each with a batch of its own.

        Args:
            inputs: ``(k, batch, ...)``.
            targets: ``(k, batch, ...)``.
            loss: What each lowers.

        Returns:
            The sum of the mean losses before the step, 0-d, without a gradient.
        """
        self._optimizer.zero_grad(set_to_none=True)
        outputs = self._outputs(inputs.flatten(2))
        if loss.even and loss.class_dim == 1:
            total = loss.mean(outputs.flatten(0, 1), targets.flatten(0, 1)) * len(outputs)
        else:
            total = torch.stack([loss.mean(*pair) for pair in zip(outputs, targets, strict=True)]).sum()
        total.backward()
        with scalars_on_host():
            self._optimizer.step()
        return total.detach()

    def _outputs(self, x: Tensor) -> Tensor:
        """``(k, batch, features)`` to ``(k, batch, outputs)``, in training mode."""
        for layer, tensors in zip(self._layers[0], self._tensors, strict=True):
            if isinstance(layer, nn.Linear):
                weight = tensors["weight"].mT
                x = torch.baddbmm(tensors["bias"][:, None], x, weight) if "bias" in tensors else torch.bmm(x, weight)
            elif isinstance(layer, nn.BatchNorm1d):
                x = _batch_norm(x, layer, tensors)
            elif not isinstance(layer, nn.Flatten):
                x = layer(x)
        return x


def _batch_norm(x: Tensor, layer: nn.BatchNorm1d, tensors: dict[str, Tensor]) -> Tensor:
    """Batch-norm of ``(k, batch, features)`` as of k times as many features."""
    k, batch, features = x.shape
    if layer.track_running_stats:
        tensors["num_batches_tracked"] += 1
    mean, variance, weight, bias = (
        tensors[name].view(-1) if name in tensors else None
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    rows = x.transpose(0, 1).reshape(batch, k * features)
    assert layer.momentum is not None
    rows = F.batch_norm(rows, mean, variance, weight, bias, True, layer.momentum, layer.eps)
    return rows.view(batch, k, features).transpose(0, 1)


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _is_of(value: Any, parameter: Tensor) -> bool:
    """Whether what an optimiser carries has an element for each of a parameter's."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _check(state: State) -> list[nn.Module]:
    """Find the layers of a state that can be stacked.

    Args:
        state: Of one network.

    Returns:
        Its layers.

    Raises:
        ValueError: It cannot; the message says why.
    """
    try:
        if hooked_everywhere(HOOKS):
            raise ValueError("a hook on all modules")
        layers = layers_of(state.model)
    except ValueError as error:
        raise ValueError(
            f"networks of linear layers, BatchNorm1d and activations train together, and this one has {error}: "
            "train them one by one"
        ) from error
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    if len({id(parameter) for parameter in parameters}) < len(parameters):
        raise ValueError("a parameter belongs to two layers, which cannot train together with others: train one by one")
    name = type(state.optimizer).__name__
    if name not in ELEMENTWISE:
        raise ValueError(
            f"optimizer {name} cannot step several networks at once: choose one of {', '.join(ELEMENTWISE)}"
        )
    return layers


def check_alike(states: Sequence[State], inputs: Tensor) -> None:
    """Refuse networks that cannot be stacked.

    Args:
        states: One a network.
        inputs: ``(n, ...)``.

    Raises:
        ValueError: One is no plain chain, or they differ; the message says how.
    """
    forms = []
    for state in states:
        layers = _check(state)
        if inputs.dim() != 2 and not isinstance(layers[0], nn.Flatten):
            raise ValueError(f"samples of shape {tuple(inputs.shape[1:])} need a model that begins with Flatten")
        tensors = [(name, p.dtype, p.device, p.requires_grad) for name, p in state.model.named_parameters()]
        forms.append((list(map(str, layers)), tensors))
    for index, form in enumerate(forms):
        if form != forms[0]:
            raise ValueError(
                f"all models must have the same layers, dtype and device: model {index} differs from the first"
            )
