"""Figures of the loss on a plane: contours and the surface."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from mpl_toolkits.mplot3d.axes3d import Axes3D
from numpy.typing import NDArray

from lbgap.landscape.plane import Plane
from lbgap.plotting.base import GREY, ORANGE, VERMILION, plain

LEVELS = 16  # of a contour
COLOURS = "cividis"  # even in lightness, and the same to readers with and without colour-blindness
MARKERS = "osD^vP*X"
STRETCHED = 2  # ranges of x and y that differ by more are not drawn to one scale
FEW = 1.5  # largest over smallest loss, below which a logarithm shows nothing

Values = NDArray[np.float64]


def plot_plane(plane: Plane, title: str = "") -> Figure:
    """Draw the contours of the loss, one panel for the training and one for the test data.

    Args:
        plane: What :func:`lbgap.plane` returned.
        title: Above the panels.

    Returns:
        The figure. Levels are evenly spaced in the logarithm of the loss, the same in both panels, or in the loss
        itself where it is negative or hardly varies. Hatched: the loss is not finite. Dots: the points that were
        evaluated, where others were interpolated.
    """
    panels = [(name, values(plane, name)) for name in ("train", "test") if has(plane, name)]
    levels, scale = _levels(np.concatenate([found.ravel() for _, found in panels]))
    wide, high = _extent(plane)
    width = min(4.6, 4.0 * wide / high) if _to_scale(wide, high) else 4.6
    figure = Figure(figsize=(2.2 + width * len(panels), 5.4), layout="constrained")
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, found) in zip(drawn, panels, strict=True):
        filled = _contours(axes, plane, found, levels, scale)
        axes.set_title(f"{name} data" if len(panels) > 1 else title, fontsize="medium")
        axes.set_xlabel(plane.axes[0])
    drawn[0].set_ylabel(plane.axes[1])
    bar = figure.colorbar(filled, ax=list(drawn), format=FuncFormatter(lambda level, _: _number(level)), pad=0.02)
    bar.set_label(f"{_loss(plane)} loss")
    _legend(figure, plane, any(not np.isfinite(found).all() for _, found in panels))
    if title and len(panels) > 1:
        figure.suptitle(title)
    return figure


def plot_surface(plane: Plane, title: str = "") -> Figure:
    """Draw the training loss as a surface, its height on a logarithmic scale where the loss is positive.

    Args:
        plane: What :func:`lbgap.plane` returned.
        title: Above it.

    Returns:
        The figure. The surface has a hole where the loss is not finite.
    """
    heights, logarithmic = surface_heights(values(plane, "train"))
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.add_subplot(projection="3d")
    assert isinstance(axes, Axes3D)
    x, y = np.meshgrid(plane.x, plane.y)
    if np.isfinite(heights).any():
        low, high = np.nanmin(heights), np.nanmax(heights)
        norm = Normalize(low, high if high > low else low + 1)
        axes.plot_surface(x, y, heights, cmap=COLOURS, norm=norm, rcount=201, ccount=201, linewidth=0)
    if logarithmic:
        axes.zaxis.set_major_formatter(FuncFormatter(lambda height, _: _number(10**height)))
    for setter, label in zip((axes.set_xlabel, axes.set_ylabel), plane.axes, strict=True):
        setter(label, fontsize="small")
    axes.set_zlabel(f"{_loss(plane)} loss{', logarithmic' if logarithmic else ''}", fontsize="small")
    axes.tick_params(labelsize="small")
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(5))
    axes.zaxis.labelpad = 12
    axes.set_box_aspect((1, 1, 0.7), zoom=0.86)
    if title:
        axes.set_title(title)
    return figure


def has(plane: Plane, name: str) -> bool:
    """Whether a plane has the loss of some data, ``"train"`` or ``"test"``."""
    return getattr(plane, f"{name}_loss") is not None


def values(plane: Plane, name: str) -> Values:
    """The loss on ``"train"`` or ``"test"`` data, ``(rows, columns)``."""
    return np.array(getattr(plane, f"{name}_loss"), dtype=np.float64)


def surface_heights(losses: Values) -> tuple[Values, bool]:
    """How high a surface is drawn: the decimal logarithm where all losses are positive; NaN where not finite.

    Returns:
        The heights, and whether they are logarithms.
    """
    finite = losses[np.isfinite(losses)]
    logarithmic = len(finite) > 0 and bool(finite.min() > 0) and finite.max() > FEW * finite.min()
    heights = np.where(np.isfinite(losses), losses, np.nan)
    return (np.log10(heights) if logarithmic else heights), logarithmic


def _levels(losses: Values) -> tuple[Values, Normalize]:
    finite = losses[np.isfinite(losses)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    positive = finite[finite > 0]
    if low >= 0 and len(positive) and high > FEW * float(positive.min()):
        floor = float(positive.min())
        levels = np.geomspace(floor, high, LEVELS)
        levels[[0, -1]] = floor, high
        return levels, LogNorm(floor, high, clip=True)
    if high <= low:
        high = low + max(abs(low), 1.0) * 1e-6
    return np.linspace(low, high, LEVELS), Normalize(low, high)


def _contours(axes: Axes, plane: Plane, losses: Values, levels: Values, scale: Normalize) -> QuadContourSet:
    shown = np.ma.masked_invalid(losses).clip(levels[0])  # what is zero has the lowest colour
    axes.set_facecolor("#dddddd")
    axes.patch.set_hatch("///")
    axes.patch.set_edgecolor("#999999")
    filled = axes.contourf(plane.x, plane.y, shown, levels=levels, norm=scale, cmap=COLOURS, corner_mask=False)
    axes.contour(plane.x, plane.y, shown, levels=levels, colors="white", linewidths=0.4, corner_mask=False)
    evaluated = np.array(plane.evaluated)
    if not evaluated.all():
        rows, columns = np.nonzero(evaluated)
        places: Any = np.array(plane.x)[columns], np.array(plane.y)[rows]
        axes.plot(*places, ".", color="white", markersize=2, markeredgewidth=0, alpha=0.9)
    if plane.path is not None:
        axes.plot(*zip(*plane.path, strict=True), "-o", color=ORANGE, linewidth=1.2, markersize=2.5)
    for (_, x, y), marker in zip(plane.marks, _markers(len(plane.marks)), strict=True):
        axes.plot(x, y, marker, color=VERMILION, markeredgecolor="white", markersize=8)
    axes.set_xlim(plane.x[0], plane.x[-1])
    axes.set_ylim(plane.y[0], plane.y[-1])
    if _to_scale(*_extent(plane)):
        axes.set_aspect("equal")
    return filled


def _extent(plane: Plane) -> tuple[float, float]:
    return plane.x[-1] - plane.x[0], plane.y[-1] - plane.y[0]


def _to_scale(wide: float, high: float) -> bool:
    return max(wide, high) < STRETCHED * min(wide, high)


def _legend(figure: Figure, plane: Plane, holes: bool) -> None:
    handles: list[Any] = []
    for (name, _, _), marker in zip(plane.marks, _markers(len(plane.marks)), strict=True):
        style: Any = {"linestyle": "", "markeredgecolor": "white", "markersize": 8}
        handles.append(Line2D([], [], color=VERMILION, marker=marker, label=plain(name), **style))
    if plane.path is not None:
        handles.append(Line2D([], [], color=ORANGE, marker="o", markersize=2.5, label="trajectory"))
    if not all(map(all, plane.evaluated)):
        share = plane.evaluated_points / (len(plane.x) * len(plane.y))
        label = f"evaluated ({share:.0%} of the grid)"
        handles.append(Line2D([], [], color=GREY, marker=".", linestyle="", markersize=3, label=label))
    if holes:
        handles.append(Patch(facecolor="#dddddd", edgecolor="#999999", hatch="///", label="loss not finite"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)


def _markers(count: int) -> list[str]:
    return [MARKERS[index % len(MARKERS)] for index in range(count)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e5 else f"{value:.3g}"


def _loss(plane: Plane) -> str:
    return str(plane.settings.get("loss", "")).replace("_", "-")
