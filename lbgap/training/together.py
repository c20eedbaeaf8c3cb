"""Several small networks trained at once, from starts of their own, as one batched model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from lbgap.checks import Amount, json_value, real, several, shown, whole
from lbgap.problem.loss import LossFunction, resolve_loss
from lbgap.problem.samples import DataLike, as_tensors
from lbgap.system.progress import check_progress
from lbgap.training.batches import epoch_batches
from lbgap.training.course import Course, new_course
from lbgap.training.loop import Loop
from lbgap.training.progress import Metrics, Reporter, reporting
from lbgap.training.run import Run, open_folder
from lbgap.training.stack import Stack, check_alike
from lbgap.training.stopping import Stopping


def train_together(
    models: Sequence[nn.Module],
    data: DataLike,
    *,
    seeds: Sequence[int],
    test_data: DataLike | None = None,
    loss: str | LossFunction = "cross_entropy",
    batch_size: Amount | None = None,
    epochs: int | None = None,
    max_epochs: int = 200,
    patience: int = 10,
    tolerance: float = 0.01,
    optimizer: str = "Adam",
    learning_rate: float = 1e-3,
    optimizer_options: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    out: Sequence[str | os.PathLike[str]] | None = None,
    resume: bool = False,
    keep_every: int | None = None,
    configs: Sequence[Mapping[str, Any]] | None = None,
    progress: bool | Callable[[Metrics], object] = False,
    checkpoint_seconds: float = 5.0,
) -> list[Run]:
    """Train copies of several modules of one architecture at once, as one batched model.

    Each ends where :func:`lbgap.train` would bring it with its seed, to the rounding of batched products, and its
    folder is the same: a run that was begun in one way may be continued in the other. The steps of small networks with
    small batches are bound by the number of calls, which this divides; where the products are large it gains nothing
    (``benchmarks/test_training.py``). Each training ends by itself; the others go on without it.

    Args:
        models: Chains of ``Linear``, ``BatchNorm1d`` and activations, in ``Sequential``; not changed.
        data: As :func:`lbgap.train` takes it; the same for all.
        seeds: One a model.
        test_data: As there, and so are ``loss``, ``batch_size``, ``epochs``, ``max_epochs``, ``patience``,
            ``tolerance``, ``learning_rate``, ``optimizer_options``, ``device``, ``resume``, ``keep_every`` and
            ``checkpoint_seconds``.
        loss: The same for all.
        batch_size: Of each.
        epochs: Of each.
        max_epochs: Of each.
        patience: Of each.
        tolerance: Of each.
        optimizer: One of ``torch.optim`` that treats all elements alike: ``Adam``, ``SGD`` and most others.
        learning_rate: The same for all.
        optimizer_options: The same for all.
        device: Where to train.
        out: A folder for each run, or ``None``.
        resume: Continue the runs in the folders, finished ones left as they are. Where they have come to different
            epochs, those behind catch up first.
        keep_every: Epochs between the iterates that are kept.
        configs: Further facts for each ``config.json``, or ``None``.
        progress: ``True`` for a bar on stderr, or a function that is called with the metrics of each epoch of each
            training, and its ``seed``.
        checkpoint_seconds: Between the writings of the states.

    Returns:
        The runs, in the order of the models. ``seconds`` of an epoch is its part of the common time.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range, the models differ or are of a kind that does not train together, or a
            run cannot be resumed.
        FloatingPointError: A loss became NaN or infinite; the epochs before it are kept on the disk.
        OSError: A folder holds something already, is in use, or cannot be written.
    """
    if isinstance(models, nn.Module) or not isinstance(models, Sequence):
        raise TypeError(f"models must be a list of networks, got {type(models).__name__}: train one by lbgap.train")
    count = len(models)
    if not count:
        raise ValueError("models must be one network or more, got none")
    for name, values in (("seeds", seeds), ("out", out), ("configs", configs)):
        if values is None and name != "seeds":
            continue
        listed = several(values)
        if listed is None or len(listed) != count:
            raise ValueError(f"{name} must be a list of {count}, one a model, got {shown(values)}")
    folders = [None] * count if out is None else [os.path.realpath(folder) for folder in out]
    if out is not None and len(set(folders)) < count:
        raise ValueError("out must be a folder of its own for each model, got one twice")
    if out is None and (resume or keep_every is not None):
        raise ValueError(
            f"{'resume=True' if resume else 'keep_every'} needs the folders of the runs: pass them as `out`"
        )
    if keep_every is not None:
        keep_every = whole("keep_every", keep_every, 1)
    check_progress(progress, "an epoch's metrics")
    checkpoint_seconds = real("checkpoint_seconds", checkpoint_seconds, positive=False)
    stopping = Stopping(epochs, max_epochs, patience, tolerance)
    criterion = resolve_loss(loss)
    (samples, loader_batch), tested = as_tensors(data), None if test_data is None else as_tensors(test_data)[0]
    if batch_size is None and loader_batch is not None:
        batch_size = min(loader_batch, len(samples.inputs))
    shared: dict[str, Any] = {
        "data": samples,
        "test_data": tested,
        "loss": criterion,
        "batch_size": batch_size,
        "remedies": [],
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "optimizer_options": optimizer_options,
        "device": device,
        "stopping": stopping,
        "keep_every": keep_every,
    }
    with ExitStack() as held, torch.inference_mode(False), torch.enable_grad():
        courses = []
        for index, model in enumerate(models):
            extra = {} if configs is None else json_value("configs", configs[index])
            seed = whole("seeds", seeds[index], 0)
            course = new_course(model, seed=seed, extra=extra, **shared)
            courses.append(course)
            course.loop.train, course.loop.test = courses[0].loop.train, courses[0].loop.test  # once on the device
        check_alike([course.loop.state for course in courses], samples.inputs)
        found: list[Run | Course] = list(courses)
        for index, folder in enumerate(out or ()):
            opened, there = held.enter_context(open_folder(folder, resume))
            found[index] = courses[index].open(opened, there, checkpoint_seconds, keep_every) or courses[index]
        return _run(found, progress)


def _run(found: list[Run | Course], progress: bool | Callable[[Metrics], object]) -> list[Run]:
    """Train those that are not finished, the ones behind first, until the rule of each says stop."""
    courses = {index: course for index, course in enumerate(found) if isinstance(course, Course)}
    runs = {index: run for index, run in enumerate(found) if isinstance(run, Run)}
    stack: Stack | None = None
    stacked: list[Course] = []
    with ExitStack() as saved:
        for course in courses.values():
            saved.enter_context(course.saving())
        first = min((course.epochs for course in courses.values()), default=0)
        limit = next((course.stopping.limit for course in courses.values()), 0)
        with reporting(progress, limit, first) as reporter:
            while True:
                for index, reason in [(i, r) for i, course in courses.items() if (r := course.reason()) is not None]:
                    if stack is not None:
                        stack.release()
                        stack = None
                    runs[index] = courses.pop(index).finish(reason)
                if not courses:
                    break
                least = min(course.epochs for course in courses.values())
                group = [course for course in courses.values() if course.epochs == least]
                if stack is None or group != stacked:
                    if stack is not None:
                        stack.release()
                    stack, stacked = Stack([course.loop.state for course in group]), group
                _epoch(stack, group, reporter)
    return [runs[index] for index in range(len(found))]


def _epoch(stack: Stack, courses: list[Course], reporter: Reporter) -> None:
    """One epoch of all."""
    number, first = courses[0].epochs + 1, courses[0].loop
    begun = time.perf_counter()
    with first.surroundings(number):
        for course in courses:
            course.loop.state.model.train()
        _descend(stack, [course.loop for course in courses], number, reporter)
        shared = (time.perf_counter() - begun) / len(courses)
        rows = []
        for course in courses:
            begun = time.perf_counter()
            rows.append(course.loop.measured(number))
            rows[-1]["seconds"] = shared + time.perf_counter() - begun
    stack.share_moments()
    for course, row in zip(courses, rows, strict=True):
        course.add(row)
    for course, row in zip(courses, rows, strict=True):  # who may raise what ends the training
        reporter.epoch({**row, "seed": course.loop.seed})


def _descend(stack: Stack, loops: list[Loop], number: int, reporter: Reporter) -> None:
    """The steps of an epoch: the samples of each training in an order of its own."""
    inputs, targets = loops[0].train
    size = loops[0].descent.begin(number)
    orders = [epoch_batches(len(inputs), size, loop.seed, number) for loop in loops]
    losses = []
    for batch, samples in enumerate(zip(*orders, strict=True), 1):
        index = torch.stack(samples).to(loops[0].device)
        losses.append(stack.step(inputs[index], targets[index], loops[0].loss))
        if loops[0].device.type == "cpu":
            loops[0].check_finite([losses.pop().item()], number, batch, len(orders[0]))
        reporter.batch(number - 1 + batch / len(orders[0]))
    if losses:
        loops[0].check_finite(torch.stack(losses).tolist(), number, 1, len(orders[0]))
