"""The demonstration: small- and large-batch training from one start, and how sharp the two minimizers are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lbgap import _files, networks, report
from lbgap._result import plain, versions
from lbgap.datasets import Data, mnist1d
from lbgap.landscape.line import Line, line
from lbgap.objective import Objective
from lbgap.plotting import plot_bars, plot_line, save
from lbgap.sharpness import Sharpness, fast_sharpness
from lbgap.training import Run, train

EPSILONS = (1e-3, 5e-4)
SMALL_BATCH, LARGE_SHARE = 32, 0.1
UPDATES = 5_000
RESTARTS = 10  # one targeted start a class
MARK = "demo.json"

Step = Callable[[str], None]


@dataclass(frozen=True)
class Phi:
    """One sharpness, by both methods.

    Attributes:
        epsilon: Size of the box.
        vertex: phi in percent by vertex ascent.
        vertex_seconds: How long that took.
        recipe: phi in percent by the paper's recipe.
        recipe_seconds: How long that took.
        recipe_status: What the recipe said when it stopped.
    """

    epsilon: float
    vertex: float
    vertex_seconds: float
    recipe: float
    recipe_seconds: float
    recipe_status: str


@dataclass(frozen=True)
class Row:
    """One minimizer.

    Attributes:
        regime: ``"SB"`` or ``"LB"``.
        seed: Of the start and of the order of samples.
        batch_size: Samples in a batch.
        train_loss: Mean cross-entropy over the training data.
        train_accuracy: In percent.
        test_loss: Mean cross-entropy over the test data.
        test_accuracy: In percent.
        distance: Euclidean distance from the start.
        train_seconds: Time spent training.
        phi: The sharpnesses, one an epsilon.
    """

    regime: str
    seed: int
    batch_size: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    distance: float
    train_seconds: float
    phi: tuple[Phi, ...]


@dataclass(frozen=True)
class Demo:
    """What the demonstration found.

    Attributes:
        rows: One a minimizer.
        findings: What the numbers say, in sentences.
        settings: Everything that they depend on.
        folder: Where the files are.
        seconds: Wall-clock time.
    """

    rows: tuple[Row, ...]
    findings: tuple[str, ...]
    settings: dict[str, Any]
    folder: Path
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        rows = [plain(asdict(row)) for row in self.rows]
        return {"findings": list(self.findings), "rows": rows, "settings": self.settings, "seconds": self.seconds}


def steps(seeds: int) -> int:
    """How many steps :func:`demo` reports: two trainings, two measurements each and a line at the end."""
    return seeds * 2 * (1 + 2 * len(EPSILONS)) + 1


def demo(
    out: str | Path = "lbgap-demo",
    *,
    seeds: int = 3,
    updates: int = UPDATES,
    seed: int = 0,
    step: Step | None = None,
) -> Demo:
    """Train small- and large-batch from the same starts on MNIST-1D and measure both minimizers.

    Both regimes make the same number of ADAM updates. The folder gets the runs, ``line`` and ``sharpness`` as PNG and
    SVG, ``result.json`` and ``report.html``. A demonstration that was interrupted goes on where it was.

    Args:
        out: The folder.
        seeds: How many starts.
        updates: ADAM updates of each training.
        seed: The first seed.
        step: Called with what is about to be done, before each step.

    Returns:
        The rows, the findings and where the files are.

    Raises:
        ValueError: A number is out of range, or the folder holds a demonstration with other settings.
        FileExistsError: The folder holds something else.
        OSError: It cannot be written.
    """
    began = time.perf_counter()
    for name, value, least in (("seeds", seeds, 1), ("updates", updates, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    folder = Path(out)
    data = mnist1d()
    assert data.test is not None
    network = {"name": "mlp", "inputs": 40, "hidden": [128] * 4, "outputs": data.classes, "batch_norm": True}
    settings = {
        "data": data.name,
        "network": network,
        "updates": updates,
        "epsilons": EPSILONS,
        "restarts": RESTARTS,
    }
    _claim(folder, plain({**settings, "first_seed": seed}))
    say = step or (lambda _: None)
    runs = list(_train_all(folder, data, network, updates, range(seed, seed + seeds), say))
    rows, measured = [], {}
    for regime, number, run in runs:
        phi, objective = _measure(run, data, f"{regime}, seed {number}", say)
        rows.append(_row(regime, number, run, phi))
        measured = objective.settings()
    say("line between the first two minimizers")
    path = line(runs[0][2].model, runs[1][2].model, data.train, test_data=data.test)
    findings = tuple(_findings(rows))
    settings |= {"seeds": list(range(seed, seed + seeds)), "objective": measured, "versions": versions()}
    result = Demo(tuple(rows), findings, plain(settings), folder, time.perf_counter() - began)
    _write(result, path)
    return result


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Take a new folder, or go on with one that was begun with the same settings."""
    mark = folder / MARK
    if mark.exists():
        found = _files.read_json(mark)
        if found != settings:
            raise ValueError(f"{folder} holds a demonstration with other settings: choose another folder with --out")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and holds no demonstration: choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    _files.write_json(mark, settings)


def _train_all(
    folder: Path, data: Data, network: dict[str, Any], updates: int, seeds: range, say: Step
) -> Iterator[tuple[str, int, Run]]:
    """Train both regimes from every seed; runs that are finished are read, unfinished ones go on."""
    samples = len(data.train.inputs)
    for seed in seeds:
        spec = {**network, "seed": seed}
        model = networks.build(spec)
        for regime, batch in (("SB", SMALL_BATCH), ("LB", round(LARGE_SHARE * samples))):
            say(f"training {regime}, batch {batch}, seed {seed}")
            run = train(
                model,
                data.train,
                test_data=data.test,
                batch_size=batch,
                epochs=max(1, round(updates * batch / samples)),
                optimizer_options={"fused": True},
                seed=seed,
                out=folder / "runs" / f"{regime.lower()}-seed{seed}",
                resume=True,
                config={"network": spec, "data": {"name": data.name}},
            )
            yield regime, seed, run


def _measure(run: Run, data: Data, which: str, say: Step) -> tuple[tuple[Phi, ...], Objective]:
    objective = Objective(run.model, data.train)
    found = []
    for epsilon in EPSILONS:
        say(f"sharpness of {which}, epsilon {epsilon:g}: vertex ascent")
        ours = fast_sharpness(objective, epsilon=epsilon, restarts=RESTARTS)
        say(f"sharpness of {which}, epsilon {epsilon:g}: the paper's recipe")
        theirs: Sharpness = fast_sharpness(objective, epsilon=epsilon, method="scipy")
        found.append(Phi(epsilon, ours.value, ours.seconds, theirs.value, theirs.seconds, theirs.status))
    return tuple(found), objective


def _row(regime: str, seed: int, run: Run, phi: tuple[Phi, ...]) -> Row:
    last = run.metrics[run.epoch - 1]
    kept = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "distance")
    values = {name: last[name] for name in kept}
    batch = run.config["batch_size"]
    return Row(regime, seed, batch, **values, train_seconds=run.seconds, phi=phi)


def _findings(rows: list[Row]) -> Iterator[str]:
    """Say what the numbers say, also where it is not what the paper says."""
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    for index, epsilon in enumerate(EPSILONS):
        sharper = sum(lb.phi[index].vertex > sb.phi[index].vertex for sb, lb in pairs)
        small = statistics.median(sb.phi[index].vertex for sb, _ in pairs)
        large = statistics.median(lb.phi[index].vertex for _, lb in pairs)
        ratio = f", {large / small:.3g} times" if small > 0 else ""
        yield (
            f"epsilon {epsilon:g}: the LB minimizer is sharper than the SB one from {sharper} of {len(pairs)} starts; "
            f"median phi at least {large:.4g} % against {small:.4g} %{ratio}."
        )
        wrong = sum(
            (lb.phi[index].recipe > sb.phi[index].recipe) != (lb.phi[index].vertex > sb.phi[index].vertex)
            for sb, lb in pairs
        )
        stuck = sum(row.phi[index].recipe == 0 for row in rows)
        lower = sum(row.phi[index].recipe < 0.999 * row.phi[index].vertex for row in rows)
        higher = sum(0.999 * row.phi[index].recipe > row.phi[index].vertex for row in rows)
        yield (
            f"epsilon {epsilon:g}: the paper's recipe found a smaller maximum for {lower} of {len(rows)} minimizers "
            f"and a larger one for {higher}; it never moved for {stuck}. It orders SB and LB the other way round "
            f"from {wrong} of {len(pairs)} starts."
        )
    better = sum(sb.test_accuracy > lb.test_accuracy for sb, lb in pairs)
    small = statistics.mean(sb.test_accuracy for sb, _ in pairs)
    large = statistics.mean(lb.test_accuracy for _, lb in pairs)
    yield (
        f"Test accuracy: {small:.2f} % for SB against {large:.2f} % for LB in the mean; SB is better from {better} of "
        f"{len(pairs)} starts."
    )
    distance = statistics.median(sb.distance / lb.distance for sb, lb in pairs)
    yield f"The SB minimizers lie {distance:.2f} times as far from the start as the LB ones (median)."
    ours = sum(phi.vertex_seconds for row in rows for phi in row.phi)
    theirs = sum(phi.recipe_seconds for row in rows for phi in row.phi)
    yield (
        f"All sharpnesses together took {ours:.1f} s by vertex ascent from {RESTARTS + 1} starts, {theirs:.1f} s by "
        "the recipe from one."
    )


def _write(result: Demo, path: Line) -> None:
    """Write figures, result and report."""
    groups = [f"{regime}, $\\epsilon$ = {epsilon:g}" for epsilon in EPSILONS for regime in ("SB", "LB")]
    bars = {
        kind: [
            [getattr(row.phi[index], name) for row in result.rows if row.regime == regime]
            for index in range(len(EPSILONS))
            for regime in ("SB", "LB")
        ]
        for kind, name in (("vertex ascent", "vertex"), ("the paper's recipe", "recipe"))
    }
    figures = {
        "sharpness": plot_bars(
            groups, bars, r"$\phi$ in %, lower bound", "Sharpness: bars are medians, dots are seeds"
        ),
        "line": plot_line(path, f"From the SB to the LB minimizer, seed {result.rows[0].seed}"),
    }
    for name, figure in figures.items():
        save(figure, result.folder / name)
    _files.write_json(result.folder / "line.json", path.to_dict())
    _files.write_json(result.folder / "result.json", result.to_dict())
    _files.write_bytes(result.folder / "report.html", report.demo_page(result, figures).encode())
