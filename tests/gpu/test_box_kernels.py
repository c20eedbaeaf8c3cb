"""The kernels of the box ops on a GPU, by the tests that also run in the emulator."""

import pytest
import torch

from tests.cuda_on_cpu.emulated import test_box
from tests.cuda_on_cpu.emulated.test_box import *  # noqa: F403

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.usefixtures("kernels"),
    test_box.pytestmark,
]
