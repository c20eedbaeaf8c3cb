"""The command ``lbgap plane``: the loss on a plane through minimizers, or around one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lbgap.cli.minimizers import check_same_data, load_minimizers
from lbgap.cli.options import (
    AsJson,
    BatchSize,
    DataDir,
    DataName,
    Device,
    Download,
    ModelPath,
    Precision,
    Runs,
    Seed,
    Weights,
    words,
)
from lbgap.cli.show import errors, escape, new_table, resumable, show, writable

if TYPE_CHECKING:
    from rich.table import Table

Directions = Annotated[
    str | None,
    words(
        "minimizers random eigenvectors pca",
        "{} (of the iterates that a run kept).",
        show_default="minimizers of three, random from one",
    ),
]
Bounds = tuple[float, float] | None


def plane(
    runs: Runs = None,
    directions: Directions = None,
    normalise: Annotated[str, words("filter layer none", "Random directions, by {}.")] = "filter",
    points: Annotated[int, typer.Option(help="Along each axis.")] = 51,
    x_range: Annotated[
        Bounds, typer.Option(help="First and last x.", show_default="what is marked, or -1 1", metavar="LOW HIGH")
    ] = None,
    y_range: Annotated[
        Bounds, typer.Option(help="First and last y.", show_default="what is marked, or -1 1", metavar="LOW HIGH")
    ] = None,
    refine: Annotated[
        float | None,
        typer.Option(
            help="Interpolate where that is off by no more than this share of the loss, e.g. 0.02.",
            show_default="evaluate all",
        ),
    ] = None,
    batch_norm: Annotated[
        str,
        words(
            "eval batch freeze recalibrate",
            "eval (running), batch (of each evaluation batch), freeze (the first's) or recalibrate.",
        ),
    ] = "eval",
    precision: Precision = "float32",
    batch_size: BatchSize = None,
    model: ModelPath = None,
    weights: Weights = None,
    data: DataName = None,
    data_dir: DataDir = None,
    download: Download = False,
    seed: Seed = 0,
    device: Device = None,
    out: Annotated[Path, typer.Option(help="Folder of the plane; must be new unless --resume.")] = Path("plane"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the plane in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw loss and accuracy on a plane: through three minimizers, or along two directions from one.

    Give three run folders or one, or a model of your own by --model, --data and
    --weights. Writes into --out: plane.json, plane and surface as .png and
    .svg, surface.html, and what was evaluated, so that a plane that was killed
    goes on with --resume.
    """
    from lbgap import plotting
    from lbgap.landscape import plane as evaluate
    from lbgap.plotting.page import plane_page
    from lbgap.system import files

    named = _models(runs, directions, model, weights, data, data_dir, download)
    (_, _, samples), *rest = named
    check_same_data(named)
    writable(out)
    with resumable("the same command with --resume"):
        result = evaluate(
            [module for _, module, _ in named],
            samples.train,
            test_data=samples.test,
            directions=directions,
            normalise=normalise,
            points=points,
            x_range=x_range,
            y_range=y_range,
            refine=refine,
            loss=samples.loss,
            batch_norm=batch_norm,
            precision=precision,
            batch_size=batch_size,
            device=device,
            seed=seed,
            out=out,
            resume=resume,
            progress=errors().is_terminal,
        )
    names = [name for name, _, _ in named]
    if rest and result.path is None:
        marks = tuple((name, x, y) for name, (_, x, y) in zip(names, result.marks, strict=True))
        result = dataclasses.replace(result, marks=marks)
    record = {"models": names, "data": samples.name, **result.to_dict()}
    files.write_json(out / "plane.json", record)
    plotting.save(plotting.plot_plane(result), out / "plane")
    plotting.save(plotting.plot_surface(result), out / "surface")
    page = plane_page(result, f"A plane of the loss: {', '.join(names if result.path is None else names[-1:])}")
    files.write_bytes(out / "surface.html", page.encode())
    axes = f"x: {result.axes[0]}\ny: {result.axes[1]}\n"
    written = f"Written: {escape(str(out))}/plane.json, plane and surface as .png and .svg, surface.html"
    show(as_json, record, escape(axes), _places(result), "", _extremes(result), "", _note(result), written)


def _models(
    runs: list[Path] | None,
    directions: str | None,
    model: str | None,
    weights: list[Path] | None,
    data: str | None,
    data_dir: Path | None,
    download: bool,
) -> list[tuple[str, Any, Any]]:
    """Names, models and data: of what was named, or with pca of the iterates that a run kept."""
    named = load_minimizers(runs, model, weights, data, data_dir, download)
    if directions != "pca" or not runs:
        return named
    from lbgap.replica import replicate
    from lbgap.training import read_iterates, read_run
    from lbgap.weights import fill

    if len(named) != 1:
        raise ValueError(f"--directions pca shows the iterates of one run, got {len(named)} runs")
    (name, trained, samples), found = named[0], []
    last = read_run(runs[0]).result["epoch"]
    for epoch, values in read_iterates(runs[0]):
        if epoch < last:  # the trained model itself ends the path
            module, _ = replicate(trained)
            fill(module, values, f"{name}, epoch {epoch}")
            found.append((f"{name}, epoch {epoch}", module, samples))
    return [*found, (name, trained, samples)]


def _places(result: Any) -> Table:
    table = new_table("at", "x", "y", "train loss")
    for (name, x, y), loss in zip(result.marks, result.mark_loss, strict=True):
        table.add_row(escape(name), f"{x:.4g}", f"{y:.4g}", f"{loss:.4g}")
    return table


def _extremes(result: Any) -> Table:
    """Where each loss is least and largest on the grid."""
    table = new_table("of the grid", "least", "at x", "at y", "largest", "at x", "at y", "not\nfinite")
    for name, values in (("train loss", result.train_loss), ("test loss", result.test_loss)):
        if values is None:
            continue
        every = [
            (loss, x, y) for row, y in zip(values, result.y, strict=True) for loss, x in zip(row, result.x, strict=True)
        ]
        finite = [point for point in every if math.isfinite(point[0])]
        shown = [f"{number:.4g}" for point in (min(finite), max(finite)) for number in point] if finite else ["-"] * 6
        table.add_row(name, *shown, str(len(every) - len(finite)))
    return table


def _note(result: Any) -> str:
    s = result.settings
    points = s["points"][0] * s["points"][1]
    how = f"{result.evaluated_points} of {points} points evaluated" + (
        ", the others interpolated" if result.evaluated_points < points else ""
    )
    return f"Loss: mean {s['loss']}; batch-norm: {s['batch_norm']}\n{how}"
