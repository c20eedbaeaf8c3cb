"""``lbgap measure``: what it prints and writes, and one line for whatever goes wrong."""

import json
import sys

import numpy as np
import pytest

from lbgap.cli import measure as cli_measure
from lbgap.cli.app import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run, and with data that are no classes."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 6))
    np.savez(folder / "data.npz", features=features, labels=rng.integers(3, size=60))
    np.savez(folder / "values.npz", features=features, labels=features[:, :2])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, data in (("run", "data.npz"), ("regression", "values.npz")):
            command = ("train", "--out", name, "--data", data, "--hidden", "4", "--batch-size", "16", "--epochs", "2")
            patch.setattr(sys, "argv", ["lbgap", *command])
            with pytest.raises(SystemExit):
                main()
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, lbgap_command):
    """Run a command; returns its exit status, standard output and standard error."""
    monkeypatch.chdir(folder)
    return lambda *arguments: lbgap_command("measure", *arguments, "--out", tmp_path)


OPTIONS = {
    "ball": ("--radius", "0.1", "--adaptive", "--eta", "0", "--iterations", "3", "--restarts", "1"),
    "average": ("--sigma", "0.02", "--draws", "3", "--adaptive", "--relative-error", "1"),
    "pac-bayes": ("--deviation", "0.2", "--eps", "0", "--draws", "3", "--tolerance", "0.1"),
    "fisher-rao": ("--labels", "model"),
    "relative-flatness": ("--layer", "0", "--no-exact", "--draws", "3"),
    "critical": ("--tolerance", "0.1"),
}


def test_every_measure_has_options_here():
    assert list(OPTIONS) == list(cli_measure.MEASURES)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_measure_by_name(run, tmp_path, name):
    code, out, err = run(name, "run", *OPTIONS[name], "--precision", "float64")
    assert (code, err) == (0, "")
    assert "run" in out
    assert f"{name}.json" in out.replace("\n", "")
    assert all(len(line) <= 80 for line in out.splitlines() if "Written" not in line)
    (record,) = json.loads((tmp_path / f"{name}.json").read_text())
    for option, value in zip(OPTIONS[name][::2], OPTIONS[name][1::2], strict=False):
        own = option.removeprefix("--").replace("radius", "epsilon")
        if own in record["settings"] and not value.startswith("--"):
            assert str(record["settings"][own]).startswith(value.removesuffix(".0")[:3]), own
    assert record["settings"]["precision"] == "float64"
    code, out, err = run(name, "run", *OPTIONS[name], "--precision", "float64", "--json")
    assert (code, err) == (0, "")
    assert {**json.loads(out)["results"][0], "seconds": 0} == {**record, "seconds": 0}
    assert (tmp_path / f"{name}-2.json").exists()


def test_the_seed_is_passed_on(run, tmp_path):
    run("average", "run", "--seed", "7")
    assert json.loads((tmp_path / "average.json").read_text())[0]["settings"]["seed"] == 7


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("flatness", "run"), "must be one of ball, average, pac-bayes, fisher-rao, relative-flatness, critical", 2),
        (("ball", "run", "--layer", "0"), "--layer does not belong to ball, which takes --radius, --adaptive", 1),
        (("average", "run", "--sigma", "0"), "sigma must be finite and above zero, got 0.0: try 0.01", 1),
        (("relative-flatness", "run", "--layer", "9"), "layer must be one of '0.weight'", 1),
        (("pac-bayes", "regression"), "counts misclassified samples: it needs class indices", 1),
        (("fisher-rao", "regression", "--labels", "model"), "labels='model' needs cross_entropy", 1),
        (("ball",), "give run folders, or --model", 1),
    ],
)
def test_one_line_for_what_goes_wrong(run, tmp_path, arguments, message, code):
    status, out, err = run(*arguments)
    assert (status, out) == (code, "")
    assert message in err
    assert err.startswith("lbgap: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
