"""The commands ``lbgap paper`` and ``lbgap report``: the paper's experiments, and the page that shows them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lbgap.cli.options import AsJson, DataDir, FirstSeed, words
from lbgap.cli.show import errors, escape, new_table, resumable, show

if TYPE_CHECKING:
    from rich.table import Table


def paper(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(
            help="table2, table3, table4, figure2 to figure7, distance, spectrum, asymmetry, remedies; all if none."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the experiments.")] = Path("lbgap-paper"),
    quick: Annotated[
        bool, typer.Option("--quick", help="MNIST-1D and digits, 3 trials (1 of each remedy), 2500 updates a training.")
    ] = False,
    row: Annotated[
        list[str] | None,
        typer.Option(
            help="A network on its data, such as F1; may be given several times.", show_default="offline ones"
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="How many starts.", show_default="5; 3 with --quick")] = None,
    updates: Annotated[
        int | None,
        typer.Option(help="Of each training.", show_default="until the loss stops improving; 2500 with --quick"),
    ] = None,
    batch_norm: Annotated[str, words("eval batch", "In all sharpnesses: {}.")] = "eval",
    remedy: Annotated[
        list[str] | None,
        typer.Option(
            help="Of the experiment remedies, such as swa or ghost:size=32; may be given several times.",
            show_default="all that there are",
        ),
    ] = None,
    remedy_trials: Annotated[
        int | None,
        typer.Option(help="From how many starts remedies are tried.", show_default="all; 1 with --quick"),
    ] = None,
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option(help="cpu, cuda (processes share out the GPUs) or cuda:N.")] = "cpu",
    workers: Annotated[
        int | None, typer.Option(help="Processes, of one thread each.", show_default="as many as cores")
    ] = None,
    seed: FirstSeed = 0,
    as_json: AsJson = False,
) -> None:
    """Repeat the paper's tables and figures, small-batch against large-batch, and write a report.

    Rows: MLP-MNIST1D, MLP-DIGITS, C1-MNIST1D, C2-MNIST1D need no files; F1
    (mnist), F2 (timit.npz), C1, C2 (cifar10), C3, C4 (cifar100) need those in
    --data-dir. Writes report.html, and in report/ its figures and tables.
    After Ctrl-C the same command goes on; further experiments, rows and trials
    are added to what is there.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    from lbgap.experiments import paper as of_paper
    from lbgap.experiments.paper.page import write_paper
    from lbgap.experiments.paper.remedies import REMEDIES
    from lbgap.experiments.paper.run import QUICK_REMEDY_TRIALS, QUICK_UPDATES

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    shown = Progress(*columns, console=errors(), transient=True, disable=not errors().is_terminal)
    with resumable("the same command"), shown as progress:
        task = progress.add_task("starting", total=None)

        def step(what: str, left: int) -> None:
            now = progress.tasks[task]
            if now.total is None or left > now.total - now.completed:  # a new stage
                progress.reset(task, total=left)
            progress.update(task, description=what, completed=(now.total or left) - left)

        of_paper.paper(
            out,
            rows=row or (of_paper.QUICK if quick else of_paper.OFFLINE),
            experiments=experiments or (),
            trials=(3 if quick else 5) if trials is None else trials,
            updates=QUICK_UPDATES if quick and updates is None else updates,
            seed=seed,
            batch_norm=batch_norm,
            data_dir=data_dir,
            device=device,
            remedies=remedy or REMEDIES,
            remedy_trials=QUICK_REMEDY_TRIALS if quick and remedy_trials is None else remedy_trials,
            workers=workers,
            step=step,
        )
    _shown(out, write_paper(out), as_json)


def report(
    folder: Annotated[Path, typer.Argument(help="What lbgap paper wrote.")],
    as_json: AsJson = False,
) -> None:
    """Draw the report of a folder of lbgap paper again, from what is stored in it alone.

    Writes report.html, and in report/ the figures as .png and .svg and the
    tables as .csv.
    """
    from lbgap.experiments.paper.page import write_paper

    _shown(folder, write_paper(folder), as_json)


def _shown(folder: Path, page: Path, as_json: bool) -> None:
    from lbgap.experiments.paper.conjectures import conjectures
    from lbgap.experiments.paper.run import read_paper
    from lbgap.experiments.paper.summary import findings, tables

    stored = read_paper(folder)
    found, sentences, reasons = dict(tables(stored)), list(findings(stored)), list(conjectures(stored))
    parts: list[Table | str] = []
    for table in found.values():
        # The page has all columns; the paper's own values and long settings are too much for a line of a terminal.
        kept = [i for i, head in enumerate(table.columns) if head != "settings" and not head.endswith(", paper")]
        drawn = new_table(*(table.columns[index].replace(" ", "\n", 1) for index in kept))
        for cells in table.rows:
            drawn.add_row(*(escape(cells[index]) for index in kept))
        parts += [escape(table.title) + "\n", drawn, ""]
    record = {
        "report": str(page),
        "findings": sentences,
        "conjectures": [asdict(one) for one in reasons],
        "tables": {name: {"columns": table.columns, "rows": table.rows} for name, table in found.items()},
    }
    show(
        as_json,
        record,
        *parts,
        *(escape(f"* {sentence}") for sentence in sentences),
        "",
        *(escape("\n".join([f"{r.name}: {r.claim}.", *(f"* {one}" for one in r.sentences), ""])) for r in reasons),
        f"Written: {escape(str(page))}",
    )
