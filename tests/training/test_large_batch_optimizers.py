"""LARS and LAMB, which come from the package pytorch-optimizer."""

import copy
import importlib.metadata
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap.training import train
from lbgap.training.batches import epoch_batches

pytestmark = pytest.mark.usefixtures("one_thread")


def make_data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(37, 6, generator=generator, dtype=torch.float64), torch.arange(37) % 3


def make_model():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def test_it_says_what_is_missing(monkeypatch, tmp_path, lbgap_command):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(
        ImportError, match=r"optimizer 'lamb' is in the package pytorch-optimizer, .*lbgap\[optimizers\]"
    ):
        train(make_model(), make_data(), optimizer="lamb", epochs=1)
    code, _, err = lbgap_command("train", "--out", tmp_path / "run", "--optimizer", "LARS", "--epochs", "1")
    assert code == 1
    assert "pip install 'lbgap[optimizers]'" in err
    assert len(err.strip().splitlines()) == 1


class TestInstalled:
    @pytest.fixture(autouse=True)
    def package(self):
        return pytest.importorskip("pytorch_optimizer")

    @pytest.mark.parametrize(
        ("name", "options"),
        [("LARS", {"momentum": 0.8}), ("Lamb", {"weight_decay": 0.01}), ("Lamb", {"rectify": True})],
    )
    def test_it_is_the_loop_by_hand_and_resumes_to_the_same_bits(self, package, tmp_path, name, options):
        model, (inputs, targets) = make_model(), make_data()
        settings = {"optimizer": name.upper(), "optimizer_options": options, "learning_rate": 0.05, "seed": 2}
        settings |= {"batch_size": 10, "epochs": 8}

        class Stop(Exception):  # noqa: N818
            pass

        def stop(metrics):
            if metrics["epoch"] == 3:
                raise Stop

        with pytest.raises(Stop):
            train(model, (inputs, targets), out=tmp_path, checkpoint_seconds=0, progress=stop, **settings)
        run = train(model, (inputs, targets), out=tmp_path, resume=True, **settings)
        assert run.config["optimizer"] == name
        assert run.config["environment"]["pytorch_optimizer"] == importlib.metadata.version("pytorch_optimizer")
        expected = copy.deepcopy(model)
        optimizer = getattr(package, name)(expected.parameters(), lr=0.05, **options)
        for epoch in range(1, 9):
            for index in epoch_batches(37, 10, 2, epoch):
                optimizer.zero_grad()
                (F.cross_entropy(expected(inputs[index]), targets[index], reduction="sum") / len(index)).backward()
                optimizer.step()
        for found, wanted in zip(run.model.parameters(), expected.parameters(), strict=True):
            assert torch.equal(found, wanted)

    def test_it_goes_with_remedies(self):
        settings = {"optimizer": "lars", "learning_rate": 1.0, "epochs": 2, "batch_size": 10}
        run = train(make_model(), make_data(), remedies=["linear-rate:reference=5,warmup=1", "sam"], **settings)
        assert run.metrics[-1]["learning_rate"] == 2.0

    def test_options_are_judged(self):
        with pytest.raises(
            ValueError, match="optimizer_options has 'momentun', which LARS does not take: did you mean"
        ):
            train(make_model(), make_data(), optimizer="LARS", optimizer_options={"momentun": 1})
        with pytest.raises(ValueError, match="LARS refuses these parameters or options"):
            train(make_model(), make_data(), optimizer="LARS", optimizer_options={"momentum": -1.0})
