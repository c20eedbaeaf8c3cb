"""The kernels of the subspace ops, by the tests of the CPU's."""

from tests.test_rng import (  # noqa: F401
    test_native_has_the_bits_of_the_twin,
    test_native_known_answers,
)
from tests.test_subspace import (  # noqa: F401
    pytestmark,
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
