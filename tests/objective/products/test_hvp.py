"""Products with second derivatives: those of the dense matrices in float64, by the engine and by the general way."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap import Objective

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLES = 7
KINDS = ("hessian", "ggn", "fisher")


def seeded(build, seed=0):
    """The network in float64, every parameter and buffer away from its special start."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        model = build().double()
        with torch.no_grad():
            for module in model.modules():
                if hasattr(module, "running_mean"):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


LABELS = torch.randint(0, 3, (SAMPLES,), generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """Convolutions with batch-norm before, behind and after a sum, as image networks have them."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.second, self.before = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.skip = nn.Conv2d(3, 3, 1, stride=2)
        self.out = nn.Linear(3, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(x + self.second(F.gelu(self.before(x))))
        x = F.max_pool2d(x, 2) + self.skip(x)
        return self.out(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Reshaped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 2, 2), nn.Linear(18, 3)

    def forward(self, x):
        x = torch.tanh(self.conv(x))
        return self.out(F.dropout(x, 0.5, training=self.training).view(x.size(0), -1))


class Doubled(nn.Module):
    """One value read by three: by two layers, and by a sum with itself."""

    def __init__(self):
        super().__init__()
        self.first, self.left, self.right, self.out = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = F.silu(self.first(x))
        y = F.relu(self.left(x), inplace=True) + self.right(x)
        y += x
        return self.out(y + y)


class Writing(nn.Module):
    """Reads a value again after a layer wrote into it: what is read is what was written."""

    def __init__(self):
        super().__init__()
        self.layer, self.relu, self.out = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x):
        x = self.layer(x)
        return self.out(self.relu(x) + x)


def dense(*layers, width=5):
    return lambda: nn.Sequential(nn.Linear(4, 5), *(copy.deepcopy(layer) for layer in layers), nn.Linear(width, 3))


IMAGES, SERIES, ROWS = normal(SAMPLES, 2, 4, 4), normal(SAMPLES, 2, 9), normal(SAMPLES, 4)
KNOWN = {
    "linear": (lambda: nn.Linear(4, 3), ROWS),
    "no bias": (lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)), ROWS),
    "relu": (dense(nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(5, 5), nn.Identity(), nn.ReLU6()), ROWS),
    "leaky": (dense(nn.LeakyReLU(0.2)), ROWS),
    "gelu": (dense(nn.GELU(), nn.Linear(5, 5), nn.GELU("tanh")), ROWS),
    "tanh": (dense(nn.Tanh(), nn.Linear(5, 5), nn.Sigmoid()), ROWS),
    "smooth": (dense(nn.SiLU(), nn.ELU(), nn.Softplus()), ROWS),
    "folded batch-norm": (dense(nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU()), ROWS),
    "batch-norm without scale": (dense(nn.BatchNorm1d(5, affine=False), nn.ReLU()), ROWS),
    "free batch-norm": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5)), ROWS),
    "unflatten": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 4)),
            nn.Conv1d(1, 2, 3, padding=1),
            nn.Tanh(),
            nn.MaxPool1d(3, 2, padding=1),
            nn.Flatten(),
            nn.Linear(4, 6),
            nn.Unflatten(1, (2, -1)),
            nn.ReLU(inplace=True),
            nn.Conv1d(2, 3, 3),
            nn.Flatten(),
        ),
        ROWS,
    ),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3, stride=2),
            nn.BatchNorm1d(3),
            nn.ReLU(),
            nn.Conv1d(3, 3, 2),
            nn.MaxPool1d(2, 1),
            nn.AvgPool1d(2),
            nn.Flatten(),
        ),
        SERIES,
    ),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, (3, 2), padding=(1, 0), dilation=(1, 2)),
            nn.BatchNorm2d(3),
            nn.GELU(),
            nn.Conv2d(3, 2, 2),
            nn.BatchNorm2d(2),
            nn.ReLU(inplace=True),
            nn.AvgPool2d((2, 1)),
            nn.Flatten(),
            nn.Linear(2, 3),
        ),
        IMAGES,
    ),
    "max-pool": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2, padding=1), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(27, 3)),
        IMAGES,
    ),
    "residual": (Residual, IMAGES),
    "reshaped": (Reshaped, IMAGES),
    "doubled": (Doubled, ROWS),
    "writing": (Writing, ROWS),
}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.out(self.second(self.first(x).tanh()))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.layer(torch.tanh(self.layer(x))))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.factor = nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.layer(x) * self.factor


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > -1e9 else x


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.block(x).mean(1))


def hooked():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    return model


UNKNOWN = {
    "tied": (Tied, ROWS, "serves twice"),
    "twice": (Twice, ROWS, "serves twice"),
    "scaled": (Scaled, ROWS, "'factor' outside of a layer"),
    "branching": (Branching, ROWS, "looks at values"),
    "hooked": (hooked, ROWS, "a hook on 0"),
    "transformer": (Transformer, normal(SAMPLES, 3, 4), "TransformerEncoderLayer"),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3)), IMAGES, "groups"),
    "layer norm": (dense(nn.LayerNorm(5)), ROWS, "LayerNorm"),
    "rows of rows": (
        lambda: nn.Sequential(nn.Linear(9, 3), nn.Flatten(), nn.Linear(6, 3)),
        SERIES,
        "a linear layer on",
    ),
}
BOTH = {name: case[:2] for name, case in (KNOWN | UNKNOWN).items()}


def matrices(model, inputs, targets, function, kind):
    """The dense matrix of the mean loss, by autograd on all samples at once."""
    model = copy.deepcopy(model).eval()
    moving = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in moving.values()]
    flat = torch.cat([p.flatten() for p in moving.values()])

    def output(theta, rows=slice(None)):
        parts = zip(moving.items(), theta.split(sizes), strict=True)
        values = {name: part.view_as(p) for (name, p), part in parts}
        return torch.func.functional_call(model, values, inputs[rows].clone())

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        if kind == "hessian":
            return torch.autograd.functional.hessian(lambda theta: function(output(theta), targets), flat)
        total = torch.zeros(len(flat), len(flat), dtype=flat.dtype)
        for i in range(SAMPLES):
            row = slice(i, i + 1)
            jacobian = torch.autograd.functional.jacobian(lambda theta, row=row: output(theta, row), flat)[0]
            at = output(flat, row).detach()
            if kind == "ggn":
                inner = torch.autograd.functional.hessian(lambda out, row=row: function(out, targets[row]), at)
                total += jacobian.T @ inner[0, :, 0] @ jacobian
            else:
                slope = torch.autograd.functional.jacobian(lambda out, row=row: function(out, targets[row]), at)[0]
                total += torch.outer(jacobian.T @ slope, jacobian.T @ slope)
    return total / SAMPLES


def general(objective):
    objective._products.way = "general: asked for"
    return objective


def close(found, expected):
    return float((found - expected).norm()) <= 1e-10 * max(float(expected.norm()), 1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BOTH)
def test_products_are_those_of_the_dense_matrix(name, kind):
    build, inputs = BOTH[name]
    model, data = seeded(build), (inputs, LABELS)
    objective, other = (Objective(model, data, precision="float64", batch_size=3) for _ in range(2))
    expected = matrices(model, inputs, LABELS, F.cross_entropy, kind)
    vectors = torch.eye(objective.n, dtype=torch.float64)
    assert close(objective.hvp(objective.theta, vectors, kind=kind), expected)
    assert close(general(other).hvp(objective.theta, vectors, kind=kind), expected)
    if name in KNOWN:
        assert objective.hvp_way == "engine"
    else:
        assert objective.hvp_way.startswith("general: ")
        assert UNKNOWN[name][2] in objective.hvp_way
