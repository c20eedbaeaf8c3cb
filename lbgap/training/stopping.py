"""When a training ends, and the sentence that says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbgap.checks import real, whole


@dataclass(frozen=True)
class Stopping:
    """The rule that ends a training; it depends on the losses of the epochs alone, so a resume needs no more.

    Attributes:
        epochs: A fixed number of epochs, or ``None`` for the rule below.
        max_epochs: The most epochs that the rule may take.
        patience: How many epochs in a row may fail to improve the training loss.
        tolerance: An epoch improves the loss if it is below ``(1 - tolerance)`` times that of the last epoch
            that improved it.
    """

    epochs: int | None
    max_epochs: int
    patience: int
    tolerance: float

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            TypeError: One of them is not a number.
            ValueError: One of them is out of range.
        """
        if self.epochs is not None:
            object.__setattr__(self, "epochs", whole("epochs", self.epochs, 1))
        object.__setattr__(self, "max_epochs", whole("max_epochs", self.max_epochs, 1))
        object.__setattr__(self, "patience", whole("patience", self.patience, 1))
        object.__setattr__(self, "tolerance", real("tolerance", self.tolerance, positive=False))
        if self.tolerance >= 1:
            raise ValueError(f"tolerance must be below 1 (0.01 is one percent), got {self.tolerance}")

    @property
    def limit(self) -> int:
        """The most epochs that the training can take."""
        return self.max_epochs if self.epochs is None else self.epochs

    def settings(self) -> dict[str, float | None]:
        """What the training depends on, for ``config.json``: ``None`` for what plays no part.

        Returns:
            The four attributes, those of the other rule as ``None``.
        """
        if self.epochs is not None:
            return {"epochs": self.epochs, "max_epochs": None, "patience": None, "tolerance": None}
        return {
            "epochs": None,
            "max_epochs": self.max_epochs,
            "patience": self.patience,
            "tolerance": float(self.tolerance),
        }

    def kept(self, losses: Sequence[float]) -> int:
        """Choose the epoch whose iterate is the result.

        Args:
            losses: The training loss after each epoch, at least one.

        Returns:
            The last epoch if their number is fixed. Otherwise the first of the lowest loss: what ends such a
            training is often a jump of the loss, and the last iterate then far from any minimizer.
        """
        return len(losses) if self.epochs is not None else losses.index(min(losses)) + 1

    def reason(self, losses: Sequence[float]) -> str | None:
        """Say why the training ends here.

        Args:
            losses: The training loss after each epoch so far.

        Returns:
            A sentence, or ``None`` to go on.
        """
        done = len(losses)
        if self.epochs is not None:
            asked = "epoch" if self.epochs == 1 else f"{self.epochs} epochs"
            return f"ran the {asked} asked for" if done >= self.epochs else None
        best, improved = float("inf"), 0
        for epoch, loss in enumerate(losses, 1):
            if loss < (1 - self.tolerance) * best:
                best, improved = loss, epoch
        if done - improved >= self.patience:
            return (
                f"the training loss stopped improving: no epoch of the last {self.patience} lowered "
                f"{best:.4g}, reached at epoch {improved}, by more than {100 * self.tolerance:g} %"
            )
        if done >= self.max_epochs:
            return f"reached max_epochs ({self.max_epochs}) while the training loss improved: raise it to go on"
        return None
