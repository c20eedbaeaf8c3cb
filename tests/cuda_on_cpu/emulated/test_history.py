"""The kernels of the history ops, by the tests of the CPU's."""

from tests.test_history import (  # noqa: F401
    pytestmark,
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
