"""The trial of the engine: what it finds, in a copy in float64 and in place, and what it takes of memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from lbgap import Objective
from lbgap.objective.products import choose, engine, trial
from lbgap.objective.products.rules import Pointwise
from lbgap.problem.batch import Batch

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


DATA = normal(60, 6), torch.randint(0, 3, (60,), generator=torch.Generator().manual_seed(1))


def network(*, last=1.0, seed=0):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 8), nn.GELU())
        model.append(nn.Linear(8, 3))
    with torch.no_grad():
        model[-1].weight.mul_(last)
    return model.eval()


@pytest.fixture(params=["a copy in float64", "in place"])
def where(request, monkeypatch):
    if request.param == "in place":
        in_place(monkeypatch)
    return request.param


def in_place(monkeypatch):
    for module in (trial, choose):
        monkeypatch.setattr(module, "EXACT_PARAMETERS", 0)


def product(model, kind="hessian", data=DATA):
    objective = Objective(model, data, judge=False)
    objective.hvp(objective.theta, normal(1, objective.n).to(objective.dtype), kind=kind)
    return objective


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
def test_a_right_engine_is_used_and_the_replica_stays_where_it_is(kind, precision, where):
    objective = Objective(network(), DATA, precision=precision)
    theta = 1.5 * objective.theta
    objective.loss_and_gradient(theta)
    gradient = objective._evaluator.flat.gradient.clone()
    objective.hvp(theta, normal(2, objective.n).to(theta), kind=kind)
    assert objective.hvp_way == "engine"
    assert torch.equal(objective._evaluator.flat.theta, theta)
    assert torch.equal(objective._evaluator.flat.gradient, gradient)


@pytest.mark.parametrize("off", [1.01, 1.001])
def test_a_wrong_rule_is_found(off, where, monkeypatch):
    plain = Pointwise.backward
    monkeypatch.setattr(Pointwise, "backward", lambda self, saved, g: (off * plain(self, saved, g)[0],))
    assert product(network()).hvp_way.startswith("general: another product in '0.weight'")


def test_a_wrong_rule_that_counts_only_where_parameters_are_others_is_found(where, monkeypatch):
    plain = Pointwise.backward
    monkeypatch.setattr(Pointwise, "backward", lambda self, saved, g: (1.01 * plain(self, saved, g)[0],))
    objective = product(network(last=0.0))  # whose gradient in all that lies before the last layer is zero
    assert objective.hvp_way.startswith("general: another product in ")


def test_nan_of_the_engine_alone_is_found(where, monkeypatch):
    plain = Pointwise.backward
    monkeypatch.setattr(Pointwise, "backward", lambda self, saved, g: (plain(self, saved, g)[0] * float("nan"),))
    assert product(network()).hvp_way == "general: NaN or infinity where differentiating twice gives none"


def test_nan_of_both_says_nothing(where):
    objective = Objective(network(), DATA, judge=False)
    with pytest.raises(FloatingPointError):
        objective.hvp(objective.theta * float("nan"), normal(1, objective.n))
    assert objective.hvp_way == "not used yet"
    objective.hvp(objective.theta, normal(1, objective.n))
    assert objective.hvp_way == "engine"


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
@pytest.mark.parametrize("steps", [200, 3000])
def test_a_network_that_fits_its_samples_well_is_no_doubt(steps, kind, monkeypatch):
    in_place(monkeypatch)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(DATA[0]), DATA[1]).backward()
        optimizer.step()
    assert F.cross_entropy(model(DATA[0]), DATA[1]) < (1e-2 if steps == 200 else 1e-4)
    assert product(model, kind).hvp_way == "engine"


@pytest.mark.parametrize("off", [1.0, 1.01])
def test_units_close_to_their_kinks_are_no_doubt(off, monkeypatch):
    """Sums that are zero but for rounding, to which two ways of computing them give either sign."""
    in_place(monkeypatch)
    model = nn.Sequential(nn.Linear(6, 500), nn.ReLU(), nn.Linear(500, 3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(normal(500, 6, seed=7))
        model[0].weight[:2] = 0.1 * torch.tensor([[1.0, 2.0, -3.0, 0, 0, 0], [3.0, -2.0, -1.0, 0, 0, 0]])
        model[0].bias[:2] = 0
        model[2].weight.copy_(normal(3, 500, seed=8) / 20)
    inputs = DATA[0].clone()
    inputs[:, :3] = inputs[:, :1]
    multiply, backward, noises = engine.Engine.add_products, Pointwise.backward_tangent, []

    def rounded(self, batches, *more):
        noise = 1e-7 * normal(*inputs.shape, seed=9)
        return multiply(self, [Batch(x * (1 + noise[: len(x)]), y) for x, y in batches], *more)

    def noted(self, *arguments):
        noises.append(noise(self, *arguments))
        return noises[-1]

    noise = trial.Trial._noise
    monkeypatch.setattr(trial.Trial, "_noise", noted)
    monkeypatch.setattr(engine.Engine, "add_products", rounded)
    monkeypatch.setattr(Pointwise, "backward_tangent", lambda self, *more: (off * backward(self, *more)[0],))
    way = product(model, data=(inputs, DATA[1])).hvp_way
    assert noises
    assert (way == "engine") == (off == 1.0)


def test_where_rounding_leaves_nothing_the_general_way_is_taken(monkeypatch):
    """Probabilities of 1 - 1e-11, which are one in float32."""
    model, data = network(), (DATA[0], torch.zeros(60, dtype=torch.int64))
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([25.0, 0.0, -25.0]))
    assert product(model, "ggn", data).hvp_way == "engine"
    in_place(monkeypatch)
    reason = "general: the loss of a large network leaves too few digits to compare by"
    assert product(model, "ggn", data).hvp_way == reason


class Unseen(nn.Module):
    """A branch that counts for nothing where it begins, and that code does not take while it is observed."""

    def __init__(self):
        super().__init__()
        self.a, self.up, self.b = nn.Linear(6, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        x = torch.tanh(self.a(x))
        if not self.a._forward_hooks:
            x = x + self.up(x).detach() ** 2 * 0.1
        return self.b(x)


def test_a_branch_that_only_other_parameters_show_is_found(where):
    assert product(Unseen()).hvp_way.startswith("general: another product in ")


class Peak(TorchDispatchMode):
    """The largest number of bytes that live at once in tensors made inside."""

    def __init__(self):
        super().__init__()
        self.live, self.bytes = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        read = {id(tensor) for tensor in torch.utils._pytree.tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if torch.is_tensor(tensor) and id(tensor) not in read and not tensor._is_view():
                storage = tensor.untyped_storage()
                self.live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.live = {place: one for place, one in self.live.items() if not one[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.live.values()))
        return result


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_the_first_product_of_a_large_network_takes_four_vectors_more_than_the_second(kind, monkeypatch):
    in_place(monkeypatch)
    width = 200
    layers = [layer for _ in range(4) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), *layers, nn.Linear(width, 3))
    objective = Objective(model, DATA, judge=False, batch_size=12)
    theta, vectors, peaks = objective.theta, normal(1, objective.n), []
    for _ in range(3):
        with Peak() as peak:
            objective.hvp(theta, vectors, kind=kind)
        peaks.append(peak.bytes / theta.nbytes)
    assert objective.hvp_way == "engine"
    assert peaks[2] == peaks[1]
    assert peaks[0] < peaks[1] + 4
