"""What the questions are asked of: a replica, the user's own model, and samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lbgap.layers import displace
from lbgap.objective.passes import Evaluator
from lbgap.problem import trees
from lbgap.problem.batch import Batch
from lbgap.problem.trees import Tree
from lbgap.system.device import first_line

YES = "yes"


class Case:
    """A model, a loss and data that are judged.

    A question is a function of a case. It returns what ``settings["judged"]`` keeps: :data:`YES`, or a sentence that
    begins with ``"not judged: "`` and says why, or with ``"yes, "`` and says what was done; or it raises a
    ``ValueError`` of one line that says what is wrong, and what to do. It leaves the replica at the minimizer.

    Attributes:
        evaluator: At the minimizer.
        model: The user's own, which is neither changed nor evaluated.
        centre: The minimizer, ``(n,)``.
        answers: Question to answer, in the order in which they were asked.
    """

    def __init__(self, evaluator: Evaluator, model: nn.Module, centre: Tensor, first: Any) -> None:
        """Begin; nothing is evaluated.

        Args:
            evaluator: At the minimizer.
            model: The user's own.
            centre: The minimizer, ``(n,)``.
            first: The output for the few samples, without a graph.
        """
        self.evaluator, self.model, self.centre = evaluator, model, centre
        self.answers: dict[str, str] = {}
        self._first, self._first_size = first, evaluator.few_samples
        self._displaced: Tensor | None = None
        self._fails_elsewhere: str | None = None

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """The replica at a point some way off, the same each time, and back at the minimizer afterwards."""
        flat = self.evaluator.flat
        try:
            with torch.no_grad():
                if self._displaced is None:
                    displace(flat.moving)
                    self._displaced = flat.theta.clone()
                else:
                    flat.theta.copy_(self._displaced)
            yield
        finally:
            with torch.no_grad():
                flat.theta.copy_(self.centre)

    def forget(self) -> None:
        """Let go of the memory of the point some way off, for a question that needs some."""
        self._displaced = None

    @property
    def displaced(self) -> Tensor:
        """Where :meth:`elsewhere` takes the replica, ``(n,)``; known once it has been there."""
        assert self._displaced is not None
        return self._displaced

    def fails_elsewhere(self) -> str:
        """Why the model does not run at the point some way off, as an answer; empty where it does."""
        if self._fails_elsewhere is None:
            self._fails_elsewhere = ""
            try:
                with self.elsewhere():
                    self.output(self.evaluator.few().inputs)
            except torch.OutOfMemoryError:
                self._fails_elsewhere = None
                raise
            except Exception as error:
                self._fails_elsewhere = (
                    f"not judged: the model does not run with moved parameters ({first_line(error)})"
                )
        return self._fails_elsewhere

    @property
    def first(self) -> Any:
        """The output for the few samples in the first pass without a graph; of fewer where memory ran out since."""
        size = self.evaluator.few_samples
        if self.pool.cuttable and trees.size(self._first) is not None:
            return trees.rows(self._first, slice(size))
        if self._first_size != size:
            self._first, self._first_size = self.output(self.evaluator.few().inputs), size
        return self._first

    @property
    def pool(self) -> Batch:
        """Samples of which :meth:`rows` are taken."""
        return self.evaluator.data.pool

    def seen(self, output: Any, batch: Batch | None = None) -> list[Tensor]:
        """What outputs are compared by: their floating tensors; where none is known in them, the loss.

        Args:
            output: Of the replica, or of a copy of it.
            batch: The samples, the few by default.
        """
        found = trees.observed(output)
        if found:
            return [part.reshape(1) if part.dim() == 0 else part for part in found]
        return [self.evaluator.loss.sums(output, (batch or self.evaluator.few()).targets).total.reshape(1)]

    def rows(self, chosen: Tensor) -> Batch:
        """A fresh copy of some samples on the device.

        Args:
            chosen: Their indices in the pool, ``(samples,)`` int64, on the CPU.
        """
        return self.evaluator.copied(self.evaluator.data.pool.rows(chosen))

    def output(self, inputs: Tree, *, grad: bool = False) -> Any:
        """What the replica returns at its point, detached.

        Args:
            inputs: Of a batch, which the model may overwrite.
            grad: Whether to record a graph, as the pass of a gradient does; else as the pass of a value.
        """
        with torch.enable_grad() if grad else self.evaluator.unrecorded():
            return trees.detached(self.evaluator.flat.run(inputs))
