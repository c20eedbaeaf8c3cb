"""The global random state that data are read with: from a fixed seed, and the process's own stays as it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

SEED = 0


class Chance:
    """The random state of one reading, of PyTorch (CPU), NumPy and Python.

    Attributes:
        used: Whether anything drew from it inside of :meth:`lent`, with ``watch``.
    """

    def __init__(self, seed: int = SEED) -> None:
        """Begin with a seed."""
        self.used = False
        self._state: tuple[torch.Tensor, Any, Any] | None = None
        self._seed = seed

    @contextlib.contextmanager
    def lent(self, *, watch: bool = False) -> Iterator[None]:
        """The process draws from this state inside, and goes on from its own after."""
        before = _state()
        try:
            if self._state is None:
                _begin(self._seed)
            else:
                _restore(self._state)
            start = _state() if watch and not self.used else None
            yield
        finally:
            self._state = _state()
            _restore(before)
            if start is not None:
                self.used = not _same(start, self._state)


def _state() -> tuple[torch.Tensor, Any, Any]:
    own = np.random.get_state(legacy=False)  # noqa: NPY002 - code of users draws from it
    return torch.default_generator.get_state(), own, random.getstate()


def _restore(state: tuple[torch.Tensor, Any, Any]) -> None:
    torch.default_generator.set_state(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    random.setstate(state[2])


def _begin(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # that of the CPU alone
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def _same(one: tuple[torch.Tensor, Any, Any], other: tuple[torch.Tensor, Any, Any]) -> bool:
    numpy_alike = repr(one[1]["bit_generator"]) == repr(other[1]["bit_generator"]) and all(
        np.array_equal(one[1]["state"][key], other[1]["state"][key]) for key in one[1]["state"]
    )
    return numpy_alike and one[2] == other[2] and torch.equal(one[0], other[0])
