"""The demonstration: small- and large-batch training from one start, and how sharp the two minimizers are."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from lbgap import networks
from lbgap.checks import whole
from lbgap.datasets import Data, mnist1d
from lbgap.landscape.line import Line, line
from lbgap.measures.sharpness import Sharpness, fast_sharpness
from lbgap.objective import Objective
from lbgap.plotting import plot_bars, plot_line, save
from lbgap.plotting.page import embedded, render
from lbgap.result import plain, versions
from lbgap.system import files
from lbgap.system.processes import in_processes
from lbgap.training import Run, train

EPSILONS = (1e-3, 5e-4)
HIDDEN = (128, 128, 128, 128)
SMALL_BATCH, LARGE_SHARE = 32, 0.1
UPDATES = 5_000
RESTARTS = 10  # one targeted start a class
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
    folder = Path(out)
    data = mnist1d()
    assert data.test is not None
    network = {"name": "mlp", "inputs": 40, "hidden": list(HIDDEN), "outputs": data.classes, "batch_norm": True}
    settings = {
        "data": data.name,
        "network": network,
        "updates": updates,
        "epsilons": EPSILONS,
        "restarts": RESTARTS,
    }
    _claim(folder, plain({**settings, "first_seed": seed}))
    say = step or (lambda _: None)
    runs = _train_all(folder, data, network, updates, range(seed, seed + seeds), say)
    rows, measured = [], {}
    for training, run in runs:
        phi, objective = _measure(run, data, f"{training.regime}, seed {training.seed}", say)
        rows.append(_row(training, run, phi))
        measured = objective.settings()
    say("line between the first two minimizers")
    path = line(runs[0][1].model, runs[1][1].model, data.train, test_data=data.test)
    findings = tuple(_findings(rows))
    settings |= {"seeds": list(range(seed, seed + seeds)), "objective": measured, "versions": versions()}
    result = Demo(tuple(rows), findings, plain(settings), folder, time.perf_counter() - began)
    _write(result, path)
    return result


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Take a new folder, or go on with one that was begun with the same settings."""
    mark = folder / MARK
    if mark.exists():
        found = files.read_json(mark)
        if found != settings:
            raise ValueError(f"{folder} holds a demonstration with other settings: choose another folder with --out")
        return
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: choose another folder with --out")
    if folder.exists() and not all(map(files.is_temporary, folder.iterdir())):
        raise FileExistsError(f"{folder} exists and holds no demonstration: choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(mark, settings)


@dataclass(frozen=True)
class _Training:
    """What one worker process needs to know."""

    regime: str
    seed: int
    batch: int
    updates: int
    network: dict[str, Any]
    folder: Path

    def run(self) -> Run:
        """Train, go on with an unfinished run, or read a finished one."""
        data = mnist1d()
        spec = {**self.network, "seed": self.seed}
        return train(
            networks.build(spec),
            data.train,
            test_data=data.test,
            batch_size=self.batch,
            epochs=max(1, round(self.updates * self.batch / len(data.train.inputs))),
            optimizer_options={"fused": True},
            seed=self.seed,
            out=self.folder,
            resume=True,
            config={"network": spec, "data": {"name": data.name}},
        )


def _work(training: _Training) -> None:
    training.run()


def _train_all(
    folder: Path, data: Data, network: dict[str, Any], updates: int, seeds: range, say: Step
) -> list[tuple[_Training, Run]]:
    """Train both regimes from every seed, several at a time, each in a process of its own."""
    large = round(LARGE_SHARE * len(data.train.inputs))
    trainings = [
        _Training(regime, seed, batch, updates, network, folder / "runs" / f"{regime.lower()}-seed{seed}")
        for seed in seeds
        for regime, batch in (("SB", SMALL_BATCH), ("LB", large))
    ]
    with in_processes(_work, trainings, torch.get_num_threads()) as finished:
        for training in trainings:
            say(f"training {training.regime}, batch {training.batch}, seed {training.seed}")
            next(finished)
    return [(training, training.run()) for training in trainings]


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


def _row(training: _Training, run: Run, phi: tuple[Phi, ...]) -> Row:
    last = run.metrics[run.epoch - 1]
    kept = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "distance")
    values = {name: math.nan if last[name] is None else last[name] for name in kept}
    updates = run.epoch * math.ceil(run.config["data"]["samples"] / training.batch)
    return Row(training.regime, training.seed, training.batch, updates, **values, train_seconds=run.seconds, phi=phi)


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
