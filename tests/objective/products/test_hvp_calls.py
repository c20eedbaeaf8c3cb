"""What products with second derivatives depend on: losses, parameters, precision, sizes; and what is refused."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap import Objective, ops
from lbgap.networks import mlp
from lbgap.objective.products import choose, engine
from lbgap.system import device as hardware

pytestmark = pytest.mark.usefixtures("one_thread")
needs_bfloat16 = pytest.mark.skipif(
    not hardware.bfloat16_products("cpu"), reason="no bfloat16 matrix products on this processor"
)
SAMPLES = 40


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


INPUTS = normal(SAMPLES, 6)
LABELS = torch.randint(0, 3, (SAMPLES,), generator=torch.Generator().manual_seed(1))


def network(seed=0):
    model = mlp(6, [8, 7], 3, seed=seed)
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            size = module.num_features
            module.running_mean.copy_(normal(size, seed=3))
            module.running_var.copy_(normal(size, seed=4).exp())
            module.weight.data.copy_(normal(size, seed=5))
    return model


def built(data=(INPUTS, LABELS), way=None, model=None, **options):
    objective = Objective(model or network(), data, **{"precision": "float64", **options})
    if way == "general":
        objective._products.way = "general: asked for"
    return objective


def vectors_for(objective, k, seed=2):
    return normal(k, objective.n, seed=seed, dtype=torch.float64).to(objective.dtype)


def assert_close(found, expected, tolerance=1e-10):
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


def squared(output, target):
    return ((output - target) ** 2).mean()


def smooth(output, target):
    return F.cross_entropy(output * 2, target, label_smoothing=0.1)


LOSSES = {
    "mse": ("mse", normal(SAMPLES, 3, seed=6)),
    "probabilities": ("cross_entropy", normal(SAMPLES, 3, seed=6).softmax(1)),
    "callable mse": (squared, normal(SAMPLES, 3, seed=6)),
    "callable cross-entropy": (smooth, LABELS),
    "linear": (lambda output, target: output.sum(1).mean(), LABELS),
}


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name, kind):
    loss, targets = LOSSES[name]
    objective, other = (built((INPUTS, targets), way, loss=loss, batch_size=17) for way in (None, "general"))
    vectors = vectors_for(objective, 3)
    found, expected = (one.hvp(one.theta, vectors, kind=kind) for one in (objective, other))
    assert objective.hvp_way == "engine"
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    if (name, kind) == ("linear", "ggn"):
        assert not found.any()
    inner = (vectors * found).sum(1)
    if kind == "hessian":
        torch.testing.assert_close(inner, objective.curvatures(objective.theta, vectors), rtol=1e-10, atol=1e-12)
    if kind == "fisher":
        each = torch.stack([objective.directional_derivatives(objective.theta, vector) for vector in vectors])
        torch.testing.assert_close(inner, (each**2).mean(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("parameters", ["weights", "3", ["0.bias", "1.weight"], "1", "6.weight", "4.bias"])
def test_only_the_parameters_that_move(parameters):
    objective, other = (built(way=way, parameters=parameters, batch_size=17) for way in (None, "general"))
    vectors = vectors_for(objective, 3)
    for kind in ("hessian", "ggn", "fisher"):
        found, expected = (one.hvp(one.theta, vectors, kind=kind) for one in (objective, other))
        assert_close(found, expected)
    assert objective.hvp_way == "engine"


def test_frozen_convolutions():
    model = nn.Sequential(
        nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Conv1d(2, 2, 2), nn.BatchNorm1d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    )
    for frozen in (0, 2, 3, 6):
        for index, layer in enumerate(model):
            layer.requires_grad_(index != frozen)
        data = (INPUTS[:, None], LABELS)
        objective, other = (built(data, way, model=model, batch_size=17) for way in (None, "general"))
        vectors = vectors_for(objective, 2)
        assert_close(objective.hvp(objective.theta, vectors), other.hvp(other.theta, vectors))
        assert objective.hvp_way == "engine"


@pytest.mark.parametrize("way", [None, "general"])
def test_k_and_chunks_and_batches_do_not_matter(way, monkeypatch):
    objective = built(way=way)
    theta, vectors = objective.theta, vectors_for(objective, 5)
    vectors[3] = 0
    expected = objective.hvp(theta, vectors)
    assert not expected[3].any()
    assert objective.hvp(theta, vectors[:0]).shape == (0, objective.n)
    assert_close(objective.hvp(theta, vectors[1:2]), expected[1:2])
    assert_close(objective.hvp(theta, vectors.t().contiguous().t()), expected)
    assert torch.equal(objective.hvp(theta, vectors), expected)
    monkeypatch.setattr(choose, "LARGEST_CHUNK", 2)
    monkeypatch.setattr(engine, "CPU_BATCH_BYTES", 1)
    assert_close(objective.hvp(theta, vectors), expected)
    smaller = built(way=way, batch_size=7)
    assert_close(smaller.hvp(theta, vectors), expected)


def test_float32_is_close_to_float64():
    exact, single = built(), built(precision="float32")
    vectors = vectors_for(exact, 3)
    found = single.hvp(single.theta, vectors.float())
    assert found.dtype == torch.float32
    assert_close(found.double(), exact.hvp(exact.theta, vectors), 1e-5)
    assert single.hvp_error is None


@needs_bfloat16
def test_mixed_precision_says_how_rough_it_is():
    mixed, exact = built(precision="mixed"), built()
    vectors = vectors_for(exact, 3)
    found = mixed.hvp(mixed.theta, vectors.float())
    error = float((found - exact.hvp(exact.theta, vectors)).norm() / exact.hvp(exact.theta, vectors).norm())
    assert 1e-4 < error < 0.05
    assert error / 4 < mixed.hvp_error < error * 4
    assert [note for note in mixed.notes if "bfloat16" in note]
    mixed.hvp(mixed.theta, vectors.float())
    assert len(mixed.notes) == 1


@needs_bfloat16
def test_the_error_is_measured_on_samples_that_count():
    targets = torch.where(torch.arange(SAMPLES) < SAMPLES // 2, -100, LABELS)  # the first batch counts for nothing
    mixed, exact = (built((INPUTS, targets), precision=p, batch_size=SAMPLES // 2) for p in ("mixed", "float64"))
    vectors = vectors_for(mixed, 1)
    expected = exact.hvp(exact.theta, vectors.double())
    error = float((mixed.hvp(mixed.theta, vectors) - expected).norm() / expected.norm())
    assert error / 4 < mixed.hvp_error < error * 4


@needs_bfloat16
def test_mixed_precision_in_the_general_way():
    mixed, single = built(way="general", precision="mixed"), built(way="general", precision="float32")
    vectors = vectors_for(single, 2)
    assert torch.equal(mixed.hvp(mixed.theta, vectors), single.hvp(single.theta, vectors))
    assert mixed.notes == ["Hessian products ran in float32 (general: asked for)"]


def test_mixed_precision_without_the_hardware(monkeypatch):
    monkeypatch.setattr(hardware, "bfloat16_products", lambda _: False)
    with pytest.warns(UserWarning, match="ran in float32"):
        mixed = built(precision="mixed")
    single = built(precision="float32")
    vectors = vectors_for(single, 2)
    assert torch.equal(mixed.hvp(mixed.theta, vectors), single.hvp(single.theta, vectors))


@pytest.mark.parametrize("way", [None, "general"])
def test_blocks_are_those_of_the_layers(way):
    objective = built(way=way)
    matrix = objective.hvp(objective.theta, torch.eye(objective.n, dtype=torch.float64))
    found = objective.hvp(objective.theta, torch.eye(objective.n, dtype=torch.float64), blocks=True)
    layer = torch.cat([torch.full((p.numel(),), int(name[0])) for name, p in network().named_parameters()])
    assert_close(found, matrix * (layer[:, None] == layer))


def test_products_are_those_of_a_symmetric_matrix():
    objective = built()
    u, v = vectors_for(objective, 2)
    hu, hv = objective.hvp(objective.theta, torch.stack((u, v)))
    assert abs(u @ hv - v @ hu) <= 1e-14 * (u.norm() * hv.norm() + v.norm() * hu.norm())


def test_evaluations():
    objective = built()
    objective.hvp(objective.theta, vectors_for(objective, 4))
    assert objective.evaluations == 5
    objective.hvp(objective.theta, vectors_for(objective, 0))
    assert objective.evaluations == 5
    objective.hvp(objective.theta, vectors_for(objective, 4), blocks=True)
    assert objective.evaluations == 5 + 5 * 5  # three linear layers, two batch-norms
    part = objective.subset(20)
    part.hvp(part.theta, vectors_for(objective, 1))
    assert part.evaluations == 2
    assert part.hvp_way == "engine"


def test_another_point_and_other_buffers():
    objective, other = built(), built(way="general")
    theta, vectors = objective.theta * 1.5, vectors_for(objective, 2)
    first = objective.hvp(objective.theta, vectors)
    for one in (objective, other):
        one.set_buffers({"1.running_mean": normal(8, seed=9, dtype=torch.float64)})
    found = objective.hvp(theta, vectors)
    assert_close(found, other.hvp(theta, vectors))
    assert not torch.allclose(found, first)


def test_at_a_kink():
    inputs = torch.cat([torch.zeros(2, 6), INPUTS])
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))
    data = (inputs, torch.cat([LABELS[:2], LABELS]))
    objective, other = (built(data, way, model=model) for way in (None, "general"))
    vectors = vectors_for(objective, 3)
    assert_close(objective.hvp(objective.theta, vectors), other.hvp(other.theta, vectors))
    assert objective.hvp_way == "engine"


def test_the_engine_is_left_where_it_disagrees(monkeypatch):
    from lbgap.objective.products.rules import Pointwise

    monkeypatch.setattr(Pointwise, "backward", lambda self, saved, g: (g * saved[0] * 1.000001,))
    objective, other = built(), built(way="general")
    vectors = vectors_for(objective, 2)
    assert torch.equal(objective.hvp(objective.theta, vectors), other.hvp(other.theta, vectors))
    assert objective.hvp_way == "general: another product in '0.weight' than by differentiating twice"


def test_a_nan_does_not_decide_about_the_engine():
    objective = built()
    vectors = vectors_for(objective, 2)
    with pytest.raises(FloatingPointError, match="product with vector 0 is NaN or infinite"):
        objective.hvp(objective.theta * float("nan"), vectors)
    objective.hvp(objective.theta, vectors)
    assert objective.hvp_way == "engine"


def test_nothing_of_the_caller_changes(caller_state):
    model, before = network(), caller_state()
    objective = built(model=model, precision="float32")
    with torch.inference_mode():
        inside = objective.hvp(objective.theta, vectors_for(objective, 2))
    with torch.autocast("cpu", torch.bfloat16):
        cast = objective.hvp(objective.theta, vectors_for(objective, 2))
    assert torch.equal(inside, cast)
    assert not inside.is_inference()
    assert not inside.requires_grad
    assert caller_state() == before
    for one, other in zip(model.parameters(), network().parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.grad is None


class Keeping(nn.Module):
    """Keeps what passes through it."""

    def __init__(self):
        super().__init__()
        self.layer, self.kept = nn.Linear(6, 3), None

    def forward(self, x):
        self.kept = self.layer(x)
        return self.kept


def test_a_model_that_keeps_what_passes_through_it():
    objective = built(model=Keeping())
    objective.hvp(objective.theta, vectors_for(objective, 1))
    assert objective.hvp_way == "engine"
    assert isinstance(objective._evaluator.flat.module.kept, torch.Tensor)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def once(output, target):
    return OnceOnly.apply(output).mean()


class OnceModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return OnceOnly.apply(self.layer(x))


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_loss_without_second_derivative(kind):
    objective = built(loss=once)
    with pytest.raises(ValueError, match=r"the loss .*cannot be differentiated twice"):
        objective.hvp(objective.theta, vectors_for(objective, 1), kind=kind)
    objective.hvp(objective.theta, vectors_for(objective, 1), kind="fisher")  # needs none


def test_a_model_without_second_derivative():
    objective = built(model=OnceModel())
    with pytest.raises(ValueError, match=r"the model or the loss cannot be differentiated twice .*once_differentiable"):
        objective.hvp(objective.theta, vectors_for(objective, 1))


def coupled(output, target):
    return F.cross_entropy(output - output.mean(0), target)


def test_a_loss_whose_terms_are_coupled():
    objective, other = (built(way=way, loss=coupled, judge=False) for way in (None, "general"))
    vectors = vectors_for(objective, 2)
    assert torch.equal(objective.hvp(objective.theta, vectors), other.hvp(other.theta, vectors))
    assert objective.hvp_way.startswith("general: another product in ")
    with pytest.raises(ValueError, match="must be a mean of one term a sample"):
        objective.hvp(objective.theta, vectors_for(objective, 1), kind="fisher")


def by_class(output, target):
    return F.cross_entropy(output, target, weight=torch.tensor([1.0, 20.0, 0.1]).to(output))


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_mean_by_class_weights_over_samples_sorted_by_class(kind, monkeypatch):
    # The first few samples are of one class, in which the weight cancels: only the pieces of a batch show the coupling.
    monkeypatch.setattr(engine, "CPU_BATCH_BYTES", 1)
    monkeypatch.setattr(engine, "SMALLEST_BATCH", 8)
    data = INPUTS, LABELS.sort().values
    objective, other = (built(data, way, loss=by_class, judge=False) for way in (None, "general"))
    vectors = vectors_for(objective, 3)
    found = objective.hvp(objective.theta, vectors, kind=kind)
    assert torch.equal(found, other.hvp(other.theta, vectors, kind=kind))
    assert objective.hvp_way == "general: a loss whose terms depend on the other samples of a batch"
    with pytest.raises(ValueError, match="must be a mean of one term a sample"):
        objective.hvp(objective.theta, vectors, kind="fisher")


N = sum(p.numel() for p in network().parameters())
BAD = {
    "one vector": (torch.zeros(N), {}, ValueError, rf"must be \(k, {N}\).* got \({N},\)"),
    "width": (torch.zeros(2, 5), {}, ValueError, rf"must be \(k, {N}\).* got \(2, 5\)"),
    "dtype": (torch.zeros(2, N), {}, ValueError, "must be torch.float64 on cpu, got torch.float32"),
    "device": (torch.zeros(2, N, dtype=torch.float64, device="meta"), {}, ValueError, "got torch.float64 on meta"),
    "NaN": (torch.tensor([[0.0], [float("nan")]]).double().expand(2, N), {}, ValueError, "row 1 holds NaN"),
    "no tensor": ([[0.0] * N], {}, TypeError, "must be a tensor .* got list"),
    "kind": (torch.zeros(2, N).double(), {"kind": "full"}, ValueError, "'hessian', 'ggn', 'fisher', got 'full'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_multiplied(name):
    vectors, options, error, message = BAD[name]
    objective = built()
    with pytest.raises(error, match=message):
        objective.hvp(objective.theta, vectors, **options)


def test_a_theta_that_does_not_fit():
    objective = built()
    with pytest.raises(ValueError, match="theta must be"):
        objective.hvp(objective.theta[:-1], vectors_for(objective, 1))


def test_large_finite_vectors_are_no_error():
    objective = built(precision="float32")
    vectors = torch.full((1, objective.n), 3e38)
    with warnings.catch_warnings(), pytest.raises(FloatingPointError, match="product with vector 0"):
        objective.hvp(objective.theta, vectors)


@pytest.mark.parametrize("place", ["general", "engine", "trial"])
def test_smaller_batches_where_memory_is_short(place, monkeypatch):
    """Out of memory once, which halves the micro-batches, and leaves the engine in use."""
    objective, expected = built(way="general" if place == "general" else None), built()
    vectors = vectors_for(objective, 2)
    if place == "engine":
        objective.hvp(objective.theta, vectors)
    owner, name = (choose.general, "add_products") if place != "engine" else (engine.Engine, "add_products")
    plain, failures = getattr(owner, name), [torch.OutOfMemoryError("none left")]

    def short(*args, **options):
        if failures:
            raise failures.pop()
        return plain(*args, **options)

    monkeypatch.setattr(owner, name, short)
    assert_close(objective.hvp(objective.theta, vectors), expected.hvp(expected.theta, vectors))
    assert objective.batch_size == 20
    assert objective.hvp_way == ("general: asked for" if place == "general" else "engine")


@pytest.mark.parametrize("precision", ["float64", pytest.param("mixed", marks=needs_bfloat16)])
def test_the_backend_runs_the_pointwise_parts(precision, monkeypatch):
    calls = []

    def note(name, op):
        def noted(*args):
            calls.append(name)
            op(*args)

        monkeypatch.setattr(ops, name, noted)

    for name in ("tangents_scale", "tangents_softmax"):
        note(name, getattr(ops, name))
    native, twins = (built(backend=backend, precision=precision) for backend in ("auto", "torch"))
    vectors = vectors_for(native, 3)
    expected = twins.hvp(twins.theta, vectors)
    assert calls == []
    found = native.hvp(native.theta, vectors)
    assert set(calls) == ({"tangents_scale", "tangents_softmax"} if native.backend == "native" else set())
    assert native.hvp_way == twins.hvp_way == "engine"
    assert native.settings()["backend"] == native.backend
    # Sums in float64 of another order may round to another float32, and that to another bfloat16.
    assert_close(found, expected, 1e-12 if precision == "float64" else 1e-2)


def test_max_pooling_of_samples_without_channels():
    model = nn.Sequential(nn.Linear(6, 9), nn.MaxPool1d(3, 2), nn.Tanh(), nn.Linear(4, 3))
    objective, other = built(model=model), built(way="general", model=model)
    vectors = vectors_for(objective, 3)
    assert_close(objective.hvp(objective.theta, vectors), other.hvp(other.theta, vectors))
    assert objective.hvp_way == "engine"


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_probabilities_that_do_not_add_up_to_one(backend):
    data, loss = (INPUTS, normal(SAMPLES, 3, seed=6).abs()), nn.CrossEntropyLoss()
    objective, other = (built(data, way, backend=backend, loss=loss) for way in (None, "general"))
    vectors = vectors_for(objective, 3)
    assert_close(objective.hvp(objective.theta, vectors), other.hvp(other.theta, vectors))
    assert objective.hvp_way == "engine"
