"""The command ``lbgap sharpness``: single values, curves, layers, the paper's tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lbgap.cli.minimizers import batches_of, load_minimizers
from lbgap.cli.options import (
    AsJson,
    Backend,
    BatchNorm,
    BatchSize,
    DataDir,
    DataName,
    Device,
    Download,
    Epsilons,
    Iterations,
    Method,
    ModelPath,
    Out,
    Parameters,
    Precision,
    Region,
    Runs,
    Scaling,
    Scout,
    SearchSamples,
    Seed,
    Weights,
    words,
)
from lbgap.cli.show import bullets, errors, escape, fresh, new_table, show, writable

if TYPE_CHECKING:
    from rich.table import Table

    from lbgap import Objective, Sharpness
    from lbgap.experiments.tables import Cell

    Objectives = Iterator[tuple[str, str, Objective]]

BOUNDS = "Sharpness phi: certified lower bounds\n"
KEPT = ("method", "region", "batch_norm", "precision", "n", "samples", "device", "backend")


def sharpness(
    runs: Runs = None,
    epsilon: Epsilons = [1e-3, 5e-4],  # noqa: B006
    method: Method = "vertex",
    iterations: Iterations = None,
    restarts: Annotated[
        int | None,
        typer.Option(
            help="Further starts: one targeted at each class, then random ones.", show_default="0; 10 with --paper"
        ),
    ] = None,
    scout: Scout = None,
    scaling: Scaling = None,
    search_samples: SearchSamples = None,
    region: Region = "keskar",
    subspace: Annotated[
        int | None, typer.Option(help="Dimensions of random manifolds (paper: 100).", show_default="the full space")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="How many manifolds.", show_default="5")] = None,
    distribution: Annotated[
        str | None, words("normal uniform rademacher unit", "Their entries: {}.", show_default="normal")
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
    backend: Backend = "auto",
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
    """Measure how sharp minimizers are, on their training data.

    Give run folders, or a model of your own by --model, --weights and --data.
    Writes sharpness.json into --out (with --curve also sharpness.png and .svg);
    earlier results are kept, the next one is sharpness-2.json.
    """
    from lbgap import Objective

    minimizers = load_minimizers(runs, model, weights, data, data_dir, download)
    writable(out)

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
        "scout": scout,
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
        fixed = {
            "method": "vertex",
            "iterations": None,
            "scout": None,
            "scaling": None,
            "samples": None,
            "region": "keskar",
        }
        changed = [name for name, value in fixed.items() if search[name] != value]
        if changed:
            raise typer.BadParameter(f"--paper chooses --{changed[0]} by itself: leave it out")
        _tables(objectives(), batches_of(runs), epsilon, restarts, seed, out, as_json)
    elif curve:
        _curves(objectives(), sorted(epsilon), search, out, as_json)
    elif by_layer:
        _layers(objectives(), epsilon, search, out, as_json)
    else:
        _each(objectives(), epsilon, {**search, **manifold}, out, as_json)


def _each(objectives: Objectives, epsilons: list[float], search: dict[str, Any], out: Path, as_json: bool) -> None:
    """One value for each minimizer and epsilon."""
    from lbgap import fast_sharpness

    table = new_table("minimizer", "epsilon", "loss", "largest\nloss", "phi %", "evaluations", "time s")
    results: list[dict[str, Any]] = []
    notes: list[str] = []
    for name, data, objective in objectives:
        for size in epsilons:
            found = fast_sharpness(objective, epsilon=size, progress=errors().is_terminal, **search)
            _note(found, f"{name}, epsilon {size:g}", {"minimizer": name, "data": data}, results, notes)
            deviation = f" ± {found.standard_deviation:.2g}" if len(found.values) > 1 else ""
            table.add_row(
                escape(name),
                f"{size:g}",
                f"{found.base_loss:.4g}",
                f"{found.max_loss:.4g}",
                f"{found.value:.5g}{deviation}",
                f"{found.evaluations:.4g}",
                f"{found.seconds:.2f}",
            )
    _finish(table, results, notes, out, as_json, manifold=search["subspace"] is not None)


def _curves(objectives: Objectives, epsilons: list[float], search: dict[str, Any], out: Path, as_json: bool) -> None:
    """Draw phi against epsilon, one curve a minimizer, and the figure."""
    from lbgap import plotting, sharpness_curve
    from lbgap.system import files

    table = new_table("minimizer", *(f"{size:g}" for size in epsilons), "evaluations", "time s")
    results, notes, drawn = [], [], {}
    for name, data, objective in objectives:
        found = sharpness_curve(objective, epsilons=epsilons, progress=errors().is_terminal, **search)
        drawn[name] = found
        results.append({"minimizer": name, "data": data, **found.to_dict()})
        notes.append(f"{name}, epsilon {epsilons[-1]:g}: {found.results[-1].status}")
        values = (f"{value:.4g}" for value in found.values)
        table.add_row(escape(name), *values, f"{found.evaluations:.4g}", f"{found.seconds:.2f}")
    stem = fresh(out, "sharpness")
    files.write_json(stem.with_suffix(".json"), results)
    paths = [stem.with_suffix(".json"), *plotting.save(plotting.plot_curves(drawn), stem)]
    title = "Sharpness phi in percent at each epsilon: certified lower bounds\n"
    show(as_json, {"results": results}, title, table, "", bullets(notes), "", _written(paths))


def _layers(objectives: Objectives, epsilons: list[float], search: dict[str, Any], out: Path, as_json: bool) -> None:
    """Each layer's box alone."""
    from lbgap import layer_sharpness

    table = new_table("minimizer", "layer", "parameters", "epsilon", "phi %", "evaluations", "time s")
    results: list[dict[str, Any]] = []
    notes: list[str] = []
    for name, data, objective in objectives:
        for size in epsilons:
            for layer, found in layer_sharpness(
                objective, epsilon=size, progress=errors().is_terminal, **search
            ).items():
                who = {"minimizer": name, "data": data, "layer": layer}
                _note(found, f"{name}, layer {layer}, epsilon {size:g}", who, results, notes)
                table.add_row(
                    escape(name),
                    escape(layer) or "(the model's own)",
                    f"{found.settings['n']:,}",
                    f"{size:g}",
                    f"{found.value:.4g}",
                    f"{found.evaluations:.4g}",
                    f"{found.seconds:.2f}",
                )
    _finish(table, results, [], out, as_json, manifold=False)


def _tables(
    objectives: Objectives,
    groups: dict[str, str],
    epsilons: list[float],
    restarts: int | None,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Tables 3 and 4 of the paper, minimizers of one batch size together."""
    from lbgap.experiments.tables import RESTARTS, paper_tables
    from lbgap.system import files

    epsilons = list(dict.fromkeys(epsilons))
    named = ((name, groups.get(name, name), objective) for name, _, objective in objectives)

    def report(step: str) -> None:
        if errors().is_terminal:
            errors().print(f"[dim]{escape(step)}[/]", highlight=False)

    restarts = RESTARTS if restarts is None else restarts
    found = paper_tables(named, epsilons=epsilons, restarts=restarts, seed=seed, report=report)
    path = fresh(out, "sharpness").with_suffix(".json")
    files.write_json(path, found.to_dict())
    show(as_json, found.to_dict(), *table_parts(found.groups, found.seconds, restarts), "", _written([path]))


def table_parts(groups: Mapping[str, Sequence[Cell]], seconds: Mapping[str, float], restarts: int) -> list[Table | str]:
    """What is printed of the paper's Tables 3 and 4.

    Args:
        groups: The cells of each group of minimizers.
        seconds: Wall-clock time by method.
        restarts: Further starts of vertex ascent, that there were.
    """
    from lbgap.experiments.tables import MANIFOLD_RESTARTS, SUBSPACE, TRIALS

    many = any(len(row[0].values) > 1 for row in groups.values())
    deviation = ["Where a row has several minimizers: mean ± standard deviation over them."] if many else []
    sentences = [
        *deviation,
        "Every phi is a certified lower bound: of two for the same minimizers the larger is the truer.",
        f"recipe: the paper's, 10 iterations of SciPy's L-BFGS-B, {seconds['recipe']:.1f} s in all; "
        f"vertex: vertex ascent from {restarts + 1} starts, on manifolds from "
        f"{min(restarts, MANIFOLD_RESTARTS) + 1}, {seconds['vertex']:.1f} s.",
    ]
    return [
        "phi % in the full space (the paper's Table 3)\n",
        _columns(groups, "full space"),
        "",
        f"phi % on random manifolds, p = {SUBSPACE}, {TRIALS} each (the paper's Table 4)\n",
        _columns(groups, "manifold"),
        "",
        bullets(sentences),
    ]


def _columns(groups: Mapping[str, Sequence[Cell]], space: str) -> Table:
    heads = [f"{cell.epsilon:g}\n{cell.method}" for cell in next(iter(groups.values())) if cell.space == space]
    table = new_table("minimizers", *heads)
    for group, cells in groups.items():
        count = len(cells[0].values)
        label = f"{group} ({count})" if count > 1 else group
        table.add_row(escape(label), *(str(cell) for cell in cells if cell.space == space))
    return table


def _note(found: Sharpness, what: str, who: dict[str, str], results: list[dict[str, Any]], notes: list[str]) -> None:
    """Keep a result, and what is to be said of it."""
    results.append({**who, **found.to_dict()})
    notes.append(f"{what}: {found.status}")
    if found.searched is not None:
        part = found.searched
        notes.append(f"{what}: searched on {part['samples']:,} samples, where phi is {part['value']:.5g} %")


def _finish(
    table: Table, results: list[dict[str, Any]], notes: list[str], out: Path, as_json: bool, *, manifold: bool
) -> None:
    from lbgap.system import files

    path = fresh(out, "sharpness").with_suffix(".json")
    files.write_json(path, results)
    settings = results[0]["settings"]
    kept = [*KEPT, *(("subspace", "trials", "distribution") if manifold else ())]
    kept = [name for name in kept if name != "n" or len({result["settings"]["n"] for result in results}) == 1]
    said = bullets([*notes, ", ".join(f"{key} {settings[key]}" for key in kept)])
    show(as_json, {"results": results}, BOUNDS, table, "", said, "", _written([path]))


def _written(paths: list[Path]) -> str:
    return f"Written: {', '.join(escape(str(path)) for path in paths)}"
