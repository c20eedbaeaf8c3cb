"""The commands ``lbgap sweep`` and ``lbgap worker``: many trainings, by many processes on one machine or many."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lbgap.cli.options import AsJson, DataDir
from lbgap.cli.show import errors, escape, fail, new_grid, new_table, resumable, show, writable

if TYPE_CHECKING:
    from rich.table import Table

    from lbgap.sweeps.definition import Definition
    from lbgap.sweeps.store import Store


def _count(value: int | None) -> int | None:
    if value is not None and value < 1:
        raise typer.BadParameter(f"must be at least 1, got {value}")
    return value


Workers = Annotated[int, typer.Option(help="Processes that train at a time.", callback=_count)]
Again = Annotated[bool, typer.Option("--retry-failed", help="Run the trials again that failed.")]


def sweep(
    file: Annotated[Path, typer.Argument(help="A TOML file: base settings, grids, seeds, measures.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep.", show_default="the file's name without .toml")
    ] = None,
    workers: Workers = 1,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of PyTorch in each.", show_default="cores / workers", callback=_count),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="postgresql://user@host/database, for many machines.", show_default="a file in --out"),
    ] = None,
    data_dir: DataDir = None,
    retry_failed: Again = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train every configuration of a file from every seed, and measure the trained models.

    Writes into --out: results.csv, a row a trial; sweep.db, who does what; and
    the runs, in trials/. After Ctrl-C, or when anything was killed, the same
    command goes on; nothing finished is run twice. lbgap worker joins in.
    """
    from lbgap.sweeps import need_optuna
    from lbgap.sweeps.definition import read
    from lbgap.sweeps.judge import judge

    definition = read(file)
    where = file.absolute().parent if data_dir is None else data_dir.absolute()
    try:
        digests = judge(definition, where)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error
    folder = out or Path(file.stem)
    if not as_json:
        show(False, {}, *_plan(definition))
    if dry_run:
        plan = {"trials": len(definition.trials()), **definition.to_dict()}
        show(as_json, plan, *(() if as_json else (f"\nNothing was run; the folder would be {escape(str(folder))}",)))
        return
    need_optuna()
    from lbgap.sweeps import store as stores

    place = stores.place(storage or folder)
    writable(folder)
    facts = {"threads": threads or max(1, _cores() // workers), "digests": digests, "data_dir": str(where)}
    store = stores.Store.create(place, definition, facts)
    if threads not in (None, store.facts["threads"]):
        store.close()
        raise ValueError(
            f"--threads is {threads}, but the sweep was begun with {store.facts['threads']}, on which bits depend: "
            "leave it out"
        )
    _work(store, folder, workers, where if data_dir else None, retry_failed, as_json)


def worker(
    source: Annotated[str, typer.Argument(help="Folder of a sweep, or postgresql://user@host/database.")],
    name: Annotated[
        str | None, typer.Option(help="Of the sweep, where a database holds several.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the runs.", show_default="that of the sweep, or its name")
    ] = None,
    workers: Workers = 1,
    data_dir: DataDir = None,
    retry_failed: Again = False,
    as_json: AsJson = False,
) -> None:
    """Join a sweep that was begun by lbgap sweep, from another shell or machine.

    Takes trials until none is left, those included that others are cut off
    from, and writes results.csv into the folder of the runs.
    """
    from lbgap.sweeps import need_optuna

    need_optuna()
    from lbgap.sweeps import store as stores

    place = stores.place(source)
    store = stores.Store.open(place, name)
    folder = out or place.folder or Path(store.name)
    writable(folder)
    own = None if data_dir is None else data_dir.absolute()
    _work(store, folder, workers, own, retry_failed, as_json)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(store: Store, folder: Path, workers: int, data_dir: Path | None, again: bool, as_json: bool) -> None:
    """Work until nothing is left, then write and show the table."""
    from lbgap.sweeps import table
    from lbgap.sweeps.worker import Job, run

    try:
        store.refill(again=again)
        job = Job(store.where, store.name, folder.absolute(), data_dir or Path(store.facts["data_dir"]))
        try:
            with resumable("the same command"), _bar(len(store.trials)) as report:
                run(job, min(workers, len(store.trials)), store.facts["threads"], report)
        finally:
            found = table.rows(store.definition, store.rows())
            path = table.write(found, folder)
    finally:
        store.close()
    means = table.summary(store.definition, found)
    failed = [row for row in found if row["state"] == "failed"]
    record = {"name": store.name, "folder": str(folder), "summary": means, "trials": found}
    show(
        as_json,
        record,
        "\nMeans over the seeds ± standard deviation; phi in %, a certified lower bound\n",
        *_means(means),
        f"\nWritten: {escape(str(path))}, a row a trial",
    )
    if failed:
        first = f"trial {failed[0]['trial']}: {failed[0]['error']}"
        fail(f"{len(failed)} of {len(found)} trials failed, {first}; --retry-failed runs them again", 1)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[dict[int, str]], None]]:
    """Show how many trials are done, how many run, and the time left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = errors()
    # Trials take long, so that the speed is that of the last hour rather than of the last seconds.
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, speed_estimate_period=3600
    ) as progress:
        task = progress.add_task("trials", total=total)
        begun = False

        def report(states: dict[int, str]) -> None:
            nonlocal begun
            count = Counter(states.values())
            done = count["complete"] + count["failed"]
            what = f"trials: {count['running']} running" + (f", {count['failed']} failed" if count["failed"] else "")
            if not begun:  # those of an earlier command say nothing about the speed
                progress.reset(task, total=total, completed=done)
                begun = True
            progress.update(task, completed=done, description=what)

        yield report


def _plan(definition: Definition) -> list[Table | str]:
    """What is about to run: how many trials, what varies, what is measured."""
    from lbgap.sweeps.definition import DEFAULTS, NETWORK

    configurations, seeds = len(definition.configurations()), len(definition.seeds)
    title = (
        f"{escape(definition.name)}: {configurations * seeds} trials, {configurations} "
        f"configuration{'s' if configurations > 1 else ''} from {seeds} seed{'s' if seeds > 1 else ''}\n"
    )
    settings = new_grid(2)
    for number, grid in enumerate(definition.grids, 1):
        for key, values in grid.items():
            which = f"varies in grid {number}" if len(definition.grids) > 1 else "varies"
            settings.add_row(key, which, escape(", ".join(map(_text, values))))
    fixed = {**DEFAULTS, **definition.base}
    for key, value in fixed.items():
        if key not in definition.varying and not (key in NETWORK[:-1] and "model" in fixed):
            settings.add_row(key, "fixed", escape(_text(value)))
    settings.add_row("seeds", "", ", ".join(map(str, definition.seeds)))
    for one in definition.measurements:
        options = "".join(f", {key} {_text(value)}" for key, value in one.options.items())
        epsilons = ", ".join(f"{epsilon:g}" for epsilon in one.epsilons)
        settings.add_row("sharpness", escape(one.name), escape(f"epsilon {epsilons}{options}"))
    if not definition.measurements:
        settings.add_row("sharpness", "", "none: the accuracies and the distance of the training alone")
    return [title, settings]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _means(means: list[dict[str, Any]]) -> list[Table | str]:
    """Tables that are narrow enough: accuracies and distance, then the phis, at most three a table."""
    known = list(dict.fromkeys(column for row in means for column in row["values"]))
    metrics = [name for name in ("train_loss", "test_accuracy", "distance") if name in known]
    phis = [name for name in known if name.startswith("phi_")]
    parts = [metrics, *(phis[start : start + 3] for start in range(0, len(phis), 3))]
    shown: list[Table | str] = []
    for columns in filter(None, parts):
        table = new_table("configuration", "seeds", *(_heading(name) for name in columns))
        for row in means:
            settings = ", ".join(f"{key} {_text(value)}" for key, value in row["settings"].items()) or "all"
            cells = (_plus_minus(row["values"].get(name)) for name in columns)
            table.add_row(escape(settings), str(row["seeds"]), *cells)
        shown += [table, ""]
    return shown[:-1] or ["no trial is complete"]


def _heading(column: str) -> str:
    return column.replace("_", " ", 1).replace("_", "\n", 1) if column.startswith("phi_") else column.replace("_", "\n")


def _plus_minus(value: dict[str, float | None] | None) -> str:
    if value is None:
        return "-"
    spread = value["standard_deviation"]
    return f"{value['mean']:.4g}" + ("" if spread is None else f" ± {spread:.2g}")
