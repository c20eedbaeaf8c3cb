"""Buffers along paths and on planes: spectral norms of each point, and what has no value between two models."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils import spectral_norm as hooked
from torch.nn.utils.parametrizations import spectral_norm

import lbgap
from lbgap import Objective
from lbgap.landscape.spectral import NOTE, SpectralNorms

pytestmark = pytest.mark.usefixtures("one_thread")
CHECKED = "none: spectral norms are those of the weights of each point"


def make_data(samples=40, seed=0, shape=(6,)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, *shape, generator=generator), torch.randint(3, (samples,), generator=generator)


def plain(norm):
    return nn.Sequential(norm(nn.Linear(6, 8)), nn.Tanh(), norm(nn.Linear(8, 5)), nn.Tanh(), nn.Linear(5, 3))


def make_model(seed, norm=spectral_norm, build=plain, steps=20):
    """A network after some steps of a training, in which its vectors lag behind its weights."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        model = build(norm)
    inputs, targets = make_data(shape=(1, 4, 4) if build is convolutions else (6,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    with torch.no_grad():
        model.eval()(inputs)  # without a graph in what the older kind keeps of its weight, which cannot be copied
    return model


def convolutions(norm):
    return nn.Sequential(
        norm(nn.Conv2d(1, 3, 2)),
        nn.Tanh(),
        norm(nn.ConvTranspose2d(3, 2, 2)),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


def normed(model):
    """The same network with plain weights, each divided by the largest singular value that it has here."""
    layers = []
    for layer in model:
        if not any(name.startswith(("parametrizations", "weight_orig")) for name, _ in layer.named_parameters()):
            layers.append(layer)
            continue
        weight = layer.parametrizations.weight.original if parametrize.is_parametrized(layer) else layer.weight_orig
        matrix = (weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight).flatten(1)
        sigma = torch.linalg.svdvals(matrix)[0]
        arguments = {"bias": layer.bias}
        if isinstance(layer, nn.Linear):
            layers.append(lambda x, w=weight / sigma, a=arguments: F.linear(x, w, **a))
        elif isinstance(layer, nn.ConvTranspose2d):
            layers.append(lambda x, w=weight / sigma, a=arguments: F.conv_transpose2d(x, w, **a))
        else:
            layers.append(lambda x, w=weight / sigma, a=arguments: F.conv2d(x, w, **a))
    return layers


def loss_at(models, coefficients, data):
    """The loss of the network at a combination of the parameters, its norms by singular values, in float64."""
    with torch.no_grad():
        model = copy.deepcopy(models[0]).double()
        for parts in zip(*(m.parameters() for m in (model, *models)), strict=True):
            own, others = parts[0], parts[1:]
            own.copy_(sum(c * other.double() for c, other in zip(coefficients, others, strict=True)))
        x = data[0].double()
        for layer in normed(model):
            x = layer(x)
        return F.cross_entropy(x, data[1]).item()


KINDS = {
    "parametrization": (spectral_norm, plain, (6,)),
    "hook": (hooked, plain, (6,)),
    "convolutions": (spectral_norm, convolutions, (1, 4, 4)),
    "convolutions with hooks": (hooked, convolutions, (1, 4, 4)),
}


class TestSpectralNorms:
    @pytest.mark.parametrize("mode", ["eval", "batch", "recalibrate"])
    @pytest.mark.parametrize("name", KINDS)
    def test_a_line_is_of_one_function(self, name, mode):
        norm, build, shape = KINDS[name]
        models, data = [make_model(seed, norm, build) for seed in (1, 2)], make_data(shape=shape)
        found = lbgap.line(*models, data, points=5, low=0, high=1, precision="float64", batch_norm=mode)
        expected = [loss_at(models, (1 - alpha, alpha), data) for alpha in found.alphas]
        assert found.train_loss == pytest.approx(expected, rel=1e-12)
        assert found.settings["notes"] == [NOTE]
        assert found.settings["ends_checked"] == CHECKED
        assert found.settings["evaluated"] == "one after the other"
        assert found.evaluations == 5
        stale = Objective(models[0], data, precision="float64")
        assert abs(float(stale.loss(stale.theta)) - found.train_loss[0]) > 1e-6

    def test_so_is_a_curve_and_test_data_too(self):
        models, data, test = [make_model(seed) for seed in (1, 2)], make_data(), make_data(20, 1)
        found = lbgap.curve(*models, data, test_data=test, points=4, precision="float64")
        for alpha, *losses in zip(found.alphas, found.train_loss, found.test_loss, strict=True):
            turned = math.cos(alpha * math.pi / 2), math.sin(alpha * math.pi / 2)
            assert losses == pytest.approx([loss_at(models, turned, part) for part in (data, test)], rel=1e-9)

    def test_so_are_planes(self):
        models, data = [make_model(seed) for seed in (1, 2, 3)], make_data()
        found = lbgap.plane(models, data, points=3, precision="float64")
        assert found.mark_loss == pytest.approx([loss_at(models, row, data) for row in torch.eye(3).tolist()], rel=1e-9)
        assert (found.settings["notes"], found.settings["ends_checked"]) == ([NOTE], CHECKED)
        objective = Objective(models[0], data, precision="float64")
        generator = torch.Generator().manual_seed(3)
        rows = torch.randn(2, objective.n, generator=generator, dtype=torch.float64)
        found = lbgap.plane(models[0], data, directions=rows, points=3, precision="float64")
        moved = [copy.deepcopy(models[0]).double() for _ in rows]
        for model, row in zip(moved, rows, strict=True):
            nn.utils.vector_to_parameters(row, model.parameters())
        for y, losses in zip(found.y, found.train_loss, strict=True):
            expected = [loss_at([models[0], *moved], (1, x, y), data) for x in found.x]
            assert losses == pytest.approx(expected, rel=1e-9)
        path = lbgap.plane(models, data, directions="pca", points=2, precision="float64")
        assert path.mark_loss == pytest.approx([loss_at(models, (0, 0, 1), data)], rel=1e-9)

    def test_a_plane_that_is_killed_goes_on_with_the_same_bits(self, tmp_path):
        model, data = make_model(1), make_data()
        expected = lbgap.plane(model, data, points=(13, 11))
        lbgap.plane(model, data, points=(13, 11), out=tmp_path / "plane")
        last = sorted((tmp_path / "plane").glob("values-*"))[-1]
        last.unlink()
        found = lbgap.plane(model, data, points=(13, 11), out=tmp_path / "plane", resume=True)
        assert found.train_loss == expected.train_loss

    @pytest.mark.parametrize("norm", [spectral_norm, hooked])
    def test_a_path_is_trained_on_the_function_that_is_evaluated(self, norm):
        models, data = [make_model(seed, norm) for seed in (1, 2)], make_data()
        found = lbgap.connect(*models, data, epochs=3, points=5, train_batch_size=40, precision="float64")
        bend = copy.deepcopy(models[0]).double()
        nn.utils.vector_to_parameters(found.control[1], bend.parameters())
        places = [index / 4 for index in range(5)]
        for losses, rows in (
            (found.path.train_loss, [((1 - t) ** 2, 2 * t * (1 - t), t**2) for t in places]),
            (found.straight.train_loss, [(1 - t, 0, t) for t in places]),
        ):
            expected = [loss_at([models[0], bend, models[1]], row, data) for row in rows]
            assert losses == pytest.approx(expected, rel=1e-9)

        # In one epoch of one batch the mean loss is that at one place of the straight line: found again by bisection.
        first = lbgap.connect(*models, data, epochs=1, points=3, train_batch_size=40, precision="float64").epoch_loss[0]
        grid = [loss_at(models, (1 - t, t), data) for t in torch.linspace(0, 1, 4001, dtype=torch.float64).tolist()]
        assert min(abs(loss - first) for loss in grid) < 1e-4 * first
        assert first == found.epoch_loss[0]

    @pytest.mark.parametrize("norm", [spectral_norm, hooked])
    @pytest.mark.parametrize("landscape", ["line", "plane", "connect"])
    def test_an_objective_stays_as_it_is(self, landscape, norm):
        models, data = [make_model(seed, norm) for seed in (1, 2)], make_data()
        objective = Objective(models[0], data)
        before, names = objective.loss(objective.theta), dict(objective.model().named_buffers())
        if landscape == "plane":
            one, other = (lbgap.plane(first, *rest, points=3) for first, *rest in ([objective], [models[0], data]))
            assert one.train_loss == other.train_loss
        else:
            options = {"points": 3, **({"epochs": 1} if landscape == "connect" else {})}
            run = getattr(lbgap, landscape)
            assert run(objective, models[1], **options).value == run(*models, data, **options).value
        assert objective.loss(objective.theta) == before
        for name, value in objective.model().named_buffers():
            assert torch.equal(value, names[name])
        assert NOTE not in objective.notes

    def test_with_recalibrated_batch_norm(self):
        def build(norm):
            return nn.Sequential(norm(nn.Linear(6, 8)), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))

        models, data = [make_model(seed, build=build) for seed in (1, 2)], make_data()
        found = lbgap.line(*models, data, points=3, low=0, high=1, precision="float64", batch_norm="recalibrate")
        for alpha, loss in zip(found.alphas, found.train_loss, strict=True):
            model = copy.deepcopy(models[0]).double()
            with torch.no_grad():
                for own, one, other in zip(*(m.parameters() for m in (model, *models)), strict=True):
                    own.copy_((1 - alpha) * one.double() + alpha * other.double())
                first, norm, *_ = model
                weight = first.parametrizations.weight.original
                hidden = F.linear(data[0].double(), weight / torch.linalg.svdvals(weight)[0], first.bias)
                mean, variance = hidden.mean(0), hidden.var(0)  # unbiased, as running statistics are
                hidden = (hidden - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
                assert loss == pytest.approx(F.cross_entropy(model[2:](hidden), data[1]).item(), rel=1e-9)

    def test_frozen_weights_and_a_norm_of_what_another_parametrization_makes(self):
        class Doubled(nn.Module):
            def forward(self, weight):
                return weight * torch.linspace(1, 2, weight.shape[1], dtype=weight.dtype)

        def build(_):
            layer = nn.Linear(6, 8)
            parametrize.register_parametrization(layer, "weight", Doubled())
            return nn.Sequential(spectral_norm(layer), nn.Tanh(), spectral_norm(nn.Linear(8, 3)))

        model = make_model(1, build=build)
        model[2].parametrizations.weight.original.requires_grad_(False)
        objective = Objective(model, make_data(), precision="float64", parameters=["0", "2"])
        norms = SpectralNorms(model, objective, ["0", "2"])
        assert len(norms) == 4
        found = norms.at(objective.theta * 3)
        for name, scale in (("0", 3), ("2", 1)):
            weight = model[int(name)].parametrizations.weight.original.detach().double() * scale
            weight = Doubled()(weight) if name == "0" else weight
            place = f"{name}.parametrizations.weight.{1 if name == '0' else 0}."
            u, v = found[place + "_u"], found[place + "_v"]
            torch.testing.assert_close(u @ weight @ v, torch.linalg.svdvals(weight)[0], rtol=1e-12, atol=0)
            torch.testing.assert_close(torch.stack((u.norm(), v.norm())), torch.ones(2).double(), rtol=1e-12, atol=0)

    def test_the_largest_value_is_found_where_another_was_the_largest_at_the_end(self):
        models = [nn.Sequential(spectral_norm(nn.Linear(2, 2, bias=False))) for _ in range(2)]
        for model, diagonal in zip(models, ([3.0, 1.0], [1.0, 3.0]), strict=True):
            layer = model[0].parametrizations.weight
            with torch.no_grad():
                layer.original.copy_(torch.diag(torch.tensor(diagonal)))
                for name in ("_u", "_v"):  # exactly at the vectors of the largest value, and orthogonal to the other
                    layer[0].get_buffer(name).copy_(torch.tensor(diagonal) // 3)
        data = torch.eye(2), torch.tensor([0, 1])
        found = lbgap.line(*models, data, points=4, low=0, high=0.9, precision="float64")
        for alpha, loss in zip(found.alphas, found.train_loss, strict=True):
            weight = torch.diag(torch.tensor([3 - 2 * alpha, 1 + 2 * alpha], dtype=torch.float64))
            logits = data[0].double() @ weight / weight.max()
            assert loss == pytest.approx(F.cross_entropy(logits, data[1]).item(), rel=1e-12)


class Extra(nn.Module):
    """A network that adds a buffer to its hidden units, or only keeps one."""

    def __init__(self, value, *, enters=True, seed=0):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.enters = enters
        self.register_buffer("code", torch.full((8,), value))

    def forward(self, x):
        return self.last(torch.tanh(self.first(x) + (self.code if self.enters else 0)))


LANDSCAPES = {
    "line": lambda models, data: lbgap.line(*models[:2], data, points=3),
    "curve": lambda models, data: lbgap.curve(*models[:2], data, points=3),
    "plane": lambda models, data: lbgap.plane(models, data, points=2),
    "connect": lambda models, data: lbgap.connect(*models[:2], data, points=3, epochs=1),
}


@pytest.mark.parametrize("name", LANDSCAPES)
class TestOtherBuffers:
    def test_one_that_differs_and_enters_the_output_is_refused(self, name):
        models = [Extra(float(seed), seed=seed) for seed in range(3)]
        with pytest.raises(ValueError) as caught:
            LANDSCAPES[name](models, make_data())
        assert str(caught.value) == (
            "buffer 'code' differs between the models and enters their loss, but is no statistic of batch-norm, so "
            "that it has no value between them: make it the same in all, or fold it into the weights"
        )

    def test_one_that_does_not_enter_the_output_does_not_matter(self, name):
        found = [
            LANDSCAPES[name]([Extra(scale * seed, enters=False, seed=seed) for seed in range(3)], make_data())
            for scale in (0.0, 1.0)
        ]
        assert found[0].value == found[1].value

    def test_pruned_weights_are_named(self, name):
        models = [Extra(0.5, seed=seed) for seed in range(3)]
        for seed, model in enumerate(models):
            with torch.random.fork_rng([]):
                torch.default_generator.manual_seed(seed)
                prune.random_unstructured(model.first, "weight", amount=0.3)
            model.first.weight = model.first.weight.detach()  # without a graph, which cannot be copied
        with pytest.raises(ValueError, match=r"buffer 'first\.weight_mask' differs between the models"):
            LANDSCAPES[name](models, make_data())


class Gated(nn.Module):
    """A buffer that is met by a product of two numbers, one of which is zero at either end."""

    def __init__(self, gates, value):
        super().__init__()
        self.layer, self.gates = nn.Linear(6, 3), nn.Parameter(torch.tensor(gates))
        self.register_buffer("code", torch.tensor([value, 0.0, 0.0]))

    def forward(self, x):
        return self.layer(x) + self.gates.prod() * self.code


def test_one_that_enters_only_between_the_ends_is_refused():
    models = Gated([0.0, 1.0], 1.0), Gated([1.0, 0.0], 2.0)
    with pytest.raises(ValueError, match="buffer 'code' differs between the models"):
        lbgap.line(*models, make_data(), points=3)


def test_equal_buffers_are_constants():
    """On a curve, whose coefficients do not sum to one, they would be scaled."""
    models, data = [Extra(0.5, seed=seed) for seed in (1, 2)], make_data()
    found = lbgap.curve(*models, data, points=3, low=0, high=1, precision="float64")
    model = copy.deepcopy(models[0]).double()
    with torch.no_grad():
        for own, one, other in zip(*(m.parameters() for m in (model, *models)), strict=True):
            own.copy_((one.double() + other.double()) * math.sqrt(0.5))
        expected = F.cross_entropy(model(data[0].double()), data[1]).item()
    assert found.train_loss[1] == pytest.approx(expected, rel=1e-12)


def test_buffers_of_another_precision_are_the_same():
    models = [Extra(0.1, seed=1), Extra(0.1, seed=2)]
    models[1].code = torch.full((8,), 0.1, dtype=torch.float64).float().double()
    assert lbgap.line(models[0], models[1], make_data(), points=3).value >= 0
    models[1].code = torch.full((8,), 0.1, dtype=torch.float64)
    assert lbgap.line(Objective(models[0], make_data()), models[1], points=3).value >= 0


class Instances(nn.Module):
    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            self.first, self.norm = nn.Linear(6, 8), nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
            self.last = nn.Linear(8, 3)
            nn.init.normal_(self.norm.running_mean)
            nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x).unflatten(1, (4, 2))).flatten(1)))


def test_statistics_of_instance_norm_are_combined_in_a_trained_path_too():
    models, data = [Instances(seed) for seed in (1, 2)], make_data()
    found = lbgap.connect(*models, data, epochs=1, points=3, train_batch_size=40, precision="float64")

    def blended(t):
        model = copy.deepcopy(models[0]).double().eval()
        states = (m.state_dict().values() for m in (model, *models))
        with torch.no_grad():
            for own, one, other in zip(*states, strict=True):
                if own.is_floating_point():
                    own.copy_((1 - t) * one.double() + t * other.double())
            return F.cross_entropy(model(data[0].double()), data[1]).item()

    assert found.straight.train_loss == pytest.approx([blended(t) for t in (0, 0.5, 1)], rel=1e-12)
    places = torch.linspace(0, 1, 2001, dtype=torch.float64).tolist()
    assert min(abs(blended(t) - found.epoch_loss[0]) for t in places) < 1e-4 * found.epoch_loss[0]
