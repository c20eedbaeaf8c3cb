"""What is measured to repeat the paper: each part is a file that is written once, from trained networks alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lbgap.experiments.paper.plan import Plan, Row, Training, batches_of, epochs_of, load
from lbgap.experiments.paper.remedies import (
    at_once,
    batches_in,
    begins_small,
    epochs_within,
    filled,
    lacking,
    name_of,
)
from lbgap.experiments.tables import paper_tables
from lbgap.landscape import curve, line
from lbgap.measures import asymmetry
from lbgap.measures.hessian.density import spectral_density
from lbgap.measures.hessian.eigenvalues import eigenvalues
from lbgap.measures.hessian.mass import positive_mass
from lbgap.measures.sharpness import fast_sharpness
from lbgap.objective import Objective
from lbgap.problem.samples import Data
from lbgap.result import plain, versions
from lbgap.system import files
from lbgap.training import read_run
from lbgap.training.load import load_model
from lbgap.training.remedies.choose import parse_remedy
from lbgap.training.run import iterate_path, kept_iterates
from lbgap.weights import load_weights

RUNS, PARTS = "runs", "parts"
WAY_RESTARTS = 3  # of the many sharpnesses along a training
EIGENVALUES = 5
ON_THE_WAY = 8  # iterates of a training that are measured


@dataclass(frozen=True)
class Part:
    """One measurement: the piece of work that a process takes.

    Attributes:
        kind: A key of :data:`KINDS`.
        row: Network and data.
        plan: What it belongs to.
        folder: Of the whole.
        regime: ``"SB"`` or ``"LB"``, where the part is about one of them.
        seed: Of the trial.
        number: A batch size, or an epoch, where the part is one of several.
        remedy: Its short form, perhaps with gaps, where the part is about one.
    """

    kind: str
    row: Row
    plan: Plan
    folder: Path
    regime: str = ""
    seed: int = 0
    number: int = 0
    remedy: str = ""

    @property
    def path(self) -> Path:
        """Where the result is."""
        about = self.regime or name_of(self.remedy)
        words = [self.kind, self.row.name, about, f"seed{self.seed}", str(self.number or "")]
        return self.folder / PARTS / f"{'-'.join(word for word in words if word)}.json"

    def perform(self) -> None:
        """Measure, unless that was done."""
        if self.path.exists():
            return
        began = time.perf_counter()
        found = KINDS[self.kind](self)
        record = {
            "part": self.kind,
            "row": self.row.name,
            "regime": self.regime,
            "seed": self.seed,
            "number": self.number,
            **found,
            "seconds": time.perf_counter() - began,
            "versions": versions(),
        }
        files.write_json(self.path, plain(record))


def run_folder(folder: Path, row: Row, regime: str, seed: int) -> Path:
    """Where the run of a trial is."""
    return folder / RUNS / f"{row.name}-{regime}-seed{seed}"


def trainings(plan: Plan, folder: Path) -> list[Training]:
    """Both regimes of every row, from every start."""
    found = []
    for row in plan.rows:
        samples = len(load(row, plan).train.inputs)
        for seed in plan.seeds:
            for regime, batch in batches_of(row, samples).items():
                where = run_folder(folder, row, regime, seed)
                epochs = epochs_of(plan.updates, samples, batch)
                found.append(Training(row, regime, batch, seed, epochs, where, plan))
    return found


def parts(kind: str, plan: Plan, folder: Path) -> list[Part]:
    """All parts of one kind, to be called when the trainings are finished."""
    found = []
    first = plan.first_seed
    for row in plan.rows:
        if kind == "sharpness":
            found += [Part(kind, row, plan, folder, regime, seed) for seed in plan.seeds for regime in ("SB", "LB")]
        elif kind in ("spectrum", "during", "asymmetry"):
            found += [Part(kind, row, plan, folder, regime, first) for regime in ("SB", "LB")]
        elif kind == "line":
            found.append(Part(kind, row, plan, folder, "", first))
        elif kind == "remedy":
            if row == plan.rows[0]:  # so many trainings that one row must do
                seeds = plan.remedy_seeds
                found += [Part(kind, row, plan, folder, "", seed, 0, form) for form in plan.remedies for seed in seeds]
        else:
            samples = len(load(row, plan).train.inputs)
            sizes = [max(2, round(share * samples)) for share in plan.batches]
            numbers = sizes if kind == "batch" else _epochs_kept(plan, folder, row)
            found += [Part(kind, row, plan, folder, "", first, number) for number in numbers]
    return found


def _epochs_kept(plan: Plan, folder: Path, row: Row) -> list[int]:
    """Epochs of the small-batch training that are continued, evenly spread."""
    where = run_folder(folder, row, "SB", plan.first_seed)
    kept = [epoch for epoch in kept_iterates(where) if epoch > 0]
    count = min(plan.warm, len(kept))
    return sorted({kept[round((index + 1) * len(kept) / count) - 1] for index in range(count)})


def _minimizer(part: Part, data: Data) -> tuple[nn.Module, Objective]:
    model = _trained_model(part, part.regime)
    return model, _objective(part, model, data)


def _trained_model(part: Part, regime: str) -> nn.Module:
    """That of the trial, on the device of the plan."""
    return load_model(read_run(run_folder(part.folder, part.row, regime, part.seed))).to(part.plan.device)


def _objective(part: Part, model: nn.Module, data: Data) -> Objective:
    return Objective(model, data.train, loss=data.loss, batch_norm=part.plan.batch_norm)


def _sharpness(part: Part) -> dict[str, Any]:
    """Tables 3 and 4 of one minimizer."""
    _, objective = _minimizer(part, load(part.row, part.plan))
    options: dict[str, Any] = {"epsilons": part.plan.epsilons, "restarts": part.plan.restarts, "seed": part.seed}
    tables = paper_tables([(part.row.name, part.regime, objective)], **options)
    found = [
        {
            "space": space,
            "epsilon": result.settings["epsilon"],
            "method": method,
            "value": result.value,
            "evaluations": result.evaluations,
            "seconds": result.seconds,
            "status": result.status,
        }
        for _, _, space, method, result in tables.results
    ]
    return {"sharpness": found, "settings": objective.settings()}


def _spectrum(part: Part) -> dict[str, Any]:
    """Eigenvalues of the Hessian at one minimizer, how many are large, and their density."""
    _, objective = _minimizer(part, load(part.row, part.plan))
    largest = eigenvalues(objective, k=EIGENVALUES, seed=part.seed)
    density = spectral_density(objective, known=largest, seed=part.seed)
    mass = positive_mass(objective, seed=part.seed)
    return {"eigenvalues": largest.to_dict(), "density": density.to_dict(), "mass": mass.to_dict()}


def _asymmetry(part: Part) -> dict[str, Any]:
    """Both sides of one minimizer along eigenvectors, random directions, and the line to the other minimizer."""
    data = load(part.row, part.plan)
    _, objective = _minimizer(part, data)
    other = replace(part, regime="LB" if part.regime == "SB" else "SB")
    _, there = _minimizer(other, data)
    directions = {f"to {other.regime}": there.theta - objective.theta}
    return {"asymmetry": asymmetry(objective, directions=directions, seed=part.seed).to_dict()}


def _line(part: Part) -> dict[str, Any]:
    """Figures 3 and 7: the line and the curve through both minimizers, and how far they are from each other."""
    data = load(part.row, part.plan)
    small, large = (_trained_model(part, regime) for regime in ("SB", "LB"))
    options: dict[str, Any] = {"test_data": data.test, "loss": data.loss, "batch_norm": "batch"}
    trained = [pair for pair in zip(small.parameters(), large.parameters(), strict=True) if pair[0].requires_grad]
    square = sum(float((one.detach().double() - other.detach().double()).square().sum()) for one, other in trained)
    paths = {
        name: path(small, large, data.train, **options).to_dict() for name, path in (("line", line), ("curve", curve))
    }
    return {**paths, "distance": math.sqrt(square)}


def _during(part: Part) -> dict[str, Any]:
    """Figure 6: sharpness against the loss at the iterates of one training."""
    folder = run_folder(part.folder, part.row, part.regime, part.seed)
    model, data = _trained_model(part, part.regime), load(part.row, part.plan)
    found = []
    iterates = list(kept_iterates(folder).items())
    count = min(ON_THE_WAY, len(iterates))
    for epoch, path in [iterates[round(i * (len(iterates) - 1) / max(1, count - 1))] for i in range(count)]:
        load_weights(model, path)
        objective = _objective(part, model, data)
        sharpness = fast_sharpness(objective, epsilon=part.plan.epsilons[0], restarts=WAY_RESTARTS, seed=part.seed)
        found.append(
            {"epoch": epoch, "loss": sharpness.base_loss, "value": sharpness.value, "status": sharpness.status}
        )
    return {"epsilon": part.plan.epsilons[0], "restarts": WAY_RESTARTS, "iterates": found}


def _batch(part: Part) -> dict[str, Any]:
    """Figure 4: one training with another batch size, and its sharpness."""
    data = load(part.row, part.plan)
    epochs = epochs_of(part.plan.updates, len(data.train.inputs), part.number)
    folder = part.folder / RUNS / f"{part.row.name}-b{part.number}-seed{part.seed}"
    return _trained(part, data, Training(part.row, "sweep", part.number, part.seed, epochs, folder, part.plan))


def _warm(part: Part) -> dict[str, Any]:
    """Figure 5: the large batch, started from an iterate of the small batch."""
    data = load(part.row, part.plan)
    large = batches_of(part.row, len(data.train.inputs))["LB"]
    epochs = epochs_of(part.plan.updates, len(data.train.inputs), large)
    start = iterate_path(run_folder(part.folder, part.row, "SB", part.seed), part.number)
    folder = part.folder / RUNS / f"{part.row.name}-warm{part.number}-seed{part.seed}"
    training = Training(part.row, "warm", large, part.seed, epochs, folder, part.plan, start)
    return _trained(part, data, training)


def _remedy(part: Part) -> dict[str, Any]:
    """The large-batch training with a remedy, for as many updates; what it raises is a result as well."""
    data = load(part.row, part.plan)
    sizes = batches_of(part.row, len(data.train.inputs))
    plain_run = read_run(run_folder(part.folder, part.row, "LB", part.seed))
    updates = len(plain_run.metrics) * batches_in(len(data.train.inputs), sizes["LB"])
    form = filled(part.remedy, data, sizes["SB"], sizes["LB"], updates)
    remedy = parse_remedy(form)
    told = {"name": remedy.name, "remedy": form}
    batch_norm = any(isinstance(module, _BatchNorm) for module in load_model(plain_run).modules())
    missing = lacking(remedy, data, batch_norm)
    if missing is not None:
        return {**told, "skipped": missing}
    batch = sizes["SB" if begins_small(remedy) else "LB"]
    folder = part.folder / RUNS / f"{part.row.name}-{remedy.name}-seed{part.seed}"
    try:
        epochs = epochs_within(remedy, data, batch, updates)
        training = Training(part.row, "remedy", batch, part.seed, epochs, folder, part.plan, None, (form,), keep=0)
        found = _trained(part, data, training)
        return {**told, **found, "updates": round(found["updates"] / at_once(remedy))}
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        return {**told, "error": " ".join(str(error).split()) or type(error).__name__}


def _trained(part: Part, data: Data, training: Training) -> dict[str, Any]:
    run = training.run(data)
    objective = _objective(part, run.model, data)
    sharpness = fast_sharpness(objective, epsilon=part.plan.epsilons[0], restarts=part.plan.restarts, seed=part.seed)
    samples = len(data.train.inputs)
    return {
        "batch": training.batch,
        "updates": sum(batches_in(samples, epoch.get("batch_size", training.batch)) for epoch in run.metrics),
        "epsilon": part.plan.epsilons[0],
        "value": sharpness.value,
        "status": sharpness.status,
        "metrics": run.metrics[run.epoch - 1],
        "settings": sharpness.settings,
    }


KINDS: Mapping[str, Callable[[Part], dict[str, Any]]] = MappingProxyType(
    {
        "sharpness": _sharpness,
        "line": _line,
        "spectrum": _spectrum,
        "asymmetry": _asymmetry,
        "during": _during,
        "batch": _batch,
        "warm": _warm,
        "remedy": _remedy,
    }
)
"""What can be measured, by the name of its parts."""
