"""What ``lbgap sharpness`` shows and writes: single values, curves, layers, the paper's tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from lbgap import Objective, Sharpness, fast_sharpness, layer_sharpness, plotting, sharpness_curve
from lbgap.cli import _bullets, _fresh, _show, _table, errors
from lbgap.experiments.tables import MANIFOLD_RESTARTS, RESTARTS, SUBSPACE, TRIALS, Tables, paper_tables
from lbgap.system import files

Objectives = Iterator[tuple[str, str, Objective]]
BOUNDS = "Sharpness phi: certified lower bounds\n"
KEPT = ("method", "region", "batch_norm", "precision", "n", "samples", "device", "backend")


def each(objectives: Objectives, epsilons: list[float], search: dict[str, Any], out: Path, as_json: bool) -> None:
    """One value for each minimizer and epsilon."""
    table = _table("minimizer", "epsilon", "loss", "largest\nloss", "phi %", "evaluations", "time s")
    results: list[dict[str, Any]] = []
    notes: list[str] = []
    for name, data, objective in objectives:
        for size in epsilons:
            found = fast_sharpness(objective, epsilon=size, progress=errors.is_terminal, **search)
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


def curves(objectives: Objectives, epsilons: list[float], search: dict[str, Any], out: Path, as_json: bool) -> None:
    """Draw phi against epsilon, one curve a minimizer, and the figure."""
    table = _table("minimizer", *(f"{size:g}" for size in epsilons), "evaluations", "time s")
    results, notes, drawn = [], [], {}
    for name, data, objective in objectives:
        found = sharpness_curve(objective, epsilons=epsilons, progress=errors.is_terminal, **search)
        drawn[name] = found
        results.append({"minimizer": name, "data": data, **found.to_dict()})
        notes.append(f"{name}, epsilon {epsilons[-1]:g}: {found.results[-1].status}")
        values = (f"{value:.4g}" for value in found.values)
        table.add_row(escape(name), *values, f"{found.evaluations:.4g}", f"{found.seconds:.2f}")
    stem = _fresh(out, "sharpness")
    files.write_json(stem.with_suffix(".json"), results)
    paths = [stem.with_suffix(".json"), *plotting.save(plotting.plot_curves(drawn), stem)]
    title = "Sharpness phi in percent at each epsilon: certified lower bounds\n"
    _show(as_json, {"results": results}, title, table, "", _bullets(notes), "", _written(paths))


def layers(objectives: Objectives, epsilons: list[float], search: dict[str, Any], out: Path, as_json: bool) -> None:
    """Each layer's box alone."""
    table = _table("minimizer", "layer", "parameters", "epsilon", "phi %", "evaluations", "time s")
    results: list[dict[str, Any]] = []
    notes: list[str] = []
    for name, data, objective in objectives:
        for size in epsilons:
            for layer, found in layer_sharpness(objective, epsilon=size, progress=errors.is_terminal, **search).items():
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


def tables(
    objectives: Objectives,
    groups: dict[str, str],
    epsilons: list[float],
    restarts: int | None,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Tables 3 and 4 of the paper, minimizers of one batch size together."""
    epsilons = list(dict.fromkeys(epsilons))
    named = ((name, groups.get(name, name), objective) for name, _, objective in objectives)

    def told(step: str) -> None:
        if errors.is_terminal:
            errors.print(f"[dim]{escape(step)}[/]", highlight=False)

    restarts = RESTARTS if restarts is None else restarts
    found = paper_tables(named, epsilons=epsilons, restarts=restarts, seed=seed, told=told)
    path = _fresh(out, "sharpness").with_suffix(".json")
    files.write_json(path, found.to_dict())
    many = any(len(row[0].values) > 1 for row in found.groups.values())
    deviation = ["Where a row has several minimizers: mean ± standard deviation over them."] if many else []
    _show(
        as_json,
        found.to_dict(),
        "phi % in the full space (the paper's Table 3)\n",
        _columns(found, "full space", epsilons),
        "",
        f"phi % on random manifolds, p = {SUBSPACE}, {TRIALS} each (the paper's Table 4)\n",
        _columns(found, "manifold", epsilons),
        "",
        _bullets(
            [
                *deviation,
                "Every phi is a certified lower bound: of two for the same minimizers the larger is the truer.",
                f"recipe: the paper's, 10 iterations of SciPy's L-BFGS-B, {found.seconds['recipe']:.1f} s in all; "
                f"vertex: vertex ascent from {restarts + 1} starts, on manifolds from "
                f"{min(restarts, MANIFOLD_RESTARTS) + 1}, {found.seconds['vertex']:.1f} s.",
            ]
        ),
        "",
        _written([path]),
    )


def _columns(found: Tables, space: str, epsilons: list[float]) -> Table:
    table = _table("minimizers", *(f"{size:g}\n{method}" for size in epsilons for method in ("recipe", "vertex")))
    for group, cells in found.groups.items():
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
    path = _fresh(out, "sharpness").with_suffix(".json")
    files.write_json(path, results)
    settings = results[0]["settings"]
    kept = [*KEPT, *(("subspace", "trials", "distribution") if manifold else ())]
    kept = [name for name in kept if name != "n" or len({result["settings"]["n"] for result in results}) == 1]
    said = _bullets([*notes, ", ".join(f"{key} {settings[key]}" for key in kept)])
    _show(as_json, {"results": results}, BOUNDS, table, "", said, "", _written([path]))


def _written(paths: list[Path]) -> str:
    return f"Written: {', '.join(escape(str(path)) for path in paths)}"
