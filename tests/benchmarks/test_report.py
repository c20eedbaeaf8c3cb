"""The command that draws the table of a saved benchmark run: it starts, and says what it cannot read."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_is_no_saved_run_is_refused_on_one_line(tmp_path):
    saved = tmp_path / "run.json"
    saved.write_text(json.dumps({"benchmarks": []}))
    command = [sys.executable, "-m", "benchmarks.report", str(saved)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == f"cannot read {saved}: it is not a saved run of these benchmarks\n"
