"""The commands ``lbgap line``, ``curve`` and ``connect``: the loss along paths between two minimizers."""

from __future__ import annotations

from collections.abc import Callable
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
    Out,
    Precision,
    Runs,
    Seed,
    Weights,
    amount,
    words,
)
from lbgap.cli.show import errors, escape, fresh, new_table, show, writable

if TYPE_CHECKING:
    from rich.table import Table

Points = Annotated[int, typer.Option(help="Values of alpha.")]
Low = Annotated[float, typer.Option(help="Smallest alpha.")]
High = Annotated[float, typer.Option(help="Largest alpha.")]
Rise = Annotated[float, typer.Option(help="Of the loss, up to which the width of a minimizer goes.")]
Statistics = Annotated[
    str,
    words(
        "eval batch freeze recalibrate",
        "eval (interpolated), batch (of each evaluation batch), freeze (the first's) or recalibrate.",
    ),
]


def line(
    runs: Runs = None,
    points: Points = 25,
    low: Low = -1.0,
    high: High = 2.0,
    rise: Rise = 0.1,
    batch_norm: Statistics = "eval",
    precision: Precision = "float32",
    batch_size: BatchSize = None,
    model: ModelPath = None,
    weights: Weights = None,
    data: DataName = None,
    data_dir: DataDir = None,
    download: Download = False,
    device: Device = None,
    out: Out = Path("."),
    as_json: AsJson = False,
) -> None:
    """Draw loss and accuracy on the line from a small- to a large-batch minimizer, given in this order.

    Give two run folders, or a model of your own by --model, --data and twice
    --weights. Writes line.json, line.png and line.svg into --out; earlier
    results are kept, the next ones are line-2.json and so on.
    """
    from lbgap.landscape import line as evaluate

    named = load_minimizers(runs, model, weights, data, data_dir, download)
    grid = {"points": points, "low": low, "high": high, "rise": rise}
    how = {"batch_norm": batch_norm, "precision": precision, "batch_size": batch_size, "device": device}
    _path("line", evaluate, named, {**grid, **how}, out, as_json)


def curve(
    runs: Runs = None,
    points: Points = 25,
    low: Low = -1.0,
    high: High = 2.0,
    rise: Rise = 0.1,
    batch_norm: Statistics = "eval",
    precision: Precision = "float32",
    batch_size: BatchSize = None,
    model: ModelPath = None,
    weights: Weights = None,
    data: DataName = None,
    data_dir: DataDir = None,
    download: Download = False,
    device: Device = None,
    out: Out = Path("."),
    as_json: AsJson = False,
) -> None:
    """Draw loss and accuracy on the curve sin(a pi/2) x_l + cos(a pi/2) x_s, the small-batch minimizer given first.

    As lbgap line. Writes curve.json, curve.png and curve.svg into --out;
    earlier results are kept, the next ones are curve-2.json and so on.
    """
    from lbgap.landscape import curve as evaluate

    named = load_minimizers(runs, model, weights, data, data_dir, download)
    grid = {"points": points, "low": low, "high": high, "rise": rise}
    how = {"batch_norm": batch_norm, "precision": precision, "batch_size": batch_size, "device": device}
    _path("curve", evaluate, named, {**grid, **how}, out, as_json)


def connect(
    runs: Runs = None,
    kind: Annotated[str, words("bezier polygon")] = "bezier",
    bends: Annotated[int, typer.Option(help="Points of the path that are trained.")] = 1,
    epochs: Annotated[int, typer.Option(help="Of the training of the path.")] = 30,
    train_batch_size: Annotated[
        int | None, amount("Samples in a batch of it, or a share of all (10%).", show_default="128, or all if fewer")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Of ADAM, for the first half of the epochs.")] = 1e-2,
    points: Annotated[int, typer.Option(help="Places of the path that are evaluated.")] = 61,
    batch_norm: Annotated[
        str,
        words("recalibrate batch", "recalibrate (anew at each point) or batch (of each evaluation batch)."),
    ] = "recalibrate",
    precision: Annotated[str, words("float32 float64")] = "float32",
    batch_size: BatchSize = None,
    model: ModelPath = None,
    weights: Weights = None,
    data: DataName = None,
    data_dir: DataDir = None,
    download: Download = False,
    seed: Seed = 0,
    device: Device = None,
    out: Out = Path("."),
    as_json: AsJson = False,
) -> None:
    """Train a path of low loss from one minimizer to another, and compare it with the straight line.

    Give them as for lbgap line. Writes connect.json, connect.png, connect.svg
    and connect.safetensors (the control points of the path, one row each) into
    --out; earlier results are kept, the next ones are connect-2.json and so on.
    """
    from lbgap import plotting
    from lbgap.landscape import connect as train_path
    from lbgap.system import files

    small, large, samples = _two("path", load_minimizers(runs, model, weights, data, data_dir, download))
    writable(out)
    result = train_path(
        small[1],
        large[1],
        samples.train,
        test_data=samples.test,
        kind=kind,
        bends=bends,
        epochs=epochs,
        train_batch_size=train_batch_size,
        learning_rate=learning_rate,
        points=points,
        loss=samples.loss,
        batch_norm=batch_norm,
        precision=precision,
        batch_size=batch_size,
        device=device,
        seed=seed,
        progress=errors().is_terminal,
    )
    stem = fresh(out, "connect")
    record = {"small": small[0], "large": large[0], "data": samples.name, **result.to_dict()}
    files.write_safetensors(stem.with_suffix(".safetensors"), {"control": result.control}, {"kind": kind})
    files.write_json(stem.with_suffix(".json"), record)
    plotting.save(plotting.plot_connection(result), stem)
    title = f"A path of low loss: t = 0 is {escape(small[0])}, t = 1 is {escape(large[0])}\n"
    table = new_table("by loss", "barrier of\nthe path", "at t", "barrier of the\nstraight line", "at t")
    for name, here, there in (
        ("train", result.path.shape, result.straight.shape),
        ("test", result.path.test_shape, result.straight.test_shape),
    ):
        if here is not None and there is not None:
            numbers = (here.barrier, here.barrier_alpha, there.barrier, there.barrier_alpha)
            table.add_row(name, *(f"{number:.4g}" for number in numbers))
    lengths = f"Length of the {kind}: {result.length:.4g}; distance of the minimizers: {result.distance:.4g}"
    note = f"Loss: mean {result.settings['loss']}; batch-norm: {result.settings['batch_norm']}"
    written = f"Written: {escape(str(stem))}.json, .png, .svg and .safetensors"
    show(as_json, record, title, table, "", lengths, note, written)


def _two(what: str, minimizers: list[tuple[str, Any, Any]]) -> tuple[tuple[str, Any], tuple[str, Any], Any]:
    """Name and model of the two minimizers, and their data."""
    if len(minimizers) != 2:
        raise ValueError(
            f"a {what} needs two minimizers, small-batch first, got {len(minimizers)}: give two runs or --weights"
        )
    check_same_data(minimizers)
    (small_name, small, samples), (large_name, large, _) = minimizers
    return (small_name, small), (large_name, large), samples


def _path(
    name: str,
    evaluate: Callable[..., Any],
    minimizers: list[tuple[str, Any, Any]],
    options: dict[str, Any],
    out: Path,
    as_json: bool,
) -> None:
    """Evaluate a path, write it down and show it."""
    from lbgap import plotting
    from lbgap.system import files

    (small_name, small), (large_name, large), samples = _two(name, minimizers)
    writable(out)
    result = evaluate(
        small, large, samples.train, test_data=samples.test, loss=samples.loss, progress=errors().is_terminal, **options
    )
    stem = fresh(out, name)
    record = {"small": small_name, "large": large_name, "data": samples.name, **result.to_dict()}
    files.write_json(stem.with_suffix(".json"), record)
    plotting.save(plotting.plot_line(result), stem)
    title = f"The {name}: alpha = 0 is {escape(small_name)}, alpha = 1 is {escape(large_name)}\n"
    note = f"Loss: mean {result.settings['loss']}; batch-norm: {result.settings['batch_norm']}"
    written = f"Written: {escape(str(stem))}.json, .png and .svg"
    show(as_json, record, title, _values(result), "", _shapes(result), "", note, written)


def _values(result: Any) -> Table:
    columns = {
        "train loss": result.train_loss,
        "train acc. %": result.train_accuracy,
        "test loss": result.test_loss,
        "test acc. %": result.test_accuracy,
    }
    shown = {name: values for name, values in columns.items() if values is not None}
    table = new_table("alpha", *(name.replace(" ", "\n", 1) for name in shown))
    for index, alpha in enumerate(result.alphas):
        table.add_row(f"{alpha:.4g}", *(f"{values[index]:.4g}" for values in shown.values()))
    return table


def _shapes(result: Any) -> Table:
    """Barrier and widths, by the training and the test loss."""
    table = new_table(
        "by loss", "barrier", "at\nalpha", "width 0,\nouter", "width 0,\ninner", "width 1,\ninner", "width 1,\nouter"
    )
    for name, shape in (("train", result.shape), ("test", result.test_shape)):
        if shape is not None:
            widths = (shape.small_outer, shape.small_inner, shape.large_inner, shape.large_outer)
            shown = ("beyond" if width is None else f"{width:.4g}" for width in widths)
            table.add_row(name, f"{shape.barrier:.4g}", f"{shape.barrier_alpha:.4g}", *shown)
    table.caption = f"Widths in units of alpha, up to a rise of {result.shape.rise:g}; beyond: past the last point."
    return table
