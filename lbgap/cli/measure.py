"""The command ``lbgap measure``: the measures beside Keskar's box."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from lbgap.cli.minimizers import load_minimizers
from lbgap.cli.options import (
    AsJson,
    BatchNorm,
    BatchSize,
    DataDir,
    DataName,
    Device,
    Download,
    ModelPath,
    Out,
    Parameters,
    Precision,
    Runs,
    Seed,
    Weights,
)
from lbgap.cli.show import bullets, fresh, new_table, show, writable

# NAME: the function in lbgap, what its value is called, and the options that are its own.
MEASURES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "ball": ("ball_sharpness", "phi %", ("radius", "adaptive", "eta", "iterations", "restarts", "seed")),
    "average": ("average_sharpness", "mean rise", ("sigma", "draws", "adaptive", "relative_error", "seed")),
    "pac-bayes": ("pac_bayes_sigma", "sigma", ("deviation", "eps", "draws", "tolerance", "seed")),
    "fisher-rao": ("fisher_rao_norm", "norm^2", ("labels",)),
    "relative-flatness": ("relative_flatness", "kappa", ("layer", "exact", "draws", "seed")),
    "critical": ("critical_sharpness", "lambda_c", ("tolerance",)),
}


def _known(value: str) -> str:
    if value not in MEASURES:
        raise typer.BadParameter(f"must be one of {', '.join(MEASURES)}, got {value}")
    return value


Name = Annotated[
    str, typer.Argument(help=f"One of {', '.join(MEASURES)}.", callback=_known, metavar="NAME", show_default=False)
]


def _own(text: str) -> Any:
    """An option of some of the measures; None leaves it to their default."""
    return typer.Option(help=text, show_default=False)


def measure(
    name: Name,
    runs: Runs = None,
    radius: Annotated[float | None, _own("ball: its radius.")] = None,
    eta: Annotated[float | None, _own("ball: least scale of a parameter with --adaptive.")] = None,
    iterations: Annotated[int | None, _own("ball: gradients at most from each start.")] = None,
    restarts: Annotated[int | None, _own("ball: further starts, random.")] = None,
    sigma: Annotated[float | None, _own("average: standard deviation of the noise.")] = None,
    draws: Annotated[int | None, _own("average, pac-bayes, relative-flatness: random draws.")] = None,
    adaptive: Annotated[bool | None, _own("ball, average: relative to each parameter.")] = None,
    relative_error: Annotated[float | None, _own("average: standard error to stop at, as a share.")] = None,
    tolerance: Annotated[float | None, _own("pac-bayes, critical: relative width to stop at.")] = None,
    deviation: Annotated[float | None, _own("pac-bayes: rise of the error that is allowed, as a share.")] = None,
    eps: Annotated[float | None, _own("pac-bayes: noise that all parameters get.")] = None,
    labels: Annotated[str | None, _own("fisher-rao: data or model.")] = None,
    layer: Annotated[str | None, _own("relative-flatness: name of a layer.")] = None,
    exact: Annotated[bool | None, _own("relative-flatness: all products, or an estimate.")] = None,
    parameters: Parameters = "all",
    batch_norm: BatchNorm = "eval",
    precision: Precision = "float32",
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
    """Measure minimizers otherwise than by Keskar's box, on their training data.

    Give run folders, or a model of your own by --model, --weights and --data.
    Writes NAME.json into --out; earlier results are kept, the next one is
    NAME-2.json.
    """
    asked: dict[str, Any] = {
        "radius": radius,
        "eta": eta,
        "iterations": iterations,
        "restarts": restarts,
        "sigma": sigma,
        "draws": draws,
        "adaptive": adaptive,
        "relative_error": relative_error,
        "tolerance": tolerance,
        "deviation": deviation,
        "eps": eps,
        "labels": labels,
        "layer": layer,
        "exact": exact,
    }
    options = {
        "parameters": parameters,
        "batch_norm": batch_norm,
        "precision": precision,
        "batch_size": batch_size,
        "device": device,
    }
    own = _judged(name, asked, seed)
    minimizers = load_minimizers(runs, model, weights, data, data_dir, download)
    writable(out)
    _report(name, minimizers, {**own, **options}, out, as_json)


def _judged(name: str, asked: dict[str, Any], seed: int) -> dict[str, Any]:
    """The options given for a measure; refuses those of others."""
    allowed = MEASURES[name][2]
    given = {option: value for option, value in asked.items() if value is not None}
    for option in given:
        if option not in allowed:
            given_name, *takes = (f"--{other.replace('_', '-')}" for other in (option, *allowed))
            raise ValueError(f"{given_name} does not belong to {name}, which takes {', '.join(takes)}")
    return {**given, **({"seed": seed} if "seed" in allowed else {})}


def _report(
    name: str, minimizers: list[tuple[str, Any, Any]], options: dict[str, Any], out: Path, as_json: bool
) -> None:
    """Measure each minimizer, write the results and print them."""
    import lbgap
    from lbgap.system import files

    function, heading, _ = MEASURES[name]
    table = new_table(
        "minimizer", "loss", heading, "rise" if name == "ball" else "standard\nerror", "evaluations", "time s"
    )
    results, notes = [], []
    for label, module, samples in minimizers:
        found = getattr(lbgap, function)(module, samples.train, loss=samples.loss, **options)
        results.append({"minimizer": label, "data": samples.name, **found.to_dict()})
        notes.append(f"{label}: {found.status}")
        beside = found.rise if name == "ball" else found.standard_error
        table.add_row(
            escape(label),
            f"{found.base_loss:.4g}",
            f"{found.value:.5g}",
            "-" if math.isnan(beside) else f"{beside:.2g}" if name != "ball" else f"{beside:.4g}",
            f"{found.evaluations:.4g}",
            f"{found.seconds:.2f}",
        )
    path = fresh(out, name).with_suffix(".json")
    files.write_json(path, results)
    settings = results[0]["settings"]
    hidden = {"versions", "notes", "threads", "directions", "batch_size"}
    kept = (f"{key} {value}" for key, value in settings.items() if key not in hidden and value is not None)
    show(
        as_json,
        {"results": results},
        f"{settings['measure']}\n",
        table,
        "",
        bullets([*notes, ", ".join(kept)]),
        "",
        f"Written: {escape(str(path))}",
    )
