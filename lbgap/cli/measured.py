"""What the commands ``lbgap measure NAME`` share: their common options, their work, their tables and figures."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    ModelPath,
    Out,
    Parameters,
    Precision,
    Runs,
    Weights,
)
from lbgap.cli.show import bullets, errors, escape, fresh, new_table, show, writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Column = tuple[str, str]  # its heading, and the attribute of a result, or one of its details, that stands below
Row = dict[str, str]  # headings and cells

HIDDEN = {"measure", "versions", "notes", "threads", "directions", "batch_size"}  # settings that only the file has


@dataclass(frozen=True)
class Command:
    """One command ``lbgap measure NAME``.

    Attributes:
        name: NAME, also of the file.
        function: The function in ``lbgap`` that measures.
        declared: A function whose parameters are the options of its own, and whose docstring is the help.
        rows: Rows of the table for one result.
        split: Parts of a result, each with a name and a record of its own.
        draw: Figures of all results by minimizer.
        shared: The option that several minimizers must have in common; None without.
    """

    name: str
    function: str
    declared: Callable[..., None]
    rows: Callable[[Any], list[Row]]
    split: Callable[[Any], list[tuple[dict[str, Any], Any]]]
    draw: Callable[[dict[str, Any]], Iterator[Figure]] | None
    shared: str | None

    def own(self) -> list[inspect.Parameter]:
        """The options of its own."""
        return list(inspect.signature(self.declared, eval_str=True).parameters.values())

    def call(self) -> Callable[..., None]:
        """What typer calls: a function of the options of its own and those of all measures."""
        own = self.own()
        first, *shared = list(inspect.signature(_run, eval_str=True).parameters.values())[2:]

        def call(**given: Any) -> None:
            _run(self, {option.name: given.pop(option.name) for option in own}, **given)

        merged = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (first, *own, *shared)]
        call.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
        call.__annotations__ = {each.name: each.annotation for each in merged}
        call.__doc__ = f"{inspect.getdoc(self.declared)}\n\n{self._more()}"
        return call

    def _more(self) -> str:
        """What the help of every measure says."""
        written = f"{self.name}.json{'' if self.draw is None else ', .png and .svg'}"
        return (
            "Give run folders, or a model of your own by --model, --weights and --data.\n"
            f"Writes {written} into --out; earlier results are kept,\n"
            f"the next one is {self.name}-2.json."
        )


MEASURES: dict[str, Command] = {}


def measure(
    function: str,
    *columns: Column,
    rows: Callable[[Any], list[Row]] | None = None,
    split: Callable[[Any], list[tuple[dict[str, Any], Any]]] = lambda found: [({}, found)],
    draw: Callable[[dict[str, Any]], Iterator[Figure]] | None = None,
    shared: str | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter a function that declares the options of a measure in :data:`MEASURES`.

    Args:
        function: The function in ``lbgap`` that measures.
        *columns: Of the table, beside the loss, the evaluations and the time; one row a result.
        rows: All rows of a result, where these columns are not enough.
        split: As of :class:`Command`; by default a result is its only part.
        draw: As of :class:`Command`.
        shared: As of :class:`Command`.
    """

    def enter(declared: Callable[..., None]) -> Callable[..., None]:
        name = declared.__name__.replace("_", "-")
        shown = rows or (lambda found: [_row(found, columns)])
        MEASURES[name] = Command(name, function, declared, shown, split, draw, shared)
        return declared

    return enter


def _run(
    measure: Command,
    own: dict[str, Any],
    runs: Runs = None,
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
    device: Device = None,
    out: Out = Path("."),
    as_json: AsJson = False,
) -> None:
    """Measure each minimizer, write the results and print them."""
    import lbgap

    minimizers = load_minimizers(runs, model, weights, data, data_dir, download)
    if len(minimizers) > 1 and measure.shared is not None and own[measure.shared] is None:
        raise ValueError(f"several minimizers are compared at one {measure.shared}: give --{measure.shared}")
    writable(out)
    options: dict[str, Any] = {
        "parameters": parameters,
        "batch_norm": batch_norm,
        "precision": precision,
        "batch_size": batch_size,
        "device": device,
        "backend": backend,
    }
    function = getattr(lbgap, measure.function)
    keywords = dict(own)
    if {"progress", "search"} & inspect.signature(function).parameters.keys():
        keywords["progress"] = errors().is_terminal
    found = []
    for label, module, samples in minimizers:
        objective = lbgap.Objective(module, samples.train, loss=samples.loss, **options)
        result = function(objective, **keywords)
        loss = result.base_loss if hasattr(result, "base_loss") else float(objective.loss(objective.theta))
        found.append((label, samples.name, loss, result))
    _report(measure, found, out, as_json)


def _report(measure: Command, found: list[tuple[str, str, float, Any]], out: Path, as_json: bool) -> None:
    """Write the results and the figures, and print the table."""
    from lbgap.system import files

    records, notes, rows = [], [], []
    for label, data, loss, result in found:
        for part, one in measure.split(result):
            records.append({"minimizer": label, "data": data, **part, **one.to_dict()})
            where = ", ".join([label, *(f"{name} {value}" for name, value in part.items())])
            notes += [f"{where}: {one.status}", *(f"{where}: {note}" for note in one.settings["notes"])]
            cells = {name: escape(str(value)) for name, value in part.items()}
            rows += [{"minimizer": escape(label), **cells, "loss": f"{loss:.4g}", **row} for row in measure.rows(one)]
    stem = fresh(out, measure.name)
    paths = [stem.with_suffix(".json")]
    files.write_json(paths[0], records)
    if measure.draw is not None:
        from lbgap import plotting

        figures = measure.draw(by_name([(label, result) for label, _, _, result in found]))
        for number, figure in enumerate(figures, 1):
            paths += plotting.save(figure, stem if number == 1 else stem.with_name(f"{stem.name}-minimizer{number}"))
    table = new_table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    written = f"Written: {', '.join(escape(str(path)) for path in paths)}"
    said = bullets([*notes, _common([record["settings"] for record in records])])
    show(as_json, {"results": records}, f"{measure.function}\n", table, "", said, "", written)


def _common(settings: list[dict[str, Any]]) -> str:
    """The settings that are numbers or words, and the same for all results."""
    first, *others = settings
    plain = {key: value for key, value in first.items() if key not in HIDDEN and isinstance(value, str | int | float)}
    return ", ".join(f"{key} {value}" for key, value in plain.items() if all(each[key] == value for each in others))


def number(value: float, digits: int = 4) -> str:
    """A number in a table; NaN, which says that there is none, is a dash."""
    return "-" if math.isnan(value) else f"{value:.{digits}g}"


def _cost(found: Any) -> Row:
    return {"evaluations": number(found.evaluations), "time s": f"{found.seconds:.2f}"}


def _row(found: Any, columns: tuple[Column, ...]) -> Row:
    values = {head: getattr(found, name) if hasattr(found, name) else found.details[name] for head, name in columns}
    return {**{head: number(value, 5) for head, value in values.items()}, **_cost(found)}


def of_diagonal(found: Any) -> list[Row]:
    """The sum of a diagonal, its extremes and the share of negative entries."""
    values = found.values.double()
    row = {"sum": values.sum(), "least": values.min(), "largest": values.max()}
    negative = {"negative %": number(100 * float((values < 0).double().mean()))}
    error = {"relative\nerror": number(found.relative_error, 2), "time s": f"{found.seconds:.2f}"}
    return [{**{head: number(float(value)) for head, value in row.items()}, **negative, **error}]


def of_pairs(found: Any) -> list[Row]:
    """Each eigenvalue with its residual."""
    pairs = enumerate(zip(found.values, found.residuals, found.converged, strict=True), 1)
    return [
        {
            "number": str(index),
            "eigenvalue": number(value, 6),
            "residual": f"{residual:.1e}",
            "converged": "yes" if converged else "no",
        }
        for index, (value, residual, converged) in pairs
    ]


def of_density(found: Any) -> list[Row]:
    """What a density says of all eigenvalues together."""
    trace, error = found.sum(lambda x: x)
    row = {"trace": trace, "standard\nerror": error, "relative\nerror": found.relative_error}
    return [{**{head: number(value) for head, value in row.items()}, "products": str(found.products), **_cost(found)}]


def of_sides(found: Any) -> list[Row]:
    """Both sides of each direction, at the largest distance."""
    sides = zip(found.names, found.sharpness_ahead, found.sharpness_behind, found.index, strict=True)
    return [
        {
            "direction": escape(name),
            "distance": number(found.distances[-1]),
            "ahead %": number(ahead[-1]),
            "behind %": number(behind[-1]),
            "index": f"{index:+.2f}",
        }
        for name, ahead, behind, index in sides
    ]


def by_layer(found: Any) -> list[tuple[dict[str, Any], Any]]:
    """The sharpness of each layer."""
    return [({"layer": name}, part) for name, part in found.items()]


def by_size(found: Any) -> list[tuple[dict[str, Any], Any]]:
    """The sharpness at each size of the box."""
    return [({"epsilon": size}, part) for size, part in zip(found.epsilons, found.results, strict=True)]


def draw_densities(found: dict[str, Any]) -> Iterator[Figure]:
    """All densities in one figure, smoothed alike."""
    from lbgap import plotting

    common = max(each.resolution for each in found.values())  # or the widths of the curves would be compared
    yield plotting.plot_densities({name: each.at(common) for name, each in found.items()})


def draw_curves(found: dict[str, Any]) -> Iterator[Figure]:
    """All curves in one figure."""
    from lbgap import plotting

    yield plotting.plot_curves(found)


def draw_sides(found: dict[str, Any]) -> Iterator[Figure]:
    """A figure for each minimizer."""
    from lbgap import plotting

    for name, each in found.items():
        yield plotting.plot_asymmetry(each, plotting.plain(name))
