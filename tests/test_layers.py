"""Reading a network: ways to write the same one, what is refused, and that nothing outside notices."""

import re
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap.flat import FlatModule
from lbgap.layers import FUNCTIONS, MEANS, NORMS, POINTWISE, Sum, UnknownError, displace, displaced, read_layers
from lbgap.objective.products import general
from lbgap.problem.batch import Batch
from lbgap.problem.loss import resolve_loss

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = {nn.Linear, nn.Conv2d, *NORMS, *POINTWISE, *MEANS, Sum, *FUNCTIONS.values()}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Written(nn.Module):
    """A network of four layers whose forward pass is given."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.conv, self.norm = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)
        self.relu, self.inplace, self.drop = nn.ReLU(), nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.factor = nn.Parameter(torch.ones(6))
        self.register_buffer("mean", torch.zeros(6))
        self.written = forward

    def forward(self, x):
        return self.written(self, x)


ROWS, IMAGES = normal(5, 6), normal(5, 2, 4, 4)


def read(forward, inputs=ROWS):
    return read_layers(Written(forward).eval(), inputs, KINDS)


def steps(forward, inputs=ROWS):
    return [(type(x.module).__name__, x.name, x.sources) for x in read(forward, inputs)]


def relu_then_add(relu):
    """What ``c(a(x) + b(relu(a(x))))`` amounts to, where the rectifier does not write into its input."""

    def forward(m, x):
        x = m.a(x)
        return m.c(m.b(relu(m, x)) + x)

    return forward


RECTIFIERS = {
    "function": lambda m, x: F.relu(x),
    "torch": lambda m, x: torch.relu(x),
    "method": lambda m, x: x.relu(),
    "in place, of a copy that is none": lambda m, x: F.dropout(F.relu(x), training=m.training),
    "dropout": lambda m, x: m.drop(m.relu(x)).contiguous(),
    "called directly": lambda m, x: m.relu.forward(x),
}


@pytest.mark.parametrize("name", RECTIFIERS)
def test_ways_to_write_a_rectifier(name):
    found = steps(relu_then_add(RECTIFIERS[name]))
    assert [(kind, sources) for kind, _, sources in found] == [
        ("Linear", (0,)),
        ("ReLU", (1,)),
        ("Linear", (2,)),
        ("Sum", (3, 1)),
        ("Linear", (4,)),
    ]


def added_in_place(m, x):
    y = m.b(x)
    y += m.a(x)
    return m.c(y)


SUMS = {
    "operator": lambda m, x: m.c(m.b(x) + m.a(x)),
    "torch": lambda m, x: m.c(torch.add(m.b(x), m.a(x))),
    "method": lambda m, x: m.c(m.b(x).add(m.a(x))),
    "method in place": lambda m, x: m.c(m.b(x).add_(m.a(x))),
    "operator in place": added_in_place,
}


@pytest.mark.parametrize("name", SUMS)
def test_ways_to_write_a_sum(name):
    assert steps(SUMS[name]) == [
        ("Linear", "b", (0,)),
        ("Linear", "a", (0,)),
        ("Sum", "", (1, 2)),
        ("Linear", "c", (3,)),
    ]


FLATTENED = {
    "module": lambda m, x: nn.Flatten()(m.conv(x)),
    "function": lambda m, x: torch.flatten(m.conv(x), 1),
    "function with names": lambda m, x: torch.flatten(m.conv(x), start_dim=1),
    "method": lambda m, x: m.conv(x).flatten(1),
    "view by size": lambda m, x: m.conv(x).view(x.size(0), -1),
    "view by shape": lambda m, x: m.conv(x).view((x.shape[0], -1)),
    "view by length": lambda m, x: m.conv(x).view(len(x), 27),
    "view by width": lambda m, x: m.conv(x).view(-1, 27),
    "reshape": lambda m, x: torch.reshape(m.conv(x), (x.shape[0], -1)),
    "reshape by product": lambda m, x: m.conv(x).reshape(-1, x[0].numel() - 5),
}


@pytest.mark.parametrize("name", FLATTENED)
def test_ways_to_flatten(name):
    found = read(FLATTENED[name], IMAGES)
    assert [(type(x.module), x.sources) for x in found] == [(nn.Conv2d, (0,)), (nn.Flatten, (1,))]
    assert (found[1].module.start_dim, found[1].module.end_dim) == (1, -1)


@pytest.mark.parametrize(
    "forward", [lambda m, x: m.conv(x.unflatten(1, (2, 2, 4))), lambda m, x: m.conv(x.view(len(x), 2, 2, 4))]
)
def test_ways_to_unflatten(forward):
    first, second = read(forward, normal(5, 16))
    assert (type(first.module), first.module.dim, first.module.unflattened_size) == (nn.Unflatten, 1, (2, 2, 4))
    assert second.name == "conv"


def test_settings_of_functions():
    found = read(lambda m, x: F.leaky_relu(F.avg_pool2d(F.max_pool2d(m.conv(x), 2, stride=1), (1, 2)), 0.3), IMAGES)
    pool, mean, leaky = (layer.module for layer in found[1:])
    assert (pool.kernel_size, pool.stride, pool.padding, pool.return_indices) == (2, 1, 0, False)
    assert (mean.kernel_size, mean.stride) == ((1, 2), (1, 2))
    assert leaky.negative_slope == 0.3


FUNCTIONAL = {
    "relu6": (F.relu6, nn.ReLU6()),
    "elu": (lambda x: F.elu(x, 0.3), nn.ELU(0.3)),
    "selu": (F.selu, nn.SELU()),
    "silu": (F.silu, nn.SiLU()),
    "gelu": (lambda x: F.gelu(x, approximate="tanh"), nn.GELU("tanh")),
    "tanh": (F.tanh, nn.Tanh()),
    "tanh in place": (lambda x: x.tanh_(), nn.Tanh()),
    "sigmoid": (torch.sigmoid, nn.Sigmoid()),
    "softplus": (lambda x: F.softplus(x, 2.0), nn.Softplus(2.0)),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.5), nn.Hardtanh(-0.5, 0.5)),
    "hardswish": (F.hardswish, nn.Hardswish()),
    "mish": (F.mish, nn.Mish()),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_activations_as_functions(name):
    function, module = FUNCTIONAL[name]
    (_, layer) = read(lambda m, x: function(m.a(x)))
    assert repr(layer.module) == repr(module)
    assert not layer.module.training


def test_modules_are_those_of_the_network_and_a_lone_layer_is_one():
    model = nn.Sequential(nn.Linear(6, 3), nn.Sequential(nn.ReLU(), nn.Dropout())).eval()
    found = read_layers(model, ROWS, KINDS)
    assert [(layer.name, layer.sources) for layer in found] == [("0", (0,)), ("1.0", (1,))]
    assert found[0].module is model[0]
    (alone,) = read_layers(model[0], ROWS, KINDS)
    assert (alone.module, alone.name, alone.sources) == (model[0], "", (0,))


def test_writing_into_a_value_and_reading_it_again():
    """What the code has in its hands after an in-place layer is the layer's output, under either name."""
    found = steps(lambda m, x: m.c(m.inplace(h := m.a(x)) + h))
    assert found == [("Linear", "a", (0,)), ("ReLU", "inplace", (1,)), ("Sum", "", (2, 2)), ("Linear", "c", (3,))]


def view_and_write(m, x):
    h = m.conv(x)
    flat = h.flatten(1)
    h.relu_()
    return flat


def write_to_view(m, x):
    h = m.conv(x)
    h.flatten(1).relu_()
    return m.norm(h)


def caught(m, x):
    h = m.a(x)
    try:
        return h if h.sum() > 0 else m.b(h)
    except Exception:
        return h


def by_count(m, x):
    return m.c(m.a(x) if len(x) > 2 else m.b(x))


def overwritten(m, x):
    h = m.a(x)
    h[:, 0] = 0
    return m.c(h)


def written_elsewhere(m, x):
    h = torch.zeros(len(x), 6)
    h[:] = m.a(x)
    return m.c(h)


def by_data(m, x):
    h = m.a(x)
    h.data.zero_()
    return m.c(h)


REFUSED = {
    "view, then written": (view_and_write, "a layer that writes into what another one reads"),
    "a view that is written": (write_to_view, "a layer that writes into what another one reads"),
    "truth": (lambda m, x: m.a(x) if x.sum() > -1e9 else x, "code that looks at values, or .* by '__bool__'"),
    "caught": (caught, "by '__bool__'"),
    "item": (lambda m, x: m.a(x) + x.mean().item(), "by 'item'"),
    "float": (lambda m, x: m.a(x) + float(x[0, 0]), "by '__float__'"),
    "int": (lambda m, x: m.a(x)[:, : int(x.abs().sum())], "by '__int__'"),
    "index": (lambda m, x: m.a(x) + len(range(x.argmax())), "by '__index__'"),
    "slice": (lambda m, x: m.a(x)[:, : x.argmax() + 1], "the operation '__getitem__'"),
    "list": (lambda m, x: m.a(torch.tensor(x.tolist())), "by 'tolist'"),
    "numpy": (lambda m, x: m.a(torch.from_numpy(x.numpy())), "by 'numpy'"),
    "data": (by_data, "by 'data'"),
    "equal": (lambda m, x: m.a(x) if torch.equal(x, x) else x, "by 'equal'"),
    "count": (by_count, "layers that depend on the number of samples"),
    "parameter": (lambda m, x: m.a(x) * m.factor, "the tensor 'factor' outside of a layer"),
    "added parameter": (lambda m, x: m.a(x) + m.factor, "the tensor 'factor' outside of a layer"),
    "buffer": (lambda m, x: m.a(x - m.mean), "the tensor 'mean' outside of a layer"),
    "weight": (lambda m, x: F.linear(x, m.a.weight), "the tensor 'a.weight' outside of a layer"),
    "forward of a layer": (lambda m, x: m.a.forward(x), "the tensor 'a.(weight|bias)' outside of a layer"),
    "constant": (lambda m, x: m.a(x) + torch.ones(6), "a tensor from outside of the layers"),
    "number": (lambda m, x: m.a(x) + 1, "the operation 'add'"),
    "operation": (lambda m, x: m.a(x).sin(), "the operation 'sin'"),
    "transposed": (lambda m, x: m.a(x.mT.mT), "the operation 'mT'"),
    "overwritten": (overwritten, "the operation '__setitem__'"),
    "written elsewhere": (written_elsewhere, "a tensor from outside of the layers"),
    "flattened samples": (lambda m, x: m.a(x).flatten(), "flattening samples into one"),
    "reshape of samples": (lambda m, x: m.a(x).view(-1, 3), r"a reshape other than to \(batch, -1\)"),
    "dropout": (lambda m, x: F.dropout(m.a(x)), "the operation 'dropout'"),
    "layer in training": (lambda m, x: m.drop.train()(m.a(x)), "Dropout in training mode"),
    "unknown layer": (lambda m, x: nn.LayerNorm(6)(m.a(x)), "the operation 'layer_norm'|outside of the layers"),
    "unused output": (lambda m, x: (m.a(x), m.b(x))[0], "an output that is not that of the last layer"),
    "several outputs": (lambda m, x: (m.a(x), m.b(x)), "an output that is not that of the last layer"),
    "no layer": (lambda m, x: x, "an output that is not that of the last layer"),
    "arguments": (lambda m, x: m.a(input=x), "further arguments of 'a'"),
    "arguments of a function": (lambda m, x: torch.tanh(h := m.a(x), out=h), "the arguments of the operation 'tanh'"),
    "named arguments": (lambda m, x: torch.relu(input=m.a(x)), "the operation 'relu'"),
    "indices": (
        lambda m, x: F.max_pool1d(m.a(x), 2, return_indices=True)[0],
        "the operation 'max_pool1d_with_indices'",
    ),
    "failing": (lambda m, x: m.a(x).view(5, 6), "code that does not run on 2 samples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    forward, message = REFUSED[name]
    with pytest.raises(UnknownError, match=message):
        read(forward, IMAGES if forward in (view_and_write, write_to_view) else ROWS)


def test_values_that_nothing_depends_on_do_not_matter():
    def forward(m, x):
        h = m.a(x)
        m.noted = h.mean().detach().sin()
        return m.c(h)

    assert len(read(forward)) == 2


@pytest.mark.parametrize("samples", [2, 3])
def test_a_size_that_happens_to_be_the_number_of_samples(samples):
    with pytest.raises(UnknownError, match=r"a reshape other than|does not run on"):
        read(lambda m, x: x.view(samples, -1), normal(5, samples, 6))


def test_layers_outside_of_the_network_are_refused():
    class Closure(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
            self.head = lambda x: self.b(x)

        def forward(self, x):
            return self.head(torch.tanh(self.a(x)))

    with pytest.raises(UnknownError, match=r"the tensor 'b\.weight' outside of a layer"):
        read_layers(Closure(), ROWS, KINDS)


def test_kinds_that_the_caller_does_not_know():
    with pytest.raises(UnknownError, match="Tanh, or some setting of it"):
        read_layers(nn.Sequential(nn.Linear(6, 3), nn.Tanh()), ROWS, {nn.Linear})
    with pytest.raises(UnknownError, match="inputs other than one tensor"):
        read_layers(nn.Linear(6, 3), ROWS[:0], KINDS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, where it loads its compiler
def test_compiled_code_is_refused():
    with pytest.raises(UnknownError, match="compiled code in the model"):
        read_layers(torch.compile(nn.Linear(6, 3)), ROWS, KINDS)


def test_nothing_is_left_behind(caller_state):
    model, before = Written(lambda m, x: m.c(m.relu(m.a(x)))).eval(), caller_state()
    versions = [parameter._version for parameter in model.parameters()]
    with torch.inference_mode():
        read_layers(model, ROWS, KINDS)
    assert caller_state() == before
    assert versions == [parameter._version for parameter in model.parameters()]
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in model.modules())


def test_a_point_some_way_off():
    parts = [normal(4, 5), torch.zeros(3), normal(2, seed=1) * 1e-3]
    found, again = ([part.clone() for part in parts] for _ in range(2))
    displace(found)
    displace(again)
    for part, other, same in zip(parts, found, again, strict=True):
        assert torch.equal(other, same)
        size = float(part.square().mean().sqrt()) or 1.0
        steps = (other - part).abs()
        assert bool((steps > 0).all())
        assert float(steps.max()) <= 0.1 * size


def test_parameters_are_back_to_the_bit():
    parts = [normal(5, 3), torch.zeros(4), torch.tensor([-0.0, float("nan"), 1e-42])]
    before = [part.clone() for part in parts]
    with displaced(parts):
        assert not any(torch.equal(*pair) for pair in zip(parts, before, strict=True))
    for pair in zip(parts, before, strict=True):
        assert torch.equal(*(part.view(torch.uint8) for part in pair))


class Branching(nn.Module):
    """A branch that counts for nothing at its start, taken where the value is a tensor."""

    def __init__(self):
        super().__init__()
        self.a, self.up, self.b = nn.Linear(6, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        x = torch.relu(self.a(x))
        if isinstance(x, torch.Tensor):
            x = x + self.up(x)
        return self.b(x)


class Unseen(Branching):
    """The same, where the code decides by whether it is observed."""

    def forward(self, x):
        x = torch.relu(self.a(x))
        if not self.a._forward_hooks:
            x = x + self.up(x)
        return self.b(x)


@pytest.mark.parametrize(("kind", "read"), [(Branching, True), (Unseen, False)])
def test_a_branch_that_counts_for_nothing_at_its_start(kind, read):
    objective = lbgap.Objective(kind(), (ROWS, torch.arange(5) % 3), precision="float64")
    points = objective.theta + 0.1 * normal(9, objective.n, seed=2)
    expected = torch.stack([objective.loss(point) for point in points])
    torch.testing.assert_close(objective.losses(points), expected, rtol=1e-11, atol=0)
    assert (objective.losses_way == "one after the other") == (not read)
    identity, (inputs, targets) = torch.eye(objective.n, dtype=torch.float64), (ROWS.double(), torch.arange(5) % 3)
    for theta in (objective.theta, points[0]):
        flat = FlatModule(kind(), dtype=torch.float64)
        flat.theta.copy_(theta)
        dense = torch.zeros_like(identity)
        loss = resolve_loss("cross_entropy")
        general.add_products(flat, loss, Batch(inputs, targets), identity, dense, "hessian")
        torch.testing.assert_close(objective.hvp(theta, identity), dense / 5, rtol=1e-9, atol=1e-12)
    assert (objective.hvp_way == "engine") == read
    rows = normal(2, objective.n, seed=3)
    plane = lbgap.plane(objective, directions=rows, points=3)
    corner = objective.loss(objective.theta - rows[0] - rows[1])
    torch.testing.assert_close(torch.tensor(plane.train_loss[0][0], dtype=torch.float64), corner, rtol=1e-11, atol=0)


def test_models_of_other_threads_run_on():
    """A user's model runs all the while lbgap reads others."""
    mine, expected = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)), []
    before, found, stop = mine(ROWS), [], threading.Event()

    def serve():
        while not stop.is_set():
            try:
                found.append(torch.equal(mine(ROWS), before))
            except Exception as error:
                found.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for seed in range(20):
            expected.append(len(found))
            read_layers(Branching(), normal(3, 6, seed=seed), KINDS)
            objective = lbgap.Objective(Branching(), (ROWS, torch.arange(5) % 3))
            objective.hvp(objective.theta, objective.theta[None])
            objective.losses(objective.theta.expand(3, -1))
    finally:
        stop.set()
        thread.join()
    assert expected[-1] > expected[0]
    assert all(one is True for one in found)


def test_nothing_traces():
    """torch.fx, torch.export and their kin patch torch.nn.Module for the whole process."""
    pattern = re.compile(r"torch\.(fx|export|jit)\b|from torch import .*\b(fx|export|jit)\b|make_fx|sdpa_kernel")
    for path in Path(lbgap.__file__).parent.rglob("*.py"):
        lines = [line for line in path.read_text().splitlines() if "import" in line]
        assert not [line for line in lines if pattern.search(line)], path


class Deciding(nn.Module):
    """A network whose code looks at its own tensors, or changes them."""

    def __init__(self, forward):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(-1.0))
        self.a, self.b, self.c = nn.Linear(6, 30), nn.Linear(30, 30), nn.Linear(30, 3)
        self.register_buffer("flag", torch.tensor(1.0))
        self.written = forward

    def forward(self, x):
        return self.written(self, x)


def by_sign(m, x):
    x = m.a(x).relu()
    return m.c(x + m.b(x) if m.gate > 0 else x)


def by_norm(m, x):
    x = m.a(x).relu()
    return m.c(x + m.b(x) if m.a.weight.norm() > 4 else x)


def by_flag(m, x):
    return m.c(m.a(x).relu() if m.flag > 0 else m.a(x).tanh())


def by_number(m, x):
    return m.c(F.leaky_relu(m.a(x), m.gate.item()))


def bounded_weights(m, x):
    m.a.weight.data.renorm_(2, 0, 1.2)
    return m.c(m.a(x).relu())


def clamped_weights(m, x):
    with torch.no_grad():
        m.a.weight.clamp_(-0.3, 0.3)
    return m.c(m.a(x).relu())


def copied_weights(m, x):
    m.b.load_state_dict({name: 0.5 * value for name, value in m.b.state_dict().items()})
    return m.c(m.b(m.a(x).relu()))


def other_weights(m, x):
    weights = {name: value.clamp(-0.2, 0.2) for name, value in m.a.named_parameters()}
    return m.c(torch.func.functional_call(m.a, weights, (x,)).relu())


DECIDING = {f.__name__: f for f in (by_sign, by_norm, by_flag, by_number, other_weights)}
WRITING = {f.__name__: f for f in (bounded_weights, clamped_weights, copied_weights)}


@pytest.mark.parametrize("name", DECIDING)
def test_code_that_looks_at_parameters_is_not_read(name):
    objective = lbgap.Objective(Deciding(DECIDING[name]), (ROWS, torch.arange(5) % 3), precision="float64", judge=False)
    points = objective.theta * torch.tensor([[-1.0], [1.0], [3.0]], dtype=torch.float64)
    expected = torch.stack([objective.loss(point) for point in points])
    assert torch.equal(objective.losses(points), expected)
    objective.hvp(objective.theta, points[:1])
    assert objective.hvp_way.startswith("general: ")


@pytest.mark.parametrize("name", WRITING)
def test_code_that_writes_into_parameters_is_not_read(name):
    with pytest.raises(UnknownError, match=r"^code that looks at values|^a tensor of '[ab]' that the code replaces"):
        read_layers(Deciding(WRITING[name]).eval(), ROWS, KINDS)


def test_other_buffers_are_seen_by_code_that_looks_at_them():
    objective = lbgap.Objective(Deciding(by_flag), (ROWS, torch.arange(5) % 3))
    points = torch.stack([objective.theta, 1.1 * objective.theta])
    before = objective.losses(points)
    objective.set_buffers({"flag": torch.tensor(-1.0)})
    assert torch.equal(objective.losses(points), torch.stack([objective.loss(point) for point in points]))
    assert not torch.equal(objective.losses(points), before)


def test_a_network_that_keeps_what_passes_through_it_is_read_after_a_gradient():
    class Keeping(Branching):
        def forward(self, x):
            self.kept = torch.relu(self.a(x))
            return self.b(self.kept)

    objective = lbgap.Objective(Keeping(), (ROWS, torch.arange(5) % 3))
    objective.loss_and_gradient(objective.theta)
    objective.losses(objective.theta * torch.linspace(0.5, 1, 9)[:, None])
    objective.hvp(objective.theta, objective.theta[None])
    assert (objective.losses_way, objective.hvp_way) == ("tile by tile", "engine")


def test_the_default_device_of_the_caller_does_not_matter():
    objective = lbgap.Objective(Branching(), (ROWS, torch.arange(5) % 3))
    points = objective.theta * torch.linspace(0.5, 1, 9)[:, None]
    with torch.device("meta"):
        found, product = objective.losses(points), objective.hvp(points[0], points[:1])
    assert torch.equal(found, objective.losses(points))
    assert torch.equal(product, objective.hvp(points[0], points[:1]))
    assert objective.hvp_way == "engine"
