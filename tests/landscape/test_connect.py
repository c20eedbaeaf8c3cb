"""A trained path between two minimizers: where it runs, how it is trained, and what it refuses."""

import json
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread
from torch import nn

import lbgap
from lbgap import Objective, datasets, networks, plotting
from lbgap.cli.app import main
from lbgap.landscape.connect import weights_at
from lbgap.training.batches import derive_seed, epoch_batches

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(seed, width=8, norm=False, outputs=3):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        layers = [nn.Linear(6, width), *([nn.BatchNorm1d(width)] if norm else []), nn.Tanh(), nn.Linear(width, outputs)]
        return nn.Sequential(*layers)


def make_data(samples=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 6, generator=generator), torch.randint(3, (samples,), generator=generator)


def quick(small, large, data, **options):
    options = {"epochs": 2, "points": 5, "train_batch_size": 16, **options}
    return lbgap.connect(small, large, data, **options)


def at(model, point):
    """The model at a point, in float64."""
    found = make_model(0, norm=len(model) == 4).double()
    found.load_state_dict(model.state_dict())
    nn.utils.vector_to_parameters(point.double(), found.parameters())
    return found


def test_it_trains_in_inference_mode():
    models = make_model(0), make_model(1)
    expected = quick(*models, make_data())
    with torch.inference_mode():
        found = quick(*models, make_data())
    assert found.epoch_loss == expected.epoch_loss
    assert torch.equal(found.control, expected.control)


class TestPath:
    @pytest.mark.parametrize("bends", [1, 2, 5])
    @pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.75, 1.0])
    def test_a_bezier_curve_is_that_of_de_casteljau(self, bends, t):
        points = np.random.default_rng(bends).normal(size=(bends + 2, 3))
        expected = points
        while len(expected) > 1:
            expected = (1 - t) * expected[:-1] + t * expected[1:]
        assert np.allclose(np.array(weights_at("bezier", t, bends)) @ points, expected[0], rtol=1e-14)

    @pytest.mark.parametrize("bends", [1, 2, 5])
    def test_a_polygon_goes_through_its_bends_and_is_straight_between(self, bends):
        corners = np.eye(bends + 2)
        for index in range(bends + 2):
            assert np.allclose(weights_at("polygon", index / (bends + 1), bends), corners[index], atol=1e-15)
        for index in range(bends + 1):
            middle = (corners[index] + corners[index + 1]) / 2
            assert np.allclose(weights_at("polygon", (index + 0.5) / (bends + 1), bends), middle)

    @pytest.mark.parametrize("kind", ["bezier", "polygon"])
    def test_both_ends_are_exact(self, kind):
        for bends in (1, 2, 3, 7):
            assert weights_at(kind, 0.0, bends) == (1.0, *[0.0] * (bends + 1))
            assert weights_at(kind, 1.0, bends) == (*[0.0] * (bends + 1), 1.0)

    @pytest.mark.parametrize("kind", ["bezier", "polygon"])
    @pytest.mark.parametrize("batch_norm", ["batch", "recalibrate"])
    @pytest.mark.parametrize("norm", [False, True])
    def test_losses_are_those_of_the_model_at_each_point(self, kind, batch_norm, norm):
        small, large, data, test = make_model(1, norm=norm), make_model(2, norm=norm), make_data(48), make_data(20, 1)
        options = {"kind": kind, "bends": 2, "precision": "float64", "batch_norm": batch_norm}
        found = quick(small, large, data, test_data=test, batch_size=48, **options)
        for line, point in ((found.path, found.point), (found.straight, lambda t: torch.lerp(*ends(found), t))):
            for t, train, other in zip(line.alphas, line.train_loss, line.test_loss, strict=True):
                model = at(small, point(t))
                model.train(batch_norm == "batch")
                if batch_norm == "recalibrate" and norm:
                    with torch.no_grad():
                        hidden = model[0](data[0].double())
                        model[1].running_mean.copy_(hidden.mean(0))
                        model[1].running_var.copy_(hidden.var(0, correction=1))
                for samples, loss in ((data, train), (test, other)):
                    assert loss == pytest.approx(F.cross_entropy(model(samples[0].double()), samples[1]).item(), 1e-9)
        assert found.settings["batch_norm"] == (batch_norm if norm else "none in the model")

    def test_length_of_a_polygon_and_of_a_curve(self):
        found = quick(make_model(1), make_model(2), make_data(), kind="polygon", bends=2)
        assert found.length == pytest.approx(float((found.control[1:] - found.control[:-1]).norm(dim=1).sum()), 1e-6)
        found = quick(make_model(1), make_model(2), make_data(), kind="bezier", precision="float64", learning_rate=0.1)
        a, b, c = found.control
        times = np.linspace(0, 1, 20001)[:, None]
        speeds = np.linalg.norm(2 * (1 - times) * (b - a).numpy() + 2 * times * (c - b).numpy(), axis=1)
        assert found.length == pytest.approx(np.trapezoid(speeds, times[:, 0]), 1e-6)
        assert found.length > found.distance == pytest.approx(float((c - a).norm()))

    def test_a_point_outside_is_refused(self):
        found = quick(make_model(1), make_model(2), make_data(), epochs=0)
        with pytest.raises(ValueError, match=r"t must be from 0 to 1, got 1\.5"):
            found.point(1.5)


def ends(found):
    return found.control[0], found.control[-1]


class TestTraining:
    @pytest.mark.parametrize("kind", ["bezier", "polygon"])
    def test_each_step_is_that_of_plain_pytorch(self, kind):
        small, large, data = make_model(1), make_model(2), make_data(50)
        found = quick(small, large, data, kind=kind, bends=2, epochs=3, precision="float64", learning_rate=0.05, seed=7)
        x_s, x_l = (nn.utils.parameters_to_vector(model.parameters()).detach().double() for model in (small, large))
        bends = torch.stack([torch.lerp(x_s, x_l, t) for t in (1 / 3, 2 / 3)]).requires_grad_()
        optimizer = torch.optim.Adam([bends])
        places = torch.Generator().manual_seed(derive_seed(7, 0, 2))
        shapes = [parameter.shape for parameter in small.parameters()]
        losses = []
        for epoch, rate in ((1, 0.05), (2, 0.05), (3, 0.05 * (1 - 0.99 * (2 / 3 - 0.5) / 0.4))):
            optimizer.param_groups[0]["lr"] = rate
            total = 0.0
            for batch in epoch_batches(50, 16, 7, epoch):
                t = float(torch.rand((), dtype=torch.float64, generator=places))
                control = torch.cat([x_s[None], bends, x_l[None]])
                point = torch.tensor(weights_at(kind, t, 2), dtype=torch.float64) @ control
                parts = point.split([shape.numel() for shape in shapes])
                w1, b1, w2, b2 = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
                outputs = F.linear(torch.tanh(F.linear(data[0][batch].double(), w1, b1)), w2, b2)
                loss = F.cross_entropy(outputs, data[1][batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch)
            losses.append(total / 50)
        assert torch.allclose(found.control[1:-1], bends.detach(), rtol=1e-9, atol=1e-11)
        assert found.epoch_loss == pytest.approx(losses, 1e-10)
        assert torch.equal(found.control[0], x_s)
        assert torch.equal(found.control[-1], x_l)

    def test_the_barrier_between_trained_networks_falls(self):
        data = datasets.mnist1d()
        train = tuple(part[:1000] for part in data.train)
        models = [
            lbgap.train(networks.mlp(40, [32], 10, seed=seed), train, batch_size=50, epochs=40).model for seed in (0, 1)
        ]
        found = lbgap.connect(*models, train, epochs=40, train_batch_size=50, points=21)
        assert found.path.shape.barrier < 0.5 * found.straight.shape.barrier
        assert found.straight.train_loss[0] == found.path.train_loss[0]
        assert found.straight.train_loss[-1] == found.path.train_loss[-1]
        line = lbgap.line(*models, train, points=21, low=0, high=1, batch_norm="recalibrate")
        assert found.straight.train_loss == pytest.approx(line.train_loss, 1e-6)  # the places differ by a rounding

    @pytest.mark.parametrize("kind", ["bezier", "polygon"])
    def test_without_training_the_path_is_the_straight_line(self, kind):
        found = quick(make_model(1), make_model(2), make_data(), kind=kind, bends=2, epochs=0, precision="float64")
        assert found.epoch_loss == ()
        assert found.path.train_loss == pytest.approx(found.straight.train_loss, 1e-12)
        assert found.length == pytest.approx(found.distance, 1e-12)

    def test_the_same_call_gives_the_same_bits_and_leaves_all_else_alone(self):
        small, large, data = make_model(1, norm=True), make_model(2, norm=True), make_data()
        before = [value.clone() for model in (small, large) for value in model.state_dict().values()]
        state = torch.get_rng_state()
        first, second, other = (quick(small, large, data, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(first.control, second.control)
        assert first.path.train_loss == second.path.train_loss
        assert not torch.equal(first.control, other.control)
        assert torch.equal(torch.get_rng_state(), state)
        after = [value for model in (small, large) for value in model.state_dict().values()]
        assert all(map(torch.equal, before, after))
        assert small.training

    def test_frozen_parameters_stay(self):
        small, large = make_model(1), make_model(2)
        for model in (small, large):
            model[0].requires_grad_(False)
        large[0].load_state_dict(small[0].state_dict())
        found = quick(small, large, make_data())
        assert found.control.shape == (3, 3 * 8 + 3)

    def test_a_loss_that_is_not_a_classification(self):
        inputs, _ = make_data()
        found = quick(make_model(1), make_model(2), (inputs, inputs[:, :3]), loss="mse")
        assert found.path.train_accuracy is None
        objective = Objective(make_model(1), (inputs, inputs[:, :3]), loss="mse")
        assert found.path.train_loss[0] == pytest.approx(float(objective.loss(objective.theta)), 1e-6)

    def test_one_sample_left_over_by_the_batches(self):
        found = quick(make_model(1, norm=True), make_model(2, norm=True), make_data(33), batch_size=33)
        assert math.isfinite(found.epoch_loss[-1])

    def test_result(self):
        found = quick(make_model(1), make_model(2), make_data(), test_data=make_data(20, 1))
        record = json.loads(json.dumps(found.to_dict()))
        assert record["path"]["shape"]["barrier"] == found.path.shape.barrier
        assert record["settings"]["train_batch_size"] == 16
        assert "control" not in record
        assert str(found).splitlines()[2].startswith(f"  bezier of length {found.length:.6g} between minimizers ")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "arc"}, ValueError, "kind must be 'bezier' or 'polygon', got 'arc'"),
        ({"bends": 0}, ValueError, "bends must be at least 1, got 0"),
        ({"bends": 1.5}, TypeError, "bends must be a whole number, got 1.5"),
        ({"epochs": -1}, ValueError, "epochs must be at least 0, got -1"),
        ({"points": 2}, ValueError, "points must be at least 3, got 2"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"train_batch_size": 0}, ValueError, "train_batch_size must be at least 1, got 0"),
        ({"train_batch_size": 51}, ValueError, "train_batch_size must be at most the 50 training samples, got 51"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate must be"),
        ({"precision": "mixed"}, ValueError, "precision must be 'float32' or 'float64' to train a path, got 'mixed'"),
        ({"batch_norm": "train"}, ValueError, "batch_norm must be 'batch' or 'recalibrate', got 'train'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error) as caught:
        quick(make_model(1), make_model(2), make_data(), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_training_that_diverges():
    inputs, _ = make_data()
    with pytest.raises(FloatingPointError, match=r"not finite in epoch 1: pass a smaller learning_rate than 1e\+30"):
        quick(make_model(1), make_model(2), (inputs, inputs[:, :3]), loss="mse", learning_rate=1e30)


@pytest.mark.parametrize("mode", ["eval", "freeze"])
def test_running_statistics_are_refused(mode):
    with pytest.raises(ValueError, match=f"batch_norm='{mode}' takes running statistics, of which a path has none"):
        quick(make_model(1, norm=True), make_model(2, norm=True), make_data(), batch_norm=mode)
    assert quick(make_model(1), make_model(2), make_data(), batch_norm=mode).settings["kind"] == "bezier"


def test_fewer_samples_than_a_usual_batch_are_one_batch():
    models, data = (make_model(1), make_model(2)), make_data()
    found = lbgap.connect(*models, data, epochs=2, points=5)
    assert found.settings["train_batch_size"] == 50
    expected = lbgap.connect(*models, data, epochs=2, points=5, train_batch_size=50)
    assert torch.equal(found.control, expected.control)
    more = lbgap.connect(*models, make_data(130), epochs=1, points=5)
    assert more.settings["train_batch_size"] == 128


def test_batches_of_one_are_refused_for_batch_norm():
    with pytest.raises(ValueError, match="train_batch_size must be at least 2 for the statistics of batch-norm, got 1"):
        quick(make_model(1, norm=True), make_model(2, norm=True), make_data(), train_batch_size=1)


def test_models_that_do_not_fit():
    with pytest.raises(ValueError, match=r"the models differ: parameter '0\.weight' is \(8, 6\) in one and \(4, 6\)"):
        quick(make_model(1), make_model(2, width=4), make_data())
    with pytest.raises(ValueError, match="the two models have the same parameters"):
        quick(make_model(1), make_model(1), make_data())


class TestFigure:
    def test_path_solid_line_dashed(self):
        found = quick(make_model(1), make_model(2), make_data(), test_data=make_data(20, 1))
        axes = plotting.plot_connection(found, "a title").axes[0]
        drawn = {(curve.get_label(), curve.get_linestyle()): tuple(curve.get_ydata()) for curve in axes.lines}
        assert drawn == {
            ("train, bezier", "-"): found.path.train_loss,
            ("test, bezier", "-"): found.path.test_loss,
            ("train, straight line", "--"): found.straight.train_loss,
            ("test, straight line", "--"): found.straight.test_loss,
        }
        assert axes.get_ylabel() == "cross-entropy loss"
        assert axes.get_title() == "a title"


class TestCommand:
    @pytest.fixture(scope="class")
    @staticmethod
    def folder(tmp_path_factory):
        folder = tmp_path_factory.mktemp("made")
        rng = np.random.default_rng(0)
        np.savez(folder / "data.npz", features=rng.normal(size=(60, 6)), labels=np.arange(60) % 3)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for name, batch, seed in (("sb", "8", "0"), ("lb", "30", "1")):
                command = (
                    "--data",
                    "data.npz",
                    "--hidden",
                    "8",
                    "--batch-size",
                    batch,
                    "--epochs",
                    "2",
                    "--seed",
                    seed,
                )
                patch.setattr(sys, "argv", ["lbgap", "train", "--out", name, *command])
                with pytest.raises(SystemExit):
                    main()
        return folder

    def test_prints_and_writes(self, folder, tmp_path, monkeypatch, lbgap_command):
        monkeypatch.chdir(folder)
        command = (
            "connect",
            "sb",
            "lb",
            "--epochs",
            "2",
            "--points",
            "7",
            "--train-batch-size",
            "20",
            "--out",
            tmp_path,
        )
        code, out, err = lbgap_command(*command)
        assert (code, err) == (0, "")
        assert "A path of low loss: t = 0 is sb, t = 1 is lb" in out
        record = json.loads((tmp_path / "connect.json").read_text())
        row = next(line.split() for line in out.splitlines() if line.startswith("train "))
        barriers = [record[way]["shape"]["barrier"] for way in ("path", "straight")]
        assert [row[1], row[3]] == [f"{barrier:.4g}" for barrier in barriers]
        assert len(record["path"]["train_loss"]) == 7
        control, _ = lbgap.system.files.read_safetensors(tmp_path / "connect.safetensors")
        assert control["control"].shape[0] == 3
        assert imread(tmp_path / "connect.png").ndim == 3
        code, out, _ = lbgap_command(*command, "--json", "--kind", "polygon")
        assert code == 0
        assert json.loads(out)["kind"] == "polygon"
        assert (tmp_path / "connect-2.json").exists()

    def test_one_run_is_too_few(self, folder, tmp_path, monkeypatch, lbgap_command):
        monkeypatch.chdir(folder)
        code, out, err = lbgap_command("connect", "sb", "--out", tmp_path)
        assert (code, out) == (1, "")
        assert err == "lbgap: a path needs two minimizers, small-batch first, got 1: give two runs or --weights\n"
        assert not list(tmp_path.iterdir())


def contrastive(output, target):
    return torch.nn.functional.cross_entropy(output @ output.T, torch.arange(len(output)))


@pytest.mark.parametrize("norm", [False, True])
def test_the_batches_of_coupled_samples_are_those_of_the_evaluation(norm):
    models, data = (make_model(1, norm=norm), make_model(2, norm=norm)), make_data()
    options = {"loss": contrastive, "coupled": True, "batch_size": 10, "epochs": 2, "points": 5}
    found = lbgap.connect(*models, data, **options)
    assert found.settings["train_batch_size"] == 10
    expected = lbgap.connect(*models, data, train_batch_size=10, **options)
    assert torch.equal(found.control, expected.control)


def test_batches_of_coupled_samples_that_do_not_fit():
    options = {"loss": contrastive, "coupled": True, "batch_size": 10}
    with pytest.raises(ValueError, match=r"up to 20 samples, .* of 10: pass a smaller train_batch_size"):
        quick(make_model(1), make_model(2), make_data(), train_batch_size=20, **options)
    with pytest.raises(ValueError, match="train_batch_size must be at least 2 for samples that see each other, got 1"):
        quick(make_model(1), make_model(2), make_data(), train_batch_size=1, **options)


def pair(output, target):
    return torch.nn.functional.cross_entropy(output, target, reduction="sum"), (target >= 0).sum()


@pytest.mark.parametrize("loss", ["cross_entropy", pair])
def test_batches_of_ignored_samples_are_left_out(loss):
    inputs, targets = make_data()
    targets[:45] = -100
    models = make_model(1), make_model(2)
    found = quick(*models, (inputs, targets), loss=loss, train_batch_size=4, precision="float64")
    expected = torch.nn.functional.cross_entropy(at(models[0], found.point(0.5))(inputs.double()), targets)
    assert found.path.train_loss[2] == pytest.approx(float(expected.detach()), rel=1e-10)
    assert all(math.isfinite(loss) for loss in found.epoch_loss)
