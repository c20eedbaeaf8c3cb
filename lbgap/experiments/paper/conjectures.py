"""Why large batches should generalise worse: the paper's four conjectures, and what the stored numbers say of each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from lbgap.experiments.paper.stored import Stored, last, parts_of, rows_of, runs_of, sharpness
from lbgap.experiments.paper.summary import growth
from lbgap.experiments.tables import short
from lbgap.measures.hessian.quadrature import extent

FOR, AGAINST, OPEN = "speaks for it", "speaks against it", "does not decide it"
SADDLE = 0.01  # of the largest eigenvalue: a negative one that is smaller is none to speak of
APART = 2.0  # times as large: two shares of negative curvature that differ
FURTHER = 1.1  # times as far from the start: less is no difference to speak of
BARRIER = 0.1  # of the loss: a lower one does not part two basins


@dataclass(frozen=True)
class Conjecture:
    """One of the paper's reasons for the generalisation gap.

    Attributes:
        name: A word for it.
        claim: What it says of large batches (LB).
        sentences: What was found on each row, with numbers, and what that says; or the command that would find it.
    """

    name: str
    claim: str
    sentences: tuple[str, ...]


def conjectures(stored: Stored) -> Iterator[Conjecture]:
    """Hold the four conjectures of Keskar et al. 2016 against what is stored.

    A sentence says that numbers speak for or against one only where all starts that were measured agree.

    Args:
        stored: What :func:`lbgap.experiments.paper.read_paper` returned.

    Yields:
        The four.
    """
    known: tuple[tuple[str, str, tuple[Callable[[Stored, str], str], ...]], ...] = (
        ("over-fitting", "LB over-fits; then stopping early would close the gap", (_over_fitting,)),
        ("saddle points", "LB is attracted to saddle points; then its Hessian has negative eigenvalues", (_saddle,)),
        (
            "exploration",
            "LB lacks the exploration of small batches (SB); then it stays closer to its start, and ends flatter and "
            "more accurate where SB has explored before",
            (_distances, _warm),
        ),
        (
            "closest minimizer",
            "LB zooms in on the minimizer closest to the start; then SB's is another one, and further away",
            (_closest,),
        ),
    )
    for name, claim, parts in known:
        yield Conjecture(name, claim, tuple(part(stored, row) for row in rows_of(stored) for part in parts))


def _over_fitting(stored: Stored, row: str) -> str:
    """Each training as if it had been stopped at its best test epoch."""
    ends = {regime: last(stored, row, regime, "test_accuracy") for regime in ("SB", "LB")}
    seeds = [seed for seed in ends["SB"] if seed in ends["LB"]]
    if not seeds:
        return _missing(stored, row, "table2")
    best = {
        regime: {seed: max(one["test_accuracy"] for one in run["metrics"]) for seed, run in runs.items()}
        for regime in ("SB", "LB")
        for runs in [runs_of(stored, row, regime)]
    }
    at_best, at_end = ([one["SB"][seed] - one["LB"][seed] for seed in seeds] for one in (best, ends))
    lower, before = (sum(gap > 0 for gap in gaps) for gaps in (at_best, at_end))
    verdict = OPEN
    if before == len(seeds):
        if lower == len(seeds) and 2 * statistics.fmean(at_best) >= statistics.fmean(at_end):
            verdict = AGAINST
        elif lower == 0:
            verdict = FOR
    small, large = (_mean([best[regime][seed] for seed in seeds]) for regime in ("SB", "LB"))
    return (
        f"{row}: stopped at its best test epoch, SB reaches {small} % and LB {large} %; LB is still lower in "
        f"{lower} of {_trials(seeds)}, at the end it is in {before}, and the mean gap is {_mean(at_best)} instead of "
        f"{_mean(at_end)} points. {_says(verdict, len(seeds))}"
    )


def _saddle(stored: Stored, row: str) -> str:
    """The lowest Ritz value against the largest eigenvalue."""
    parts = {part["regime"]: part for part in parts_of(stored, "spectrum", row)}
    if len(parts) < 2:
        return _missing(stored, row, "spectrum")
    shares, told = {}, []
    for regime in ("SB", "LB"):
        density = parts[regime]["density"]
        nodes, weights = (
            torch.tensor(density[name], dtype=torch.float64, device="cpu") for name in ("nodes", "weights")
        )
        low, high = extent(nodes, weights, tuple(density["known"]))
        shares[regime] = max(0.0, -low) / high if high > 0 else math.inf
        negative = 100 * parts[regime]["mass"]["details"]["negative_share"]
        told.append(
            f"at {regime} the lowest Ritz value is {short(low, 3)} and the largest {short(high, 3)} "
            f"({short(100 * shares[regime], 2)} %), and negative ones hold {short(negative, 2)} % of the sum of "
            "absolute values"
        )
    verdict = OPEN
    if shares["LB"] < SADDLE or shares["LB"] <= shares["SB"]:
        verdict = AGAINST
    elif shares["LB"] >= APART * shares["SB"]:
        verdict = FOR
    return f"{row}: {'; '.join(told)}. {_says(verdict, 1)}"


def _distances(stored: Stored, row: str) -> str:
    """How far from the start both regimes end."""
    small, large = (last(stored, row, regime, "distance") for regime in ("SB", "LB"))
    seeds = [seed for seed in small if seed in large]
    ratios = [small[seed] / large[seed] if large[seed] else math.nan for seed in seeds]
    if not seeds or not all(map(math.isfinite, ratios)):
        return _missing(stored, row, "distance")
    slopes = {
        regime: [growth(run["metrics"]) for seed, run in runs_of(stored, row, regime).items() if seed in seeds]
        for regime in ("SB", "LB")
    }
    further = sum(ratio > 1 for ratio in ratios)
    verdict = FOR if min(ratios) >= FURTHER else AGAINST if further == 0 else OPEN
    growths = [_mean([slope for slope in found if slope is not None]) for found in slopes.values()]
    grows = f"; the distance grows by {growths[0]} (SB) and {growths[1]} (LB) a unit of log epoch" * all(growths)
    return (
        f"{row}: SB ends {_range(ratios)} times as far from the start as LB (the paper: 3 to 10), further in {further} "
        f"of {_trials(seeds)}{grows}. {_says(verdict, len(seeds))}"
    )


def _warm(stored: Stored, row: str) -> str:
    """The large batch from the earliest and the latest small-batch iterate, against the large batch alone."""
    parts = sorted(parts_of(stored, "warm", row), key=lambda part: part["number"])
    if not parts:
        return _missing(stored, row, "figure5")
    seed, epsilon = parts[0]["seed"], parts[0]["epsilon"]
    alone = sharpness(stored, row, "full space", epsilon, "vertex")["LB"].get(seed)
    accuracy = last(stored, row, "LB", "test_accuracy").get(seed)
    if alone is None or accuracy is None:
        return _missing(stored, row, "figure5")
    told = [f"alone {short(alone, 3)} % and {short(accuracy, 3)} %"]
    for part in parts[:: max(1, len(parts) - 1)]:  # the earliest and the latest
        phi, reached = math.inf if part["value"] is None else part["value"], part["metrics"]["test_accuracy"]
        told.append(f"after {_epochs(part['number'])} of SB {short(phi, 3)} % and {short(reached, 3)} %")
    better = phi < alone, reached > accuracy
    verdict = FOR if all(better) else OPEN if any(better) else AGAINST
    return f"{row}: phi at epsilon {epsilon:g} and test accuracy of LB: {'; '.join(told)}. {_says(verdict, 1)}"


def _closest(stored: Stored, row: str) -> str:
    """Where both minimizers lie, and whether a barrier parts them."""
    parts = parts_of(stored, "line", row)
    if not parts:
        return _missing(stored, row, "figure3")
    part = parts[0]
    small, large = (last(stored, row, regime, "distance").get(part["seed"], math.nan) for regime in ("SB", "LB"))
    between = part.get("distance")
    if between is None or not math.isfinite(small + large):
        return f"{row}: the distances are not stored."
    line = part["line"]
    losses = {a: math.inf if loss is None else loss for a, loss in zip(line["alphas"], line["train_loss"], strict=True)}
    rise = max(loss for a, loss in losses.items() if 0 <= a <= 1) - max(losses[0.0], losses[1.0])
    verdict = AGAINST if large >= small else FOR if large < between and rise > BARRIER else OPEN
    barrier = f"rises {short(rise, 3)} above" if rise > 0 else "does not rise above"
    return (
        f"{row}: from the start to LB it is {short(large, 3)}, to SB {short(small, 3)}, and from one to the other "
        f"{short(between, 3)}; on the line between them the training loss {barrier} that of the higher end. "
        f"{_says(verdict, 1)}"
    )


def _missing(stored: Stored, row: str, experiment: str) -> str:
    """Which command would say more."""
    plan = stored["plan"]
    options = {
        "--trials": plan["trials"],
        "--updates": plan["updates"],
        "--seed": plan["first_seed"] or None,
        "--batch-norm": plan["batch_norm"] if plan["batch_norm"] != "eval" else None,
        "--data-dir": plan["data_dir"],
        "--device": plan["device"] if plan.get("device", "cpu") != "cpu" else None,
    }
    told = "".join(f" {name} {value}" for name, value in options.items() if value is not None)
    return f"{row}: not measured; lbgap paper {experiment} --row {row}{told} --out THIS_FOLDER measures it."


def _says(verdict: str, trials: int) -> str:
    return f"This {verdict}{', by one start' if trials == 1 else ''}."


def _trials(seeds: Sequence[int]) -> str:
    return "1 trial" if len(seeds) == 1 else f"{len(seeds)} trials"


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _mean(values: Sequence[float]) -> str:
    return short(statistics.fmean(values), 3) if values else ""


def _range(values: Sequence[float]) -> str:
    low, high = (short(value, 3) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
