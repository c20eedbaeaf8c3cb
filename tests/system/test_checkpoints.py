"""Weights from files and folders: every format, what else a checkpoint holds, and that no code of a file runs."""

import argparse
import json
import os
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lbgap.system.checkpoints import read_weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([0.5, -1.0]), "count": torch.tensor(3)}
OLD = {"_use_new_zipfile_serialization": False}


def same(found, expected=TENSORS):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
        assert not found[name].requires_grad


def read(path, value, **options):
    torch.save(value, path, **options)
    return read_weights(path)


@pytest.mark.parametrize("strange", [{5: torch.ones(1)}, {7: {"a": torch.ones(1)}}, {("a",): torch.ones(1)}])
@pytest.mark.parametrize("beside", [TENSORS, {"state_dict": TENSORS}])
def test_weights_under_keys_that_are_no_strings_beside_others(tmp_path, strange, beside):
    torch.save({**beside, **strange}, tmp_path / "a.pt")
    (key,) = strange
    refused(tmp_path / "a.pt", rf"has weights under the key {re.escape(repr(key))}, which is no string, beside others")


def test_whole_numbers_that_count_what_an_optimizer_keeps(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "lr": {0: 0.1}}
    assert [*read(tmp_path / "a.pt", state)] == ["model"]


class TestNoFile:
    """What no weights can be read from, without waiting for whoever writes them."""

    def test_a_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", "is a pipe, a socket or a device, not a file")
        refused(Path(os.devnull), "is a pipe, a socket or a device, not a file")

    def test_a_link_to_itself(self, tmp_path):
        (tmp_path / "loop").symlink_to("loop")
        refused(tmp_path / "loop", r"is no path of a file or a folder \(Too many levels of symbolic links\): pass that")

    def test_names_that_nothing_has(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"^a{200}\.\.\. is no path of a file or a folder \(File name too long\): pass"
        ):
            read_weights("a" * 5000)
        with pytest.raises(
            ValueError, match=r"^a\\0b is no path of a file or a folder \(embedded null byte\): pass that"
        ):
            read_weights("a\0b")


def refused(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


class TestTorch:
    @pytest.mark.parametrize("options", [{}, OLD])
    @pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "weights"])
    def test_a_state_dict(self, tmp_path, name, options):
        found = read(tmp_path / name, {**TENSORS, "a.bias": torch.nn.Parameter(TENSORS["a.bias"])}, **options)
        same(found.pop(""))
        assert not found

    def test_the_usual_entries_before_others(self, tmp_path):
        other = {"b": torch.zeros(1)}
        found = read(tmp_path / "a.pt", {"epoch": 3, "ema": other, "rng": torch.ones(2), "model": TENSORS})
        assert [*found] == ["model", "ema", ""]
        same(found["model"])
        same(found["ema"], other)
        same(found[""], {"rng": torch.ones(2)})

    def test_a_state_dict_goes_before_what_stands_beside_it(self, tmp_path):
        assert [*read(tmp_path / "a.pt", {**TENSORS, "statistics": {"mean": torch.zeros(1)}})] == ["", "statistics"]

    def test_what_modules_keep_beside_tensors(self, tmp_path):
        found = read(tmp_path / "a.pt", {"a._extra_state": {"scale": 2}, "epoch": 1, "a.weight": torch.ones(1)})
        assert found[""] == {"a._extra_state": {"scale": 2}, "a.weight": torch.ones(1)}

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (torch.ones(2), "holds one tensor, not tensors by name"),
            ([torch.ones(2)], "holds list, not tensors by name"),
            ({}, r"has no tensors by name \(it holds nothing\): save the weights by torch.save\(model.state_dict"),
            ({"state": {0: {"step": torch.ones(1)}}, "param_groups": []}, r"\(it holds state, param_groups\)"),
        ],
    )
    def test_no_tensors_by_name(self, tmp_path, value, message):
        torch.save(value, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", message)

    def test_no_warning_and_none_of_the_filters_is_changed(self, tmp_path):
        torch.save({"a": torch.ones(1)}, tmp_path / "b.pt", **OLD, pickle_protocol=4)
        before = list(warnings.filters)
        refused(tmp_path / "b.pt", "was saved with a pickle_protocol of its own")
        assert warnings.filters == before

    def test_another_default_device(self, tmp_path):
        for name, options in (("a.pt", {}), ("b.pt", OLD)):
            torch.save(TENSORS, tmp_path / name, **options)
        save_file(TENSORS, tmp_path / "c.safetensors")
        with torch.device("meta"):
            found = [read_weights(tmp_path / name)[""] for name in ("a.pt", "b.pt", "c.safetensors")]
        for weights in found:
            same(weights)


class TestNothingIsRun:
    class Evil:
        def __init__(self, path):
            self.path = path

        def __reduce__(self):
            return Path.touch, (self.path,)

    @pytest.mark.parametrize("options", [{}, OLD])
    @pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {**TENSORS, "x": evil}])
    def test_a_malicious_checkpoint(self, tmp_path, options, wrap):
        torch.save(wrap(self.Evil(tmp_path / "done")), tmp_path / "a.pt", **options)
        message = r"holds more than tensors and plain values \(.*\), which is not unpickled here.*: save the weights"
        refused(tmp_path / "a.pt", message)
        assert not (tmp_path / "done").exists()
        torch.load(tmp_path / "a.pt", weights_only=False)
        assert (tmp_path / "done").exists()  # so that the file would have been made

    @pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
    def test_a_malicious_pickle(self, tmp_path, protocol):
        (tmp_path / "a.pt").write_bytes(pickle.dumps(self.Evil(tmp_path / "done"), protocol))
        refused(tmp_path / "a.pt", "is (a pickle that torch.save did not write|a text file|of no known kind)")
        assert not (tmp_path / "done").exists()

    @pytest.mark.parametrize("variable", ["0", "1"])
    def test_no_variable_of_the_environment_lets_it(self, tmp_path, monkeypatch, variable):
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", variable)
        torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
        refused(tmp_path / "a.pt", r"plain values \(torch.nn.modules.linear.Linear\)")

    def test_what_else_trainings_write(self, tmp_path):
        for name, value in (("argparse.Namespace", argparse.Namespace(lr=1)), ("scalar", np.float64(1))):
            torch.save({"state_dict": TENSORS, "best": value}, tmp_path / "a.pt")
            refused(tmp_path / "a.pt", rf"holds more than tensors and plain values \(.*{name}\)")


class TestDamage:
    @pytest.mark.parametrize("options", [{}, OLD])
    def test_truncated_checkpoints(self, tmp_path, options):
        torch.save(TENSORS, tmp_path / "a.pt", **options)
        whole = (tmp_path / "a.pt").read_bytes()
        for length in range(20, len(whole), 97):
            (tmp_path / "a.pt").write_bytes(whole[:length])
            refused(tmp_path / "a.pt", "is damaged|holds more than tensors")

    def test_truncated_safetensors(self, tmp_path):
        save_file(TENSORS, tmp_path / "a")
        whole = (tmp_path / "a").read_bytes()
        for length in range(9, len(whole)):
            (tmp_path / "a").write_bytes(whole[:length])
            refused(tmp_path / "a", r"is damaged, not safetensors \(.*\): restore or delete it")

    def test_another_kind_is_not_called_damaged(self, tmp_path):
        (tmp_path / "a.safetensors").write_text("<html>")
        refused(tmp_path / "a.safetensors", "is an HTML page, .*: expected a state dict saved by torch.save, a")


class TestSeveralFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        """Two files and their index."""
        save_file({name: value for name, value in TENSORS.items() if name != "count"}, tmp_path / "1-of-2.safetensors")
        save_file({"count": TENSORS["count"]}, tmp_path / "2-of-2.safetensors")
        self.index(tmp_path)
        return tmp_path

    def index(self, folder, **changes):
        map_ = {name: f"{2 if name == 'count' else 1}-of-2.safetensors" for name in TENSORS} | changes
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": map_}))

    def test_by_the_index_or_the_folder(self, folder):
        for path in (folder, str(folder), folder / "model.safetensors.index.json"):
            found = read_weights(path)
            same(found.pop(""))
            assert not found

    def test_of_torch(self, tmp_path):
        torch.save(TENSORS, tmp_path / "one.bin")
        (tmp_path / "pytorch_model.bin.index.json").write_text(
            json.dumps({"weight_map": dict.fromkeys(TENSORS, "one.bin")})
        )
        same(read_weights(tmp_path)[""])

    def test_a_missing_file(self, folder):
        (folder / "2-of-2.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"index.json names 2 files, .* 1 are missing, 2-of-2.safetensors"):
            read_weights(folder)

    @pytest.mark.parametrize("place", ["../x.safetensors", "/x.safetensors", "sub/x", "..", "", "a\\b", "."])
    def test_a_place_outside(self, folder, place):
        save_file({"count": torch.tensor(9)}, folder.parent / "x.safetensors")
        self.index(folder, count=place)
        refused(folder / "model.safetensors.index.json", "names '.*', which is not a file of its own folder")

    def test_files_of_another_set(self, folder):
        self.index(folder, more="2-of-2.safetensors")
        with pytest.raises(
            ValueError, match=r"2-of-2.safetensors lacks 'more', other than model.safetensors.index.jso"
        ):
            read_weights(folder)
        save_file({"count": torch.tensor(1), "left": torch.tensor(1)}, folder / "2-of-2.safetensors")
        self.index(folder)
        with pytest.raises(ValueError, match=r"2-of-2.safetensors has 'left', other than model"):
            read_weights(folder)

    def test_an_index_in_an_index(self, folder):
        self.index(folder, count="model.safetensors.index.json")
        with pytest.raises(ValueError, match="is a JSON file: expected"):
            read_weights(folder)

    @pytest.mark.parametrize("value", [{}, [], {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": ["a"]}])
    def test_another_json_file(self, tmp_path, value):
        (tmp_path / "config.json").write_text(json.dumps(value))
        refused(tmp_path / "config.json", "is a JSON file without a weight_map, not the index of weights: expected")


class TestFolder:
    def test_one_file(self, tmp_path):
        torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
        same(read_weights(tmp_path)[""], {"other": torch.ones(1)})
        save_file(TENSORS, tmp_path / "model.safetensors")
        same(read_weights(tmp_path)[""])

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ([], r"has none of model.safetensors, .* \(it is empty\): pass the file with the weights itself"),
            (["a", "b", "c", "d", "e", "f"], r"\(it has a, b, c, d, e, \.\.\.\)"),
            (["state.safetensors", "metrics.jsonl", "config.json"], "is an unfinished run: finish it"),
            ([".metadata", "__0_0.distcp"], "is a distributed checkpoint: make one file of it by dcp_to_torch_save"),
            (["adapter_config.json", "adapter_model.safetensors"], "holds adapters, .*PeftModel.from_pretrained"),
            (["saved_model.pb"], "is a TensorFlow model"),
        ],
    )
    def test_none(self, tmp_path, names, message):
        for name in names:
            (tmp_path / name).touch()
        refused(tmp_path, message)
