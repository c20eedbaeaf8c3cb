"""Lines, curves, paths and planes of wrapped models: those of the networks inside, in whichever place they stand."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import lbgap
from lbgap import Objective

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(seed):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def make_data(samples=50):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 6, generator=generator), torch.randint(3, (samples,), generator=generator)


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize(
    ("around", "other"), [(compiled, lambda m: m), (lambda m: m, nn.DataParallel), (AveragedModel, compiled)]
)
class TestBetweenWrappedModels:
    def test_line(self, around, other):
        small, large, data = make_model(1), make_model(2), make_data()
        plain = lbgap.line(small, large, data, points=4, test_data=make_data(20))
        found = lbgap.line(around(small), other(large), data, points=4, test_data=make_data(20))
        assert found.train_loss == plain.train_loss
        assert found.test_loss == plain.test_loss
        assert found.settings["ends_checked"] == "both"

    def test_curve(self, around, other):
        small, large, data = make_model(1), make_model(2), make_data()
        plain = lbgap.curve(small, large, data, points=4)
        assert lbgap.curve(around(small), other(large), data, points=4).train_loss == plain.train_loss

    def test_path(self, around, other):
        small, large, data = make_model(1), make_model(2), make_data()
        plain = lbgap.connect(small, large, data, epochs=2, points=5)
        found = lbgap.connect(around(small), other(large), data, epochs=2, points=5)
        assert torch.equal(found.control, plain.control)
        assert found.path.train_loss == plain.path.train_loss

    def test_plane(self, around, other):
        models, data = [make_model(seed) for seed in (1, 2, 3)], make_data()
        plain = lbgap.plane(models, data, points=3)
        found = lbgap.plane([models[0], around(models[1]), other(models[2])], data, points=3)
        assert found.train_loss == plain.train_loss
        trajectory = lbgap.plane([around(models[0]), models[1], other(models[2])], data, points=3, directions="pca")
        assert trajectory.train_loss == lbgap.plane(models, data, points=3, directions="pca").train_loss

    def test_plane_around_one(self, around, other):
        model, data = make_model(1), make_data()
        plain = lbgap.plane(model, data, points=3)
        assert lbgap.plane(other(around(model)), data, points=3).train_loss == plain.train_loss


def test_a_plane_goes_on_from_a_wrapped_model(tmp_path):
    model, data = make_model(1), make_data()
    plain = lbgap.plane(model, data, points=3, out=tmp_path / "plane")
    again = lbgap.plane(compiled(model), data, points=3, out=tmp_path / "plane", resume=True)
    assert again.train_loss == plain.train_loss


def test_an_objective_and_a_wrapped_model():
    small, large, data = make_model(1), make_model(2), make_data()
    plain = lbgap.line(small, large, data, points=4)
    assert lbgap.line(Objective(compiled(small), data), nn.DataParallel(large), points=4).train_loss == plain.train_loss


def test_the_frozen_part_by_its_plain_name():
    small, large = make_model(1), make_model(2)
    large[0] = compiled(large[0])
    with pytest.raises(
        ValueError, match=r"parameter '0.weight' differs between the models: choose it in parameters=, too"
    ):
        lbgap.line(small, large, make_data(), parameters="3")


def pruned(seed, amount=0.5, layer=0):
    model = make_model(seed)
    prune.l1_unstructured(model[layer], "weight", amount)
    return model


class TestPruned:
    def test_the_same_mask(self):
        """Weights of both ends, times the one mask."""
        small, large, data = pruned(1), pruned(2), make_data()
        large[0].weight_mask.copy_(small[0].weight_mask)
        inputs, targets = data
        found = lbgap.line(small, large, data, points=4, precision="float64")
        for alpha, value in zip(found.alphas, found.train_loss, strict=True):
            model = make_model(1).double().eval()
            for name, own in [*model.named_parameters(), *model.named_buffers()]:
                if own.is_floating_point():
                    source = f"{name}_orig" if name == "0.weight" else name
                    ends = [(one.state_dict()[source]).double() for one in (small, large)]
                    own.data.copy_((1 - alpha) * ends[0] + alpha * ends[1])
            model[1].running_var.clamp_(min=0)
            with torch.no_grad():
                model[0].weight *= small[0].weight_mask
                expected = nn.functional.cross_entropy(model(inputs.double()), targets)
            assert value == pytest.approx(float(expected), rel=1e-12)

    def test_different_masks_have_no_value_between_them(self):
        message = r"buffer '0.weight_mask' differs .* by torch.nn.utils.prune.remove\(module, 'weight'\)"
        with pytest.raises(ValueError, match=message):
            lbgap.line(pruned(1), pruned(2), make_data(), points=3)
        models = pruned(1), pruned(2)
        for model in models:
            prune.remove(model[0], "weight")
        assert lbgap.line(*models, make_data(), points=7).status.name == "complete"


def test_a_parametrization_with_another_base():
    models = make_model(1), make_model(2)
    for model in models:
        nn.utils.parametrizations.orthogonal(model[3])
    message = (
        r"buffer '3.parametrizations.weight.0.base' .* by .*parametrize.remove_parametrizations\(module, 'weight'\)"
    )
    with pytest.raises(ValueError, match=message):
        lbgap.line(*models, make_data(), points=3)
