"""The examples in README, docs and docstrings run, and all of them name only what exists."""

import configparser
import doctest
import functools
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
OPTIONAL = {"optuna", "plotly", "psycopg", "pytorch_optimizer", "sklearn", "timm", "tokenizers", "transformers"}


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(block, "example", "exec"), {"__name__": "example"})
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"no {error.name} on this machine")


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


def layers() -> list[list[str]]:
    """From top to bottom, the parts of each layer of the package: what `make lint` checks."""
    contracts = configparser.ConfigParser(comment_prefixes="#")
    contracts.read(ROOT / ".importlinter")
    return [re.findall(r"\w+", line) for line in contracts["importlinter:contract:house"]["layers"].split("\n") if line]


def test_each_folder_of_the_package_has_an_order() -> None:
    contracts = configparser.ConfigParser(comment_prefixes="#")
    contracts.read(ROOT / ".importlinter")
    ordered = {contracts[name].get("containers") for name in contracts.sections()}
    packages = {name for _, name, is_package in pkgutil.walk_packages(lbgap.__path__, "lbgap.") if is_package}
    assert {"lbgap", *packages} == ordered - {None}


def test_the_pages_about_the_inside_have_the_layers_that_are_checked() -> None:
    design, where = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("design", "where"))
    drawn = re.search(r"```text\n(.*?)```", design, re.DOTALL)
    assert drawn is not None
    assert [re.findall(r"\w+", re.split(r"  +", line)[0]) for line in drawn[1].splitlines()] == layers()
    table = where[where.index("| layer |") :].split("\n\n")[0].splitlines()[2:]
    assert [re.findall(r"`(\w+)`", row.split("|")[1]) for row in table] == layers()


TEXTS = [
    path
    for folder in ("lbgap", "csrc", "tests", "tools", "benchmarks", "examples", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".md", ".h", ".cpp", ".cu", ".cuh", ".sh")
]
TEXTS += [*sorted(ROOT.glob("*.md")), ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / ".importlinter"]
PLACES = "lbgap|csrc|tests|tools|benchmarks|examples|docs"
PLACEHOLDER = re.compile(r"(?<![A-Z])(NAME|FAMILY)(?![A-Z])|[*<]")


def is_there(name: str) -> bool:
    """Whether a dotted name of the package leads to a module or to something in one."""
    parts = name.split(".")
    for place in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:place]))
        except ModuleNotFoundError as error:
            if error.name in OPTIONAL:
                return True
            continue
        try:
            functools.reduce(getattr, parts[place:], found)
            return True
        except AttributeError:
            continue
    return False


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_what_exists_is_named(path: Path) -> None:
    text = path.read_text()
    for name in sorted(set(re.findall(r"(?<![\w./-])lbgap(?:\.[A-Za-z_]\w*)+", text))):
        assert is_there(name), f"there is no {name}"
    for module, names in re.findall(
        r"from (lbgap[\w.]*) import ((?:\w+(?: as \w+)?(?:, )?)+)", text
    ):  # in strings, too
        for name in re.split(r"(?: as \w+)?(?:, |$)", names):
            assert not name or is_there(f"{module}.{name}"), f"there is no {name} in {module}"
    for named in sorted(set(re.findall(rf"(?<![\w./-])((?:{PLACES})/[\w./*<>-]*\w)", text))):
        assert PLACEHOLDER.search(named) or named in MADE_UP or (ROOT / named).exists(), f"there is no {named}"
    if path.suffix == ".md":  # such as `hessian/engine.py`, from whichever folder the text is about
        for named in sorted(set(re.findall(r"`([\w/-]+\.(?:py|h|cu|cuh|cpp|sh|toml))`", text)) - MADE_UP):
            ends = path_ends()
            assert PLACEHOLDER.search(named) or named in ends, f"there is no {named}"


MADE_UP = {"network_zoo.py", "benchmarks/results"}  # of a user's, and made on a GPU


@functools.cache
def path_ends() -> set[str]:
    """Every file of the project from each of its folders on: ``csrc/cuda/map.cuh``, ``cuda/map.cuh``, ``map.cuh``."""
    files = [path.relative_to(ROOT).parts for path in [*TEXTS, *ROOT.glob("*.*")]]
    return {"/".join(parts[start:]) for parts in files for start in range(len(parts))}
