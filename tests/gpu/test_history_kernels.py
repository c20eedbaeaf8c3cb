"""The kernels of the history ops on a GPU, by the tests that also run in the emulator."""

import pytest
import torch

from tests.cuda_on_cpu.emulated import test_history
from tests.cuda_on_cpu.emulated.test_history import *  # noqa: F403

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.usefixtures("kernels"),
    test_history.pytestmark,
]
