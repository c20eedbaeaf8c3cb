"""Self-contained HTML pages: one file that a person can read and send."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from lbgap.landscape.plane import Plane
from lbgap.plotting import encode, plot_plane, plot_surface, save, surface_html
from lbgap.system import files

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


def write_paper(folder: str | os.PathLike[str]) -> Path:
    """Draw everything that :func:`lbgap.experiments.paper.paper` left in a folder, from its files alone.

    Args:
        folder: What was ``out``.

    Returns:
        ``report.html`` in the folder, without any reference outside itself. Beside it, in ``report``, are the figures
        as PNG and SVG and the tables as CSV.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no experiments of the paper, or a file is damaged or of another version.
        OSError: A file cannot be written.
    """
    from lbgap.experiments.paper.conjectures import conjectures
    from lbgap.experiments.paper.pictures import figures
    from lbgap.experiments.paper.run import read_paper
    from lbgap.experiments.paper.summary import findings, tables

    folder = Path(folder)
    stored = read_paper(folder)
    beside = folder / "report"
    beside.mkdir(exist_ok=True)
    found = dict(tables(stored))
    for name, table in found.items():
        lines = io.StringIO()
        csv.writer(lines).writerows([table.columns, *table.rows])
        files.write_bytes(beside / f"{name}.csv", lines.getvalue().encode())
    pictures = []
    for name, caption, figure in figures(stored):
        _, svg = save(figure, beside / name)
        pictures.append((caption, _inline(svg.read_bytes())))
    versions = stored["parts"][0]["versions"] if stored["parts"] else {}
    settings = json.dumps({"plan": stored["plan"], "versions": versions}, indent=2)
    page = _render(
        "paper.html",
        findings=list(findings(stored)),
        conjectures=list(conjectures(stored)),
        tables=found,
        pictures=pictures,
        stored=stored,
        settings=settings,
    )
    path = folder / "report.html"
    files.write_bytes(path, page.encode())
    return path


def _embedded(figures: Mapping[str, Figure]) -> dict[str, str]:
    return {name: _inline(encode(figure, "svg")) for name, figure in figures.items()}


def _inline(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


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
