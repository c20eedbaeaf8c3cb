"""The kernels of the ops on tangents, by the tests of the CPU's and on what matters on a GPU."""

import pytest
import torch

from lbgap import ops
from tests.ops.test_tangents import (  # noqa: F401
    DTYPES,
    OPS,
    WINDOWS,
    problem,
    pytestmark,
    run,
    test_a_place_outside_of_the_plane_gives_nan,
    test_activations_are_differentiated_as_by_autograd,
    test_affine_is_the_derivative_of_batch_norm,
    test_affine_without_some_of_its_terms,
    test_an_out_that_overlaps_an_input_in_part_is_refused,
    test_any_layout_is_read_and_written,
    test_bfloat16_is_rounded_as_torch_rounds,
    test_inputs_are_left_alone,
    test_pooling_in_one_dimension,
    test_pooling_is_that_of_autograd,
    test_raw_ops_guard_memory,
    test_results_are_within_rounding_of_float64,
    test_softmax_is_the_hessian_of_cross_entropy,
    test_what_is_not_finite_stays_in_its_row,
)

EDGES = (31, 32, 33, 255, 256, 257, 1023, 1024, 1025)  # around warps and blocks of threads


def same_bits(one, other):
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@pytest.mark.pairs(
    {
        "windows": ["overlapping", "with gaps"],
        "shape": [*((2, 1, n, 1, 1) for n in EDGES), (3, 2, 4, 8, 6), (1, 3, 2, 5, 7)],
        "dtype": DTYPES,
        "name": OPS,
    }
)
def test_results_have_the_bits_of_the_cpu(native, name, dtype, shape, windows):
    args, out = problem(name, shape, dtype, WINDOWS[windows] if shape[3] > 1 else ([1, 1], [1, 1], [0, 0], [1, 1]))
    found, on_cpu = run(ops, name, args, out), run(native, name, args, out)
    if name == "tangents_softmax":  # whose sum has another tree, in float64, and is then rounded
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(found, on_cpu, rtol=eps, atol=eps * float(args[0].abs().max()))
    else:
        assert same_bits(found, on_cpu)


@pytest.mark.pairs(
    {"size": [8, 9, 12], "offset": [0, 1, 2, 4, 8], "dtype": DTYPES, "name": ["tangents_scale", "tangents_curve"]}
)
def test_what_is_aligned_is_read_wide_and_the_rest_narrow(launched, name, dtype, offset, size):
    args, out = problem(name, (3, 2, size, 1, 1), dtype)
    expected = run(ops, name, args, out)
    launched()

    def place(values):
        return values.new_full((values.numel() + offset,), torch.nan)[offset:].view(values.shape).copy_(values)

    to = place(torch.zeros(out, dtype=dtype))
    getattr(ops, name)(*(place(arg) for arg in args), to)
    assert torch.equal(to, expected)
    width = 16 // max(dtype.itemsize, 4)
    wide = size % width == 0 and offset * dtype.itemsize % 16 == 0
    (kernel,) = set(launched())
    assert f"each_kernel<{width if wide else 1}," in kernel
