"""What several data sets share."""

from __future__ import annotations

import numpy as np

from lbgap.checks import whole


def generator(seed: int) -> np.random.Generator:
    """A generator of one's own; refuses a negative seed."""
    return np.random.default_rng(whole("seed", seed, 0))


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
