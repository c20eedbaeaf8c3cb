"""One training: how it is laid out, its epochs, when they end, and the folder that they are written to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lbgap.checks import Amount, json_value
from lbgap.problem.loss import Loss
from lbgap.problem.samples import DataLike, Split, as_tensors
from lbgap.replica import Watch, held_tensors, replicate, set_mode
from lbgap.system.device import usable
from lbgap.training.batches import private_rng, resolve_batch_size
from lbgap.training.checkpoint import Recorder, State, restore
from lbgap.training.config import FORMAT, describe_data, describe_environment, describe_model, differences
from lbgap.training.descent import Descent
from lbgap.training.loop import Loop
from lbgap.training.optimizers import PACKAGE, in_torch, make_optimizer, resolve_optimizer
from lbgap.training.progress import Metrics
from lbgap.training.remedies.apply import Treated
from lbgap.training.remedies.base import Remedy, Task
from lbgap.training.remedies.choose import describe
from lbgap.training.run import CONFIG, MODEL, RESULT, STATE, Run, read_run
from lbgap.training.stopping import Stopping
from lbgap.unwrap import unwrapped

DEFAULT_BATCH_SIZE = 256  # the paper's small batch


@dataclass(eq=False)
class Course:
    """A training from one epoch to the next.

    Attributes:
        loop: What an epoch does.
        stopping: When it ends.
        facts: What the result depends on.
        recorder: What writes it.
    """

    loop: Loop
    stopping: Stopping
    facts: dict[str, Any]
    recorder: Recorder

    @property
    def epochs(self) -> int:
        """How many are done."""
        return len(self.loop.state.metrics)

    def open(self, folder: Path, found: dict[str, Any] | None, seconds: float, keep_every: int | None) -> Run | None:
        """Begin in a folder, or go on with the run that is there.

        Args:
            folder: Open.
            found: The configuration in it, or ``None`` if it is new.
            seconds: Between two writings of the state.
            keep_every: Epochs between the iterates that are kept.

        Returns:
            The run if it is finished.

        Raises:
            ValueError: The run in it has other settings, or a file is damaged.
        """
        state = self.loop.state
        self.recorder = Recorder(folder, seconds, keep_every)
        if found is not None:
            finished = (folder / RESULT).exists()
            _check_same(found, self.facts, folder, finished)
            if finished:
                return _finished(folder, state)
            if (folder / STATE).exists():
                restore(state, folder / STATE)
                self.loop.coupled = bool(found.get("coupled"))  # as it was found from the outputs at the start
                self.facts = found
                return None
        self.recorder.begin(self.facts, state)
        return None

    def reason(self) -> str | None:
        """Why the training ends here, or ``None``."""
        return self.stopping.reason(self._losses())

    def add(self, row: Metrics) -> None:
        """Take note of an epoch."""
        state = self.loop.state
        state.metrics.append(row)
        if self.stopping.epochs is None and self.stopping.kept(self._losses()) == self.epochs:
            state.keep()
        self.recorder.record(state)

    def finish(self, reason: str) -> Run:
        """Write the result."""
        state = self.loop.state
        self.recorder.flush()
        state.bring_back()
        epoch = self.stopping.kept(self._losses())
        self.recorder.finish(state, epoch, reason)
        state.model.eval()
        state.optimizer.zero_grad(set_to_none=True)
        seconds = sum(row["seconds"] for row in state.metrics)
        return Run(state.model, self.recorder.folder, state.metrics, self.facts, epoch, reason, seconds)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Whatever goes wrong within, the epochs that are finished are written."""
        try:
            yield
        except BaseException as error:
            try:
                self.recorder.flush()
            except OSError as failure:
                if str(failure) != str(error):
                    error.add_note(str(failure))
            raise

    def _losses(self) -> list[float]:
        return [row["train_loss"] for row in self.loop.state.metrics]


def new_course(
    model: nn.Module,
    *,
    data: DataLike,
    test_data: DataLike | None,
    loss: Loss,
    batch_size: Amount | None,
    remedies: list[Remedy],
    optimizer: str,
    learning_rate: float,
    optimizer_options: Mapping[str, Any] | None,
    device: str | torch.device | None,
    seed: int,
    stopping: Stopping,
    keep_every: int | None,
    extra: Any,
) -> Course:
    """Lay out a training that has not begun; everything is checked, nothing is written.

    Args:
        model: What to train a copy of.
        data: The training set, as :func:`lbgap.train` takes it.
        test_data: What to measure besides, or ``None``.
        loss: The loss.
        batch_size: As :func:`lbgap.train` takes it.
        remedies: What is done about the generalisation gap.
        optimizer: Name of the optimiser.
        learning_rate: Its learning rate.
        optimizer_options: Its other options, or ``None``.
        device: Where to train; the model's by default.
        seed: Of the order of the samples.
        stopping: When it ends.
        keep_every: Epochs between the iterates that are kept.
        extra: Further facts for ``config.json``.

    Raises:
        TypeError: Something is of the wrong kind.
        ValueError: Something is out of range, or does not fit together.
    """
    model = unwrapped(model)
    state, where = _fresh_state(model, optimizer, learning_rate, optimizer_options or {}, device)
    (train_split, loader_batch), test_split = as_tensors(data), None
    if test_data is not None:
        test_split = as_tensors(test_data)[0]
    samples = len(train_split.inputs)
    if batch_size is None:
        batch_size = min(loader_batch or DEFAULT_BATCH_SIZE, samples)
    size = resolve_batch_size(batch_size, samples)
    loop = _prepare(state, model, where, loss, train_split, test_split, size, seed)
    with torch.no_grad(), loop.surroundings(0):
        _check_kept(model, loop.train.inputs[:2])
    if remedies:
        parameters = list(state.trainable().values())
        task = Task(state.model, loop.loss, state.optimizer, parameters, loop.train, size, stopping.epochs, seed, where)
        loop.descent = Treated(state, task, remedies)
    facts = _facts(state, loss, size, seed, train_split, test_split, where)
    facts |= {"coupled": True, "notes": loop.notes()} if loop.coupled else {}
    facts |= {"remedies": describe(remedies)} if remedies else {}
    facts |= {**stopping.settings(), "extra": extra} | ({"keep_every": keep_every} if keep_every else {})
    return Course(loop, stopping, facts, Recorder(None, 0))


def _fresh_state(
    model: nn.Module, optimizer: str, rate: float, options: Mapping[str, Any], device: str | torch.device | None
) -> tuple[State, torch.device]:
    """Copy the module, move the copy and give it an optimiser."""
    if any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters()):
        raise ValueError("the model has lazy parameters without a shape yet: run a batch through it first")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameter: set requires_grad on what shall be trained")
    if not all(parameter.is_floating_point() for parameter in trainable):
        raise ValueError("the model has complex parameters, which cannot be trained here: use real ones")
    name = resolve_optimizer(optimizer)
    place = usable(device, trainable[0].device)
    try:
        replica = replicate(model)[0].to(place)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"the model cannot be copied to {place}: {' '.join(str(error).split())}") from error
    replica.zero_grad(set_to_none=True)
    parameters = {key: value for key, value in replica.named_parameters() if value.requires_grad}
    start = {key: value.detach().clone() for key, value in parameters.items()}
    return State(replica, make_optimizer(name, parameters.values(), rate, options), start), place


def _prepare(
    state: State,
    original: nn.Module,
    device: torch.device,
    loss: Loss,
    data: Split,
    test_data: Split | None,
    size: int,
    seed: int,
) -> Loop:
    """Move the data, and check that everything fits."""
    dtype = next(iter(state.start.values())).dtype
    test = None if test_data is None else _place(test_data, device, dtype)
    train = _place(data, device, dtype)
    loop = Loop(state, loss, train, test, Descent(state, loss, size), seed, device)
    loop.check(original)
    if size == 1:
        _check_single(state.model, train.inputs[:1], device)
    return loop


def _facts(
    state: State, loss: Loss, size: int, seed: int, data: Split, test_data: Split | None, device: torch.device
) -> dict[str, Any]:
    """Name what the result depends on."""
    chosen = {key: value for key, value in state.optimizer.defaults.items() if key != "lr"}
    optimizer = type(state.optimizer).__name__
    return {
        "format": FORMAT,
        **loss.facts(),
        "batch_size": size,
        "optimizer": optimizer,
        "learning_rate": float(state.optimizer.defaults["lr"]),
        "optimizer_options": json_value("optimizer_options", chosen),
        "seed": seed,
        "model": describe_model(state.model),
        "data": describe_data(data),
        "test_data": None if test_data is None else describe_data(test_data),
        "environment": describe_environment(device, () if in_torch(optimizer) else (PACKAGE,)),
    }


def _check_kept(model: nn.Module, sample: Tensor) -> None:
    """Refuse a model that trains with something made of its parameters before, which would not be trained."""
    if next(held_tensors(model), None) is None:
        return
    alone, kept = replicate(model)
    set_mode(alone, True)
    with Watch(kept) as watch, suppress(RuntimeError, ValueError):  # which the training itself will meet
        alone.to(sample.device)(sample.clone())
    if watch.found:
        raise ValueError(
            f"the model keeps {next(iter(watch.found))!r}, made of its parameters before, so that it would not be "
            "trained: compute it in every forward"
        )


def _check_single(model: nn.Module, sample: Tensor, device: torch.device) -> None:
    """Refuse batches of one sample where they leave batch-norm one value, before anything is written."""
    with torch.no_grad(), private_rng(device, 0):
        try:
            alone, _ = replicate(model)
            set_mode(alone, True)
            alone(sample.clone())
        except ValueError as error:
            raise ValueError(
                f"the model cannot train on batches of one sample ({' '.join(str(error).split())}): pass a "
                "batch_size of 2 or more"
            ) from error


def _place(split: Split, device: torch.device, dtype: torch.dtype) -> Split:
    """Move samples to a device, floating values in the dtype of the model."""
    inputs, targets = (
        (tensor.clone() if tensor.is_inference() else tensor.detach()).to(
            device, dtype if tensor.is_floating_point() else None
        )
        for tensor in split
    )
    return Split(inputs, targets)


def _check_same(there: Mapping[str, Any], here: Mapping[str, Any], folder: Path, finished: bool) -> None:
    """Refuse to go on with other settings; a finished run does not depend on the environment any more."""
    phrases = differences(there, here, ignore="environment" if finished else "")
    if phrases:
        raise ValueError(
            f"cannot resume {folder} with other settings than in its {CONFIG}: {'; '.join(phrases)}; "
            "repeat the settings or choose another folder"
        )


def _finished(folder: Path, state: State) -> Run:
    saved = read_run(folder)
    try:
        state.model.load_state_dict(saved.weights)
    except RuntimeError as error:
        raise ValueError(f"{folder / MODEL} is of another model: {' '.join(str(error).split())}") from error
    state.model.eval()
    result = saved.result
    return Run(state.model, folder, saved.metrics, saved.config, result["epoch"], result["reason"], result["seconds"])
