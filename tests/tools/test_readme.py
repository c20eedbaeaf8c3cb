"""README's demonstration is what was measured, as a tool wrote it from results that are kept."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import readme

ROOT = Path(__file__).parents[2]
KEPT = {name: json.loads((readme.EXAMPLE / f"{name}.json").read_text()) for name in readme.BLOCKS}


@pytest.mark.parametrize("name", readme.BLOCKS)
def test_readme_shows_what_was_measured(name):
    shown = readme.text(readme.BLOCKS[name](KEPT[name]))
    page = (ROOT / "README.md").read_text()
    assert readme.replaced(page, name, shown) == page
    assert max(map(len, shown.splitlines())) <= readme.WIDTH


def test_the_seconds_in_the_text_are_those_of_the_demonstration():
    told = re.search(r"in (\d+) seconds:\n\n<!-- demo -->", (ROOT / "README.md").read_text())
    assert told is not None
    assert int(told[1]) == round(KEPT["demo"]["seconds"])


def test_the_tables_are_of_the_minimizers_of_the_demonstration():
    sharpness = [[phi["recipe"] for phi in row["phi"]] for row in KEPT["demo"]["rows"]]
    for place, group in enumerate(KEPT["tables"]["groups"].values()):
        cells = [cell for cell in group if (cell["space"], cell["method"]) == ("full space", "recipe")]
        expected = zip(*sharpness[place::2], strict=True)
        for cell, values in zip(cells, expected, strict=True):
            assert cell["values"] == pytest.approx(values, rel=1e-6)


def test_a_page_without_its_markers_is_refused():
    with pytest.raises(ValueError, match=r"README\.md must hold <!-- demo --> and then <!-- /demo -->"):
        readme.replaced("# lbgap\n<!-- demo -->\n", "demo", "x")


def test_differences_are_named_and_times_are_none():
    changed = copy.deepcopy(KEPT)
    changed["demo"]["seconds"] += 1
    changed["demo"]["rows"][0]["phi"][0]["vertex_seconds"] += 1
    assert list(readme.differences(KEPT, changed)) == []
    before = changed["demo"]["rows"][2]["phi"][1]["vertex"]
    changed["demo"]["rows"][2]["phi"][1]["vertex"] = 7.0
    assert list(readme.differences(KEPT, changed)) == [f"demo.rows[2].phi[1].vertex: {before} in README.md, 7.0 now"]


def test_a_folder_without_a_demonstration_is_refused_on_one_line(tmp_path):
    command = [sys.executable, "tools/readme.py", str(tmp_path), "sharpness.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))} and sharpness\.json are no demonstration with its tables: .*\n", done.stderr
    )
