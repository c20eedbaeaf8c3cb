"""Self-contained HTML pages: one file that a person can read and send."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from lbgap.landscape.plane import Plane
from lbgap.plotting import encode, plot_plane, plot_surface, surface_html

if TYPE_CHECKING:
    from lbgap.experiments.demo import Demo


def demo_page(result: Demo, figures: Mapping[str, Figure]) -> str:
    """Render the demonstration.

    Args:
        result: What it found.
        figures: ``"sharpness"`` and ``"line"``.

    Returns:
        HTML without any reference outside itself.
    """
    settings = json.dumps(result.settings, indent=2)
    return _render("demo.html", result=result, images=_embedded(figures), settings=settings)


def plane_page(plane: Plane, title: str) -> str:
    """Render a plane of the loss: contours, and a surface that can be turned.

    Args:
        plane: What :func:`lbgap.plane` returned.
        title: Of the page, as text.

    Returns:
        HTML without any reference outside itself. Without plotly the surface stands still, and the page says so.
    """
    figures = {"contours": plot_plane(plane)}
    surface = surface_html(plane) if find_spec("plotly") else None
    if surface is None:
        figures["surface"] = plot_surface(plane)
    points = len(plane.x) * len(plane.y)
    settings = json.dumps(plane.to_dict()["settings"], indent=2)
    images = _embedded(figures)
    return _render(
        "plane.html", plane=plane, title=title, images=images, surface=surface, points=points, settings=settings
    )


def _embedded(figures: Mapping[str, Figure]) -> dict[str, str]:
    return {
        name: "data:image/svg+xml;base64," + base64.b64encode(encode(figure, "svg")).decode()
        for name, figure in figures.items()
    }


def _render(template: str, **values: object) -> str:
    environment = Environment(
        loader=PackageLoader("lbgap"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page: str = environment.get_template(template).render(**values)
    return page
