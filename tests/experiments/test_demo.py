"""The demonstration: it runs to the end, goes on after Ctrl-C, and says what its numbers say."""

import dataclasses
import json
import math
import sys

import pytest
import torch

from lbgap.datasets import mnist1d
from lbgap.experiments.demo import EPSILONS, Phi, Row, _findings, demo, steps
from lbgap.experiments.paper import parts, plan

module = sys.modules["lbgap.experiments.demo"]  # the package's attribute of that name is the function

FILES = ["demo.json", "line.json", "line.png", "line.svg", "report.html", "result.json", "runs", "sharpness.png"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch, no_processes):
    """A small network on few samples, and no further processes."""
    few = mnist1d(200)
    for reader in (module, plan, parts):
        monkeypatch.setattr(reader, "load", lambda row, _: few)
    monkeypatch.setattr(module, "ROW", dataclasses.replace(module.ROW, small=8, hidden=(8,)))
    monkeypatch.setattr(module, "RESTARTS", 1)
    no_processes()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures and report take longer than all else; most tests do not look at them."""
    monkeypatch.setattr(module, "_write", lambda *_: None)


def read_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def without_seconds(rows):
    kept = []
    for row in rows:
        phi = tuple(dataclasses.replace(p, vertex_seconds=0.0, recipe_seconds=0.0) for p in row.phi)
        kept.append(dataclasses.replace(row, train_seconds=0.0, phi=phi))
    return kept


class TestRun:
    def test_from_training_to_the_report(self, tmp_path):
        said = []
        result = demo(tmp_path / "new" / "folder", seeds=2, updates=10, seed=3, step=said.append)
        folder = tmp_path / "new" / "folder"
        assert sorted(path.name for path in folder.iterdir()) == [*FILES, "sharpness.svg"]
        assert sorted(p.name for p in (folder / "runs").iterdir()) == ["lb-seed3", "lb-seed4", "sb-seed3", "sb-seed4"]
        assert [(row.regime, row.seed, row.batch_size) for row in result.rows] == [
            ("SB", 3, 8),
            ("LB", 3, 16),
            ("SB", 4, 8),
            ("LB", 4, 16),
        ]
        for row in result.rows:
            assert [phi.epsilon for phi in row.phi] == list(EPSILONS)
            assert all(phi.vertex > 0 and phi.recipe >= 0 and phi.recipe_status for phi in row.phi)
            assert row.distance > 0
        assert len(said) == steps(2)
        saved = read_json(folder / "result.json")
        assert saved["findings"] == list(result.findings)
        assert saved["rows"][0]["phi"][0]["vertex"] == result.rows[0].phi[0].vertex
        assert saved["settings"]["seeds"] == [3, 4]
        assert saved["settings"]["objective"]["batch_norm"] == "eval"
        assert "torch" in saved["settings"]["versions"]
        assert len(read_json(folder / "line.json")["alphas"]) == 25
        page = (folder / "report.html").read_text()
        assert result.findings[0] in page

    def test_updates_are_whole_epochs_and_those_that_were_made_are_told(self, tmp_path, undrawn):
        rows = demo(tmp_path, seeds=1, updates=24).rows
        # 160 samples: an epoch has 20 updates of 8, or 10 of 16.
        assert [row.updates for row in rows] == [20, 20]
        assert [row.updates for row in demo(tmp_path / "one", seeds=1, updates=1).rows] == [20, 10]

    @pytest.mark.parametrize("calls", [1, 2, 4, 11])
    def test_it_goes_on_after_an_interruption(self, tmp_path, calls, undrawn):
        whole = demo(tmp_path / "whole", seeds=1, updates=10)
        left = calls

        def interrupt(_):
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            demo(tmp_path / "cut", seeds=1, updates=10, step=interrupt)
        again = demo(tmp_path / "cut", seeds=1, updates=10)
        assert without_seconds(again.rows) == without_seconds(whole.rows)

    def test_more_starts_reuse_the_runs_that_are_there(self, tmp_path, undrawn):
        first = demo(tmp_path, seeds=1, updates=10)
        more = demo(tmp_path, seeds=2, updates=10)
        assert more.rows[0].train_seconds == first.rows[0].train_seconds
        assert without_seconds(more.rows)[:2] == without_seconds(first.rows)

    def test_a_test_loss_that_is_not_finite_is_nan_and_null(self, tmp_path, monkeypatch, undrawn):
        train = plan.train

        def overflow(*arguments, **options):
            run = train(*arguments, **options)
            run.metrics[-1]["test_loss"] = None
            return run

        monkeypatch.setattr(plan, "train", overflow)
        result = demo(tmp_path, seeds=1, updates=1)
        assert math.isnan(result.rows[0].test_loss)
        assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["rows"][0]["test_loss"] is None


class TestRefusals:
    def test_other_settings_in_the_same_folder(self, tmp_path, undrawn):
        demo(tmp_path, seeds=1, updates=1)
        before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
        for options in ({"updates": 2}, {"updates": 1, "seed": 1}):
            with pytest.raises(ValueError, match="holds a demonstration with other settings: choose another folder"):
                demo(tmp_path, seeds=1, **options)
        assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before

    def test_a_folder_of_something_else(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(FileExistsError, match="exists and holds no demonstration: choose another folder"):
            demo(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
        with pytest.raises(NotADirectoryError, match=r"thesis.tex is a file: choose another folder with --out"):
            demo(tmp_path / "thesis.tex")

    def test_a_damaged_mark(self, tmp_path):
        (tmp_path / "demo.json").write_text("{")
        with pytest.raises(ValueError, match=r"demo.json is damaged, not JSON"):
            demo(tmp_path)

    def test_an_empty_folder_and_the_leftover_of_a_killed_start_are_taken(self, tmp_path, undrawn):
        (tmp_path / ".demo.json.0123456789abcdef.tmp").write_text("{")
        demo(tmp_path, seeds=1, updates=1)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"seeds": 0}, ValueError, "seeds must be at least 1, got 0"),
            ({"updates": 0}, ValueError, "updates must be at least 1, got 0"),
            ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
            ({"seeds": 1.0}, TypeError, "seeds must be a whole number, got 1.0"),
            ({"updates": True}, TypeError, "updates must be a whole number, got True"),
        ],
    )
    def test_numbers(self, tmp_path, options, error, message):
        with pytest.raises(error, match=message):
            demo(tmp_path / "new", **options)
        assert not (tmp_path / "new").exists()


def make_row(regime, vertex, recipe, accuracy=90.0, distance=10.0):
    """A row whose sharpnesses are the same at every epsilon."""
    phi = tuple(Phi(epsilon, vertex, 2.0, recipe, 1.0, "") for epsilon in EPSILONS)
    return Row(regime, 0, 32, 100, 0.1, 99.0, 0.5, accuracy, distance, 1.0, phi)


def findings(*pairs):
    """Findings on pairs of ``(vertex, recipe)``, SB and LB."""
    found = list(
        _findings([make_row(regime, *phi) for pair in pairs for regime, phi in zip(("SB", "LB"), pair, strict=True)])
    )
    for start, epsilon in enumerate(EPSILONS):
        assert all(finding.startswith(f"epsilon {epsilon:g}: ") for finding in found[2 * start : 2 * start + 2])
    return found


class TestFindings:
    def test_the_paper_is_right(self):
        first, second = findings(((10.0, 10.0), (40.0, 40.0)), ((20.0, 20.0), (30.0, 30.0)))[:2]
        assert "of 2 starts, the LB minimizer is the sharper one from 2 and the SB one from 0" in first
        assert "median phi at least 35 % (LB) against 15 % (SB), 2.33 times." in first
        assert "a smaller maximum than vertex ascent for 0, a larger one for 0, and no rise at all for 0" in second
        assert "other way round from 0 and calls them equal from 0." in second

    def test_the_sb_minimizer_is_sharper(self):
        first = findings(((40.0, 40.0), (10.0, 10.0)))[0]
        assert "of 1 start, the LB minimizer is the sharper one from 0 and the SB one from 1" in first
        assert "at least 10 % (LB) against 40 % (SB), 0.25 times." in first

    def test_the_recipe_is_stuck_at_zero(self):
        second = findings(((10.0, 0.0), (40.0, 0.0)), ((10.0, 5.0), (40.0, 0.0)))[1]
        assert "of 4 minimizers" in second
        assert "a smaller maximum than vertex ascent for 4, a larger one for 0, and no rise at all for 3" in second
        assert "other way round from 1 and calls them equal from 1." in second

    def test_the_recipe_finds_more(self):
        # By what is known, the larger of the two values, SB is the sharper one here.
        first, second = findings(((10.0, 90.0), (40.0, 50.0)))[:2]
        assert "the LB minimizer is the sharper one from 0 and the SB one from 1" in first
        assert "at least 50 % (LB) against 90 % (SB)" in first
        assert "a smaller maximum than vertex ascent for 0, a larger one for 2" in second
        assert "other way round from 0 and calls them equal from 0." in second

    def test_ties_count_for_neither(self):
        found = findings(((10.0, 10.0), (10.0, 10.0)))
        assert "the LB minimizer is the sharper one from 0 and the SB one from 0" in found[0]
        assert "other way round from 0 and calls them equal from 0." in found[1]
        assert "in the mean; of 1 start, SB is better from 0 and LB from 0." in found[4]

    def test_differences_of_rounding_are_the_same_maximum(self):
        second = findings(((10.0, 9.995), (40.0, 40.03)))[1]
        assert "a smaller maximum than vertex ascent for 0, a larger one for 0" in second

    def test_zeros_everywhere(self):
        rows = [make_row(regime, 0.0, 0.0, accuracy=0.0, distance=0.0) for regime in ("SB", "LB")]
        first, second, *_ = found = list(_findings(rows))
        assert "median phi at least 0 % (LB) against 0 % (SB)." in first
        assert "smaller maximum than vertex ascent for 0, a larger one for 0, and no rise at all for 2" in second
        assert found[5] == "Distance from the start: 0 (SB) against 0 (LB) in the median."

    def test_accuracy_distance_and_time(self):
        rows = [
            make_row("SB", 1.0, 1.0, accuracy=90.0, distance=30.0),
            make_row("LB", 1.0, 1.0, accuracy=80.0, distance=10.0),
            make_row("SB", 1.0, 1.0, accuracy=91.0, distance=math.nan),
            make_row("LB", 1.0, 1.0, accuracy=92.0, distance=20.0),
        ]
        accuracy, distance, time = list(_findings(rows))[4:]
        assert accuracy == (
            "Test accuracy: 90.50 % (SB) against 86.00 % (LB) in the mean; of 2 starts, SB is better from 1 and LB "
            "from 1."
        )
        assert distance.startswith("Distance from the start: ")
        assert "16.0 s by vertex ascent from 2 starts each, 8.0 s by the paper's recipe from one." in time
