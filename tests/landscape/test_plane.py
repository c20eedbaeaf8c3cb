"""Planes of the loss: their values, directions, refinement, resuming, and what they refuse."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap import Objective
from lbgap.landscape import ends
from lbgap.landscape.refine import refine
from lbgap.system import files

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(seed, width=8, activation=nn.ReLU):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        norm = nn.BatchNorm1d(width)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        return nn.Sequential(nn.Linear(6, width), norm, activation(), nn.Dropout(0.5), nn.Linear(width, 3))


def make_data(samples=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 6, generator=generator), torch.randint(3, (samples,), generator=generator)


def flat(model):
    return torch.cat([parameter.detach().double().reshape(-1) for parameter in model.parameters()])


def moved(model, theta, buffers=None):
    """A float64 copy of a model with other parameters, and buffers where some are given."""
    other = make_model(0).double().eval()
    other.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    nn.utils.vector_to_parameters(theta, other.parameters())
    for name, value in (buffers or {}).items():
        other.get_buffer(name).copy_(value)
    return other.eval()


def scores(model, data):
    with torch.no_grad():
        outputs = model(data[0].double())
    return F.cross_entropy(outputs, data[1]).item(), 100 * (outputs.argmax(1) == data[1]).double().mean().item()


def check_values(found, model_at, data, part="train"):
    """Compare a plane with a plain loop over its points."""
    losses, accuracies = getattr(found, f"{part}_loss"), getattr(found, f"{part}_accuracy")
    assert (len(losses), len(losses[0])) == (len(found.y), len(found.x))
    for row, y in enumerate(found.y):
        for column, x in enumerate(found.x):
            loss, accuracy = scores(model_at(x, y), data)
            assert losses[row][column] == pytest.approx(loss, rel=1e-11)
            assert accuracies[row][column] == pytest.approx(accuracy)


class TestThroughThree:
    def basis(self, models):
        first, second, third = (flat(model).numpy() for model in models)
        q, _ = np.linalg.qr(np.stack((second - first, third - first), 1))
        q *= np.sign([q[:, 0] @ (second - first), q[:, 1] @ (third - first)])
        return torch.tensor(first), torch.tensor(q[:, 0]), torch.tensor(q[:, 1])

    def test_coordinates_are_euclidean_distances_and_the_values_those_of_a_plain_loop(self):
        models, data, test = [make_model(seed) for seed in (1, 2, 3)], make_data(), make_data(20, seed=1)
        found = lbgap.plane(models, data, test_data=test, points=(4, 3), batch_norm="eval", precision="float64")
        origin, u, v = self.basis(models)
        places = [(float((flat(m) - origin) @ u), float((flat(m) - origin) @ v)) for m in models]
        assert [name for name, *_ in found.marks] == ["first", "second", "third"]
        assert [x for mark in found.marks for x in mark[1:]] == pytest.approx([x for p in places for x in p], abs=1e-12)

        def model_at(x, y):
            share = np.linalg.solve(np.array([places[1], places[2]]).T, [x, y])
            weights = [1 - share.sum(), *share]
            names = ("1.running_mean", "1.running_var")
            buffers = {
                name: sum(w * m.get_buffer(name).double() for w, m in zip(weights, models, strict=True))
                for name in names
            }
            buffers["1.running_var"].clamp_(min=0)
            return moved(models[0], origin + x * u + y * v, buffers)

        check_values(found, model_at, data)
        check_values(found, model_at, test, "test")
        assert found.axes == ("first to second, Euclidean distance", "line to third, Euclidean distance")
        assert found.evaluated_points == 12
        assert all(all(row) for row in found.evaluated)
        assert (found.path, found.eigenvalues, found.explained) == (None, None, None)

    def test_the_range_holds_the_minimizers_with_a_margin(self):
        models = [make_model(seed) for seed in (1, 2, 3)]
        found = lbgap.plane(models, make_data(), points=2)
        xs, ys = zip(*((x, y) for _, x, y in found.marks), strict=True)
        width, height = max(xs) - min(xs), max(ys) - min(ys)
        assert found.x == pytest.approx((min(xs) - 0.2 * width, max(xs) + 0.2 * width))
        assert found.y == pytest.approx((min(ys) - 0.2 * height, max(ys) + 0.2 * height))
        given = lbgap.plane(models, make_data(), points=(3, 2), x_range=(-1, 1), y_range=[0, 2])
        assert (given.x, given.y) == ((-1, 0, 1), (0, 2))
        assert given.settings["x_range"] == [-1, 1]

    @pytest.mark.parametrize("precision", ["float32", "float64"])
    def test_the_minimizers_have_their_own_losses_to_the_bit(self, precision):
        models, data = [make_model(seed) for seed in (1, 2, 3)], make_data()
        found = lbgap.plane(models, data, points=(5, 2), batch_norm="eval", precision=precision, y_range=(0, 1))
        assert found.settings["ends_checked"] == "all"
        for model, loss in zip(models, found.mark_loss, strict=True):
            objective = Objective(model, data, precision=precision)
            assert loss == float(objective.loss(objective.theta))

    def test_a_point_of_the_grid_that_is_a_minimizer_has_its_loss_to_the_bit(self):
        models, data = [make_model(seed) for seed in (1, 2, 3)], make_data()
        length = float((flat(models[1]) - flat(models[0])).norm())
        found = lbgap.plane(models, data, points=(4, 2), x_range=(-length, 2 * length), y_range=(0, 1))
        assert found.train_loss[0][1:3] == found.mark_loss[:2]

    @pytest.mark.parametrize(
        ("mode", "checked"), [("batch", "all"), ("freeze", "first: statistics"), ("recalibrate", "none: statistics")]
    )
    def test_other_statistics(self, mode, checked):
        models, data, test = [make_model(seed) for seed in (1, 2, 3)], make_data(), make_data(20, seed=1)
        found = lbgap.plane(models, data, test_data=test, points=(3, 2), batch_norm=mode, precision="float64")
        origin, u, v = self.basis(models)

        def model_at(x, y, samples):
            theta = origin + x * u + y * v
            if mode == "freeze":
                return moved(models[0], theta)
            model = moved(models[0], theta)
            hidden = model[0]((data if mode == "recalibrate" else samples)[0].double()).detach()
            model[1].running_mean.copy_(hidden.mean(0))
            model[1].running_var.copy_(hidden.var(0, unbiased=mode == "recalibrate"))
            return model

        check_values(found, lambda x, y: model_at(x, y, data), data)
        check_values(found, lambda x, y: model_at(x, y, test), test, "test")
        assert found.settings["batch_norm"] == mode
        assert found.settings["ends_checked"].startswith(checked)

    def test_a_model_that_keeps_more_than_parameters_and_buffers_is_refused(self):
        class Scaled(nn.Linear):
            scale = 1.0

            def forward(self, inputs):
                return super().forward(inputs) * self.scale

        models = [Scaled(6, 3) for _ in range(3)]
        models[2].scale = 3.0
        with pytest.raises(ValueError, match=r"the loss of a few samples is .* but the third model's own is"):
            lbgap.plane(models, make_data(), points=2)


class TestDirections:
    def test_filter_normalisation(self):
        model, data = make_model(1), make_data()
        found = lbgap.plane(model, data, points=(3, 2), batch_norm="eval", precision="float64", seed=5)
        generator = torch.Generator().manual_seed(5)
        rows = [torch.randn(flat(model).numel(), generator=generator, dtype=torch.float64) for _ in range(2)]
        for row in rows:
            first = 0
            for parameter in model.parameters():
                part = row[first : first + parameter.numel()].view(parameter.shape)
                first += parameter.numel()
                for direction, weight in zip(part, parameter.detach().double(), strict=True):
                    direction.mul_(weight.norm() / direction.norm() if parameter.dim() > 1 else 0)
        check_values(found, lambda x, y: moved(model, flat(model) + x * rows[0] + y * rows[1]), data)
        assert found.marks == (("minimizer", 0.0, 0.0),)
        assert (found.x, found.y) == ((-1, 0, 1), (-1, 1))
        assert found.axes[0] == "random direction 1, in filter norms"
        assert found.settings["statistics"] == "of the minimizer everywhere"

    @pytest.mark.parametrize("normalise", ["layer", "none"])
    def test_other_normalisations(self, normalise):
        model, data = make_model(1), make_data()
        options = {"points": 2, "batch_norm": "eval", "precision": "float64", "normalise": normalise}
        found = lbgap.plane(model, data, **options)
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randn(flat(model).numel(), generator=generator, dtype=torch.float64) for _ in range(2)]
        for row in rows:
            if normalise == "none":
                row *= flat(model).norm() / row.norm()
            else:
                parts = row.split([parameter.numel() for parameter in model.parameters()])
                for part, parameter in zip(parts, model.parameters(), strict=True):
                    part *= parameter.detach().double().norm() / part.norm() if parameter.dim() > 1 else 0
        check_values(found, lambda x, y: moved(model, flat(model) + x * rows[0] + y * rows[1]), data)
        assert found.settings["normalise"] == normalise

    def test_the_seed_decides_and_nothing_of_the_caller_changes(self, caller_state):
        model, data = make_model(1).train(), make_data()
        before, state = [value.clone() for value in model.state_dict().values()], caller_state()
        one, two, other = (lbgap.plane(model, data, points=3, seed=seed) for seed in (0, 0, 1))
        assert one.train_loss == two.train_loss
        assert one.train_loss != other.train_loss
        assert caller_state() == state
        assert all(map(torch.equal, before, model.state_dict().values()))
        assert model.training

    def test_eigenvectors_are_those_of_the_dense_hessian(self):
        model, data = nn.Linear(6, 3).double(), make_data()
        found = lbgap.plane(model, data, directions="eigenvectors", points=(3, 3), precision="float64", x_range=(-1, 1))
        inputs, targets = data[0].double(), data[1]

        def loss(theta):
            return F.cross_entropy(inputs @ theta[:18].view(3, 6).T + theta[18:], targets)

        values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(loss, flat(model)))
        assert found.eigenvalues == pytest.approx(values[[-1, -2]].tolist(), rel=1e-5)
        # A Rayleigh quotient is exact to the square of the residual, a vector only to the residual; signs are free.
        expected = [
            [float(loss(flat(model) + x * vectors[:, -1] + y * vectors[:, -2])) for x in (-1, 0, 1)] for y in (-1, 0, 1)
        ]
        flips = [np.array(expected)[::sy, ::sx] for sy in (1, -1) for sx in (1, -1)]
        assert min(abs(np.array(found.train_loss) - flip).max() for flip in flips) < 2e-3 * np.array(expected).max()
        assert found.axes[0].startswith("eigenvector 1 (eigenvalue ")
        assert len(found.settings["eigenvalue_residuals"]) == 2

    def test_principal_components_are_those_of_a_dense_decomposition(self):
        models, data = [make_model(seed) for seed in range(1, 6)], make_data()
        found = lbgap.plane(models, data, directions="pca", points=(3, 2), batch_norm="eval", precision="float64")
        matrix = torch.stack([flat(model) - flat(models[-1]) for model in models])
        _, sizes, vectors = torch.linalg.svd(matrix - matrix.mean(0), full_matrices=False)
        rows = vectors[:2] * torch.sign(vectors[:2] @ matrix[0])[:, None]
        shares = sizes.square() / sizes.square().sum()
        assert found.explained == pytest.approx(shares[:2].tolist(), rel=1e-9)
        assert np.array(found.path) == pytest.approx((matrix @ rows.T).numpy(), rel=1e-9, abs=1e-12)
        assert found.path[-1] == (0.0, 0.0)
        assert found.marks == (("last iterate", 0.0, 0.0),)
        assert found.axes[0] == f"component 1 ({100 * float(shares[0]):.3g} % of variance), distance"
        check_values(found, lambda x, y: moved(models[-1], flat(models[-1]) + x * rows[0] + y * rows[1]), data)
        assert found.mark_loss[0] == pytest.approx(scores(moved(models[-1], flat(models[-1])), data)[0], rel=1e-12)

    def test_principal_components_in_pieces_are_the_same(self, monkeypatch):
        models, data = [make_model(seed) for seed in range(1, 6)], make_data()
        whole = lbgap.plane(models, data, directions="pca", points=2, precision="float64")
        monkeypatch.setattr("lbgap.landscape.directions.AT_ONCE", 35)
        pieces = lbgap.plane(models, data, directions="pca", points=2, precision="float64")
        assert pieces.train_loss[0] == pytest.approx(whole.train_loss[0], rel=1e-10)

    def test_directions_of_ones_own(self):
        model, data = make_model(1), make_data()
        rows = torch.randn(flat(model).numel(), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).T
        found = lbgap.plane(model, data, directions=rows, points=2, batch_norm="eval", precision="float64")
        check_values(found, lambda x, y: moved(model, flat(model) + x * rows[0] + y * rows[1]), data)
        assert found.axes[1] == f"coefficient of direction 2, of length {float(rows[1].norm()):.4g}"

    def test_the_minimizer_has_its_own_loss_to_the_bit(self):
        model, data = make_model(1), make_data()
        found = lbgap.plane(model, data, points=3, batch_norm="eval")
        objective = Objective(model, data)
        assert found.train_loss[1][1] == found.mark_loss[0] == float(objective.loss(objective.theta))

    def test_frozen_parameters_do_not_move(self):
        model = make_model(1)
        model[0].requires_grad_(False)
        found = lbgap.plane(model, make_data(), points=2)
        assert found.settings["n"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def infinite_beyond(bias):
    """Logits that differ by ``2 bias`` a unit of x: float32 ends at 3.4e38."""
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    rows = torch.zeros(2, 21)
    rows[0, 18:] = torch.tensor([bias, 0.0, -bias])
    rows[1, 0] = 1
    return model, rows, (torch.ones(4, 6), torch.full((4,), 2))


class TestInfinity:
    def test_it_is_infinity_and_null_in_json(self):
        model, rows, data = infinite_beyond(1e38)
        found = lbgap.plane(model, data, directions=rows, points=(3, 2), x_range=(0, 2))
        assert found.train_loss[0] == (pytest.approx(math.log(3), rel=1), pytest.approx(2e38), math.inf)
        read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert read["train_loss"][0][2] is None
        assert read["x"] == [0, 1, 2]
        assert read["marks"] == [["minimizer", 0, 0]]
        assert read["evaluated"] == [[True] * 3] * 2

    def test_refinement_does_not_interpolate_across_it(self):
        model, rows, data = infinite_beyond(1e38)
        options = {"directions": rows, "points": 33, "x_range": (-2, 2)}
        full = np.array(lbgap.plane(model, data, **options).train_loss)
        found = lbgap.plane(model, data, **options, refine=0.05)
        values, evaluated = np.array(found.train_loss), np.array(found.evaluated)
        assert np.array_equal(np.isinf(values), np.isinf(full))
        assert 0 < np.isinf(full).sum() < full.size
        assert evaluated[np.isinf(full)].all()
        first = int(np.isinf(full[0]).argmax())
        assert evaluated[:, first - 1].all()  # the last finite column
        assert not evaluated.all()


def grid_of(function, shape, tolerance=0.02):
    """Refine a function of (row, column) in [0, 1]; returns its values, which are evaluated, and how often it ran."""
    values = torch.full((1, *shape), math.nan, dtype=torch.float64)
    evaluated = torch.zeros(shape, dtype=torch.bool)
    calls = []

    def evaluate(points):
        for row, column in points:
            calls.append((row, column))
            values[0, row, column] = function(row / (shape[0] - 1), column / (shape[1] - 1))
            evaluated[row, column] = True

    refine(shape, evaluate, values, evaluated, lambda known: tolerance * known.abs())
    assert len(calls) == len(set(calls)) == int(evaluated.sum())
    return values[0].numpy(), evaluated.numpy()


def exact(function, shape):
    return np.array(
        [[function(r / (shape[0] - 1), c / (shape[1] - 1)) for c in range(shape[1])] for r in range(shape[0])]
    )


class TestRefinement:
    @pytest.mark.parametrize("shape", [(2, 2), (2, 51), (3, 40), (17, 5), (18, 19), (51, 51), (64, 33)])
    def test_polynomials_of_degree_two_are_exact_on_grids_of_any_size(self, shape):
        def bowl(y, x):
            return 1 + 3 * x * x + 2 * y * y - x * y + x

        values, evaluated = grid_of(bowl, shape)
        assert np.abs(values - exact(bowl, shape)).max() < 1e-12
        assert evaluated.sum() <= min(shape[0], 17) * min(shape[1], 17)

    def test_values_off_the_bend_are_interpolated_and_within_the_tolerance(self):
        def ridge(y, x):
            return math.exp(-200 * (x - 0.3) ** 2) + 0.1 + y

        for tolerance in (0.05, 0.01):
            values, evaluated = grid_of(ridge, (101, 101), tolerance)
            expected = exact(ridge, (101, 101))
            assert (np.abs(values - expected) <= tolerance * expected).all()
            assert np.array_equal(values[evaluated], expected[evaluated])
            assert evaluated.sum() < 0.5 * evaluated.size

    def test_a_finer_tolerance_evaluates_more(self):
        def hill(y, x):
            return 1 + math.sin(5 * x) * math.cos(4 * y)

        assert grid_of(hill, (65, 65), 1e-4)[1].sum() > grid_of(hill, (65, 65), 0.05)[1].sum()

    def test_what_a_neighbour_finds_on_a_border_reopens_a_patch(self):
        # Beside the middle column the left patches see nothing; the right ones come to a wall on it.
        def wall(y, x):
            return 50.0 if x == 0.5 and abs(y - 0.28) < 0.012 else 1.0 + (x > 0.5) * math.sin(40 * x)

        shape = (81, 81)
        values, evaluated = grid_of(wall, shape)
        bump = exact(wall, shape) == 50
        assert evaluated[bump].all()
        assert (values[bump] == 50).all()
        assert evaluated[:, 39][bump[:, 40]].all()  # to the left of it, too

    @pytest.mark.parametrize("bad", [math.inf, math.nan])
    def test_what_is_not_finite_is_never_a_node(self, bad):
        def half(y, x):
            return bad if x + y > 1.2 else 1.0

        shape = (40, 40)
        values, _ = grid_of(half, shape)
        assert np.array_equal(values, exact(half, shape), equal_nan=True)

    def test_a_smooth_plane_costs_far_fewer_evaluations(self):
        model, data = make_model(1, activation=nn.Tanh), make_data(400)
        full = np.array(lbgap.plane(model, data, points=51, precision="float64").train_loss)
        found = lbgap.plane(model, data, points=51, precision="float64", refine=0.02)
        assert found.evaluated_points == 17 * 17
        assert (np.abs(np.array(found.train_loss) - full) <= 0.02 * full).all()

    def test_so_does_that_of_a_minimizer_with_what_is_said_of_the_error(self, minimizers, mnist1d_train, monkeypatch):
        data = tuple(part[:500] for part in mnist1d_train)
        counted, at = [], ends.Combined.at
        monkeypatch.setattr(ends.Combined, "at", lambda self, rows: counted.append(len(rows)) or at(self, rows))
        options = {"points": 51, "batch_norm": "eval", "x_range": (-0.5, 0.5), "y_range": (-0.5, 0.5)}
        full = lbgap.plane(minimizers["SB"], data, **options)
        assert sum(counted) == 51 * 51 + 1
        counted.clear()
        found = lbgap.plane(minimizers["SB"], data, **options, refine=True)
        assert sum(counted) == found.evaluated_points + 1 == sum(map(sum, found.evaluated)) + 1
        assert found.evaluated_points < 0.3 * 51 * 51
        assert found.settings["refine"] == 0.02
        expected, values, evaluated = map(np.array, (full.train_loss, found.train_loss, found.evaluated))
        assert (np.abs(values - expected) <= 0.02 * expected).all()
        # The last bits of an evaluated point depend on which others share its products.
        assert values[evaluated] == pytest.approx(expected[evaluated], rel=1e-5)
        allowed = 2 + 50 / math.sqrt(500)
        assert np.abs(np.array(found.train_accuracy) - np.array(full.train_accuracy)).max() <= allowed
        again = lbgap.plane(minimizers["SB"], data, **options, refine=0.02)
        assert (again.train_loss, again.evaluated) == (found.train_loss, found.evaluated)

    def test_by_default_every_point_is_evaluated(self):
        for off in ({}, {"refine": None}, {"refine": False}):
            found = lbgap.plane(make_model(1), make_data(), points=20, **off)
            assert found.evaluated_points == 400
            assert found.settings["refine"] is None


# Forks one process a plane, so that torch is imported once; each kills itself with the third file that it writes.
DRIVER = """
import json, os, signal, sys
from pathlib import Path
import torch
import lbgap

root, options = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
data = torch.randn(40, 6, generator=generator), torch.randint(3, (40,), generator=generator)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
replace = os.replace

def work(folder, left):
    def killer(source, target):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = killer
    found = lbgap.plane(model, data, test_data=data, out=folder, resume=True, **options)
    values = [[list(map(float.hex, row)) for row in rows] for rows in (found.train_loss, found.test_accuracy)]
    Path(f"{folder}.txt").write_text(repr((values, found.evaluated, found.mark_loss, found.eigenvalues)))

def forked(folder, left):
    child = os.fork()
    if child == 0:
        try:
            work(folder, left)
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL

assert not forked(root / "whole", -1)
killed = 0
while forked(root / "killed", 3):
    killed += 1
print(killed)
"""


class TestResuming:
    @pytest.mark.parametrize(
        "options",
        [
            {"points": 19},
            {"points": 40, "refine": 1e-3, "batch_norm": "eval"},
            {"points": 18, "directions": "eigenvectors", "batch_norm": "eval"},
        ],
        ids=["full", "refined", "eigenvectors"],
    )
    def test_killed_it_goes_on_and_ends_with_the_same_bits(self, tmp_path, options):
        code = [sys.executable, "-c", DRIVER, str(tmp_path), json.dumps(options)]
        done = subprocess.run(code, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert int(done.stdout) >= 2
        assert (tmp_path / "killed.txt").read_text() == (tmp_path / "whole.txt").read_text()
        left = sorted(os.listdir(tmp_path / "killed"))
        assert left == sorted(os.listdir(tmp_path / "whole"))  # no temporary file is left either
        assert len(left) >= 5

    def test_nothing_is_evaluated_again(self, tmp_path, monkeypatch):
        model, data = make_model(1), make_data()
        one = lbgap.plane(model, data, points=9, out=tmp_path / "plane")
        monkeypatch.setattr(ends.Combined, "at", lambda *_: pytest.fail("evaluated again"))
        two = lbgap.plane(model, data, points=9, out=tmp_path / "plane", resume=True)
        assert (one.evaluations > 10, two.evaluations) == (True, 1.0)  # the loss there tells two networks apart
        same = {"seconds": 0, "evaluations": 0}
        assert dataclasses.replace(one, **same).to_dict() == dataclasses.replace(two, **same).to_dict()

    def test_with_a_folder_the_values_are_the_same_as_without(self, tmp_path):
        model, data = make_model(1), make_data()
        assert (
            lbgap.plane(model, data, points=9, out=tmp_path).train_loss == lbgap.plane(model, data, points=9).train_loss
        )

    def test_infinity_is_kept(self, tmp_path):
        model, rows, data = infinite_beyond(1e38)
        options = {"directions": rows, "points": (3, 2), "x_range": (0, 2), "out": tmp_path}
        one, two = (lbgap.plane(model, data, **options, resume=resume) for resume in (False, True))
        assert two.train_loss == one.train_loss
        assert two.train_loss[0][2] == math.inf

    def test_another_plane_is_refused_by_what_differs(self, tmp_path):
        model, data = make_model(1), make_data()
        begun = {"points": 3, "test_data": make_data(20), "out": tmp_path / "plane"}
        lbgap.plane(model, data, **begun)
        folder = f"{tmp_path}/plane holds another plane: "
        with pytest.raises(FileExistsError, match="plane holds a plane: pass resume=True to continue it or choose"):
            lbgap.plane(model, data, **begun)
        changed = nn.Sequential(*(make_model(1)))
        changed[1].running_mean += 1
        for message, others in (
            (r"points is \[3, 3\] there but \[4, 4\] here", {"points": 4}),
            ("seed is 0 there but 1 here", {"seed": 1}),
            ("batch_norm is 'eval' there but 'batch' here", {"batch_norm": "batch"}),
            ("x_range is None there", {"x_range": (0, 1)}),
            ("refine is None there but 0.02 here", {"refine": True}),
            ("directions is 'random' there but 'given' here", {"directions": torch.randn(2, flat(model).numel())}),
            ("its weights are others", {"models": make_model(2)}),
            ("its weights are others", {"models": changed}),
            ("its data are others", {"data": make_data(seed=3)}),
            ("its test data are others", {"test_data": make_data(20, seed=3)}),
        ):
            arguments = {"models": model, "data": data, **begun, **others}
            with pytest.raises(ValueError, match=folder + message):
                lbgap.plane(**arguments, resume=True)
        lbgap.plane(model, data, **begun, resume=True)

    def test_without_batch_norm_its_mode_makes_no_other_plane(self, tmp_path):
        model, data = nn.Linear(6, 3), make_data()
        begun = lbgap.plane(model, data, points=3, out=tmp_path, batch_norm="batch")
        settings = tmp_path / "settings.json"
        settings.write_text(settings.read_text().replace("none in the model", "batch"))
        assert json.loads(settings.read_text())["batch_norm"] == "batch"
        assert lbgap.plane(model, data, points=3, out=tmp_path, resume=True).train_loss == begun.train_loss

    def test_other_parameters_that_move_are_refused(self, tmp_path):
        model, data = nn.Linear(6, 3), make_data()
        lbgap.plane(model, data, points=3, out=tmp_path)
        with pytest.raises(ValueError, match="n is 21 there but 18 here"):
            lbgap.plane(model, data, parameters="weights", points=3, out=tmp_path, resume=True)

    def test_other_directions_of_ones_own_are_refused(self, tmp_path):
        model, rows, data = infinite_beyond(1.0)
        lbgap.plane(model, data, directions=rows, points=2, out=tmp_path)
        with pytest.raises(ValueError, match="its directions are others"):
            lbgap.plane(model, data, directions=rows * 2, points=2, out=tmp_path, resume=True)

    def test_folders_that_hold_something_else(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(FileExistsError, match=r"is not empty and holds no plane \(it has 'notes.txt'\)"):
            lbgap.plane(make_model(1), make_data(), points=2, out=tmp_path)
        with pytest.raises(NotADirectoryError, match="out must be a folder, got the file"):
            lbgap.plane(make_model(1), make_data(), points=2, out=tmp_path / "notes.txt")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "settings.json").write_text('{"format": "x"}')
        with pytest.raises(ValueError, match="holds no plane that this version reads"):
            lbgap.plane(make_model(1), make_data(), points=2, out=tmp_path / "other", resume=True)

    def test_a_folder_that_another_process_writes_to(self, tmp_path):
        with files.locked(tmp_path), pytest.raises(BlockingIOError, match="is in use: another process writes to it"):
            lbgap.plane(make_model(1), make_data(), points=2, out=tmp_path)

    def test_damaged_files(self, tmp_path):
        arguments = {"models": make_model(1), "data": make_data(), "points": 9, "out": tmp_path, "batch_norm": "eval"}
        lbgap.plane(**arguments)
        second, third = tmp_path / "values-00002.safetensors", tmp_path / "values-00003.safetensors"
        third.write_bytes(second.read_bytes())
        with pytest.raises(ValueError, match=r"values-00003\.safetensors holds other points than those that come next"):
            lbgap.plane(**arguments, resume=True)
        third.write_bytes(b"x")
        with pytest.raises(ValueError, match=r"values-00003\.safetensors is damaged"):
            lbgap.plane(**arguments, resume=True)

    def test_arguments_that_are_refused_leave_the_folder_free(self, tmp_path):
        with pytest.raises(ValueError, match="parallel"):
            lbgap.plane(make_model(1), make_data(), directions=torch.ones(2, 99), points=2, out=tmp_path)
        lbgap.plane(make_model(1), make_data(), points=2, out=tmp_path)


def refused(message, models=None, data=None, error=ValueError, **options):
    with pytest.raises(error, match=message):
        lbgap.plane(make_model(1) if models is None else models, data or make_data(), **{"points": 2, **options})


class TestRefusals:
    def test_another_architecture_by_the_first_parameter_that_differs(self):
        models = [make_model(1), make_model(2), make_model(3, width=9)]
        refused(r"parameter '0.weight' is \(8, 6\) in one and \(9, 6\) in the other", models)
        models[2] = make_model(3, activation=nn.Tanh)
        refused("module '2' is ReLU in one and Tanh in the other", models)
        refused("module '2' is ReLU in one and Tanh", [*models, make_model(4)], directions="pca")

    def test_identical_and_collinear_minimizers(self):
        one, two = make_model(1), make_model(2)
        refused("the first and the third model have the same parameters", [one, two, make_model(1)])
        refused("the second and the third model have the same parameters", [one, two, make_model(2)])
        middle = make_model(1)
        with torch.no_grad():
            for value, a, b in zip(middle.parameters(), one.parameters(), two.parameters(), strict=True):
                value.copy_(0.25 * a + 0.75 * b)
        refused("the three models lie on one straight line", [one, two, middle])
        refused("the three models lie on one straight line", [one, middle, two])
        refused("the 3 iterates lie on one straight line", [one, middle, two], directions="pca")
        refused("the 3 iterates lie on one straight line", [one, make_model(1), make_model(1)], directions="pca")

    def test_models_that_are_not_finite(self):
        bad = make_model(3)
        with torch.no_grad():
            bad[4].bias[0] = math.nan
        refused("parameter '4.bias' of the third model holds NaN or infinity", [make_model(1), make_model(2), bad])
        refused("parameter '4.bias' of the given model holds NaN", bad)
        refused("parameter '4.bias' of the 2. model", [make_model(1), bad, make_model(2)], directions="pca")

    def test_what_is_no_model(self):
        refused(
            "the second model must be a torch.nn.Module, got str", [make_model(1), "x", make_model(2)], error=TypeError
        )
        refused("models must be a module or a sequence of them, got int", 3, error=TypeError)
        refused("a plane goes through three minimizers, got 0 models", [])

    @pytest.mark.parametrize(
        ("count", "directions", "message"),
        [
            (2, None, "a plane goes through three minimizers, got 2 models"),
            (4, None, "got 4 models: pass three, or one with directions='random', or the iterates"),
            (1, "minimizers", "a plane goes through three minimizers, got 1"),
            (2, "pca", "directions='pca' needs three iterates or more"),
            (3, "random", "directions='random' needs one minimizer, got 3"),
            (3, "eigenvectors", "directions='eigenvectors' needs one minimizer, got 3"),
            (3, torch.zeros(2, 3), "a tensor of directions needs one minimizer, got 3"),
            (1, "gradient", "directions must be 'minimizers', 'random', 'eigenvectors', 'pca' or a .* got 'gradient'"),
        ],
    )
    def test_directions_and_the_number_of_models(self, count, directions, message):
        refused(message, [make_model(seed) for seed in range(1, count + 1)], directions=directions)

    def test_tensors_that_are_no_directions(self):
        n = flat(make_model(1)).numel()
        refused(rf"directions must be \(2, {n}\), one number .* got \(2, 5\)", directions=torch.zeros(2, 5))
        refused(rf"directions must be \(2, {n}\)", directions=torch.zeros(n))
        rows = torch.randn(2, n)
        rows[1, 3] = math.inf
        refused("directions must be finite", directions=rows)
        refused("the two directions are parallel, or one is zero", directions=torch.stack((rows[0], -2 * rows[0])))
        refused("the two directions are parallel, or one is zero", directions=torch.stack((rows[0], 0 * rows[0])))
        refused("must hold floating-point numbers", directions=torch.ones(2, n, dtype=torch.int64), error=TypeError)
        refused("directions must be a name or a", directions=3, error=TypeError)

    def test_filters_that_leave_nothing_to_move(self):
        model = nn.Sequential(nn.LayerNorm(6))
        data = make_data()[0], make_data()[0]
        refused("moves parameters of two or more dimensions only", model, data, loss="mse")
        lbgap.plane(model, data, loss="mse", normalise="none", points=2)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"points": 1}, ValueError, "points must be at least 2, got 1"),
            ({"points": (5, 1)}, ValueError, "points must be at least 2, got 1"),
            ({"points": (5, 5, 5)}, ValueError, "points must be one number, or columns and rows"),
            ({"points": 2.0}, TypeError, "points must be a whole number, got 2.0"),
            ({"points": True}, TypeError, "points must be a whole number, got True"),
            ({"points": 1001}, ValueError, "points must be at most 1,000,000 in all, got 1001 x 1001"),
            ({"x_range": (1, 1)}, ValueError, "x_range must be finite and ascend, got 1 and 1"),
            ({"x_range": (math.nan, 1)}, ValueError, "x_range must be finite and ascend, got nan and 1"),
            ({"y_range": (0, math.inf)}, ValueError, "y_range must be finite and ascend, got 0 and inf"),
            ({"y_range": 3}, TypeError, "y_range must be two numbers, got 3"),
            ({"y_range": (1, "2")}, TypeError, "y_range must be two numbers, got '2'"),
            ({"refine": 0.0}, ValueError, "refine must be finite and above zero, got 0.0: try 0.02"),
            ({"refine": "x"}, TypeError, "refine must be a number, got str"),
            ({"normalise": "filters"}, ValueError, "normalise must be 'filter', 'layer' or 'none', got 'filters'"),
            ({"batch_norm": "train"}, ValueError, "must be 'eval', 'batch', 'freeze' or 'recalibrate', got 'train'"),
            ({"precision": "half"}, ValueError, "precision must be one of"),
            ({"loss": "ctc"}, ValueError, "loss must be 'cross_entropy', 'mse', .* or a callable, got 'ctc'"),
            ({"batch_size": 49, "batch_norm": "batch"}, ValueError, "leaves a batch of one"),
            ({"seed": -1}, ValueError, "seed must be at least 0"),
            ({"resume": 1}, TypeError, "resume must be True or False"),
            ({"resume": True}, ValueError, "resume=True needs the folder of the plane that goes on"),
        ],
    )
    def test_arguments(self, options, error, message):
        refused(message, error=error, **options)

    def test_data_that_do_not_fit(self):
        refused("does not accept inputs of shape", data=(torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)))

    def test_a_regression_has_no_accuracy(self):
        inputs = make_data()[0]
        found = lbgap.plane(nn.Linear(6, 2), (inputs, inputs[:, :2]), loss="mse", points=20, refine=True)
        assert found.train_accuracy is None
        assert (found.test_loss, found.test_accuracy) == (None, None)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
    def test_the_modes_of_the_caller_change_nothing(self, mode):
        models, data = [make_model(seed) for seed in range(3)], make_data()
        for options in ({}, {"directions": "pca"}, {"directions": "eigenvectors", "models": models[0]}):
            arguments = {"models": models, "data": data, "points": 2, "batch_norm": "eval", **options}
            plain = lbgap.plane(**arguments)
            with mode():
                assert lbgap.plane(**arguments).train_loss == plain.train_loss

    def test_other_forms_of_data_and_of_models(self):
        data = make_data()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=25)
        one = lbgap.plane((make_model(1),), loader, points=3, batch_norm="batch")
        two = lbgap.plane(make_model(1), data, points=3, batch_norm="batch", batch_size=25)
        assert one.train_loss == two.train_loss

    def test_progress_goes_to_standard_error_only(self, capsys):
        lbgap.plane(make_model(1), make_data(), points=2, progress=True)
        assert capsys.readouterr().out == ""


def test_a_folder_of_another_network_or_loss_with_the_same_weights_is_refused(tmp_path):
    data = torch.randn(60, 4), torch.arange(60) % 3
    models = [nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3)) for activation in (nn.ReLU, nn.Tanh)]
    models[1].load_state_dict(models[0].state_dict())
    lbgap.plane(models[0], data, points=3, out=tmp_path / "a")
    with pytest.raises(ValueError, match="loss there"):
        lbgap.plane(models[1], data, points=3, out=tmp_path / "a", resume=True)
    losses = [
        lambda output, target, s=s: nn.functional.cross_entropy(output, target, label_smoothing=s) for s in (0, 0.5)
    ]
    lbgap.plane(models[0], data, points=3, loss=losses[0], out=tmp_path / "b")
    with pytest.raises(ValueError, match="loss there"):
        lbgap.plane(models[0], data, points=3, loss=losses[1], out=tmp_path / "b", resume=True)
