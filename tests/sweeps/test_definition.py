"""The file of a sweep: what it means, and one line for whatever is wrong with it, before anything runs."""

import re

import pytest

from lbgap.sweeps.definition import SETTINGS, from_dict, read
from lbgap.sweeps.judge import judge

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_trials_of_a_file(here):
    definition = read("sweep.toml")
    assert (definition.name, definition.seeds, definition.varying) == ("sweep", (0, 1), ("batch_size",))
    trials = definition.trials()
    assert [(trial.key, trial.settings["batch_size"], trial.seed) for trial in trials] == [
        (0, 8, 0),
        (1, 8, 1),
        (2, "50%", 0),
        (3, "50%", 1),
    ]
    assert trials[0].settings == {"data": "data.npz", "network": "mlp", "hidden": [4], "epochs": 3, "batch_size": 8}
    columns = [one.column(epsilon) for one in definition.measurements for epsilon in one.epsilons]
    assert columns == ["phi_vertex_0.001", "phi_vertex_0.0005", "phi_scipy_0.001"]


def test_a_sweep_is_the_same_after_its_record():
    grids = [{"batch_size": [32], "epochs": [4]}, {"batch_size": [0.1], "epochs": [40], "hidden": [[8], [16, 16]]}]
    record = {"name": "x", "seeds": [3], "base": {"optimizer": "SGD"}, "grid": grids, "sharpness": {"method": "apgd"}}
    definition = from_dict(record, "other")
    assert from_dict(definition.to_dict(), "other") == definition
    found = [(one["batch_size"], one["epochs"], one["hidden"]) for one in definition.configurations()]
    assert found == [(32, 4, [128] * 4), (0.1, 40, [8]), (0.1, 40, [16, 16])]


def test_settings_that_play_no_part_are_left_out():
    definition = from_dict({"grid": {"network": ["mlp", "f1"]}, "base": {"hidden": [3]}}, "x")
    assert [one.get("hidden") for one in definition.configurations()] == [[3], None]
    own = from_dict({"base": {"model": "own:net"}}, "x").configurations()
    assert own == [{"data": "mnist1d", "model": "own:net"}]


def test_a_file_may_set_what_train_takes():
    assert {"batch_size", "epochs", "max_epochs", "patience", "optimizer", "optimizer_options"} <= set(SETTINGS)
    assert not {"seed", "out", "resume", "progress", "config", "loss"} & set(SETTINGS)


BAD = [
    ("seeds = ]", "not TOML: .*line 1"),
    ("seeds = [0]\n\nseeds = [1]", "not TOML: .*line 3"),
    ("sedes = [0]", "the file has 'sedes', which is not known: did you mean 'seeds'?"),
    ("[base]\nbatchsize = 3", r"\[base\] has 'batchsize', which is not known: did you mean 'batch_size'?"),
    ("[base]\nseed = 3", r"\[base\] has 'seed', which is not known: expected one of data, "),
    ("base = 3", r"\[base\] must be a table of key = value lines, got 3"),
    ("[grid]", r"\[grid\] is empty: give lists of values"),
    ("[grid]\nepochs = 3", r"\[grid\] epochs must be a list of values, got 3: write epochs = \[...\]"),
    ("[grid]\nepochs = []", r"\[grid\] epochs must be a list of values, got \[\]"),
    ("[grid]\nepoch = [3]", "did you mean 'epochs'?"),
    ("[grid]\nepochs = [3, 3]", r"\[grid\] gives the same configuration twice: .*\"epochs\": 3"),
    ("[grid]\nepochs = [nan]", r"\[grid\] epochs: settings are texts, finite numbers, .*, got \[nan\]"),
    ("[base]\nepochs = 1979-05-27", r"\[base\] epochs: settings are texts, finite numbers, .*1979"),
    ("[[sharpness]]\nrestarts = inf", r"\[\[sharpness\]\] restarts: settings are texts, finite numbers, .*, got inf"),
    ("seeds = 3", r"seeds must be a list of integers from 0 to 2\*\*63 - 1, such as \[0, 1, 2\], got 3"),
    ("seeds = []", r"seeds must be a list .* got \[\]"),
    ("seeds = [-1]", r"seeds must be a list .* got \[-1\]"),
    ("seeds = [true]", "seeds must be a list .* got .True"),
    ("seeds = [1, 1]", "seeds has 1 twice"),
    ("name = ''", "name must be a text of 1 to 200 characters, got ''"),
    ("[[sharpness]]\nepsilom = 1e-3", r"\[\[sharpness\]\] has 'epsilom', which is not known: did you mean 'epsilon'?"),
    ("[[sharpness]]\nepsilon = 'a'", r"\[\[sharpness\]\] epsilon must be a number or a list of numbers, got 'a'"),
    ("[[sharpness]]\nepsilon = []", "epsilon must be a number or a list"),
    ("[[sharpness]]\nname = 3", r"\[\[sharpness\]\] name must be a text, got 3"),
    ("[[sharpness]]\n[[sharpness]]", "gives the column phi_vertex_0.001 twice: give one of them another name"),
    # What needs the data or a network.
    ("[base]\nepochs = 0", "epochs must be at least 1, got 0"),
    ('[base]\nremedies = ["swaa"]', "there is no remedy 'swaa': did you mean 'swa'?"),
    ('[base]\nremedies = ["sam", "asam"]', "the remedies sam and asam exclude each other"),
    ("[base]\nepochs = 2.5", "epochs must be a whole number, got 2.5"),
    ("[base]\nmax_epochs = 0", "max_epochs must be at least 1, got 0"),
    ("[base]\ntolerance = 1", "tolerance must be below 1"),
    ("[base]\nlearning_rate = -1", "learning_rate must be a finite number > 0, got -1"),
    ("[base]\nlearning_rate = 'a'", "learning_rate must be a finite number > 0, got 'a'"),
    ("[base]\noptimizer = 'Adan'", "optimizer 'Adan' is not in torch.optim: did you mean 'Adam'?"),
    ("[base]\noptimizer_options = {momentun = 0.9}\noptimizer = 'SGD'", "did you mean 'momentum'?"),
    ("[grid]\nbatch_size = [8, 61]", "batch_size must be at most the 60 training samples, got 61"),
    ("[base]\nbatch_size = 1.5", "batch_size as a float is a share of the samples, above 0 and at most all, got 1.5"),
    (
        "[base]\nbatch_size = 'many'",
        "batch_size must be a whole number of samples, or a share such as 0.1 or '10%', got 'many'",
    ),
    ("[base]\nnetwork = 'f9'", "network must be one of f1, f2, .*, mlp.*, got 'f9'"),
    ("[base]\nnetwork = 'c1'", "network c1 takes images"),
    ("[base]\ninitialisation = 'keras'", "initialisation must be 'torch' or 'uniform', got 'keras'"),
    ("[base]\nhidden = 'wide'", "hidden must be a list of widths, got 'wide'"),
    ("[base]\nhidden = [0]", "hidden must be at least 1, got 0"),
    ("[base]\nmodel = 'own:net'\nhidden = [3]", "model and hidden cannot be given together"),
    ("[base]\nmodel = 3", "model must be given as 'package.module:name', got 3"),
    ("[base]\nmodel = 'no_such:net'", "no module 'no_such'"),
    ("[base]\ndevice = 'tpu'", "device must be cpu, cuda or cuda:N, got 'tpu'"),
    ("[[sharpness]]\nmethod = 'newton'", r"\[\[sharpness\]\] newton: method must be one of .* got 'newton'"),
    ("[[sharpness]]\nmethod = 3", r"\[\[sharpness\]\] vertex: method must be one of .* got 3"),
    ("[[sharpness]]\nmethod = ''", r"\[\[sharpness\]\] vertex: method must be one of .* got ''"),
    ("[[sharpness]]\nmethod = ['apgd']", r"\[\[sharpness\]\] vertex: method must be one of .* got \['apgd'\]"),
    ("[[sharpness]]\nepsilon = 0", r"\[\[sharpness\]\] vertex: epsilon must be finite and above zero"),
    ("[[sharpness]]\nrestarts = 1.5", "restarts must be a whole number, got 1.5"),
    ("[[sharpness]]\ntrials = 5", "trials belongs to a random manifold"),
    ("[[sharpness]]\nprecision = 'half'", "precision must be one of"),
    ("[[sharpness]]\nregion = 'ball'", "region must be one of"),
    ("[[sharpness]]\nparameters = ['layer9.*']", r"\[\[sharpness\]\] vertex: .*layer9"),
    ("[[sharpness]]\nsamples = 61", r"\[\[sharpness\]\] vertex: .*61"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_bad_file_is_refused_in_one_line_before_anything_runs(here, lbgap_command, monkeypatch, text, message):
    pytest.importorskip("optuna")
    from lbgap.sweeps import worker

    if "[base]" in text:
        text = text.replace("[base]", "[base]\ndata = 'data.npz'")
    elif "base" not in text:
        text += "\n[base]\ndata = 'data.npz'"

    def run(*_):
        raise AssertionError("the sweep was run")

    monkeypatch.setattr(worker, "run", run)
    (here / "bad.toml").write_text(text)
    status, out, err = lbgap_command("sweep", "bad.toml", "--out", "out")
    assert (status, out) == (1, "")
    assert re.fullmatch(r"lbgap: bad\.toml: [^\n]+\n", err), err
    assert re.search(message, err), err
    assert not (here / "out").exists()


def test_a_file_that_cannot_be_read(here, lbgap_command):
    (here / "latin.toml").write_bytes(b"name = '\xe4'")
    (here / "folder.toml").mkdir()
    for name, message in (
        ("none.toml", "none.toml: No such file"),
        ("folder.toml", "folder.toml: Is a directory"),
        ("latin.toml", "latin.toml: expected UTF-8, byte 8 is none"),
    ):
        status, out, err = lbgap_command("sweep", name)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert message in err


def test_data_that_are_missing_or_of_images(here, lbgap_command):
    (here / "bad.toml").write_text("[base]\ndata = 'none.npz'")
    status, _, err = lbgap_command("sweep", "bad.toml")
    assert status == 1
    assert re.fullmatch(r"lbgap: no file .*none\.npz: pass the path of an \.npz [^\n]*\n", err)


def test_judging_names_the_data_by_their_bits(here):
    digests = judge(read("sweep.toml"), here)
    assert list(digests) == ["data.npz"]
    assert re.fullmatch("[0-9a-f]{32}-[0-9a-f]{32}", digests["data.npz"])
