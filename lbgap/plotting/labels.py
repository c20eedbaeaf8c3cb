"""Words beside points that do not lie on each other."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from lbgap.plotting.base import GREY, plain

RADII = (7, 14, 24, 36, 50, 66)  # of the places that are tried, in points
TURNS = 16
POINT = 5  # half the size of a point that no label may cover, in points


def label_points(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write a label beside each point, at the nearest place that is free; further away with a line to its point.

    Args:
        axes: With limits and scales as they shall stay.
        points: Where each label belongs, in the units of the axes.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]  # the layout moves the axes
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    unit, inside = figure.dpi / 72, axes.get_window_extent()
    places = {label: tuple(axes.transData.transform(point)) for label, point in points.items()}
    taken = [_box(place, 2 * POINT * unit, 2 * POINT * unit) for place in places.values()]
    for label, place in places.items():
        text = axes.annotate(
            plain(label), points[label], (0, 0), textcoords="offset points", ha="center", va="center", fontsize="small"
        )
        size = text.get_window_extent(renderer)
        others = [other for name, other in places.items() if name != label]
        tried = []
        for radius in RADII:
            for turn in range(TURNS):
                angle = 2 * math.pi * turn / TURNS
                # The edge of the label, not its middle, is so far from the point.
                x = place[0] + math.cos(angle) * (radius * unit + size.width / 2)
                y = place[1] + math.sin(angle) * (radius * unit + size.height / 2)
                box = _box((x, y), size.width, size.height)
                faults = sum(box.overlaps(other) for other in taken)
                faults += 2 * (not (inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)))
                faults += any(_apart(box, other) < _apart(box, place) for other in others)  # it would seem theirs
                tried.append((faults, radius, turn, box))
            if min(one[0] for one in tried) == 0:
                break
        _, radius, _, box = min(tried, key=lambda one: one[:3])
        taken.append(box)
        offset = ((box.x0 + box.x1) / 2 - place[0]) / unit, ((box.y0 + box.y1) / 2 - place[1]) / unit
        text.set_position(offset)
        if radius > RADII[0]:
            arrow = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3}
            edge = _nearest(box, place)
            offset = (edge[0] - place[0]) / unit, (edge[1] - place[1]) / unit
            axes.annotate("", points[label], offset, textcoords="offset points", arrowprops=arrow)


def _box(middle: tuple[float, ...], width: float, height: float) -> Bbox:
    return Bbox.from_bounds(middle[0] - width / 2, middle[1] - height / 2, width, height)


def _nearest(box: Bbox, place: tuple[float, ...]) -> tuple[float, float]:
    """The point of a box nearest to another."""
    return min(max(place[0], box.x0), box.x1), min(max(place[1], box.y0), box.y1)


def _apart(box: Bbox, place: tuple[float, ...]) -> float:
    return math.dist(_nearest(box, place), place)
