"""The figures of the report, from what is stored alone."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lbgap.experiments.paper.stored import Stored, parts_of, rows_of, runs_of, seeds_of, sharpness
from lbgap.experiments.paper.treated import Treated, treated
from lbgap.landscape import Line, Shape
from lbgap.measures.asymmetry import Asymmetry
from lbgap.measures.hessian.density import Density
from lbgap.plotting import BLUE, VERMILION, label_points, plot_asymmetry, plot_densities, plot_line
from lbgap.status import Status

REGIMES = (("SB", BLUE, "o-"), ("LB", VERMILION, "s--"))


def figures(stored: Stored) -> Iterator[tuple[str, str, Figure]]:
    """Every figure that what is stored can fill: name of its file, caption, figure."""
    wanted, rows = stored["experiments"], rows_of(stored)
    first = ", first start" if len(seeds_of(stored)) > 1 else ""
    for row in rows:
        if "figure2" in wanted:
            caption = f"{row}: accuracy while training (figure 2), mean over trials{_ends(stored, row)}"
            yield f"figure2-{row}", caption, _figure2(stored, row)
    for row in rows:
        for part in parts_of(stored, "line", row):
            for name, key in (("figure3", "line"), ("figure7", "curve")):
                if name in wanted:
                    line = _line(part[key])
                    yield f"{name}-{row}", f"{row}: the {key} from SB to LB (figure {name[-1]}){first}", plot_line(line)
    for name, kind, caption in (
        ("figure4", "batch", "test accuracy and sharpness against the batch size (figure 4)"),
        ("figure5", "warm", "large-batch training started from small-batch iterates (figure 5)"),
    ):
        for row in rows:
            parts = parts_of(stored, kind, row)
            if name in wanted and parts:
                yield f"{name}-{row}", f"{row}: {caption}{first}", _sweep(stored, row, kind, parts)
    for row in rows:
        during = _by_regime(stored, "during", row)
        if "figure6" in wanted and during:
            caption = f"{row}: sharpness against the loss while training (figure 6){first}"
            yield f"figure6-{row}", caption, _figure6(during)
    for row in rows:
        if "distance" in wanted:
            yield f"distance-{row}", f"{row}: distance from the start", _distance(stored, row)
    for row in rows:
        spectra = _by_regime(stored, "spectrum", row)
        if "spectrum" in wanted and len(spectra) == 2:
            densities = {regime: _density(spectra[regime]["density"]) for regime in ("SB", "LB")}
            yield (
                f"spectrum-{row}",
                f"{row}: density of the eigenvalues of the Hessian{first}",
                plot_densities(densities),
            )
        for part in parts_of(stored, "asymmetry", row) if "asymmetry" in wanted else ():
            caption = f"{row}, {part['regime']}: both sides of the minimizer{first}"
            yield f"asymmetry-{row}-{part['regime']}", caption, plot_asymmetry(_asymmetry(part["asymmetry"]))

    for row in rows:
        groups = treated(stored, row)
        if "remedies" in wanted and groups:
            yield (
                f"remedies-{row}",
                f"{row}: test accuracy against sharpness with each remedy",
                _remedies(stored, groups),
            )


def _by_regime(stored: Stored, kind: str, row: str) -> dict[str, Any]:
    return {part["regime"]: part for part in parts_of(stored, kind, row)}


def _ends(stored: Stored, row: str) -> str:
    """How far the mean of each regime is one of all trials, and of how many from there on."""
    told = []
    for regime, _, _ in REGIMES:
        lengths = sorted(len(run["metrics"]) for run in runs_of(stored, row, regime).values())
        steps = [f"{len(lengths) - lengths.index(end)} to epoch {end}" for end in dict.fromkeys(lengths)]
        if len(steps) > 1 or len(lengths) < len(seeds_of(stored)):
            told.append(f"of {regime} {', '.join(steps) or 'none'}")
    return f": {'; '.join(told)}" if told else ""


def _figure2(stored: Stored, row: str) -> Figure:
    figure, (left, right) = _panels()
    for axes, key in ((left, "train_accuracy"), (right, "test_accuracy")):
        for regime, color, style in REGIMES:
            runs = [run["metrics"] for run in runs_of(stored, row, regime).values()]
            epochs = itertools.zip_longest(*(metrics for metrics in runs if key in metrics[0]))
            means = [statistics.fmean(one[key] for one in epoch if one is not None) for epoch in epochs]
            axes.plot(range(1, len(means) + 1), means, _visible(style, means), color=color, label=regime)
        axes.set_xscale("log")
        axes.set_xlabel("epoch")
    left.set_ylabel("training accuracy in %")
    right.set_ylabel("test accuracy in %")
    return _with_legend(figure, left)


def _figure6(parts: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for regime, color, style in REGIMES:
        if regime in parts:
            points = [(one["loss"], _positive(one["value"])) for one in parts[regime]["iterates"]]
            axes.plot(*zip(*points, strict=True), style, color=color, markersize=4, label=regime)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("training loss (training goes to the right)")
    axes.set_ylabel(rf"$\phi$ in %, $\epsilon$ = {next(iter(parts.values()))['epsilon']:g}, lower bound")
    return _with_legend(figure, axes)


def _sweep(stored: Stored, row: str, kind: str, parts: list[dict[str, Any]]) -> Figure:
    """Test accuracy left, phi right; both regimes belong to a sweep over batch sizes, and frame one of warm starts."""
    epsilon, seed = parts[0]["epsilon"], parts[0]["seed"]
    phi = sharpness(stored, row, "full space", epsilon, "vertex")
    points = [(part["number"], part["metrics"].get("test_accuracy"), _positive(part["value"])) for part in parts]
    ends = {}
    for regime, _, _ in REGIMES:
        run = stored["runs"].get((row, regime, seed))
        if run is not None and seed in phi[regime]:
            accuracy = run["metrics"][run["epoch"] - 1].get("test_accuracy")
            ends[regime] = (run["batch"], accuracy, _positive(phi[regime][seed]))
    if kind == "batch":
        points += ends.values()
    points.sort()
    figure, (left, right) = _panels()
    for place, axes in ((1, left), (2, right)):
        axes.plot([p[0] for p in points], [p[place] for p in points], "o-", color="black", markersize=4)
        if kind == "warm":
            for regime, color, style in REGIMES:
                if regime in ends and ends[regime][place] is not None:
                    label = f"{regime} alone"
                    axes.axhline(ends[regime][place], color=color, linestyle=style[1:], label=label)
        else:
            for regime, color, style in REGIMES:
                if regime in ends:
                    axes.plot(ends[regime][0], ends[regime][place], style[0], color=color, label=regime)
            axes.set_xscale("log")
            axes.set_xticks([], minor=True)
        axes.set_xticks([p[0] for p in points], [str(p[0]) for p in points])
        axes.set_xlabel("samples in a batch" if kind == "batch" else "small-batch epochs before the large batch")
    left.set_ylabel("test accuracy in %")
    right.set_ylabel(rf"$\phi$ in %, $\epsilon$ = {epsilon:g}, lower bound")
    right.set_yscale("log")
    return _with_legend(figure, left)


def _remedies(stored: Stored, groups: list[Treated]) -> Figure:
    """One point a remedy, and both regimes without; means over trials."""
    figure = Figure(figsize=(8.4, 5.6), layout="constrained")
    axes = figure.subplots()
    marks = {"none, SB": (BLUE, "o", "SB, no remedy"), "none, LB": (VERMILION, "s", "LB, no remedy")}
    points = {}
    for group in groups:
        phi, accuracies = group.of("phi"), group.of("accuracy")
        if phi and accuracies and 0 < (mean := statistics.fmean(phi)) < math.inf:
            color, mark, label = marks.get(group.name, ("black", ".", ""))
            points[label or group.name] = mean, statistics.fmean(accuracies)
            axes.plot(*points[label or group.name], mark, color=color, markersize=8)
    axes.set_xscale("log")
    axes.margins(0.12)
    axes.set_xlabel(rf"$\phi$ in %, $\epsilon$ = {stored['plan']['epsilons'][0]:g}, lower bound")
    axes.set_ylabel("test accuracy in %")
    axes.grid(alpha=0.3)
    label_points(axes, points)
    return figure


def _distance(stored: Stored, row: str) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for regime, color, style in REGIMES:
        for index, seed in enumerate(seeds_of(stored)):
            run = stored["runs"].get((row, regime, seed))
            if run is not None:
                epochs = [one["epoch"] for one in run["metrics"]]
                distances = [math.nan if one["distance"] is None else one["distance"] for one in run["metrics"]]
                label = regime if index == 0 else None
                axes.plot(epochs, distances, _visible(style, epochs), color=color, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("Euclidean distance from the start")
    return _with_legend(figure, axes)


def _visible(style: str, values: Sequence[float]) -> str:
    """The style of a line, with a marker where a single value makes none."""
    return style if len(values) == 1 else style[1:]


def _panels() -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    return figure, (left, right)


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _positive(value: float | None) -> float:
    """What has a place on a logarithmic axis; a gap for the rest."""
    return value if value is not None and 0 < value < math.inf else math.nan


def _finite(values: Any) -> Any:
    """JSON as it was before NaN and infinity became null, but that both are NaN now."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list):
        return tuple(_finite(value) for value in values)
    return math.nan if values is None else values


def _line(stored: dict[str, Any]) -> Line:
    kept = ("alphas", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    values: dict[str, Any] = {name: None if stored[name] is None else _finite(stored[name]) for name in kept}
    tested = stored["test_shape"]
    return Line(
        **values,
        value=_finite(stored["value"]),
        status=Status(stored["status_name"], stored["status"]),
        settings=stored["settings"],
        evaluations=stored["evaluations"],
        seconds=stored["seconds"],
        shape=Shape(**_finite(stored["shape"])),
        test_shape=None if tested is None else Shape(**_finite(tested)),
    )


def _asymmetry(stored: dict[str, Any]) -> Asymmetry:
    kept = {name: value for name, value in stored.items() if name not in ("status", "status_name")}
    return Asymmetry(**_finite(kept), status=Status(stored["status_name"], stored["status"]))


def _density(stored: dict[str, Any]) -> Density:
    tensors = {name: torch.tensor(stored[name], dtype=torch.float64, device="cpu") for name in ("nodes", "weights")}
    kept = {**_finite(stored), "status": Status(stored["status_name"], stored["status"])}
    del kept["status_name"]
    return Density(**{**kept, **tensors})
