"""The compiled ops of :mod:`lbgap.ops`, from here on, are the CUDA kernels in the emulator, every call checked."""

import ctypes
import mmap
import os
from pathlib import Path

import pytest
import torch

from lbgap import ops as wrappers

LIBRARY = os.environ.get("LBGAP_EMULATED")
if LIBRARY is None:
    collect_ignore_glob = ["*"]  # test_emulated.py runs what is here in a process of its own

FOLDER = Path(__file__).parent
SMALL_MATRICES = {"K", "q"}  # arguments that stay on the host
MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.12 on
MOST_COMPARED = 2**28  # bytes of a storage

pytest.register_assert_rewrite(*(f"tests.ops.{path.stem}" for path in (FOLDER.parents[1] / "ops").glob("test_*.py")))


def bits(tensor):
    """The bytes of a tensor, for comparisons that tell one NaN from another."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def memory(storage):
    return torch.empty(0, dtype=torch.uint8).set_(storage)


class CheckedOp:
    """An op that runs twice: the threads of a block first in rising, then in falling order, to the same bits."""

    def __init__(self, op, emulator):
        self.op, self.emulator = op, emulator
        self.default = self

    def __call__(self, *args):
        places = self.op._schema.arguments
        tensors = [(place, arg) for place, arg in zip(places, args, strict=False) if type(arg) is torch.Tensor]
        if any(tensor.layout != torch.strided or tensor._is_zerotensor() for _, tensor in tensors):
            return self.op(*args)
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for _, tensor in tensors}
        stores = [memory(storage) for storage in storages.values() if storage.nbytes() <= MOST_COMPARED]
        before = [store.clone() for store in stores]
        self.emulator.emulator_forget_host_memory()
        for place, tensor in tensors:
            if place.name in SMALL_MATRICES and tensor.numel() > 0:
                self.emulator.emulator_host_memory(ctypes.c_size_t(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes))
        first, first_stores = self.op(*args), [store.clone() for store in stores]
        for store, old in zip(stores, before, strict=True):
            store.copy_(old)
        self.emulator.emulator_set_order(1)
        try:
            second = self.op(*args)
        finally:
            self.emulator.emulator_set_order(0)
        assert first is None or torch.equal(bits(first), bits(second)), "sums depend on the order of threads"
        for store, once in zip(stores, first_stores, strict=True):
            assert torch.equal(store, once), "what is written depends on the order of threads"
        for store, old in zip(stores, before, strict=True):
            may_change = torch.zeros_like(store, dtype=torch.bool)
            for place, tensor in tensors:
                if place.is_write and tensor.untyped_storage().data_ptr() == store.data_ptr() and tensor.numel() > 0:
                    whole = may_change[: len(may_change) // tensor.itemsize * tensor.itemsize].view(-1, tensor.itemsize)
                    elements = whole.as_strided(
                        (*tensor.shape, tensor.itemsize),
                        (*(stride * tensor.itemsize for stride in tensor.stride()), 1),
                        tensor.storage_offset() * tensor.itemsize,
                    )
                    elements.fill_(True)
            assert not ((store != old) & ~may_change).any(), "memory beside the output was written"
        return second


class CheckedOps:
    """Stands in for ``torch.ops.lbgap``."""

    def __init__(self, emulator):
        self._emulator = emulator

    def __getattr__(self, name):
        op = CheckedOp(getattr(torch.ops.lbgap_emulated, name).default, self._emulator)
        setattr(self, name, op)
        return op


@pytest.fixture(scope="session")
def emulator():
    """The emulator's own functions."""
    torch.ops.load_library(LIBRARY)
    library = ctypes.CDLL(LIBRARY)
    library.emulator_launched.restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="session")
def native():
    """The compiled ops of the CPU."""
    return torch.ops.lbgap


@pytest.fixture(scope="session", autouse=True)
def kernels(emulator, native):
    """Every call of a compiled op goes to the CUDA kernels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.ops.lbgap = CheckedOps(emulator)
    yield
    torch.ops.lbgap = native
    torch.set_num_threads(threads)


@pytest.fixture
def launched(emulator):
    """A function that says which kernels were launched since its last call."""

    def names():
        return emulator.emulator_launched().decode().split("\n")[:-1]

    names()
    return names


@pytest.fixture
def sparse():
    """A function that makes float32 vectors of any length; memory is taken where they are written."""

    def vector(length):
        room = mmap.mmap(-1, 4 * length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        return torch.frombuffer(room, dtype=torch.float32)

    return vector


# What the tests of the CPU's ops ask for.


@pytest.fixture
def backend():
    return "native"


@pytest.fixture
def where():
    return wrappers
