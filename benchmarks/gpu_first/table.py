"""All rows of a first run as a table in Markdown, ``table.md``, and on the screen those that failed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FIRST = ("ok", "error", "us", "host_us", "share_of_copy", "tflops", "total_seconds")
LAST_LINES, WIDTH = 90, 160  # of the table on the screen


def line(row: dict[str, Any]) -> str:
    main = " ".join(f"{key}={row[key]}" for key in FIRST if key in row)
    rest = {key: value for key, value in row.items() if key not in (*FIRST, "part", "what")}
    return f"| {row['part']} | {row['what']} | {main} | {json.dumps(rest) if rest else ''} |"


def table() -> None:
    """Write the table, and say what failed."""
    out = Path(os.environ["OUT"])
    saved = out / "rows.jsonl"
    rows = [json.loads(text) for text in saved.read_text().splitlines()] if saved.exists() else []
    lines = ["| part | what | | |", "|---|---|---|---|", *map(line, rows)]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    failed = [line(row) for row in rows if not row.get("ok", False)]
    print("\n".join(text[:WIDTH] for text in lines[-LAST_LINES:]))
    print("\n".join([f"{len(rows)} rows, {len(failed)} failed", *(text[: 2 * WIDTH] for text in failed)]))


if __name__ == "__main__":
    table()
