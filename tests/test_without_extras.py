"""The suite where only what lbgap needs is installed: what needs more is skipped, and says so."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXTRAS = ("optuna", "plotly", "psycopg", "pytorch_optimizer", "sklearn", "hypothesis", "pytest_benchmark")
EXTRAS += ("transformers", "timm", "torchvision", "peft", "torch_geometric")


def test_every_file_is_collected_or_says_what_it_misses(tmp_path):
    (tmp_path / "without_extras.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS}))\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "without_extras", "-p", "no:cacheprovider", "tests"]
    command += ["--collect-only", "-qq", "-rs"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    skipped = dict(re.findall(r"^SKIPPED \[1\] (\S+?):\d+: could not import '(\w+)'", done.stdout, re.MULTILINE))
    assert skipped["tests/sweeps/test_killed.py"] == "optuna"
    assert set(skipped.values()) <= set(EXTRAS)
