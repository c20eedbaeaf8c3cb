"""A training under way: its epochs, when they end, and the folder that they are written to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbgap.training.checkpoint import Recorder, State, restore
from lbgap.training.config import differences
from lbgap.training.loop import Loop
from lbgap.training.progress import Metrics
from lbgap.training.run import CONFIG, MODEL, RESULT, STATE, Run, read_run
from lbgap.training.stopping import Stopping


@dataclass(eq=False)
class Course:
    """A training from one epoch to the next.

    Attributes:
        loop: What an epoch does.
        stopping: When it ends.
        facts: What the result depends on.
        recorder: What writes it.
    """

    loop: Loop
    stopping: Stopping
    facts: dict[str, Any]
    recorder: Recorder

    @property
    def epochs(self) -> int:
        """How many are done."""
        return len(self.loop.state.metrics)

    def open(self, folder: Path, found: dict[str, Any] | None, seconds: float, keep_every: int | None) -> Run | None:
        """Begin in a folder, or go on with the run that is there.

        Args:
            folder: Open.
            found: The configuration in it, or ``None`` if it is new.
            seconds: Between two writings of the state.
            keep_every: Epochs between the iterates that are kept.

        Returns:
            The run if it is finished.

        Raises:
            ValueError: The run in it has other settings, or a file is damaged.
        """
        state = self.loop.state
        self.recorder = Recorder(folder, seconds, keep_every)
        if found is not None:
            finished = (folder / RESULT).exists()
            _check_same(found, self.facts, folder, finished)
            if finished:
                return _finished(folder, state)
            if (folder / STATE).exists():
                restore(state, folder / STATE)
                self.facts = found
                return None
        self.recorder.begin(self.facts, state)
        return None

    def reason(self) -> str | None:
        """Why the training ends here, or ``None``."""
        return self.stopping.reason(self._losses())

    def add(self, row: Metrics) -> None:
        """Take note of an epoch."""
        state = self.loop.state
        state.metrics.append(row)
        if self.stopping.epochs is None and self.stopping.kept(self._losses()) == self.epochs:
            state.keep()
        self.recorder.record(state)

    def finish(self, reason: str) -> Run:
        """Write the result."""
        state = self.loop.state
        self.recorder.flush()
        state.bring_back()
        epoch = self.stopping.kept(self._losses())
        self.recorder.finish(state, epoch, reason)
        state.model.eval()
        state.optimizer.zero_grad(set_to_none=True)
        seconds = sum(row["seconds"] for row in state.metrics)
        return Run(state.model, self.recorder.folder, state.metrics, self.facts, epoch, reason, seconds)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Whatever goes wrong within, the epochs that are finished are written."""
        try:
            yield
        except BaseException as error:
            try:
                self.recorder.flush()
            except OSError as failure:
                if str(failure) != str(error):
                    error.add_note(str(failure))
            raise

    def _losses(self) -> list[float]:
        return [row["train_loss"] for row in self.loop.state.metrics]


def _check_same(there: Mapping[str, Any], here: Mapping[str, Any], folder: Path, finished: bool) -> None:
    """Refuse to go on with other settings; a finished run does not depend on the environment any more."""
    phrases = differences(there, here, ignore="environment" if finished else "")
    if phrases:
        raise ValueError(
            f"cannot resume {folder} with other settings than in its {CONFIG}: {'; '.join(phrases)}; "
            "repeat the settings or choose another folder"
        )


def _finished(folder: Path, state: State) -> Run:
    saved = read_run(folder)
    try:
        state.model.load_state_dict(saved.weights)
    except RuntimeError as error:
        raise ValueError(f"{folder / MODEL} is of another model: {' '.join(str(error).split())}") from error
    state.model.eval()
    result = saved.result
    return Run(state.model, folder, saved.metrics, saved.config, result["epoch"], result["reason"], result["seconds"])
