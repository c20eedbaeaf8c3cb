"""No test of an op is forgotten in the emulator: what emulated/ leaves out of tests/ops stands here, with a reason."""

import ast
import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")

HERE = Path(__file__).parent
FILES = sorted((HERE.parent / "ops").glob("test_*.py"))
EMULATED = [importlib.import_module(f"tests.cuda_on_cpu.emulated.{p.stem}") for p in HERE.glob("emulated/test_*.py")]
CALLS_AN_OP = re.compile(r"\b(ops|native|backend|where|needs_native)\b")

# Judged by the wrapper or by torch's dispatcher, before any kernel.
BEFORE_A_KERNEL = {
    *("test_opcheck", "test_opcheck_without_what_may_be_missing", "test_fakes_have_the_shapes"),
    *(
        "test_compile_traces_through_without_a_break",
        "test_meta_tensors_give_shapes",
        "test_inference_tensors_are_welcome",
    ),
    *("test_a_graph_that_saved_out_notices_that_it_was_written", "test_a_graph_that_saved_what_is_written_notices"),
    *("test_wrappers_refuse", "test_wrappers_refuse_directions", "test_apply_refuses", "test_project_refuses"),
    *("test_half_widths_are_finite_in_the_dtype_and_not_negative", "test_step_length_is_finite_in_the_dtype"),
    *("test_out_whose_elements_share_memory_is_refused", "test_wrappers_refuse_dual_numbers", "test_vmap_is_refused"),
    *(
        "test_wrappers_refuse_function_transforms",
        "test_raw_ops_refuse_function_transforms",
        "test_gradients_are_refused",
    ),
    *("test_raw_ops_refuse_gradients", "test_raw_ops_refuse_to_mix_devices"),
    *("test_raw_ops_refuse_gradients_and_several_devices", "test_wrappers_refuse_gradients_and_several_devices"),
}
# Of the threads of the CPU, or of the order of its sums.
OF_THE_CPU = {
    *("test_bits_do_not_depend_on_the_number_of_threads", "test_entries_do_not_depend_on_the_number_of_threads"),
    "test_native_has_the_bits_of_the_oracle_and_of_the_twin",  # emulated: test_kernels_have_the_bits_of_the_oracle
    "test_xent_has_the_same_bits_in_any_layout",  # on a GPU the layout chooses between a thread and a warp
    "test_drawing_changes_no_global_state",
}
# Minutes in the emulator; smaller sizes of the same are there.
TOO_LONG = {
    *("test_sums_of_a_million_agree_with_exact_summation", "test_gram_of_the_matrix"),
    "test_normal_entries_of_a_million_rows_have_the_bits_of_the_twin",
}
EXCEPTIONS = BEFORE_A_KERNEL | OF_THE_CPU | TOO_LONG


def sources(path):
    """The source of each test in a file, decorators and all, by name."""
    text = path.read_text()
    lines = text.splitlines()
    return {
        node.name: "\n".join(lines[min(part.lineno for part in (node, *node.decorator_list)) - 1 : node.end_lineno])
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def emulated(path):
    """The names of the tests in those files of emulated/ that take something from this one."""
    origin = f"tests.ops.{path.stem}"
    users = [vars(one) for one in EMULATED if any(getattr(x, "__module__", "") == origin for x in vars(one).values())]
    return {name for module in users for name in module if name.startswith("test_")}


def forgotten(path):
    calling = {name for name, source in sources(path).items() if CALLS_AN_OP.search(source)}
    return calling - emulated(path) - EXCEPTIONS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_test_that_calls_an_op_runs_on_its_kernel(path):
    assert not forgotten(path), "import these in tests/cuda_on_cpu/emulated/, or name them here and why not"


def test_a_forgotten_one_is_found(tmp_path):
    path = tmp_path / "test_box.py"
    path.write_text(
        "def helper(ops): pass\n\n"
        "def test_new(backend):\n    call(ops)\n\n"
        "@needs_native\ndef test_raw():\n    call()\n\n"
        "def test_zero_half_widths_give_the_centre(backend):\n    call(ops)\n\n"
        "def test_of_numpy():\n    assert oracle()\n"
    )
    assert forgotten(path) == {"test_new", "test_raw"}


def test_no_exception_is_out_of_date():
    everywhere = {name for path in FILES for name in sources(path)}
    assert everywhere >= EXCEPTIONS
    imported = [emulated(path) & sources(path).keys() & EXCEPTIONS for path in FILES]
    assert imported == [set()] * len(FILES)
