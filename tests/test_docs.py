"""The examples in README, docs and docstrings run, and name only what exists."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import lbgap

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(lbgap.__path__, "lbgap.")
    if not module.name.rpartition(".")[2].startswith("_") and ".training.progress" not in module.name
]
OPTIONAL = {"optuna", "plotly", "psycopg", "pytorch_optimizer", "sklearn"}


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "example", "exec"), {"__name__": "example"})


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"no {error.name} on this machine")
    assert doctest.testmod(module).failed == 0


def test_every_public_name_is_documented() -> None:
    for name in lbgap.__all__:
        assert getattr(lbgap, name).__doc__, name


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
