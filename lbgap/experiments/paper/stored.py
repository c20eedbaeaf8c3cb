"""What :func:`lbgap.experiments.paper.read_paper` read, asked by row, regime and seed."""

from __future__ import annotations

import math
from typing import Any

Stored = dict[str, Any]


def rows_of(stored: Stored) -> list[str]:
    """Names of the rows."""
    return [row["name"] for row in stored["plan"]["rows"]]


def seeds_of(stored: Stored) -> range:
    """Seeds of the trials."""
    return range(stored["plan"]["first_seed"], stored["plan"]["first_seed"] + stored["plan"]["trials"])


def runs_of(stored: Stored, row: str, regime: str) -> dict[int, dict[str, Any]]:
    """The finished trainings of one regime, by seed."""
    return {s: stored["runs"][row, regime, s] for s in seeds_of(stored) if (row, regime, s) in stored["runs"]}


def last(stored: Stored, row: str, regime: str, key: str) -> dict[int, float]:
    """A metric of the minimizers of one regime, by seed; NaN where it is not finite."""
    found = {}
    for seed, run in runs_of(stored, row, regime).items():
        metrics = run["metrics"][run["epoch"] - 1]
        if key in metrics:
            found[seed] = math.nan if metrics[key] is None else metrics[key]
    return found


def parts_of(stored: Stored, kind: str, row: str) -> list[dict[str, Any]]:
    """The measurements of one kind."""
    return [part for part in stored["parts"] if (part["part"], part["row"]) == (kind, row)]


def sharpness(stored: Stored, row: str, space: str, epsilon: float, method: str) -> dict[str, dict[int, float]]:
    """Phi of each minimizer by regime and seed; an overflow is infinite."""
    found: dict[str, dict[int, float]] = {"SB": {}, "LB": {}}
    for part in parts_of(stored, "sharpness", row):
        for one in part["sharpness"]:
            if (one["space"], one["epsilon"], one["method"]) == (space, epsilon, method):
                value = one["value"]
                found[part["regime"]][part["seed"]] = math.inf if value is None else value
    return found
