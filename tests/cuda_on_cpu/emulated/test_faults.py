"""The emulator reports kernels with planted mistakes, each by its own words, and lets sound ones pass."""

import pytest
import torch

FAULTS = {
    "read_beyond": "reads 4 bytes, 0 bytes after 512 bytes of heap memory, in faults.cu",
    "write_beyond": "block 1, thread 63: out of bounds: writes 4 bytes, 0 bytes after 512 bytes of heap memory",
    "write_before": "writes 4 bytes, 4 bytes before 512 bytes of heap memory",
    "shared_beyond": "index beyond an array",
    "shared_far_beyond": "writes 4 bytes, 0 bytes after a shared variable of 256 bytes",
    "local_beyond": "index beyond an array",
    "misaligned": "misaligned access, at faults.cu",
    "missing_barrier": (
        "race: .* what thread .*, with no barrier between them, in faults.cu|shared memory that no thread"
    ),
    "missing_second_barrier": "race: .* what thread .* with no barrier between them",
    "missing_syncwarp": "race: .* what thread .*, with no barrier between them",
    "missing_syncwarp_of_sums": "race: reads what thread .* writes, with no barrier between them",
    "same_word": "race: writes what thread (0|63) of another block writes",
    "other_block": "race: .* what thread (0|63) of another block",
    "global_race": "race: .* what thread",
    "garbage": "thread (5|63): reads shared memory that no thread has written",
    "divergent_barrier": "threads are at different barriers: 32 threads 0, 2, 4, 6, ... at __syncthreads, faults.cu",
    "early_end": "threads wait for each other: 63 threads 0, 1, 2, 3, ... at __syncthreads, .* thread 5 ended",
    "lane_outside_mask": "__shfl_down_sync",
    "lane_missing": "threads wait for each other: .* at __shfl_down_sync",
    "source_outside_mask": "reads lane 16, which is not in the mask 0000ffff",
    "overflow": "signed overflow of a product, at faults.cu",
    "host_stack": "reads a local variable of the host",
    "too_many_threads": "2 blocks of 2048 threads are no valid launch of reverse_kernel",
}


def fault(name, values):
    torch.ops.faults_emulated.fault(values, name)


@pytest.fixture(params=[0, 1], ids=["rising", "falling"])
def order(request, emulator):
    emulator.emulator_set_order(request.param)
    yield
    emulator.emulator_set_order(0)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("name", FAULTS)
def test_a_mistake_is_reported(name):
    with pytest.raises(RuntimeError, match=FAULTS[name].replace("...", r"\.\.\.")) as found:
        fault(name, torch.arange(128.0))
    assert "_kernel" in str(found.value)


@pytest.mark.usefixtures("order")
def test_sound_kernels_pass_before_and_after_others_fail():
    for name in ("write_beyond", "early_end", "divergent_barrier"):
        values = torch.arange(128.0)
        fault("reverse", values)
        assert torch.equal(values, torch.arange(128.0).view(2, 64).flip(1).flatten())
        fault("scan", values)
        expected = torch.arange(128.0).view(2, 64).flip(1).reshape(4, 32).cumsum(1).flatten()
        assert torch.equal(values, expected)
        with pytest.raises(RuntimeError, match=f"{name}_kernel"):
            fault(name, values)


def test_launches_are_named(launched):
    fault("reverse", torch.arange(128.0))
    assert launched() == ["reverse_kernel"]
    assert launched() == []
