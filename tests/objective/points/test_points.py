"""Many points at once: every layer against the plain loop in float64, the choice of the way, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap import Objective, _extension, ops
from lbgap.objective.passes import Evaluator
from lbgap.objective.points import Combinations, Plan, Separate, make_plan

pytestmark = pytest.mark.usefixtures("one_thread")


class Residual(nn.Module):
    """A small residual network, written as such networks are."""

    def __init__(self, inplace=False):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(2)])
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.relu = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.stem(x))
        y = self.relu(self.norms[0](self.first(x)))
        x = F.relu(self.norms[1](self.second(y)) + x)
        x = F.adaptive_avg_pool2d(x, 1)
        return self.head(x.view(x.size(0), -1))


class LinearSkip(nn.Module):
    """A sum of two values that are linear in the combination, and of one with a value shared by all points."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.c(torch.tanh(self.a(x) + self.b(x)) + x)


class Unusual(nn.Module):
    """What has no rule."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x).sin()


def conv(*layers, outputs=36):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(outputs, 3))


FLAT = {
    "linear": lambda: nn.Linear(6, 3),
    "no bias": lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)),
    "relu in place": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(5, 3)),
    "unflatten": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)),
        nn.Conv1d(1, 2, 3, padding=1),
        nn.Unflatten(1, (2, -1)),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(12, 3),
    ),
    "gelu tanh": lambda: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)),
    "sigmoid silu": lambda: nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 5), nn.SiLU(), nn.Linear(5, 3)),
    "batch-norm": lambda: nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)
    ),
    "batch-norm first": lambda: nn.Sequential(
        nn.BatchNorm1d(6), nn.Linear(6, 5), nn.ReLU(), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3)
    ),
    "linear skip": LinearSkip,
    "unusual": Unusual,
}
IMAGES = {
    "conv": lambda: conv(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.MaxPool2d(1), outputs=36),
    "conv norm pool": lambda: conv(
        nn.Conv2d(2, 4, 3, padding="same", groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), outputs=36
    ),
    "means": lambda: conv(nn.Conv2d(2, 4, 1), nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.Tanh(), outputs=36),
    "residual": Residual,
    "residual in place": lambda: Residual(inplace=True),
}


def build(name, seed=0):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        model = {**FLAT, **IMAGES}[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
        return model


def make_data(name="linear", samples=23):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 6, 6) if name in IMAGES else (6,)
    return torch.randn(samples, *shape, generator=generator), torch.randint(3, (samples,), generator=generator)


def objective_of(name, **options):
    options = {"precision": "float64", "batch_size": 9 if options.get("batch_norm") != "batch" else 8, **options}
    return Objective(build(name), make_data(name), **options)


def ends_of(objective, j):
    generator = torch.Generator().manual_seed(1)
    steps = torch.randn(j, objective.n, generator=generator, dtype=torch.float64) * 0.3
    return (objective.theta.double() + steps).to(objective.dtype)


def coefficients_of(k, j):
    return torch.randn(k, j, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def plain(objective, points):
    return torch.stack([objective.loss(point) for point in points]) if len(points) else torch.empty(0).double()


def always(objective, monkeypatch):
    """Let it use its plan whatever the count of operations says."""
    monkeypatch.setattr("lbgap.objective.points.engine.Plan.better", lambda *_: True)


def never(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the plain way")

    monkeypatch.setattr(Evaluator, "values", refuse)


class TestValues:
    @pytest.mark.parametrize("batch_norm", ["eval", "batch"])
    @pytest.mark.parametrize("name", [*FLAT, *IMAGES])
    def test_each_layer_agrees_with_the_plain_loop(self, name, batch_norm, monkeypatch):
        objective = objective_of(name, batch_norm=batch_norm)
        ends, coefficients = ends_of(objective, 2), coefficients_of(5, 2)
        expected = plain(objective, coefficients @ ends)
        always(objective, monkeypatch)
        if name != "unusual":
            never(monkeypatch)
        torch.testing.assert_close(objective.combination_losses(coefficients, ends)[0], expected, rtol=1e-11, atol=0)
        torch.testing.assert_close(objective.losses(coefficients @ ends), expected, rtol=1e-11, atol=0)

    @pytest.mark.parametrize("j", [1, 2, 3])
    @pytest.mark.parametrize("k", [0, 1, 257])
    def test_every_number_of_points_and_ends(self, k, j):
        objective = objective_of("batch-norm")
        ends, coefficients = ends_of(objective, j), coefficients_of(k, j)
        losses, accuracies = objective.combination_losses(coefficients, ends, accuracy=True)
        torch.testing.assert_close(losses, plain(objective, coefficients @ ends), rtol=1e-11, atol=0)
        pairs = [objective.loss_and_accuracy(point)[1] for point in coefficients @ ends]
        assert accuracies.tolist() == [float(accuracy) for accuracy in pairs]
        torch.testing.assert_close(objective.losses(coefficients @ ends), losses, rtol=1e-11, atol=0)
        assert losses.shape == (k,)

    @pytest.mark.parametrize("precision", ["float32", "float64"])
    @pytest.mark.parametrize("name", ["batch-norm", "residual"])
    def test_ends_are_themselves_to_the_bit(self, name, precision):
        objective = objective_of(name, precision=precision)
        ends = ends_of(objective, 3)
        coefficients = torch.cat([torch.eye(3).double(), coefficients_of(30, 3)])
        losses, _ = objective.combination_losses(coefficients, ends)
        assert losses[:3].tolist() == plain(objective, ends).tolist()

    def test_buffers_are_combined_with_the_points_and_put_back(self, monkeypatch):
        objective = objective_of("batch-norm")
        ends, coefficients = ends_of(objective, 2), torch.tensor([[0.5, 0.5], [3.0, -2.0], [0.0, 1.0]]).double()
        own = {n: b for n, b in build("batch-norm").named_buffers() if b.is_floating_point()}
        buffers = {name: torch.stack([value, 2 * value + 1]).double() for name, value in own.items()}
        before = objective.loss(ends[0])
        expected = []
        for row in coefficients:
            blended = {name: row[0] * value[0] + row[1] * value[1] for name, value in buffers.items()}
            assert row[0] != 3 or any(float(b.min()) < 0 for name, b in blended.items() if name.endswith("var"))
            objective.set_buffers({n: b.clamp_min(0) if n.endswith("var") else b for n, b in blended.items()})
            expected.append(objective.loss(row @ ends))
        objective.set_buffers(own)
        assert objective.loss(ends[0]) == before
        for _ in range(2):  # the plain way, then the other
            losses, _ = objective.combination_losses(coefficients, ends, buffers=buffers)
            torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-9, atol=0)
            assert objective.loss(ends[0]) == before
            always(objective, monkeypatch)

    def test_parameters_that_do_not_move(self, monkeypatch):
        always(None, monkeypatch)
        for parameters in ("weights", "0.bias", "3", "6.weight"):
            objective = objective_of("batch-norm", parameters=parameters)
            ends, coefficients = ends_of(objective, 2), coefficients_of(4, 2)
            losses, _ = objective.combination_losses(coefficients, ends)
            torch.testing.assert_close(losses, plain(objective, coefficients @ ends), rtol=1e-11, atol=0)
            torch.testing.assert_close(objective.losses(coefficients @ ends), losses, rtol=1e-11, atol=0)

    def test_other_losses(self, monkeypatch):
        always(None, monkeypatch)
        inputs, targets = make_data()
        soft = torch.rand(23, 3, generator=torch.Generator().manual_seed(3)).softmax(1)
        cases = [(soft, "cross_entropy"), (soft, "mse"), (targets, lambda o, t: F.nll_loss(o.log_softmax(1), t))]
        for target, loss in cases:
            objective = Objective(build("gelu tanh"), (inputs, target), loss=loss, precision="float64")
            ends, coefficients = ends_of(objective, 2), coefficients_of(4, 2)
            losses, _ = objective.combination_losses(coefficients, ends)
            torch.testing.assert_close(losses, plain(objective, coefficients @ ends), rtol=1e-11, atol=0)

    def test_outputs_with_more_dimensions(self, monkeypatch):
        always(None, monkeypatch)
        inputs = torch.randn(12, 4, 6, generator=torch.Generator().manual_seed(3))
        for loss, target in (("mse", inputs[..., :3]), ("mse", inputs[..., :3].contiguous())):
            model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
            objective = Objective(model, (inputs, target), loss=loss, precision="float64")
            ends, coefficients = ends_of(objective, 2), coefficients_of(4, 2)
            losses, _ = objective.combination_losses(coefficients, ends)
            torch.testing.assert_close(losses, plain(objective, coefficients @ ends), rtol=1e-11, atol=0)

    def test_losses_that_overflow_are_returned(self, monkeypatch):
        always(None, monkeypatch)
        objective = objective_of("relu in place", precision="float32")
        ends = ends_of(objective, 2)
        coefficients = torch.tensor([[1e25, 1e25], [0.5, 0.5], [1e30, -1e30]]).double()
        losses, _ = objective.combination_losses(coefficients, ends)
        assert losses.isfinite().tolist() == [False, True, False]
        assert not losses[0].isfinite()
        assert not math.isfinite(float(objective.losses((coefficients @ ends.double()).float())[0]))

    def test_the_same_call_gives_the_same_bits(self):
        objective = objective_of("batch-norm", precision="float32")
        ends, coefficients = ends_of(objective, 3), coefficients_of(40, 3)
        one, two = (objective.combination_losses(coefficients, ends)[0] for _ in range(2))
        assert torch.equal(one, two)

    def test_bfloat16_is_close(self, monkeypatch):
        monkeypatch.setattr("lbgap.system.device.bfloat16_products", lambda _: True)
        mixed = objective_of("batch-norm", precision="mixed")
        exact = objective_of("batch-norm", precision="float32")
        ends, coefficients = ends_of(mixed, 2), coefficients_of(30, 2)
        losses, _ = mixed.combination_losses(coefficients, ends)
        expected, _ = exact.combination_losses(coefficients, ends)
        torch.testing.assert_close(losses, expected, rtol=0.05, atol=0)
        assert not torch.equal(losses, expected)

    def test_what_cannot_run_in_bfloat16_says_so(self, monkeypatch):
        monkeypatch.setattr("lbgap.system.device.bfloat16_products", lambda _: True)
        mixed, exact = (objective_of("unusual", precision=precision) for precision in ("mixed", "float32"))
        ends, coefficients = ends_of(mixed, 2), coefficients_of(3, 2)
        found = [objective.combination_losses(coefficients, ends)[0] for objective in (mixed, exact)]
        assert torch.equal(*found)
        assert mixed.notes == ["combinations ran in float32: the operation 'sin'"]

    def test_points_take_one_pass_of_the_data_each_in_the_count(self):
        objective = objective_of("batch-norm")
        objective.combination_losses(coefficients_of(7, 2), ends_of(objective, 2))
        assert objective.evaluations == 7


needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")


class Wide(nn.Module):
    """A chain but for a sum of two of its values."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.a(x).relu()
        return self.c(F.relu(self.b(x)) + x)


def deep(hidden):
    pairs = [(nn.Linear(6, 6), nn.ReLU()) for _ in range(hidden)]
    return nn.Sequential(*(layer for pair in pairs for layer in pair), nn.Linear(6, 3))


def norm_first():
    return nn.Sequential(nn.BatchNorm1d(6).eval(), *build("relu in place"))


CHAINS = {  # by the widths of their layers
    "linear": (lambda: build("linear"), [3]),
    "no bias": (lambda: build("no bias"), [5, 3]),
    "relu in place": (lambda: build("relu in place"), [5, 3]),
    "flattened": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 128), nn.ReLU(), nn.Linear(128, 3)), [128, 3]),
    "deep": (lambda: deep(3), [6, 6, 6, 3]),
    "fixed beginning": (
        lambda: nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)),
        [5, 3],
    ),
}
NO_CHAINS = {
    "tanh": lambda: build("gelu tanh"),
    "batch-norm": lambda: build("batch-norm"),
    "batch-norm before": norm_first,
    "too wide": lambda: nn.Sequential(nn.Linear(6, 129), nn.ReLU(), nn.Linear(129, 3)),
    "too deep": lambda: deep(64),
    "linear twice": lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)),
    "relu last": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU()),
    "sum": Wide,
}


@needs_native
class TestChain:
    """Narrow networks, by the op that evaluates them tile by tile."""

    @pytest.fixture
    def calls(self, monkeypatch):
        """The names of the ops on points that were called."""
        names = []
        for name in ("blend_points", "chain_points", "xent_points"):
            op = getattr(ops, name)
            monkeypatch.setattr(ops, name, lambda *args, op=op, name=name: (names.append(name), op(*args))[1])
        return names

    @pytest.mark.parametrize("spans", [True, False])
    @pytest.mark.parametrize("name", CHAINS)
    def test_it_is_found_and_agrees_with_the_plain_loop(self, name, spans, calls, monkeypatch):
        build_one, widths = CHAINS[name]
        parameters = ["2", "4"] if name == "fixed beginning" else "all"
        objective = Objective(build_one(), make_data(), precision="float64", batch_size=9, parameters=parameters)
        ends, coefficients = ends_of(objective, 2), coefficients_of(130, 2)
        pairs = [objective.loss_and_accuracy(point) for point in coefficients @ ends]
        expected, accuracies = (torch.stack(part) for part in zip(*pairs, strict=True))
        always(objective, monkeypatch)
        never(monkeypatch)
        if spans:
            losses, found = objective.combination_losses(coefficients, ends, accuracy=True)
            assert torch.equal(found, accuracies)
        else:
            losses = objective.losses(coefficients @ ends)
        torch.testing.assert_close(losses, expected, rtol=1e-11, atol=0)
        assert set(calls) == {"chain_points"}
        assert objective.losses_way == "tile by tile"
        assert objective._many._plans[spans].chain.widths == widths

    @pytest.mark.parametrize("name", NO_CHAINS)
    def test_other_networks_are_evaluated_layer_by_layer(self, name, calls, monkeypatch):
        objective = Objective(NO_CHAINS[name](), make_data(), precision="float64")
        ends, coefficients = ends_of(objective, 2), coefficients_of(5, 2)
        expected = plain(objective, coefficients @ ends)
        always(objective, monkeypatch)
        losses, _ = objective.combination_losses(coefficients, ends)
        torch.testing.assert_close(losses, expected, rtol=1e-11, atol=0)
        assert objective._many._plans[True].chain is None
        assert set(calls) == {"blend_points", "xent_points"}

    def test_a_layer_on_several_rows_of_a_sample_is_no_chain(self, monkeypatch):
        always(None, monkeypatch)
        inputs, targets = torch.randn(12, 2, 6), torch.arange(12) % 6
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.Flatten())
        objective = Objective(model, (inputs, targets), precision="float64")
        ends, coefficients = ends_of(objective, 2), coefficients_of(4, 2)
        losses, _ = objective.combination_losses(coefficients, ends)
        torch.testing.assert_close(losses, plain(objective, coefficients @ ends), rtol=1e-11, atol=0)
        assert objective._many._plans[True].chain is None

    @pytest.mark.parametrize("options", [{"backend": "torch"}, {"loss": "mse"}, {"precision": "mixed"}])
    def test_what_the_op_does_not_do_is_left_to_the_layers(self, options, calls, monkeypatch):
        monkeypatch.setattr("lbgap.system.device.bfloat16_products", lambda _: True)
        inputs, targets = make_data()
        targets = inputs[:, :3] if "loss" in options else targets
        objective = Objective(build("relu in place"), (inputs, targets), **{"precision": "float64", **options})
        always(objective, monkeypatch)
        ends, coefficients = ends_of(objective, 2), coefficients_of(5, 2)
        losses, _ = objective.combination_losses(coefficients, ends)
        rounding = 0.05 if "precision" in options else 1e-11
        torch.testing.assert_close(losses, plain(objective, coefficients.to(ends) @ ends), rtol=rounding, atol=0)
        assert "chain_points" not in calls
        assert "backend" not in options or not calls

    def test_work_counts_its_products(self):
        plan = make_plan(objective_of("relu in place")._evaluator.flat, make_data()[0][:4].double(), True)
        found = plan.chain_work(k=100, j=2, samples=1000, batches=2)
        first, last, blend = 6 * 5, 5 * 3, 2 * 5
        assert found.products == 2 * (1000 * (2 * first + 100 * (blend + last)) + 100 * 2 * 2 * (15 + 3))
        assert (found.moved, found.calls) == (0, 2 * 2)
        apart = plan.chain_work(k=129, j=0, samples=1000, batches=2)
        assert apart.calls == 2 * 2 * 2
        assert apart.moved == 129 * 2 * 18

    @pytest.mark.parametrize(
        ("k", "j", "samples", "chosen"),
        [
            (1000, 2, 10**5, True),
            (2, 2, 100, True),  # fewer calls
            (2, 7, 10**6, False),  # more products in the first layer than the points have
            (1000, 50, 10**5, False),  # blending the first layer's outputs costs more than its products
            (1000, 50, 1, True),
        ],
    )
    def test_it_is_chosen_where_it_counts_less_than_the_plain_loop(self, k, j, samples, chosen):
        plan = make_plan(objective_of("relu in place")._evaluator.flat, make_data()[0][:4].double(), True)
        source = Combinations(torch.zeros(k, j).double(), torch.zeros(j, 1))
        assert plan.better(source, samples, 1, 1, True) == chosen
        assert (plan.chain_work(k, j, samples, 1).total < plan.plain_work(k, samples, 1).total) == chosen


class TestChoice:
    def plan(self, name, spans=True):
        objective = objective_of(name)
        return make_plan(objective._evaluator.flat, make_data(name)[0][:4].double(), spans)

    def test_work_counts_the_products(self):
        plan = self.plan("gelu tanh")
        found = plan.work(k=100, j=2, samples=50, batches=1, chunk=10)
        first, later = 2 * 6 * 5, 2 * (5 * 5 + 5 * 3)
        blends = 100 * 50 * 2 * 2 * 5
        assert found.products == 50 * (2 * first + 100 * later) + blends
        assert found.calls == 1 + 10 * 4
        assert plan.plain_work(100, 50, 1).products == 50 * 100 * (first + later)
        assert plan.plain_work(100, 50, 1).calls == 500

    def test_few_points_of_many_ends_are_evaluated_one_by_one(self):
        plan = self.plan("gelu tanh")
        ends = torch.zeros(5, 1)
        for k, better in ((2, False), (100, True)):
            source = Combinations(torch.zeros(k, 5).double(), ends)
            assert plan.better(source, 10**6, 400, chunk=1) == better

    def test_convolutions_with_weights_of_their_own_gain_nothing(self):
        plan = self.plan("conv norm pool", spans=False)
        assert plan.loops
        source = Separate(torch.zeros(9, 1))
        assert plan.chunk(10, source, 2**40) == 1
        assert not plan.better(source, 1000, 10, 1)

    def test_points_at_once_fit_in_the_budget(self):
        plan, source = self.plan("batch-norm"), Combinations(torch.zeros(9, 2).double(), torch.zeros(2, 1))
        sizes = [plan.chunk(100, source, budget) for budget in (1, 10**5, 10**6)]
        assert sizes[0] == 1
        assert 1 < sizes[1] < sizes[2]
        # Of float32 each point has 5 + 4 + 3 numbers a sample and those of its weights, beside the ends' products.
        assert sizes[2] <= 10**6 / (4 * 100 * (5 + 4 + 3))

    def test_one_point_is_the_plain_loss(self):
        objective = objective_of("batch-norm", precision="float32")
        point = ends_of(objective, 1)
        assert float(objective.losses(point)) == float(objective.loss(point[0]))


def test_where_memory_runs_out_the_batches_are_halved(monkeypatch):
    objective, smaller = objective_of("batch-norm", batch_size=20), objective_of("batch-norm", batch_size=10)
    ends, coefficients = ends_of(objective, 2), coefficients_of(30, 2)
    sweep = Plan.sweep

    def hungry(plan, source, batches, loss, **options):
        kept = list(batches)
        if len(kept[0].inputs) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sweep(plan, source, kept, loss, **options)

    monkeypatch.setattr(Plan, "sweep", hungry)
    found, expected = (one.combination_losses(coefficients, ends)[0] for one in (objective, smaller))
    assert torch.equal(found, expected)
    assert objective.batch_size == 10
    assert objective.notes == ["out of memory: micro-batches were halved, to 10 samples"]


class TestFallback:
    def plans(self, model, data=None):
        objective = Objective(model, data or make_data(), precision="float64")
        ends, coefficients = ends_of(objective, 2), coefficients_of(64, 2)
        losses, _ = objective.combination_losses(coefficients, ends)
        torch.testing.assert_close(losses, plain(objective, coefficients @ ends), rtol=1e-11, atol=0)
        return objective._many._plans[True]

    def test_what_has_no_rule_takes_the_plain_way(self):
        assert "sin" in self.plans(Unusual())
        hooked = build("gelu tanh")
        hooked[1].register_forward_hook(lambda *_: None)
        assert "hook on 1" in self.plans(hooked)
        normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
        assert "parametri" in self.plans(normed)

    def test_a_layer_that_writes_into_what_another_reads(self):
        class Overwriting(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(6, 3), nn.Linear(3, 3)

            def forward(self, x):
                y = self.a(x)
                return self.b(F.relu(y, inplace=True)) + y

        assert "writes into" in self.plans(Overwriting())

    def test_a_layer_that_serves_twice(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

            def forward(self, x):
                return self.b(torch.relu(self.a(torch.relu(self.a(x)))))

        assert not isinstance(self.plans(Twice()), str)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficients": torch.zeros(3)}, r"coefficients must be \(k, 2\), one an end, got \(3,\)"),
        ({"coefficients": torch.zeros(3, 3)}, r"coefficients must be \(k, 2\)"),
        ({"coefficients": torch.full((3, 2), math.nan)}, "coefficients must be finite"),
        ({"ends": torch.zeros(5)}, r"ends must be \(j, .*\), got shape \(5,\)"),
        ({"ends": torch.zeros(2, 5)}, r"ends must be \(j, .*\), got shape \(2, 5\)"),
        ({"buffers": {"absent": torch.zeros(2, 1)}}, "the model has no buffer 'absent'"),
        ({"buffers": {"1.running_var": torch.zeros(2, 1)}}, r"no buffer '1.running_var' of shape \(1,\) for 2 ends"),
    ],
)
def test_what_it_refuses(change, message):
    objective = objective_of("batch-norm")
    arguments = {"coefficients": coefficients_of(3, 2), "ends": ends_of(objective, 2), **change}
    with pytest.raises(ValueError, match=message):
        objective.combination_losses(**arguments)


def test_other_types_and_accuracy_of_a_regression_are_refused():
    objective = objective_of("linear")
    with pytest.raises(ValueError, match=r"ends must be .* torch.float64"):
        objective.combination_losses(coefficients_of(3, 2), ends_of(objective, 2).float())
    with pytest.raises(ValueError, match=r"points must be .* torch.float64"):
        objective.losses(ends_of(objective, 2).float())
    inputs, _ = make_data()
    regression = Objective(build("linear"), (inputs, inputs[:, :3]), loss="mse")
    with pytest.raises(ValueError, match="accuracy needs class indices"):
        regression.combination_losses(coefficients_of(3, 1), ends_of(regression, 1), accuracy=True)


def test_how_points_were_evaluated_is_told(monkeypatch):
    objective = Objective(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), make_data(), backend="torch")
    assert objective.losses_way == "not used yet"
    ends = ends_of(objective, 2)
    objective.losses(ends[:1])
    assert objective.losses_way == "one after the other"
    always(objective, monkeypatch)
    objective.combination_losses(coefficients_of(9, 2), ends)
    assert objective.losses_way == "layer by layer"


def test_a_layer_applied_to_several_rows_of_a_sample_is_no_chain():
    network = nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (2, 3)), nn.ReLU(), nn.Linear(3, 2), nn.Flatten())
    objective = Objective(network, make_data(), precision="float64")
    points = objective.theta + torch.randn(9, objective.n, dtype=torch.float64)
    expected = torch.stack([objective.loss(point) for point in points])
    torch.testing.assert_close(objective.losses(points), expected, rtol=1e-11, atol=0)
