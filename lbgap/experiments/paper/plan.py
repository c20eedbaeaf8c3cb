"""What is trained and measured to repeat the paper: its networks, or small ones that stand for them offline."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lbgap import datasets, networks
from lbgap.checks import hint
from lbgap.experiments.paper.remedies import REMEDIES
from lbgap.experiments.tables import EPSILONS, RESTARTS
from lbgap.problem.samples import Data
from lbgap.training import Run, train, train_together

LARGE_SHARE = 0.1  # of the training set: the paper's large batch
KEPT = 16  # iterates of a training, about
# Samples times weights between hidden layers: three starts together gain a half at 1.6 million, nothing at 20.
SMALL_STEP = 8_000_000


@dataclass(frozen=True)
class Row:
    """One network on one data set: a row of the paper's tables.

    Attributes:
        name: The paper's, or that of what stands for one.
        network: A key of :data:`lbgap.networks.NETWORKS`.
        data: What :func:`lbgap.datasets.load` takes.
        small: Samples in a small batch.
        hidden: Widths of the hidden layers of ``mlp``.
        like: The row of the paper to compare with.
        initialisation: As in :func:`lbgap.networks.mlp`.
    """

    name: str
    network: str
    data: str
    small: int
    hidden: tuple[int, ...] = ()
    like: str = ""
    initialisation: str = "uniform"


ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row("MLP-MNIST1D", "mlp", "mnist1d", 32, (128, 128, 128, 128), "F1"),
        Row("MLP-DIGITS", "mlp", "digits", 16, (64, 64), "F1"),
        Row("C1-MNIST1D", "c1_1d", "mnist1d", 32, like="C1"),
        Row("C2-MNIST1D", "c2_1d", "mnist1d", 32, like="C2"),
        Row("F1", "f1", "mnist", 256, like="F1"),
        Row("F2", "f2", "timit", 256, like="F2"),
        Row("C1", "c1", "cifar10", 256, like="C1"),
        Row("C2", "c2", "cifar10", 256, like="C2"),
        Row("C3", "c3", "cifar100", 256, like="C3"),
        Row("C4", "c4", "cifar100", 256, like="C4"),
    )
}
OFFLINE = ("MLP-MNIST1D", "MLP-DIGITS", "C1-MNIST1D")
QUICK = ("MLP-MNIST1D", "MLP-DIGITS")


@dataclass(frozen=True)
class Plan:
    """Everything that the results depend on, but for the versions.

    Attributes:
        rows: Networks and data.
        trials: How many starts.
        updates: Steps of each training, rounded to whole epochs; None trains until the loss stops improving.
        epsilons: Sizes of the box.
        restarts: Further starts of vertex ascent, as :func:`lbgap.fast_sharpness` has them.
        batches: Shares of the training set that the sweep over batch sizes trains with, beside both regimes.
        warm: How many iterates of the small-batch training are continued with the large batch.
        first_seed: Of the first trial.
        batch_norm: ``"eval"`` or ``"batch"``, of all sharpnesses.
        data_dir: Where the files of data sets lie.
        device: Where to train and measure.
        remedies: Short forms with gaps, as :data:`lbgap.experiments.paper.remedies.REMEDIES`: what the large-batch
            training of the first row is repeated with.
        remedy_trials: From how many of the starts; None for all.
    """

    rows: tuple[Row, ...]
    trials: int
    updates: int | None
    epsilons: tuple[float, ...] = EPSILONS
    restarts: int = RESTARTS
    batches: tuple[float, ...] = (0.02, 0.04, 0.2)
    warm: int = 5
    first_seed: int = 0
    batch_norm: str = "eval"
    data_dir: str | None = None
    device: str = "cpu"
    remedies: tuple[str, ...] = REMEDIES
    remedy_trials: int | None = None

    @property
    def seeds(self) -> range:
        """Of the trials."""
        return range(self.first_seed, self.first_seed + self.trials)

    @property
    def remedy_seeds(self) -> range:
        """Of the trials with remedies."""
        return self.seeds if self.remedy_trials is None else self.seeds[: self.remedy_trials]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def choose(names: Sequence[str]) -> tuple[Row, ...]:
    """Find rows by name, in any case.

    Raises:
        ValueError: A name is not known, or comes twice.
    """
    known = {name.upper(): row for name, row in ROWS.items()}
    for name in names:
        if name.upper() not in known:
            raise ValueError(f"row must be one of {', '.join(known)}, got {name!r}{hint(name.upper(), known)}")
    found = tuple(known[name.upper()] for name in names)
    if len(set(found)) < len(found):
        raise ValueError(f"each row may be named once, got {', '.join(names)}")
    return found


def load(row: Row, plan: Plan) -> Data:
    """Read the data of a row.

    Raises:
        ValueError: They need ``data_dir``, or a file is damaged.
        FileNotFoundError: A file is missing.
    """
    if row.data == "timit":
        if plan.data_dir is None:
            raise ValueError("F2 needs TIMIT features as timit.npz in a folder: name it with --data-dir")
        return datasets.npz(Path(plan.data_dir) / "timit.npz")
    return datasets.load(row.data, plan.data_dir)


@dataclass(frozen=True)
class Training:
    """One training: the piece of work that a process takes.

    Attributes:
        row: Network and data.
        regime: ``"SB"``, ``"LB"``, or what a sweep calls it.
        batch: Samples in a batch.
        seed: Of the start and of the order of the samples.
        epochs: How many; None trains until the loss stops improving.
        folder: Of the run.
        plan: What it belongs to.
        start: A file of weights to start from, in place of those of the seed.
        remedies: Their short forms.
        keep: How many iterates are kept in the folder, about; 0 for none.
    """

    row: Row
    regime: str
    batch: int
    seed: int
    epochs: int | None
    folder: Path
    plan: Plan
    start: Path | None = None
    remedies: tuple[str, ...] = ()
    keep: int = KEPT

    def run(self, data: Data | None = None) -> Run:
        """Train, go on with an unfinished run, or read a finished one."""
        from lbgap.weights import load_weights

        data = data or load(self.row, self.plan)
        model = networks.build(self.network(data))
        if self.start is not None:
            load_weights(model, self.start)
        return train(
            model,
            data.train,
            seed=self.seed,
            out=self.folder,
            remedies=self.remedies,
            config=self._config(data),
            **self._options(data),
        )

    def network(self, data: Data) -> dict[str, Any]:
        """What :func:`lbgap.networks.build` makes the network from."""
        hidden = self.row.hidden if self.row.network == "mlp" else None
        more: dict[str, Any] = {"hidden": hidden, "initialisation": self.row.initialisation}
        return networks.specify(self.row.network, data.features, data.outputs, seed=self.seed, **more)

    def _config(self, data: Data) -> dict[str, Any]:
        return {"network": self.network(data), "data": {"name": self.row.data, "data_dir": self.plan.data_dir}}

    def _options(self, data: Data) -> dict[str, Any]:
        """What is the same from every start."""
        return {
            "test_data": data.test,
            "batch_size": self.batch,
            "epochs": self.epochs,
            "optimizer_options": {"fused": True},
            "device": self.plan.device,
            "resume": True,
            "keep_every": max(1, (self.epochs or 2 * self.keep) // self.keep) if self.keep else None,
        }

    def together(self, others: Sequence[Training]) -> None:
        """Train this one and others that differ from it in the seed alone, as one batched model."""
        all_, data = [self, *others], load(self.row, self.plan)
        train_together(
            [networks.build(one.network(data)) for one in all_],
            data.train,
            seeds=[one.seed for one in all_],
            out=[one.folder for one in all_],
            configs=[one._config(data) for one in all_],
            **self._options(data),
        )

    @property
    def is_small(self) -> bool:
        """Whether a step is bound by its calls rather than by its products."""
        widths = self.row.hidden
        return self.row.network == "mlp" and self.batch * sum(map(math.prod, itertools.pairwise(widths))) < SMALL_STEP


def grouped(trainings: Sequence[Training], workers: int) -> list[list[Training]]:
    """Put trainings that are faster together into one piece of work, but leave a piece for each process.

    Args:
        trainings: Of both regimes.
        workers: Processes.

    Returns:
        All of them; in one group are those that differ in the seed alone.
    """
    most = max(1, len(trainings) // workers)
    groups: dict[tuple[str, str, int], list[list[Training]]] = {}
    for place, one in enumerate(trainings):
        found = groups.setdefault((one.row.name, one.regime, 0 if one.is_small else place), [[]])
        if len(found[-1]) == most:
            found.append([])
        found[-1].append(one)
    return [group for found in groups.values() for group in found]


def epochs_of(updates: int | None, samples: int, batch: int) -> int | None:
    """So many updates in whole epochs, one at least."""
    return None if updates is None else max(1, round(updates / math.ceil(samples / batch)))


def batches_of(row: Row, samples: int) -> dict[str, int]:
    """Samples in a batch of both regimes.

    Raises:
        ValueError: The data are so few that the large batch is not larger.
    """
    large = round(LARGE_SHARE * samples)
    if large <= row.small:
        raise ValueError(
            f"{row.name}: a tenth of {samples} samples is no larger than the small batch of {row.small}; take more"
        )
    return {"SB": row.small, "LB": large}
