"""The paper's experiments: trained, measured and reported once, whatever interrupts them."""

import csv
import dataclasses
import functools
import json
import math
import multiprocessing
import shutil

import pytest
import torch
from matplotlib.image import imread

from lbgap import datasets
from lbgap.experiments.paper import EXPERIMENTS, ROWS, Plan, Row, choose, paper, parts, plan, read_paper, run
from lbgap.experiments.paper.cells import mean_and_deviation
from lbgap.experiments.paper.page import write_paper
from lbgap.experiments.paper.parts import run_folder
from lbgap.experiments.paper.summary import _verdict, growth
from lbgap.system import processes
from lbgap.training import read_run
from lbgap.training.load import load_model

REMEDIES = ("ghost:size={small}", "batches:{turn}={large}", "augment:shift=0.1,shape=41", "local-sgd:workers={workers}")
QUICK = {"rows": ["MLP-DIGITS"], "trials": 2, "updates": 24, "remedies": REMEDIES, "remedy_trials": 1}


@pytest.fixture(autouse=True)
def tiny(monkeypatch, no_processes):
    """Few samples and restarts, and no further processes."""
    pytest.importorskip("sklearn")
    whole = datasets.digits()
    few = datasets.Data(whole.name, *(type(whole.train)(*(p[:200] for p in s)) for s in (whole.train, whole.test)), 10)
    for module in (plan, parts):
        monkeypatch.setattr(module, "load", lambda row, _: few)
    monkeypatch.setattr(parts, "WAY_RESTARTS", 0)
    monkeypatch.setattr(run, "Plan", functools.partial(Plan, restarts=0))
    monkeypatch.setitem(ROWS, "OTHER", Row("OTHER", "mlp", "digits", 10, (8,), "F1"))
    no_processes()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where :func:`done` keeps what it made."""
    return {"folder": tmp_path_factory.mktemp("paper") / "all"}


@pytest.fixture
def done(made):
    """A folder with all experiments of two trials."""
    if "ready" not in made:
        paper(made["folder"], **QUICK)
        made["ready"] = True
    return made["folder"]


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")}


class TestRun:
    def test_every_part_of_every_experiment_is_there(self, done):
        stored = read_paper(done)
        assert stored["experiments"] == list(EXPERIMENTS)
        assert list(stored["runs"]) == [("MLP-DIGITS", regime, seed) for seed in (0, 1) for regime in ("SB", "LB")]
        kinds = {name for needed in EXPERIMENTS.values() for name in needed}
        assert {part["part"] for part in stored["parts"]} == kinds == set(parts.KINDS)
        small, large = (stored["runs"]["MLP-DIGITS", regime, 0] for regime in ("SB", "LB"))
        assert (small["batch"], large["batch"], small["samples"]) == (16, 20, 200)
        assert len(small["metrics"]) == 2  # 24 updates in whole epochs
        found = [part for part in stored["parts"] if part["part"] == "sharpness"]
        assert len(found) == 4
        assert {(one["space"], one["epsilon"], one["method"]) for one in found[0]["sharpness"]} == {
            (space, epsilon, method)
            for space in ("full space", "manifold")
            for epsilon in (1e-3, 5e-4)
            for method in ("vertex", "recipe")
        }
        assert {part["number"] for part in stored["parts"] if part["part"] == "batch"} == {4, 8, 40}
        [line] = [part for part in stored["parts"] if part["part"] == "line"]
        models = (load_model(read_run(run_folder(done, ROWS["MLP-DIGITS"], regime, 0))) for regime in ("SB", "LB"))
        ends = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]
        assert line["distance"] == pytest.approx(float((ends[0] - ends[1]).norm()), rel=1e-5)
        warm = [part for part in stored["parts"] if part["part"] == "warm"]
        assert {part["number"] for part in warm} == {1, 2}
        assert all(part["batch"] == 20 for part in warm)

    def test_remedies_have_as_many_updates_and_one_that_raises_stops_no_other(self, done):
        found = {part["name"]: part for part in read_paper(done)["parts"] if part["part"] == "remedy"}
        assert {name: part["remedy"] for name, part in found.items()} == {
            "ghost": "ghost:size=16",
            "batches": "batches:2=20",
            "augment": "augment:shift=0.1,shape=41",
            "local-sgd": "local-sgd:workers=2",
        }
        assert found["augment"]["error"].startswith("shape of augment is (41,), but a sample has 64 values")
        # Without: 2 epochs of 10 batches. One of 13 and one of 10; 3 of 13 between two workers.
        kept = {name: part["updates"] for name, part in found.items() if "error" not in part}
        assert kept == {"ghost": 20, "batches": 23, "local-sgd": 20}
        run = read_run(done / "runs" / "MLP-DIGITS-batches-seed0")
        assert run.config["remedies"] == {"batches": {"2": 20}}
        assert (run.config["batch_size"], [epoch["batch_size"] for epoch in run.metrics]) == (16, [16, 20])
        assert (done / "parts" / "remedy-MLP-DIGITS-batches-seed0.json").exists()

    def test_further_batch_sizes_are_trained_for_every_row_and_remedies_for_the_first(self, tmp_path):
        two = Plan(choose(["MLP-DIGITS", "OTHER"]), 2, 24, remedies=("swa",), first_seed=3)
        found = [(part.row.name, part.seed, part.number) for part in parts.parts("batch", two, tmp_path)]
        assert found == [(name, 3, number) for name in ("MLP-DIGITS", "OTHER") for number in (4, 8, 40)]
        assert [(part.row.name, part.seed) for part in parts.parts("remedy", two, tmp_path)] == [
            ("MLP-DIGITS", 3),
            ("MLP-DIGITS", 4),
        ]

    def test_interrupting_a_remedy_ends_the_call(self, done, tmp_path, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        copy = shutil.copytree(done, tmp_path / "copy")
        (copy / "parts" / "remedy-MLP-DIGITS-ghost-seed0.json").unlink()
        monkeypatch.setattr(parts, "_trained", interrupt)
        with pytest.raises(KeyboardInterrupt):
            paper(copy, **QUICK)
        assert not (copy / "parts" / "remedy-MLP-DIGITS-ghost-seed0.json").exists()

    def test_remedies_are_added_but_not_changed(self, tmp_path):
        wanted = {"rows": ["MLP-DIGITS"], "trials": 1, "updates": 8, "experiments": ["table2"]}
        paper(tmp_path, **wanted, remedies=["swa"], remedy_trials=1)
        paper(tmp_path, **wanted, remedies=["ghost:size=8"])
        plan = read_paper(tmp_path)["plan"]
        assert (plan["remedies"], plan["remedy_trials"]) == (["swa", "ghost:size=8"], None)
        with pytest.raises(ValueError, match=r"was begun with the remedy 'ghost:size=8', not 'ghost': choose another"):
            paper(tmp_path, **wanted, remedies=["ghost"])

    def test_warm_starts_begin_at_the_iterate(self, done):
        run = read_run(done / "runs" / "MLP-DIGITS-warm2-seed0")
        first = read_run(done / "runs" / "MLP-DIGITS-SB-seed0")
        assert run.config["model"]["start"] != first.config["model"]["start"]
        assert run.config["batch_size"] == 20
        iterates = sorted(path.name for path in (done / "runs" / "MLP-DIGITS-warm2-seed0" / "iterates").iterdir())
        begin = (done / "runs" / "MLP-DIGITS-warm2-seed0" / "iterates" / iterates[0]).read_bytes()
        assert begin == (done / "runs" / "MLP-DIGITS-SB-seed0" / "iterates" / "epoch-00002.safetensors").read_bytes()

    def test_nothing_finished_is_done_again(self, done):
        before = times(done)
        paper(done, **QUICK)
        after = times(done)
        assert {path for path in after if after[path] != before.get(path)} <= {done / "paper.json"}

    @pytest.mark.parametrize("calls", [2, 4, 6])
    def test_it_goes_on_after_an_interruption(self, tmp_path, calls):
        wanted = {"experiments": ["figure3", "figure6"], "rows": ["MLP-DIGITS"], "trials": 1, "updates": 24}
        left = calls

        def interrupt(*_):
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            paper(tmp_path / "cut", **wanted, step=interrupt)
        paper(tmp_path / "cut", **wanted)
        paper(tmp_path / "whole", **wanted)
        one, two = (read_paper(tmp_path / name) for name in ("cut", "whole"))
        assert timeless(one) == timeless(two)

    def test_trials_rows_and_experiments_are_added(self, tmp_path):
        paper(tmp_path, rows=["MLP-DIGITS"], trials=1, updates=24, experiments=["table2"])
        before = times(tmp_path / "runs")
        paper(tmp_path, rows=["other"], trials=2, updates=24, experiments=["distance"])
        stored = read_paper(tmp_path)
        assert stored["experiments"] == ["table2", "distance"]
        assert [row["name"] for row in stored["plan"]["rows"]] == ["MLP-DIGITS", "OTHER"]
        assert stored["plan"]["trials"] == 2
        assert before.items() <= times(tmp_path / "runs").items()

    def test_steps_count_down(self, tmp_path):
        said = []
        paper(
            tmp_path, rows=["MLP-DIGITS"], trials=1, updates=8, experiments=["figure3"], step=lambda *s: said.append(s)
        )
        assert said == [
            ("training MLP-DIGITS, SB, seed 0", 2),
            ("training MLP-DIGITS, LB, seed 0", 1),
            ("training: done", 0),
            ("measuring line of MLP-DIGITS", 1),
            ("measuring: done", 0),
        ]


def timeless(value):
    """What is stored, without wall-clock times."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key != "seconds"}
    return [timeless(one) for one in value] if isinstance(value, list) else value


class TestReport:
    def test_it_needs_what_is_stored_alone(self, done, tmp_path):
        copy = shutil.copytree(done, tmp_path / "copy")
        write_paper(copy)
        first = {path.name: path.read_bytes() for path in (copy / "report").iterdir()}
        page = (copy / "report.html").read_bytes()
        shutil.rmtree(copy / "report")
        write_paper(copy)
        assert (copy / "report.html").read_bytes() == page
        assert {path.name: path.read_bytes() for path in (copy / "report").iterdir()} == first

    def test_tables_and_figures(self, done):
        path = write_paper(done)
        page = path.read_text()
        for caption in ("figure 2", "figure 3", "figure 4", "figure 5", "figure 6", "figure 7"):
            assert f"({caption})" in page
        assert page.count("data:image/svg+xml;base64,") == len(list((done / "report").glob("*.svg"))) == 11
        assert 'src="http' not in page
        rows = list(csv.reader((done / "report" / "table3.csv").read_text().splitlines()))
        assert rows[0] == ["", "epsilon", "SB", "LB", "SB, recipe", "LB, recipe", "SB, paper", "LB, paper"]
        assert rows[1][6:] == ["1.23 ± 0.83", "205.14 ± 69.52"]
        stored = read_paper(done)
        values = [
            one["value"]
            for part in stored["parts"]
            if part["part"] == "sharpness" and part["regime"] == "LB"
            for one in part["sharpness"]
            if (one["space"], one["epsilon"], one["method"]) == ("full space", 1e-3, "vertex")
        ]
        assert rows[1][3] == mean_and_deviation(values)
        rows = list(csv.reader((done / "report" / "remedies-MLP-DIGITS.csv").read_text().splitlines()))
        assert [row[0] for row in rows] == ["", "none, SB", "none, LB", "ghost", "batches", "augment", "local-sgd"]
        assert rows[5] == ["augment", "", "", "", "", "", "0 of 1, 1 failed", "augment:shift=0.1,shape=41"]
        assert "not measured" not in page
        assert "augment from seed 0 failed: shape of augment is (41,)" in page
        assert all(imread(path).ndim == 3 for path in (done / "report").glob("*.png"))

    def test_a_sign_test(self):
        assert _verdict("F1", "phi", {0: 1.0, 1: 1.0, 2: 3.0}, {0: 2.0, 1: 2.0, 2: 4.0}, "sharper") == (
            "F1, phi: LB is sharper in 3 of 3 trials (sign test, one-sided: p = 0.125)."
        )
        assert "in 1 of 2 trials, the other way round in 1" in _verdict(
            "F1", "phi", {0: 1.0, 1: 2.0}, {0: 2.0, 1: 1.0}, ""
        )
        assert _verdict("F1", "phi", {0: 1.0}, {0: 1.0}, "sharper") == "F1, phi: LB is sharper in 0 of 1 trials."
        assert "1 of 1" in _verdict("F1", "phi", {0: 1.0, 1: 2.0}, {0: math.inf}, "sharper")

    @pytest.mark.parametrize(
        ("values", "shown"),
        [
            ([], ""),
            ([2.0], "2"),
            ([1.0, 3.0], "2 ± 1.4"),
            ([12345.6, 12345.6], "12346 ± 0"),
            ([math.inf], "1 of 1 not finite"),
            ([1.0, 2.0, math.inf], "1 of 3 not finite"),
        ],
    )
    def test_means(self, values, shown):
        assert mean_and_deviation(values) == mean_and_deviation(values, len(values)) == shown

    @pytest.mark.parametrize(
        ("values", "shown"),
        [([], "0 of 4"), ([1.0, 3.0], "2 ± 1.4 (2 of 4)"), ([1.0, math.nan], "1 of 2 not finite (2 of 4)")],
    )
    def test_fewer_trials_than_planned_are_told(self, values, shown):
        assert mean_and_deviation(values, 4) == shown

    def test_growth_is_the_slope_in_the_logarithm(self):
        metrics = [{"epoch": epoch, "distance": 3 + 2 * math.log(epoch)} for epoch in (1, 2, 5, 10)]
        assert growth(metrics) == pytest.approx(2)
        assert growth(metrics[:1]) is None
        assert growth([{"epoch": 1, "distance": None}, *metrics[1:]]) == pytest.approx(2)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"rows": ["MLP-DIGIT"]}, ValueError, "got 'MLP-DIGIT': did you mean 'MLP-DIGITS'?"),
            ({"rows": ["C1-MNIST1D", "c1-mnist1d"]}, ValueError, "each row may be named once"),
            ({"experiments": ["table5"]}, ValueError, "got 'table5': did you mean 'table"),
            ({"trials": 0}, ValueError, "trials must be at least 1, got 0"),
            ({"trials": 1.5}, TypeError, "trials must be a whole number, got 1.5"),
            ({"updates": 0}, ValueError, "updates must be at least 1, got 0"),
            ({"workers": 0}, ValueError, "workers must be at least 1, got 0"),
            ({"workers": 1.5}, TypeError, "workers must be a whole number, got 1.5"),
            ({"remedy_trials": 0}, ValueError, "remedy_trials must be at least 1, got 0"),
            ({"remedies": ["gost"]}, ValueError, "there is no remedy 'gost'"),
            ({"remedies": ["ghost:size={smal}"]}, ValueError, "got {smal} in 'ghost:size={smal}'"),
            ({"remedies": ["ghost:size={"]}, ValueError, "'ghost:size={' is no short form of a remedy"),
            ({"remedies": ["swa", "swa"]}, ValueError, "each remedy may be named once, got swa 2 times"),
            (
                {"remedies": "swa"},
                TypeError,
                "remedies must be short forms such as ['swa', ",
            ),
            ({"batch_norm": "train"}, ValueError, "batch_norm must be 'eval' or 'batch', got 'train'"),
            ({"device": "gpu"}, ValueError, "device must be 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
            ({"rows": ["F1"]}, ValueError, "F1: a tenth of 200 samples is no larger than the small batch of 256"),
        ],
    )
    def test_bad_arguments_leave_nothing(self, tmp_path, options, error, message):
        with pytest.raises(error) as caught:
            paper(tmp_path / "new", **{**QUICK, **options})
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "new").exists()

    def test_other_settings(self, done):
        for options, name in (
            ({"updates": 30}, "updates"),
            ({"batch_norm": "batch"}, "batch_norm"),
            ({"seed": 1}, "seed"),
        ):
            with pytest.raises(ValueError, match=rf"was begun with \w*{name} .*: choose another folder"):
                paper(done, **{**QUICK, **options})

    def test_another_version(self, done, tmp_path):
        copy = shutil.copytree(done, tmp_path / "copy")
        mark = json.loads((copy / "paper.json").read_text())
        (copy / "paper.json").write_text(json.dumps({**mark, "format": "lbgap paper 0"}))
        for call in (lambda: paper(copy, **QUICK), lambda: write_paper(copy)):
            with pytest.raises(ValueError, match="has format 'lbgap paper 0', this version reads 'lbgap paper 1'"):
                call()

    def test_folders_that_hold_something_else(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError, match="is a file: choose another folder"):
            paper(tmp_path / "file", **QUICK)
        with pytest.raises(FileExistsError, match="holds no experiments of the paper: choose another folder"):
            paper(tmp_path, **QUICK)
        with pytest.raises(ValueError, match=r"holds no experiments of the paper \(no paper\.json\)"):
            write_paper(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: name one that lbgap paper wrote"):
            write_paper(tmp_path / "nowhere")

    def test_a_damaged_part(self, done, tmp_path):
        copy = shutil.copytree(done, tmp_path / "copy")
        next((copy / "parts").glob("line-*.json")).write_text("{")
        with pytest.raises(ValueError, match="is damaged, not JSON"):
            write_paper(copy)


@pytest.mark.parametrize(
    ("workers", "sizes"),
    [
        (1, {("MLP-MNIST1D", "SB"): [3], ("MLP-MNIST1D", "LB"): [1, 1, 1], ("C1-MNIST1D", "SB"): [1, 1, 1]}),
        (6, {("MLP-MNIST1D", "SB"): [2, 1]}),
        (99, {("MLP-MNIST1D", "SB"): [1, 1, 1]}),
    ],
)
def test_small_steps_are_taken_together_while_each_process_has_work(tmp_path, workers, sizes):
    whole = Plan(choose(["MLP-MNIST1D", "C1-MNIST1D"]), 3, 100)
    works = [
        plan.Training(row, regime, batch, seed, 2, tmp_path / f"{row.name}-{regime}-{seed}", whole)
        for row in whole.rows
        for seed in whole.seeds
        for regime, batch in plan.batches_of(row, 4000).items()
    ]
    groups = plan.grouped(works, workers)
    assert sorted(map(id, works)) == sorted(id(one) for group in groups for one in group)
    for (row, regime), expected in sizes.items():
        assert [len(g) for g in groups if (g[0].row.name, g[0].regime) == (row, regime)] == expected
    assert all(len({(one.row, one.batch, one.epochs) for one in group}) == 1 for group in groups)


def test_together_is_as_alone(tmp_path):
    kept = []
    for workers in (1, 99):
        folder = tmp_path / str(workers)
        paper(folder, rows=["MLP-DIGITS"], experiments=["table2"], trials=2, updates=12, workers=workers)
        kept.append([read_run(run_folder(folder, ROWS["MLP-DIGITS"], "SB", seed)) for seed in (0, 1)])
    for together, alone in zip(*kept, strict=True):
        assert together.config == alone.config
        assert together.result["metrics"]["train_loss"] == pytest.approx(
            alone.result["metrics"]["train_loss"], rel=1e-3
        )


def test_each_process_takes_a_gpu(monkeypatch):
    chosen, place = [], multiprocessing.Value("i", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for _ in range(3):
        processes._start(place)
    assert chosen == [0, 1, 0]


def test_timit_features_are_the_users_own(tmp_path, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"F2 needs TIMIT features as timit\.npz in a folder: name it with --data-dir"):
        paper(tmp_path / "new", rows=["F2"])
    with pytest.raises(FileNotFoundError, match=r"no file .*timit\.npz"):
        paper(tmp_path / "new", rows=["F2"], data_dir=tmp_path)
    assert not (tmp_path / "new").exists()


def test_rows_are_buildable_and_name_rows_of_the_paper():
    for name, row in ROWS.items():
        assert choose([name.lower()]) == (row,)
        assert row.like in ("F1", "F2", "C1", "C2", "C3", "C4")
    assert dataclasses.replace(Plan((), 3, None), first_seed=2).seeds == range(2, 5)


class TestCommands:
    def test_paper_and_report(self, tmp_path, lbgap_command):
        command = ("paper", "table2", "distance", "--row", "MLP-DIGITS", "--trials", "1", "--updates", "24")
        code, out, err = lbgap_command(*command, "--out", tmp_path / "p")
        assert (code, err) == (0, "")
        assert "Accuracy in percent (the paper's Table 2)" in out
        assert "MLP-DIGITS, test accuracy: LB is less accurate in" in " ".join(out.split())
        assert "SB ends" in out
        assert "LB is attracted to saddle points" in (tmp_path / "p" / "report.html").read_text()
        shutil.rmtree(tmp_path / "p" / "report")
        code, out, err = lbgap_command("report", tmp_path / "p", "--json")
        assert (code, err) == (0, "")
        record = json.loads(out)
        assert set(record["tables"]) == {"table2", "distance"}
        assert len(record["conjectures"]) == 4
        assert "lbgap paper spectrum --row MLP-DIGITS" in record["conjectures"][1]["sentences"][0]
        assert len(list((tmp_path / "p" / "report").glob("*.csv"))) == 2

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            (("paper", "figure8"), "experiment must be one of"),
            (("paper", "--row", "F9"), "row must be one of"),
            (("paper", "--trials", "0"), "trials must be at least 1, got 0"),
            (("paper", "--quick", "--updates", "0"), "updates must be at least 1, got 0"),
            (("paper", "--workers", "0"), "workers must be at least 1, got 0"),
            (("report", "nowhere"), "no folder nowhere"),
        ],
    )
    def test_what_is_wrong_is_said_on_one_line(self, tmp_path, monkeypatch, lbgap_command, command, message):
        monkeypatch.chdir(tmp_path)
        code, out, err = lbgap_command(*command)
        assert (code, out) == (1, "")
        assert err.count("\n") == 1
        assert message in err
        assert not list(tmp_path.iterdir())
