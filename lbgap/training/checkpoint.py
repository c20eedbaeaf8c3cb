"""Everything that an epoch changes, to and from ``state.safetensors``, and when that is written."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lbgap.checks import json_value
from lbgap.system import files
from lbgap.training.run import CONFIG, ITERATES, METRICS, MODEL, RESULT, STATE, iterate_path

_FACTS = "lbgap"


@dataclass
class State:
    """What a training carries from one epoch to the next; random numbers follow from seed and epoch.

    Attributes:
        model: The copy that is trained.
        optimizer: Over its trainable parameters.
        start: The trainable parameters before training, by name.
        metrics: One dict an epoch.
        kept: Copies of :meth:`values` at the epoch that is the result so far; empty if the last one will be.
        remedies: What they carry from epoch to epoch; changed in place.
    """

    model: nn.Module
    optimizer: Optimizer
    start: dict[str, Tensor]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, Tensor] = field(default_factory=dict)
    remedies: dict[str, Tensor] = field(default_factory=dict)

    def trainable(self) -> dict[str, Parameter]:
        """The parameters that the optimiser changes, by name; tied ones once."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def values(self) -> dict[str, Tensor]:
        """The model's own tensors: parameters, as ``parameter.NAME``, and buffers, as ``buffer.NAME``."""
        parameters: dict[str, Tensor] = {f"parameter.{name}": p for name, p in self.model.named_parameters()}
        return parameters | {f"buffer.{name}": buffer for name, buffer in self.model.named_buffers()}

    def keep(self) -> None:
        """Set the current iterate aside."""
        self.kept = {name: value.detach().clone() for name, value in self.values().items()}

    def bring_back(self) -> None:
        """Go back to the iterate that was set aside, if one was."""
        with torch.no_grad():
            for name, value in self.values().items() if self.kept else ():
                value.copy_(self.kept[name])


@dataclass(frozen=True)
class Snapshot:
    """A copy of a :class:`State` at the end of an epoch, on the CPU.

    Attributes:
        tensors: ``parameter.NAME``, ``buffer.NAME``, ``start.NAME``, ``optimizer.KEY.NAME``,
            ``remedy.NAME``, and ``kept.parameter.NAME``, ``kept.buffer.NAME`` if an iterate was set aside.
        facts: What is not a tensor: ``metrics``, the optimiser's plain values by name and those that it keeps for all
            parameters at once, and which of its tensors stay on the CPU next to parameters that do not.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def capture(state: State) -> Snapshot:
    """Copy a state, so that training can go on while the copy waits to be written.

    Args:
        state: At the end of an epoch.

    Returns:
        The copy.
    """
    tensors = _named(state)
    values: dict[str, dict[str, Any]] = {}
    host: list[str] = []
    for name, parameter in state.trainable().items():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{name}"] = value
                if value.device != parameter.device:
                    host.append(f"optimizer.{key}.{name}")
            else:
                values.setdefault(name, {})[key] = json_value(f"the optimiser's {key}", value)
    copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
    facts: dict[str, Any] = {"metrics": [dict(row) for row in state.metrics], "optimizer": values, "host": host}
    if counts := _counts(state.optimizer):
        facts["counts"] = counts
    return Snapshot(copies, facts)


def restore(state: State, path: Path) -> None:
    """Put a saved state into a model and an optimiser of the same kind.

    Args:
        state: Built as for a fresh start; changed in place.
        path: The file that a :class:`Recorder` wrote.

    Raises:
        ValueError: The file is damaged, or belongs to another model.
    """
    tensors, metadata = files.read_safetensors(path)
    try:
        facts = json.loads(metadata[_FACTS])
        metrics, values, host = list(facts["metrics"]), dict(facts["optimizer"]), set(facts["host"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the state of a training: restore it or train anew") from error
    if any(name.startswith("kept.") for name in tensors):
        state.keep()
    targets = _named(state)
    saved = {name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")}
    for name in sorted(targets.keys() | saved.keys()):
        here, there = _form(targets.get(name)), _form(saved.get(name))
        if here != there:
            raise ValueError(
                f"{path} is of another model: {name.split('.', 1)[1]} is {there} there but {here} here; "
                "pass the model that the run began with"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved[name])
    trainable = state.trainable()
    entries: dict[str, dict[str, Any]] = {name: dict(plain_values) for name, plain_values in values.items()}
    for full, tensor in tensors.items():
        if full.startswith("optimizer."):
            _, key, name = full.split(".", 2)
            device = torch.device("cpu") if full in host else trainable[name].device
            entries.setdefault(name, {})[key] = _laid_out(tensor, trainable[name], device)
    for name, entry in entries.items():
        state.optimizer.state[trainable[name]] = entry
    for group in state.optimizer.param_groups:
        group.update(facts.get("counts", {}))
    state.metrics[:] = metrics


def _counts(optimizer: Optimizer) -> dict[str, Any]:
    """What an optimiser keeps beside its settings for all parameters at once; those of torch keep nothing there."""
    (group,) = optimizer.param_groups
    own = {key: value for key, value in group.items() if key not in optimizer.defaults and key != "params"}
    return {key: json_value(f"the optimiser's {key}", value) for key, value in own.items()}


def _named(state: State) -> dict[str, Tensor]:
    tensors = state.values()
    for prefix, values in (("start", state.start), ("kept", state.kept), ("remedy", state.remedies)):
        tensors |= {f"{prefix}.{name}": value for name, value in values.items()}
    return tensors


def _form(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _laid_out(tensor: Tensor, parameter: Tensor, device: torch.device) -> Tensor:
    """A copy on a device, with the parameter's strides as the optimiser would have chosen them."""
    if tensor.shape != parameter.shape:
        return tensor.to(device)
    return torch.empty_like(parameter, dtype=tensor.dtype, device=device, requires_grad=False).copy_(tensor)


class Recorder:
    """Writes a run into its folder; without a folder it does nothing.

    The state is copied after every epoch and written at the first end of an epoch that comes
    ``seconds`` after the last writing, at the end, and when the training is interrupted.

    Attributes:
        folder: The folder, or ``None``.
    """

    def __init__(self, folder: Path | None, seconds: float, keep_every: int | None = None) -> None:
        self.folder = folder
        self._keep_every = keep_every
        self._seconds = seconds
        self._written = time.monotonic()
        self._pending: Snapshot | None = None

    def begin(self, config: dict[str, Any], state: State) -> None:
        """Write the configuration and the state before the first epoch.

        Args:
            config: For ``config.json``.
            state: Before the first epoch; without it, a resume would need the same starting values again.
        """
        if self.folder is not None:
            files.write_json(self.folder / CONFIG, config)
            self._keep(state)
            self._pending = capture(state)
            self.flush()

    def _keep(self, state: State) -> None:
        """Write the iterate if its turn has come; before the state, so that a resume has all that came before."""
        epoch = len(state.metrics)
        if self.folder is not None and self._keep_every is not None and epoch % self._keep_every == 0:
            (self.folder / ITERATES).mkdir(exist_ok=True)
            files.write_safetensors(iterate_path(self.folder, epoch), state.model.state_dict(), {"format": "pt"})

    def record(self, state: State) -> None:
        """Take note of the end of an epoch.

        Args:
            state: At the end of the epoch.
        """
        if self.folder is not None:
            self._keep(state)
            self._pending = capture(state)
            if time.monotonic() - self._written >= self._seconds:
                self.flush()

    def flush(self) -> None:
        """Write the last state that was noted, unless it is written.

        Raises:
            OSError: It cannot be written; the state before it is still whole.
        """
        if self.folder is None or self._pending is None:
            return
        facts = json.dumps(self._pending.facts, allow_nan=False)
        # In this order, so that the metrics on the disk never lag behind the state that a resume starts from.
        files.write_json_lines(self.folder / METRICS, self._pending.facts["metrics"])
        # One metadata entry, for safetensors writes several in an arbitrary order.
        files.write_safetensors(self.folder / STATE, self._pending.tensors, {_FACTS: facts})
        self._pending = None
        self._written = time.monotonic()

    def finish(self, state: State, epoch: int, reason: str) -> None:
        """Write the model and, last of all, the result.

        Args:
            state: At the end of the training, its model being the result.
            epoch: The epoch of which this is the iterate.
            reason: Why the training ended.

        Raises:
            OSError: A file cannot be written; a resume writes them without training again.
        """
        if self.folder is None:
            return
        files.write_safetensors(self.folder / MODEL, state.model.state_dict(), {"format": "pt"})
        result = {
            "epoch": epoch,
            "epochs": len(state.metrics),
            "reason": reason,
            "seconds": sum(row["seconds"] for row in state.metrics),
            "metrics": state.metrics[epoch - 1],
        }
        files.write_json(self.folder / RESULT, result)
