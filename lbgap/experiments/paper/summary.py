"""From what is stored to the tables and sentences of the report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from scipy.stats import binomtest

from lbgap.experiments.paper.cells import Table, mean_and_deviation, pair
from lbgap.experiments.paper.plan import ROWS
from lbgap.experiments.paper.stored import Stored, last, parts_of, rows_of, runs_of, seeds_of, sharpness
from lbgap.experiments.paper.treated import remedy_tables
from lbgap.experiments.paper.values import SHARPNESS, TABLE2

SPACES = {"table3": "full space", "table4": "manifold"}
ACCURACIES = (("SB", "train_accuracy"), ("LB", "train_accuracy"), ("SB", "test_accuracy"), ("LB", "test_accuracy"))


def tables(stored: Stored) -> Iterator[tuple[str, Table]]:
    """Every table that what is stored can fill, by the name of its experiment."""
    wanted = stored["experiments"]
    if "table2" in wanted:
        yield "table2", _table2(stored)
    for name, space in SPACES.items():
        if name in wanted:
            yield name, _sharpness_table(stored, name, space)
    if "distance" in wanted:
        yield "distance", _distances(stored)
    if "spectrum" in wanted:
        yield "spectrum", _spectra(stored)
    if "remedies" in wanted:
        yield from remedy_tables(stored)


def _table2(stored: Stored) -> Table:
    rows, planned = [], len(seeds_of(stored))
    for name in rows_of(stored):
        own = [mean_and_deviation(list(last(stored, name, *which).values()), planned) for which in ACCURACIES]
        rows.append((name, *own))
        like = ROWS[name].like
        rows.append((f"paper, {like}", *map(pair, TABLE2[like])))
    heads = ("", "train SB", "train LB", "test SB", "test LB")
    return Table("Accuracy in percent (the paper's Table 2)", heads, tuple(rows), _like_note(stored))


def _sharpness_table(stored: Stored, name: str, space: str) -> Table:
    rows, planned = [], len(seeds_of(stored))
    for row in rows_of(stored):
        like = ROWS[row].like
        for epsilon in stored["plan"]["epsilons"]:
            cells = []
            for method in ("vertex", "recipe"):
                found = sharpness(stored, row, space, epsilon, method)
                cells += [mean_and_deviation(list(found[regime].values()), planned) for regime in ("SB", "LB")]
            given = SHARPNESS[space][like].get(epsilon)
            cells += [f"{pair(one)}" for one in given] if given else ["", ""]
            rows.append((row, f"{epsilon:g}", *cells))
    heads = ("", "epsilon", "SB", "LB", "SB, recipe", "LB, recipe", "SB, paper", "LB, paper")
    title = f"phi in percent, {'full space' if name == 'table3' else 'random manifolds'} (the paper's Table {name[-1]})"
    note = (
        "SB and LB: vertex ascent from several starts; recipe: 10 iterations of SciPy's L-BFGS-B, as in the paper. "
        "Each value is a lower bound, the larger the truer. "
    )
    return Table(title, heads, tuple(rows), note + _like_note(stored))


def _like_note(stored: Stored) -> str:
    standing = [f"{name} is put beside {ROWS[name].like}" for name in rows_of(stored) if ROWS[name].like != name]
    return f"Another network on other data: {', '.join(standing)}." if standing else ""


def growth(metrics: Sequence[dict[str, Any]]) -> float | None:
    """Slope of the distance from the start in the natural logarithm of the epoch (Hoffer et al. 2017, section 3)."""
    points = [(math.log(one["epoch"]), one["distance"]) for one in metrics if one["distance"] is not None]
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def _distances(stored: Stored) -> Table:
    rows, planned = [], len(seeds_of(stored))
    for name in rows_of(stored):
        for regime in ("SB", "LB"):
            distances = list(last(stored, name, regime, "distance").values())
            found = (growth(run["metrics"]) for run in runs_of(stored, name, regime).values())
            slopes = [slope for slope in found if slope is not None]
            rows.append((name, regime, mean_and_deviation(distances, planned), mean_and_deviation(slopes, planned)))
    heads = ("", "regime", "distance from the start", "growth with log epoch")
    note = "Euclidean distance of the parameters. Growth: slope of a straight line through distance against log epoch."
    return Table("Distance from the start", heads, tuple(rows), note)


def _spectra(stored: Stored) -> Table:
    rows = []
    for name in rows_of(stored):
        for part in sorted(parts_of(stored, "spectrum", name), key=lambda one: one["regime"], reverse=True):
            top = ", ".join(f"{value:.4g}" for value in part["eigenvalues"]["values"])
            details = part["mass"]["details"]
            shown = f"{part['mass']['value']:.4g}" if part["mass"]["value"] is not None else ""
            rows.append((name, part["regime"], top, shown, f"{details['threshold']:.4g}"))
    heads = ("", "regime", "largest eigenvalues", "eigenvalues above threshold", "threshold")
    return Table("Eigenvalues of the Hessian, first trial", heads, tuple(rows))


def findings(stored: Stored) -> Iterator[str]:
    """What the numbers say, also where it is not what the paper says."""
    for name, space in SPACES.items():
        if name not in stored["experiments"]:
            continue
        for row in rows_of(stored):
            for epsilon in stored["plan"]["epsilons"]:
                found = sharpness(stored, row, space, epsilon, "vertex")
                yield _verdict(row, f"phi in the {space} at epsilon {epsilon:g}", found["SB"], found["LB"], "sharper")
    for row in rows_of(stored):
        large, small = (last(stored, row, regime, "test_accuracy") for regime in ("LB", "SB"))
        yield _verdict(row, "test accuracy", large, small, "less accurate")


def _verdict(row: str, what: str, low: dict[int, Any], high: dict[int, Any], word: str) -> str:
    """How often the value of the large batch is the worse one, and how likely that is by chance."""
    both = [(low[seed], high[seed]) for seed in low if seed in high]
    above, below = (sum(one > other for one, other in sides) for sides in (((b, a) for a, b in both), both))
    sentence = f"{row}, {what}: LB is {word} in {above} of {len(both)} trials"
    if above + below == 0:
        return f"{sentence}."
    p = binomtest(above, above + below, alternative="greater").pvalue
    opposite = f", the other way round in {below}" if below else ""
    return f"{sentence}{opposite} (sign test, one-sided: p = {p:.3g})."
