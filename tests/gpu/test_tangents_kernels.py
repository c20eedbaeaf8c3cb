"""The kernels of the ops on tangents on a GPU, by the tests that also run in the emulator."""

import pytest
import torch

from tests.cuda_on_cpu.emulated import test_tangents
from tests.cuda_on_cpu.emulated.test_tangents import *  # noqa: F403

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.usefixtures("kernels"),
    test_tangents.pytestmark,
]
