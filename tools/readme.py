"""Puts the demonstration into README, as it was printed, and keeps what was measured in docs/example/.

python tools/readme.py lbgap-demo sharpness.json            from what README's two commands wrote
python tools/readme.py lbgap-demo sharpness.json --check    only says where these have other numbers than README
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lbgap.cli import demo as demo_command
from lbgap.cli import sharpness as sharpness_command
from lbgap.cli.show import write
from lbgap.experiments.demo import Demo, Phi, Row
from lbgap.experiments.tables import Cell

ROOT = Path(__file__).resolve().parent.parent
README, EXAMPLE, FIGURES = ROOT / "README.md", ROOT / "docs" / "example", ROOT / "docs" / "figures"
WIDTH = 80  # columns
TIMES = re.compile(r"seconds$|^findings$|^versions$")  # what differs from run to run, or is said again in words


def demonstration(found: dict[str, Any]) -> list[Table | str]:
    """What `lbgap demo` prints of its result.json, but for the last line."""
    rows = []
    for row in found["rows"]:
        numbers: dict[str, Any] = {key: math.nan if value is None else value for key, value in row.items()}
        rows.append(Row(**{**numbers, "phi": tuple(Phi(**phi) for phi in row["phi"])}))
    return demo_command.parts(Demo(tuple(rows), tuple(found["findings"]), found["settings"], Path(), found["seconds"]))


def tables(found: dict[str, Any]) -> list[Table | str]:
    """What `lbgap sharpness --paper` prints of its file, but for the last line."""
    groups = {
        name: [Cell(cell["space"], cell["epsilon"], cell["method"], tuple(cell["values"])) for cell in cells]
        for name, cells in found["groups"].items()
    }
    return sharpness_command.table_parts(groups, found["seconds"], found["restarts"])


BLOCKS = {"demo": demonstration, "tables": tables}  # by the names of markers in README, and of files in docs/example/


def text(parts: Iterable[Table | str]) -> str:
    """What a terminal of 80 columns shows."""
    screen = io.StringIO()
    write(Console(file=screen, width=WIDTH, color_system=None), parts)
    return "\n".join(line.rstrip() for line in screen.getvalue().splitlines())


def replaced(page: str, name: str, shown: str) -> str:
    """A page with a text between the markers of a block."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{README.name} must hold {begin} and then {end}")
    return f"{before}{begin}\n```text\n{shown}\n```\n{end}{after}"


def measured(demo: Path, paper: Path) -> dict[str, dict[str, Any]]:
    """What was measured for each block; tables without what each of their sharpnesses says of itself."""
    found = json.loads(paper.read_text())
    restarts = max(one["settings"]["restarts"] for one in found.pop("results"))
    return {"demo": json.loads((demo / "result.json").read_text()), "tables": {**found, "restarts": restarts}}


def differences(there: Any, here: Any, where: str = "") -> Iterator[str]:
    """Where two results have other numbers, times aside."""
    if isinstance(there, dict) and isinstance(here, dict) and there.keys() == here.keys():
        for key in there:
            if not TIMES.search(key):
                yield from differences(there[key], here[key], f"{where}.{key}".lstrip("."))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, pair in enumerate(zip(there, here, strict=True)):
            yield from differences(*pair, f"{where}[{index}]")
    elif there != here:
        yield f"{where}: {there} in {README.name}, {here} now"


def main() -> str | None:
    """Write, or compare; returns what is wrong, if anything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the folder that `lbgap demo` wrote")
    parser.add_argument("tables", type=Path, help="the file that `lbgap sharpness --paper` wrote")
    parser.add_argument("--check", action="store_true", help="write nothing, compare the numbers")
    arguments = parser.parse_args()
    try:
        found = measured(arguments.demo, arguments.tables)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{arguments.demo} and {arguments.tables} are no demonstration with its tables: {error}"
    if arguments.check:
        kept = {name: json.loads((EXAMPLE / f"{name}.json").read_text()) for name in BLOCKS}
        others = list(differences(kept, found))
        return (
            "\n".join(["another processor or torch rounds differently, and so does a change:", *others])
            if others
            else None
        )
    page = README.read_text()
    for name, parts in BLOCKS.items():
        (EXAMPLE / f"{name}.json").write_text(json.dumps(found[name], indent=1, allow_nan=False) + "\n")
        page = replaced(page, name, text(parts(found[name])))
    README.write_text(page)
    for figure in ("sharpness", "line"):
        shutil.copyfile(arguments.demo / f"{figure}.png", FIGURES / f"{figure}.png")
    return None


if __name__ == "__main__":
    sys.exit(main())
