"""The training loop: a copy of the user's module, brought to a minimizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lbgap.checks import Amount, json_value, real, whole
from lbgap.problem.loss import LossFunction, resolve_loss
from lbgap.problem.samples import DataLike
from lbgap.system.progress import check_progress
from lbgap.training.course import Course, new_course
from lbgap.training.progress import Metrics, reporting
from lbgap.training.remedies.base import Remedy
from lbgap.training.remedies.choose import resolve_remedies
from lbgap.training.run import Run, open_folder
from lbgap.training.stopping import Stopping


def train(
    model: nn.Module,
    data: DataLike,
    *,
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
        data: The training set: pairs of inputs and targets, from two tensors or arrays ``(n, ...)``, a ``Dataset``, a
            ``DataLoader`` (read in the order of its data set), batches or a function that returns an iterator of them;
            held in memory on the device. Floating values are cast to the model's dtype.
        test_data: What to measure besides, or ``None``.
        loss: ``"cross_entropy"``, ``"mse"``, ``"bce"``, ``"nll"``, ``"l1"`` or ``"huber"``; a loss of torch; or a
            callable ``loss(output, target)``: the mean over the batch, one value a sample, or ``(sum, weight)``.
        batch_size: An int counts samples; a float in (0, 1] or ``"10%"`` is a share of the training set (0.1 is the
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
    check_progress(progress, "an epoch's metrics")
    checkpoint_seconds = real("checkpoint_seconds", checkpoint_seconds, positive=False)
    stopping = Stopping(epochs, max_epochs, patience, tolerance)
    extra = {} if config is None else json_value("config", config)
    criterion = resolve_loss(loss)
    chosen = resolve_remedies(remedies)
    with torch.inference_mode(False), torch.enable_grad():
        seed = whole("seed", seed, 0)
        course = new_course(
            model,
            data=data,
            test_data=test_data,
            loss=criterion,
            batch_size=batch_size,
            remedies=chosen,
            optimizer=optimizer,
            learning_rate=learning_rate,
            optimizer_options=optimizer_options,
            device=device,
            seed=seed,
            stopping=stopping,
            keep_every=keep_every,
            extra=extra,
        )
        if out is None:
            return _run(course, progress)
        if any(not isinstance(value, Tensor) for value in course.loop.state.model.state_dict().values()):
            raise ValueError("the model keeps extra state that is no tensor, which `out` cannot store: pass out=None")
        with open_folder(out, resume) as (folder, found):
            finished = course.open(folder, found, checkpoint_seconds, keep_every)
            return finished or _run(course, progress)


def _run(course: Course, progress: bool | Callable[[Metrics], object]) -> Run:
    """Train until the rule says stop."""
    with course.saving():
        with reporting(progress, course.stopping.limit, course.epochs) as reporter:
            while (reason := course.reason()) is None:
                course.add(course.loop.epoch(course.epochs + 1, reporter))
                reporter.epoch(course.loop.state.metrics[-1])
        return course.finish(reason)
