"""What the tests of the kernels ask for, on a GPU: calls of the raw ops move there, memory and all, and come back."""

import contextlib
import warnings

import pytest
import torch

from lbgap import ops as wrappers

if not torch.cuda.is_available():
    collect_ignore_glob = ["test_*_kernels.py"]  # thousands of them; the other files say that they are skipped

SMALL_MATRICES = {"K", "q"}  # arguments that stay on the host


class OnGpu:
    """An op whose tensors are moved to a GPU with their storages, so that layouts and overlaps stay what they are."""

    def __init__(self, op):
        self.op = self.default = op
        self._schema = op._schema

    def __call__(self, *args):
        places = self.op._schema.arguments
        tensors = [place for place, arg in enumerate(args) if type(arg) is torch.Tensor]
        if any(args[place].layout != torch.strided or args[place]._is_zerotensor() for place in tensors):
            return self.op(*args)
        moved, stores = list(args), {}
        for place in tensors:
            if places[place].name not in SMALL_MATRICES:
                moved[place] = self._move(args[place], stores)
        found = self.op(*moved)
        for place in tensors:
            if places[place].is_write:
                here = torch.empty(0, dtype=torch.uint8).set_(args[place].untyped_storage())
                here.copy_(stores[args[place].untyped_storage().data_ptr()])
        return found if found is None else found.cpu()

    @staticmethod
    def _move(tensor, stores):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in stores:
            stores[storage.data_ptr()] = torch.empty(0, dtype=torch.uint8).set_(storage).cuda()
        there = torch.empty(0, dtype=tensor.dtype, device="cuda")
        place = stores[storage.data_ptr()].untyped_storage()
        return there.set_(place, tensor.storage_offset(), tensor.shape, tensor.stride())


class OpsOnGpu:
    """Stands in for ``torch.ops.lbgap``."""

    def __init__(self, ops):
        self._ops = ops

    def __getattr__(self, name):
        return OnGpu(getattr(self._ops, name).default)


@pytest.fixture(scope="module")
def native():
    """The compiled ops of the CPU, beside which those of the GPU are put."""
    return torch.ops.lbgap


@pytest.fixture(scope="module")
def kernels(native):
    """Let every call of a compiled op run on a GPU, wherever its tensors are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops, "lbgap", OpsOnGpu(native))
        yield


@pytest.fixture
def no_waiting():
    """A context in which whatever waits for the GPU, and is known to, raises an error."""

    @contextlib.contextmanager
    def entered():
        before = torch.cuda.get_sync_debug_mode()
        try:
            with warnings.catch_warnings():
                # Said once in a process, when the mode has changed already.
                warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature")
                torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    return entered


@pytest.fixture
def launched():
    pytest.skip("only the emulator says which kernels were launched")


@pytest.fixture
def sparse():
    pytest.skip("a GPU's memory is taken when it is asked for")


@pytest.fixture
def backend():
    return "native"


@pytest.fixture
def where():
    return wrappers
