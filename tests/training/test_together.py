"""Several networks trained as one batched model end where each would alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import lbgap
from lbgap import datasets, networks
from lbgap.problem.loss import resolve_loss
from lbgap.training import read_iterates
from lbgap.training.checkpoint import State
from lbgap.training.stack import ELEMENTWISE, Stack

SEEDS = (3, 0, 5)


@pytest.fixture(scope="module")
def data():
    found = datasets.mnist1d(250)
    return tuple((split.inputs.double(), split.targets) for split in (found.train, found.test))


def starts(seeds=SEEDS, batch_norm=True):
    return [networks.mlp(40, [8, 6], 10, batch_norm=batch_norm, seed=seed).double() for seed in seeds]


def both(data, models=None, seeds=SEEDS, **options):
    """The runs one by one, and together."""
    models = models or starts(seeds)
    options = {"test_data": data[1], "batch_size": 32, "epochs": 2, **options}
    alone = [lbgap.train(model, data[0], seed=seed, **options) for model, seed in zip(models, seeds, strict=True)]
    return alone, lbgap.train_together(models, data[0], seeds=seeds, **options)


def assert_same(alone, together):
    for one, other in zip(alone, together, strict=True):
        assert (one.epoch, one.reason, one.config) == (other.epoch, other.reason, other.config)
        for row, same in zip(one.metrics, other.metrics, strict=True):
            assert {**row, "seconds": 0} == pytest.approx({**same, "seconds": 0}, rel=1e-6)
        for (name, value), same in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
            torch.testing.assert_close(value, same, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("optimizer", ELEMENTWISE)
def test_each_ends_where_it_would_alone(data, optimizer):
    assert_same(*both(data, optimizer=optimizer))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "SGD", "learning_rate": 0.05, "optimizer_options": {"momentum": 0.9, "weight_decay": 1e-3}},
        {"optimizer_options": {"fused": True}},
        {"optimizer": "AdamW", "optimizer_options": {"amsgrad": True}},
        {"batch_size": 0.3},
        {"loss": lambda output, target: F.cross_entropy(output, target, label_smoothing=0.1)},
    ],
    ids=["momentum", "fused", "amsgrad", "share", "callable"],
)
def test_with_other_settings(data, options):
    assert_same(*both(data, **options))


def test_regression_of_images_without_batch_norm_and_with_a_frozen_layer(data):
    inputs, targets = data[0][0].view(-1, 5, 8), F.one_hot(data[0][1], 10).double()
    models = [nn.Sequential(nn.Flatten(), nn.Sequential(*model)) for model in starts(batch_norm=False)]
    for model in models:
        model[1][0].weight.requires_grad_(False)
    alone, together = both(((inputs, targets), (inputs, targets)), models, loss="mse")
    assert_same(alone, together)
    assert torch.equal(together[0].model[1][0].weight, models[0][1][0].weight)


def test_each_stops_by_itself(data):
    options = {"epochs": None, "max_epochs": 30, "patience": 2, "tolerance": 0.05, "learning_rate": 0.02}
    alone, together = both(data, **options)
    assert len({len(run.metrics) for run in alone}) > 1  # or nothing is shown
    assert_same(alone, together)


def test_the_runs_share_no_memory_and_the_models_are_not_changed(data):
    models = starts()
    before = [[p.clone() for p in model.parameters()] for model in models]
    runs = lbgap.train_together(models, data[0], seeds=SEEDS, batch_size=32, epochs=1)
    for model, values in zip(models, before, strict=True):
        assert all(map(torch.equal, model.parameters(), values))
    tensors = [tensor for run in runs for tensor in run.model.state_dict().values()]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)


def stop_at(epoch):
    def callback(metrics):
        if metrics["epoch"] == epoch:
            raise KeyboardInterrupt

    return callback


def test_an_interrupted_training_goes_on_together_or_alone(data, tmp_path):
    options = {"batch_size": 32, "epochs": 4, "keep_every": 2, "test_data": data[1]}
    folders = [tmp_path / str(seed) for seed in SEEDS]
    with pytest.raises(KeyboardInterrupt):
        lbgap.train_together(starts(), data[0], seeds=SEEDS, out=folders, progress=stop_at(2), **options)
    first = lbgap.train(starts()[0], data[0], seed=SEEDS[0], out=folders[0], resume=True, **options)
    runs = lbgap.train_together(starts(), data[0], seeds=SEEDS, out=folders, resume=True, **options)
    alone, _ = both(data, epochs=4)
    for run, one in zip([first, *runs[1:]], alone, strict=True):
        assert [row["train_loss"] for row in run.metrics] == pytest.approx([r["train_loss"] for r in one.metrics])
        assert [epoch for epoch, _ in read_iterates(run.folder)] == [0, 2, 4]
    assert runs[0].metrics == first.metrics


def test_those_behind_catch_up(data, tmp_path):
    options = {"batch_size": 32, "epochs": 5}
    folders = [tmp_path / str(seed) for seed in SEEDS]
    with pytest.raises(KeyboardInterrupt):
        lbgap.train(starts()[1], data[0], seed=SEEDS[1], out=folders[1], progress=stop_at(3), **options)
    epochs = []

    def note(row):
        epochs.append((row["seed"], row["epoch"]))

    lbgap.train_together(starts(), data[0], seeds=SEEDS, out=folders, resume=True, progress=note, **options)
    behind = [(seed, epoch) for epoch in (1, 2, 3) for seed in (SEEDS[0], SEEDS[2])]
    assert epochs == behind + [(seed, epoch) for epoch in (4, 5) for seed in SEEDS]


def test_a_step_of_more_networks_takes_no_more_calls(data):
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    loss = resolve_loss("cross_entropy").check(starts()[0](data[0][0]), data[0][1])
    counts = []
    for k in (2, 6):
        models = starts(range(k))
        stack = Stack([State(model, torch.optim.SGD(model.parameters(), foreach=True), {}) for model in models])
        index = torch.arange(32).expand(k, -1)
        with Count() as count:
            stack.step(data[0][0][index], data[0][1][index], loss)
        counts.append(count.calls)
    assert counts[0] == counts[1]


def with_hook():
    model = starts()[0]
    model[0].register_forward_hook(lambda *_: None)
    return model


def tied():
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40)).double()
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([], {}, "models must be one network or more, got none"),
        (starts(), {"seeds": (1, 2)}, r"seeds must be a list of 3, one a model, got \(1, 2\)"),
        (starts(), {"seeds": 3}, "seeds must be a list of 3, one a model, got 3"),
        (starts(), {"out": "runs"}, "out must be a list of 3, one a model, got 'runs'"),
        (starts(), {"out": ["a", "b", "./a"]}, "out must be a folder of its own for each model, got one twice"),
        (starts(), {"resume": True}, "resume=True needs the folders of the runs: pass them as `out`"),
        (starts(), {"keep_every": 2}, "keep_every needs the folders of the runs: pass them as `out`"),
        (starts(), {"optimizer": "Adafactor"}, "optimizer Adafactor cannot step several networks at once: choose one"),
        (starts()[:2] + starts(batch_norm=False)[:1], {}, "the same layers, dtype and device: model 2 differs"),
        ([*starts()[:2], nn.Sequential(nn.Linear(40, 10), nn.Dropout()).double()], {}, "this one has Dropout: train"),
        ([*starts()[:2], with_hook()], {}, "this one has Linear with a hook: train them one by one"),
        ([*starts()[:2], tied()], {}, "a parameter belongs to two layers"),
    ],
)
def test_bad_input(data, models, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"seeds": range(len(models)), "batch_size": 32, "epochs": 1, **options}
    with pytest.raises(ValueError, match=message) as caught:
        lbgap.train_together(models, data[0], **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_hook_on_all_modules_is_refused(data):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ValueError, match="this one has a hook on all modules: train them one by one"):
            lbgap.train_together(starts(), data[0], seeds=SEEDS, batch_size=32, epochs=1)
    finally:
        handle.remove()


def test_one_network_is_no_list(data):
    with pytest.raises(TypeError, match="models must be a list of networks, got Sequential: train one"):
        lbgap.train_together(starts()[0], data[0], seeds=[0])


def test_samples_of_several_rows_are_refused(data):
    rows = data[0][0].view(-1, 2, 20)
    models = [nn.Sequential(nn.Linear(20, 3), nn.ReLU()).double() for _ in range(2)]
    targets = torch.zeros(len(rows), 2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"samples of shape \(2, 20\) need a model that begins with Flatten"):
        lbgap.train_together(models, (rows, targets), seeds=(0, 1), loss="mse", epochs=1)


def test_a_loss_that_is_not_finite_is_told_and_the_epochs_before_are_kept(data, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    models = starts((0, 1), batch_norm=False)
    options = {"optimizer": "SGD", "learning_rate": 1e200, "batch_size": 32, "epochs": 9, "out": folders}
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        lbgap.train_together(models, data[0], seeds=(0, 1), **options)
    assert all((folder / "state.safetensors").exists() for folder in folders)
