"""Statuses: one place for all sentences, each of them used, and none with a place that nothing fills."""

import ast
import copy
import pickle
import re
from pathlib import Path
from string import Formatter

import pytest

import lbgap
from lbgap.status import SENTENCES, Status, status

FOLDER = Path(lbgap.__file__).parent
SOURCES = {path: ast.parse(path.read_text()) for path in FOLDER.rglob("*.py") if path != FOLDER / "status.py"}


def places(key):
    return {name for _, name, _, _ in Formatter().parse(SENTENCES[key]) if name is not None}


def words(tree):
    """The strings in a piece of code."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def keys_of(tree):
    """The keys that the first argument of ``status`` may be; nothing is known of a variable."""
    found = words(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else None for part in node.values)
            pattern = "".join(".+" if part is None else re.escape(part) for part in parts)
            found -= words(node)
            found |= {key for key in SENTENCES if re.fullmatch(pattern, key)} or {pattern}
    return found


def calls():
    """Each call of ``status``: where, its keys, and the names of what it fills in."""
    for path, tree in SOURCES.items():
        names = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "lbgap.status"
            for alias in node.names
            if alias.name == "status"
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield f"{path.name}:{node.lineno}", keys_of(node.args[0]), {keyword.arg for keyword in node.keywords}


CALLS = list(calls())


def test_every_status_used_is_written_down():
    assert len(CALLS) > 20
    for where, keys, _ in CALLS:
        assert keys <= set(SENTENCES), where


def test_every_sentence_is_used():
    used = set().union(*(words(tree) for tree in SOURCES.values()), *(keys for _, keys, _ in CALLS))
    assert set(SENTENCES) - used == set()


def test_every_place_is_filled():
    for where, keys, given in CALLS:
        for key in keys:
            expected = places(key) | ({"name"} if key.startswith("*") else set())
            assert None in given or expected <= given, f"{where}: {key}"  # None is a call with **numbers


@pytest.mark.parametrize("key", SENTENCES)
def test_a_sentence_is_one_line_and_its_places_have_names(key):
    assert "\n" not in SENTENCES[key]
    assert all(place.isidentifier() for place in places(key))
    name, _, _ = key.partition(".")
    assert name == "*" or name.isidentifier()
    assert not SENTENCES[key].endswith(".")


def test_a_status_is_its_sentence_and_has_a_name():
    made = status("limit.gradients", gradients=20)
    assert made.name == "limit"
    assert made == "stopped after 20 gradients, the limit: more iterations may find a larger value"
    assert "the limit" in made
    assert f"{made}" == str(made)
    assert type(str(made)) is str
    assert status("exact").name == "exact"


def test_a_status_in_another_keeps_the_name_that_is_given():
    inner = status("converged.step")
    made = status("*.lbfgsb", name=inner.name, ended=inner, iterations=3, gradients=4)
    assert made.name == "converged"
    assert made == "L-BFGS-B converged: the last step gained nothing (3 iterations, 4 gradients)"


def test_copies_keep_the_name():
    made = Status("limit", "the limit")
    for other in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert (type(other), other, other.name) == (Status, "the limit", "limit")


def test_what_is_wrong_is_said():
    with pytest.raises(KeyError, match="unheard_of"):
        status("unheard_of")
    with pytest.raises(KeyError, match="gradients"):
        status("limit.gradients")
    for wrong in ({"key": "*.because"}, {"key": "no_gradient", "name": "limit"}):
        key, rest = wrong.pop("key"), wrong
        with pytest.raises(ValueError, match=r"name is that of a status whose key begins with '\*', got "):
            status(key, **rest)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_status_survives_each_protocol(protocol):
    made = status("exact")
    again = pickle.loads(pickle.dumps(made, protocol))
    assert (again, again.name) == (made, made.name)


@pytest.mark.parametrize("name", sorted({key.partition(".")[0] for key in SENTENCES} - {"*"}))
def test_each_name_is_explained(name):
    page = FOLDER.parent / "docs" / "measures.md"
    if not page.exists():
        pytest.skip("needs the source tree")
    assert re.search(rf"^\| [^|]*`{name}`[^|]* \|", page.read_text(), re.MULTILINE)
