"""A sweep as its TOML file declares it: settings, grids, seeds and what is measured on each trained model."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbgap.checks import advice
from lbgap.measures.sharpness import fast_sharpness
from lbgap.training import train

_BY_THE_SWEEP = {"model", "data", "test_data", "loss", "seed", "out", "resume", "config", "progress"}
_TRAINING = [
    name
    for name in inspect.signature(train).parameters
    if name not in _BY_THE_SWEEP | {"keep_every", "checkpoint_seconds"}
]
NETWORK = ("network", "hidden", "initialisation", "model")
SETTINGS = ("data", "data_dir", *NETWORK, *_TRAINING)
"""What ``[base]`` and ``[grid]`` may set: the data, the network, and the settings of :func:`lbgap.train`."""

DEFAULTS: Mapping[str, Any] = {"data": "mnist1d", "network": "mlp", "hidden": [128, 128, 128, 128]}
SEARCH = [
    name
    for name, parameter in inspect.signature(fast_sharpness).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in {"epsilon", "start", "progress", "loss"}
]
"""What ``[[sharpness]]`` may set beside ``name`` and ``epsilon``."""

EPSILONS = [1e-3, 5e-4]
_TOP = ("name", "seeds", "base", "grid", "sharpness")


@dataclass(frozen=True)
class Trial:
    """One training of a sweep, with what is measured on its model.

    Attributes:
        key: Its place in the sweep, from 0; the same in every process.
        settings: Of the data, the network and the training, the seed left out.
        seed: Of the start and of the order of the samples.
    """

    key: int
    settings: dict[str, Any]
    seed: int

    @property
    def folder(self) -> str:
        """Where it keeps its files, relative to the folder of the sweep."""
        return f"trials/{self.key:04d}"


@dataclass(frozen=True)
class Measurement:
    """A sharpness to take on each trained model.

    Attributes:
        name: Of its columns: ``phi_NAME_EPSILON``.
        epsilons: Sizes of the box.
        options: Other keywords of :func:`lbgap.fast_sharpness`.
    """

    name: str
    epsilons: tuple[float, ...]
    options: dict[str, Any]

    def column(self, epsilon: float) -> str:
        """The name of its column for one epsilon."""
        return f"phi_{self.name}_{epsilon:g}"


@dataclass(frozen=True)
class Definition:
    """A sweep.

    Attributes:
        name: Of the sweep; in a database that several share, the one that tells them apart.
        base: Settings of all trials.
        grids: Values of settings that vary; each grid is the product of its lists, the sweep their union.
        seeds: Each configuration is trained once from each.
        measurements: What is measured on each trained model.
    """

    name: str
    base: dict[str, Any]
    grids: tuple[dict[str, list[Any]], ...]
    seeds: tuple[int, ...]
    measurements: tuple[Measurement, ...]

    @property
    def varying(self) -> tuple[str, ...]:
        """The settings that the grids name, in the order of the file."""
        return tuple(dict.fromkeys(key for grid in self.grids for key in grid))

    def configurations(self) -> list[dict[str, Any]]:
        """Every combination of settings, once, without those that play no part in it."""
        found = []
        for grid in self.grids or ({},):
            for values in itertools.product(*grid.values()):
                settings = {**DEFAULTS, **self.base, **dict(zip(grid, values, strict=True))}
                idle = NETWORK[:-1] if "model" in settings else () if settings["network"] == "mlp" else ("hidden",)
                found.append({key: value for key, value in settings.items() if key not in idle})
        return found

    def trials(self) -> list[Trial]:
        """Every combination of settings from every seed, in an order that follows from the file."""
        pairs = itertools.product(self.configurations(), self.seeds)
        return [Trial(key, settings, seed) for key, (settings, seed) in enumerate(pairs)]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON, in the form of the file."""
        return {
            "name": self.name,
            "seeds": list(self.seeds),
            "base": self.base,
            "grid": list(self.grids),
            "sharpness": [
                {"name": one.name, "epsilon": list(one.epsilons), **one.options} for one in self.measurements
            ],
        }


def read(path: str | os.PathLike[str]) -> Definition:
    """Read the TOML file of a sweep.

    Args:
        path: The file; :func:`from_dict` says what it holds.

    Returns:
        The sweep. Values that depend on the data are judged by :func:`lbgap.sweeps.judge.judge`.

    Raises:
        ValueError: It is not TOML (the message gives the line), or a key or a value is not known.
        OSError: It is missing or cannot be read.
    """
    path = Path(path)
    try:
        record = tomllib.loads(path.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, byte {error.start} is none: save it as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not TOML: {' '.join(str(error).split())}") from None
    try:
        return from_dict(record, path.stem)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def from_dict(record: Mapping[str, Any], name: str) -> Definition:
    """Take what a TOML file holds.

    Args:
        record: ``name`` (text), ``seeds`` (a list of integers), ``base`` (a table of settings), ``grid`` (a
            table of lists of settings, or several: their union) and ``sharpness`` (tables of ``name``,
            ``epsilon`` and keywords of :func:`lbgap.fast_sharpness`); all may be missing.
        name: Of the sweep, where the record has none.

    Returns:
        The sweep.

    Raises:
        ValueError: A key is not known, a value is not of its kind, or two configurations are the same.
    """
    _known(record, _TOP, "the file")
    base = _table(record.get("base", {}), "base")
    _known(base, SETTINGS, "[base]")
    grids = tuple(_grid(one) for one in _tables(record.get("grid", []), "grid"))
    given = record.get("name", name)
    if not isinstance(given, str) or not given.strip() or len(given) > 200:
        raise ValueError(f"name must be a text of 1 to 200 characters, got {given!r}")
    measurements = tuple(_measurement(one) for one in _tables(record.get("sharpness", []), "sharpness"))
    definition = Definition(given, _plain(base, "[base]"), grids, _seeds(record.get("seeds", [0])), measurements)
    columns = [one.column(epsilon) for one in measurements for epsilon in one.epsilons]
    if twice := _twice(columns):
        raise ValueError(f"[[sharpness]] gives the column {twice} twice: give one of them another name")
    if twice := _twice([json.dumps(one, sort_keys=True) for one in definition.configurations()]):
        raise ValueError(f"[grid] gives the same configuration twice: {twice}")
    return definition


def _known(table: Iterable[str], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in table:
        if key not in known:
            raise ValueError(f"{where} has {key!r}, which is not known: {advice(key, known, 'expected one of')}")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"[{where}] must be a table of key = value lines, got {value!r}")
    return value


def _tables(value: Any, where: str) -> list[dict[str, Any]]:
    """One table, or several."""
    return [_table(one, where) for one in (value if isinstance(value, list) else [value])]


def _grid(table: dict[str, Any]) -> dict[str, list[Any]]:
    _known(table, SETTINGS, "[grid]")
    if not table:
        raise ValueError("[grid] is empty: give lists of values, such as batch_size = [32, 0.1]")
    for key, values in table.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"[grid] {key} must be a list of values, got {values!r}: write {key} = [...]")
    return _plain(table, "[grid]")


def _seeds(values: Any) -> tuple[int, ...]:
    whole = isinstance(values, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in values)
    if not whole or not values or not all(0 <= one < 2**63 for one in values):
        raise ValueError(f"seeds must be a list of integers from 0 to 2**63 - 1, such as [0, 1, 2], got {values!r}")
    if twice := _twice(values):
        raise ValueError(f"seeds has {twice} twice: give each seed once")
    return tuple(values)


def _measurement(table: dict[str, Any]) -> Measurement:
    _known(table, ("name", "epsilon", *SEARCH), "[[sharpness]]")
    options = {key: value for key, value in table.items() if key not in ("name", "epsilon")}
    options = _plain(options, "[[sharpness]]")
    method = options.get("method", "vertex")
    name = table.get("name", method if isinstance(method, str) and method else "vertex")
    if not isinstance(name, str) or not name:
        raise ValueError(f"[[sharpness]] name must be a text, got {name!r}")
    values = table.get("epsilon", EPSILONS)
    values = values if isinstance(values, list) else [values]
    if not values or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
        raise ValueError(f"[[sharpness]] epsilon must be a number or a list of numbers, got {table['epsilon']!r}")
    return Measurement(name, tuple(float(one) for one in values), options)


def _plain(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy that JSON can hold; TOML's dates, and numbers that are not finite, are no settings."""
    found = {}
    for key, value in table.items():
        try:
            found[key] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            kinds = "texts, finite numbers, true, false, lists and tables"
            raise ValueError(f"{where} {key}: settings are {kinds}, got {value!r}") from None
    return found


def _twice(values: Iterable[Any]) -> Any:
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
