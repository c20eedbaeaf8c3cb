"""The caller's default device and default dtype change nothing: neither what lbgap computes, nor the defaults."""

import ast
import contextlib
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._device import _device_constructors

import lbgap
from lbgap import Objective, datasets, networks, ops, plotting, reference
from lbgap.sweeps.definition import from_dict
from lbgap.sweeps.judge import judge
from lbgap.sweeps.trial import run_trial
from tests.gpu import calls
from tests.measures.test_every_measure import MEASURES

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(build, seed=0):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return build()


def network(seed=0):
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), seed)


def normed(seed=0):
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)), seed)


class Attending(nn.Module):
    """Has layers of each kind that the passes treat in a way of its own, and takes the general way of products."""

    def __init__(self):
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 8))
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x).unflatten(1, (2, 4))
        return self.last(self.attend(x, x, x, need_weights=False)[0].mean(1))


def data(samples=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 4, generator=generator)
    return inputs, torch.randint(3, (samples,), generator=generator)


class Pairs(torch.utils.data.Dataset):
    """Targets as Python numbers."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets.tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.inputs[index], self.targets[index]


DATA, TEST = data(), data(12, 1)
MODELS, NORMED = [network(seed) for seed in range(4)], [normed(seed) for seed in range(4)]
IMAGES = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


def convolution():
    return seeded(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)))


def plain(found):
    """A result as what can be compared, without times."""
    if hasattr(found, "to_dict"):
        found = found.to_dict()
    if isinstance(found, dict):
        return {name: plain(value) for name, value in found.items() if name not in ("seconds", "started")}
    if isinstance(found, list | tuple):
        return [plain(value) for value in found]
    if isinstance(found, nn.Module):
        found = dict(found.state_dict())
        return plain(found)
    if isinstance(found, torch.Tensor):
        assert found.device.type == "cpu"
        return str(found.dtype), found.shape, found.detach().numpy().tobytes()
    return found


def evaluated(model, samples, **options):
    """All that an objective evaluates."""
    objective = Objective(model, samples, **options)
    theta = objective.theta
    points = torch.stack((theta, theta * 1.01, theta - 0.01, theta * 0.5))
    found = [theta, objective.loss(theta), *objective.loss_and_accuracy(theta), *objective.loss_and_gradient(theta)]
    found += [*objective.direction(theta), *objective.log_probability_direction(theta, 1), objective.losses(points)]
    found += objective.combination_losses(DATA[0].new_ones(2, 4) / 4, points, accuracy=True)
    if not objective.coupled:
        found += [objective.hvp(theta, points, kind=kind) for kind in ("hessian", "ggn", "fisher")]
        found += [objective.curvatures(theta, points), *objective.output_tangents(theta, points[1])]
        found += [objective.directional_derivatives(theta, points[1])]
        found += [objective.sample(7, seed=1).loss(theta), objective.subset(5).loss(theta)]
        found += [objective.hvp(theta, points, blocks=True)]
        found += [objective.some(objective.names[:1]).loss_and_gradient(theta[: objective.some(objective.names[:1]).n])]
    manifold = objective.manifold(3, seed=1, distribution="unit")
    found += [*manifold.loss_and_gradient(manifold.theta), manifold.point(manifold.theta), objective.digest()]
    return [*found, objective.settings(), objective.model()]


OBJECTIVES = {
    "dense": partial(evaluated, network(), DATA),
    "float64": partial(evaluated, network(), DATA, precision="float64"),
    "mixed": partial(evaluated, network(), DATA, precision="mixed"),
    "torch": partial(evaluated, network(), DATA, backend="torch"),
    "batch-norm": partial(evaluated, normed(), DATA),
    "batch-norm of the batch": partial(evaluated, normed(), DATA, batch_norm="batch", batch_size=20),
    "convolution": partial(evaluated, convolution(), IMAGES),
    "attention": partial(evaluated, seeded(Attending), DATA),
    "a callable": partial(
        evaluated, network(), DATA, loss=lambda output, target: nn.functional.cross_entropy(output, target)
    ),
    "a data set": lambda: evaluated(MODELS[0], Pairs(*DATA)),
}
SEARCHES = {
    name: partial(lbgap.fast_sharpness, network(), DATA, **options)
    for name, options in {
        "apgd": {"method": "apgd", "iterations": 3},
        "lbfgsb": {"method": "lbfgsb", "iterations": 3},
        "lbfgsb in torch": {"method": "lbfgsb", "iterations": 3, "backend": "torch"},
        "scipy": {"method": "scipy", "iterations": 3},
        "manifold": {"subspace": 3, "trials": 2},
        "samples": {"samples": 20, "scout": 8, "restarts": 3},
    }.items()
}
SPECTRA = {
    "eigenvalues": partial(lbgap.eigenvalues, network(), DATA, k=2),
    "density": partial(lbgap.spectral_density, network(), DATA, steps=5, max_products=15),
    "diagonal": partial(lbgap.hessian_diagonal, network(), DATA, max_products=6),
    "hutch++": partial(lbgap.hessian_trace, network(), DATA, method="hutch++", max_products=24),
    "mass": partial(lbgap.positive_mass, network(), DATA, max_products=40, steps=5),
    "layers": partial(lbgap.layer_sharpness, network(), DATA),
    "curve": partial(lbgap.sharpness_curve, network(), DATA, epsilons=(1e-3, 1e-2)),
    "asymmetry": partial(lbgap.asymmetry, network(), DATA, top=1, random=1),
}
LANDSCAPES = {
    "line": lambda models: lbgap.line(models[1], models[2], DATA, points=5, test_data=TEST),
    "curve": lambda models: lbgap.curve(models[1], models[2], DATA, points=5, test_data=TEST),
    "around": lambda models: lbgap.plane(models[1], DATA, points=(9, 8), refine=0.05),
    "hessian": lambda models: lbgap.plane(models[1], DATA, points=3, directions="eigenvectors", normalise="none"),
    "through": lambda models: lbgap.plane(models[1:], DATA, points=3, test_data=TEST),
    "trajectory": lambda models: lbgap.plane(models, DATA, points=3, directions="pca"),
    "recalibrated": lambda models: lbgap.line(models[1], models[2], DATA, points=3, batch_norm="recalibrate"),
    "polygon": lambda models: lbgap.connect(models[1], models[2], DATA, epochs=1, points=3, kind="polygon"),
    "bezier": lambda models: lbgap.connect(models[1], models[2], DATA, epochs=1, points=3, train_batch_size=16),
}


def trained(**options):
    run = lbgap.train(NORMED[0], DATA, test_data=TEST, epochs=3, batch_size=16, **options)
    return run.model, [plain(vars(metric) if hasattr(metric, "__dict__") else metric) for metric in run.metrics]


TRAININGS = {
    name: partial(trained, optimizer=name)
    for name in ("Adam", "SGD", "AdamW", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax", "ASGD", "Rprop", "Adafactor")
} | {
    name: partial(trained, remedies=name)
    for name in (
        *("swa:start=2", "sam", "asam", "ghost:size=8", "conservative", "smoothout:radius=1e-3", "robust:epsilon=1e-3"),
        *(
            "adversarial:epsilon=1e-3",
            "stability",
            "local-sgd",
            "batches:2=8",
            "grow:every=1,limit=32",
            "sqrt-rate",
            "linear-rate",
        ),
    )
}


def together():
    runs = lbgap.train_together(MODELS[:2], DATA, seeds=(0, 1), epochs=2, batch_size=16)
    return [(run.model, run.metrics[-1]["train_loss"]) for run in runs]


def in_a_folder():
    """A run that is read from its folder."""
    with tempfile.TemporaryDirectory() as folder:
        lbgap.train(NORMED[0], DATA, epochs=1, batch_size=16, out=f"{folder}/run")
        run = lbgap.read_run(f"{folder}/run")
        return run.metrics[-1]["train_loss"]


def swept():
    """The trial of a sweep, judged before."""
    record = {
        "seeds": [0],
        "base": {"data": "digits", "hidden": [4], "epochs": 1},
        "grid": {"batch_size": ["50%"]},
        "sharpness": [{"epsilon": 1e-3, "iterations": 2}],
    }
    definition = from_dict(record, "sweep")
    with tempfile.TemporaryDirectory() as folder:
        digests = judge(definition, None)
        found = run_trial(definition, definition.trials()[0], Path(folder), None, digests, lambda: None)
    return {name: value for name, value in found.items() if "loss" in name or "accuracy" in name}, [
        {name: value for name, value in each.items() if name != "settings"} for each in found["sharpness"].values()
    ]


def drawn():
    """Figures of what was measured."""
    line = lbgap.line(*MODELS[:2], DATA, points=5)
    density = lbgap.spectral_density(MODELS[0], DATA, steps=5, max_products=15)
    around = lbgap.plane(MODELS[0], DATA, points=3)
    figures = [plotting.plot_line(line), plotting.plot_densities({"one": density}), plotting.plot_plane(around)]
    figures.append(plotting.plot_surface(around))
    return [[[list(map(float, each.get_ydata())) for each in axes.lines] for axes in figure.axes] for figure in figures]


OTHERS = {
    "together": together,
    "a run in a folder": in_a_folder,
    "a trial of a sweep": swept,
    "figures": drawn,
    "networks": lambda: [
        networks.mlp(4, [5], 3, seed=0, initialisation="uniform"),
        networks.build(networks.specify("c1", (3, 8, 8), 4, seed=0, initialisation="torch")),
    ],
    "mnist1d": lambda: list(datasets.mnist1d(samples=50).train),
    "digits": lambda: list(datasets.digits().test),
}
CASES = {
    f"{group}: {name}": case
    for group, cases in {
        "objective": OBJECTIVES,
        "measure": {name: partial(measure, network(), DATA) for name, measure in MEASURES.items()},
        "search": SEARCHES,
        "matrix": SPECTRA,
        "landscape": {name: partial(landscape, MODELS) for name, landscape in LANDSCAPES.items()},
        "with batch-norm": {name: partial(LANDSCAPES[name], NORMED) for name in ("line", "recalibrated", "bezier")},
        "training": TRAININGS,
        "other": OTHERS,
    }.items()
    for name, case in cases.items()
}


@contextlib.contextmanager
def default_device():
    """As ``torch.set_default_device("cuda")`` with model and data on the CPU, on a machine without a GPU."""
    torch.set_default_device("meta")
    try:
        yield
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


DEFAULTS = {"device": default_device, "dtype": default_dtype}


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("name", CASES)
def test_nothing_changes(name, default):
    expected = plain(CASES[name]())
    with DEFAULTS[default]():
        found = CASES[name]()
    assert plain(found) == expected


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("kind", [ops, reference], ids=["native", "reference"])
def test_ops_are_the_same(kind, default, monkeypatch):
    monkeypatch.setattr(calls, "ops", kind)
    every = calls.every_op(*calls.draw("cpu"))
    for name, call in every.items():
        expected = plain(call())
        with DEFAULTS[default]():
            assert plain(call()) == expected, name


# Read, not run: what no test above calls.

CONSTRUCTORS = {f"torch.{made.__name__}" for made in _device_constructors() if made.__module__ != "torch.fft"}
COUNTING = {"torch.arange", "torch.randint", "torch.randperm", "torch.as_tensor", "torch.asarray"}
"""Whose dtype does not follow the default one where they are given whole numbers, or arrays."""


def creations():
    """Calls that make a tensor of numbers, as (where, name, keywords)."""
    root = Path(lbgap.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in CONSTRUCTORS:
                keywords = {keyword.arg for keyword in node.keywords}
                if node.args and ast.unparse(node.args[0]).startswith("int("):
                    keywords.add("dtype")  # follows from the number
                yield f"{path.relative_to(root)}:{node.lineno} {name}", name, keywords


def test_each_new_tensor_says_where_it_is():
    found = list(creations())
    assert len(found) > 50
    assert not [where for where, _, keywords in found if not keywords & {"device", None}]


def test_each_new_tensor_of_floats_says_of_which_kind():
    assert not [
        where for where, name, keywords in creations() if name not in COUNTING and not keywords & {"dtype", None}
    ]
