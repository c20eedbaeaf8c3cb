"""The command line: ``lbgap demo | train | sharpness | line | info``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How sharp the minima of neural networks are, and why large-batch training generalises worse.",
)
errors = Console(stderr=True, soft_wrap=True)
INTERRUPTED = 130  # what typer exits with after Ctrl-C

Runs = Annotated[list[Path] | None, typer.Argument(help="Run folders made by `lbgap train`.", show_default=False)]
ModelPath = Annotated[
    str | None, typer.Option("--model", help="Your own network: package.module:callable.", show_default=False)
]
Weights = Annotated[
    list[Path] | None,
    typer.Option("--weights", help="Its weights, a .safetensors file; give it once a minimizer.", show_default=False),
]
DataName = Annotated[
    str | None, typer.Option("--data", help="mnist1d, digits, mnist or a file .npz.", show_default=False)
]
DataDir = Annotated[Path | None, typer.Option(help="Folder with the files of mnist.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]
Seed = Annotated[int, typer.Option(help="Of everything that is random.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="the model's")]
BatchNorm = Annotated[str, typer.Option(help="eval (running statistics) or batch (those of each evaluation batch).")]
BatchSize = Annotated[int | None, typer.Option(help="Samples in a micro-batch.", show_default="chosen by itself")]


def main() -> None:
    """Run the command line; every failure is one line on standard error and a non-zero exit."""
    try:
        app()
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        _fail(
            "interrupted; what is finished is kept: `train --resume`, or the same `demo`, goes on from there",
            INTERRUPTED,
        )
    except (ValueError, TypeError, FloatingPointError, OSError, ImportError) as error:
        _fail(" ".join(str(error).split()) or type(error).__name__, 1)


def _fail(reason: str, code: int) -> NoReturn:
    errors.print(f"[bold red]lbgap:[/] {escape(reason)}", highlight=False)
    sys.exit(code)


def _show(as_json: bool, result: dict[str, Any], *tables: Table | str) -> None:
    """Print a result, either for a program or for a person."""
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    console = Console()
    for table in tables:
        console.print(table, highlight=False)


def _fresh(folder: Path, name: str) -> Path:
    """A stem in a folder that no earlier result has: ``name``, ``name-2``, ``name-3`` ..."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while any(folder.glob(f"{name}{'' if number == 1 else f'-{number}'}.*")):
        number += 1
    return folder / (name if number == 1 else f"{name}-{number}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for runs, figures and report.")] = Path("lbgap-demo"),
    seeds: Annotated[int, typer.Option(help="How many starts.")] = 3,
    updates: Annotated[int, typer.Option(help="ADAM updates of each training.")] = 5_000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train small- and large-batch on MNIST-1D, measure both minimizers, draw them and write a report."""
    from lbgap.experiments import demo as run_demo
    from lbgap.experiments.demo import steps

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("starting", total=steps(max(seeds, 1)), completed=-1)
        result = run_demo(
            out,
            seeds=seeds,
            updates=updates,
            seed=seed,
            step=lambda what: progress.update(task, description=what, advance=1),
        )
    minimizers = Table(title="The minimizers", caption="mean cross-entropy, accuracy in %, distance from the start")
    for heading in ("", "seed", "batch", "train loss", "train acc.", "test loss", "test acc.", "distance", "seconds"):
        minimizers.add_column(heading, justify="right" if heading else "left")
    sharpness = Table(title="Their sharpness phi in %, certified lower bounds")
    for heading in ("", "seed", "epsilon", "vertex ascent", "seconds", "paper's recipe", "seconds"):
        sharpness.add_column(heading, justify="right" if heading else "left")
    for row in result.rows:
        minimizers.add_row(
            row.regime,
            str(row.seed),
            str(row.batch_size),
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
    _show(as_json, result.to_dict(), minimizers, sharpness, *(f"* {finding}" for finding in result.findings))
    if not as_json:
        Console(soft_wrap=True).print(
            f"\nFigures and report: {result.folder / 'report.html'}  ({result.seconds:.0f} s)"
        )


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; must be new unless --resume.")],
    data: Annotated[str, typer.Option(help="mnist1d, digits, mnist or a file .npz.")] = "mnist1d",
    data_dir: DataDir = None,
    network: Annotated[str, typer.Option(help="mlp or f1.")] = "mlp",
    hidden: Annotated[str, typer.Option(help="Widths of the hidden layers of mlp.")] = "128,128,128,128",
    model: ModelPath = None,
    batch_size: Annotated[str, typer.Option(help="Samples (256), or a share of the training set (0.1, 10%).")] = "256",
    epochs: Annotated[int | None, typer.Option(show_default="until the training loss stops improving")] = None,
    max_epochs: Annotated[int, typer.Option(help="The most epochs without --epochs.")] = 200,
    optimizer: Annotated[str, typer.Option(help="A class of torch.optim.")] = "Adam",
    learning_rate: Annotated[float, typer.Option()] = 1e-3,
    seed: Seed = 0,
    device: Device = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a network to a minimizer; a run that was killed resumes to the same bits."""
    from lbgap import datasets, networks
    from lbgap import training as lbgap_training

    samples = datasets.load(data, data_dir)
    extra: dict[str, Any] = {"data": {"name": data, "data_dir": None if data_dir is None else str(data_dir)}}
    if model is not None:
        module = networks.from_path(model)
        extra["model"] = model
    else:
        spec = _network_spec(network, hidden, samples.features, samples.classes, seed)
        module = networks.build(spec)
        extra["network"] = spec
    run = lbgap_training.train(
        module,
        samples.train,
        test_data=samples.test,
        loss="cross_entropy" if samples.classes else "mse",
        batch_size=_batch_size(batch_size),
        epochs=epochs,
        max_epochs=max_epochs,
        optimizer=optimizer,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        out=out,
        resume=resume,
        config=extra,
        progress=True,
    )
    result = {"folder": str(out), "epoch": run.epoch, "reason": run.reason, "metrics": run.metrics[run.epoch - 1]}
    _show(as_json, result, escape(str(run)))


@app.command()
def sharpness(
    runs: Runs = None,
    epsilon: Annotated[list[float], typer.Option(help="Size of the box; give it several times.")] = [1e-3, 5e-4],  # noqa: B006
    method: Annotated[str, typer.Option(help="vertex, apgd, or scipy (the paper's recipe).")] = "vertex",
    iterations: Annotated[int | None, typer.Option(show_default="by method")] = None,
    restarts: Annotated[int, typer.Option(help="Further starts: targeted at each class, then random.")] = 0,
    region: Annotated[str, typer.Option(help="keskar, linf or adaptive.")] = "keskar",
    parameters: Annotated[str, typer.Option(help="all, weights, or a name pattern.")] = "all",
    batch_norm: BatchNorm = "eval",
    precision: Annotated[str, typer.Option(help="float32, float64 or mixed.")] = "float32",
    batch_size: BatchSize = None,
    backend: Annotated[str, typer.Option(help="auto, native or torch.")] = "auto",
    model: ModelPath = None,
    weights: Weights = None,
    data: DataName = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = None,
    out: Annotated[Path, typer.Option(help="Folder for sharpness.json; earlier results are kept.")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Measure how sharp minimizers are, on their training data."""
    from lbgap import Objective, _files, fast_sharpness

    minimizers = _minimizers(runs, model, weights, data, data_dir)
    table = Table(title="Sharpness phi in %, certified lower bounds")
    for heading in ("minimizer", "epsilon", "loss", "max loss", "phi", "evaluations", "seconds"):
        table.add_column(heading, justify="left" if heading == "minimizer" else "right")
    results, notes = [], []
    for name, module, samples in minimizers:
        objective = Objective(
            module,
            samples.train,
            loss="cross_entropy" if samples.classes else "mse",
            parameters=parameters,
            batch_norm=batch_norm,
            precision=precision,
            batch_size=batch_size,
            device=device,
            backend=backend,
        )
        for size in epsilon:
            found = fast_sharpness(
                objective,
                epsilon=size,
                method=method,
                iterations=iterations,
                restarts=restarts,
                region=region,
                seed=seed,
                progress=True,
            )
            results.append({"minimizer": name, "data": samples.name, **found.to_dict()})
            notes.append(f"{name}, epsilon {size:g}: {found.status}")
            table.add_row(
                escape(name),
                f"{size:g}",
                f"{found.base_loss:.4g}",
                f"{found.max_loss:.4g}",
                f"{found.value:.5g}",
                f"{found.evaluations:.4g}",
                f"{found.seconds:.2f}",
            )
    path = _fresh(out, "sharpness").with_suffix(".json")
    _files.write_json(path, results)
    settings = results[0]["settings"]
    kept = ("method", "region", "batch_norm", "precision", "n", "samples", "device", "backend")
    _show(
        as_json,
        {"results": results},
        table,
        *(escape(note) for note in notes),
        escape(", ".join(f"{key} {settings[key]}" for key in kept)),
        f"written to {escape(str(path))}",
    )


@app.command()
def line(
    runs: Runs = None,
    points: Annotated[int, typer.Option(help="Values of alpha.")] = 25,
    low: Annotated[float, typer.Option(help="Smallest alpha.")] = -1.0,
    high: Annotated[float, typer.Option(help="Largest alpha.")] = 2.0,
    batch_norm: BatchNorm = "batch",
    batch_size: BatchSize = None,
    model: ModelPath = None,
    weights: Weights = None,
    data: DataName = None,
    data_dir: DataDir = None,
    seed: Annotated[int, typer.Option(help="Nothing here is random; recorded only.")] = 0,
    device: Device = None,
    out: Annotated[Path, typer.Option(help="Folder for line.json, .png and .svg; earlier ones are kept.")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Draw loss and accuracy on the line from a small- to a large-batch minimizer, given in this order."""
    from lbgap import _files, plotting
    from lbgap.landscape import line as evaluate_line

    minimizers = _minimizers(runs, model, weights, data, data_dir)
    if len(minimizers) != 2:
        raise ValueError(
            f"a line needs two minimizers, small-batch first, got {len(minimizers)}: give two runs or --weights"
        )
    (small_name, small, samples), (large_name, large, _) = minimizers
    result = evaluate_line(
        small,
        large,
        samples.train,
        test_data=samples.test,
        points=points,
        low=low,
        high=high,
        loss="cross_entropy" if samples.classes else "mse",
        batch_norm=batch_norm,
        batch_size=batch_size,
        device=device,
        progress=True,
    )
    stem = _fresh(out, "line")
    record = {"small": small_name, "large": large_name, "data": samples.name, "seed": seed, **result.to_dict()}
    _files.write_json(stem.with_suffix(".json"), record)
    plotting.save(plotting.plot_line(result), stem)
    columns = {
        "train loss": result.train_loss,
        "train acc. %": result.train_accuracy,
        "test loss": result.test_loss,
        "test acc. %": result.test_accuracy,
    }
    shown = {name: values for name, values in columns.items() if values is not None}
    table = Table(title=f"alpha: 0 is {escape(small_name)}, 1 is {escape(large_name)}")
    for heading in ("alpha", *shown):
        table.add_column(heading, justify="right")
    for index, alpha in enumerate(result.alphas):
        table.add_row(f"{alpha:.3f}", *(f"{values[index]:.4g}" for values in shown.values()))
    _show(as_json, record, table, f"written to {escape(str(stem))}.json, .png and .svg")


@app.command()
def info(as_json: AsJson = False) -> None:
    """Show versions, backend, compiler, SIMD level, threads and copy bandwidth."""
    import torch

    from lbgap import _extension, _hardware
    from lbgap._result import versions

    host = _extension.host
    threads = torch.get_num_threads()
    native = ", ".join(sorted(_extension.NATIVE_DEVICES))
    facts: dict[str, Any] = {
        **versions(),
        "backend": f"native for {native}" if native else "torch: no compiled library (LBGAP_BUILD=0 or no compiler)",
        "compiler": host.compiler() if host else None,
        "flags": host.flags() if host else None,
        "simd": host.simd_level() if host else None,
        "threads": threads,
        "bfloat16 products": _hardware.bfloat16_products("cpu"),
        "copy bandwidth GB/s": round(host.copy_bandwidth(1 << 28, threads) / 1e9, 1) if host else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, escape("-" if value is None else str(value)))
    _show(as_json, facts, table)


def _batch_size(text: str) -> int | float:
    """``256`` is a number of samples, ``0.1`` and ``10%`` a share."""
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        raise ValueError(
            f"--batch-size must be a number of samples (256) or a share (0.1, 10%), got {text!r}"
        ) from None


def _network_spec(name: str, hidden: str, features: tuple[int, ...], classes: int, seed: int) -> dict[str, Any]:
    if len(features) != 1:
        raise ValueError(f"networks mlp and f1 need flat samples, these have shape {features}: use --model")
    spec: dict[str, Any] = {"name": name, "inputs": features[0], "outputs": classes or 1, "seed": seed}
    if name == "mlp":
        try:
            spec["hidden"] = [int(width) for width in hidden.split(",")]
        except ValueError:
            raise ValueError(f"--hidden must be widths such as 128,128, got {hidden!r}") from None
    return spec


def _minimizers(
    runs: list[Path] | None, model: str | None, weights: list[Path] | None, data: str | None, data_dir: Path | None
) -> list[tuple[str, Any, Any]]:
    """Names, models and data of what was named: run folders, or a model of one's own with weights and data."""
    from lbgap import datasets, networks
    from lbgap.training import read_run
    from lbgap.training.load import load_model, read_weights

    if runs and weights:
        raise ValueError("give run folders or --weights, not both")
    if runs:
        found = []
        for folder in runs:
            run = read_run(folder)
            module = load_model(run, networks.from_path(model) if model else None)
            own = run.config.get("extra", {}).get("data", {})
            name = data or own.get("name")
            if name is None:
                raise ValueError(f"{folder} does not record its data: name them with --data")
            found.append((str(folder), module, datasets.load(name, data_dir or own.get("data_dir"))))
        return found
    if not (model and weights and data):
        raise ValueError("give run folders, or --model package.module:callable with --weights and --data")
    samples = datasets.load(data, data_dir)
    return [(str(path), read_weights(networks.from_path(model), path), samples) for path in weights]


if __name__ == "__main__":
    main()
