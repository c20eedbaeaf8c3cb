"""What a sweep found, as one table: a row a trial, and means over the seeds."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lbgap.sweeps.definition import Definition
from lbgap.sweeps.trial import METRICS
from lbgap.system import files

TABLE = "results.csv"
_FACTS = ("epoch", "epochs", "reason", "seconds", "parameters")
_PHI = ("seconds", "evaluations", "standard_deviation", "status")


def rows(definition: Definition, found: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One flat row a trial, all with the same columns.

    Args:
        definition: The sweep.
        found: Of each trial, as :meth:`lbgap.sweeps.store.Store.rows` returns it.

    Returns:
        In the order of the sweep: ``trial``, ``state``, the settings, ``seed``, the metrics, what is known of
        the training, ``phi_NAME_EPSILON`` in percent with its ``_seconds``, ``_evaluations``,
        ``_standard_deviation`` and ``_status`` for each measurement, ``error``, ``folder``, ``host``, ``threads`` and
        versions. What is not known (yet) is None.
    """
    trials = definition.trials()
    settings = list(dict.fromkeys(key for trial in trials for key in trial.settings))
    table = []
    for trial in trials:
        one = found[trial.key]
        result: Mapping[str, Any] = one["result"] or {}
        row: dict[str, Any] = {"trial": trial.key, "state": one["state"]}
        row |= {key: _cell(trial.settings.get(key)) for key in settings} | {"seed": trial.seed}
        row |= {key: result.get(key) for key in (*METRICS, *_FACTS) if row.get(key) is None}  # epochs may be a setting
        measured: Mapping[str, Any] = result.get("sharpness", {})
        for measurement in definition.measurements:
            for epsilon in measurement.epsilons:
                column = measurement.column(epsilon)
                phi = measured.get(column, {})
                row |= {column: phi.get("value")} | {f"{column}_{name}": phi.get(name) for name in _PHI}
        row |= {"error": one["error"], "folder": result.get("folder"), "threads": result.get("threads")}
        row |= {"host": (one["worker"] or {}).get("host")}
        row |= {name: result.get("versions", {}).get(name) for name in ("lbgap", "torch")}
        table.append(row)
    return table


def _cell(value: Any) -> Any:
    """Lists and tables as text, so that a cell is a cell."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def write(table: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write ``results.csv``, which pandas and spreadsheets read; an empty cell is not known.

    Args:
        table: Of :func:`rows`.
        folder: An existing one.

    Returns:
        The file.

    Raises:
        OSError: It cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    files.write_bytes(folder / TABLE, text.getvalue().encode())
    return folder / TABLE


def summary(definition: Definition, table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds.

    Args:
        definition: The sweep.
        table: Of :func:`rows`.

    Returns:
        One entry a configuration: ``settings`` (those that vary and play a part in it), ``seeds`` (how many are
        complete), ``failed`` (how many failed), and ``values``: mean and standard deviation (with one less than their
        number in the denominator; None for one) of each metric and each phi over the complete ones that have it.
    """
    phis = [one.column(epsilon) for one in definition.measurements for epsilon in one.epsilons]
    trials, count, found = definition.trials(), len(definition.seeds), []
    for start in range(0, len(table), count):
        group = table[start : start + count]
        complete = [row for row in group if row["state"] == "complete"]
        values = {}
        for column in (*METRICS, *phis):
            numbers = [row[column] for row in complete if row[column] is not None and math.isfinite(row[column])]
            if numbers:
                spread = statistics.stdev(numbers) if len(numbers) > 1 else None
                values[column] = {"mean": statistics.fmean(numbers), "standard_deviation": spread}
        own = trials[start].settings
        settings = {key: _cell(own[key]) for key in definition.varying if key in own}
        failed = sum(row["state"] == "failed" for row in group)
        found.append({"settings": settings, "seeds": len(complete), "failed": failed, "values": values})
    return found
