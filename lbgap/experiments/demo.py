"""The demonstration: small- and large-batch training from one start, and how sharp the two minimizers are."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from lbgap.checks import whole
from lbgap.experiments.paper.parts import RUNS, trainings
from lbgap.experiments.paper.plan import ROWS, Plan, Training, load
from lbgap.experiments.paper.remedies import batches_in
from lbgap.experiments.paper.run import claim, train_all
from lbgap.experiments.tables import EPSILONS, RESTARTS, Tables, paper_tables
from lbgap.landscape.line import Line, line
from lbgap.objective import Objective
from lbgap.plotting import plot_bars, plot_line, save
from lbgap.plotting.page import embedded, render
from lbgap.result import plain, versions
from lbgap.system import files
from lbgap.training import Run

ROW = replace(ROWS["MLP-MNIST1D"], initialisation="torch")  # which starts as PyTorch does
UPDATES = 5_000
TIE = 1e-3  # two methods whose phi differ by a smaller share found the same maximum
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

    @property
    def best(self) -> float:
        """The larger of both, which is the truer one: each is a lower bound."""
        return max(self.vertex, self.recipe)


@dataclass(frozen=True)
class Row:
    """One minimizer.

    Attributes:
        regime: ``"SB"`` or ``"LB"``.
        seed: Of the start and of the order of samples.
        batch_size: Samples in a batch.
        updates: ADAM updates made.
        train_loss: Mean cross-entropy over the training data.
        train_accuracy: In percent.
        test_loss: Mean cross-entropy over the test data; NaN where it is not finite.
        test_accuracy: In percent.
        distance: Euclidean distance from the start.
        train_seconds: Time spent training.
        phi: The sharpnesses, one an epsilon.
    """

    regime: str
    seed: int
    batch_size: int
    updates: int
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

    Both regimes make the same number of ADAM updates, in processes of their own: a script that calls this needs the
    usual ``if __name__ == "__main__"``. The folder gets the runs, ``line`` and ``sharpness`` as PNG and
    SVG, ``result.json`` and ``report.html``. A demonstration that was interrupted goes on where it was.

    Args:
        out: The folder.
        seeds: How many starts.
        updates: ADAM updates of each training, rounded to whole epochs and at least one.
        seed: The first seed.
        step: Called with what is about to be done, before each step.

    Returns:
        The rows, the findings and where the files are.

    Raises:
        ValueError: A number is out of range, or the folder holds a demonstration with other settings.
        FileExistsError: The folder holds something else.
        NotADirectoryError: It is a file.
        OSError: It cannot be written.
    """
    began = time.perf_counter()
    seeds, updates, seed = whole("seeds", seeds, 1), whole("updates", updates, 1), whole("seed", seed, 0)
    folder, say = Path(out), step or (lambda _: None)
    plan = Plan((ROW,), seeds, updates, EPSILONS, RESTARTS, batches=(), warm=0, first_seed=seed, remedies=())
    works = [
        replace(one, folder=folder / RUNS / f"{one.regime.lower()}-seed{one.seed}", keep=0)
        for one in trainings(plan, folder)
    ]
    _begin(folder, plan)
    # Each in a group of its own: products for several starts at once round differently.
    train_all([[one] for one in works], torch.get_num_threads(), step=lambda what, left: say(what) if left else None)
    data = load(ROW, plan)
    runs = [one.run(data) for one in works]
    minimizers = [
        (f"sharpness of {one.regime}, seed {one.seed}", one.regime, Objective(run.model, data.train))
        for one, run in zip(works, runs, strict=True)
    ]
    tables = paper_tables(minimizers, epsilons=EPSILONS, restarts=RESTARTS, spaces=("full space",), report=say)
    rows = [_row(one, run, name, tables) for one, run, (name, *_) in zip(works, runs, minimizers, strict=True)]
    say("line between the first two minimizers")
    path = line(runs[0].model, runs[1].model, data.train, test_data=data.test, batch_norm="batch")
    settings = {
        "data": data.name,
        "network": {key: value for key, value in works[0].network(data).items() if key != "seed"},
        "updates": updates,
        "epsilons": EPSILONS,
        "restarts": RESTARTS,
        "seeds": list(plan.seeds),
        "objective": minimizers[-1][2].settings(),
        "versions": versions(),
    }
    result = Demo(tuple(rows), tuple(_findings(rows)), plain(settings), folder, time.perf_counter() - began)
    _write(result, path)
    return result


def _begin(folder: Path, plan: Plan) -> None:
    """Take a new folder, or go on with one that was begun with the same settings."""
    settings = {key: value for key, value in plain(plan.to_dict()).items() if key != "trials"}  # which may grow
    if claim(folder, MARK, "demonstration") and files.read_json(folder / MARK) != settings:
        raise ValueError(f"{folder} holds a demonstration with other settings: choose another folder with --out")
    files.write_json(folder / MARK, settings)


def _row(training: Training, run: Run, name: str, tables: Tables) -> Row:
    last = run.metrics[run.epoch - 1]
    kept = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "distance")
    values = {key: math.nan if last[key] is None else last[key] for key in kept}
    updates = run.epoch * batches_in(run.config["data"]["samples"], training.batch)
    values |= {"train_seconds": run.seconds}
    found = {(method, f.settings["epsilon"]): f for which, _, _, method, f in tables.results if which == name}
    phi = []
    for epsilon in EPSILONS:
        ours, theirs = found["vertex", epsilon], found["recipe", epsilon]
        phi.append(Phi(epsilon, ours.value, ours.seconds, theirs.value, theirs.seconds, theirs.status))
    return Row(training.regime, training.seed, training.batch, updates, **values, phi=tuple(phi))


def _findings(rows: Sequence[Row]) -> Iterator[str]:
    """Say what the numbers say, also where it is not what the paper says."""
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    starts = f"{len(pairs)} start{'s' if len(pairs) > 1 else ''}"
    for index, epsilon in enumerate(phi.epsilon for phi in rows[0].phi):
        found = [(sb.phi[index], lb.phi[index]) for sb, lb in pairs]
        orders = [_order(sb.best, lb.best) for sb, lb in found]
        small, large = (statistics.median(pair[side].best for pair in found) for side in (0, 1))
        ratio = f", {large / small:.3g} times" if small > 0 else ""
        yield (
            f"epsilon {epsilon:g}: of {starts}, the LB minimizer is the sharper one from {orders.count(1)} and the SB "
            f"one from {orders.count(-1)}; median phi at least {large:.4g} % (LB) against {small:.4g} % (SB){ratio}."
        )
        both = [row.phi[index] for row in rows]
        lower = sum(phi.recipe < phi.vertex * (1 - TIE) for phi in both)
        higher = sum(phi.vertex < phi.recipe * (1 - TIE) for phi in both)
        claims = [_order(sb.recipe, lb.recipe) for sb, lb in found]
        opposite = sum(claim * order < 0 for claim, order in zip(claims, orders, strict=True))
        equal = sum(claim == 0 != order for claim, order in zip(claims, orders, strict=True))
        yield (
            f"epsilon {epsilon:g}: of {len(rows)} minimizers, the paper's recipe finds a smaller maximum than vertex "
            f"ascent for {lower}, a larger one for {higher}, and no rise at all for "
            f"{sum(phi.recipe == 0 for phi in both)}. Of {starts}, it orders SB and LB the other way round from "
            f"{opposite} and calls them equal from {equal}."
        )
    accuracies = [_order(sb.test_accuracy, lb.test_accuracy) for sb, lb in pairs]
    small, large = (statistics.mean(pair[side].test_accuracy for pair in pairs) for side in (0, 1))
    yield (
        f"Test accuracy: {small:.2f} % (SB) against {large:.2f} % (LB) in the mean; of {starts}, SB is better from "
        f"{accuracies.count(-1)} and LB from {accuracies.count(1)}."
    )
    small, large = (statistics.median(pair[side].distance for pair in pairs) for side in (0, 1))
    yield f"Distance from the start: {small:.3g} (SB) against {large:.3g} (LB) in the median."
    ours = sum(phi.vertex_seconds for row in rows for phi in row.phi)
    theirs = sum(phi.recipe_seconds for row in rows for phi in row.phi)
    yield (
        f"Time for all sharpnesses: {ours:.1f} s by vertex ascent from {RESTARTS + 1} starts each, {theirs:.1f} s by "
        "the paper's recipe from one."
    )


def _order(small: float, large: float) -> int:
    """1 if the LB value is larger, -1 if the SB value is, 0 if neither, as with NaN."""
    return (large > small) - (large < small)


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
    files.write_json(result.folder / "line.json", path.to_dict())
    files.write_json(result.folder / "result.json", result.to_dict())
    files.write_bytes(result.folder / "report.html", demo_page(result, figures).encode())


def demo_page(result: Demo, figures: Mapping[str, Figure]) -> str:
    """Render the demonstration.

    Args:
        result: What it found.
        figures: ``"sharpness"`` and ``"line"``.

    Returns:
        HTML without any reference outside itself.
    """
    settings = json.dumps(result.settings, indent=2)
    return render("demo.html", result=result, images=embedded(figures), settings=settings)
