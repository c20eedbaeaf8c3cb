"""What models are wrapped in: the plain network is measured, the wrapper stays as it was."""

import copy
import functools
import types

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel

import lbgap
from lbgap.unwrap import unwrapped

# What torch itself does when it compiles, exports or shards.
TORCH = ("`torch.jit:DeprecationWarning", "`isinstance:FutureWarning", "FSDP is switching:UserWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings(*(f"ignore:{one}" for one in TORCH))]
NAMES = ("body.0.weight", "body.0.bias", "head.weight", "head.bias")
compiled = functools.partial(torch.compile, backend="eager")


class Net(nn.Module):
    """Two layers."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))


def make_data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 6, generator=generator), torch.randint(3, (40,), generator=generator)


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def measured(model):
    """Names, and what a gradient, products and a search give."""
    objective = lbgap.Objective(model, make_data())
    vectors = torch.randn(2, objective.n, generator=torch.Generator().manual_seed(1))
    value, gradient = objective.loss_and_gradient(objective.theta)
    return objective.names, value, gradient, objective.hvp(objective.theta, vectors)


def check_same(wrapped, plain=None, *, exact=True):
    """The wrapped model gives the bits of the plain one; another way to multiply differs by rounding."""
    before = {name: id(part) for name, part in wrapped.named_parameters()}
    held = {name: {**vars(module)} for name, module in wrapped.named_modules()}
    found, expected = measured(wrapped), measured(Net() if plain is None else plain)
    assert found[0] == expected[0]
    for one, other in zip(found[1:], expected[1:], strict=True):
        if exact:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert {name: id(part) for name, part in wrapped.named_parameters()} == before
    for name, module in wrapped.named_modules():
        assert all(vars(module)[key] is value for key, value in held[name].items()), name


AROUND = {
    "compiled": compiled,
    "compiled by inductor": torch.compile,
    "reduce-overhead": functools.partial(torch.compile, mode="reduce-overhead"),
    "data parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "averaged compiled": lambda model: AveragedModel(compiled(model)),
    "compiled averaged in parallel": lambda model: nn.DataParallel(compiled(AveragedModel(model))),
    "checkpoint": checkpoint_wrapper,
}


class TestAround:
    @pytest.mark.parametrize("wrap", AROUND.values(), ids=AROUND)
    def test_gives_the_bits_of_the_plain_network(self, wrap):
        check_same(wrap(Net()))

    def test_that_has_run(self):
        model = compiled(Net())
        model(make_data()[0]).sum().backward()
        model.zero_grad()
        check_same(model)

    def test_distributed(self, group):
        model = DistributedDataParallel(Net())
        model(make_data()[0]).sum().backward()
        model.zero_grad()
        check_same(model)
        check_same(compiled(model))

    def test_is_the_module_itself_where_nothing_is_inside(self):
        model = Net()
        assert unwrapped(model) is model
        assert unwrapped(nn.DataParallel(compiled(model))) is model

    def test_patterns_match_the_names_of_the_plain_network(self):
        objective = lbgap.Objective(nn.DataParallel(compiled(Net())), make_data(), parameters="head.*")
        assert objective.names == NAMES[2:]

    @pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel], ids=["parallel", "averaged"])
    def test_a_forward_set_on_a_wrapper_is_refused(self, wrap):
        model = wrap(Net())
        forward = model.forward
        model.forward = lambda x: 2 * forward(x)
        name = type(model).__name__
        with pytest.raises(ValueError, match=rf"the forward of the {name} around the model was replaced.*\.module,"):
            lbgap.Objective(model, make_data())

    @pytest.mark.parametrize("method", ["__call__", "forward"])
    def test_a_wrapper_that_computes_otherwise_is_measured_as_it_is(self, method):
        def doubled(self, *inputs):
            return 2 * getattr(nn.DataParallel, method)(self, *inputs)

        model = type("Doubled", (nn.DataParallel,), {method: doubled})(Net())
        objective = lbgap.Objective(model, make_data(), precision="float64")
        inputs, targets = make_data()
        expected = F.cross_entropy(2 * Net().double()(inputs.double()), targets)
        assert objective.loss(objective.theta).item() == pytest.approx(expected.item(), rel=1e-12)
        assert objective.names == tuple(f"module.{name}" for name in NAMES)

    def test_a_compiled_module_that_is_called_otherwise_is_measured_as_it_is(self):
        class Doubled(torch._dynamo.eval_frame.OptimizedModule):
            def __call__(self, *inputs):
                return 2 * super().__call__(*inputs)

        model = compiled(Net())
        model.__class__ = Doubled
        assert unwrapped(model) is not model._orig_mod

    def test_hooks_of_a_wrapper_are_refused(self):
        model = nn.DataParallel(Net())
        model.register_forward_hook(lambda module, inputs, output: 2 * output)
        with pytest.raises(ValueError, match=r"hooks are registered on the DataParallel around the model: .*\.module"):
            lbgap.Objective(model, make_data())

    def test_a_subclass_that_computes_something_else_is_no_wrapper(self):
        class Doubled(nn.DataParallel):
            def forward(self, x):
                return 2 * self.module(x)

        model = Doubled(Net())
        assert unwrapped(model) is model
        objective = lbgap.Objective(model, make_data())
        expected = F.cross_entropy(2 * Net()(make_data()[0]), make_data()[1])
        assert objective.loss(objective.theta).item() == pytest.approx(expected.item(), rel=1e-6)

    def test_trained(self):
        plain, found = (
            lbgap.train(model, make_data(), epochs=2, batch_size=10)
            for model in (Net(), compiled(nn.DataParallel(Net())))
        )
        for name, value in plain.model.state_dict().items():
            assert torch.equal(found.model.state_dict()[name], value)

    def test_trained_together(self):
        networks = [nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(2)]
        found, plain = (
            lbgap.train_together(models, make_data(), epochs=1, batch_size=10, seeds=[0, 1])
            for models in ([compiled(networks[0]), nn.DataParallel(networks[1])], networks)
        )
        for one, other in zip(found, plain, strict=True):
            for name, value in other.model.state_dict().items():
                assert torch.equal(one.model.state_dict()[name], value)


def with_body(model, wrap):
    model.body = wrap(model.body)
    return model


def with_forward(model):
    model.forward = compiled(model.forward)
    return model


def in_place(model):
    model.compile(backend="eager")
    model.body[0].compile(backend="eager")
    return model


INSIDE = {
    "compiled": lambda model: with_body(model, compiled),
    "compiled by inductor": lambda model: with_body(model, torch.compile),
    "data parallel": lambda model: with_body(model, nn.DataParallel),
    "nested": lambda model: with_body(model, lambda body: nn.DataParallel(compiled(checkpoint_wrapper(body)))),
    "within each other": lambda model: compiled(
        with_body(model, lambda body: compiled(nn.Sequential(*map(compiled, body))))
    ),
    "in place": in_place,
    "forward": with_forward,
}


class Methods(Net):
    """Compiled methods, of the class and of the object, by which a network reaches itself."""

    def __init__(self):
        super().__init__()
        self.kept = [compiled(self.first), self.second]
        self.again = lambda x: self.kept[0](x)
        self.body = compiled(self.body)

    def first(self, x):
        return self.body(x)

    @torch.compile(backend="eager")
    def second(self, x):
        return self.head(x)

    @torch.compile(backend="eager")
    def forward(self, x):
        return self.kept[1](self.again(x)) + 0 * self.second(self.body(x))


class Reaching(Net):
    """Reaches what is inside of its parallel part by the attribute of the wrapper."""

    def __init__(self):
        super().__init__()
        self.body = nn.DataParallel(self.body)

    def forward(self, x):
        return self.head(self.body.module(x))


class TestInside:
    @pytest.mark.parametrize("change", INSIDE.values(), ids=INSIDE)
    def test_gives_the_bits_of_the_plain_network(self, change):
        model = change(Net())
        model(make_data()[0])
        check_same(model)

    def test_compiled_methods(self):
        model = Methods()
        model(make_data()[0])
        check_same(model, exact=False)
        plain = unwrapped(model)
        assert not any(
            hasattr(part, "_torchdynamo_orig_callable") for part in [plain.forward, plain.second, *plain.kept]
        )
        assert plain.kept[0].__self__ is plain

    def test_a_function_that_is_not_compiled_stays(self):
        class Apart(Net):
            @torch.compiler.disable
            def forward(self, x):
                return super().forward(x)

        model = Apart()
        assert unwrapped(model) is model

    def test_the_attribute_of_a_wrapper(self):
        check_same(Reaching(), exact=False)

    def test_a_part_that_stands_in_two_places(self):
        model = Net()
        model.body = nn.Sequential(model.body[0], compiled(model.body[1]), nn.Linear(8, 8))
        model.body.append(compiled(model.body[2]))
        plain = unwrapped(model)
        assert plain.body[2] is plain.body[3]
        assert [name for name, _ in plain.named_parameters()] == [
            *NAMES[:2],
            "body.2.weight",
            "body.2.bias",
            *NAMES[2:],
        ]

    def test_shares_all_tensors(self):
        model = with_body(Net(), compiled)
        model.table, model.product = [torch.ones(3)], model.head.weight * 2
        plain = unwrapped(model)
        for one, other in zip(plain.parameters(), model.parameters(), strict=True):
            assert one is other
        assert plain.table[0] is model.table[0]
        assert plain.product is model.product
        assert model.body._orig_mod[0] is not plain.body[0]

    def test_an_average_inside_is_a_part_like_others(self):
        model = with_body(Net(), AveragedModel)
        assert lbgap.Objective(model, make_data()).names[0] == "body.module.0.weight"

    def test_what_cannot_be_copied(self):
        class Fixed(Net):
            def __deepcopy__(self, memo):
                raise RuntimeError("no copies")

        with pytest.raises(ValueError, match=r"cannot be copied without its wrappers \(no copies\): pass the plain"):
            unwrapped(with_body(Fixed(), compiled))


class _Attached:
    """What a Lightning module is attached to: it cannot be copied."""

    def __init__(self, model):
        self.model, self.data = model, make_data()

    def __deepcopy__(self, memo):
        raise AssertionError("a trainer was copied")


def lightning_module():
    """The base class, as Lightning has it."""

    def forward(self, *args, **kwargs):
        return nn.Module.forward(self, *args, **kwargs)

    attributes = {"__module__": "lightning.pytorch.core.module", "forward": forward, "_trainer": None, "_fabric": None}
    return type("LightningModule", (nn.Module,), attributes)


class TestLightning:
    @pytest.mark.parametrize("attached", ["_trainer", "_fabric"])
    def test_a_forward_of_its_own_is_measured(self, attached):
        class Task(lightning_module()):
            def __init__(self):
                super().__init__()
                self.net, self.other = Net(), nn.Linear(1, 1)

            def forward(self, x):
                return 2 * self.net(x)

        task = Task()
        trainer = _Attached(task)
        setattr(task, attached, trainer)
        objective = lbgap.Objective(task, make_data(), parameters="net")
        expected = F.cross_entropy(2 * Net()(make_data()[0]), make_data()[1])
        assert objective.loss(objective.theta).item() == pytest.approx(expected.item(), rel=1e-6)
        assert objective.names == tuple(f"net.{name}" for name in NAMES)
        assert getattr(task, attached) is trainer
        assert unwrapped(task).net.head.weight is task.net.head.weight

    def test_without_one_the_module_inside_is(self):
        class Task(lightning_module()):
            def __init__(self):
                super().__init__()
                self.net, self.loss = compiled(Net()), nn.CrossEntropyLoss(torch.ones(3))
                self._trainer = _Attached(self)

        check_same(Task(), Net())

    def test_a_note_says_what_is_left_out(self):
        class Task(lightning_module()):
            def __init__(self):
                super().__init__()
                self.net, self.criterion, self.stem = Net(), nn.CrossEntropyLoss(torch.ones(3)), nn.Tanh()
                metric = type("Metric", (nn.Module,), {"__module__": "torchmetrics.metric"})()
                metric.register_buffer("total", torch.zeros(()))
                self.metrics = nn.ModuleDict({"accuracy": metric})

        note = "measured 'net' of Task, which has no forward of its own; 'criterion', 'stem', 'metrics' are left out"
        for wrap in (lambda model: model, nn.DataParallel, compiled):
            assert lbgap.Objective(wrap(Task()), make_data()).notes == [note]
        assert lbgap.line(Task(), Net(1), make_data(), points=3).settings["notes"] == [note]
        assert lbgap.fast_sharpness(Task(), make_data()).settings["notes"] == [note]

    def test_the_forward_of_the_base_class_is_none(self):
        base = lightning_module()

        class Task(base):
            forward = base.forward

            def __init__(self):
                super().__init__()
                self.net = Net()

        check_same(Task(), Net())

    def test_what_may_normalise_is_not_left_out(self):
        class Task(lightning_module()):
            def __init__(self, **buffers):
                super().__init__()
                self.net = Net()
                for name, values in buffers.items():
                    self.register_buffer(name, values)

        inside = Task()
        inside.norm = nn.Sequential(nn.BatchNorm1d(6, affine=False))
        for model, held in ((inside, "'norm'"), (Task(mean=torch.ones(6)), "its buffer 'mean'")):
            message = f"Task has no forward of its own, and {held} beside 'net' may enter the output .*, or call="
            with pytest.raises(ValueError, match=message) as caught:
                lbgap.Objective(model, make_data())
            assert "\n" not in str(caught.value)

    def test_with_call_it_is_taken_as_it_is(self):
        class Task(lightning_module()):
            def __init__(self, seed=0):
                super().__init__()
                self.net, self.norm = Net(seed), nn.BatchNorm1d(6, affine=False)
                self.norm.running_mean.fill_(3.0)
                self._trainer = _Attached(self)

        def call(model, batch):
            return model.net(model.norm(batch[0]))

        inputs, targets = make_data()
        objective = lbgap.Objective(nn.DataParallel(Task()), make_data(), call=call, precision="float64")
        normed = (inputs.double() - 3) / (1 + 1e-5) ** 0.5
        losses = [F.cross_entropy(Net(seed).double()(normed), targets).item() for seed in (0, 1)]
        assert objective.loss(objective.theta).item() == pytest.approx(losses[0], rel=1e-12)
        assert objective.names == tuple(f"net.{name}" for name in NAMES)
        assert objective.notes == []
        line = lbgap.line(Task(), Task(1), make_data(), call=call, precision="float64", low=0, high=1, points=3)
        assert line.train_loss[::2] == pytest.approx(losses, rel=1e-12)

    def test_without_one_and_several_modules(self):
        class Task(lightning_module()):
            def __init__(self):
                super().__init__()
                self.encoder, self.decoder = nn.Linear(6, 2), nn.Linear(2, 3)

        with pytest.raises(
            ValueError, match=r"Task has no forward of its own.*'encoder', 'decoder'.*: give it a forward"
        ):
            lbgap.Objective(Task(), make_data())

    def test_fabric(self):
        def forward(self, *args):
            raise AssertionError("in Fabric's precision")

        kind = type("_FabricModule", (nn.Module,), {"__module__": "lightning.fabric.wrappers", "forward": forward})
        model = kind()
        model._forward_module = model._original_module = Net()
        check_same(model)


def test_mixed_precision_of_accelerate_is_taken_off():
    model = Net()
    model._original_forward = model.forward

    def forward(*inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return model._original_forward(*inputs).float()

    forward.__module__ = "accelerate.utils.operations"
    model.forward = forward
    check_same(model)


SHARDED = r"get_model_state_dict\(sharded, .*full_state_dict=True"


class TestRefused:
    def test_parameters_over_processes(self, group):
        with pytest.raises(ValueError, match=rf"parameter 'body.0.weight' is a DTensor.*{SHARDED}"):
            lbgap.Objective(fully_shard(Net()), make_data())
        sharded = Net()
        sharded.body = FullyShardedDataParallel(sharded.body, device_id=torch.device("cpu"))
        with pytest.raises(ValueError, match=rf"sharded by FSDP \(its module 'body'\): .*{SHARDED}"):
            lbgap.line(Net(), sharded, make_data())

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: torch.jit.script(Net()), ValueError, "scripted .* pass the module that torch.jit was given"),
            (lambda: torch.jit.trace(Net(), make_data()[0]), ValueError, "scripted .* pass the module"),
            (lambda: torch.export.export(Net(), make_data()[:1]), TypeError, "got ExportedProgram: pass its .module()"),
            (lambda: Net, TypeError, "got the class Net: pass an instance of it"),
            (lambda: Net().forward, TypeError, "got method: wrap it in an nn.Module that holds its parameters"),
            (lambda: torch.compile(lambda x: x), TypeError, "got function: wrap it in an nn.Module"),
            (lambda: "net", TypeError, "model must be a torch.nn.Module, got str"),
            (lambda: nn.Sequential(nn.LazyLinear(3)), ValueError, "'0.weight' has no shape yet: run one batch"),
            (lambda: nn.LazyBatchNorm1d(affine=False), ValueError, "'running_mean' has no shape yet: run one batch"),
            (lambda: Net().to("meta"), ValueError, "'body.0.weight' is on the meta device .* load them first"),
            (lambda: Net().to(torch.complex64), ValueError, "'body.0.weight' is complex"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Complex modules")
    def test_what_is_no_plain_module(self, make, error, message):
        with pytest.raises(error, match=message) as caught:
            lbgap.Objective(make(), make_data())
        assert "\n" not in str(caught.value)

    def test_quantised(self):
        kind = type("Linear", (nn.Module,), {"__module__": "torch.ao.nn.quantized.dynamic.modules.linear"})
        with pytest.raises(ValueError, match=r"quantised \(its module 'body' is a torch.ao.*pass the model as it was"):
            lbgap.Objective(with_body(Net(), lambda body: kind()), make_data())

    def test_converted_weights(self):
        from torch.testing._internal.two_tensor import TwoTensor

        model = Net()
        values = model.head.weight.detach()
        model.head.weight = nn.Parameter(TwoTensor(values, values.clone()))
        with pytest.raises(
            ValueError, match=r"'head.weight' is a TwoTensor, no plain tensor: pass the model as it was"
        ):
            lbgap.Objective(model, make_data())


class TestCall:
    """What a function of the user's that calls the model is given."""

    @pytest.mark.parametrize("precision", ["float32", "float64"])
    @pytest.mark.parametrize("judge", [True, False])
    def test_that_computes_with_another_model(self, precision, judge):
        model = Net()
        message = "call computes with another model than the one it is given: use its first argument$"
        with pytest.raises(ValueError, match=message) as caught:
            lbgap.Objective(
                compiled(model), make_data(), call=lambda _, batch: model(batch[0]), precision=precision, judge=judge
            )
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(("wrap", "inside"), [(nn.DataParallel, "module"), (compiled, "_orig_mod")])
    def test_gets_the_plain_network(self, wrap, inside):
        with pytest.raises(ValueError, match=r"call gets the plain network, out of its wrappers \(no \.module"):
            lbgap.Objective(wrap(Net()), make_data(), call=lambda model, batch: getattr(model, inside)(batch[0]))


class TestCached:
    """Weights that ``parametrize.cached`` keeps would not move."""

    def normed(self, seed=0):
        return with_body(Net(seed), lambda body: nn.Sequential(weight_norm(body[0]), body[1]))

    def test_is_refused(self):
        model, message = self.normed(), r"leave parametrize\.cached\(\)$"
        objective = lbgap.Objective(model, make_data())
        theta = objective.theta + 0.1
        expected, vectors = objective.loss(theta), torch.ones(1, objective.n)
        calls = [
            lambda: lbgap.Objective(model, make_data()),
            lambda: lbgap.train(model, make_data(), epochs=1, batch_size=10),
            lambda: lbgap.line(model, self.normed(1), make_data(), points=3),
            lambda: objective.loss(theta),
            lambda: objective.losses(torch.stack([theta, objective.theta])),
            lambda: objective.loss_and_gradient(theta),
            lambda: objective.hvp(theta, vectors),
        ]
        with parametrize.cached():
            for call in calls:
                with pytest.raises(ValueError, match=message):
                    call()
        assert torch.equal(objective.loss(theta), expected)

    def test_changes_nothing_without_parametrisations(self):
        with parametrize.cached():
            check_same(Net())


class TestOtherModules:
    def test_call_of_its_own(self):
        class Called(Net):
            def __call__(self, x):
                return super().__call__(2 * x)

        objective = lbgap.Objective(Called(), make_data(), precision="float64")
        inputs, targets = make_data()
        expected = F.cross_entropy(copy.deepcopy(Net()).double()(2 * inputs.double()), targets)
        assert objective.loss(objective.theta).item() == pytest.approx(expected.item(), rel=1e-12)

    def test_exported(self):
        shapes = ({0: torch.export.Dim("batch")},)
        model = torch.export.export(Net(), make_data()[:1], dynamic_shapes=shapes).module()
        check_same(model, exact=False)

    def test_layers_of_a_generator(self):
        class Layers(nn.Sequential):
            def __init__(self):
                super().__init__(*(layer for layer in (Net(), nn.Tanh(), nn.Linear(3, 3))))

        assert len(lbgap.Objective(compiled(Layers()), make_data()).names) == 6

    def test_spread_over_devices(self):
        model = Net()
        model.register_buffer("far", torch.empty(1, device="meta"))
        with pytest.raises(ValueError, match="spread over cpu, meta: move it to one, or pass device="):
            lbgap.Objective(model, make_data())

    def test_modules_keep_their_methods(self):
        model = unwrapped(with_body(Net(), compiled))
        assert "forward" not in vars(model)
        assert isinstance(model.forward, types.MethodType)
