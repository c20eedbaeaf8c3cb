"""The public names of ``lbgap``: what a user sees, and that nothing is loaded before it is used."""

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import lbgap

HEAVY = ("torch", "numpy", "scipy", "matplotlib")


def fresh(code):
    """What a new process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_dir_has_what_users_call_and_nothing_else():
    assert dir(lbgap) == sorted([*lbgap.__all__, "__version__"])
    before = fresh("import lbgap; print(dir(lbgap))")
    assert before == f"{dir(lbgap)}\n"  # whatever was loaded


def test_the_import_loads_nothing():
    assert fresh(f"import sys, lbgap; dir(lbgap); print([name for name in {HEAVY} if name in sys.modules])") == "[]\n"


def test_type_checkers_are_told_of_the_same_objects():
    tree = ast.parse(Path(lbgap.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    said = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(said) == sorted(lbgap.__all__)
    for name, module in said.items():
        assert getattr(lbgap, name) is getattr(importlib.import_module(module), name), name


def test_all_ways_to_import():
    code = "import lbgap; from lbgap import fast_sharpness as f; from lbgap import *; import lbgap.measures as m\n"
    assert fresh(code + "print(lbgap.fast_sharpness is f is fast_sharpness is m.fast_sharpness)") == "True\n"


def test_packages_are_found_without_an_import_of_their_own():
    assert fresh("import lbgap; print(lbgap.datasets.NAMES[0], lbgap.plotting.base.__name__)").split()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("fast_sharpnes", ": did you mean 'fast_sharpness'?"), ("zzz", ""), ("measures.nothing", ""), ("__wrapped__", "")],
)
def test_a_wrong_name_has_a_hint(name, hint):
    with pytest.raises(AttributeError) as error:
        getattr(lbgap, name)
    assert str(error.value) == f"module 'lbgap' has no attribute {name!r}{hint}"


def test_a_package_that_cannot_be_loaded_is_no_wrong_name():
    code = (
        "import sys, lbgap; sys.modules['matplotlib'] = None\ntry:\n    lbgap.plotting\nexcept ImportError as error:\n"
    )
    assert "matplotlib" in fresh(code + "    print(error)")


def test_the_version_is_that_of_the_installed_package():
    assert lbgap.__version__ == importlib.metadata.version("lbgap")
