"""One trial of a sweep: build the network, train it, measure it; cut off at any moment, it goes on where it was."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lbgap import datasets, networks
from lbgap.measures.sharpness import fast_sharpness
from lbgap.objective import Objective
from lbgap.problem.samples import Data
from lbgap.result import plain, versions
from lbgap.sweeps.definition import NETWORK, SETTINGS, Definition, Measurement, Trial
from lbgap.system import files
from lbgap.training import Run, train
from lbgap.training.config import describe_data, describe_environment

MEASURES = "measures.json"
METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "distance")
_OTHERS = ("data", "data_dir", *NETWORK)
_SEARCH_ALONE = ("method", "iterations", "restarts", "scout", "scaling", "samples", "region", "subspace")
SEARCH_ALONE = (*_SEARCH_ALONE, "trials", "distribution", "seed")
"""The options of a measurement that are no options of the objective."""


@functools.lru_cache(maxsize=4)
def _load(name: str, data_dir: str | None) -> tuple[Data, str]:
    """A data set, held for the next trial, and the digest of its bits."""
    data = datasets.load(name, data_dir)
    parts = [data.train] if data.test is None else [data.train, data.test]
    return data, "-".join(describe_data(part)["digest"] for part in parts)


def data_of(settings: Mapping[str, Any], data_dir: Path | None) -> tuple[Data, str]:
    """Load the data of a trial.

    Args:
        settings: Of the trial.
        data_dir: Where files lie: the four of ``mnist``, or an ``.npz`` file that is not given by a full path.

    Returns:
        The data, and a digest of their bits that tells them from others of the same name.

    Raises:
        ValueError: An unknown name or a damaged file.
        OSError: A file is missing.
    """
    name = settings["data"]
    if not isinstance(name, str):
        raise ValueError(f"data must be a name or the path of an .npz file, got {name!r}")
    own = settings.get("data_dir")
    if own is not None and not isinstance(own, str):
        raise ValueError(f"data_dir must be a folder, got {own!r}")
    where = Path(data_dir or ".", own or "")
    if name.endswith(".npz"):
        return _load(str(where / name), None)
    return _load(name, str(where) if data_dir or own else None)


def _recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run records of its data: an archive by its path from the folder of the file, on any machine the same."""
    name, own = settings["data"], settings.get("data_dir")
    if name.endswith(".npz"):
        return {"name": Path(own or "", name).as_posix(), "data_dir": None}
    return {"name": name, "data_dir": own}


def data_key(settings: Mapping[str, Any]) -> str:
    """What a sweep calls the data of a trial."""
    return " in ".join(str(settings[key]) for key in ("data", "data_dir") if settings.get(key) is not None)


def network_of(settings: Mapping[str, Any], data: Data, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network of a trial.

    Args:
        settings: Of the trial.
        data: Which gives the number of inputs and outputs.
        seed: Of the start.

    Returns:
        The network, and what its run records to build it again.

    Raises:
        ValueError: A setting is out of range or does not fit the data.
        TypeError: A setting is of the wrong kind.
    """
    if "model" in settings:
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            return networks.from_path(settings["model"]), {"model": settings["model"]}
    initialisation = settings.get("initialisation", "torch")
    spec = networks.specify(settings["network"], data.features, data.outputs, seed=seed, initialisation=initialisation)
    spec |= {"hidden": settings["hidden"]} if "hidden" in settings else {}
    return networks.build(spec), {"network": spec}


def training_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that :func:`lbgap.train` takes, as it takes them."""
    return {key: settings[key] for key in SETTINGS if key in settings and key not in _OTHERS}


def objective_of(model: nn.Module, data: Data, measurement: Measurement) -> Objective:
    """The loss that a measurement climbs."""
    options = {key: value for key, value in measurement.options.items() if key not in SEARCH_ALONE}
    return Objective(model, data.train, loss=data.loss, **options)


def run_trial(
    definition: Definition,
    trial: Trial,
    root: Path,
    data_dir: Path | None,
    digests: Mapping[str, str],
    epoch: Callable[[], None],
) -> dict[str, Any]:
    """Train and measure, or go on where an earlier process was cut off.

    The run lies in a folder that is named after the environment, since a training that was cut off goes on to
    the same bits only in the environment in which it began; in another one it starts anew, in another folder.

    Args:
        definition: The sweep.
        trial: Which of its trials; no other process works on it.
        root: The folder of the sweep.
        data_dir: Where files of data lie.
        digests: Of the data that the sweep was made with, by :func:`data_key`.
        epoch: Called after each epoch and each measurement; what it raises ends the trial.

    Returns:
        What was found, ready for JSON.

    Raises:
        ValueError: A setting is refused, or the data here are not those of the sweep.
        FloatingPointError: The training diverged.
        OSError: A file cannot be written.
    """
    data, digest = data_of(trial.settings, data_dir)
    if digest != digests[data_key(trial.settings)]:
        raise ValueError(
            f"the data {data_key(trial.settings)} are not those that the sweep was made with: copy those here"
        )
    module, extra = network_of(trial.settings, data, trial.seed)
    chosen = training_of(trial.settings)
    place = torch.device(chosen.get("device") or "cpu")
    environment = {key: value for key, value in describe_environment(place).items() if key not in ("python", "numpy")}
    mark = hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:8]
    folder = f"{trial.folder}/run-{mark}"
    run = train(
        module,
        data.train,
        test_data=data.test,
        loss=data.loss,
        seed=trial.seed,
        out=root / folder,
        resume=True,
        config={**extra, "data": _recorded(trial.settings)},
        progress=lambda _: epoch(),
        **chosen,
    )
    metrics = run.metrics[run.epoch - 1]
    return {
        "folder": folder,
        **{name: metrics.get(name) for name in METRICS},
        "epoch": run.epoch,
        "epochs": len(run.metrics),
        "reason": run.reason,
        "seconds": run.seconds,
        "parameters": run.config["model"]["parameters"],
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "sharpness": _measure(definition, run, data, root / trial.folder / f"{mark}-{MEASURES}", epoch),
    }


def _measure(
    definition: Definition, run: Run, data: Data, path: Path, epoch: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """Take every measurement that an earlier process did not take."""
    found: dict[str, dict[str, Any]] = files.read_json(path) if path.exists() else {}
    for measurement in definition.measurements:
        options = {key: value for key, value in measurement.options.items() if key in SEARCH_ALONE}
        objective = None
        for epsilon in measurement.epsilons:
            column = measurement.column(epsilon)
            if column in found:
                continue
            objective = objective or objective_of(run.model, data, measurement)
            result = fast_sharpness(objective, epsilon=epsilon, **options)
            kept = ("value", "standard_deviation", "base_loss", "max_loss", "evaluations", "status", "seconds")
            found[column] = {name: plain(getattr(result, name)) for name in kept} | {"settings": plain(result.settings)}
            files.write_json(path, found)
            epoch()
    return found
