"""A run: what a training returns, and the folder that holds it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lbgap.system import files
from lbgap.training.config import FORMAT

CONFIG = "config.json"
METRICS = "metrics.jsonl"
STATE = "state.safetensors"
MODEL = "model.safetensors"
RESULT = "result.json"
ITERATES = "iterates"
_ITERATE = re.compile(r"epoch-(\d{5,})\.safetensors")


@dataclass
class Run:
    """What :func:`lbgap.training.train` returns.

    Attributes:
        model: The trained copy of the user's module, in evaluation mode, on the device of the training.
        folder: Where the run was written, or ``None``.
        metrics: One dict an epoch: ``epoch`` (from 1), ``train_loss``, ``train_accuracy`` (percent),
            ``test_loss``, ``test_accuracy``, ``distance`` from the start (Euclidean), ``seconds``. Accuracies
            are there for classification only, test values for a training with test data only; a test loss
            or distance that is not finite is ``None``. With remedies that choose them also ``batch_size`` and, at the
            end of the epoch, ``learning_rate``.
        config: Everything that the result depends on, as in ``config.json``. Where losses are means over batches of
            the training's size, ``coupled`` is true and ``notes`` say so.
        epoch: The epoch of which ``model`` is the iterate; its metrics are ``metrics[epoch - 1]``.
        reason: Why the training ended, a sentence.
        seconds: Time spent in the epochs, interruptions not counted.
    """

    model: nn.Module = field(repr=False)
    folder: Path | None
    metrics: list[dict[str, Any]] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    epoch: int
    reason: str
    seconds: float

    def __str__(self) -> str:
        return _summary(self.config, self.metrics, self.epoch, self.reason, self.seconds, self.folder)


@dataclass
class SavedRun:
    """What :func:`read_run` found in a folder.

    Attributes:
        folder: The folder.
        config: ``config.json``: everything that the result depends on.
        metrics: One dict an epoch, as in :class:`Run`.
        result: ``result.json``: ``epochs``, ``reason``, ``seconds``, and the ``epoch`` of which the weights
            are the iterate, with its ``metrics``.
        weights: The ``state_dict`` of the trained model, on the CPU.
    """

    folder: Path
    config: dict[str, Any] = field(repr=False)
    metrics: list[dict[str, Any]] = field(repr=False)
    result: dict[str, Any]
    weights: dict[str, Tensor] = field(repr=False)

    def __str__(self) -> str:
        epoch, reason, seconds = (self.result[key] for key in ("epoch", "reason", "seconds"))
        return _summary(self.config, self.metrics, epoch, reason, seconds, self.folder)


def _summary(
    config: Mapping[str, Any],
    metrics: list[dict[str, Any]],
    epoch: int,
    reason: str,
    seconds: float,
    folder: Path | None,
) -> str:
    last = metrics[epoch - 1]
    lines = [
        f"{config['model']['name']} ({config['model']['parameters']:,} parameters), {config['optimizer']}, "
        f"batch size {config['batch_size']}: {_epochs(len(metrics))} in {seconds:.1f} s",
        f"  {reason}",
    ]
    if "remedies" in config:
        lines.append(f"  remedies: {', '.join(config['remedies'])}")
    if epoch < len(metrics):
        lines.append(f"  the result is the iterate of epoch {epoch}, which has the lowest training loss")
    for part in ("train", "test"):
        if f"{part}_loss" in last:
            loss, accuracy = last[f"{part}_loss"], last.get(f"{part}_accuracy")
            shown = "not finite" if loss is None else f"{loss:.4g}"
            lines.append(f"  {part} loss {shown}" + ("" if accuracy is None else f", accuracy {accuracy:.2f} %"))
    if last["distance"] is not None:
        lines.append(f"  distance from the start {last['distance']:.4g}")
    lines += [f"  note: {note}" for note in config.get("notes", ())]
    if folder is not None:
        lines.append(f"  folder {folder}")
    return "\n".join(lines)


def _epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"


def read_run(folder: str | os.PathLike[str]) -> SavedRun:
    """Read a finished run.

    Args:
        folder: What was ``out`` for :func:`lbgap.training.train`.

    Returns:
        Its configuration, metrics, result and weights.

    Raises:
        FileNotFoundError: There is no such folder, or a file of the run is missing.
        ValueError: The folder is not a run, the run is not finished, or a file is damaged.
    """
    folder = Path(folder)
    config = read_config(folder)
    if not (folder / RESULT).exists():
        done = len(files.read_json_lines(folder / METRICS)) if (folder / METRICS).exists() else 0
        raise ValueError(
            f"{folder} is an unfinished run ({_epochs(done)} saved): "
            f"finish it with train(..., out={os.fspath(folder)!r}, resume=True) and the same settings"
        )
    result = files.read_json(folder / RESULT)
    metrics = files.read_json_lines(folder / METRICS)
    weights, _ = files.read_safetensors(folder / MODEL)
    if not isinstance(result, dict) or not result.keys() >= {"epoch", "epochs", "reason", "seconds"}:
        raise ValueError(
            f"{folder / RESULT} is damaged: it lacks epoch, epochs, reason or seconds; restore it or train anew"
        )
    if len(metrics) != result["epochs"]:
        raise ValueError(
            f"{folder / METRICS} is damaged: it has {len(metrics)} epochs, {RESULT} says {result['epochs']}; "
            "restore it or train anew"
        )
    return SavedRun(folder, config, metrics, result, weights)


def iterate_path(folder: Path, epoch: int) -> Path:
    """Where a run keeps the iterate of an epoch; 0 is the start."""
    return folder / ITERATES / f"epoch-{epoch:05d}.safetensors"


def kept_iterates(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """Find the iterates that a run kept on its way, without reading them; as :func:`read_iterates`.

    Returns:
        Epoch and file of each, in the order of the training.
    """
    folder = Path(folder)
    config = read_config(folder)
    if config.get("keep_every") is None:
        raise ValueError(
            f"{folder} kept no iterates: train it with keep_every=N (on the command line --keep-every N), "
            "for example 1 for those of all epochs"
        )
    named = {path: _ITERATE.fullmatch(path.name) for path in (folder / ITERATES).glob("*.safetensors")}
    return dict(sorted((int(match[1]), path) for path, match in named.items() if match))


def read_iterates(folder: str | os.PathLike[str]) -> list[tuple[int, dict[str, Tensor]]]:
    """Read the iterates that a run kept on its way, finished or not.

    Args:
        folder: What was ``out`` for :func:`lbgap.training.train`, with ``keep_every``.

    Returns:
        Epoch, 0 being the start, and ``state_dict`` on the CPU, of each iterate, in the order of the training.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder is not a run or kept no iterates, or a file is damaged.
    """
    return [(epoch, files.read_safetensors(path)[0]) for epoch, path in kept_iterates(folder).items()]


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a run, finished or not.

    Args:
        folder: The folder of the run.

    Returns:
        ``config.json``.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no run, or the file is damaged.
    """
    if not folder.exists():
        raise FileNotFoundError(f"no folder {folder}: pass the folder of a run")
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is not a run: it has no {CONFIG}; pass what was `out` in train()")
    config = files.read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise ValueError(
            f"{folder} is not a run that this version reads: {CONFIG} has format {found!r}, not {FORMAT!r}"
        )
    return config


@contextmanager
def open_folder(out: str | os.PathLike[str], resume: bool) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Take a folder for one run, and keep other processes out of it until the end.

    Args:
        out: The folder; created, with its parents, if missing.
        resume: Whether a run that it holds may be continued.

    Yields:
        The folder, and the configuration of the run in it, or ``None`` if it is empty.

    Raises:
        FileExistsError: It holds a run and ``resume`` is off, or it holds something else.
        NotADirectoryError: It is a file.
        BlockingIOError: Another process is training in it.
        ValueError: It holds a run that cannot be read.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"out must be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder):
        entries = [entry for entry in folder.iterdir() if not files.is_temporary(entry)]
        if entries and not (folder / CONFIG).is_file():
            raise FileExistsError(
                f"{folder} is not empty and holds no run (it has {sorted(entries)[0].name!r}): choose another folder"
            )
        config = read_config(folder) if entries else None
        if config is not None and not resume:
            kind = "a finished" if (folder / RESULT).exists() else "an unfinished"
            raise FileExistsError(
                f"{folder} holds {kind} run: pass resume=True to continue it or choose another folder"
            )
        for place in (folder, folder / ITERATES):
            if place.is_dir():
                files.remove_temporaries(place)
        yield folder, config
