"""Train and measure what a plan says, in processes; whatever was finished before is not done again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lbgap.checks import hint, whole
from lbgap.experiments.paper.parts import PARTS, Part, parts, run_folder, trainings
from lbgap.experiments.paper.plan import Plan, Training, choose, grouped
from lbgap.experiments.paper.remedies import REMEDIES, checked, name_of
from lbgap.result import plain
from lbgap.system import files
from lbgap.system.device import usable
from lbgap.system.processes import in_processes
from lbgap.training import read_run

MARK = "paper.json"
FORMAT = "lbgap paper 1"
# Each experiment and the parts that it needs beside the trainings.
EXPERIMENTS: Mapping[str, tuple[str, ...]] = {
    "table2": (),
    "table3": ("sharpness",),
    "table4": ("sharpness",),
    "figure2": (),
    "figure3": ("line",),
    "figure4": ("sharpness", "batch"),
    "figure5": ("sharpness", "warm"),
    "figure6": ("during",),
    "figure7": ("line",),
    "distance": (),
    "spectrum": ("spectrum",),
    "asymmetry": ("asymmetry",),
    "remedies": ("sharpness", "remedy"),
}
QUICK_UPDATES, QUICK_REMEDY_TRIALS = 2500, 1
Step = Callable[[str, int], None]


def paper(
    out: str | os.PathLike[str],
    *,
    rows: Sequence[str],
    experiments: Sequence[str] = (),
    trials: int = 5,
    updates: int | None = None,
    seed: int = 0,
    batch_norm: str = "eval",
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    remedies: Sequence[str] = REMEDIES,
    remedy_trials: int | None = None,
    workers: int | None = None,
    step: Step | None = None,
) -> Path:
    """Repeat experiments of the paper: train small- and large-batch from the same starts, and measure.

    Trainings and measurements are files of their own in the folder, so that what was interrupted goes on where it was,
    and more experiments or trials can be added by another call. ``write_paper`` draws everything from them.

    Args:
        out: The folder.
        rows: Which networks, keys of :data:`ROWS`.
        experiments: Keys of :data:`EXPERIMENTS`; all by default.
        trials: How many starts.
        updates: ADAM updates of each training, in whole epochs; None trains until the loss stops improving.
        seed: The first start; the others count on.
        batch_norm: Statistics of batch-norm in all sharpnesses: ``"eval"`` or ``"batch"``.
        data_dir: Where the files of data sets lie.
        device: Where to train and measure: ``"cpu"``, ``"cuda"`` (the processes share out the GPUs) or ``"cuda:N"``.
        remedies: What the large-batch training of the first row is repeated with: short forms as of
            :func:`lbgap.train`, or with gaps that are filled for the row, as in
            :data:`lbgap.experiments.paper.remedies.REMEDIES`. One that raises is a failed trial; the others go on.
        remedy_trials: From how many of the starts; all by default.
        workers: Processes, of one thread each; as many as torch has threads by default.
        step: Called with what was done and the number of steps that are left in its stage.

    Returns:
        The folder.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A name is not known, a number is out of range, or the folder was begun with other settings.
        FileNotFoundError: A file of a data set is missing.
        FileExistsError: The folder holds something else.
    """
    trials, seed = whole("trials", trials, 1), whole("seed", seed, 0)
    updates = None if updates is None else whole("updates", updates, 1)
    workers = None if workers is None else whole("workers", workers, 1)
    remedy_trials = None if remedy_trials is None else whole("remedy_trials", remedy_trials, 1)
    if batch_norm not in ("eval", "batch"):
        raise ValueError(f"batch_norm must be 'eval' or 'batch', got {batch_norm!r}")
    usable(device, torch.device("cpu"))
    wanted = _experiments(experiments)
    plan = Plan(
        choose(rows),
        trials,
        updates,
        first_seed=seed,
        batch_norm=batch_norm,
        data_dir=None if data_dir is None else os.fspath(data_dir),
        device=device,
        remedies=checked(remedies),
        remedy_trials=remedy_trials,
    )
    folder = Path(out)
    works = trainings(plan, folder)  # reads all data: what is missing is told before anything is written
    _begin(folder, plan, wanted)
    count = workers or torch.get_num_threads()
    gpus = plan.device == "cuda"
    train_all(grouped(works, count), count, gpus=gpus, step=step)
    kinds = dict.fromkeys(kind for name in wanted for kind in EXPERIMENTS[name])
    # The longest first, so that no process is left alone with one at the end.
    order = sorted(kinds, key=("remedy", "warm", "batch", "sharpness", "during", "spectrum", "asymmetry", "line").index)
    pending = [part for kind in order for part in parts(kind, plan, folder) if not part.path.exists()]
    (folder / PARTS).mkdir(exist_ok=True)
    _stage("measuring", Part.perform, pending, count, gpus, step)
    return folder


def _experiments(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in EXPERIMENTS:
            known = ", ".join(EXPERIMENTS)
            raise ValueError(f"experiment must be one of {known}, got {name!r}{hint(name, EXPERIMENTS)}")
    return list(dict.fromkeys(names)) or list(EXPERIMENTS)


def _begin(folder: Path, plan: Plan, experiments: list[str]) -> None:
    """Take a new folder, or go on with one that was begun with the same settings."""
    mark, settings = folder / MARK, plain({"format": FORMAT, "plan": plan.to_dict()})
    if claim(folder, MARK, "experiments of the paper"):
        found = _read_mark(mark)
        theirs, ours = found["plan"], settings["plan"]
        free = ("trials", "rows", "remedies", "remedy_trials")  # which may grow
        for key in ours:
            if key not in free and theirs.get(key, "cpu" if key == "device" else None) != ours[key]:
                raise ValueError(
                    f"{folder} was begun with {key} {theirs.get(key)!r}, not {ours[key]!r}: choose another folder"
                )
        experiments = list(dict.fromkeys((*found["experiments"], *experiments)))
        names = {row["name"] for row in ours["rows"]}
        settings["plan"]["rows"] = [row for row in theirs["rows"] if row["name"] not in names] + ours["rows"]
        settings["plan"]["trials"] = max(theirs["trials"], ours["trials"])
        settings["plan"]["remedies"] = _joined(folder, theirs.get("remedies", []), ours["remedies"])
        trials = theirs.get("remedy_trials", ours["remedy_trials"]), ours["remedy_trials"]
        settings["plan"]["remedy_trials"] = None if None in trials else max(trials)
    files.write_json(mark, {**settings, "experiments": experiments})


def claim(folder: Path, mark: str, what: str) -> bool:
    """Take a new folder for experiments, or find that they were begun in it.

    Args:
        folder: Made unless it is there.
        mark: Name of the file that the caller writes into it, with the settings.
        what: The mark says that there is, for messages.

    Returns:
        Whether the mark is there.

    Raises:
        NotADirectoryError: The folder is a file.
        FileExistsError: It holds something else.
        OSError: It cannot be made.
    """
    if (folder / mark).exists():
        return True
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: choose another folder with --out")
    if folder.exists() and not all(map(files.is_temporary, folder.iterdir())):
        raise FileExistsError(f"{folder} exists and holds no {what}: choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    return False


def _joined(folder: Path, theirs: list[str], ours: list[str]) -> list[str]:
    """The remedies of a folder and further ones; one that is there must have the same settings."""
    known = {name_of(form): form for form in theirs}
    for form in ours:
        found = known.setdefault(name_of(form), form)
        if found != form:
            raise ValueError(f"{folder} was begun with the remedy {found!r}, not {form!r}: choose another folder")
    return list(known.values())


def _read_mark(mark: Path) -> dict[str, Any]:
    found = files.read_json(mark)
    version = found.get("format") if isinstance(found, dict) else None
    if version != FORMAT:
        raise ValueError(f"{mark} has format {version!r}, this version reads {FORMAT!r}: choose another folder")
    assert isinstance(found, dict)
    return found


def train_all(groups: Sequence[list[Training]], workers: int, *, gpus: bool = False, step: Step | None = None) -> None:
    """Train in processes of one thread each; what was finished before is left as it is.

    Args:
        groups: Those of one group differ in the seed alone, and are trained together.
        workers: Processes.
        gpus: Whether they share out the GPUs.
        step: Called with what is done next and the number of groups that are left.

    Raises:
        ValueError: A folder holds a run with other settings.
        OSError: A process was killed, or a file cannot be written.
    """
    _stage("training", _train, groups, workers, gpus, step)


def _stage(
    name: str, work: Callable[[Any], None], works: Sequence[Any], workers: int, gpus: bool, step: Step | None
) -> None:
    if not works:
        return
    with in_processes(work, works, workers, gpus=gpus) as finished:
        for index, what in enumerate(works):
            if step is not None:
                step(f"{name} {_describe(what)}", len(works) - index)
            next(finished)
    if step is not None:
        step(f"{name}: done", 0)


def _describe(work: list[Training] | Part) -> str:
    if isinstance(work, list):
        first, seeds = work[0], ", ".join(str(one.seed) for one in work)
        return f"{first.row.name}, {first.regime}, seed{'s' if len(work) > 1 else ''} {seeds}"
    about = " ".join(word for word in (work.regime, name_of(work.remedy), str(work.number or "")) if word)
    return f"{work.kind} of {work.row.name} {about}".strip()


def _train(trainings: list[Training]) -> None:
    first, *others = trainings
    if others:
        first.together(others)
    else:
        first.run()


def read_paper(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read everything that :func:`paper` left in a folder.

    Args:
        folder: What was ``out``.

    Returns:
        ``plan``, ``experiments``, ``runs`` (row, regime and seed to the metrics of all epochs, with ``epoch`` and
        ``reason``) and ``parts`` (a list of what each part found).

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no experiments of the paper, or those of another version, or a file is damaged.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"no folder {folder}: name one that lbgap paper wrote")
    if not (folder / MARK).is_file():
        raise ValueError(f"{folder} holds no experiments of the paper (no {MARK}): name one that lbgap paper wrote")
    mark = _read_mark(folder / MARK)
    plan = mark["plan"]
    rows = choose([row["name"] for row in plan["rows"]])
    runs = {}
    for row in rows:
        for seed in range(plan["first_seed"], plan["first_seed"] + plan["trials"]):
            for regime in ("SB", "LB"):
                where = run_folder(folder, row, regime, seed)
                if (where / "result.json").exists():
                    run = read_run(where)
                    runs[row.name, regime, seed] = {
                        "batch": run.config["batch_size"],
                        "samples": run.config["data"]["samples"],
                        "parameters": run.config["model"]["parameters"],
                        "metrics": run.metrics,
                        "epoch": run.result["epoch"],
                        "reason": run.result["reason"],
                        "seconds": run.result["seconds"],
                    }
    found = [files.read_json(path) for path in sorted((folder / PARTS).glob("*.json"))]
    return {"plan": plan, "experiments": mark["experiments"], "runs": runs, "parts": found}
