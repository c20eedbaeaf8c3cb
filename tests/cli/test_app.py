"""The command line: what it prints, what it writes, and one line for whatever goes wrong."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from lbgap.cli.app import main
from lbgap.system import device as hardware
from lbgap.system import files
from lbgap.training import read_run

MODEL = """
import os, time
from torch import nn

class Net(nn.Sequential):
    def forward(self, inputs):
        time.sleep(float(os.environ.get("LBGAP_TEST_SLEEP", "0")))
        return super().forward(inputs)

def net():
    return Net(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))

def wide():
    return nn.Linear(6, 5)

def with_argument(width):
    return nn.Linear(6, width)

def number():
    return 3

shared = net()
"""

# The demonstration on a network that trains in no time; what it starts, imports this file too.
DEMO = """
import dataclasses
import importlib
from lbgap.cli.app import main

demo = importlib.import_module("lbgap.experiments.demo")
demo.ROW, demo.RESTARTS = dataclasses.replace(demo.ROW, hidden=(4,)), 1

if __name__ == "__main__":
    main()
"""

TRAIN = ("--data", "data.npz", "--hidden", "4", "--batch-size", "16", "--epochs", "2")


pytestmark = pytest.mark.usefixtures("one_thread")


TASK = """
import torch
from own_model import net

own = {"__module__": "lightning.pytorch", "forward": torch.nn.Module.forward}
Base = type("LightningModule", (torch.nn.Module,), own)

class Task(Base):
    def __init__(self):
        super().__init__()
        self.net = net()
        self.criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(3))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with data, a model of one's own, and two runs: ``sb`` and ``lb``."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(80, 6)), rng.integers(3, size=80)
    labels[:3] = 0, 1, 2
    split = {"features": features[:60], "test_features": features[60:]}
    np.savez(folder / "data.npz", **split, labels=labels[:60], test_labels=labels[60:])
    np.savez(folder / "values.npz", **split, labels=features[:60, :2], test_labels=features[60:, :2])
    np.savez(folder / "other.npz", features=features[:30], labels=labels[:30])
    np.savez(folder / "pickled.npz", features=np.array([{"a": 1}, None]), labels=np.array([0, 1]))
    (folder / "own_model.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, batch in (("sb", "8"), ("lb", "50%")):
            patch.setattr(sys, "argv", ["lbgap", "train", "--out", name, *TRAIN, "--batch-size", batch])
            with pytest.raises(SystemExit):
                main()
    yield folder
    sys.modules.pop("own_model", None)


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of that folder, which is also the current one."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    sys.modules.pop("own_model", None)
    return tmp_path


@pytest.fixture
def run(here, lbgap_command):
    """Run a command; returns its exit status, standard output and standard error."""
    return lbgap_command


@pytest.fixture
def succeed(run):
    """Run a command that must succeed without a word on standard error; returns its standard output."""

    def command(*arguments):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        return out

    return command


@pytest.fixture
def fail(run):
    """Run a command that must fail with one line on standard error that matches."""

    def command(message, *arguments, code=1):
        status, out, err = run(*arguments)
        assert out == ""
        assert re.fullmatch(r"lbgap: [^\n]+\n", err), err
        assert re.search(message, err), err
        assert status == code

    return command


def pure_json(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def assert_readable(out):
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def start(*command, **environment):
    """A process in a session of its own, as a terminal would start it."""
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestHelp:
    @pytest.mark.parametrize("command", ["demo", "train", "sharpness", "line", "curve", "info"])
    def test_every_option_is_explained_and_every_file_named(self, succeed, command):
        out = succeed(command, "--help")
        assert_readable(out)
        files = {
            "demo": ["report.html", "result.json", "line.json", "demo.json", ".png", ".svg", "runs/"],
            "train": ["config.json", "metrics.jsonl", "state.safetensors", "model.safetensors", "result.json"],
            "sharpness": ["sharpness.json"],
            "line": ["line.json", "line.png", "line.svg"],
            "curve": ["curve.json", "curve.png", "curve.svg"],
            "info": [],
        }[command]
        assert all(file in out for file in files)
        assert not re.findall(r"--[\w-]+ +(?:-\w)? *<[^>]+> +│", out)

    def test_no_command_shows_the_help(self, run):
        code, out, err = run()
        assert code in (0, 2)  # depends on the version of typer
        assert "sharpness" in out + err
        assert "lbgap:" not in err


class TestTrain:
    def test_as_a_text(self, succeed, here):
        out = succeed("train", "--out", "new/run", *TRAIN)
        assert re.search(r"2 epochs in .* s\n", out)
        assert re.search(r"test loss [\d.]+, accuracy [\d.]+ %", out)
        assert "folder new/run" in out
        config = read_run(here / "new" / "run").config
        assert config["extra"]["network"] == {"name": "mlp", "inputs": 6, "outputs": 3, "seed": 0, "hidden": [4]}
        assert config["batch_size"] == 16

    @pytest.mark.parametrize("network", ["f1", "c1_1d"])
    def test_a_network_of_the_paper(self, succeed, here, network):
        options = ("--network", network, "--initialisation", "uniform")
        succeed("train", "--out", "run", "--data", "data.npz", *options, "--epochs", "1")
        expected = {"name": network, "inputs": 6, "outputs": 3, "seed": 0, "initialisation": "uniform"}
        assert read_run(here / "run").config["extra"]["network"] == expected
        assert "phi" in succeed("sharpness", "run", "--epsilon", "1e-4")

    def test_as_json(self, succeed):
        result = pure_json(succeed("train", "--out", "run", *TRAIN, "--json"))
        assert (result["folder"], result["epoch"]) == ("run", 2)
        assert result["metrics"]["epoch"] == 2

    @pytest.mark.parametrize(("text", "size"), [("12", 12), ("0.5", 30), ("10%", 6), ("1.0", 60), ("5e-1", 30)])
    def test_batch_sizes_are_numbers_or_shares(self, succeed, here, text, size):
        succeed("train", "--out", "run", *TRAIN, "--batch-size", text)
        assert read_run(here / "run").config["batch_size"] == size

    def test_the_seed_decides_about_a_model_of_ones_own(self, succeed, here):
        for name, seed in (("one", 1), ("again", 1), ("two", 2)):
            sys.modules.pop("own_model", None)
            torch.rand(1)
            succeed(
                "train", "--out", name, "--data", "data.npz", "--model", "own_model:net", "--epochs", 1, "--seed", seed
            )
        one, again, two = (read_run(here / name).config["model"]["start"] for name in ("one", "again", "two"))
        assert one == again != two

    def test_regression(self, succeed, here):
        succeed("train", "--out", "values", "--data", "values.npz", "--hidden", "4", "--epochs", "2")
        config = read_run(here / "values").config
        assert config["loss"] == "mse"
        assert config["extra"]["network"]["outputs"] == 2
        succeed("train", "--out", "values2", "--data", "values.npz", "--hidden", "4", "--epochs", "2", "--seed", "1")
        assert pure_json(succeed("sharpness", "values", "--json"))["results"][0]["settings"]["loss"] == "mse"
        out = succeed("line", "values", "values2", "--points", "2")
        assert "acc." not in out
        assert_readable(out)

    def test_an_existing_folder(self, fail, here):
        fail("sb holds a finished run: pass --resume to continue it or choose another folder", "train", "--out", "sb")
        (here / "sb" / "result.json").unlink()
        fail("sb holds an unfinished run: pass --resume", "train", "--out", "sb")
        fail("own_model.py", "train", "--out", "own_model.py")
        fail(r"is not empty and holds no run \(it has", "train", "--out", ".")

    def test_resume_with_other_settings(self, fail, succeed):
        fail(
            "cannot resume sb with other settings .*: batch_size is 8 there but 16 here; epochs is 2 there but 3 here",
            *("train", "--out", "sb", *TRAIN, "--epochs", "3", "--resume"),
        )
        succeed("train", "--out", "sb", *TRAIN, "--batch-size", "8", "--resume")


class TestSharpness:
    def test_as_a_table(self, succeed, here):
        out = succeed("sharpness", "sb", "lb", "--epsilon", "1e-3", "--epsilon", "0.01")
        assert_readable(out)
        rows = [line.split() for line in out.splitlines() if line.startswith(("sb ", "lb "))]
        assert [row[:2] for row in rows] == [["sb", "0.001"], ["sb", "0.01"], ["lb", "0.001"], ["lb", "0.01"]]
        saved = pure_json((here / "sharpness.json").read_text())
        assert [f"{result['value']:.5g}" for result in saved] == [row[4] for row in rows]
        assert "batch_norm eval" in out
        assert "Written: sharpness.json" in out

    def test_as_json(self, succeed, here):
        arguments = ("--method", "scipy", "--region", "linf", "--batch-norm", "batch", "--precision", "float64")
        found = pure_json(succeed("sharpness", "sb", *arguments, "--iterations", "3", "--seed", "7", "--json"))
        assert found["results"] == pure_json((here / "sharpness.json").read_text())
        assert [result["settings"]["epsilon"] for result in found["results"]] == [1e-3, 5e-4]
        wanted = {"method": "scipy", "region": "linf", "batch_norm": "batch", "precision": "float64", "iterations": 3}
        assert found["results"][0]["settings"].items() >= {**wanted, "seed": 7}.items()
        assert found["results"][0]["data"] == "data"

    def test_random_manifolds(self, succeed, here):
        arguments = ("--subspace", "5", "--trials", "2", "--distribution", "unit", "--epsilon", "0.01")
        found = pure_json(succeed("sharpness", "sb", *arguments, "--json"))["results"][0]
        wanted = {"subspace": 5, "trials": 2, "distribution": "unit"}
        assert found["settings"] == found["settings"] | wanted
        assert len(found["values"]) == 2
        out = succeed("sharpness", "sb", *arguments)
        assert "±" in out
        assert "subspace 5, trials 2, distribution unit" in " ".join(out.split())

    def test_trials_need_a_subspace(self, run, here):
        code, _, err = run("sharpness", "sb", "--trials", "3")
        assert code == 1
        assert "trials belongs to a random manifold" in err

    def test_a_long_path_is_not_cut(self, succeed, here):
        name = "a-folder-with-a-long-name-" * 4
        shutil.copytree("sb", name)
        out = succeed("sharpness", name, "--epsilon", "1e-3")
        assert_readable(re.sub(r"(?m)^(\*|Written).*$", "", out))
        assert "phi %" in out

    def test_earlier_results_are_kept(self, succeed, here):
        for _ in range(3):
            succeed("sharpness", "sb", "--epsilon", "1e-3", "--out", "results")
        assert sorted(os.listdir("results")) == ["sharpness-2.json", "sharpness-3.json", "sharpness.json"]
        (here / "results" / "sharpness-2.json").write_text("mine")
        (here / "results" / "sharpness-3.json").unlink()
        succeed("sharpness", "sb", "--epsilon", "1e-3", "--out", "results")
        assert (here / "results" / "sharpness-2.json").read_text() == "mine"
        assert (here / "results" / "sharpness-3.json").exists()

    def test_weights_of_a_model_of_ones_own(self, succeed, here):
        for seed in (0, 1):
            arguments = ("--model", "own_model:net", "--data", "data.npz", "--epochs", "3", "--seed", seed)
            succeed("train", "--out", f"own{seed}", *arguments)
        alone = pure_json(succeed("sharpness", "own0", "own1", "--model", "own_model:net", "--json"))["results"]
        files = [item for seed in (0, 1) for item in ("--weights", f"own{seed}/model.safetensors")]
        for name in ("net", "shared"):  # a new model each time, and one and the same module
            together = pure_json(
                succeed("sharpness", "--model", f"own_model:{name}", *files, "--data", "data.npz", "--json")
            )["results"]
            assert [found["value"] for found in together] == [found["value"] for found in alone]
        assert len({found["base_loss"] for found in alone}) == 2
        out = succeed("line", "--model", "own_model:shared", *files, "--data", "data.npz", "--points", "2")
        assert "own1/model.safetensors" in out

    def test_weights_in_other_formats(self, succeed, here):
        arguments = ("--model", "own_model:net", "--data", "data.npz")
        succeed("train", "--out", "own", *arguments, "--epochs", 1)
        weights, _ = files.read_safetensors(here / "own" / "model.safetensors")
        torch.save(
            {"epoch": 1, "state_dict": {f"module.{name}": value for name, value in weights.items()}}, "last.ckpt"
        )
        torch.save(weights, "old.pt", _use_new_zipfile_serialization=False)
        (here / "several").mkdir()
        files.write_safetensors(here / "several" / "one.safetensors", weights, {})
        files.write_json(
            here / "several" / "model.safetensors.index.json", {"weight_map": dict.fromkeys(weights, "one.safetensors")}
        )
        every = ["own/model.safetensors", "own", "last.ckpt", "old.pt", "several"]
        given = [item for path in every for item in ("--weights", path)]
        found = pure_json(succeed("sharpness", *arguments, *given, "--epsilon", "1e-3", "--json"))["results"]
        assert [result["minimizer"] for result in found] == every
        assert len({result["value"] for result in found}) == 1

    def test_a_loss_beside_the_network_of_a_checkpoint(self, succeed, here):
        """A LightningModule without a forward is filled as it was saved, and the network inside is measured."""
        (here / "own_task.py").write_text(TASK)
        sys.path.insert(0, str(here))
        try:
            from own_task import Task
        finally:
            sys.path.remove(str(here))
            sys.modules.pop("own_task")
        task = Task()
        torch.save({"state_dict": task.state_dict()}, "task.ckpt")
        torch.save(task.net.state_dict(), "net.pt")
        arguments = ("--model", "own_task:Task", "--data", "data.npz", "--weights", "task.ckpt", "--weights", "net.pt")
        one, other = pure_json(succeed("sharpness", *arguments, "--epsilon", "1e-3", "--json"))["results"]
        sys.modules.pop("own_task", None)
        assert one["value"] == other["value"]
        assert one["settings"]["notes"] == [
            "measured 'net' of Task, which has no forward of its own; 'criterion' is left out"
        ]

    @pytest.mark.filterwarnings("always")
    def test_a_note_is_one_line(self, run, monkeypatch):
        monkeypatch.setattr(hardware, "bfloat16_products", lambda _: False)
        code, _, err = run("sharpness", "sb", "--precision", "mixed", "--epsilon", "1e-3", "--json")
        assert code == 0
        assert re.fullmatch(r"lbgap: note: precision='mixed' ran in float32[^\n]*\n", err)


class TestCurve:
    def test_as_a_table(self, succeed, here):
        out = succeed("curve", "sb", "lb", "--points", "7", "--out", "results")
        assert_readable(out)
        assert "The curve: alpha = 0 is sb, alpha = 1 is lb" in out
        assert "barrier" in out
        assert sorted(os.listdir("results")) == ["curve.json", "curve.png", "curve.svg"]
        found = pure_json((here / "results" / "curve.json").read_text())
        losses = [read_run(here / name).result["metrics"]["train_loss"] for name in ("sb", "lb")]
        assert found["train_loss"][2:5:2] == pytest.approx(losses, rel=1e-6)
        assert found["shape"]["barrier"] >= 0

    def test_one_minimizer_is_refused(self, fail, here):
        fail("a curve needs two minimizers, small-batch first, got 1", "curve", "sb")


class TestLine:
    def test_as_a_table(self, succeed, here):
        out = succeed("line", "sb", "lb", "--points", "4", "--batch-norm", "batch", "--out", "results")
        assert_readable(out)
        assert "alpha = 0 is sb, alpha = 1 is lb" in out
        assert "Loss: mean cross_entropy; batch-norm: batch" in out
        assert [line.split()[0] for line in out.splitlines() if re.match(r"-?\d", line)] == ["-1", "0", "1", "2"]
        assert sorted(os.listdir("results")) == ["line.json", "line.png", "line.svg"]
        assert "Written: results/line.json, .png and .svg" in out

    def test_as_json_and_earlier_results_are_kept(self, succeed, here):
        arguments = ("line", "sb", "lb", "--points", "3", "--low", "0", "--high", "1", "--json")
        found = pure_json(succeed(*arguments))
        assert found == pure_json((here / "line.json").read_text())
        assert found["alphas"] == [0, 0.5, 1]
        assert (found["small"], found["large"], found["settings"]["batch_norm"]) == ("sb", "lb", "eval")
        losses = [read_run(here / name).result["metrics"]["train_loss"] for name in ("sb", "lb")]
        assert found["train_loss"][::2] == pytest.approx(losses, rel=1e-6)
        before = (here / "line.png").read_bytes()
        pure_json(succeed(*arguments))
        assert (here / "line.png").read_bytes() == before
        assert {"line-2.json", "line-2.png", "line-2.svg"} <= set(os.listdir())

    def test_runs_on_different_data(self, fail, succeed):
        succeed("train", "--out", "another", *TRAIN, "--data", "other.npz")
        fail("sb and another were trained on different data: name those to use with --data", "line", "sb", "another")
        succeed("line", "sb", "another", "--data", "data.npz", "--points", "2")


class TestInfo:
    def test_as_a_table_and_as_json(self, succeed):
        out = succeed("info")
        assert_readable(out)
        facts = pure_json(succeed("info", "--json"))
        assert facts["torch"] == torch.__version__
        assert all(name in out for name in facts)
        assert "backend" in facts


WRONG = [
    # A typo in each option value.
    (2, "No such command 'sharpnes'. Did you mean 'sharpness'?", "sharpnes sb"),
    (2, "No such option: --epsilom", "sharpness sb --epsilom 1"),
    (2, "Invalid value for '--epsilon'", "sharpness sb --epsilon 1e-3x"),
    (1, "epsilon must be finite and above zero", "sharpness sb --epsilon 0"),
    (1, "method must be one of 'vertex', 'apgd', 'lbfgsb', 'scipy'.*, got 'vertx'", "sharpness sb --method vertx"),
    (2, "Invalid value for '--iterations'", "sharpness sb --iterations ten"),
    (1, "iterations must be at least 1", "sharpness sb --iterations 0"),
    (1, "restarts must be at least 0", "sharpness sb --restarts -1"),
    (1, "region must be one of 'keskar', 'linf', 'adaptive', got 'keska'", "sharpness sb --region keska"),
    (1, "pattern 'weight' matches no trainable parameter", "sharpness sb --parameters weight"),
    (1, "batch_norm must be 'eval' or 'batch', got 'evil'", "sharpness sb --batch-norm evil"),
    (1, "precision must be one of 'float32', 'float64', 'mixed', got 'half'", "sharpness sb --precision half"),
    (1, "batch_size must be at least 1", "sharpness sb --batch-size 0"),
    (1, "backend must be one of 'auto', 'native', 'torch', got 'natve'", "sharpness sb --backend natve"),
    (1, "device must be 'cpu', 'cuda' or 'cuda:N', got 'gpu'", "sharpness sb --device gpu"),
    (2, "Invalid value for '--seed': must be between 0 and", "sharpness sb --seed -1"),
    (2, "Invalid value for '--seed': must be between 0 and", f"train --out new --seed {2**63}"),
    (1, "data must be one of .*, got 'mnst1d': did you mean 'mnist1d'?", "sharpness sb --data mnst1d"),
    (1, "mnist needs --data-dir", "sharpness sb --data mnist"),
    (1, "cifar10 needs --data-dir", "train --out new --data cifar10 --download"),
    (1, "no cifar-100-binary.tar.gz, nor .* fetch it with --download", "line sb lb --data cifar100 --data-dir nowhere"),
    (
        1,
        "network c1 takes images .*, the samples have shape .6,.: use f1,",
        "train --out new --data data.npz --network c1",
    ),
    (1, "network must be one of", "train --out new --data mnist --data-dir nowhere --download --network c5"),
    (1, "data.npz: File exists", "train --out new --data mnist --data-dir data.npz --download"),
    (1, "no train-images-idx3-ubyte .* in my/data_dir: put", "train --out new --data mnist --data-dir my/data_dir"),
    (1, "initialisation must be 'torch' or 'uniform', got 'he'", "train --out new --initialisation he"),
    (1, "no train-images-idx3-ubyte .* in nowhere", "sharpness sb --data mnist --data-dir nowhere"),
    (1, "no file nothing.npz", "sharpness sb --data nothing.npz"),
    (1, "pickled.npz: expected plain arrays", "sharpness sb --data pickled.npz"),
    (1, "points must be between 2 and", "line sb lb --points 1"),
    (2, "Invalid value for '--points'", "line sb lb --points 2.5"),
    (1, "low and high must be finite with low < high", "line sb lb --low 3"),
    (1, "batch_norm must be", "line sb lb --batch-norm x"),
    (1, "device must be 'cpu', 'cuda' or 'cuda:N', got 'gpu'", "line sb lb --device gpu"),
    (2, "Missing option '--out'", "train"),
    (2, "Option '--out' requires an argument", "train --out"),
    (1, "network must be one of f1, .*, mlp.*, got 'mpl': did you mean 'mlp'?", "train --out new --network mpl"),
    (1, "--hidden must be widths such as 128,128, got '16,'", "train --out new --hidden 16,"),
    (1, "hidden must be at least 1, got -3", "train --out new --hidden 16,-3"),
    (1, "too large for the memory", f"train --out new --hidden {10**14}"),
    (1, "too large for the memory", f"train --out new --hidden {10**18}"),
    (1, r"hidden must be below 2\*\*63, got 1000", f"train --out new --hidden {10**30}"),
    (1, "batch_size must be a whole number of samples, or a share", "train --out new --batch-size ten"),
    (1, "batch_size as a float is a share of the samples", "train --out new --batch-size 1.5"),
    (1, "at most the 60 training samples", "train --out new --data data.npz --batch-size 61"),
    (1, "epochs must be at least 1", "train --out new --epochs 0"),
    (1, "max_epochs must be at least 1", "train --out new --max-epochs 0"),
    (1, "optimizer 'adm' is not in torch.optim: did you mean 'Adam'?", "train --out new --optimizer adm"),
    (1, "learning_rate must be a finite number > 0", "train --out new --learning-rate nan"),
    (1, "device must be 'cpu', 'cuda' or 'cuda:N', got 'gpu'", "train --out new --device gpu"),
    (1, "the training loss .*: lower learning_rate", "train --out new --data data.npz --hidden 4 --learning-rate 1e30"),
    (1, "pickled.npz: expected plain arrays", "train --out new --data pickled.npz"),
    (1, "seeds must be at least 1", "demo --out new --seeds 0"),
    (1, "updates must be at least 1", "demo --out new --updates 0"),
    (1, "exists and holds no demonstration", "demo --out sb"),
    (1, "own_model.py is a file", "demo --out own_model.py"),
    # Minimizers that are not there, or not two.
    (1, "give run folders, or --model", "sharpness"),
    (1, "no folder nothing: pass the folder of a run", "sharpness nothing"),
    (1, "own_model.py is not a run", "sharpness own_model.py"),
    (1, "give run folders or --weights, not both", "sharpness sb --weights sb/model.safetensors"),
    (1, "a line needs two minimizers, small-batch first, got 1", "line sb"),
    (1, "a line needs two minimizers, small-batch first, got 3", "line sb lb sb"),
    (1, "the same parameters: a line needs two different minimizers", "line sb sb"),
    # Models of one's own.
    (1, "no module 'nothing' in", "train --out new --data data.npz --model nothing:net"),
    (1, "no 'nett' in the module .*: did you mean 'net'?", "train --out new --data data.npz --model own_model:nett"),
    (1, "must be given as 'package.module:name', got 'own_model'", "train --out new --data data.npz --model own_model"),
    (1, "must be callable without arguments", "train --out new --data data.npz --model own_model:with_argument"),
    (1, "must return a torch.nn.Module, got int", "train --out new --data data.npz --model own_model:number"),
    (
        1,
        "the weights of sb/model.safetensors do not fit the model: '.*' is missing",
        "sharpness --model own_model:wide --weights sb/model.safetensors --data data.npz",
    ),
    (1, "nothing.safetensors", "sharpness --model own_model:net --weights nothing.safetensors --data data.npz"),
    (
        1,
        r"data.npz is a NumPy archive \(.npz\): expected a state dict",
        "sharpness --model own_model:net --weights data.npz --data data.npz",
    ),
    (1, "data.npz is a NumPy archive", "line --model own_model:net --weights data.npz --weights sb --data data.npz"),
    (1, "own_model.py is a text file", "measure trace --model own_model:net --weights own_model.py --data data.npz"),
    (1, r"\. has none of model.safetensors", "plane --model own_model:net --weights . --data data.npz"),
    # Places that cannot be written.
    (1, "--out must be a folder, got the file data.npz", "sharpness sb --out data.npz"),
    (1, "data.npz/new: Not a directory", "sharpness sb --out data.npz/new"),
    (1, "--out must be a folder, got the file data.npz", "line sb lb --out data.npz"),
    (1, "out must be a folder, got the file data.npz", "train --out data.npz --data data.npz"),
    (1, "data.npz/new: Not a directory", "train --out data.npz/new --data data.npz"),
    (1, "data.npz/new: Not a directory", "demo --out data.npz/new"),
]


@pytest.mark.parametrize(("code", "message", "command"), WRONG, ids=[command for _, _, command in WRONG])
def test_what_is_wrong_is_said_on_one_line(fail, here, code, message, command):
    fail(message, *command.split(), code=code)
    assert not list(here.glob("sharpness*")) + list(here.glob("line*"))


def test_a_folder_without_permission(fail, here, monkeypatch):
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)  # whoever is root may write everywhere
    fail("--out results is not writable", "sharpness", "sb", "--out", "results")


def test_a_full_disk(fail, monkeypatch):
    def full(*_):
        raise OSError(28, "cannot write sharpness.json: No space left on device; nothing was written")

    monkeypatch.setattr(files, "write_json", full)
    fail(r"^lbgap: cannot write sharpness.json: No space left", "sharpness", "sb", "--epsilon", "1e-3")


class TestDamagedRuns:
    def test_unfinished(self, fail, here):
        (here / "sb" / "result.json").unlink()
        fail(
            r"sb is an unfinished run \(2 epochs saved\): finish it with lbgap train --out 'sb' --resume",
            "sharpness",
            "sb",
        )

    @pytest.mark.parametrize("size", [0, 7, 500])
    def test_truncated_weights(self, fail, here, size):
        path = here / "sb" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:size])
        fail(r"sb/model.safetensors is damaged, not safetensors", "sharpness", "sb")

    @pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "result.json"])
    def test_damaged_text(self, fail, here, name):
        (here / "sb" / name).write_text("{")
        fail(f"sb/{name} is damaged, not JSON", "line", "sb", "lb")

    def test_missing_weights(self, fail, here):
        (here / "sb" / "model.safetensors").unlink()
        fail(r"sb/model.safetensors: No such file or directory", "sharpness", "sb")

    def test_weights_of_another_network(self, fail, here):
        files.write_safetensors(here / "sb" / "model.safetensors", {"weight": torch.zeros(2)}, {})
        fail("the weights of sb do not fit the model: '0.weight' is missing, .* more", "sharpness", "sb")

    def test_a_run_on_a_model_of_ones_own(self, fail, succeed):
        succeed("train", "--out", "own", "--data", "data.npz", "--model", "own_model:net", "--epochs", "1")
        fail("own was trained on a model of your own, .*: pass it with --model", "sharpness", "own")

    def test_data_that_are_gone(self, fail, here):
        (here / "data.npz").unlink()
        fail("no file data.npz", "sharpness", "sb")


class TestProcess:
    def test_ctrl_c_ends_a_training_and_resume_goes_on(self, here, run):
        command = ("train", "--out", "cut", "--data", "data.npz", "--model", "own_model:net", "--epochs", "20")
        process = start("-m", "lbgap", *command, LBGAP_TEST_SLEEP="0.05")
        wait_for(here / "cut" / "state.safetensors", process)
        time.sleep(0.4)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert out == ""
        assert (
            err == "lbgap: interrupted; what is finished is kept, the same command with --resume goes on from there\n"
        )
        assert not (here / "cut" / "result.json").exists()
        code, _, err = run(*command, "--resume")
        assert (code, err) == (0, "")
        sys.modules.pop("own_model")
        whole = ("train", "--out", "whole", *command[3:])
        assert run(*whole)[0] == 0
        assert (here / "cut" / "model.safetensors").read_bytes() == (here / "whole" / "model.safetensors").read_bytes()

    def test_ctrl_c_ends_a_demonstration_and_the_same_command_goes_on(self, here, succeed, monkeypatch, no_processes):
        (here / "driver.py").write_text(DEMO)
        command = ("demo", "--out", "demo", "--seeds", "1", "--updates", "250", "--seed", "3")
        process = start("driver.py", *command)
        wait_for(here / "demo" / "runs" / "sb-seed3" / "state.safetensors", process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert err == "lbgap: interrupted; what is finished is kept, the same command goes on from there\n"
        assert not (here / "demo" / "result.json").exists()

        demo = importlib.import_module("lbgap.experiments.demo")
        monkeypatch.setattr(demo, "ROW", dataclasses.replace(demo.ROW, hidden=(4,)))
        monkeypatch.setattr(demo, "RESTARTS", 1)
        out = succeed(*command)
        saved = pure_json((here / "demo" / "result.json").read_text())
        assert_readable(out)
        rows = [line.split() for line in out.splitlines() if re.match("[SL]B ", line)]
        assert [row[:4] for row in rows[:2]] == [["SB", "3", "32", "250"], ["LB", "3", "400", "250"]]
        phis = [[f"{phi['epsilon']:g}", f"{phi['vertex']:.4g}"] for row in saved["rows"] for phi in row["phi"]]
        assert [row[2:4] for row in rows[2:]] == [phis[0], phis[2], phis[1], phis[3]]
        bullets = " ".join(out[out.index("* ") :].split())
        assert all(" ".join(finding.split()) in bullets for finding in saved["findings"])
        assert "Figures and report: demo/report.html" in out

        no_processes()
        monkeypatch.setattr(demo, "_write", lambda *_: None)
        result = pure_json(succeed(*command, "--json"))
        assert result.keys() == saved.keys()
        assert result["findings"][:4] == saved["findings"][:4]

    def test_a_closed_pipe_is_no_error_to_talk_about(self, here):
        process = start("-m", "lbgap", "line", "sb", "lb", "--points", "3", "--json")
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=120)
        assert err == ""
        assert (here / "line.json").exists()


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "lbgap", "sharpnes"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "sharpness" in done.stderr
