"""The command line: ``lbgap demo | train | sharpness | measure | spectrum | line | sweep | info`` and others."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer
from rich import box
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
UsageError = cast(type[Exception], typer.BadParameter.__base__)  # typer's own or click's, depending on its version


def _seed(value: int) -> int:
    if not 0 <= value < 2**63:
        raise typer.BadParameter(f"must be between 0 and 2**63 - 1, got {value}")
    return value


Runs = Annotated[list[Path] | None, typer.Argument(help="Folders made by lbgap train.", show_default=False)]
ModelPath = Annotated[
    str | None, typer.Option("--model", help="Your own network: package.module:callable.", show_default=False)
]
Weights = Annotated[
    list[Path] | None,
    typer.Option("--weights", help="Its weights, a .safetensors file; once for each minimizer.", show_default=False),
]
DATA = "mnist1d, digits, mnist, cifar10, cifar100 or a .npz file"
DataName = Annotated[
    str | None,
    typer.Option("--data", help=f"{DATA}.", show_default="what the run was trained on"),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder with the files of mnist, cifar10 or cifar100.", show_default=False)
]
Download = Annotated[bool, typer.Option("--download", help="Fetch what is missing of them into --data-dir.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is random.", callback=_seed)]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="the model's")]
BatchNorm = Annotated[str, typer.Option(help="eval (running statistics) or batch (those of each evaluation batch).")]
BatchSize = Annotated[int | None, typer.Option(help="Samples in an evaluation batch.", show_default="chosen by itself")]
Parameters = Annotated[
    str, typer.Option(help="Which may move: all, weights, a module's name, or a pattern such as '*.bias'.")
]
Precision = Annotated[str, typer.Option(help="float32, float64 or mixed.")]

REMEDY_NAMES = (
    "augment, conservative, batches, grow, ghost, sqrt-rate, linear-rate, swa, smoothout, robust, adversarial, "
    "stability, sam, asam, local-sgd"
)


def main() -> None:
    """Run the command line; every failure is one line on standard error and a non-zero exit."""
    with warnings.catch_warnings():
        warnings.showwarning = _note
        try:
            code = app(standalone_mode=False)
        except UsageError as error:
            _fail(cast(Any, error).format_message(), 2)
        except OSError as error:
            _fail(": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error), 1)
        except (ValueError, TypeError, FloatingPointError, ImportError) as error:
            _fail(str(error) or type(error).__name__, 1)
        except (MemoryError, OverflowError, RuntimeError) as error:
            if not re.search("alloc|overflow|^$", str(error), re.IGNORECASE):  # torch's are plain RuntimeErrors
                raise
            _fail(f"too large for the memory: {str(error) or type(error).__name__}", 1)
        if code == INTERRUPTED:
            _fail("interrupted", INTERRUPTED)
        sys.exit(code)


def _note(message: Warning | str, *_: object, **__: object) -> None:
    errors.print(f"[yellow]lbgap:[/] note: {escape(' '.join(str(message).split()))}", highlight=False)


def _fail(reason: str, code: int) -> NoReturn:
    """Say why on one line, in the words of the command line, and leave."""
    text = "".join(reason.strip().splitlines()[:1])
    text = re.sub(r"train\(\.\.\., out=(.*), resume=True\)", r"lbgap train --out \1 --resume", text)
    for python, option in (("resume=True", "--resume"), ("download=True", "--download")):
        text = text.replace(python, option)
    text = re.sub(r"(needs|with) data_dir\b", r"\1 --data-dir", text)
    if text:  # nothing is left to say where typer has shown the help
        errors.print(f"[bold red]lbgap:[/] {escape(text)}", highlight=False)
    sys.exit(code)


@contextmanager
def _resumable(how: str) -> Iterator[None]:
    """Say after Ctrl-C how the work goes on."""
    try:
        yield
    except KeyboardInterrupt:
        _fail(f"interrupted; what is finished is kept, {how} goes on from there", INTERRUPTED)


def _show(as_json: bool, result: dict[str, Any], *parts: Table | str) -> None:
    """Print a result, either for a program or for a person."""
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False), flush=True)
        return
    console = Console()
    for part in parts:
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))


def _table(*headings: str) -> Table:
    """An empty table that is narrow enough for 80 columns; nothing in its first column is cut."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", overflow="ellipsis" if index else "fold")
    return table


def _bullets(sentences: Iterable[str]) -> Table:
    table = Table.grid(padding=(0, 1))
    for sentence in sentences:
        table.add_row("*", escape(sentence))
    return table


def _writable(folder: Path) -> Path:
    """Make a folder for results, before the work rather than after it."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out must be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"--out {folder} is not writable: choose another folder")
    return folder


def _fresh(folder: Path, name: str) -> Path:
    """A stem in a folder that no earlier result has: ``name``, ``name-2``, ``name-3`` ..."""
    number = 1
    while any(folder.glob(f"{name}{'' if number == 1 else f'-{number}'}.*")):
        number += 1
    return folder / (name if number == 1 else f"{name}-{number}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demonstration.")] = Path("lbgap-demo"),
    seeds: Annotated[int, typer.Option(help="How many starts.")] = 3,
    updates: Annotated[int, typer.Option(help="ADAM updates of each training, rounded to whole epochs.")] = 5_000,
    seed: Annotated[int, typer.Option(help="The first start; the others count on.", callback=_seed)] = 0,
    as_json: AsJson = False,
) -> None:
    """Train small- and large-batch on MNIST-1D, measure both minimizers, draw them and write a report.

    Writes into --out: report.html, result.json, line.json, sharpness and line
    as .png and .svg, demo.json (the settings) and the trained networks in
    runs/. After Ctrl-C the same command goes on.
    """
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
        _resumable("the same command"),
        Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress,
    ):
        task = progress.add_task("starting", total=steps(max(seeds, 1)), completed=-1)
        result = run_demo(
            out,
            seeds=seeds,
            updates=updates,
            seed=seed,
            step=lambda what: progress.update(task, description=what, advance=1),
        )
    minimizers = _table(
        *("", "seed", "batch", "updates", "train\nloss", "train\nacc. %", "test\nloss", "test\nacc. %"),
        *("distance", "time s"),
    )
    sharpness = _table(
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
    written = f"Figures and report: {escape(str(result.folder / 'report.html'))} ({result.seconds:.0f} s)"
    _show(
        as_json,
        result.to_dict(),
        "Minimizers: mean cross-entropy, distance from the start, time of training\n",
        minimizers,
        "\nTheir sharpness phi: certified lower bounds\n",
        sharpness,
        "",
        _bullets(result.findings),
        "",
        written,
    )


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; must be new unless --resume.")],
    data: Annotated[str, typer.Option(help=f"{DATA}.")] = "mnist1d",
    data_dir: DataDir = None,
    download: Download = False,
    network: Annotated[
        str, typer.Option(help="mlp, f1, f2, c1_1d, c2_1d; c1 to c4 for images (cifar10, cifar100).")
    ] = "mlp",
    hidden: Annotated[str, typer.Option(help="Widths of the hidden layers of mlp.")] = "128,128,128,128",
    initialisation: Annotated[str, typer.Option(help="torch or uniform (Keras), of the networks above.")] = "torch",
    model: ModelPath = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            help="Samples (256), or a share of the training set (0.1, 10%).", show_default="256, or all if fewer"
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="How many epochs.", show_default="until the training loss stops improving")
    ] = None,
    max_epochs: Annotated[int, typer.Option(help="The most epochs without --epochs.")] = 200,
    optimizer: Annotated[str, typer.Option(help="A class of torch.optim, or LARS or LAMB.")] = "Adam",
    learning_rate: Annotated[float, typer.Option(help="Of all epochs, unless a remedy changes it.")] = 1e-3,
    remedy: Annotated[
        list[str] | None,
        typer.Option(
            help="Against the generalisation gap, such as swa or conservative:lam=1e-3; may be given several times: "
            f"{REMEDY_NAMES}.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    keep_every: Annotated[
        int | None,
        typer.Option(help="Keep the iterate of each so many epochs, for lbgap plane.", show_default="keep none"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a network to a minimizer; a run that was killed resumes to the same bits.

    Writes into --out: config.json (the settings), metrics.jsonl (a line an
    epoch), state.safetensors (to resume), model.safetensors (the trained
    weights) and result.json; with --keep-every also a folder of iterates.
    """
    import torch

    from lbgap import datasets, networks
    from lbgap import training as lbgap_training

    if model is None:
        networks.known(network)  # before data are read or fetched, which may take long
    samples = datasets.load(data, data_dir, download=download, progress=errors.is_terminal)
    extra: dict[str, Any] = {"data": {"name": data, "data_dir": None if data_dir is None else str(data_dir)}}
    if model is not None:
        torch.manual_seed(seed)  # for the initial values that a model of one's own draws
        module = networks.from_path(model)
        extra["model"] = model
    else:
        spec = _network_spec(network, hidden, samples, seed, initialisation)
        module = networks.build(spec)
        extra["network"] = spec
    with _resumable("the same command with --resume"):
        run = lbgap_training.train(
            module,
            samples.train,
            test_data=samples.test,
            loss=samples.loss,
            batch_size=None if batch_size is None else _batch_size(batch_size),
            epochs=epochs,
            max_epochs=max_epochs,
            optimizer=optimizer,
            learning_rate=learning_rate,
            remedies=remedy or (),
            seed=seed,
            device=device,
            out=out,
            resume=resume,
            keep_every=keep_every,
            config=extra,
            progress=errors.is_terminal,
        )
    result = {"folder": str(out), "epoch": run.epoch, "reason": run.reason, "metrics": run.metrics[run.epoch - 1]}
    _show(as_json, result, escape(str(run)))


@app.command()
def sharpness(
    runs: Runs = None,
    epsilon: Annotated[list[float], typer.Option(help="Size of the box; may be given several times.")] = [1e-3, 5e-4],  # noqa: B006
    method: Annotated[str, typer.Option(help="vertex, apgd, lbfgsb, or scipy (the paper's recipe).")] = "vertex",
    iterations: Annotated[int | None, typer.Option(help="At most, from each start.", show_default="by method")] = None,
    restarts: Annotated[
        int | None,
        typer.Option(
            help="Further starts: one targeted at each class, then random ones.", show_default="0; 10 with --paper"
        ),
    ] = None,
    scaling: Annotated[str | None, typer.Option(help="Of lbfgsb: box or paper.", show_default="box")] = None,
    search_samples: Annotated[
        int | None,
        typer.Option("--samples", help="Search on so many samples, then evaluate on all.", show_default="all"),
    ] = None,
    region: Annotated[str, typer.Option(help="keskar, linf or adaptive.")] = "keskar",
    subspace: Annotated[
        int | None, typer.Option(help="Dimensions of random manifolds (paper: 100).", show_default="the full space")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="How many manifolds.", show_default="5")] = None,
    distribution: Annotated[
        str | None, typer.Option(help="Their entries: normal, uniform, rademacher or unit.", show_default="normal")
    ] = None,
    parameters: Parameters = "all",
    curve: Annotated[
        bool, typer.Option("--curve", help="Go from each epsilon to the next, and draw phi against epsilon.")
    ] = False,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="Measure each layer's box alone.")] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Tables 3 and 4 of the paper, minimizers of one batch size together.")
    ] = False,
    batch_norm: BatchNorm = "eval",
    precision: Precision = "float32",
    batch_size: BatchSize = None,
    backend: Annotated[str, typer.Option(help="auto, native or torch.")] = "auto",
    model: ModelPath = None,
    weights: Weights = None,
    data: DataName = None,
    data_dir: DataDir = None,
    download: Download = False,
    seed: Seed = 0,
    device: Device = None,
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Measure how sharp minimizers are, on their training data.

    Give run folders, or a model of your own by --model, --weights and --data.
    Writes sharpness.json into --out (with --curve also sharpness.png and .svg);
    earlier results are kept, the next one is sharpness-2.json.
    """
    from lbgap import Objective
    from lbgap.cli_sharpness import curves, each, layers, tables

    minimizers = _minimizers(runs, model, weights, data, data_dir, download)
    _writable(out)

    def objectives() -> Iterator[tuple[str, str, Any]]:
        for name, module, samples in minimizers:
            yield (
                name,
                samples.name,
                Objective(
                    module,
                    samples.train,
                    loss=samples.loss,
                    parameters=parameters,
                    batch_norm=batch_norm,
                    precision=precision,
                    batch_size=batch_size,
                    device=device,
                    backend=backend,
                ),
            )

    manifold = {"subspace": subspace, "trials": trials, "distribution": distribution}
    search: dict[str, Any] = {
        "method": method,
        "iterations": iterations,
        "restarts": restarts or 0,
        "scaling": scaling,
        "samples": search_samples,
        "region": region,
        "seed": seed,
    }
    ways = [name for name, asked in (("--curve", curve), ("--by-layer", by_layer), ("--paper", paper)) if asked]
    if len(ways) > 1:
        raise typer.BadParameter(f"{' and '.join(ways)} cannot be asked for together: choose one")
    if ways and any(value is not None for value in manifold.values()):
        raise typer.BadParameter(f"{ways[0]} does not go with --subspace, --trials and --distribution: leave them out")
    if paper:
        fixed = {"method": "vertex", "iterations": None, "scaling": None, "samples": None, "region": "keskar"}
        changed = [name for name, value in fixed.items() if search[name] != value]
        if changed:
            raise typer.BadParameter(f"--paper chooses --{changed[0]} by itself: leave it out")
        tables(objectives(), _batches_of(runs), epsilon, restarts, seed, out, as_json)
    elif curve:
        curves(objectives(), sorted(epsilon), search, out, as_json)
    elif by_layer:
        layers(objectives(), epsilon, search, out, as_json)
    else:
        each(objectives(), epsilon, {**search, **manifold}, out, as_json)


@app.command()
def info(as_json: AsJson = False) -> None:
    """Show versions, which library serves which device, compiler, SIMD level, threads and copy bandwidth."""
    import torch

    from lbgap import _extension
    from lbgap.result import versions
    from lbgap.system import device as hardware

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
        "bfloat16 products": hardware.bfloat16_products("cpu"),
        "copy bandwidth GB/s": round(host.copy_bandwidth(1 << 28, threads) / 1e9, 1) if host else None,
        "CUDA of torch": torch.version.cuda,
        "GPU kernels": _gpu_kernels(),
        "GPUs": _gpus(),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name, escape("-" if value is None else str(value)))
    _show(as_json, facts, table)


def _gpu_kernels() -> str:
    """For which architectures the CUDA library was compiled, and whether it is loaded."""
    import torch

    from lbgap import _extension

    compiled = _extension.host.cuda_architectures() if _extension.host else ""
    if not compiled:
        return "not built (no CUDA toolkit, or FORCE_CUDA=0)"
    if "cuda" in _extension.NATIVE_DEVICES:
        return f"for compute capability {compiled}"
    return f"for compute capability {compiled}, not loaded: torch {torch.__version__} has no CUDA"


def _gpus() -> list[str] | None:
    """Name, compute capability and backend of every GPU that torch can use."""
    import torch

    from lbgap import _extension

    if not torch.cuda.is_available():
        return None
    found = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        backend = _extension.resolve_backend("auto", torch.device("cuda", index))
        found.append(f"{torch.cuda.get_device_name(index)} ({major}.{minor}): {backend}")
    return found


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


def _network_spec(name: str, hidden: str, samples: Any, seed: int, initialisation: str) -> dict[str, Any]:
    from lbgap import networks

    try:
        widths = [int(width) for width in hidden.split(",")] if name == "mlp" else None
    except ValueError:
        raise ValueError(f"--hidden must be widths such as 128,128, got {hidden!r}") from None
    return networks.specify(
        name, samples.features, samples.outputs, seed=seed, hidden=widths, initialisation=initialisation
    )


def _batches_of(runs: list[Path] | None) -> dict[str, str]:
    """What the runs in these folders have in common with others: their batch size."""
    from lbgap.training import read_run

    return {str(folder): f"batch {read_run(folder).config['batch_size']}" for folder in runs or ()}


def _minimizers(
    runs: list[Path] | None,
    model: str | None,
    weights: list[Path] | None,
    data: str | None,
    data_dir: Path | None,
    download: bool,
) -> list[tuple[str, Any, Any]]:
    """Names, models and data of what was named: run folders, or a model of one's own with weights and data."""
    from lbgap import datasets, networks
    from lbgap.training import read_run
    from lbgap.training.load import load_model, read_weights

    def network() -> Any:
        return copy.deepcopy(networks.from_path(model)) if model else None  # the path may name one and the same module

    load = functools.cache(functools.partial(datasets.load, download=download, progress=errors.is_terminal))
    if runs and weights:
        raise ValueError("give run folders or --weights, not both")
    if runs:
        found = []
        for folder in runs:
            run = read_run(folder)
            module = load_model(run, network())
            own = run.config.get("extra", {}).get("data", {})
            name = data or own.get("name")
            if name is None:
                raise ValueError(f"{folder} does not record its data: name them with --data")
            samples = load(name, data_dir or own.get("data_dir"))
            if data is None:
                _check_own(folder, run.config, samples)
            found.append((str(folder), module, samples))
        return found
    if not (model and weights and data):
        raise ValueError("give run folders, or --model package.module:callable with --weights and --data")
    return [(str(path), read_weights(network(), path), load(data, data_dir)) for path in weights]


def _check_own(folder: Path, config: dict[str, Any], samples: Any) -> None:
    """Refuse data that have changed since a run was trained on them.

    Raises:
        ValueError: They have.
    """
    from lbgap.training.config import describe_data

    for key, split in (("data", samples.train), ("test_data", samples.test)):
        recorded = config.get(key)
        if recorded is not None and (split is None or describe_data(split)["digest"] != recorded["digest"]):
            raise ValueError(
                f"{samples.name} has other {'training' if key == 'data' else 'test'} samples than those {folder} was "
                "trained with: name the data to use with --data"
            )


def _same_data(named: list[tuple[str, Any, Any]]) -> None:
    """Refuse minimizers that were trained on different data.

    Raises:
        ValueError: They were.
    """
    import torch

    first, _, samples = named[0]
    for name, _, others in named[1:]:
        if samples is not others and not all(map(torch.equal, samples.train, others.train)):
            raise ValueError(f"{first} and {name} were trained on different data: name those to use with --data")


import lbgap.cli_landscape  # noqa: E402  these register their commands on the app of lbgap.cli
import lbgap.cli_measure  # noqa: E402
import lbgap.cli_paper  # noqa: E402
import lbgap.cli_plane  # noqa: E402
import lbgap.cli_spectrum  # noqa: E402
import lbgap.cli_sweep  # noqa: E402

if __name__ == "__main__":
    lbgap.cli.main()
