"""Self-contained HTML pages: one file that a person can read and send."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib.util import find_spec

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from lbgap.landscape.plane import Plane
from lbgap.plotting.base import encode
from lbgap.plotting.interactive import surface_html
from lbgap.plotting.planes import plot_plane, plot_surface


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
    images = embedded(figures)
    return render(
        "plane.html", plane=plane, title=title, images=images, surface=surface, points=points, settings=settings
    )


def embedded(figures: Mapping[str, Figure]) -> dict[str, str]:
    """Figures by name as SVG inside an address, for ``src`` of an image."""
    return {name: inline(encode(figure, "svg")) for name, figure in figures.items()}


def inline(svg: bytes) -> str:
    """An SVG inside an address."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def render(template: str, **values: object) -> str:
    """Fill a template of this package; a value that it names and does not get is an error."""
    environment = Environment(
        loader=PackageLoader("lbgap"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page: str = environment.get_template(template).render(**values)
    return page
