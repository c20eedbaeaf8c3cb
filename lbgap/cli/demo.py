"""The command ``lbgap demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lbgap.cli.options import AsJson, FirstSeed
from lbgap.cli.show import bullets, errors, escape, new_table, resumable, show

if TYPE_CHECKING:
    from rich.table import Table

    from lbgap.experiments.demo import Demo


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demonstration.")] = Path("lbgap-demo"),
    seeds: Annotated[int, typer.Option(help="How many starts.")] = 3,
    updates: Annotated[int, typer.Option(help="ADAM updates of each training, rounded to whole epochs.")] = 5_000,
    seed: FirstSeed = 0,
    as_json: AsJson = False,
) -> None:
    """Train small- and large-batch on MNIST-1D, measure both minimizers, draw them and write a report.

    Writes into --out: report.html, result.json, line.json, sharpness and line
    as .png and .svg, demo.json (the settings) and the trained networks in
    runs/. After Ctrl-C the same command goes on.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from lbgap.experiments import demo as run_demo
    from lbgap.experiments.demo import steps

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with (
        resumable("the same command"),
        Progress(*columns, console=errors(), transient=True, disable=not errors().is_terminal) as progress,
    ):
        task = progress.add_task("starting", total=steps(max(seeds, 1)), completed=-1)
        result = run_demo(
            out,
            seeds=seeds,
            updates=updates,
            seed=seed,
            step=lambda what: progress.update(task, description=what, advance=1),
        )
    written = f"Figures and report: {escape(str(result.folder / 'report.html'))} ({result.seconds:.0f} s)"
    show(as_json, result.to_dict(), *parts(result), "", written)


def parts(result: Demo) -> list[Table | str]:
    """What is printed of a demonstration: both tables, and what they say."""
    minimizers = new_table(
        *("", "seed", "batch", "updates", "train\nloss", "train\nacc. %", "test\nloss", "test\nacc. %"),
        *("distance", "time s"),
    )
    sharpness = new_table(
        *("", "seed", "epsilon", "phi %, by\nvertex ascent", "time s", "phi %, by the\npaper's recipe", "time s")
    )
    for row in result.rows:
        minimizers.add_row(
            row.regime,
            str(row.seed),
            str(row.batch_size),
            str(row.updates),
            f"{row.train_loss:.3g}",
            f"{row.train_accuracy:.2f}",
            f"{row.test_loss:.3g}",
            f"{row.test_accuracy:.2f}",
            f"{row.distance:.3g}",
            f"{row.train_seconds:.1f}",
        )
    for index in range(len(result.rows[0].phi)):
        for row in result.rows:
            phi = row.phi[index]
            sharpness.add_row(
                row.regime,
                str(row.seed),
                f"{phi.epsilon:g}",
                f"{phi.vertex:.4g}",
                f"{phi.vertex_seconds:.2f}",
                f"{phi.recipe:.4g}",
                f"{phi.recipe_seconds:.2f}",
            )
        sharpness.add_section()
    return [
        "Minimizers: mean cross-entropy, distance from the start, time of training\n",
        minimizers,
        "\nTheir sharpness phi: certified lower bounds\n",
        sharpness,
        "",
        bullets(result.findings),
    ]
