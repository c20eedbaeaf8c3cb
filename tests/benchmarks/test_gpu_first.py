"""What a first run on a GPU writes, and when it says that something failed; its parts run in ``.ci/run``, on a CPU."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_first import rows, table
from lbgap import _extension

ROOT = Path(__file__).parents[2]


@pytest.fixture
def out(monkeypatch, tmp_path):
    """The folder that rows go to, in a process that has written none."""
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(rows, "GPU", False)
    monkeypatch.setattr(rows, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset({"cpu"}))
    monkeypatch.setattr(rows, "_good", [])
    return tmp_path


def saved(out):
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def fail():
    raise ValueError("it is broken")


@pytest.mark.parametrize(
    ("works", "status"),
    [
        ([], 1),
        ([dict], 0),
        ([dict, lambda: {"ok": 1 > 2, "relative": 3.0}], 1),
        ([fail, dict], 1),
    ],
    ids=["no row", "good", "wrong", "error"],
)
def test_a_part_fails_where_a_row_did_or_none_was_written(out, works, status):
    def work():
        for number, each in enumerate(works):
            rows.tried("some", f"row {number}", each)

    with pytest.raises(SystemExit) as end:
        rows.part(work)
    assert end.value.code == status


def test_without_a_compiled_library_nothing_runs(out, monkeypatch):
    monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    with pytest.raises(SystemExit, match="no compiled library serves cpu: build it first"):
        rows.part(fail)
    assert not (out / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("changed", "parts", "message"),
    [
        ({}, ["smoke", "op"], "there is no part op: "),
        ({"GPU_FIRST_STRETCH": "0.5"}, ["smoke"], "GPU_FIRST_STRETCH must be a whole number, got 0.5"),
    ],
)
def test_what_is_misspelt_is_refused_before_anything_runs(tmp_path, changed, parts, message):
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "GPU_FIRST_DEVICE": "cpu", **changed}
    command = ["bash", "benchmarks/gpu_first.sh", *parts]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_failed_build_ends_it(tmp_path):
    script = (
        (ROOT / "benchmarks" / "gpu_first.sh")
        .read_text()
        .replace("build() {\n  needs_gpu\n", "build() {\n  return 7\n")
    )
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gpu_first.sh").write_text(script)
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "GPU_FIRST_DEVICE": "cpu", "PYTHON": "true"}
    command = ["bash", str(tmp_path / "benchmarks" / "gpu_first.sh"), "build", "smoke", "table"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert [line.split(" in ")[0] for line in done.stdout.splitlines()] == [
        "build: rc 7",
        "the build failed: without it the other parts say nothing",
    ]
    done = subprocess.run([*command[:2], "smoke"], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split(" in ")[0]) == (0, "smoke: rc 0")  # whatever an earlier call left in OUT


def test_every_row_has_ok_or_an_error_and_the_table_lists_what_failed(out, capsys):
    rows.row("ops", "copy", ok=True, gbs=3000.0)
    rows.tried("ops", "box_step", lambda: {"us": 7.0})
    rows.tried("hvp", "engine", lambda: {"ok": False, "relative": 2.0})
    rows.tried("hvp", "general", fail)
    found = saved(out)
    assert [(row["part"], row["what"], row.get("ok")) for row in found] == [
        ("ops", "copy", True),
        ("ops", "box_step", True),
        ("hvp", "engine", False),
        ("hvp", "general", None),
    ]
    assert found[3]["error"] == "ValueError: it is broken"
    capsys.readouterr()
    table.table()
    assert (out / "table.md").read_text().splitlines()[2] == '| ops | copy | ok=True | {"gbs": 3000.0} |'
    printed = capsys.readouterr().out.splitlines()
    assert printed[-3] == "4 rows, 2 failed"
    assert [line.split(" | ")[1] for line in printed[-2:]] == ["engine", "general"]


def test_a_part_that_fails_does_not_stop_the_others_but_is_told(tmp_path):
    python = tmp_path / "python"  # fails whatever it is asked, but for the table
    python.write_text('#!/bin/sh\ncase "$*" in *table*) echo a table ;; *) exit 5 ;; esac\n')
    python.chmod(0o755)
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": str(python), "GPU_FIRST_DEVICE": "cpu"}
    command = ["bash", "benchmarks/gpu_first.sh", "smoke", "launch", "table", "hvp"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    told = done.stdout.splitlines()
    assert [line.split(" in ")[0] for line in told] == [
        "smoke: rc 5",
        "launch: skipped: needs a GPU",
        "hvp: rc 5",
        "a table",
    ]
    assert done.returncode == 1
    log = (tmp_path / "out" / "parts.log").read_text().splitlines()
    assert log == told[:3]
