"""Gap and sharpness with each remedy: what is stored of them, as a table of the report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from lbgap.experiments.paper.cells import Table, mean_and_deviation
from lbgap.experiments.paper.remedies import batches_in, name_of
from lbgap.experiments.paper.stored import Stored, parts_of, rows_of, runs_of, seeds_of, sharpness
from lbgap.experiments.tables import short


@dataclass(frozen=True)
class Trial:
    """One training of a group.

    Attributes:
        updates: Of the training.
        loss: On the training data at its end.
        accuracy: On the test data, in percent; None where it is not known.
        phi: In percent; None where it was not measured, infinite where it overflowed.
    """

    updates: int
    loss: float
    accuracy: float | None
    phi: float | None


@dataclass
class Treated:
    """The trainings with one remedy, or without.

    Attributes:
        name: Of the remedy; that of the regime without one.
        form: Short forms with the settings, more than one where they follow from the start.
        trials: By seed.
        errors: What was raised instead, by seed.
        skipped: Why there is none.
    """

    name: str
    form: dict[str, None] = field(default_factory=dict)
    trials: dict[int, Trial] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    skipped: str = ""

    def of(self, key: str) -> list[float]:
        """An attribute of all trials that have it."""
        return [value for trial in self.trials.values() if (value := getattr(trial, key)) is not None]


def remedy_seeds(stored: Stored) -> range:
    """Seeds of the trials with remedies."""
    count = stored["plan"].get("remedy_trials")
    return seeds_of(stored) if count is None else seeds_of(stored)[:count]


def treated(stored: Stored, row: str) -> list[Treated]:
    """Small and large batches without a remedy, and the large batch with each: of the same starts.

    Args:
        stored: What was read.
        row: The name of a row.

    Returns:
        In the order of the plan, the two without first; empty where no remedy was tried.
    """
    parts = parts_of(stored, "remedy", row)
    if not parts:
        return []
    seeds, epsilon = remedy_seeds(stored), stored["plan"]["epsilons"][0]
    phi = sharpness(stored, row, "full space", epsilon, "vertex")
    groups = {name: Treated(name) for name in ("none, SB", "none, LB")}
    for regime in ("SB", "LB"):
        for seed in (seed for seed in runs_of(stored, row, regime) if seed in seeds):
            run = stored["runs"][row, regime, seed]
            last = run["metrics"][run["epoch"] - 1]
            updates = len(run["metrics"]) * batches_in(run["samples"], run["batch"])
            trial = Trial(updates, last["train_loss"], last.get("test_accuracy"), phi[regime].get(seed))
            groups[f"none, {regime}"].trials[seed] = trial
    names = [name_of(form) for form in stored["plan"]["remedies"]]
    for part in sorted(parts, key=lambda part: (names.index(part["name"]), part["seed"])):
        if part["seed"] not in seeds:
            continue
        group = groups.setdefault(part["name"], Treated(part["name"]))
        group.form[part["remedy"]] = None
        if "skipped" in part:
            group.skipped = part["skipped"]
        elif "error" in part:
            group.errors[part["seed"]] = part["error"]
        else:
            last = part["metrics"]
            value = math.inf if part["value"] is None else part["value"]
            trial = Trial(part["updates"], last["train_loss"], last.get("test_accuracy"), value)
            group.trials[part["seed"]] = trial
    return list(groups.values())


def remedy_table(stored: Stored, row: str) -> Table | None:
    """The table of a row; None where no remedy was tried."""
    groups = treated(stored, row)
    if not groups:
        return None
    small = groups[0].trials
    planned = len(remedy_seeds(stored))
    rows = []
    for group in groups:
        if group.skipped:
            continue
        gaps = [
            small[seed].accuracy - trial.accuracy  # type: ignore[operator]
            for seed, trial in group.trials.items()
            if seed in small and None not in (small[seed].accuracy, trial.accuracy)
        ]
        tried = len(group.trials)
        rows.append(
            (
                group.name,
                _range(group.of("updates")),
                short(statistics.fmean(group.of("loss")), 3) if tried else "",
                mean_and_deviation(group.of("accuracy"), tried),
                "" if group is groups[0] else mean_and_deviation(gaps, tried),
                mean_and_deviation(group.of("phi"), tried),
                _count(tried, planned, len(group.errors)),
                " or ".join(group.form),
            )
        )
    epsilon = stored["plan"]["epsilons"][0]
    heads = ("", "updates", "training loss", "test accuracy", "gap to SB", f"phi at {epsilon:g}", "trials", "settings")
    return Table(f"{row}: gap and sharpness with each remedy", heads, tuple(rows), _note(stored, groups))


def _note(stored: Stored, groups: Sequence[Treated]) -> str:
    of, planned = stored["plan"]["trials"], len(remedy_seeds(stored))
    sentences = [
        "The large batch with each remedy, for about as many updates as without (batches and grow begin with the small "
        "batch; local-sgd: as many of each worker). Test accuracy in percent, and the gap to SB in percent points: the "
        "test accuracy of SB less that with the remedy, from the same start. phi in percent, by vertex ascent from "
        "several starts.",
        f"From the first {planned} of {of} starts." if planned < of else "",
        "Few starts rank nothing, and no setting was tuned.",
        *(f"Without {group.name}: {group.skipped}." for group in groups if group.skipped),
        *(
            f"{group.name} from seed {seed} failed: {error.rstrip('.')}."
            for group in groups
            for seed, error in group.errors.items()
        ),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _count(tried: int, planned: int, failed: int) -> str:
    shown = str(tried) if tried == planned else f"{tried} of {planned}"
    return f"{shown}, {failed} failed" if failed else shown


def remedy_tables(stored: Stored) -> list[tuple[str, Table]]:
    """One for each row with remedies."""
    found = ((row, remedy_table(stored, row)) for row in rows_of(stored))
    return [(f"remedies-{row}", table) for row, table in found if table is not None]
