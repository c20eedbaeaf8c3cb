"""``lbgap plane``: what it prints, writes and draws, and one line for whatever goes wrong."""

import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from lbgap.cli.app import main
from lbgap.landscape import ends

pytestmark = pytest.mark.usefixtures("one_thread")
PICTURES = ["plane.json", "plane.png", "plane.svg", "surface.html", "surface.png", "surface.svg"]
MODEL = """
from torch import nn

def network():
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, three runs of one network, and ``other`` of a smaller one on other data."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 6)), np.arange(60) % 3
    test = {"test_features": rng.normal(size=(30, 6)), "test_labels": np.arange(30) % 3}
    np.savez(folder / "data.npz", features=features, labels=labels, **test)
    np.savez(folder / "values.npz", features=features[:40], labels=features[:40, :2])
    (folder / "own_network.py").write_text(MODEL)
    runs = {name: ("8", batch, "data") for name, batch in (("one", "8"), ("two", "20"), ("three", "60"))}
    runs["other"] = ("4", "8", "values")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, (hidden, batch, data) in runs.items():
            command = ["--data", f"{data}.npz", "--hidden", hidden, "--batch-size", batch, "--epochs", "5"]
            command += ["--keep-every", "2"] if name == "one" else []
            patch.setattr(sys, "argv", ["lbgap", "train", "--out", name, *command])
            with pytest.raises(SystemExit):
                main()
    yield folder
    sys.modules.pop("own_network", None)


@pytest.fixture
def run(folder, tmp_path, monkeypatch, lbgap_command):
    """Run ``lbgap plane`` with results in ``tmp_path / "plane"``; returns exit status, output and standard error."""
    monkeypatch.chdir(folder)
    return lambda *arguments: lbgap_command("plane", *arguments, "--out", tmp_path / "plane")


@pytest.fixture
def succeed(run):
    """Run a command that must succeed without a word on standard error; returns its standard output."""

    def command(*arguments):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        readable = [line for line in out.splitlines() if not re.match("Written|x:|y:", line)]
        assert "--json" in arguments or max(map(len, readable)) <= 80
        return out

    return command


def check_pictures(folder):
    assert set(PICTURES) <= set(os.listdir(folder))
    for name in ("plane", "surface"):
        assert imread(folder / f"{name}.png").ndim == 3
        assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
    assert "<html" in (folder / "surface.html").read_text().lower()


class TestResults:
    def test_three_runs(self, succeed, tmp_path):
        out = succeed("one", "two", "three", "--points", "4")
        found = json.loads((tmp_path / "plane" / "plane.json").read_text())
        assert [name for name, *_ in found["marks"]] == found["models"] == ["one", "two", "three"]
        assert found["marks"][0][1:] == [0, 0]
        assert np.array(found["train_loss"]).shape == np.array(found["test_accuracy"]).shape == (4, 4)
        assert found["data"] == "data"
        for line, loss in zip(re.findall(r"^(?:one|two|three) .*", out, re.MULTILINE), found["mark_loss"], strict=True):
            assert line.split()[-1] == f"{loss:.4g}"
        assert "16 of 16 points evaluated" in out
        assert "x: first to second, Euclidean distance\ny: line to third, Euclidean distance\n" in out
        check_pictures(tmp_path / "plane")

    def test_one_run_and_json(self, succeed, tmp_path):
        arguments = ("one", "--points", "3", "--normalise", "layer", "--x-range", "-0.5", "1", "--seed", "3", "--json")
        found = json.loads(succeed(*arguments))
        assert found == json.loads((tmp_path / "plane" / "plane.json").read_text())
        assert found["x"] == [-0.5, 0.25, 1]
        expected = {"directions": "random", "normalise": "layer", "seed": 3, "batch_norm": "eval"}
        assert {name: found["settings"][name] for name in expected} == expected

    def test_eigenvectors_refined(self, succeed, tmp_path):
        arguments = (
            "two",
            "--directions",
            "eigenvectors",
            "--refine",
            "0.05",
            "--points",
            "20",
        )
        out = succeed(*arguments)
        found = json.loads((tmp_path / "plane" / "plane.json").read_text())
        assert found["eigenvalues"][0] >= found["eigenvalues"][1]
        assert f"{sum(map(sum, found['evaluated']))} of 400 points evaluated, the others interpolated" in out

    def test_the_iterates_of_a_run(self, succeed, tmp_path):
        succeed("one", "--directions", "pca", "--points", "3")
        found = json.loads((tmp_path / "plane" / "plane.json").read_text())
        assert found["models"] == ["one, epoch 0", "one, epoch 2", "one, epoch 4", "one"]
        assert len(found["path"]) == 4
        assert found["path"][-1] == [0, 0]
        assert 0 < found["explained"][1] <= found["explained"][0] <= 1

    def test_a_model_of_ones_own(self, succeed, tmp_path, folder, monkeypatch):
        import torch
        from safetensors.torch import save_file

        monkeypatch.syspath_prepend(str(folder))
        import own_network

        torch.manual_seed(0)
        files = []
        for name in ("a", "b", "c"):
            save_file(own_network.network().state_dict(), tmp_path / f"{name}.safetensors")
            files += ["--weights", str(tmp_path / f"{name}.safetensors")]
        succeed("--model", "own_network:network", *files, "--data", "data.npz", "--points", "2")
        assert json.loads((tmp_path / "plane" / "plane.json").read_text())["settings"]["directions"] == "minimizers"

    def test_it_goes_on_when_asked_to(self, run, succeed, tmp_path):
        first = json.loads(succeed("one", "--points", "9", "--json"))
        code, out, err = run("one", "--points", "9")
        assert (code, out) == (1, "")
        assert re.fullmatch(r"lbgap: .*plane holds a plane: pass --resume to continue it or choose another .*\n", err)
        (tmp_path / "plane" / "values-00003.safetensors").unlink()
        again = json.loads(succeed("one", "--points", "9", "--resume", "--json"))
        assert again["train_loss"] == first["train_loss"]
        code, _, err = run("two", "--points", "9", "--resume")
        assert code == 1
        assert re.fullmatch(r"lbgap: .*plane holds another plane: its weights are others; choose .*\n", err)


def test_ctrl_c_keeps_what_is_finished(run, tmp_path, monkeypatch):
    at = ends.Combined.at

    def interrupt(self, rows):
        if (tmp_path / "plane" / "values-00002.safetensors").exists():
            raise KeyboardInterrupt
        return at(self, rows)

    monkeypatch.setattr(ends.Combined, "at", interrupt)
    code, out, err = run("one", "--points", "9")
    assert (code, out) == (130, "")
    assert err == "lbgap: interrupted; what is finished is kept, the same command with --resume goes on from there\n"
    assert sorted(os.listdir(tmp_path / "plane"))[1:] == ["values-00001.safetensors", "values-00002.safetensors"]


@pytest.mark.parametrize(
    ("code", "message", "command"),
    [
        (1, "a plane goes through three minimizers, got 2 models", "one two"),
        (1, "the first and the third model have the same parameters", "one two one"),
        (1, "one and other were trained on different data", "one two other"),
        (1, "the models differ: parameter '0.weight'", "one two other --data data.npz"),
        (1, "directions must be 'minimizers'", "one --directions x"),
        (1, "directions='random' needs one minimizer, got 3", "one two three --directions random"),
        (1, "--directions pca shows the iterates of one run, got 2 runs", "one two --directions pca"),
        (1, "two kept no iterates", "two --directions pca"),
        (1, "normalise must be 'filter'", "one --normalise filters"),
        (1, "points must be at least 2", "one --points 1"),
        (2, "Invalid value for '--points'", "one --points 2.5"),
        (1, "x_range must be finite and ascend", "one --x-range 1 0"),
        (2, "Invalid value for '--x-range'", "one --x-range a b"),
        (1, "refine must be finite and above zero", "one --refine 0"),
        (1, "batch_norm must be", "one --batch-norm x"),
        (1, "give run folders", ""),
    ],
)
def test_what_is_wrong_is_said_on_one_line(run, tmp_path, code, message, command):
    status, out, err = run(*command.split())
    assert (status, out) == (code, "")
    assert re.fullmatch(r"lbgap: [^\n]+\n", err), err
    assert message in err
    assert not list(tmp_path.glob("plane/*"))


def test_help_names_the_files(lbgap_command):
    code, out, _ = lbgap_command("plane", "--help")
    assert code == 0
    for name in ("plane.json", "surface.html", "--resume", "--directions", "--normalise"):
        assert name in out
    assert max(map(len, out.splitlines())) <= 80
