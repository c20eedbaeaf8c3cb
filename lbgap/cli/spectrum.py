"""The command ``lbgap spectrum``: curvature at minimizers, side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lbgap.cli.minimizers import by_name, load_minimizers
from lbgap.cli.options import (
    AsJson,
    Backend,
    BatchNorm,
    BatchSize,
    DataDir,
    DataName,
    Device,
    Download,
    Kind,
    ModelPath,
    Out,
    Parameters,
    Precision,
    Runs,
    Seed,
    Steps,
    Weights,
)
from lbgap.cli.show import bullets, errors, escape, fresh, new_table, show, writable

if TYPE_CHECKING:
    from rich.table import Table

    from lbgap import Asymmetry, Density, Eigenvalues, Objective

SHOWN = 5  # eigenvalues in the table
KEPT = ("kind", "batch_norm", "precision", "n", "samples", "device")


@dataclass
class Spectrum:
    """What is measured at one minimizer, as far as it has been."""

    name: str
    data: str
    objective: Objective
    loss: float
    top: Eigenvalues
    density: Density = field(init=False)
    sides: Asymmetry | None = None


def spectrum(
    runs: Runs = None,
    top: Annotated[int, typer.Option(help="Largest eigenvalues to find one by one.")] = 10,
    threshold: Annotated[
        float | None,
        typer.Option(help="Of a large eigenvalue.", show_default="a hundredth of the largest of all minimizers"),
    ] = None,
    kind: Kind = "hessian",
    tolerance: Annotated[float, typer.Option(help="Residual of an eigenvalue, relative to the largest.")] = 1e-3,
    steps: Steps = 40,
    relative_error: Annotated[float, typer.Option(help="Standard error of the density to stop at.")] = 0.05,
    max_products: Annotated[int, typer.Option(help="At most, for the eigenvalues and for the density.")] = 500,
    asymmetry: Annotated[
        bool, typer.Option("--asymmetry", help="Also measure both sides of eigenvectors and other directions.")
    ] = False,
    parameters: Parameters = "all",
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
    """Show the eigenvalues of the Hessian at minimizers: the largest, how many are large, and the density of all.

    Give run folders, or a model of your own by --model, --weights and --data.
    Writes spectrum.json, .png and .svg into --out (with --asymmetry also a
    figure asymmetry for each minimizer); earlier results are kept, the next
    one is spectrum-2.json.
    """
    from lbgap import Objective, eigenvalues, spectral_density
    from lbgap.measures.hessian.mass import default_threshold

    _judge(top, threshold, kind, tolerance, steps, relative_error, max_products)
    minimizers = load_minimizers(runs, model, weights, data, data_dir, download)
    writable(out)
    options: dict[str, Any] = {
        "parameters": parameters,
        "batch_norm": batch_norm,
        "precision": precision,
        "batch_size": batch_size,
        "device": device,
        "backend": backend,
    }
    progress = errors().is_terminal
    shared: dict[str, Any] = {"kind": kind, "max_products": max_products, "seed": seed, "progress": progress}
    limits: dict[str, Any] = {"steps": steps, "relative_error": relative_error}
    found: list[Spectrum] = []
    for name, module, samples in minimizers:
        objective = Objective(module, samples.train, loss=samples.loss, **options)
        loss = float(objective.loss(objective.theta))
        largest = eigenvalues(objective, k=min(top, max(1, objective.n - 1)), tolerance=tolerance, **shared)
        found.append(Spectrum(name, samples.name, objective, loss, largest))
    # Only now is the threshold known, and with it what the densities must be good for.
    limit = default_threshold([each.top for each in found]) if threshold is None else threshold
    for each in found:
        known = each.top if each.objective.n > 1 else None
        each.density = spectral_density(each.objective, known=known, threshold=limit, **limits, **shared)
        if asymmetry:
            each.sides = _sides(each, [(name, module) for name, module, _ in minimizers], shared)
    _report(found, limit, out, as_json)


def _judge(
    top: int,
    threshold: float | None,
    kind: str,
    tolerance: float,
    steps: int,
    relative_error: float,
    max_products: int,
) -> None:
    """Check all numbers before any run is read."""
    from lbgap.checks import positive, whole
    from lbgap.measures.hessian.call import check_limits

    check_limits(kind, max_products, 0)
    whole("top", top, 1)
    whole("steps", steps, 1)
    positive("tolerance", tolerance, "1e-3")
    positive("relative_error", relative_error, "0.05")
    if threshold is not None:
        positive("threshold", threshold, "0.1")


def _theta(module: Any, objective: Objective) -> Any:
    """A minimizer as a point of the objective's space; None where it has other parameters."""
    import torch

    own = dict(module.named_parameters())
    parts = objective.split(objective.theta)
    if any(name not in own or own[name].shape != part.shape for name, part in parts.items()):
        return None
    return torch.cat([own[name].detach().flatten() for name in parts]).to(objective.theta)


def _sides(each: Spectrum, minimizers: list[tuple[str, Any]], shared: dict[str, Any]) -> Asymmetry:
    """Both sides of the directions to other minimizers, of eigenvectors and of random directions."""
    from lbgap import asymmetry
    from lbgap.measures.asymmetry import oriented

    x = each.objective.theta
    points = {name: _theta(module, each.objective) for name, module in minimizers}
    along = {f"to {name}": y - x for name, y in points.items() if y is not None and not y.equal(x)}
    options = {name: shared[name] for name in ("seed", "progress")}
    top = {f"top {index + 1}": oriented(vector) for index, vector in enumerate(each.top.vectors[:3])}
    return asymmetry(each.objective, directions={**along, **top}, top=0, **options)


def _report(found: list[Spectrum], limit: float, out: Path, as_json: bool) -> None:
    """Write the results and the figures, and print the tables."""
    from lbgap import plotting
    from lbgap.measures.hessian.mass import mass
    from lbgap.system import files

    masses = [mass(each.density, limit) for each in found]
    results = [
        {
            "minimizer": each.name,
            "data": each.data,
            "loss": each.loss,
            "eigenvalues": each.top.to_dict(),
            "mass": amount,
            "density": each.density.to_dict(),
            **({} if each.sides is None else {"asymmetry": each.sides.to_dict()}),
        }
        for each, amount in zip(found, masses, strict=True)
    ]
    stem = fresh(out, "spectrum")
    files.write_json(stem.with_suffix(".json"), results)
    common = max(each.density.resolution for each in found)  # or the widths of the curves would be compared
    densities = by_name([(each.name, each.density.at(common)) for each in found])
    paths = [stem.with_suffix(".json"), *plotting.save(plotting.plot_densities(densities, limit), stem)]
    for each in found:
        if each.sides is not None:
            figure = plotting.plot_asymmetry(each.sides, plotting.plain(each.name))
            paths += plotting.save(figure, fresh(out, "asymmetry"))
    settings = found[0].density.settings
    notes = [f"{each.name}, eigenvalues: {each.top.status}" for each in found]
    notes += [f"{each.name}, density: {each.density.status}" for each in found]
    notes += ["± is one standard error over the probes of the density."]
    if any(each.sides for each in found):
        notes += ["index: mean over all distances, from -1, only behind is steep, to 1, only ahead; the file has each."]
    notes += [", ".join(f"{key} {settings[key]}" for key in KEPT)]
    parts: list[Table | str] = [f"Eigenvalues of the {settings['kind']}, the largest\n", _largest(found), ""]
    parts += [f"Their mass; large are those above {limit:.4g}\n", _masses(found, masses), ""]
    if any(each.sides for each in found):
        parts += ["Both sides of directions: sharpness in percent at the largest distance\n", _both(found), ""]
    written = f"Written: {', '.join(escape(str(path)) for path in paths)}"
    show(as_json, {"threshold": limit, "results": results}, *parts, bullets(notes), "", written)


def _largest(found: list[Spectrum]) -> Table:
    count = min(SHOWN, max(len(each.top.values) for each in found))
    table = new_table("minimizer", "loss", *(str(index + 1) for index in range(count)), "largest\nresidual", "products")
    for each in found:
        values = [f"{value:.4g}" for value in each.top.values[:count]]
        values += ["-"] * (count - len(values))
        residual = f"{max(each.top.residuals):.1e}"
        table.add_row(escape(each.name), f"{each.loss:.3g}", *values, residual, str(each.top.products))
    return table


def _masses(found: list[Spectrum], masses: list[dict[str, float]]) -> Table:
    table = new_table("minimizer", "large", "sum of\nlarge", "trace", "negative\nshare %", "products", "time s")
    for each, amount in zip(found, masses, strict=True):
        table.add_row(
            escape(each.name),
            *(_with_error(amount[name], amount[f"{name}_standard_error"]) for name in ("count", "sum", "trace")),
            _with_error(100 * amount["negative_share"], 100 * amount["negative_share_standard_error"]),
            str(each.density.products),
            f"{each.top.seconds + each.density.seconds:.1f}",
        )
    return table


def _with_error(value: float, error: float) -> str:
    return f"{value:.4g}" + (f" ± {error:.2g}" if error else "")


def _both(found: list[Spectrum]) -> Table:
    table = new_table("minimizer", "direction", "ahead %", "behind %", "index")
    for each in found:
        if each.sides is None:
            continue
        s = each.sides
        for name, index, ahead, behind in zip(s.names, s.index, s.sharpness_ahead, s.sharpness_behind, strict=True):
            table.add_row(escape(each.name), escape(name), f"{ahead[-1]:.4g}", f"{behind[-1]:.4g}", f"{index:+.2f}")
    return table
