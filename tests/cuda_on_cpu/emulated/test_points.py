"""The kernels of the ops on many points, by the tests of the CPU's and on what matters on a GPU."""

import pytest
import torch

from lbgap import ops
from tests.ops import test_points as cpu_tests
from tests.ops.test_points import (  # noqa: F401
    CHUNK,
    DTYPES,
    OPS,
    SAMPLES,
    arguments,
    chain,
    exact_chain,
    labels,
    normal,
    pytestmark,
    test_blend_is_a_sum_in_float64_rounded_once,
    test_blend_of_any_layout,
    test_blend_of_what_is_not_finite,
    test_chain_of_any_layout,
    test_chain_of_what_is_not_finite,
    test_chain_without_an_end_that_takes_no_part,
    test_ends_are_themselves_to_the_bit_whatever_the_others_hold,
    test_raw_blend_refuses_an_out_that_overlaps_the_ends,
    test_raw_ops_guard_memory,
    test_raw_ops_make_targets_out_of_range_nan_and_read_nothing,
    test_xent_is_that_of_float64,
    test_xent_of_points_together_has_the_bits_of_each_alone,
    test_xent_of_what_is_not_finite_and_of_ties_is_that_of_torch,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exponential_and_logarithm_to_the_last_places(backend, dtype):
    cpu_tests.assert_exponential_and_logarithm(dtype, count=401)


@pytest.mark.parametrize("j", [1, 2, 3])
@pytest.mark.parametrize("k", [0, 1, 9])
def test_chain_of_every_number_of_points_and_ends(backend, k, j):
    cpu_tests.test_chain_of_every_number_of_points_and_ends(backend, k, j)


@pytest.mark.pairs(
    {
        "samples": [0, 1, 32, 33, SAMPLES + 1],
        "widths": [[1], [3, 2], [16, 9, 10], [7, 128, 5], [128, 127, 3]],
        "dtype": DTYPES,
    }
)
def test_chain_is_the_network_in_float64(native, dtype, widths, samples):
    args = chain(2, 3, samples, widths, dtype, scale=0.1)
    found, expected, on_cpu = ops.chain_points(*args), exact_chain(*args), native.chain_points.default(*args)
    bound = samples * torch.finfo(dtype).eps * sum(widths) * 4
    for other in (expected, on_cpu):
        assert ((found - other)[:, 0].abs() <= bound).all()
        assert torch.equal(found[:, 1], other[:, 1])


@pytest.mark.pairs({"m": [1, 255, 256, 257], "k": [1, 7, 8, 9], "dtype": DTYPES})
def test_blend_has_the_bits_of_the_cpu(native, dtype, k, m):
    coefficients, ends = normal(k, 3), normal(3, m, dtype=dtype)
    out, on_cpu = torch.full((2, k, m), torch.nan, dtype=dtype)
    ops.blend_points(coefficients, ends, out)
    native.blend_points.default(coefficients, ends, on_cpu)
    assert torch.equal(out, on_cpu)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 31, 32, 33, 127, 128, 129, 300])
def test_few_classes_go_to_a_thread_and_many_to_a_warp(native, launched, dtype, classes):
    logits, targets = normal(2, 37, classes, dtype=dtype) * 3, labels(37, classes)
    expected = native.xent_points.default(logits, targets)
    for laid, wide in ((logits, classes > 32), (logits.mT.contiguous().mT, False)):
        found = ops.xent_points(laid, targets)
        torch.testing.assert_close(found, expected, rtol=8 * torch.finfo(dtype).eps, atol=0)
        kernels = [kernel for kernel in launched() if "xent_kernel" in kernel]
        assert [f"xent_kernel<{str(wide).lower()}," in kernel for kernel in kernels] == [True]


def test_rows_may_lie_further_apart_than_2_to_the_31(sparse):
    k, n, stride = 2, 40, 2**31 + 4

    def far(values):
        rows = values.flatten(1)
        room = sparse((len(rows) - 1) * stride + rows.shape[1]).as_strided(rows.shape, (stride, 1))
        return room.copy_(rows).unflatten(1, values.shape[1:])

    logits, targets = normal(k, n, 3, dtype=torch.float32), labels(n, 3)
    assert torch.equal(ops.xent_points(far(logits), targets), ops.xent_points(logits, targets))
    coefficients, ends, out = arguments("blend_points", k, 2, n)
    ops.blend_points(coefficients, ends, out)
    apart = far(torch.zeros_like(out))
    ops.blend_points(coefficients, far(ends), apart)
    assert torch.equal(apart, out)
    coefficients, first, ends, widths, targets = arguments("chain_points", k, 2, n)
    expected = ops.chain_points(coefficients, first, ends, widths, targets)
    assert torch.equal(ops.chain_points(coefficients, far(first), far(ends), widths, targets), expected)
