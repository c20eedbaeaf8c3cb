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


def last(stored: Stored, row: str, regime: str, key: str) -> list[float]:
    """A metric of the minimizers of one regime."""
    found = []
    for seed in seeds_of(stored):
        run = stored["runs"].get((row, regime, seed))
        if run is not None and run["metrics"][run["epoch"] - 1].get(key) is not None:
            found.append(run["metrics"][run["epoch"] - 1][key])
    return found


def sharpness(stored: Stored, row: str, space: str, epsilon: float, method: str) -> dict[str, dict[int, float]]:
    """Phi of each minimizer by regime and seed; an overflow is infinite."""
    found: dict[str, dict[int, float]] = {"SB": {}, "LB": {}}
    for part in stored["parts"]:
        if part["part"] == "sharpness" and part["row"] == row:
            for one in part["sharpness"]:
                if (one["space"], one["epsilon"], one["method"]) == (space, epsilon, method):
                    value = one["value"]
                    found[part["regime"]][part["seed"]] = math.inf if value is None else value
    return found
