"""The kernels of the ops on many points on a GPU, by the tests that also run in the emulator."""

import pytest
import torch

from tests.cuda_on_cpu.emulated import test_points
from tests.cuda_on_cpu.emulated.test_points import *  # noqa: F403

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.usefixtures("kernels"),
    test_points.pytestmark,
]
