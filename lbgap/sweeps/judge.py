"""Refuse before anything runs what a trial would refuse later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lbgap import networks
from lbgap.maximize.region import check_box
from lbgap.maximize.search import check, check_scaling
from lbgap.objective.coordinates import check_manifold
from lbgap.sweeps.definition import NETWORK, Definition, Measurement
from lbgap.sweeps.trial import data_key, data_of, network_of, objective_of, training_of
from lbgap.training.batches import resolve_batch_size
from lbgap.training.optimizers import make_optimizer, resolve_optimizer
from lbgap.training.remedies.choose import resolve_remedies
from lbgap.training.stopping import Stopping


def judge(definition: Definition, data_dir: Path | None) -> dict[str, str]:
    """Load the data and build every network once, and judge every setting against them.

    Args:
        definition: The sweep.
        data_dir: Where files of data lie.

    Returns:
        A digest of each data set, by :func:`lbgap.sweeps.trial.data_key`.

    Raises:
        ValueError: A setting is out of range or does not fit the others.
        TypeError: A setting is of the wrong kind.
        OSError: A file of data is missing.
    """
    digests: dict[str, str] = {}
    built: set[str] = set()
    for settings in definition.configurations():
        _alone(settings, definition)
        data, digests[data_key(settings)] = data_of(settings, data_dir)
        _training(settings, len(data.train.inputs))
        mark = json.dumps([settings.get(key) for key in ("data", "data_dir", *NETWORK)])
        if mark not in built:
            built.add(mark)
            model, _ = network_of(settings, data, definition.seeds[0])
            for measurement in definition.measurements:
                _measurement(measurement, model, data)
    return digests


def _alone(settings: Mapping[str, Any], definition: Definition) -> None:
    """What needs neither data nor a network."""
    given = {*definition.base, *definition.varying}
    if "model" in given:
        if other := sorted(given & set(NETWORK[:-1])):
            raise ValueError(f"model and {other[0]} cannot be given together: a model of your own is whole")
        if not isinstance(settings.get("model"), str):
            raise ValueError(f"model must be given as 'package.module:name', got {settings.get('model')!r}")
        return
    networks.known(settings["network"])


def _training(settings: Mapping[str, Any], samples: int) -> None:
    chosen = training_of(settings)
    if "batch_size" in chosen:
        resolve_batch_size(chosen["batch_size"], samples)
    rule: dict[str, Any] = {"epochs": None, "max_epochs": 200, "patience": 10, "tolerance": 0.01}
    Stopping(**{key: chosen.get(key, value) for key, value in rule.items()})
    device = chosen.get("device", "cpu")
    if device not in ("cpu", "cuda") and not (isinstance(device, str) and device.startswith("cuda:")):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}")
    name = resolve_optimizer(chosen.get("optimizer", "Adam"))
    options = chosen.get("optimizer_options", {})
    resolve_remedies(chosen.get("remedies", ()))
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float32, device="cpu"))
    make_optimizer(name, [weight], chosen.get("learning_rate", 1e-3), options)


def _measurement(measurement: Measurement, model: nn.Module, data: Any) -> None:
    """Judge a measurement on a network that is not trained."""
    options = measurement.options
    try:
        method = options.get("method", "vertex")
        numbers = (options.get("iterations"), options.get("restarts", 0), options.get("scout"), options.get("seed", 0))
        check(method, *numbers)
        check_scaling(method, options.get("scaling"))
        check_manifold(options.get("subspace"), options.get("trials"), options.get("distribution"))
        for epsilon in measurement.epsilons:
            check_box(options.get("region", "keskar"), epsilon, torch.float32)
        objective = objective_of(model, data, measurement)
        if "samples" in options:
            objective.sample(options["samples"], options.get("seed", 0))
    except (ValueError, TypeError) as error:
        raise ValueError(f"[[sharpness]] {measurement.name}: {error}") from None
