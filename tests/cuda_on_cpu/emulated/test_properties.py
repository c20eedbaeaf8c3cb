"""The kernels on any combination of sizes, layouts and numbers, by the tests of the CPU's."""

from tests.ops.test_properties import (  # noqa: F401
    pytestmark,
    test_append,
    test_apply_and_project,
    test_blend,
    test_cauchy,
    test_chain,
    test_combine,
    test_entries_have_the_bits_of_the_twin,
    test_gram,
    test_line_and_step,
    test_native_and_twin_agree,
    test_pointwise_tangents,
    test_pooling,
    test_xent,
)
