"""``lbgap spectrum``: what it prints, writes and draws, and one line for whatever goes wrong."""

import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from lbgap.cli.app import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data and runs: ``sb``, ``lb`` of one network, ``other`` of a smaller one, ``v`` without classes."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 6))
    np.savez(folder / "data.npz", features=features, labels=np.arange(60) % 3)
    np.savez(folder / "values.npz", features=features, labels=features[:, :2])
    runs = {"sb": ("8", "8", "data"), "lb": ("8", "30", "data"), "other": ("4", "8", "data"), "v": ("4", "8", "values")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, (hidden, batch, data) in runs.items():
            command = ("--data", f"{data}.npz", "--hidden", hidden, "--batch-size", batch, "--epochs", "2")
            patch.setattr(sys, "argv", ["lbgap", "train", "--out", name, *command])
            with pytest.raises(SystemExit):
                main()
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, lbgap_command):
    """Run ``lbgap spectrum`` with results in ``tmp_path``; returns its exit status, output and standard error."""
    monkeypatch.chdir(folder)
    return lambda *arguments: lbgap_command("spectrum", *arguments, "--out", tmp_path)


@pytest.fixture
def succeed(run):
    """Run a command that must succeed without a word on standard error; returns its standard output."""

    def command(*arguments):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        readable = [line for line in out.splitlines() if not line.startswith("Written")]
        assert "--json" in arguments or max(map(len, readable)) <= 80
        return out

    return command


def rows(out, *names):
    return [line.split() for line in out.splitlines() if line.startswith(tuple(f"{name} " for name in names))]


def test_two_minimizers_side_by_side(succeed, tmp_path):
    out = succeed("sb", "lb", "--top", "4", "--precision", "float64")
    assert sorted(os.listdir(tmp_path)) == ["spectrum.json", "spectrum.png", "spectrum.svg"]
    saved = json.loads((tmp_path / "spectrum.json").read_text())
    assert [(result["minimizer"], result["data"]) for result in saved] == [("sb", "data"), ("lb", "data")]
    first, second = rows(out, "sb", "lb")[:2], rows(out, "sb", "lb")[2:4]
    limit = max(result["eigenvalues"]["values"][0] for result in saved) / 100
    for result, values, amounts in zip(saved, first, second, strict=True):
        assert values[2:6] == [f"{value:.4g}" for value in result["eigenvalues"]["values"]]
        assert values[-1] == str(result["eigenvalues"]["products"])
        assert amounts[1] == f"{result['mass']['count']:.4g}"
        assert result["mass"]["threshold"] == pytest.approx(limit)
        assert all(result["eigenvalues"]["converged"])
        assert result["density"]["known"] == result["eigenvalues"]["values"]
        assert result["eigenvalues"]["settings"]["precision"] == "float64"
    assert imread(tmp_path / "spectrum.png").shape == (600, 960, 4)
    assert ElementTree.parse(tmp_path / "spectrum.svg").getroot().tag.endswith("svg")
    assert "Written: " in out


def test_as_json_with_options_and_earlier_results_kept(succeed, tmp_path):
    (tmp_path / "spectrum.svg").write_text("mine")
    options = ("--threshold", "0.5", "--kind", "ggn", "--steps", "6", "--max-products", "60", "--relative-error", "0.9")
    found = json.loads(succeed("sb", *options, "--top", "2", "--seed", "3", "--parameters", "weights", "--json"))
    assert found["threshold"] == 0.5
    assert found["results"] == json.loads((tmp_path / "spectrum-2.json").read_text())
    settings = found["results"][0]["density"]["settings"]
    expected = {
        "kind": "ggn",
        "steps": 6,
        "max_products": 60,
        "relative_error": 0.9,
        "seed": 3,
        "parameters": "weights",
    }
    assert {name: settings[name] for name in expected} == expected
    assert len(found["results"][0]["eigenvalues"]["values"]) == 2
    assert (tmp_path / "spectrum.svg").read_text() == "mine"


def test_both_sides(succeed, tmp_path):
    out = succeed("sb", "lb", "other", "--asymmetry", "--top", "2")
    kinds = ("png", "svg")
    figures = [f"asymmetry{number}.{kind}" for number in ("", "-2", "-3") for kind in kinds]
    assert sorted(os.listdir(tmp_path)) == sorted(["spectrum.json", "spectrum.png", "spectrum.svg", *figures])
    saved = json.loads((tmp_path / "spectrum.json").read_text())
    names = [result["asymmetry"]["names"] for result in saved]
    added = ["top 1", "top 2", "random 1", "random 2", "random 3"]
    assert names == [["to lb", *added], ["to sb", *added], added]  # the third is another network
    assert all(-1 <= index <= 1 for result in saved for index in result["asymmetry"]["index"])
    assert "Both sides of directions" in out


def test_values_that_are_no_classes(succeed, tmp_path):
    succeed("v")
    assert json.loads((tmp_path / "spectrum.json").read_text())[0]["density"]["settings"]["loss"] == "mse"


def test_a_run_given_twice(succeed, tmp_path):
    succeed("sb", "sb", "--asymmetry")
    first, second = json.loads((tmp_path / "spectrum.json").read_text())
    assert first["eigenvalues"]["values"] == second["eigenvalues"]["values"]
    assert "to sb" not in first["asymmetry"]["names"]


WRONG = [
    (1, "give run folders, or --model", ""),
    (1, "no folder nothing", "nothing"),
    (1, "top must be at least 1", "sb --top 0"),
    (1, "threshold must be finite and above zero, got 0.0", "sb --threshold 0"),
    (1, "kind must be one of 'hessian', 'ggn', 'fisher', got 'gauss'", "sb --kind gauss"),
    (1, "tolerance must be finite and above zero", "sb --tolerance -1"),
    (1, "steps must be at least 1", "sb --steps 0"),
    (1, "relative_error must be finite and above zero", "sb --relative-error nan"),
    (1, "max_products must be at least 1", "sb --max-products 0"),
    (1, "max_products must be at least 22, to find 10 pairs and check them, got 20", "sb --max-products 20"),
    (1, "pattern '9' matches no trainable parameter", "sb --parameters 9"),
    (2, "Invalid value for '--top'", "sb --top ten"),
    (2, "No such option: --tops", "sb --tops"),
]


@pytest.mark.parametrize(("code", "message", "command"), WRONG, ids=[command for _, _, command in WRONG])
def test_what_is_wrong_is_said_on_one_line(run, tmp_path, code, message, command):
    status, out, err = run(*command.split())
    assert out == ""
    assert re.fullmatch(r"lbgap: [^\n]+\n", err), err
    assert message in err
    assert status == code
    assert not os.listdir(tmp_path)
