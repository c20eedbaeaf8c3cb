"""The training loop: a copy of the user's module, brought to a minimizer."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lbgap.checks import json_value, real, whole
from lbgap.losses import Loss, LossFunction, resolve_loss
from lbgap.samples import DataLike, Split, as_tensors
from lbgap.system.device import usable
from lbgap.training.batches import private_rng, resolve_batch_size
from lbgap.training.checkpoint import Recorder, State
from lbgap.training.config import FORMAT, describe_data, describe_environment, describe_model
from lbgap.training.course import Course
from lbgap.training.descent import Descent
from lbgap.training.loop import Loop
from lbgap.training.optimizers import PACKAGE, in_torch, make_optimizer, resolve_optimizer
from lbgap.training.progress import Metrics, check_progress, reporting
from lbgap.training.remedies.apply import Treated
from lbgap.training.remedies.base import Remedy, Task
from lbgap.training.remedies.choose import describe, resolve_remedies
from lbgap.training.run import Run, open_folder
from lbgap.training.stopping import Stopping

DEFAULT_BATCH_SIZE = 256  # the paper's small batch


def train(
    model: nn.Module,
    data: DataLike,
    *,
    test_data: DataLike | None = None,
    loss: str | LossFunction = "cross_entropy",
    batch_size: int | float | None = None,
    epochs: int | None = None,
    max_epochs: int = 200,
    patience: int = 10,
    tolerance: float = 0.01,
    optimizer: str = "Adam",
    learning_rate: float = 1e-3,
    optimizer_options: Mapping[str, Any] | None = None,
    remedies: Remedy | str | Iterable[Remedy | str] = (),
    seed: int = 0,
    device: str | torch.device | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    keep_every: int | None = None,
    config: Mapping[str, Any] | None = None,
    progress: bool | Callable[[Metrics], object] = False,
    checkpoint_seconds: float = 5.0,
) -> Run:
    """Train a copy of a module to a minimizer.

    With ``epochs`` the last iterate is returned; without, that of the epoch with the lowest training loss,
    for ADAM near a minimizer now and then jumps away from it.

    The same call in the same environment gives the same bits, whether or not it was interrupted (on a GPU as
    far as the operations of the network are deterministic there). The order of the samples and the draws of
    dropout follow from ``seed`` and the epoch; torch's global generators are put back as they were. Not
    covered: a module that draws from elsewhere, or keeps what its parameters and buffers lack.

    With ``out``, the run is a folder: ``config.json``, ``metrics.jsonl`` and ``state.safetensors`` from the
    start, ``model.safetensors`` and then ``result.json`` at the end. Killed at any moment, the same call with
    ``resume=True`` ends with the same bits. After Ctrl-C, or a failure, all finished epochs are on the disk.

    Args:
        model: Any module with trainable floating-point parameters; it is not changed. Frozen parameters stay
            as they are, and all submodules are put into training mode.
        data: The training set: a pair of tensors ``(n, ...)``, a ``Dataset`` or a ``DataLoader`` that
            does not shuffle; held in memory on the device. Floating values are cast to the model's dtype.
        test_data: What to measure besides, or ``None``.
        loss: ``"cross_entropy"``, ``"mse"`` or a callable ``loss(output, target)``, the mean over the batch.
        batch_size: An int counts samples; a float in (0, 1] is a share of the training set (0.1 is the
            paper's large batch). ``None`` takes the loader's, or 256. The last batch of an epoch may be
            smaller; a single sample left over joins the batch before.
        epochs: How many; ``None`` trains until the training loss stops improving.
        max_epochs: The most epochs then.
        patience: How many epochs in a row must then fail to improve the training loss.
        tolerance: By which share an epoch must lower the best loss to improve it.
        optimizer: A class of ``torch.optim``, in any case, or ``"LARS"`` or ``"LAMB"``, which need the package
            pytorch-optimizer; ADAM with the paper's constants by default.
        learning_rate: The same for all parameters and, unless a remedy changes it, for all epochs.
        optimizer_options: Other arguments of the optimiser, such as ``{"momentum": 0.9}``.
        remedies: What to do about the generalisation gap of large batches: some of :mod:`lbgap.remedies`, or their
            short forms such as ``"conservative:lam=1e-3"``. The metrics are those of the data as they are.
        seed: Not negative.
        device: Where to train, ``"cpu"`` or ``"cuda"``; the model's by default.
        out: The folder of the run, new or empty, or one to resume; ``None`` writes nothing.
        resume: Continue the run in ``out``, if there is one; a finished one is returned as it is.
        keep_every: Keep the start and the iterate of each so many epochs in the folder of the run, for
            :func:`lbgap.training.read_iterates`; ``None`` keeps none. Needs ``out``.
        config: Further facts for ``config.json``, kept under ``extra``; compared on a resume like the rest.
        progress: ``True`` for a bar on stderr, or a function that is called with the metrics of each epoch.
        checkpoint_seconds: The state is written at the first end of an epoch after this time, and at the end.

    Returns:
        The trained model, the metrics of each epoch, and why the training ended.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range, the data do not fit the model, or a run cannot be resumed
            because its settings differ or a file is damaged.
        FloatingPointError: The loss became NaN or infinite; the epochs before it are kept on the disk.
        OSError: ``out`` holds something already (``FileExistsError``), is in use, or cannot be written.
    """
    if resume and out is None:
        raise ValueError("resume=True needs the folder of the run: pass it as `out`")
    if keep_every is not None:
        keep_every = whole("keep_every", keep_every, 1)
        if out is None:
            raise ValueError("keep_every needs a folder for the iterates: pass it as `out`")
    check_progress(progress)
    checkpoint_seconds = real("checkpoint_seconds", checkpoint_seconds, positive=False)
    stopping = Stopping(epochs, max_epochs, patience, tolerance)
    extra = {} if config is None else json_value("config", config)
    criterion = resolve_loss(loss)
    chosen = resolve_remedies(remedies)
    with torch.inference_mode(False), torch.enable_grad():
        seed = whole("seed", seed, 0)
        work = (data, test_data, criterion, batch_size, chosen)
        method = (optimizer, learning_rate, optimizer_options or {}, device)
        course = new_course(model, work, method, seed, stopping, keep_every, extra)
        if out is None:
            return _run(course, progress)
        if any(not isinstance(value, Tensor) for value in course.loop.state.model.state_dict().values()):
            raise ValueError("the model keeps extra state that is no tensor, which `out` cannot store: pass out=None")
        with open_folder(out, resume) as (folder, found):
            finished = course.open(folder, found, checkpoint_seconds, keep_every)
            return finished or _run(course, progress)


# What one training and several at once are laid out from.
Work = tuple[DataLike, DataLike | None, Loss, int | float | None, list[Remedy]]
Method = tuple[str, float, Mapping[str, Any], str | torch.device | None]


def new_course(
    model: nn.Module,
    work: Work,
    method: Method,
    seed: int,
    stopping: Stopping,
    keep_every: int | None,
    extra: Any,
) -> Course:
    """Lay out a training that has not begun; everything is checked, nothing is written.

    Args:
        model: What to train a copy of.
        work: Training and test data, loss, batch size and remedies.
        method: The optimiser, its learning rate and other options, and the device.
        seed: Of the order of the samples.
        stopping: When it ends.
        keep_every: Epochs between the iterates that are kept.
        extra: Further facts for ``config.json``.

    Raises:
        TypeError: Something is of the wrong kind.
        ValueError: Something is out of range, or does not fit together.
    """
    state, where = _fresh_state(model, method)
    loop, facts = _prepare(state, where, work, seed, stopping.epochs)
    facts |= {**stopping.settings(), "extra": extra} | ({"keep_every": keep_every} if keep_every else {})
    return Course(loop, stopping, facts, Recorder(None, 0))


def _fresh_state(model: nn.Module, method: Method) -> tuple[State, torch.device]:
    """Copy the module, move the copy and give it an optimiser."""
    optimizer, rate, options, device = method
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
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
        replica = copy.deepcopy(model).to(place)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"the model cannot be copied to {place}: {' '.join(str(error).split())}") from error
    replica.zero_grad(set_to_none=True)
    parameters = {key: value for key, value in replica.named_parameters() if value.requires_grad}
    start = {key: value.detach().clone() for key, value in parameters.items()}
    return State(replica, make_optimizer(name, parameters.values(), rate, options), start), place


def _prepare(
    state: State, device: torch.device, work: Work, seed: int, epochs: int | None
) -> tuple[Loop, dict[str, Any]]:
    """Move the data, check that everything fits, and name what the result depends on."""
    data, test_data, loss, batch_size, remedies = work
    (train_split, loader_batch), test_split = as_tensors(data), None
    if test_data is not None:
        test_split = as_tensors(test_data)[0]
    samples = len(train_split.inputs)
    if batch_size is None:
        batch_size = min(loader_batch or DEFAULT_BATCH_SIZE, samples)
    size = resolve_batch_size(batch_size, samples)
    dtype = next(iter(state.start.values())).dtype
    test = None if test_split is None else _place(test_split, device, dtype)
    train = _place(train_split, device, dtype)
    loop = Loop(state, loss, train, test, Descent(state, loss, size), seed, device)
    loop.check()
    if size == 1:
        _check_single(state.model, train.inputs[:1], device)
    if remedies:
        parameters = list(state.trainable().values())
        task = Task(state.model, loss, state.optimizer, parameters, train, size, epochs, seed, device)
        loop.descent = Treated(state, task, remedies)
    chosen = {key: value for key, value in state.optimizer.defaults.items() if key != "lr"}
    optimizer = type(state.optimizer).__name__
    facts = {
        "format": FORMAT,
        "loss": loss.name,
        "batch_size": size,
        "optimizer": optimizer,
        "learning_rate": float(state.optimizer.defaults["lr"]),
        "optimizer_options": json_value("optimizer_options", chosen),
        "seed": seed,
        "model": describe_model(state.model),
        "data": describe_data(train_split),
        "test_data": None if test_split is None else describe_data(test_split),
        "environment": describe_environment(device, () if in_torch(optimizer) else (PACKAGE,)),
    }
    return loop, facts | ({"remedies": describe(remedies)} if remedies else {})


def _check_single(model: nn.Module, sample: Tensor, device: torch.device) -> None:
    """Refuse batches of one sample where they leave batch-norm one value, before anything is written."""
    with torch.no_grad(), private_rng(device, 0):
        try:
            copy.deepcopy(model).train()(sample.clone())
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


def _run(course: Course, progress: bool | Callable[[Metrics], object]) -> Run:
    """Train until the rule says stop."""
    with course.saving():
        with reporting(progress, course.stopping.limit, course.epochs) as reporter:
            while (reason := course.reason()) is None:
                course.add(course.loop.epoch(course.epochs + 1, reporter))
                reporter.epoch(course.loop.state.metrics[-1])
        return course.finish(reason)
