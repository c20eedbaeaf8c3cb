"""The kernels of the history ops, by the tests of the CPU's."""

import math

import pytest
import torch

from lbgap import ops, reference
from tests.ops.test_history import (  # noqa: F401
    DTYPES,
    OPS,
    WRITTEN,
    Problem,
    pytestmark,
    run,
    test_a_box_is_its_bounds_to_the_bit,
    test_append,
    test_cauchy,
    test_cauchy_at_its_limits,
    test_cauchy_of_the_dense_model,
    test_cauchy_where_the_slope_turns_often,
    test_cauchy_with_all_breakpoints_at_once,
    test_combine,
    test_gram,
    test_gram_of_any_share_of_free_coordinates,
    test_half_widths_are_not_negative,
    test_inputs_are_left_alone,
    test_line,
    test_native_and_twin_agree,
    test_outputs_that_overlap_inputs_are_refused,
    test_rows_outside_of_the_history_are_refused,
    test_step,
    test_step_in_place,
    test_wrong_shapes_and_dtypes_are_refused,
)


def _affordable(test, n=0, c=0, **others):
    """Whether a case takes no more time in the emulator than it is worth: a thread takes a microsecond a barrier."""
    agreement = test == "test_native_and_twin_agree" and n > 8000 and c != 1
    return n * c <= 90_000 and not (c > 0 and n == 8191) and not agreement


# What matters on a GPU alone

EDGES = (31, 32, 33, 255, 256, 257, 1023, 1024, 1025)  # around warps, blocks of threads and tiles


def same_bits(one, other):
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@pytest.mark.pairs({"n": EDGES, "dtype": DTYPES, "name": OPS})
def test_sizes_around_warps_and_blocks(n, dtype, name):
    test_native_and_twin_agree(n, 2, dtype, name)


@pytest.mark.parametrize("n", [32_767, 32_769])
def test_cauchy_around_its_chunks(where, n):
    test_cauchy(where, n, 1, torch.float32)


@pytest.mark.parametrize("name", ["history_cauchy", "history_combine"])
@pytest.mark.parametrize("c", [10, 11, 25])
def test_more_numbers_than_one_launch_uploads(name, c):
    p = Problem(300, c, torch.float64)
    sums, written = run(ops, name, p.arguments(name))
    twin_sums, twin = run(reference, name, p.arguments(name))
    torch.testing.assert_close(written[0], twin[0], rtol=1e-9, atol=1e-9)
    if sums is not None:
        torch.testing.assert_close(sums, twin_sums, rtol=1e-9, atol=1e-9)


@pytest.mark.pairs({"n": [1, 33, 8193], "dtype": DTYPES, "name": ["history_append", "history_combine", "history_step"]})
def test_points_have_the_bits_of_the_cpu(native, n, dtype, name):
    p = Problem(n, 3, dtype)
    _, written = run(ops, name, p.arguments(name))
    _, on_cpu = run(native, name, p.arguments(name))
    assert all(same_bits(one, other) for one, other in zip(written, on_cpu, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_step_of_vectors_that_are_not_aligned(launched, dtype):
    p = Problem(1000, 0, dtype)
    expected = torch.empty_like(p.x)
    reference.history_step(p.x, p.point, 0.5, *p.bounds, expected)
    for offset, width in ((0, 16 // dtype.itemsize), (1, 1)):
        x, z, lower, upper, out = (
            torch.full((1000 + offset,), torch.nan, dtype=dtype)[offset:].copy_(values)
            for values in (p.x, p.point, p.lower, p.upper, p.x)
        )
        ops.history_step(x, z, 0.5, lower, upper, 0.0, 0.0, out)
        assert torch.equal(out, expected)
        assert [f"map_kernel<{width}," in kernel for kernel in launched()] == [True]


@pytest.mark.parametrize("name", ["history_append", "history_cauchy", "history_gram", "history_combine"])
def test_rows_of_the_history_may_lie_further_apart_than_2_to_the_31(sparse, name):
    n, c, stride = 40, 3, 2**31 + 4
    p = Problem(n, c, torch.float32)
    arguments = list(p.arguments(name))
    sums, written = run(ops, name, arguments)
    for i, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor) and argument.shape == (c, n):
            arguments[i] = sparse((c - 1) * stride + n).as_strided((c, n), (stride, 1)).copy_(argument)
    far_sums = getattr(ops, name)(*arguments)
    assert sums is None or same_bits(far_sums, sums)
    assert all(same_bits(arguments[i], one) for i, one in zip(WRITTEN[name], written, strict=True))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_ends_too(name, value):
    """No search goes on forever, and nothing is read or written that should not be."""
    p = Problem(100, 2, torch.float32)
    for tensor in (p.x, p.g, p.point, p.s, p.y):
        tensor.view(-1)[::7] = value
    run(ops, name, p.arguments(name))
