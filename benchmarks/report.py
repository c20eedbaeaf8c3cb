"""Turn a saved run into a Markdown table: ratios, shares of the machine's limits, and what was to be reached.

python -m benchmarks.report saved.json           prints the table
python -m benchmarks.report saved.json --write   puts it into benchmarks/README.md, between its markers, and draws
                                                 benchmarks/search.png, the values found against evaluations; a run on a
                                                 GPU goes into benchmarks/results/, a file for each kind of GPU
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lbgap.plotting.base import BLUE, GREEN, GREY, ORANGE, VERMILION, encode

COLORS, MARKERS = (BLUE, ORANGE, GREEN, VERMILION, GREY), "os^Dv"
TICKS = (10, 20, 50, 100, 200, 500)
BEGIN, END = "<!-- results -->", "<!-- /results -->"
README = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).with_name("results")
FIGURE = Path(__file__).with_name("search")
COLUMNS = ("row", "backend", "fastest", "median", "ratio", "of the limit", "peak", "value", "evaluations", "to reach")

Row = dict[str, Any]


def rows(saved: dict[str, Any]) -> dict[str, dict[str, Row]]:
    """The rows by group and backend, in the order in which they ran; the first of a group is its opponent."""
    groups: dict[str, dict[str, Row]] = {}
    for row in saved["benchmarks"]:
        facts = row["extra_info"]
        groups.setdefault(row["group"], {})[facts["backend"]] = {**facts, **row["stats"]}
    return groups


def share(row: Row, limits: dict[str, float]) -> float | None:
    """The time that the work takes at the machine's limits, as a share of the time that it took."""
    if not set(row["work"]) <= set(limits):
        return None
    return sum(amount / limits[name] for name, amount in row["work"].items()) / row["min"]


def verdicts(row: Row, group: dict[str, Row], limits: dict[str, float], quick: bool) -> list[str]:
    """What the row had to reach, and whether it did; the speed of a quick run is not judged."""
    found: list[str] = []
    for kind, against, factor in row["targets"]:
        if quick and kind not in ("value", "most"):
            continue
        if kind == "limit":
            reached, wanted = share(row, limits), f"{factor:.0%} of {against}"
        elif kind == "most":
            outcome = "reached" if row[against] <= factor else f"**lost** ({row[against]:.3g})"
            found.append(f"{factor:g} {against} at most: {outcome}")
            continue
        elif against not in group:
            continue
        elif kind == "faster":
            reached, wanted = group[against]["min"] / row["min"], f"{factor:g} x {against}"
        else:
            reached, wanted = row["value"] / group[against]["value"], f"value {factor:g} x {against}'s"
        if reached is not None:
            outcome = "reached" if reached >= factor else f"**lost** ({reached:.3g})"
            found.append(f"{wanted}: {outcome}")
    if not row.get("passed", True):
        found.append("**lost**: never passed, whole call timed")
    return found


def duration(seconds: float) -> str:
    """A time with three digits and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def header(saved: dict[str, Any]) -> list[str]:
    """On what, with what and at which limits the run was made."""
    about, commit = saved["lbgap"], saved["commit_info"]
    processor = saved["machine_info"]["cpu"].get("brand_raw", "unknown processor")
    where = processor if about["device"] == "cpu" else f"{about['device']}, {processor}"
    software = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    measured = ", ".join(
        f"copy {rate / 1e9:.3g} GB/s" if name == "copy" else f"{name} product {rate / 1e9:.3g} GFLOP/s"
        for name, rate in about["limits"].items()
    )
    lines = [
        f"{where}, {about['threads']} threads; {software}; commit {commit['id'][:7]}, {saved['datetime'][:10]}.",
        f"Limits probed in the same run: {measured}.",
    ]
    if commit["dirty"]:
        lines.append("The working tree had changes that are not in the commit.")
    if about["quick"]:
        lines.append("**A quick run: the sizes are too small to judge speed by.**")
    return lines


def table(saved: dict[str, Any]) -> str:
    """The whole report, in Markdown."""
    limits, quick = saved["lbgap"]["limits"], saved["lbgap"]["quick"]
    lines = [*header(saved), "", f"| {' | '.join(COLUMNS)} |", "|-" * len(COLUMNS) + "|"]
    for name, group in rows(saved).items():
        opponent = next(iter(group.values()))
        for backend, row in group.items():
            first = row is opponent
            sizes = ", ".join(f"{key} = {row[key]:,}" for key in ("n", "samples") if key in row)
            cells = (
                f"{name} ({sizes})" if first else "",
                backend,
                duration(row["min"]),
                duration(row["median"]),
                "1" if first else f"{opponent['min'] / row['min']:.3g}",
                number(share(row, limits), ".0%"),
                f"{row['peak_bytes'] / 1e6:.4g} MB" if "peak_bytes" in row else "",
                number(row.get("value"), ".6g"),
                number(row.get("evaluations"), ".4g"),
                "; ".join(verdicts(row, group, limits, quick)),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(saved: dict[str, Any]) -> None:
    """Draw what each search found, as a share of the largest of its group, against the evaluations that it took."""
    groups = {name: group for name, group in rows(saved).items() if name.startswith("search, ")}
    if not groups:
        return
    figure = Figure(figsize=(4.4 * len(groups), 4.4), layout="constrained")
    kinds: dict[str, tuple[str, str]] = {}
    for axes, (name, group) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        largest = max(row["value"] for row in group.values())
        for index, (backend, row) in enumerate(group.items()):
            kind = backend.split(",")[0]
            look = kinds.setdefault(kind, (COLORS[len(kinds) % len(COLORS)], MARKERS[len(kinds) % len(MARKERS)]))
            share_found = 100 * row["value"] / largest
            axes.plot(row["evaluations"], share_found, look[1], color=look[0], label=kind)
            axes.annotate(
                backend.partition(", ")[2],
                (row["evaluations"], share_found),
                (4, 4 if index % 2 else -9),
                fontsize=7,
                textcoords="offset points",
            )
        axes.set_xscale("log")
        axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axes.minorticks_off()
        axes.set_xlim(8, 3 * max(row["evaluations"] for row in group.values()))
        axes.set_xlabel("evaluations")
        axes.set_ylabel("phi, in percent of the largest found")
        axes.set_title(name.removeprefix("search, "))
    shown = {text.get_label(): text for axes in figure.axes for text in axes.get_lines()}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown), frameon=False)
    FIGURE.with_suffix(".png").write_bytes(encode(figure, "png"))


def write(text: str, saved: dict[str, Any]) -> Path:
    """Replace what stands between the markers of the README, or the file of a GPU; returns where."""
    device = saved["lbgap"]["device"]
    if device != "cpu":
        place = RESULTS / f"{re.sub('[^a-z0-9]+', '-', device.lower())}.md"
        place.parent.mkdir(exist_ok=True)
        place.write_text(
            f"# {device}\n\n`make bench-gpu`; columns and rows as in [the README](../README.md).\n\n{text}\n"
        )
        return place
    before, begin, rest = README.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{README.name} must hold {BEGIN} and then {END}")
    README.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    draw(saved)
    return README


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("saved", type=Path, help="what `pytest benchmarks/ --benchmark-json=saved.json` wrote")
    parser.add_argument("--write", action="store_true", help="put the table into its file")
    arguments = parser.parse_args()
    try:
        saved = json.loads(arguments.saved.read_text())
        if "lbgap" not in saved:
            raise ValueError("it is not a saved run of these benchmarks")
    except (OSError, ValueError) as error:
        sys.exit(f"cannot read {arguments.saved}: {error}")
    text = table(saved)
    if arguments.write:
        print(f"wrote {write(text, saved)}")
    else:
        print(text)


if __name__ == "__main__":
    main()
