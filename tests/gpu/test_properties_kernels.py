"""The kernels on a GPU, on any combination of sizes, by the tests that also run in the emulator."""

import pytest
import torch

from tests.cuda_on_cpu.emulated import test_properties
from tests.cuda_on_cpu.emulated.test_properties import *  # noqa: F403

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.usefixtures("kernels"),
    test_properties.pytestmark,
]
