"""What several data sets share."""

from __future__ import annotations

import numpy as np


def generator(seed: int) -> np.random.Generator:
    """A generator of one's own; refuses a negative seed."""
    if seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed}")
    return np.random.default_rng(seed)


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
