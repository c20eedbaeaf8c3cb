"""The surface of a plane that a reader can turn, for a page that needs nothing outside itself."""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from lbgap.landscape.plane import Plane
from lbgap.plotting.base import ORANGE, VERMILION
from lbgap.plotting.planes import COLOURS, has, surface_heights, values

TICKS = 6
# For whoever looks at the page by a program.
DRAWN = "document.getElementById('{plot_id}').setAttribute('data-drawn', 'true');"


def surface_html(plane: Plane) -> str:
    """Draw the surface of the loss with plotly, a button each for training and test data.

    Args:
        plane: What :func:`lbgap.plane` returned.

    Returns:
        A fragment of HTML with the drawing library in it, some 5 MB. Heights are as :func:`lbgap.plotting.plot_surface`
        draws them; marks and trajectory lie on the surface.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    import plotly.graph_objects as go
    from plotly.io import to_html

    names = [name for name in ("train", "test") if has(plane, name)]
    traces: list[Any] = []
    scenes = []
    for name in names:
        losses = values(plane, name)
        heights, logarithmic = surface_heights(losses)
        own = [_surface(go, plane, losses, heights), *_on_top(go, plane, heights)]
        traces += [trace.update(visible=name == names[0]) for trace in own]
        scenes.append((len(own), _height_axis(plane, heights, logarithmic)))
    buttons = []
    for index, (name, (count, axis)) in enumerate(zip(names, scenes, strict=True)):
        shown = [place // count == index for place in range(len(traces))]
        change = [{"visible": shown}, {"scene.zaxis": axis}]
        buttons.append({"label": f"{name} data", "method": "update", "args": change})
    layout: dict[str, Any] = {
        "scene": {
            "xaxis": {"title": {"text": _bare(plane.axes[0])}},
            "yaxis": {"title": {"text": _bare(plane.axes[1])}},
            "zaxis": scenes[0][1],
            "aspectmode": "cube",
            "camera": {"eye": {"x": -1.1, "y": -1.4, "z": 1.6}},
        },
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "height": 620,
        "legend": {"x": 0, "y": 1},
    }
    if len(buttons) > 1:
        place = {"type": "buttons", "direction": "right", "x": 0, "y": 0, "xanchor": "left", "yanchor": "bottom"}
        layout["updatemenus"] = [{**place, "buttons": buttons}]
    fragment: str = to_html(
        go.Figure(traces, layout),
        full_html=False,
        include_plotlyjs=True,
        config={"displaylogo": False, "responsive": True},
        post_script=DRAWN,
        div_id="surface",
    )
    return fragment


def _surface(go: Any, plane: Plane, losses: Any, heights: Any) -> Any:
    return go.Surface(
        x=plane.x,
        y=plane.y,
        z=heights,
        customdata=losses,
        colorscale=COLOURS,
        showscale=False,
        hovertemplate="x %{x:.4g}<br>y %{y:.4g}<br>loss %{customdata:.4g}<extra></extra>",
    )


def _on_top(go: Any, plane: Plane, heights: Any) -> list[Any]:
    """Marks and trajectory, at the height of the nearest point of the grid."""

    def height(x: float, y: float) -> float:
        column = int(np.abs(np.array(plane.x) - x).argmin())
        row = int(np.abs(np.array(plane.y) - y).argmin())
        return float(heights[row, column])

    found = []
    for name, x, y in plane.marks:
        marker = {"color": VERMILION, "size": 7, "line": {"color": "white", "width": 1}}
        found.append(go.Scatter3d(x=[x], y=[y], z=[height(x, y)], mode="markers", marker=marker, name=_bare(name)))
    if plane.path is not None:
        xs, ys = zip(*plane.path, strict=True)
        zs = [height(*place) for place in plane.path]
        style = {"line": {"color": ORANGE, "width": 4}, "marker": {"color": ORANGE, "size": 2}}
        found.append(go.Scatter3d(x=xs, y=ys, z=zs, mode="lines+markers", name="trajectory", **style))
    return found


def _height_axis(plane: Plane, heights: Any, logarithmic: bool) -> dict[str, Any]:
    loss = str(plane.settings.get("loss", "")).replace("_", "-")
    axis: dict[str, Any] = {"title": {"text": f"{loss} loss{', logarithmic' if logarithmic else ''}"}}
    if logarithmic:
        ticks = np.linspace(np.nanmin(heights), np.nanmax(heights), TICKS)
        axis |= {"tickvals": ticks.tolist(), "ticktext": [f"{10**tick:.3g}" for tick in ticks]}
    return axis


def _bare(label: str) -> str:
    """A label of text alone: plotly would read tags, and knows no formulas without a further library."""
    return html.escape(label.replace("$", ""), quote=False)
