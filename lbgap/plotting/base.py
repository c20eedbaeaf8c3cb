"""What all figures share: colours, labels, and the files that they become."""

from __future__ import annotations

import io
import os
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from lbgap.system import files

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
COLORS = (BLUE, VERMILION, GREEN, ORANGE, GREY, "#CC79A7", "#56B4E9")


def plain(label: str) -> str:
    """A label as it is: matplotlib hides those that begin with an underscore and sets what stands between dollars."""
    return f" {label}".replace("$", r"\$") if label.startswith("_") else label.replace("$", r"\$")


def encode(figure: Figure, kind: str) -> bytes:
    """Draw a figure as a file's content, the same bytes for the same figure.

    Args:
        figure: What to draw.
        kind: ``"png"`` or ``"svg"``.
    """
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "lbgap", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def save(figure: Figure, stem: str | os.PathLike[str]) -> list[Path]:
    """Write a figure as ``stem.png`` and ``stem.svg``, each whole or not at all.

    Args:
        figure: What to write.
        stem: Path without suffix.

    Returns:
        The two paths.

    Raises:
        OSError: A file cannot be written.
    """
    paths = [Path(f"{os.fspath(stem)}.{kind}") for kind in ("png", "svg")]
    for path in paths:
        files.write_bytes(path, encode(figure, path.suffix[1:]))
    return paths
