"""The kernels of the subspace ops, by the tests of the CPU's and on what matters on a GPU."""

import pytest
import torch

from lbgap import ops
from lbgap.reference import DISTRIBUTIONS
from tests.ops.test_rng import (  # noqa: F401
    test_native_has_the_bits_of_the_twin,
    test_native_known_answers,
)
from tests.ops.test_subspace import (  # noqa: F401
    ARGS,
    DTYPES,
    normal,
    pytestmark,
    test_an_out_that_overlaps_the_centre_in_part_is_refused,
    test_any_layout,
    test_apply_and_project_are_adjoint,
    test_apply_is_the_dense_product,
    test_gram_is_the_dense_product,
    test_k_points_have_the_bits_of_one,
    test_nan_and_infinity_stay_where_they_belong,
    test_parts_of_the_rows_make_the_whole,
    test_project_is_the_dense_product,
    test_raw_apply_guards_memory,
)

PANELS = (1, 3, 4, 5, 31, 32, 33, 127, 128, 129)  # around the groups of columns that are drawn together
CODES = {name: code for code, name in enumerate(DISTRIBUTIONS)}


def _affordable(test, n=0, **others):
    """Whether a case takes no more time in the emulator than it is worth; the kernel has chunks of 2048 rows."""
    return test != "test_gram_is_the_dense_product" or n <= 2049


@pytest.mark.pairs({"p": PANELS, "k": [None, 1, 3, 4, 5, 9], "dtype": DTYPES, "distribution": DISTRIBUTIONS})
def test_points_have_the_bits_of_the_cpu(native, distribution, dtype, k, p):
    n, first, rows = 77, 2**32 - 40, () if k is None else (k,)
    x, z = normal(n, dtype=dtype), normal(*rows, p, seed=1)
    out, on_cpu = torch.full((2, *rows, n), torch.nan, dtype=dtype)
    ops.subspace_apply(x, z, *ARGS, distribution, out, first=first)
    native.subspace_apply(x, z, CODES[distribution], *ARGS, first, on_cpu)
    assert torch.equal(out, on_cpu)


@pytest.mark.pairs({"p": PANELS, "k": [1, 5], "distribution": DISTRIBUTIONS})
def test_products_agree_with_the_cpu(native, distribution, k, p):
    n, first = 300, 2**32 - 40
    g = normal(k, n, dtype=torch.float32)
    found = ops.subspace_project(g, p, *ARGS, distribution, first=first)
    on_cpu = native.subspace_project(g, p, CODES[distribution], *ARGS, first)
    # Both err by less than n 2^-53 of the sum of magnitudes; entries are below 6.7.
    assert ((found - on_cpu).abs() <= 2 * n * 2.0**-53 * 6.7 * g.double().abs().sum(1, keepdim=True)).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_rows_may_lie_further_apart_than_2_to_the_31(sparse, distribution):
    n, k, p, stride = 40, 3, 5, 2**31 + 4
    x, z, g = normal(n, dtype=torch.float32), normal(k, p), normal(k, n, dtype=torch.float32)
    out = torch.empty(k, n)
    ops.subspace_apply(x, z, *ARGS, distribution, out)
    far, far_g = (sparse((k - 1) * stride + n).as_strided((k, n), (stride, 1)) for _ in range(2))
    ops.subspace_apply(x, z, *ARGS, distribution, far)
    assert torch.equal(far, out)
    far_g.copy_(g)
    found = ops.subspace_project(far_g, p, *ARGS, distribution)
    assert torch.equal(found, ops.subspace_project(g, p, *ARGS, distribution))
