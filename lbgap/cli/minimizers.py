"""The minimizers that a command was given: run folders, or a model with weights and data."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from lbgap.cli.show import errors


def load_minimizers(
    runs: list[Path] | None,
    model: str | None,
    weights: list[Path] | None,
    data: str | None,
    data_dir: Path | None,
    download: bool,
) -> list[tuple[str, Any, Any]]:
    """Names, models and data of what was named: run folders, or a model of one's own with weights and data."""
    from lbgap import datasets, networks
    from lbgap.replica import replicate
    from lbgap.training import read_run
    from lbgap.training.load import load_model
    from lbgap.weights import load_weights

    def network(inside: bool = True) -> Any:
        # A replica, for the path may name one and the same module.
        return replicate(networks.from_path(model, inside=inside))[0] if model else None

    def filled(path: Path) -> Any:
        try:
            return load_weights(network(inside=False), path)  # the module that was saved, be it around the network
        except ValueError:
            return load_weights(network(), path)

    load = functools.cache(functools.partial(datasets.load, download=download, progress=errors().is_terminal))
    if runs and weights:
        raise ValueError("give run folders or --weights, not both")
    if runs:
        found = []
        for folder in runs:
            run = read_run(folder)
            module = load_model(run, network())
            own = run.config.get("extra", {}).get("data", {})
            name = data or own.get("name")
            if name is None:
                raise ValueError(f"{folder} does not record its data: name them with --data")
            samples = load(name, data_dir or own.get("data_dir"))
            if data is None:
                _check_own(folder, run.config, samples)
            found.append((str(folder), module, samples))
        return found
    if not (model and weights and data):
        raise ValueError("give run folders, or --model package.module:callable with --weights and --data")
    return [(str(path), filled(path).eval(), load(data, data_dir)) for path in weights]


def _check_own(folder: Path, config: dict[str, Any], samples: Any) -> None:
    """Refuse data that have changed since a run was trained on them.

    Raises:
        ValueError: They have.
    """
    from lbgap.training.config import describe_data

    for key, split in (("data", samples.train), ("test_data", samples.test)):
        recorded = config.get(key)
        if recorded is not None and (split is None or describe_data(split)["digest"] != recorded["digest"]):
            raise ValueError(
                f"{samples.name} has other {'training' if key == 'data' else 'test'} samples than those {folder} was "
                "trained with: name the data to use with --data"
            )


def check_same_data(named: list[tuple[str, Any, Any]]) -> None:
    """Refuse minimizers that were trained on different data.

    Raises:
        ValueError: They were.
    """
    import torch

    first, _, samples = named[0]
    for name, _, others in named[1:]:
        if samples is not others and not all(map(torch.equal, samples.train, others.train)):
            raise ValueError(f"{first} and {name} were trained on different data: name those to use with --data")


def batches_of(runs: list[Path] | None) -> dict[str, str]:
    """What the runs in these folders have in common with others: their batch size."""
    from lbgap.training import read_run

    return {str(folder): f"batch {read_run(folder).config['batch_size']}" for folder in runs or ()}


def by_name(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What was found at each minimizer, by its name; a run that was given twice has a number behind its name."""
    found: dict[str, Any] = {}
    for name, each in pairs:
        found[name if name not in found else f"{name} ({len(found) + 1})"] = each
    return found
