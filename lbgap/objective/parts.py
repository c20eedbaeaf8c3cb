"""The same function on fewer samples, on some parameters, or on a random manifold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor

from lbgap.checks import LARGEST, Amount, amount, counted, is_whole, several, shown, whole
from lbgap.objective.coordinates import RandomManifold, SomeParameters
from lbgap.objective.held import Held
from lbgap.problem import trees


class Parts(Held):
    """What an objective can be narrowed to; all parts share its replica, and their evaluations count there too."""

    @torch.inference_mode(False)
    def subset(self, samples: Amount) -> Self | None:
        """Take fewer samples, spread evenly over the data; over those that count, where some do not.

        Args:
            samples: How many, at most all, or a share (0.1, ``"10%"``); fewer are taken where fewer count.

        Returns:
            The objective, which shares this one's replica and whose evaluations also count here, by its share; or None
            where it would be another function: the samples of a batch see each other, or batches cannot be cut.

        Raises:
            ValueError: ``samples`` is less than one or more than all.
            TypeError: ``samples`` is neither a whole number nor a share.
        """
        chosen = spread(counted(amount("samples", samples), self.samples), self.samples)
        if self.coupled or not self._evaluator.data.cuttable:
            return None
        return self._beside(evaluator=self._evaluator.part(self._that_count(chosen)))

    @torch.inference_mode(False)
    def sample(self, samples: Amount, seed: int = 0) -> Self:
        """Take samples drawn at random, as many of each class as it has of all; else like :meth:`subset`.

        Args:
            samples: How many, at most all, or a share (0.1, ``"10%"``).
            seed: Of the draw.

        Raises:
            ValueError: ``samples`` is less than one or more than all, or the samples of a batch see each other
                (``batch_norm="batch"`` or ``coupled=True``).
            TypeError: ``samples`` is neither a whole number nor a share.
        """
        samples = whole("samples", counted(amount("samples", samples), self.samples), 1, self.samples + 1)
        if self.coupled:
            raise ValueError(
                f"samples needs a loss that is a mean over single samples, got {self.coupling}, under which fewer "
                f"samples are another function: {self.uncoupling}"
            )
        self.check_cuttable("samples=")
        table = self._evaluator.data.table
        targets = None if table is None else table.targets
        classes = targets if self.classes is not None and isinstance(targets, Tensor) and targets.dim() == 1 else None
        chosen = drawn(samples, seed, self.samples, classes)
        return self._beside(evaluator=self._evaluator.part(chosen))

    @torch.inference_mode(False)
    def part(self, chosen: Tensor) -> Self:
        """Take these samples; else like :meth:`subset`.

        Where the samples of a batch see each other it is that of a batch of them, with its own statistics.

        Args:
            chosen: Their indices in the order in which they are evaluated: a tensor ``(samples,)``, an array or a list
                of integers.

        Raises:
            ValueError: It is empty, or an index is out of range; or the samples of a batch see each other, and there
                is only one, or more than fit into one batch, or they are of several that cannot be joined.
            TypeError: It is no list of indices.
        """
        chosen = check_chosen(chosen, self.samples)
        self.check_cuttable("a part of the samples")
        if self.coupled and not 2 <= len(chosen) <= self.batch_size:
            raise ValueError(
                f"{self.coupling} needs 2 to batch_size = {self.batch_size} samples for a batch, got {len(chosen)}"
            )
        if self.coupled and not self._evaluator.data.joins:
            borders = torch.tensor(self._evaluator.data.sizes(), dtype=torch.int64, device="cpu").cumsum(0)
            batches = len(torch.bucketize(chosen, borders, right=True).unique())
            if batches > 1:
                raise ValueError(
                    f"{self.coupling} needs the samples of a part in one batch, got some of {batches} batches, which "
                    "cannot be joined: pad them all to one length"
                )
        return self._beside(evaluator=self._evaluator.part(chosen))

    @torch.inference_mode(False)
    @torch.no_grad()
    def some(self, names: Iterable[str]) -> Self:
        """Let only some parameters move, the others resting at the minimizer.

        Args:
            names: Of the parameters.

        Raises:
            ValueError: A name is none of ``names``, or this is the loss on a part of the space already.
            TypeError: ``names`` is no list.
        """
        self._check_full()
        listed = several(names)
        if listed is None:
            raise TypeError(f"names must be a list of names of parameters, got {shown(names)}: write [{names!r}]")
        chosen = SomeParameters(self._evaluator.flat, self.coordinates.centre, listed)
        return self._beside(coordinates=chosen)

    @torch.inference_mode(False)
    @torch.no_grad()
    def manifold(self, subspace: int, *, seed: int = 0, trial: int = 0, distribution: str = "normal") -> Self:
        """Move on a random manifold of a few dimensions; see :class:`~lbgap.objective.coordinates.RandomManifold`.

        Args:
            subspace: Number of its dimensions p, from 1 to n.
            seed: Of its random matrix.
            trial: Every trial of a seed is another matrix.
            distribution: Of the entries: ``"normal"``, ``"uniform"``, ``"rademacher"`` or ``"unit"``.

        Raises:
            ValueError: A number is out of range, the distribution is not known, the columns drawn do not span p
                dimensions, or this is the loss on a part of the space already.
            TypeError: A number is not whole.
        """
        self._check_full()
        random = RandomManifold(
            self._evaluator.flat,
            self.coordinates.centre,
            subspace,
            seed=seed,
            trial=trial,
            distribution=distribution,
            backend=self.backend,
        )
        return self._beside(coordinates=random)

    @property
    def weight(self) -> float:
        """What the sum of the loss over the samples is divided by; a ``ValueError`` where it is zero."""
        return self._evaluator.weight

    @property
    def empty(self) -> bool:
        """Whether none of the samples counts, so that they have no mean."""
        return self._evaluator.empty

    def _that_count(self, chosen: Tensor) -> Tensor:
        """Samples that were spread over the data, spread over those that count in their place where some do not."""
        evaluator = self._evaluator
        if evaluator.data.table is None:
            return chosen
        loss, targets = evaluator.loss, evaluator.data.table.targets
        if not loss.weighs:  # targets alone tell
            counting = loss.counting(targets)
            size = len(counting)
            if not 0 < size < self.samples:
                return chosen
            return counting[spread(min(len(chosen), size), size).to(counting.device)]
        # These, and in random order only as many others as it takes: each costs calls of the loss.
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(0), device="cpu")
        order = torch.cat([chosen, order[~torch.isin(order, chosen)]])
        with evaluator.context(False):
            found = loss.counting(trees.rows(targets, order), len(chosen)).cpu()
        return order[found].sort().values if len(found) else chosen

    def _check_full(self) -> None:
        if not self.coordinates.complete:
            raise ValueError("this objective is on a part of the space already: pass the one that it was made of")


def spread(samples: int, total: int) -> Tensor:
    """Samples spread evenly over the data.

    Args:
        samples: How many, at most all.
        total: How many there are.

    Returns:
        Their indices, ``(samples,)`` int64 on the CPU.

    Raises:
        ValueError: ``samples`` is less than one or more than all.
        TypeError: It is not a whole number.
    """
    samples = whole("samples", samples, 1, total + 1)
    return torch.arange(samples, device="cpu") * total // samples


def drawn(samples: int, seed: int, total: int, classes: Tensor | None) -> Tensor:
    """Samples drawn at random, as many of each class as it has of all.

    Args:
        samples: How many, from one to all.
        seed: Of the draw.
        total: How many there are.
        classes: Of all samples, ``(total,)``; None where there are none.

    Returns:
        Their indices, ascending, ``(samples,)`` int64 on the CPU.

    Raises:
        ValueError: The seed is negative.
        TypeError: It is not a whole number.
    """
    generator = torch.Generator().manual_seed(whole("seed", seed, 0))
    order = torch.randperm(total, generator=generator, device="cpu")
    if classes is not None:
        # Sorted by class, the order inside a class random: evenly spread places hold each class by its share.
        order = order[classes.cpu()[order].argsort(stable=True)]
        order = order[(torch.arange(samples, device="cpu") * total + total // 2) // samples]
    return order[:samples].sort().values


def check_chosen(chosen: object, total: int) -> Tensor:
    """Take indices of which a part can be made.

    Args:
        chosen: Should be ``(samples,)``, below ``total``.
        total: How many samples there are.

    Returns:
        ``(samples,)`` int64 on the CPU.

    Raises:
        ValueError: There are none, or one is no index or out of range.
        TypeError: It is no list of them.
    """
    if isinstance(chosen, Tensor) and chosen.dtype == torch.int64 and chosen.dim() == 1 and not chosen.is_meta:
        found: Tensor = chosen.detach().cpu()  # in no time, however many
    else:
        listed = several(chosen)
        if listed is None:
            raise TypeError(f"chosen must be one or more indices below {total}, got {shown(chosen)}")
        if not all(is_whole(index) and -LARGEST <= int(index) < LARGEST for index in listed):
            raise ValueError(f"chosen must be one or more indices below {total}, got {listed[:5]}")
        found = torch.tensor([int(index) for index in listed], dtype=torch.int64, device="cpu")
    if not len(found) or not 0 <= int(found.min()) <= int(found.max()) < total:
        raise ValueError(f"chosen must be one or more indices below {total}, got {found.tolist()[:5]}")
    return found.clone() if found.is_inference() else found
