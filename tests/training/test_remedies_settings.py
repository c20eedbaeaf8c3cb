"""What remedies refuse, how they are written, and that each of them resumes to the same bits."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from lbgap.cli.train import REMEDY_NAMES
from lbgap.training import read_run, remedies, train
from lbgap.training.remedies.choose import REMEDIES, parse_remedy, resolve_remedies

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY = [
    "augment:shape=6",
    "conservative",
    "batches:2=20,4=50%",
    "grow:every=1,limit=1.0",
    "grow:every=1,factor=4,limit=60%",
    "ghost:size=4",
    "sqrt-rate",
    "linear-rate:warmup=3",
    "swa:start=2",
    "smoothout:radius=0.01",
    "robust:epsilon=0.01,steps=2",
    "adversarial:epsilon=0.1",
    "adversarial:epsilon=0.1,steps=3,weight=0",
    "stability",
    "sam",
    "asam",
    "local-sgd:workers=3,steps=2",
    "local-sgd:workers=2,steps=1 sam swa:start=3 ghost:size=4",
    "augment:shape=6 conservative batches:3=20 ghost:size=4 sqrt-rate swa:start=2 asam stability",
]


def make_data(samples=33, *shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, *(shape or (6,)), generator=generator), torch.arange(samples) % 3


def make_model():
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def run(given, out=None, data=None, **settings):
    settings = {"epochs": 4, "batch_size": 8, "checkpoint_seconds": 0.0, **settings}
    model = settings.pop("model", None) or make_model()
    return train(model, data or make_data(), out=out, remedies=given, **settings)


class Stop(Exception):  # noqa: N818
    pass


def test_every_remedy_is_tested_for_its_resume():
    assert {text.partition(":")[0] for text in EVERY} == REMEDIES.keys()
    assert {kind.__name__ for kind in REMEDIES.values()} | {"Remedy"} == set(remedies.__all__)


@pytest.mark.parametrize("texts", EVERY)
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_interrupted_and_resumed_gives_the_same_bits(tmp_path, texts, optimizer):
    given = texts.split()
    settings = {"optimizer": optimizer, "learning_rate": 0.01}
    if optimizer == "SGD":
        settings["optimizer_options"] = {"momentum": 0.9}

    def stop(metrics):
        if metrics["epoch"] in (2, 3):
            raise Stop

    run(given, tmp_path / "whole", **settings)
    for _ in range(2):  # each time the training goes on by an epoch or two
        with pytest.raises(Stop):
            run(given, tmp_path / "cut", resume=True, progress=stop, **settings)
    run(given, tmp_path / "cut", resume=True, **settings)
    one, two = read_run(tmp_path / "whole"), read_run(tmp_path / "cut")
    assert one.weights.keys() == two.weights.keys()
    for name, value in one.weights.items():
        assert torch.equal(value, two.weights[name]), name
    assert [{**row, "seconds": 0} for row in one.metrics] == [{**row, "seconds": 0} for row in two.metrics]
    weights = run((), **settings).model[0].weight
    assert not torch.equal(weights, one.weights["0.weight"]), "the remedy did nothing"


@pytest.mark.parametrize("steps", ["conservative", "local-sgd:workers=2,steps=2"])
def test_images_in_channels_last_and_half_precision_resume_to_the_same_bits(tmp_path, steps):
    def model():
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(0)
            net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
        return net.to(torch.bfloat16).to(memory_format=torch.channels_last)

    def stop(metrics):
        if metrics["epoch"] == 2:
            raise Stop

    given, data = (
        ["augment", "ghost:size=4", "asam", "adversarial:epsilon=0.1,steps=2", "swa:start=2", steps],
        (33, 3, 6, 6),
    )
    whole = run(given, data=make_data(*data), model=model())
    with pytest.raises(Stop):
        run(given, tmp_path, data=make_data(*data), model=model(), progress=stop)
    cut = run(given, tmp_path, data=make_data(*data), model=model(), resume=True)
    for (name, one), two in zip(whole.model.state_dict().items(), cut.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert cut.model[0].weight.stride() == model()[0].weight.stride()


def test_other_settings_are_refused_on_a_resume(tmp_path):
    run("sam:rho=0.1", tmp_path)
    with pytest.raises(ValueError, match=r"remedies\.sam\.rho is 0\.1 there but 0\.2 here"):
        run("sam:rho=0.2", tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"remedies\.sam\.rho is 0\.1 there but absent here"):
        run((), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"remedies\.asam\.eta is absent there"):
        run("asam", tmp_path, resume=True)
    assert run([remedies.SAM(rho=0.1)], tmp_path, resume=True).epoch == 4


def test_a_damaged_average_is_refused(tmp_path):
    from lbgap.system import files

    def stop(metrics):
        raise Stop

    with pytest.raises(Stop):
        run("swa", tmp_path, progress=stop)
    tensors, metadata = files.read_safetensors(tmp_path / "state.safetensors")
    del tensors["remedy.count"]
    files.write_safetensors(tmp_path / "state.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match="count is absent there but"):
        run("swa", tmp_path, resume=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conservative", remedies.Conservative()),
        (" conservative: lam = 1e-2 , iterations=5 ", remedies.Conservative(lam=0.01, iterations=5)),
        ("augment:flip,rotate=5", remedies.Augment(flip=True, rotate=5)),
        ("augment:flip=no,shift=10%", remedies.Augment(flip=False, shift=0.1)),
        ("augment:shape=3x32x32", remedies.Augment(shape=(3, 32, 32))),
        ("augment:shape=40", remedies.Augment(shape=(40,))),
        ("batches:51=10%,3=64", remedies.Batches({51: 0.1, 3: 64})),
        ("grow:at=20/10,factor=5,limit=0.2", remedies.Grow(at=(10, 20), factor=5, limit=0.2)),
        ("grow:at=20", remedies.Grow(at=(20,))),
        ("swa:start=0.5,every=2", remedies.SWA(start=0.5, every=2)),
    ],
)
def test_short_forms(text, expected):
    found = parse_remedy(text)
    assert found == expected
    assert parse_remedy(str(found)) == found


def test_numbers_of_numpy_are_plain_in_the_settings():
    given = [remedies.Conservative(np.float32(0.5), np.int64(2)), remedies.SWA(np.int64(3))]
    given += [remedies.Grow(np.int32(2), limit=np.int64(9)), remedies.Batches({np.int64(2): np.float32(0.5)})]
    kept = [entry.settings() for entry in given]
    assert json.loads(json.dumps(kept)) == kept
    assert kept[0] == {"lam": 0.5, "iterations": 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("conservativ", "there is no remedy 'conservativ': did you mean 'conservative'?"),
        ("mixup", "there is no remedy 'mixup': choose from augment, conservative, batches"),
        ("", "there is no remedy ''"),
        ("conservative:lamda=1", "the remedy conservative has no 'lamda': did you mean 'lam'?"),
        ("ghost:steps=1", "the remedy ghost has no 'steps': choose from size"),
        ("ghost:", None),
        ("ghost:size=4,size=5", "'size' of the remedy ghost is given twice"),
        ("smoothout", "the remedy smoothout needs radius: write smoothout:radius=..."),
        ("robust", "the remedy robust needs epsilon"),
        ("adversarial:steps=2", "the remedy adversarial needs epsilon"),
        ("sam:rho=big", "rho of sam must be a finite number > 0, got 'big'"),
        ("sam:rho=nan", "rho of sam must be a finite number > 0, got nan"),
        ("sam:rho=inf", "rho of sam must be a finite number > 0, got inf"),
        ("sam:rho", "rho of sam must be a finite number > 0, got True"),
        ("asam:eta=-1", "eta of asam must be a finite number >= 0, got -1"),
        ("conservative:lam=-1", "lam of conservative must be a finite number >= 0, got -1"),
        ("conservative:iterations=0", "iterations of conservative must be at least 1, got 0"),
        ("conservative:iterations=1.5", "iterations of conservative must be a whole number, got 1.5"),
        ("ghost:size=1", "size of ghost must be at least 2, got 1"),
        ("smoothout:radius=0", "radius of smoothout must be a finite number > 0, got 0"),
        ("robust:epsilon=0", "epsilon of robust must be a finite number > 0"),
        ("robust:epsilon=1,steps=0", "steps of robust must be at least 1"),
        ("robust:epsilon=1,step_size=0", "step_size of robust must be a finite number > 0"),
        ("adversarial:epsilon=1,steps=0", "steps of adversarial must be at least 1"),
        ("adversarial:epsilon=1,step_size=-1", "step_size of adversarial must be a finite number > 0"),
        ("adversarial:epsilon=1,weight=1", "weight of adversarial is that of the clean loss, in [0, 1), got 1"),
        ("stability:alpha=0", "alpha of stability must be a finite number > 0"),
        ("stability:sigma=0", "sigma of stability must be a finite number > 0"),
        ("augment:flip=2", "flip of augment must be True or False, got 2"),
        ("augment:shift=1.5", "shift of augment must be at most 1 (the whole size), got 1.5"),
        ("augment:rotate=200", "rotate of augment must be at most 180 (degrees), got 200"),
        ("augment:flip=no,shift=0", "augment does nothing with what is named"),
        ("augment:shape=4x5", "shape of augment must be (channels, height, width) of an image or (length,)"),
        ("augment:shape=axb", "shape of augment must be like 1x28x28 or 40, got 'axb'"),
        ("augment:shape=0x2x2", "shape of augment must be at least 1, got 0"),
        ("batches", "batches needs a batch size by epoch"),
        ("batches:one=2", "batches needs sizes by epoch, such as batches:51=10%, got 'one'"),
        ("batches:1=20", "an epoch of batches must be at least 2, got 1"),
        (
            "batches:2=many",
            "a size of batches must be a whole number of samples, or a share such as 0.1 or '10%', got 'many'",
        ),
        ("grow", "grow needs either every=N epochs or the epochs `at` which it grows"),
        ("grow:every=2,at=3", "grow needs either every=N epochs or the epochs `at` which it grows"),
        ("grow:every=0", "every of grow must be at least 1"),
        ("grow:at=1", "an epoch in `at` of grow must be at least 2, got 1"),
        ("grow:every=1,factor=1", "factor of grow must be greater than 1, got 1"),
        ("linear-rate:reference=0", "reference of linear-rate must be at least 1"),
        ("sqrt-rate:warmup=-1", "warmup of sqrt-rate must be at least 0"),
        ("swa:start=0", "start of swa must be at least 1, got 0"),
        ("swa:start=1.0", "start of swa must be an epoch (an int) or a share in [0, 1), got 1.0"),
        ("local-sgd:workers=1", "workers of local-sgd must be at least 2, got 1"),
        ("local-sgd:steps=0", "steps of local-sgd must be at least 1, got 0"),
        (["local-sgd", "conservative"], "exclude each other: both choose the steps of a batch"),
        ("swa:every=0", "every of swa must be at least 1"),
        (7, "remedies must be a list such as ['conservative'], got 7"),
        ({"sam": {"rho": 1}}, "remedies must be a list such as ['conservative'], got {'sam'"),
        (
            "grow:every=1,limit=most",
            "limit of grow must be a whole number of samples, or a share such as 0.1 or '10%', got 'most'",
        ),
        ([7], "remedies must be of lbgap.remedies or their short forms, got 7"),
        ([remedies.SAM], "write SAM(...)"),
        (["sam", "asam"], "the remedies sam and asam exclude each other: both choose where the gradient is taken"),
        (["grow:every=2", "batches:2=3"], "exclude each other: both choose the size of the batches"),
        (["grow:every=2", "linear-rate"], "exclude each other: both choose the learning rate"),
        (["stability", "adversarial:epsilon=1"], "exclude each other: both choose the loss of a batch"),
        (["sam", "swa", "sam:rho=1"], "the remedy sam is given twice"),
    ],
)
def test_what_is_refused(given, message):
    if message is None:
        assert resolve_remedies(given) == [remedies.GhostBatchNorm()]
        return
    with pytest.raises((TypeError, ValueError)) as caught:
        run(given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "data", "settings", "message"),
    [
        ("augment", (33, 6), {}, "augment cannot tell whether samples of shape (6,) are images or signals"),
        ("augment:shape=7", (33, 6), {}, "shape of augment is (7,), but a sample has 6 values, (6,)"),
        ("augment:flip", (33, 1, 6), {}, "augment only shifts signals"),
        ("batches:2=34", (33, 6), {}, "batches, from epoch 2: batch_size must be at most the 33 training samples"),
        ("batches:2=2.5", (33, 6), {}, "a size of batches as a float is a share of the samples"),
        ("grow:every=1", (33, 6), {}, "limit of grow is 3 samples, which must be more than batch_size, 8"),
        ("grow:every=1,limit=0", (33, 6), {}, "limit of grow must be at least 1"),
        ("swa", (33, 6), {"epochs": None}, "swa needs a fixed number of epochs: pass epochs (--epochs)"),
        ("swa:start=5", (33, 6), {}, "swa starts at epoch 5, but there are only 4: start it earlier"),
    ],
)
def test_what_does_not_fit_the_training(given, data, settings, message, tmp_path):
    model = nn.Sequential(nn.Flatten(), make_model())
    with pytest.raises(ValueError) as caught:
        run(given, tmp_path / "run", data=make_data(*data), model=model, **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_ghost_needs_batch_norm():
    with pytest.raises(ValueError, match="ghost changes batch-norm, of which the model has none: leave it out"):
        run("ghost", model=nn.Linear(6, 3))


@pytest.mark.parametrize("given", ["augment:shape=5", "adversarial:epsilon=1", "stability"])
def test_integer_inputs_cannot_be_perturbed(given):
    model = nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(10, 3))
    data = torch.arange(100).reshape(20, 5) % 4, torch.arange(20) % 3
    with pytest.raises(TypeError, match=r"floating-point(, got| inputs, got) torch\.int64"):
        run(given, data=data, model=model)
    assert run("sam", data=data, model=model).epoch == 4


@pytest.mark.parametrize("given", EVERY)
def test_losses_that_explode_are_noticed(given):
    inputs, _ = make_data()
    with pytest.raises(FloatingPointError, match=r"the training loss (became|is not finite)"):
        run(
            given.split(),
            data=(inputs, inputs[:, :1] * 1e30),
            model=nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
            loss="mse",
            optimizer="SGD",
            learning_rate=100.0,
        )


@pytest.mark.parametrize("samples", [1, 2, 9])
@pytest.mark.parametrize("given", [text for text in EVERY if not text.startswith(("batches", "grow", "ghost"))])
def test_few_samples(given, samples):
    names = [text for text in given.split() if not text.startswith(("batches", "ghost"))]
    result = run(names, data=make_data(samples), model=nn.Sequential(nn.Linear(6, 3)), batch_size=samples)
    assert result.epoch == 4
    assert all(torch.isfinite(value).all() for value in result.model.state_dict().values())


class TestCommandLine:
    def test_it_trains_with_remedies(self, tmp_path, lbgap_command):
        given = ("--remedy", "conservative:iterations=2", "--remedy", "augment:shift=0.1,shape=40", "--remedy", "swa")
        start = ("train", "--out", tmp_path / "run", "--hidden", "8", "--batch-size", "50%", "--epochs", "2")
        code, out, err = lbgap_command(*start, *given)
        assert code == 0, err
        assert "remedies: augment, conservative, swa" in out
        config = read_run(tmp_path / "run").config
        assert config["remedies"]["conservative"] == {"lam": 1e-3, "iterations": 2}
        assert config["remedies"]["augment"]["shape"] == [40]
        assert lbgap_command(*start, *given, "--resume")[0] == 0
        code, _, err = lbgap_command(*start, "--remedy", "swa", "--resume")
        assert code == 1
        assert "remedies.augment.shift is 0.1 there but absent here" in " ".join(err.split())

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("samm", "there is no remedy 'samm': did you mean 'sam'?"),
            ("sam:roh=1", "the remedy sam has no 'roh': did you mean 'rho'?"),
            ("augment", "--remedy augment:shape=1x28x28"),
        ],
    )
    def test_it_refuses_on_one_line(self, tmp_path, lbgap_command, text, message):
        code, out, err = lbgap_command("train", "--out", tmp_path / "run", "--remedy", text)
        assert (code, out) == (1, "")
        assert message in err
        assert len(err.strip().splitlines()) == 1

    def test_help_names_them_all(self, lbgap_command):
        assert REMEDY_NAMES.split(", ") == list(REMEDIES)
        _, out, _ = lbgap_command("train", "--help")
        assert all(name in out for name in REMEDIES)
