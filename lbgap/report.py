"""Self-contained HTML pages: one file that a person can read and send."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from lbgap.plotting import encode

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
    environment = Environment(
        loader=PackageLoader("lbgap"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    images = {
        name: "data:image/svg+xml;base64," + base64.b64encode(encode(figure, "svg")).decode()
        for name, figure in figures.items()
    }
    settings = json.dumps(result.settings, indent=2)
    page: str = environment.get_template("demo.html").render(result=result, images=images, settings=settings)
    return page
