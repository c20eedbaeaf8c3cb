"""``lbgap measure NAME``: its options, what it prints and writes, and one line for whatever goes wrong."""

import inspect
import json
import math
import re
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import lbgap
from lbgap import measures
from lbgap.cli.app import main
from lbgap.cli.measure import MEASURES
from lbgap.measures.call import Search

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with runs, with data that are no classes, and with a network of one's own."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 6))
    np.savez(folder / "data.npz", features=features, labels=rng.integers(3, size=60))
    np.savez(folder / "values.npz", features=features, labels=features[:, :2])
    (folder / "own_model.py").write_text(MODEL)
    own = ("--model", "own_model:net")
    runs = {"run": ("data.npz",), "other": ("data.npz", "--seed", "1"), "regression": ("values.npz",)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, (data, *more) in {**runs, "own": ("data.npz", *own)}.items():
            command = ("train", "--out", name, "--data", data, "--hidden", "4", "--batch-size", "16", "--epochs", "2")
            patch.setattr(sys, "argv", ["lbgap", *command, *more])
            with pytest.raises(SystemExit):
                main()
    yield folder
    sys.modules.pop("own_model", None)


@pytest.fixture
def run(folder, tmp_path, monkeypatch, lbgap_command):
    """Run a command; returns its exit status, standard output and standard error."""
    monkeypatch.chdir(folder)
    return lambda *arguments: lbgap_command("measure", *arguments, "--out", tmp_path)


# Of each measure the options that are tried, by the names that its settings have.
OPTIONS = {
    "ball": {"radius": 0.1, "adaptive": True, "eta": 0.0, "iterations": 3, "restarts": 1, "seed": 5},
    "average": {"sigma": 0.02, "draws": 3, "adaptive": True, "antithetic": False, "relative_error": 1.0, "seed": 5},
    "pac-bayes": {"deviation": 0.2, "eps": 0.0, "draws": 3, "tolerance": 0.1, "seed": 5},
    "fisher-rao": {"labels": "model"},
    "relative-flatness": {"layer": "0.weight", "exact": False, "draws": 3, "seed": 5},
    "critical": {"initial": 0.1, "tolerance": 0.1, "doublings": 20},
    "batch-sharpness": {"batch": 7, "relative_error": 0.5, "draws": 9, "seed": 5},
    "noise-scale": {"batch": 7, "population": "distribution", "relative_error": 0.5, "draws": 9, "seed": 5},
    "trace": {"method": "hutch++", "kind": "ggn", "relative_error": 0.5, "max_products": 30, "sketch": 4, "seed": 5},
    "diagonal": {"kind": "fisher", "relative_error": 0.5, "max_products": 30, "seed": 5},
    "eigenvalues": {
        "k": 2,
        "which": "both",
        "kind": "ggn",
        "tolerance": 0.01,
        "max_products": 90,
        "block": 3,
        "max_basis": 20,
        "seed": 5,
    },
    "density": {
        "kind": "ggn",
        "steps": 6,
        "resolution": 0.2,
        "points": 40,
        "relative_error": 0.9,
        "threshold": 0.1,
        "max_products": 60,
        "seed": 5,
    },
    "positive-mass": {
        "threshold": 0.1,
        "top": 2,
        "kind": "ggn",
        "steps": 6,
        "relative_error": 0.9,
        "max_products": 60,
        "seed": 5,
    },
    "edge-of-stability": {
        "learning_rate": 0.1,
        "momentum": 0.5,
        "nesterov": True,
        "tolerance": 0.01,
        "max_products": 60,
        "seed": 5,
    },
    "asymmetry": {"top": 1, "random": 1, "distances": [0.1, 0.2], "seed": 5},
    "layers": {
        "epsilon": 0.01,
        "method": "lbfgsb",
        "iterations": 3,
        "restarts": 1,
        "scaling": "paper",
        "samples": 30,
        "region": "linf",
        "seed": 5,
    },
    "sharpness-curve": {
        "epsilons": [0.01, 0.02],
        "method": "vertex",
        "iterations": 3,
        "restarts": 1,
        "scout": 0,
        "samples": 30,
        "region": "linf",
        "seed": 5,
    },
}
SETTINGS = {"radius": "epsilon", "samples": "searched"}  # where settings have another name
UNSAID = {("ball", "adaptive"), ("sharpness-curve", "epsilons")}  # in so many words: region and epsilon have them
NAMED = {"distances": "--distance", "epsilons": "--epsilon", "antithetic": "--no-antithetic"}


def as_arguments(options):
    """What a user types for some options."""
    typed = []
    for name, value in options.items():
        option = NAMED.get(name, f"--{name.replace('_', '-')}")
        if isinstance(value, bool):
            typed.append(option if value or "no-" in option else option.replace("--", "--no-"))
        else:
            typed += [text for each in (value if isinstance(value, list) else [value]) for text in (option, str(each))]
    return typed


def needed(name):
    """The options that a measure cannot do without."""
    required = (option for option in MEASURES[name].own() if option.default is option.empty)
    return as_arguments({option.name: OPTIONS[name][option.name] for option in required})


class TestOptions:
    def test_every_measure_has_a_command(self):
        functions = {name for name in measures.__all__ if name[0].islower()}
        assert {measure.function for measure in MEASURES.values()} | {"fast_sharpness"} == functions

    @pytest.mark.parametrize("name", MEASURES)
    def test_options_are_the_keywords_of_the_function(self, name):
        taken = dict(inspect.signature(getattr(lbgap, MEASURES[name].function)).parameters)
        if "search" in taken:  # of fast_sharpness
            own = inspect.signature(lbgap.fast_sharpness).parameters
            taken |= {each: own[each] for each in Search.__annotations__ if each not in taken}
        given = {option.name: option.default for option in MEASURES[name].own()}
        apart = {"model", "data", "options", "search", "progress", "direction", "directions", "known"}
        apart |= {
            "loss",
            "parameters",
            "batch_norm",
            "precision",
            "batch_size",
            "device",
            "backend",
            "coupled",
            "judge",
            "call",
        }
        assert given.keys() == taken.keys() - apart
        for option, default in given.items():
            expected = taken[option].default
            assert default == (list(expected) if isinstance(expected, tuple) else expected), option

    @pytest.mark.parametrize("name", MEASURES)
    def test_help_has_the_options_of_this_measure_alone(self, lbgap_command, name):
        code, out, err = lbgap_command("measure", name, "--help")
        assert (code, err) == (0, "")
        assert max(map(len, out.splitlines())) <= 80
        assert "…" not in out
        assert f"Writes {name}.json" in out
        own = {NAMED.get(each.name, f"--{each.name.replace('_', '-')}") for each in MEASURES[name].own()}
        shared = (
            "parameters batch-norm precision batch-size backend model weights data data-dir download device out json"
        )
        listed = set(re.findall(r"│ \*? *(--[\w-]+)", out))
        assert listed == own | {f"--{each}" for each in (*shared.split(), "out", "json", "help")}

    def test_every_option_is_tried_here(self):
        for name, measure in MEASURES.items():
            untried = {"scout"} if name == "layers" else {"scaling"} if name == "sharpness-curve" else set()
            assert OPTIONS[name].keys() | untried == {option.name for option in measure.own()}, name


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_by_name(run, tmp_path, name):
    arguments = (name, "run", *as_arguments(OPTIONS[name]), "--precision", "float64")
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert out.startswith(f"{MEASURES[name].function}\n")
    assert f"{name}.json" in out.replace("\n", "")
    assert all(len(line) <= 80 for line in out.splitlines() if "Written" not in line)
    assert "…" not in out
    records = json.loads((tmp_path / f"{name}.json").read_text())
    assert {(record["minimizer"], record["data"]) for record in records} == {("run", "data")}
    settings = records[0]["settings"]
    for option, value in OPTIONS[name].items():
        known = SETTINGS.get(option, option)
        assert settings[known] == value if known in settings else (name, option) in UNSAID, option
    assert settings["precision"] == "float64"
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    assert [{**record, "seconds": 0} for record in json.loads(out)["results"]] == [
        {**record, "seconds": 0} for record in records
    ]
    assert (tmp_path / f"{name}-2.json").exists()


@pytest.mark.parametrize("name", MEASURES)
def test_the_defaults_on_two_runs(run, name):
    shared = [] if MEASURES[name].shared is None else [f"--{MEASURES[name].shared}", "0.01"]
    code, out, err = run(name, "run", "other", *needed(name), *shared)
    assert (code, err) == (0, "")
    assert {line.split()[0] for line in out.splitlines() if line.startswith(("run ", "other "))} == {"run", "other"}
    assert all(len(line) <= 80 for line in out.splitlines() if "Written" not in line)
    assert "…" not in out


def test_minimizers_are_compared_at_one_threshold(run):
    code, out, err = run("positive-mass", "run", "other")
    assert (code, out) == (1, "")
    assert err == "lbgap: several minimizers are compared at one threshold: give --threshold\n"


def test_a_network_of_ones_own(run, tmp_path):
    own = ("--model", "own_model:net", "--weights", "own/model.safetensors", "--data", "data.npz")
    code, _, err = run("trace", *own, "--json")
    assert (code, err) == (0, "")
    (record,) = json.loads((tmp_path / "trace.json").read_text())
    assert record["minimizer"] == "own/model.safetensors"
    code, _, err = run("trace", "own", "--model", "own_model:net")
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "trace-2.json").read_text())[0]["value"] == record["value"]


def test_values_are_those_of_the_function(run, tmp_path):
    run("eigenvalues", "run", "--k", "2", "--precision", "float64")
    run("density", "run", "--precision", "float64")
    run("layers", "run")
    run("sharpness-curve", "run", "--epsilon", "1e-3", "--epsilon", "1e-2")
    out = run("asymmetry", "run", "other", "--top", "1", "--random", "1")[1]

    def records(name):
        return json.loads((tmp_path / f"{name}.json").read_text())

    (found,) = records("eigenvalues")
    assert len(found["values"]) == 2
    assert found["values"][0] >= found["values"][1] > 0
    assert [record["layer"] for record in records("layers")] == ["0", "1", "3"]
    curve = records("sharpness-curve")
    assert [record["epsilon"] for record in curve] == [1e-3, 1e-2]
    assert curve[0]["value"] < curve[1]["value"]
    furthest = [f"{record['distances'][-1]:.4g}" for record in records("asymmetry") for _ in record["names"]]
    rows = [line.split() for line in out.splitlines() if line.startswith(("run ", "other "))]
    assert [size for size, row in zip(furthest, rows, strict=True) if size in row] == furthest
    for name in ("density", "sharpness-curve", "asymmetry", "asymmetry-minimizer2"):
        assert (tmp_path / f"{name}.png").stat().st_size > 0
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")


def test_a_value_that_does_not_exist_is_a_dash(run, tmp_path):
    code, out, _ = run("noise-scale", "run", "--population", "distribution", "--draws", "2")
    value = json.loads((tmp_path / "noise-scale.json").read_text())[0]["value"]
    (row,) = (line.split() for line in out.splitlines() if line.startswith("run "))
    assert code == 0
    assert row[2] == ("-" if value is None else f"{value:.5g}")
    assert not math.isnan(float(row[1]))


@pytest.mark.parametrize(
    ("command", "message", "code"),
    [
        ("flatness run", "No such command 'flatness'. Did you mean 'relative-flatness'?", 2),
        ("tarce run", "No such command 'tarce'. Did you mean 'trace'?", 2),
        ("trace run --kid ggn", "No such option: --kid (Possible options: --kind)", 2),
        ("ball run --layer 0", "No such option: --layer", 2),
        ("fisher-rao run --seed 1", "No such option: --seed", 2),
        ("critical run --seed 1", "No such option: --seed", 2),
        ("batch-sharpness run", "Missing option '--batch'", 2),
        ("edge-of-stability run", "Missing option '--learning-rate'", 2),
        ("trace run --kind gauss", "kind must be one of 'hessian', 'ggn', 'fisher', got 'gauss'", 1),
        ("trace run --method hutch", "method must be", 1),
        ("trace run --seed -1", "Invalid value for '--seed': must be between 0 and", 2),
        ("trace run --parameters 9", "pattern '9' matches no trainable parameter", 1),
        ("trace run --batch-norm evil", "batch_norm must be 'eval' or 'batch', got 'evil'", 1),
        ("trace run --device gpu", "device must be 'cpu', 'cuda' or 'cuda:N', got 'gpu'", 1),
        ("trace run --backend natve", "backend must be one of 'auto', 'native', 'torch', got 'natve'", 1),
        ("trace run --precision half", "precision must be one of 'float32', 'float64', 'mixed', got 'half'", 1),
        ("trace run --data mnst1d", "got 'mnst1d': did you mean 'mnist1d'?", 1),
        ("trace rum", "no folder rum", 1),
        ("trace --model own_model:nett --weights own/model.safetensors --data data.npz", "did you mean 'net'?", 1),
        ("trace own", "own was trained on a model of your own", 1),
        ("eigenvalues run --which large", "which must be one of 'largest', 'smallest', 'both'", 1),
        ("average run --sigma 0", "sigma must be finite and above zero, got 0.0: try 0.01", 1),
        ("relative-flatness run --layer 9", "layer must be one of '0.weight'", 1),
        ("pac-bayes regression", "counts misclassified samples: it needs class indices", 1),
        ("fisher-rao regression --labels model", "labels='model' needs cross_entropy", 1),
        ("layers run --method vertx", "method must be one of 'vertex'", 1),
        ("sharpness-curve run --epsilon 0", "epsilon", 1),
        ("ball", "give run folders, or --model", 1),
    ],
)
def test_one_line_for_what_goes_wrong(run, tmp_path, command, message, code):
    status, out, err = run(*command.split())
    assert (status, out) == (code, "")
    assert message in err
    assert err.startswith("lbgap: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
