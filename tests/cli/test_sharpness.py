"""``lbgap sharpness``: curves, layers, the paper's tables, samples, scalings, and what does not go together."""

import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from lbgap.cli.app import main

LAYERS = ["0", "1", "3"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data and runs: ``one`` and ``two`` of batches of 8, ``lb`` of 30, and ``tiny``."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", features=rng.normal(size=(60, 6)), labels=np.arange(60) % 3)
    runs = {"one": ("16", "8", "0"), "two": ("16", "8", "1"), "lb": ("16", "30", "0"), "tiny": ("4", "8", "0")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, (hidden, batch, seed) in runs.items():
            command = ("--data", "data.npz", "--hidden", hidden, "--batch-size", batch, "--seed", seed, "--epochs", "2")
            patch.setattr(sys, "argv", ["lbgap", "train", "--out", name, *command])
            with pytest.raises(SystemExit):
                main()
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, lbgap_command):
    """Run ``lbgap sharpness`` with results in ``tmp_path``; returns its exit status, output and standard error."""
    monkeypatch.chdir(folder)
    return lambda *arguments: lbgap_command("sharpness", *arguments, "--out", tmp_path)


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


def pure_json(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def rows(out, *names):
    return [line.split() for line in out.splitlines() if line.startswith(tuple(f"{name} " for name in names))]


class TestCurve:
    def test_writes_json_and_figures(self, succeed, tmp_path):
        out = succeed("one", "lb", "--curve", "--epsilon", "0.01", "--epsilon", "1e-3", "--epsilon", "0.1")
        assert sorted(os.listdir(tmp_path)) == ["sharpness.json", "sharpness.png", "sharpness.svg"]
        saved = pure_json((tmp_path / "sharpness.json").read_text())
        assert [(curve["minimizer"], curve["data"]) for curve in saved] == [("one", "data"), ("lb", "data")]
        for curve, row in zip(saved, rows(out, "one", "lb"), strict=True):
            assert curve["epsilons"] == [1e-3, 0.01, 0.1]  # in order
            assert curve["values"] == sorted(curve["values"])
            assert [result["settings"]["epsilon"] for result in curve["results"]] == curve["epsilons"]
            assert row[:4] == [curve["minimizer"], *(f"{value:.4g}" for value in curve["values"])]
        assert imread(tmp_path / "sharpness.png").shape == (600, 960, 4)
        assert ElementTree.parse(tmp_path / "sharpness.svg").getroot().tag.endswith("svg")
        assert all(f"sharpness.{kind}" in out.replace("\n", "") for kind in ("json", "png", "svg"))

    def test_as_json_and_earlier_results_are_kept(self, succeed, tmp_path):
        (tmp_path / "sharpness.svg").write_text("mine")
        found = pure_json(succeed("one", "--curve", "--restarts", "1", "--json"))
        saved = pure_json((tmp_path / "sharpness-2.json").read_text())
        assert found == {"results": saved}
        assert saved[0]["epsilons"] == [5e-4, 1e-3]
        assert sorted(os.listdir(tmp_path)) == [
            "sharpness-2.json", "sharpness-2.png", "sharpness-2.svg", "sharpness.svg",
        ]  # fmt: skip
        assert (tmp_path / "sharpness.svg").read_text() == "mine"

    def test_an_epsilon_given_twice(self, run, tmp_path):
        code, out, err = run("one", "--curve", "--epsilon", "1e-3", "--epsilon", "1e-3")
        assert (code, out) == (1, "")
        assert re.fullmatch(r"lbgap: epsilons must be one or more numbers that increase[^\n]*\n", err)
        assert not os.listdir(tmp_path)


class TestShares:
    def test_of_the_samples(self, succeed):
        options = ("--restarts", "1", "--epsilon", "1e-3", "--json")
        shares = succeed("one", *options, "--samples", "50%", "--scout", "0.1", "--batch-size", "20%")
        found = pure_json(shares)["results"][0]
        assert found["searched"]["samples"] == 30
        assert [found["settings"][name] for name in ("scout", "batch_size")] == [3, 12]
        numbers = succeed("one", *options, "--samples", "30", "--scout", "3", "--batch-size", "12")
        assert pure_json(numbers)["results"][0]["value"] == found["value"]

    @pytest.mark.parametrize("option", ["samples", "scout", "batch-size"])
    @pytest.mark.parametrize("value", ["150%", "many", "1.5"])
    def test_that_are_none(self, run, option, value):
        code, out, err = run("one", f"--{option}", value)
        assert (code, out) == (1, "")
        assert re.fullmatch(rf"lbgap: {option.replace('-', '_')} (must be|as a) [^\n]* share [^\n]*\n", err)


class TestByLayer:
    def test_as_a_table(self, succeed, tmp_path):
        out = succeed("one", "lb", "--by-layer", "--epsilon", "0.01")
        saved = pure_json((tmp_path / "sharpness.json").read_text())
        assert [(found["minimizer"], found["layer"]) for found in saved] == [
            (name, layer) for name in ("one", "lb") for layer in LAYERS
        ]
        for found, row in zip(saved, rows(out, "one", "lb"), strict=True):
            size = found["settings"]["n"]
            assert row[:4] == [found["minimizer"], found["layer"], str(size), "0.01"]
            assert row[4] == f"{found['value']:.4g}"
        assert [found["settings"]["n"] for found in saved[:3]] == [6 * 16 + 16, 32, 16 * 3 + 3]

    def test_as_json(self, succeed, tmp_path):
        arguments = ("--by-layer", "--samples", "30", "--parameters", "weights", "--batch-norm", "eval", "--json")
        found = pure_json(succeed("one", *arguments))["results"]
        assert found == pure_json((tmp_path / "sharpness.json").read_text())
        assert [(result["layer"], result["settings"]["epsilon"]) for result in found] == [
            (layer, epsilon) for epsilon in (1e-3, 5e-4) for layer in ("0", "3")
        ]
        assert all(result["searched"]["samples"] == 30 for result in found)


class TestPaper:
    def test_minimizers_of_one_batch_size_are_averaged(self, succeed, tmp_path):
        out = succeed("one", "lb", "two", "--paper", "--epsilon", "0.01", "--epsilon", "0.02", "--restarts", "2")
        saved = pure_json((tmp_path / "sharpness.json").read_text())
        assert list(saved["groups"]) == ["batch 8", "batch 30"]
        assert len(saved["results"]) == 3 * 8
        for group, count in (("batch 8", 2), ("batch 30", 1)):
            cells = saved["groups"][group]
            assert [len(cell["values"]) for cell in cells] == [count] * 8
            label = "batch 8 (2)" if count == 2 else "batch 30"
            printed = [row for row in out.splitlines() if row.startswith(label)]
            assert len(printed) == 2  # Table 3 and Table 4
            for row, space in zip(printed, (cells[:4], cells[4:]), strict=True):
                means = [float(number) for number in re.findall(r"[\d.e+-]+", row.removeprefix(label))[::count]]
                assert means == pytest.approx([cell["mean"] for cell in space], rel=5e-4)  # four digits
        assert "mean ± standard deviation" in " ".join(out.split())
        assert "vertex ascent from 3 starts, on manifolds from 3," in " ".join(out.split())
        vertex = [found for found in saved["results"] if found["by"] == "vertex"]
        assert {found["settings"]["restarts"] for found in vertex} == {2}

    def test_as_json_and_an_epsilon_given_twice(self, succeed, tmp_path):
        found = pure_json(succeed("one", "--paper", "--epsilon", "0.01", "--epsilon", "0.01", "--json"))
        assert found == pure_json((tmp_path / "sharpness.json").read_text())
        assert [cell["epsilon"] for cell in found["groups"]["batch 8"]] == [0.01] * 4
        assert {r["settings"]["restarts"] for r in found["results"] if r["space"] == "full space"} == {0, 10}

    def test_fewer_than_100_parameters(self, run, tmp_path):
        code, out, err = run("tiny", "--paper")
        assert (code, out) == (1, "")
        message = r"lbgap: subspace must be at most the number of parameters that may move, \d\d, got 100\n"
        assert re.fullmatch(message, err)
        assert not os.listdir(tmp_path)


class TestSearch:
    def test_samples(self, succeed, tmp_path):
        out = succeed("one", "--samples", "20", "--epsilon", "0.01", "--seed", "2")
        (found,) = pure_json((tmp_path / "sharpness.json").read_text())
        assert found["searched"]["samples"] == found["settings"]["searched"] == 20
        assert found["settings"]["samples"] == 60
        assert f"searched on 20 samples, where phi is {found['searched']['value']:.5g} %" in " ".join(out.split())

    def test_samples_on_random_manifolds(self, succeed):
        arguments = ("--samples", "20", "--subspace", "5", "--trials", "2", "--epsilon", "0.01", "--json")
        (found,) = pure_json(succeed("one", *arguments))["results"]
        assert (len(found["values"]), found["searched"]["samples"]) == (2, 20)

    @pytest.mark.parametrize("scaling", [None, "paper", "box"])
    def test_scaling(self, succeed, scaling):
        asked = () if scaling is None else ("--scaling", scaling)
        found = pure_json(succeed("one", "--method", "lbfgsb", *asked, "--json"))["results"]
        assert [result["settings"]["scaling"] for result in found] == [scaling or "box"] * 2

    def test_a_module_by_its_name(self, succeed):
        found = pure_json(succeed("one", "--parameters", "3", "--json"))["results"]
        assert [result["settings"]["n"] for result in found] == [51, 51]


WRONG = [
    (2, "--curve and --by-layer cannot be asked for together: choose one", "one --curve --by-layer"),
    (2, "--curve and --by-layer and --paper cannot be", "one --curve --by-layer --paper"),
    (2, "--by-layer and --paper cannot be asked for together", "one --by-layer --paper"),
    (2, "--curve does not go with --subspace, --trials and --distribution: leave them", "one --curve --subspace 5"),
    (2, "--by-layer does not go with --subspace", "one --by-layer --trials 2"),
    (2, "--paper does not go with --subspace", "one --paper --distribution unit"),
    (2, "--paper chooses --method by itself: leave it out", "one --paper --method apgd"),
    (2, "--paper chooses --iterations by itself", "one --paper --iterations 5"),
    (2, "--paper chooses --scaling by itself", "one --paper --scaling box"),
    (2, "--paper chooses --samples by itself", "one --paper --samples 5"),
    (2, "--paper chooses --region by itself", "one --paper --region linf"),
    (2, "No such option: --curves", "one --curves"),
    (2, "No such option: --by-layers", "one --by-layers"),
    (1, "samples must be a whole number of samples, or a share such as 0.1 or '10%', got 'ten'", "one --samples ten"),
    (1, "samples must be at least 1, got 0", "one --samples 0"),
    (1, "samples must be between 1 and 60, got 61", "one --by-layer --samples 61"),
    (1, "got batch_norm='batch'", "one --samples 10 --batch-norm batch"),
    (1, "scaling must be one of 'box', 'paper', got 'papr'", "one --method lbfgsb --scaling papr"),
    (1, "scaling belongs to method='lbfgsb', got 'paper' with method='vertex'", "one --curve --scaling paper"),
    (1, "method must be one of 'vertex', 'apgd', 'lbfgsb', 'scipy', got 'lbfgs'", "one --method lbfgs"),
    (1, "pattern '9' matches no trainable parameter; the names are: 0.weight, ", "one --parameters 9"),
    (1, "epsilon must be finite and above zero", "one --curve --epsilon 1e-3 --epsilon 0"),
    (1, "epsilon must be finite and above zero", "one --by-layer --epsilon -1"),
    (1, "epsilon must be finite and above zero", "one --paper --epsilon nan"),
    (1, "no folder nothing", "nothing --paper"),
]


@pytest.mark.parametrize(("code", "message", "command"), WRONG, ids=[command for _, _, command in WRONG])
def test_what_is_wrong_is_said_on_one_line(run, tmp_path, code, message, command):
    status, out, err = run(*command.split())
    assert out == ""
    assert re.fullmatch(r"lbgap: [^\n]+\n", err), err
    assert message in err
    assert status == code
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("part", ["", "test_"])
def test_data_that_changed_since_the_training_are_used_only_where_they_are_named(
    lbgap_command, tmp_path, monkeypatch, part
):
    rng = np.random.default_rng(1)
    arrays = {"features": rng.normal(size=(60, 6)), "labels": np.arange(60) % 3}
    arrays |= {f"test_{name}": values for name, values in arrays.items()}
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", **arrays)
    monkeypatch.setattr(sys, "argv", ["lbgap", "train", "--out", "own", "--data", "data.npz", "--epochs", "1"])
    with pytest.raises(SystemExit):
        main()
    command = ("own", "--epsilon", "1e-3")
    assert lbgap_command("sharpness", *command)[0] == 0
    np.savez("data.npz", **arrays | {f"{part}features": rng.normal(size=(60, 6))})
    code, out, err = lbgap_command("sharpness", *command)
    kind = "test" if part else "training"
    assert (code, out) == (1, "")
    assert err == (
        f"lbgap: data has other {kind} samples than those own was trained with: name the data to use with --data\n"
    )
    assert lbgap_command("sharpness", *command, "--data", "data.npz")[0] == 0
