"""The page of the paper's experiments, with its figures and tables beside it."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

from lbgap.experiments.paper.conjectures import conjectures
from lbgap.experiments.paper.pictures import figures
from lbgap.experiments.paper.run import read_paper
from lbgap.experiments.paper.summary import findings, tables
from lbgap.plotting import save
from lbgap.plotting.page import inline, render
from lbgap.system import files


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
        pictures.append((caption, inline(svg.read_bytes())))
    versions = stored["parts"][0]["versions"] if stored["parts"] else {}
    settings = json.dumps({"plan": stored["plan"], "versions": versions}, indent=2)
    page = render(
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
