"""A run on the disk: killed at any moment and resumed, it ends with the same bits."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from lbgap.system import files
from lbgap.training import checkpoint, read_run, train

FILES = ["config.json", "metrics.jsonl", "model.safetensors", "result.json", "state.safetensors"]

# Forks one process a training, so that torch is imported once; crashes them, and resumes what is left.
DRIVER = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import torch, torch._dynamo
from torch import nn
from lbgap.system import files
from lbgap.training import train

mode, root, case = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])

def work(folder, model_seed=0):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(33, 6, generator=generator), torch.randint(3, (33,), generator=generator)
    torch.manual_seed(model_seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    train(model, data, test_data=data, batch_size=8, seed=3, out=folder, resume=True, **case)

def forked(action, *arguments):
    child = os.fork()
    if child == 0:
        try:
            action(*arguments)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return child

def wait(child):
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, status
    return status == 0

def crash_at(step, folder):
    calls = {name: getattr(os, name) for name in ("open", "write", "fsync", "replace")}
    left = step
    def bomb(name):
        def call(*arguments):
            nonlocal left
            left -= 1
            if left == 0:
                if name == "write":
                    calls["write"](arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return calls[name](*arguments)
        return call
    for name in calls:
        setattr(files.os, name, bomb(name))
    work(folder)

crashes, ended, step, draw, stride = 0, False, 0, random.Random(0), case.pop("stride", 1)
began = time.monotonic()
assert wait(forked(work, root / "whole"))
took = time.monotonic() - began
if mode == "steps":
    while not ended:
        step += stride
        folder = root / f"step{step}"
        ended = wait(forked(crash_at, step, folder))
        crashes += not ended
        # Once a state is saved, the values of the module that is passed to a resume do not count.
        assert wait(forked(work, folder, 1 if (folder / "state.safetensors").exists() else 0))
else:
    while not ended:
        child = forked(work, root / "timed")
        # By shares of what all of it took: twice before it can be over, then later and later, for a busy machine.
        time.sleep(took * draw.uniform(0.05, 0.3 * max(1, crashes)))
        os.kill(child, signal.SIGKILL)
        ended = wait(child)
        crashes += not ended
print(json.dumps(crashes))
"""


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
    assert sorted(os.listdir(first)) == sorted(os.listdir(second))
    assert sorted(entry.name for entry in first.iterdir() if entry.is_file()) == FILES
    iterates = [[entry.read_bytes() for entry in sorted(one.glob("iterates/*"))] for one in (first, second)]
    assert iterates[0] == iterates[1]
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("mode", "case", "least"),
    [
        ("steps", {"epochs": 1, "checkpoint_seconds": 0}, 30),
        ("steps", {"max_epochs": 3, "patience": 1, "learning_rate": 0.5, "optimizer": "SGD", "stride": 3}, 9),
        ("steps", {"epochs": 3, "checkpoint_seconds": 1e9, "keep_every": 2, "stride": 3}, 9),
        (
            "steps",
            {
                "epochs": 3,
                "checkpoint_seconds": 0,
                "remedies": ["augment:shift=0.2,shape=6", "conservative", "sam", "swa:start=2", "ghost:size=4"],
                "stride": 5,
            },
            9,
        ),
        ("times", {"epochs": 60, "checkpoint_seconds": 0.02}, 2),
        (
            "times",
            {
                "max_epochs": 60,
                "patience": 59,
                "optimizer": "SGD",
                "optimizer_options": {"momentum": 0.9},
                "checkpoint_seconds": 0,
            },
            2,
        ),
    ],
)
def test_killed_and_resumed_gives_the_same_bits(tmp_path, mode, case, least):
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, mode, str(tmp_path), json.dumps(case)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) >= least
    folders = [folder for folder in tmp_path.iterdir() if folder.name != "whole"]
    assert len(folders) >= (least if mode == "steps" else 1)
    for folder in folders:
        assert_same_run(folder, tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Adam", {"amsgrad": True}),
        ("AdamW", {"fused": True}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("Adagrad", {}),
        ("Adadelta", {}),
        ("Adamax", {}),
        ("ASGD", {}),
        ("NAdam", {}),
        ("RAdam", {}),
        ("RMSprop", {"momentum": 0.5, "centered": True}),
        ("Rprop", {}),
        ("Adafactor", {}),
    ],
)
def test_every_optimiser_resumes_to_the_same_bits(tmp_path, name, options):
    settings = {"optimizer": name, "optimizer_options": options}
    whole = run_once(**settings)
    with pytest.raises(Stop):
        run_once(tmp_path, progress=stop_after(2), **settings)
    resumed = run_once(tmp_path, resume=True, **settings)
    for (key, one), two in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), key
    assert without_seconds(whole.metrics) == without_seconds(resumed.metrics)


def test_two_threads_resume_to_the_same_bits(tmp_path):
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(600, 128, generator=generator), torch.randint(3, (600,), generator=generator)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(128, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 3))
    settings = {"model": model, "data": data, "batch_size": 199, "epochs": 3}
    with pytest.raises(Stop):
        run_once(tmp_path / "cut", progress=stop_after(1), **settings)
    run_once(tmp_path / "cut", resume=True, **settings)
    run_once(tmp_path / "whole", **settings)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_convolutions_in_channels_last_and_half_precision(tmp_path):
    def model():
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(0)
            net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
        return net.to(torch.bfloat16).to(memory_format=torch.channels_last)

    data = torch.randn(20, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    settings = {"data": data, "optimizer": "NAdam", "max_epochs": 5, "epochs": None, "patience": 4}
    whole = run_once(tmp_path / "whole", model=model(), **settings)
    with pytest.raises(Stop):
        run_once(tmp_path / "cut", model=model(), progress=stop_after(2), **settings)
    run_once(tmp_path / "cut", model=model(), resume=True, **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert whole.model[0].weight.stride() == model()[0].weight.stride()


def test_writing_changes_no_bit_and_the_file_is_the_same_each_time(tmp_path):
    runs = [run_once(), run_once(tmp_path / "a"), run_once(tmp_path / "b", checkpoint_seconds=60.0)]
    for run in runs[1:]:
        assert torch.equal(run.model[0].weight, runs[0].model[0].weight)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_the_state_is_written_when_due(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    write = files.write_safetensors

    def spy(path, *rest):
        written.append((path.name, now[0]))
        write(path, *rest)

    monkeypatch.setattr(files, "write_safetensors", spy)

    def tick(_):
        now[0] += 2.0

    run_once(tmp_path, epochs=7, checkpoint_seconds=5.0, progress=tick)
    assert written == [
        ("state.safetensors", 0.0),
        ("state.safetensors", 6.0),
        ("state.safetensors", 12.0),
        ("model.safetensors", 14.0),
    ]


@pytest.mark.parametrize("when", ["batch", "epoch"])
def test_an_interrupt_saves_the_last_finished_epoch(tmp_path, when):
    calls = []

    class Interrupts(nn.Linear):
        def forward(self, x):
            calls.append(self.training)
            if when == "batch" and calls.count(True) == 11:  # four batches an epoch: the third of the third
                os.kill(os.getpid(), signal.SIGINT)
            return super().forward(x)

    def told(metrics):
        if when == "epoch" and metrics["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    class Quiet(nn.Linear):
        pass

    Quiet.__name__ = "Interrupts"
    with torch.random.fork_rng([]):
        model = Interrupts(6, 3)
    plain = Quiet(6, 3)
    plain.load_state_dict(model.state_dict())
    settings = {"checkpoint_seconds": 1000.0}
    with pytest.raises(KeyboardInterrupt):
        run_once(tmp_path / "cut", model=model, progress=told, **settings)
    metrics = files.read_json_lines(tmp_path / "cut" / "metrics.jsonl")
    assert [row["epoch"] for row in metrics] == [1, 2]
    told_epochs = []
    run_once(
        tmp_path / "cut",
        model=plain,
        resume=True,
        progress=lambda m: told_epochs.append(m["epoch"]),
        **settings,
    )
    assert told_epochs == [3, 4]
    run_once(tmp_path / "whole", model=plain, **settings)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_loss_that_explodes_keeps_the_epochs_before(tmp_path):
    inputs, _ = make_data()

    def run(**more):
        return run_once(
            tmp_path,
            model=nn.Linear(6, 1),
            data=(inputs, inputs[:, :1]),
            loss="mse",
            optimizer="SGD",
            learning_rate=100.0,
            epochs=100,
            checkpoint_seconds=1000.0,
            **more,
        )

    with pytest.raises(FloatingPointError) as first:
        run()
    epochs = len(files.read_json_lines(tmp_path / "metrics.jsonl"))
    assert epochs > 0
    assert f"epoch {epochs + 1}" in str(first.value)
    with pytest.raises(FloatingPointError) as second:
        run(resume=True)
    assert str(second.value) == str(first.value)


def test_a_full_disk_keeps_the_last_state_and_resumes(tmp_path, monkeypatch):
    fsync, full = os.fsync, []

    def limited(descriptor):
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", limited)

    def fill(metrics):
        if metrics["epoch"] == 2:
            full.append(True)

    with pytest.raises(OSError, match=r"metrics\.jsonl: No space left on device; the previous") as caught:
        run_once(tmp_path / "cut", progress=fill)
    assert "\n" not in str(caught.value)
    assert not getattr(caught.value, "__notes__", [])
    assert not [name for name in os.listdir(tmp_path / "cut") if name.endswith(".tmp")]
    full.clear()
    run_once(tmp_path / "cut", resume=True)
    run_once(tmp_path / "whole")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_an_interrupt_on_a_full_disk_is_still_an_interrupt(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def told(_):
        monkeypatch.setattr(os, "fsync", fail)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run_once(tmp_path, progress=told, checkpoint_seconds=1000.0)
    assert "No space left on device" in caught.value.__notes__[0]


def test_resume_starts_fresh_where_nothing_is(tmp_path):
    run_once(tmp_path / "missing", resume=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".config.json.0123456789abcdef.tmp").write_bytes(b"{")
    run_once(tmp_path / "empty", resume=True)
    assert_same_run(tmp_path / "missing", tmp_path / "empty")
