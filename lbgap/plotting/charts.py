"""Figures of quantities along one axis: lines, bars, curves, densities."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lbgap.landscape.connect import Connection
from lbgap.landscape.line import Line
from lbgap.measures import SharpnessCurve
from lbgap.measures.asymmetry import Asymmetry
from lbgap.measures.hessian.density import Density
from lbgap.plotting.base import BLUE, COLORS, GREEN, GREY, ORANGE, VERMILION, plain

STYLES = ("-", "--", ":", "-.")
SIDES = (r"ahead, $x + r\,d$", r"behind, $x - r\,d$")


def plot_line(line: Line, title: str = "") -> Figure:
    """Draw a line as in the paper's figure 3: loss left, accuracy right, training solid, test dashed.

    Args:
        line: What :func:`lbgap.line` returned.
        title: Above the axes.

    Returns:
        The figure. Where the loss is not finite the curve has a gap.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    losses = figure.subplots()
    losses.plot(line.alphas, line.train_loss, color=BLUE, label="train")
    if line.test_loss is not None:
        losses.plot(line.alphas, line.test_loss, color=BLUE, linestyle="--", label="test")
    losses.set_xlim(line.alphas[0], line.alphas[-1])
    losses.set_xlabel(r"$\alpha$  (0: small-batch minimizer, 1: large-batch minimizer)")
    losses.set_ylabel(f"{str(line.settings['loss']).replace('_', '-')} loss", color=BLUE)
    losses.tick_params(axis="y", colors=BLUE)
    if all(loss >= 0 for loss in (*line.train_loss, *(line.test_loss or ())) if math.isfinite(loss)):
        losses.set_ylim(bottom=0)
    for end in (0.0, 1.0):
        losses.axvline(end, color=GREY, linewidth=0.8, linestyle=":")
    if line.train_accuracy is not None:
        accuracies = losses.twinx()
        accuracies.plot(line.alphas, line.train_accuracy, color=VERMILION)
        if line.test_accuracy is not None:
            accuracies.plot(line.alphas, line.test_accuracy, color=VERMILION, linestyle="--")
        accuracies.set_ylabel("accuracy in %", color=VERMILION)
        accuracies.tick_params(axis="y", colors=VERMILION)
        accuracies.set_ylim(0, 103)
    if line.test_loss is not None:
        handles, labels = losses.get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        for handle in legend.get_lines():
            handle.set_color(GREY)
    if title:
        losses.set_title(title)
    return figure


def plot_connection(found: Connection, title: str = "") -> Figure:
    """Draw the loss along a trained path (solid) and the straight line (dashed).

    Args:
        found: What :func:`lbgap.connect` returned.
        title: Above the axes.

    Returns:
        The figure. Where the loss is not finite a curve has a gap.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    drawn = []
    for line, way, style in ((found.path, found.kind, "-"), (found.straight, "straight line", "--")):
        for name, losses, color in (("train", line.train_loss, BLUE), ("test", line.test_loss, VERMILION)):
            if losses is not None:
                axes.plot(line.alphas, losses, style, color=color, label=f"{name}, {way}")
                drawn += [loss for loss in losses if math.isfinite(loss)]
    axes.set_xlim(0, 1)
    if min(drawn, default=0) >= 0:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(r"$t$  (0: small-batch minimizer, 1: large-batch minimizer)")
    axes.set_ylabel(f"{str(found.settings['loss']).replace('_', '-')} loss")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    if title:
        axes.set_title(title)
    return figure


def plot_bars(
    groups: Sequence[str], bars: Mapping[str, Sequence[Sequence[float]]], ylabel: str, title: str = ""
) -> Figure:
    """Draw groups of bars on a logarithmic axis: the bar is the median, a dot each single value.

    Args:
        groups: Names along the axis.
        bars: For each kind of bar its values, one sequence a group.
        ylabel: Quantity and unit.
        title: Above the axes.

    Returns:
        The figure. What a logarithm has no place for is written out: zero and NaN at the bottom, infinity at the top.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    positive = [v for kind in bars.values() for group in kind for v in group if v > 0 and math.isfinite(v)]
    floor = 10 ** math.floor(math.log10(min(positive, default=1.0)) - 0.3)
    width = 0.8 / max(len(bars), 1)
    for index, (kind, color) in enumerate(zip(bars, (BLUE, ORANGE, GREEN, VERMILION), strict=False)):
        places = [g + (index - (len(bars) - 1) / 2) * width for g in range(len(groups))]
        medians = [statistics.median(values) for values in bars[kind]]
        heights = [m - floor if floor < m < math.inf else 0 for m in medians]
        axes.bar(places, heights, width * 0.92, floor, color=color, label=kind)
        for place, values in zip(places, bars[kind], strict=True):
            _dots(axes, place, width, values, floor)
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(ylabel)
    figure.legend(loc="outside lower center", ncols=len(bars), frameon=False)
    if title:
        axes.set_title(title)
    return figure


def plot_curves(curves: Mapping[str, SharpnessCurve], title: str = "") -> Figure:
    """Draw phi against epsilon, both on logarithmic axes.

    Args:
        curves: A label and a curve for each minimizer; seven can be told apart by colour, the rest by line style.
        title: Above the axes.

    Returns:
        The figure. A phi of zero has no place on a logarithmic axis: the curve has a gap there.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for index, (label, curve) in enumerate(curves.items()):
        style = STYLES[index // len(COLORS) % len(STYLES)]
        heights = [value if 0 < value < math.inf else math.nan for value in curve.values]
        drawn |= not all(map(math.isnan, heights))
        axes.plot(
            curve.epsilons, heights, f"o{style}", color=COLORS[index % len(COLORS)], markersize=4, label=plain(label)
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    if not drawn:
        axes.set_ylim(0.1, 10)  # of nothing, matplotlib makes no logarithmic axis
    axes.set_xlabel(r"$\epsilon$, size of the box")
    axes.set_ylabel(r"$\phi$ in percent, at least")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(len(curves), 3), frameon=False)
    if title:
        axes.set_title(title)
    return figure


def plot_densities(densities: Mapping[str, Density], threshold: float | None = None, title: str = "") -> Figure:
    """Draw spectral densities on a logarithmic axis, with a band of one standard error to either side.

    Args:
        densities: A label and a density for each minimizer; seven can be told apart by colour.
        threshold: Of a large eigenvalue, a dotted line; none by default.
        title: Above the axes.

    Returns:
        The figure. The axis begins a little below the height that a single eigenvalue has. Ticks below the curves are
        eigenvalues that are known one by one.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    single = min(1 / (d.n * d.width * math.sqrt(2 * math.pi)) for d in densities.values())
    floor = single / 10
    for index, (label, found) in enumerate(densities.items()):
        color, style = COLORS[index % len(COLORS)], STYLES[index // len(COLORS) % len(STYLES)]
        axes.plot(found.grid, [max(y, floor / 10) for y in found.density], style, color=color, label=plain(label))
        pairs = list(zip(found.density, found.standard_error, strict=True))
        low, high = ([max(y + sign * e, floor / 10) for y, e in pairs] for sign in (-1, 1))
        axes.fill_between(found.grid, low, high, color=color, alpha=0.2, linewidth=0)
        height = 0.035 + 0.045 * (index % len(COLORS))
        axes.plot(found.known, [height] * len(found.known), "|", color=color, transform=axes.get_xaxis_transform())
    if threshold is not None:
        axes.axvline(threshold, color=GREY, linewidth=0.8, linestyle=":", label=f"large: above {threshold:.3g}")
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    axes.set_xlabel("eigenvalue of the Hessian")
    axes.set_ylabel("share of the eigenvalues per unit")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    if title:
        axes.set_title(title)
    return figure


def plot_asymmetry(found: Asymmetry, title: str = "") -> Figure:
    """Draw the sharpness of both sides against the distance, one panel a direction, all axes logarithmic.

    Args:
        found: What :func:`lbgap.asymmetry` returned.
        title: Above the panels.

    Returns:
        The figure. Where the loss does not rise, or is not finite, a curve has a gap.
    """
    columns = min(3, len(found.names))
    rows = math.ceil(len(found.names) / columns)
    figure = Figure(figsize=(max(4.8, 2.6 * columns), 0.9 + 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    drawn = False
    for panel, name, index, *sides in zip(
        panels, found.names, found.index, found.sharpness_ahead, found.sharpness_behind, strict=False
    ):
        for side, label, color, style in zip(sides, SIDES, (BLUE, VERMILION), ("o-", "s--"), strict=True):
            heights = [value if 0 < value < math.inf else math.nan for value in side]
            drawn |= not all(map(math.isnan, heights))
            panel.plot(found.distances, heights, style, color=color, markersize=3.5, label=label)
        panel.set_title(f"{plain(name)}: index {index:+.2f}", fontsize="medium")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
    if not drawn:
        panels[0].set_ylim(0.1, 10)  # of nothing, matplotlib makes no logarithmic axis
    for empty in panels[len(found.names) :]:
        empty.set_visible(False)
    for lowest in panels[max(0, len(found.names) - columns) : len(found.names)]:
        lowest.tick_params(labelbottom=True)
    panels[0].legend(loc="upper left", fontsize="small", frameon=False)
    figure.supxlabel("distance from the minimizer", fontsize="medium")
    figure.supylabel("rise in percent of 1 + loss", fontsize="medium")
    if title:
        figure.suptitle(title)
    return figure


def _dots(axes: Axes, place: float, width: float, values: Sequence[float], floor: float) -> None:
    """One dot a value, side by side in the order of arrival."""
    for position, value in enumerate(values):
        at = place + width * 0.5 * ((position + 0.5) / len(values) - 0.5)
        if 0 < value < math.inf:
            axes.plot(at, value, "o", color="white", markeredgecolor="black", markersize=4)
        elif value == math.inf:
            axes.annotate("inf", (at, 0.99), xycoords=("data", "axes fraction"), ha="center", va="top")
        else:
            axes.annotate(f"{value:g}", (at, floor), ha="center", va="bottom")
