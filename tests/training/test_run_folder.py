"""The folder of a run: what is in it, who may write there, and what reading it says of damage."""

import json
import os

import pytest
import torch
from torch import nn

from lbgap.system import files
from lbgap.training import read_iterates, read_run, train

FILES = ["config.json", "metrics.jsonl", "model.safetensors", "result.json", "state.safetensors"]


pytestmark = pytest.mark.usefixtures("one_thread")


def make_data(samples=33):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 6, generator=generator), torch.randint(3, (samples,), generator=generator)


def make_model(width=8):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 3)
        )


def run_once(folder=None, **settings):
    settings = {"epochs": 4, "batch_size": 8, "checkpoint_seconds": 0.0, **settings}
    model, data = settings.pop("model", None) or make_model(), settings.pop("data", None) or make_data()
    return train(model, data, out=folder, **settings)


def without_seconds(metrics):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in metrics]


def assert_same_run(first, second):
    assert sorted(os.listdir(first)) == sorted(os.listdir(second)) == FILES
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    one, two = read_run(first), read_run(second)
    assert without_seconds(one.metrics) == without_seconds(two.metrics)
    for key in ("epoch", "epochs", "reason"):
        assert one.result[key] == two.result[key]


class Stop(Exception):  # noqa: N818
    pass


def stop_after(epochs):
    def told(metrics):
        if metrics["epoch"] == epochs:
            raise Stop

    return told


def test_a_run_is_a_folder_of_five_files(tmp_path):
    run = run_once(tmp_path / "deep" / "run", config={"network": {"name": "f1"}})
    assert sorted(os.listdir(run.folder)) == FILES
    saved = read_run(run.folder)
    assert saved.config == run.config == json.loads((run.folder / "config.json").read_text())
    assert saved.config["extra"] == {"network": {"name": "f1"}}
    assert saved.metrics == run.metrics
    assert saved.result["metrics"] == run.metrics[-1]
    assert (saved.result["epoch"], saved.result["epochs"], saved.result["reason"]) == (4, 4, run.reason)
    assert saved.result["seconds"] == run.seconds
    model = make_model()
    model.load_state_dict(saved.weights)
    for one, two in zip(model.state_dict().values(), run.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert str(saved) == str(run)
    assert str(run.folder) in str(run)


def test_tied_weights_come_back_under_both_names(tmp_path):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    run = run_once(tmp_path, model=model)
    weights = read_run(tmp_path).weights
    assert torch.equal(weights["0.weight"], weights["2.weight"])
    model.load_state_dict(weights)
    assert torch.equal(model[0].weight, run.model[2].weight)
    again = run_once(tmp_path, model=model, resume=True)
    assert again.model[0].weight is again.model[2].weight


def test_a_finished_run_is_returned_without_training(tmp_path):
    run = run_once(tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in FILES}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)  # nothing is computed any more, so the environment does not count
        again = run_once(tmp_path, resume=True, progress=lambda metrics: pytest.fail("trained"))
    finally:
        torch.set_num_threads(threads)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in FILES} == before
    assert torch.equal(again.model[0].weight, run.model[0].weight)
    assert not again.model.training
    assert (again.metrics, again.config, again.reason, again.epoch) == (
        run.metrics,
        run.config,
        run.reason,
        run.epoch,
    )
    assert again.seconds == run.seconds


def test_resume_starts_fresh_where_nothing_is(tmp_path):
    run_once(tmp_path / "missing", resume=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".config.json.0123456789abcdef.tmp").write_bytes(b"{")
    run_once(tmp_path / "empty", resume=True)
    assert_same_run(tmp_path / "missing", tmp_path / "empty")


class TestRefusals:
    def test_a_folder_that_holds_a_run(self, tmp_path):
        run_once(tmp_path)
        with pytest.raises(FileExistsError, match="holds a finished run: pass resume=True to continue it or"):
            run_once(tmp_path)
        (tmp_path / "result.json").unlink()
        with pytest.raises(FileExistsError, match="holds an unfinished run: pass resume=True"):
            run_once(tmp_path)

    @pytest.mark.parametrize("resume", [False, True])
    def test_a_folder_that_holds_something_else(self, tmp_path, resume):
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(FileExistsError, match=r"holds no run \(it has 'thesis.tex'\): choose another folder"):
            run_once(tmp_path, resume=resume)
        assert os.listdir(tmp_path) == ["thesis.tex"]

    @pytest.mark.parametrize("resume", [False, True])
    @pytest.mark.parametrize("text", ["{}", "[]", '{"format": "other"}'])
    def test_a_foreign_config(self, tmp_path, resume, text):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"is not a run that this version reads: config\.json has format"):
            run_once(tmp_path, resume=resume)
        assert (tmp_path / "config.json").read_text() == text

    def test_a_file_in_the_way(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(NotADirectoryError, match="out must be a folder, got the file"):
            run_once(tmp_path / "file")

    def test_bad_arguments_leave_no_folder(self, tmp_path):
        for bad in ({"optimizer": "x"}, {"batch_size": 99}, {"config": {"a": object()}}, {"progress": 3}):
            with pytest.raises((ValueError, TypeError)):
                run_once(tmp_path / "run", **bad)
        assert not (tmp_path / "run").exists()

    @pytest.mark.skipif(files.fcntl is None, reason="needs POSIX locks")
    def test_a_folder_in_use(self, tmp_path):
        with files.locked(tmp_path), pytest.raises(BlockingIOError, match="is in use: another process"):
            run_once(tmp_path)
        run_once(tmp_path)

    @pytest.mark.parametrize("finished", [False, True])
    def test_other_settings_are_named_with_both_values(self, tmp_path, finished):
        run_once(tmp_path)
        if not finished:
            (tmp_path / "result.json").unlink()
        before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
        with pytest.raises(ValueError, match=r"cannot resume .* with other settings") as caught:
            run_once(
                tmp_path,
                resume=True,
                epochs=5,
                batch_size=9,
                seed=1,
                learning_rate=2e-3,
                optimizer="SGD",
                test_data=make_data(),
                config={"note": "x"},
                data=(make_data()[0] + 1, make_data()[1]),
            )
        message = str(caught.value)
        for phrase in (
            "epochs is 4 there but 5 here",
            "batch_size is 8 there but 9 here",
            "seed is 0 there but 1 here",
            "learning_rate is 0.001 there but 0.002 here",
            "optimizer is 'Adam' there but 'SGD' here",
            "test_data.samples is absent there but 33 here",
            "data.digest is",
            "extra.note is absent there but 'x' here",
        ):
            assert phrase in message
        assert "\n" not in message
        assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before

    def test_another_environment(self, tmp_path):
        with pytest.raises(Stop):
            run_once(tmp_path, progress=stop_after(1))
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(threads + 1)
            with pytest.raises(ValueError, match=rf"environment\.threads is {threads} there but {threads + 1} here"):
                run_once(tmp_path, resume=True)
        finally:
            torch.set_num_threads(threads)

    def test_another_model(self, tmp_path):
        with pytest.raises(Stop):
            run_once(tmp_path, progress=stop_after(1))
        with pytest.raises(ValueError, match=r"model\.parameters is"):
            run_once(tmp_path, resume=True, model=make_model(9))
        same_size = nn.Sequential(*(make_model()[i] for i in (0, 2, 1, 3, 4)))
        with pytest.raises(ValueError, match=r"is of another model: 1\.num_batches_tracked is \(\) int64 there"):
            run_once(tmp_path, resume=True, model=same_size)
        run_once(tmp_path, resume=True)
        with pytest.raises(ValueError, match=r"model\.safetensors is of another model: ") as caught:
            run_once(tmp_path, resume=True, model=same_size)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "content", "match"),
        [
            ("config.json", b"{", r"config\.json is damaged, not JSON"),
            ("state.safetensors", b"x", r"state\.safetensors is damaged, not safetensors"),
        ],
    )
    def test_damaged_files_of_an_unfinished_run(self, tmp_path, name, content, match):
        with pytest.raises(Stop):
            run_once(tmp_path, progress=stop_after(1))
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=match):
            run_once(tmp_path, resume=True)

    def test_a_foreign_state(self, tmp_path):
        with pytest.raises(Stop):
            run_once(tmp_path, progress=stop_after(1))
        files.write_safetensors(tmp_path / "state.safetensors", {"a": torch.ones(1)}, {})
        with pytest.raises(ValueError, match=r"state\.safetensors is not the state of a training"):
            run_once(tmp_path, resume=True)

    def test_a_model_with_extra_state(self, tmp_path):
        class Extra(nn.Linear):
            def get_extra_state(self):
                return {"a": 1}

            def set_extra_state(self, state):
                pass

        run_once(model=Extra(6, 3))
        with pytest.raises(ValueError, match="extra state that is no tensor"):
            run_once(tmp_path / "run", model=Extra(6, 3))
        assert not (tmp_path / "run").exists()


class TestReadRun:
    def test_what_is_no_run(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no folder .*missing: pass the folder of a run"):
            read_run(tmp_path / "missing")
        with pytest.raises(ValueError, match=r"is not a run: it has no config\.json"):
            read_run(tmp_path)

    def test_an_unfinished_run_tells_how_to_resume(self, tmp_path):
        with pytest.raises(Stop):
            run_once(tmp_path, progress=stop_after(3))
        with pytest.raises(ValueError, match=r"unfinished run \(3 epochs saved\): .*resume=True\)") as caught:
            read_run(str(tmp_path))
        assert f"out={str(tmp_path)!r}" in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "content", "match"),
        [
            ("result.json", b"", r"result\.json is damaged, not JSON"),
            ("result.json", b"{}", r"result\.json is damaged: it lacks epoch"),
            ("metrics.jsonl", b"{\n", r"metrics\.jsonl is damaged, not JSON \(line 1"),
            ("metrics.jsonl", b"{}\n", r"metrics\.jsonl is damaged: it has 1 epochs, result\.json says 4"),
            ("model.safetensors", b"", r"model\.safetensors is damaged, not safetensors"),
        ],
    )
    def test_damaged_files(self, tmp_path, name, content, match):
        run_once(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=match) as caught:
            read_run(tmp_path)
        assert "\n" not in str(caught.value)

    def test_a_missing_file(self, tmp_path):
        run_once(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
            read_run(tmp_path)


def test_iterates_are_those_of_shorter_trainings(tmp_path):
    run = run_once(tmp_path / "run", keep_every=2)
    found = dict(read_iterates(tmp_path / "run"))
    assert list(found) == [0, 2, 4]
    for epoch, weights in found.items():
        expected = run_once(epochs=epoch).model if epoch else make_model()
        assert weights.keys() == expected.state_dict().keys()
        assert all(torch.equal(weights[name], value) for name, value in expected.state_dict().items())
    assert all(torch.equal(found[4][name], value) for name, value in run.model.state_dict().items())
    assert read_run(tmp_path / "run").config["keep_every"] == 2


def test_iterates_of_an_unfinished_run(tmp_path):
    with pytest.raises(Stop):
        run_once(tmp_path, keep_every=1, progress=stop_after(2))
    assert [epoch for epoch, _ in read_iterates(tmp_path)] == [0, 1, 2]


def test_bad_iterates(tmp_path):
    with pytest.raises(ValueError, match="keep_every must be at least 1, got 0"):
        run_once(tmp_path / "none", keep_every=0)
    with pytest.raises(TypeError, match=r"keep_every must be a whole number, got 1\.5"):
        run_once(tmp_path / "none", keep_every=1.5)
    with pytest.raises(ValueError, match="keep_every needs a folder for the iterates: pass it as `out`"):
        run_once(keep_every=1)
    assert not (tmp_path / "none").exists()
    run_once(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"plain kept no iterates: train it with keep_every=N .* --keep-every N"):
        read_iterates(tmp_path / "plain")
    with pytest.raises(ValueError, match="keep_every is absent there but 1 here"):
        run_once(tmp_path / "plain", resume=True, keep_every=1)
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_iterates(tmp_path / "nowhere")
    run_once(tmp_path / "run", keep_every=4)
    (tmp_path / "run" / "iterates" / "epoch-00004.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"epoch-00004\.safetensors is damaged"):
        read_iterates(tmp_path / "run")
