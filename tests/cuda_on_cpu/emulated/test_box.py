"""The box ops' kernels against NumPy, on the sizes and layouts of the CPU's tests and on those that matter on a GPU."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import given

from lbgap import ops, reference
from tests.ops.test_box import (  # noqa: F401
    DTYPES,
    OPS,
    SHAPES,
    assert_same,
    call,
    draw,
    lay,
    oracle,
    problems,
    pytestmark,
    quick,
    test_denormal_numbers_are_not_flushed,
    test_lazily_negated_views_are_read_and_written,
    test_native_refuses_an_out_that_overlaps_an_input_in_part,
    test_no_rows_at_all_in_any_layout,
    test_nothing_projects_onto_an_infinite_or_missing_centre,
    test_out_may_be_any_input_of_its_shape,
    test_out_of_any_other_layout_is_written,
    test_projection_is_idempotent_and_every_op_stays_in_the_box,
    test_raw_ops_guard_memory,
    test_raw_ops_guard_the_direction,
    test_result_is_within_rounding_of_exact_arithmetic,
    test_rows_may_be_expanded,
    test_zero_gradients_keep_the_point,
    test_zero_half_widths_give_the_centre,
)

BLOCK, THREADS = 8192, 256  # as csrc/cuda/map.cuh shares out coordinates
MORE = [32, *range(THREADS - 1, THREADS + 2), *range(4 * THREADS - 1, 4 * THREADS + 2), 300 * BLOCK // 100]
BOX = (1e-2, 3e-2)


def assert_sums(found, terms):
    """Sums in any order err by less than n 2^-53 of the sum of their magnitudes; what is not finite stays so."""
    for i, term in enumerate(terms):
        with np.errstate(all="ignore"):
            exact, size = term.sum(-1), np.abs(term).sum(-1)
            value = np.asarray(found[..., i])
            error = np.abs(value - exact)
        finite = np.isfinite(size)
        assert np.all(error[finite] <= 2 * term.shape[-1] * 2.0**-53 * size[finite])
        assert_same(np.isnan(value)[~finite & np.isfinite(term).all(-1)], False)
        has_nan = np.isnan(term).any(-1)
        assert np.isnan(value[has_nan]).all()


@pytest.mark.pairs({"shape": [*SHAPES, *((n,) for n in MORE), *((3, n) for n in MORE)], "dtype": DTYPES, "name": OPS})
def test_kernels_have_the_bits_of_the_oracle(native, name, dtype, shape):
    y, d, x = draw(shape, dtype)
    expected, terms = oracle(name, y.numpy(), d.numpy(), 0.1, x.numpy(), *BOX)
    out, on_cpu = torch.full_like(y, torch.nan), torch.full_like(y, torch.nan)
    sums = call(ops, name, y, d, 0.1, x, *BOX, out)
    call(native, name, y, d, 0.1, x, *BOX, on_cpu)
    assert_same(out, expected)
    assert torch.equal(out, on_cpu)
    if name == "box_project":
        assert sums is None
    else:
        assert (sums.shape, sums.dtype) == ((*shape[:-1], len(terms)), torch.float64)
        assert_sums(sums.numpy(), terms)
    call(ops, name, y, d, 0.1, x, *BOX, y)  # in place
    assert_same(y, expected)


@pytest.mark.parametrize("name", OPS)
@quick
@given(problem=problems())
def test_any_values_in_any_layout_in_place_or_not(name, problem):
    y, d, alpha, x, absolute, relative, layouts, in_place = problem
    expected, terms = oracle(name, y, d, alpha, x, absolute, relative)
    tensors = [lay(values, layout) for values, layout in zip((y, d, x), layouts, strict=False)]
    out = tensors[0] if in_place else lay(np.zeros_like(y), layouts[3])
    sums = call(ops, name, tensors[0], tensors[1], alpha, tensors[2], absolute, relative, out)
    assert_same(out, expected)
    if terms:
        assert_sums(sums.numpy(), terms)


@pytest.mark.pairs(
    {"offset": [0, 1, 2, 4], "n": [1, 31, 33, 1023, BLOCK + 5], "k": [None, 1, 3], "dtype": DTYPES, "name": OPS}
)
def test_rows_that_are_aligned_are_read_wide_and_others_narrow(launched, name, dtype, k, n, offset):
    rows = () if k is None else (k,)
    y, d, x = draw((*rows, n), dtype)
    width = 16 // dtype.itemsize

    def placed(values):
        stride = -(-n // width) * width + (offset if k == 3 else 0)
        room = values.new_full((offset + (k or 1) * stride,), torch.nan)
        return room[offset:].as_strided(values.shape, (*(stride for _ in rows), 1)).copy_(values)

    expected, _ = oracle(name, y.numpy(), d.numpy(), 0.1, x.numpy(), *BOX)
    out = placed(torch.zeros_like(y))
    call(ops, name, placed(y), placed(d), 0.1, x, *BOX, out)
    assert_same(out, expected)
    wide = offset % width == 0
    passes = [kernel for kernel in launched() if "map_kernel" in kernel]
    assert len(passes) == 1
    assert f"map_kernel<{width if wide else 1}," in passes[0]


@pytest.mark.parametrize("name", ["box_step", "box_vertex"])
def test_sums_of_many_blocks(name):
    y, d, x = draw((2, 40 * BLOCK + 77), torch.float32)
    expected, terms = oracle(name, y.numpy(), d.numpy(), 0.1, x.numpy(), *BOX)
    out = torch.empty_like(y)
    sums = call(ops, name, y, d, 0.1, x, *BOX, out)
    assert_same(out, expected)
    assert_sums(sums.numpy(), terms)
    for row in range(2):
        # A row alone has the bits of a row of several.
        one = call(ops, name, y[row], d[row], 0.1, x, *BOX, out[row])
        assert torch.equal(one, sums[row])
        assert abs(float(one[0]) - math.fsum(terms[0][row])) <= 1e-13 * math.fsum(np.abs(terms[0][row]))


@pytest.mark.parametrize("name", OPS)
def test_rows_may_lie_further_apart_than_2_to_the_31(name, sparse):
    n, stride = 40, 2**31 + 12
    y, d, x = draw((3, n), torch.float32)
    expected = torch.empty_like(y)
    call(reference, name, y, d, 0.1, x, *BOX, expected)
    far = [sparse(2 * stride + n).as_strided((3, n), (stride, 1)) for _ in range(3)]
    far[0].copy_(y)
    far[1].copy_(d)
    call(ops, name, far[0], far[1], 0.1, x, *BOX, far[2])
    assert torch.equal(far[2], expected)
