"""Private copies of modules: whatever a module keeps, its copy reaches nothing of the original."""

import functools
import threading
import types
import weakref
from collections import deque, namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from lbgap.flat import FlatModule
from lbgap.replica import Watch, held_tensors, originals, pin_mode, replicate, set_mode

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Reaches its second layer by ``head`` alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, inputs):
        return self.head(torch.tanh(self.a(inputs)))


class InContainer(Net):
    def __init__(self, wrap, find):
        super().__init__()
        self.kept, self.find = wrap(lambda hidden: self.b(hidden)), find

    def head(self, hidden):
        return self.find(self.kept)(hidden)


class Caller:
    def __init__(self, net):
        self.net = net

    def __call__(self, hidden):
        return self.net.b(hidden)


class Weakly(Net):
    def head(self, hidden):
        return self.reference()(hidden)


def closure(net):
    net.head = lambda hidden: net.b(hidden)


def default(net):
    def head(hidden, layer=net.b):
        return layer(hidden)

    net.head = head


def keyword_default(net):
    def head(hidden, *, weight=net.b.weight, bias=net.b.bias):
        return F.linear(hidden, weight, bias)

    net.head = head


def partial(net):
    net.head = functools.partial(F.linear, weight=net.b.weight, bias=net.b.bias)


def partial_of_closure(net):
    net.head = functools.partial(lambda factor, hidden: factor * net.b(hidden), 1.0)


def bound_method(net):
    net.head = net.b.forward


def nested(net):
    def inner(hidden):
        return net.b(hidden)

    net.head = lambda hidden: inner(hidden)


def recursive(net):
    def head(hidden, depth=2):
        return net.b(hidden) if depth == 0 else head(hidden, depth - 1)

    net.head = head


def list_in_closure(net):
    layers = [net.a, net.b]
    net.forward = lambda inputs: layers[1](torch.tanh(layers[0](inputs)))


def patched_method(net):
    layer = net.b

    def forward(self, inputs):
        return layer(torch.tanh(self.a(inputs)))

    net.forward = types.MethodType(forward, net)


def wrapped_forward(net):
    closure(net)
    own = net.forward

    @functools.wraps(own)
    def forward(inputs):
        return own(inputs)

    net.forward = forward


def instance(net):
    net.head = Caller(net)


def instance_in_closure(net):
    caller = Caller(net)
    net.head = lambda hidden: caller(hidden)


def weak_in_closure(net):
    reference = weakref.ref(net.b)
    net.head = lambda hidden: reference()(hidden)


def hook(net):
    net.a.register_forward_hook(lambda module, args, output: net.b(torch.tanh(output)))
    net.forward = types.MethodType(lambda self, inputs: self.a(inputs), net)


def pre_hook(net):
    net.register_forward_pre_hook(lambda module, args: (args[0] + 0 * net.b.bias.sum(),))
    closure(net)


def global_name(net):
    globals()["_reached"] = net
    net.head = lambda hidden: _reached.b(hidden)  # noqa: F821 - put there above


BINDINGS = [
    *(closure, default, keyword_default, partial, partial_of_closure, bound_method, nested, recursive, list_in_closure),
    *(patched_method, wrapped_forward, instance, instance_in_closure, weak_in_closure, hook, pre_hook, global_name),
]


def bound(bind):
    net = Net()
    bind(net)
    return net


def weak_attribute():
    net = Weakly()
    net.reference = weakref.ref(net.b)
    return net


Pair = namedtuple("Pair", "one other")
CONTAINERS = {
    "list": (lambda f: [f], lambda kept: kept[0]),
    "dict": (lambda f: {"f": f}, lambda kept: kept["f"]),
    "tuple": (lambda f: (f,), lambda kept: kept[0]),
    "set": (lambda f: {f}, lambda kept: next(iter(kept))),
    "deque": (lambda f: deque([f]), lambda kept: kept[0]),
    "named tuple": (lambda f: Pair(1, f), lambda kept: kept.other),
    "nested": (lambda f: {"k": [({"f": f},)]}, lambda kept: kept["k"][0][0]["f"]),
}
MODELS = {bind.__name__: functools.partial(bound, bind) for bind in BINDINGS}
MODELS |= {f"in a {name}": functools.partial(InContainer, *pair) for name, pair in CONTAINERS.items()}
MODELS["weak_attribute"] = weak_attribute


def expected(parameters, inputs):
    hidden = torch.tanh(F.linear(inputs, parameters["a.weight"], parameters["a.bias"]))
    return F.linear(hidden, parameters["b.weight"], parameters["b.bias"])


def inputs_for(dtype=torch.float64):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", MODELS)
def test_functions_that_a_module_keeps_reach_the_copy(name):
    model, inputs = MODELS[name](), inputs_for()
    before = model(inputs.float())
    flat = FlatModule(model, dtype=torch.float64)
    assert flat.names == ("a.weight", "a.bias", "b.weight", "b.bias")
    flat.theta += 0.3
    parameters = dict(flat.module.named_parameters())
    with Watch(originals(model)) as watch:
        output = flat.module(inputs)
    assert not watch.found
    torch.testing.assert_close(output, expected(parameters, inputs), rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(output.square().sum(), flat.moving)
    wanted = torch.autograd.grad(expected(parameters, inputs).square().sum(), [*parameters.values()])
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert torch.equal(model(inputs.float()), before)


def test_frozen_parameters_and_buffers_are_the_copy_s_too():
    net = Net()
    net.b.requires_grad_(False)
    net.register_buffer("shift", torch.ones(3))
    layer, shift = net.b, net.shift
    net.head = lambda hidden: layer(hidden) + shift
    flat = FlatModule(net, dtype=torch.float64)
    flat.module.shift.fill_(2.0)
    parameters = dict(flat.module.named_parameters())
    torch.testing.assert_close(flat.module(inputs_for()), expected(parameters, inputs_for()) + 2, rtol=1e-12, atol=0)
    assert torch.equal(net.shift, torch.ones(3))


def test_functions_that_share_a_cell_go_on_sharing_one():
    net = Net()
    scale, layer = 1.0, net.b

    def head(hidden):
        return scale * layer(hidden)

    def rescale(value):
        nonlocal scale
        scale = value
        return layer

    net.head, net.rescale = head, rescale
    copied, _ = replicate(net)
    assert copied.rescale(3.0) is copied.b
    inputs = inputs_for(torch.float32)
    torch.testing.assert_close(copied(inputs), 3 * net(inputs))


def test_functions_that_reach_nothing_stay_what_they_are():
    net = Net()
    net.activation, net.head = torch.relu, net.b
    net.other = lambda hidden: hidden + 1
    copied, kept = replicate(net)
    assert copied.activation is torch.relu
    assert copied.other is net.other
    assert copied.head is copied.b
    assert kept == {}


def test_what_a_module_keeps_of_a_pass_is_copied_without_its_graph():
    net = nn.Sequential(nn.Linear(4, 3))
    net.last = {"hidden": [net[0].weight * 2]}
    net.constant = torch.ones(2)
    assert [(owner, key) for owner, key, _ in held_tensors(net)] == [("", "last"), ("", "constant")]
    copied, kept = replicate(net)
    assert list(kept) == ["last"]
    assert copied.last["hidden"][0] is kept["last"]
    assert not kept["last"].requires_grad
    assert torch.equal(kept["last"], net[0].weight * 2)


def test_views_of_parameters_are_among_what_does_not_follow():
    net = nn.Linear(4, 3)
    net.transposed = net.weight.data.T
    assert list(replicate(net)[1]) == ["transposed"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_that_are_no_buffers_follow_the_dtype_of_the_parameters(dtype):
    net = nn.Linear(4, 3)
    net.scale, net.half, net.index = torch.ones(3), torch.ones(3, dtype=torch.bfloat16), torch.arange(3)
    flat = FlatModule(net, dtype=dtype)
    assert flat.module.scale.dtype == dtype
    assert flat.module.half.dtype == torch.bfloat16
    assert flat.module.index.dtype == torch.int64


def old_weight_norm():
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(4, 5))


def pruned():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


HOOKED = {
    "pruned": (pruned, lambda p, b: p["0.weight_orig"] * b["0.weight_mask"]),
    "weight norm": (
        lambda: nn.Sequential(old_weight_norm(), nn.Tanh(), nn.Linear(5, 3)),
        lambda p, b: p["0.weight_g"] * p["0.weight_v"] / p["0.weight_v"].norm(dim=1, keepdim=True),
    ),
    "spectral norm": (
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)),
        lambda p, b: p["0.weight_orig"] / (b["0.weight_u"] @ p["0.weight_orig"] @ b["0.weight_v"]),
    ),
}


@pytest.mark.parametrize("name", HOOKED)
def test_weights_that_a_hook_makes_follow_their_parameters(name):
    build, weight = HOOKED[name]
    flat = FlatModule(build(), dtype=torch.float64)
    flat.theta += 0.2
    parameters, buffers = dict(flat.module.named_parameters()), dict(flat.module.named_buffers())
    hidden = torch.tanh(F.linear(inputs_for(), weight(parameters, buffers), parameters["0.bias"]))
    wanted = F.linear(hidden, parameters["2.weight"], parameters["2.bias"])
    torch.testing.assert_close(flat.module(inputs_for()), wanted, rtol=1e-12, atol=1e-12)


class Nothing(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        self[1].eval()


class Refusing(nn.Linear):
    def train(self, mode=True):
        raise NotImplementedError("no modes\nat all")


def test_train_need_not_return_the_module():
    model = Nothing(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout())
    flat = FlatModule(model)
    assert isinstance(flat.module, Nothing)
    assert not any(module.training for module in flat.module.modules())


def test_a_train_that_raises():
    with pytest.raises(ValueError, match=r"Refusing.train\(False\) raises NotImplementedError \(no modes\)") as caught:
        FlatModule(Refusing(2, 2))
    assert "\n" not in str(caught.value)


def test_a_pinned_module_stays_in_its_mode_and_so_do_its_copies():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Dropout())
    model[0][1].eval()
    pin_mode(model[0])
    copied, _ = replicate(model)
    for one in (model, copied):
        set_mode(one, False)
        assert [module.training for module in one.modules()] == [False, True, True, False, False]
    assert copied[0].eval() is copied[0]


def test_watch_sees_other_views_of_the_same_memory():
    layer = nn.Linear(4, 3)
    view = layer.weight.data[:, 1:]
    with Watch(originals(layer)) as watch:
        torch.ones(len(view), view.size(1), dtype=view.dtype, device=layer.weight.device)
    assert not watch.found
    with Watch(originals(layer)) as watch:
        torch.ones(2, 3) @ view
    assert list(watch.found) == ["weight"]


def test_parameters_that_share_their_memory():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data
    with pytest.raises(ValueError, match=r"'0.weight' and '1.weight' share their memory, but are two: tie them by"):
        FlatModule(model)
    model[1].weight = model[0].weight
    assert FlatModule(model).names == ("0.weight", "0.bias", "1.bias")


def test_parameters_that_overlap_in_part():
    model = nn.Module()
    whole = torch.zeros(6)
    model.a, model.b = nn.Parameter(whole[:4]), nn.Parameter(whole[2:])
    with pytest.raises(ValueError, match=r"'a' and 'b' share their memory"):
        FlatModule(model)
    model.b = nn.Parameter(whole[4:])
    assert FlatModule(model).names == ("a", "b")
    frozen = nn.Linear(4, 3)
    frozen.view = nn.Parameter(frozen.weight.data[1:], requires_grad=False)
    with pytest.raises(ValueError, match=r"'weight' and 'view' share their memory"):
        FlatModule(frozen)


def test_every_tensor_that_was_made_of_parameters_is_kept_by_name():
    layer = nn.Linear(4, 3)
    layer.views = [layer.weight.data, layer.bias.data]
    layer.register_buffer("row", layer.weight.data[1])
    layer.register_buffer("own", torch.ones(3))
    _, kept = replicate(layer)
    assert sorted(kept) == ["row", "views", "views[1]"]
    assert kept["row"].equal(layer.weight[1])
    assert kept["row"].untyped_storage().data_ptr() != layer.weight.untyped_storage().data_ptr()


def test_a_function_that_holds_what_cannot_be_copied():
    lock = threading.Lock()

    class Recorder:
        def __init__(self, model):
            self.model, self.lock = model, lock

    net = nn.Linear(4, 3)
    recorder = Recorder(net)
    net.register_forward_hook(lambda *_: recorder.lock.locked() or None)
    copied, _ = replicate(net)
    assert copied(torch.ones(2, 4)).equal(net(torch.ones(2, 4)))
