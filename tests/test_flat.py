"""The flat replica: which parameters it holds, that it computes what the module does, and what it refuses to copy."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from lbgap.flat import FlatModule, device_of, select_parameters

pytestmark = pytest.mark.usefixtures("one_thread")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, inputs):
        return self.decode(self.encode(inputs).tanh())


class Last(nn.Module):
    """The last output of a recurrent network."""

    def __init__(self, recurrent):
        super().__init__()
        self.recurrent, self.out = recurrent, nn.Linear(5, 3)

    def forward(self, inputs):
        return self.out(self.recurrent(inputs)[0][:, -1])


class Words(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 4, **options), nn.Linear(4, 3)

    def forward(self, inputs):
        return self.out(self.embed(inputs).mean(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.out(self.encoder(inputs).mean(1))


def seeded(build):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        return build()


def frozen_first():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    return model


def convolutional():
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)), (6, 4)),
    "conv": (convolutional, (6, 2, 4, 4)),
    "channels last": (lambda: convolutional().to(memory_format=torch.channels_last), (6, 2, 4, 4)),
    "group norm": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(8, 3)),
        (6, 2, 4),
    ),
    "tied": (Tied, (6, 4)),
    "frozen": (frozen_first, (6, 4)),
    "lstm": (lambda: Last(nn.LSTM(4, 5, num_layers=2, batch_first=True)), (6, 3, 4)),
    "gru": (lambda: Last(nn.GRU(4, 5, batch_first=True)), (6, 3, 4)),
    "transformer": (Attention, (6, 3, 4)),
    "embedding": (Words, None),
    "sparse embedding": (lambda: Words(sparse=True), None),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), (6, 4)),
    "spectral norm": (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 3))), (6, 4)),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), (6, 4)),
}


def inputs_for(shape):
    generator = torch.Generator().manual_seed(1)
    if shape is None:
        return torch.randint(0, 7, (6, 3), generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_replica_computes_what_the_module_does(name):
    build, shape = MODELS[name]
    model, inputs = seeded(build).double().eval(), inputs_for(shape)
    flat = FlatModule(model, dtype=torch.float64)
    moving = select_parameters(model, "all")
    assert flat.names == tuple(moving)
    assert torch.equal(flat.theta, torch.cat([p.detach().reshape(-1) for p in moving.values()]))
    torch.testing.assert_close(flat.module(inputs), model(inputs), rtol=1e-12, atol=1e-12)

    home = flat.gradient.data_ptr()
    flat.module(inputs).square().sum().backward()
    model(inputs).square().sum().backward()
    reference = [p.grad if p.grad is not None else torch.zeros_like(p) for p in moving.values()]
    expected = torch.cat([(g.to_dense() if g.is_sparse else g).reshape(-1) for g in reference])
    torch.testing.assert_close(flat.gradient, expected, rtol=1e-12, atol=1e-12)
    assert flat.gradient.data_ptr() == home
    assert all(view.grad.untyped_storage().data_ptr() == home for view in flat.moving)
    flat.check_views()


@pytest.mark.parametrize("name", MODELS)
def test_theta_is_what_the_replica_computes_with(name):
    build, shape = MODELS[name]
    model, inputs = seeded(build).double().eval(), inputs_for(shape)
    flat = FlatModule(model, dtype=torch.float64)
    step = 1e-2 * torch.randn(flat.theta.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    flat.theta += step
    moved, parts = copy.deepcopy(model), step.split([p.numel() for p in flat.moving])
    with torch.no_grad():
        for parameter, part in zip(select_parameters(moved, "all").values(), parts, strict=True):
            parameter += part.view(parameter.shape)
    torch.testing.assert_close(flat.module(inputs), moved(inputs), rtol=1e-12, atol=1e-12)
    assert not torch.equal(flat.module(inputs), model(inputs))


def test_tied_parameters_count_once():
    model = Tied()
    flat = FlatModule(model)
    assert flat.names == ("encode.weight", "encode.bias")
    assert flat.module.decode.weight is flat.module.encode.weight


def test_selection():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[2].weight.requires_grad_(False)
    every = ["0.weight", "0.bias", "1.weight", "1.bias", "2.bias"]
    assert list(select_parameters(model, "all")) == every
    assert list(select_parameters(model, "weights")) == ["0.weight"]
    assert list(select_parameters(model, "0.*")) == ["0.weight", "0.bias"]
    assert list(select_parameters(model, ["*.bias", "0.weight"])) == ["0.weight", "0.bias", "1.bias", "2.bias"]
    assert list(select_parameters(model, iter(["1.*"]))) == ["1.weight", "1.bias"]


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
        self.block_norm = nn.LayerNorm(2)
        self.weight = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("block", ["block.0.weight", "block.0.bias", "block.1.1.weight", "block.1.1.bias"]),  # not block_norm
        ("block.1", ["block.1.1.weight", "block.1.1.bias"]),
        ("block_norm", ["block_norm.weight", "block_norm.bias"]),
        ("block.0.bias", ["block.0.bias"]),
        ("weight", ["weight"]),  # the model's own, not those of its modules
        ("block.?", ["block.0.weight", "block.0.bias", "block.1.1.weight", "block.1.1.bias"]),
        ("block*.weight", ["block.0.weight", "block.1.1.weight", "block_norm.weight"]),
        (["block.1", "weight"], ["weight", "block.1.1.weight", "block.1.1.bias"]),
        (["weight", "block.1", "block.1.1.bias"], ["weight", "block.1.1.weight", "block.1.1.bias"]),
    ],
)
def test_selection_by_the_names_of_modules(parameters, expected):
    assert list(select_parameters(Nested(), parameters)) == expected


def test_a_module_whose_parameters_are_all_frozen_is_no_choice():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].bias.requires_grad_(False)
    assert list(select_parameters(model, "0")) == ["0.weight"]
    model[0].weight.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"pattern '0' matches no trainable parameter; the names are: 1.weight, 1.bias"
    ):
        select_parameters(model, "0")


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        (
            "head.*",
            ValueError,
            r"parameters pattern 'head\.\*' matches no trainable parameter; the names are: 0.weight",
        ),
        (["0.*", "1.W*"], ValueError, r"pattern '1\.W\*' matches no"),
        ("head", ValueError, "pattern 'head' matches no .*; the names are: 0.weight, 0.bias, 1.weight, 1.bias$"),
        (["0", "2"], ValueError, "pattern '2' matches no .*; the names are: 0.weight, 0.bias, 1.weight, 1.bias$"),
        ("weight", ValueError, "pattern 'weight' matches no trainable parameter"),
        ([], ValueError, r"parameters=\[\] matches no trainable parameter"),
        (3, TypeError, "parameters must be 'all', 'weights' or name patterns such as 'layer4.*', got 3"),
        ([1], TypeError, "name patterns"),
        (None, TypeError, "name patterns"),
        (b"all", TypeError, "name patterns"),
    ],
)
def test_selections_that_choose_nothing(parameters, error, message):
    with pytest.raises(error, match=message) as caught:
        select_parameters(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), parameters)
    assert "\n" not in str(caught.value)


def test_only_vectors_are_no_weights():
    with pytest.raises(ValueError, match=r"parameters=\['weights'\] matches no trainable parameter of: weight, bias"):
        select_parameters(nn.LayerNorm(3), "weights")


def half_meta():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].to("meta")
    return model


def all_frozen():
    return nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (nn.ReLU, "the model has no parameters: sharpness needs at least one with requires_grad=True"),
        (all_frozen, "the model has 2 parameters, all frozen"),
        (lambda: nn.LazyLinear(2), "parameter 'weight' has no shape yet: run one batch through the model first"),
        (lambda: nn.Linear(2, 2, dtype=torch.complex64), "parameter 'weight' is complex .torch.complex64."),
        (lambda: nn.Linear(2, 2, device="meta"), "parameter 'weight' is on the meta device and has no values"),
        (half_meta, "parameter '1.weight' is on the meta device"),
    ],
)
def test_models_that_cannot_move(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        FlatModule(build())
    assert "\n" not in str(caught.value)


def test_no_module():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
        FlatModule(lambda inputs: inputs)
    with pytest.raises(TypeError, match=r"got the class Linear: pass an instance of it"):
        FlatModule(nn.Linear)


class Silent(nn.Linear):
    """Raises an error without a message when copied."""

    def __deepcopy__(self, memo):
        raise AssertionError


class Uncopied(nn.Module):
    """A submodule that stays itself when copied."""

    def __init__(self, *inner):
        super().__init__()
        self.inner = nn.ModuleList(inner)
        self.register_buffer("scale", torch.ones(1, dtype=torch.float64))

    def __deepcopy__(self, memo):
        return self

    def forward(self, inputs):
        return inputs * self.scale


class Renewed(nn.Linear):
    """Makes new parameters when copied."""

    def __deepcopy__(self, memo):
        return Renewed(self.in_features, self.out_features)


class Slots:
    """Holds what is computed from a parameter where no search for attributes sees it."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def hidden():
    model = nn.Linear(2, 2)
    model.held = Slots(model.weight * 2)
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (hidden, r"cannot be copied \(Only Tensors created explicitly.*make copy.deepcopy\(Linear\) work"),
        (lambda: Silent(2, 2), r"cannot be copied \(AssertionError\)"),
        (lambda: nn.Sequential(Uncopied(), nn.Linear(2, 2)), "keeps parts of the original"),
        (lambda: nn.Sequential(Uncopied(nn.Linear(2, 2)), nn.Dropout()), "keeps parts of the original"),
        (lambda: Renewed(2, 2), "makes new parameters when copied"),
    ],
)
def test_models_that_do_not_copy(build, message):
    model = build().train()
    buffers = {name: (id(buffer), buffer.dtype) for name, buffer in model.named_buffers()}
    with pytest.raises(ValueError, match=message) as caught:
        FlatModule(model)
    assert "\n" not in str(caught.value)
    assert all(module.training for module in model.modules())
    assert buffers == {name: (id(buffer), buffer.dtype) for name, buffer in model.named_buffers()}


class Cut(nn.Linear):
    """Replaces its own parameter when it runs."""

    def __init__(self, how):
        super().__init__(2, 2)
        self.how = how

    def forward(self, inputs):
        if self.how == "data":
            self.weight.data = self.weight.data.clone()
        elif self.how == "parameter":
            self.weight = nn.Parameter(self.weight.detach().clone())
        else:
            self.zero_grad()
        return super().forward(inputs)


@pytest.mark.parametrize("how", ["data", "parameter", "gradient"])
def test_replica_that_loses_its_views(how):
    flat = FlatModule(Cut(how))
    flat.check_views()
    flat.module(torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"replaces its parameter 'weight', or its gradient, when it runs"):
        flat.check_views()


def test_recurrent_weights_stay_where_they_are():
    # On a GPU torch moves them into a buffer of its own, which theta would not reach.
    flat = FlatModule(nn.LSTM(2, 2))
    flat.module.flatten_parameters()
    flat.check_views()
    assert "flatten_parameters" in vars(flat.module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_replica_has_its_own_tensors_of_the_dtype(dtype):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(torch.bfloat16)
    model[0].bias.requires_grad_(False)
    flat = FlatModule(model, dtype=dtype)
    assert {p.dtype for p in flat.module.parameters()} == {dtype}
    assert {b.dtype for b in flat.module.buffers()} == {dtype, torch.int64}
    mine = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    theirs = {t.untyped_storage().data_ptr() for t in (*flat.module.parameters(), *flat.module.buffers())}
    assert not mine & theirs


def test_dropout_is_off_and_batch_norm_as_asked():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    inputs = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    running, batch = (FlatModule(model, batch_norm=mode).module for mode in ("eval", "batch"))
    hidden = F.linear(inputs, model[0].weight, model[0].bias)
    torch.testing.assert_close(running(inputs), hidden / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(batch(inputs), F.batch_norm(hidden, None, None, training=True))
    assert int(model[1].num_batches_tracked) == 0


@pytest.mark.parametrize("mode", [None, "train", True])
def test_unknown_batch_norm(mode):
    with pytest.raises(ValueError, match="batch_norm must be 'eval' or 'batch', got"):
        FlatModule(nn.Linear(2, 2), batch_norm=mode)


def test_batch_norm_without_running_statistics():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match=r"batch-norm '1' has no running statistics.*pass batch_norm='batch'"):
        FlatModule(model)
    assert FlatModule(model, batch_norm="batch").has_batch_norm


def test_a_model_on_two_devices():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="the model is spread over cpu, meta: move it to one, or pass device="):
        device_of(model)


def test_nothing_of_the_model_is_touched():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()), nn.Linear(3, 2)).train()
    model[1].eval()
    model[2].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones(3, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flat = FlatModule(model, batch_norm="batch")
    flat.theta.fill_(7)
    flat.gradient.fill_(7)
    flat.module(torch.randn(4, 2)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, False, False, False, True]
    assert torch.equal(model[0].weight.grad, torch.ones(3, 2))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "0.weight")
    assert not model[2].bias.requires_grad
    assert model[1][0].running_mean is not None
