"""Remedies against plain PyTorch loops written out by hand, in float64."""

import copy
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from lbgap.training import read_iterates, remedies, train
from lbgap.training.batches import REMEDY, derive_seed, epoch_batches
from lbgap.training.remedies.augment import warp
from lbgap.training.remedies.base import Role

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH, EPOCHS, SEED, RATE = 10, 3, 5, 0.05


def make_data(samples=37, *shape):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, *(shape or (6,)), generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (samples,), generator=generator)


def make_model(norm=False):
    layers = [nn.Linear(6, 8, bias=not norm), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def trained(model, remedy, data=None, **settings):
    settings = {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9}, "learning_rate": RATE, **settings}
    settings = {"batch_size": BATCH, "epochs": EPOCHS, "seed": SEED, **settings}
    return train(model, data or make_data(), remedies=remedy, **settings)


def by_hand(model, step, data=None, optimizer=None, sizes=(BATCH,) * EPOCHS):
    """A loop over the same batches; ``step(model, optimizer, inputs, targets, epoch)`` does the rest."""
    inputs, targets = data or make_data()
    model = copy.deepcopy(model).train()
    optimizer = (optimizer or (lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9)))(model.parameters())
    for epoch, size in enumerate(sizes, 1):
        for index in epoch_batches(len(inputs), size, SEED, epoch):
            optimizer.zero_grad()
            step(model, optimizer, inputs[index], targets[index], epoch)
    return model


def assert_close(found, expected, tolerance=1e-11):
    for (name, one), two in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: name + text)


def assert_same_bits(first, second):
    for (name, one), two in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def generators(role):
    """The random numbers of a role, one generator an epoch."""
    position = REMEDY + list(Role).index(role)
    return {e: torch.Generator().manual_seed(derive_seed(SEED, e, position)) for e in range(1, EPOCHS + 1)}


def counted(run):
    return int(run.model[1].num_batches_tracked)


class TestConservative:
    def test_it_is_the_proximal_loop_of_the_paper(self):
        lam, model = 0.3, make_model()

        def step(model, adam, inputs, targets, epoch):
            before = [p.detach().clone() for p in model.parameters()]
            for _ in range(3):
                adam.zero_grad()
                apart = sum((p - b).square().sum() for p, b in zip(model.parameters(), before, strict=True))
                (F.cross_entropy(model(inputs), targets) + lam / 2 * apart).backward()
                adam.step()

        expected = by_hand(model, step, optimizer=lambda p: torch.optim.Adam(p, lr=RATE))
        run = trained(model, remedies.Conservative(lam=lam), optimizer="Adam", optimizer_options=None)
        assert_close(run.model, expected, 1e-9)
        assert run.config["remedies"] == {"conservative": {"lam": 0.3, "iterations": 3}}
        free = trained(model, remedies.Conservative(lam=0.0), optimizer="Adam", optimizer_options=None)
        assert run.metrics[-1]["distance"] < free.metrics[-1]["distance"]

    def test_one_iteration_is_the_plain_training(self):
        assert_same_bits(trained(make := make_model(), "conservative:iterations=1").model, trained(make, ()).model)

    def test_defaults_are_the_papers(self):
        assert remedies.Conservative() == remedies.Conservative(lam=1e-3, iterations=3)


class TestAugment:
    def test_warp_is_interpolation_at_the_place_it_comes_from(self):
        images = torch.randn(4, 2, 7, 12, dtype=torch.float64)
        angles, mirrors = torch.tensor([0.1, -0.17, 0.05, 0.0]), torch.tensor([1.0, -1.0, -1.0, 1.0])
        right, down = torch.tensor([0.3, -0.1, 0.0, 0.25]), torch.tensor([-0.4, 0.2, 0.1, 0.0])
        found = warp(images, *(values.double() for values in (angles, mirrors, right, down)))
        rows, columns = np.mgrid[:7, :12].astype(float)
        for n in range(4):
            y, x = rows - 3.0 - float(down[n]) * 3.5, columns - 5.5 - float(right[n]) * 6.0
            cos, sin = math.cos(angles[n]), math.sin(angles[n])
            source = [-sin * x + cos * y + 3.0, float(mirrors[n]) * (cos * x + sin * y) + 5.5]
            for channel in range(2):
                expected = scipy.ndimage.map_coordinates(images[n, channel], source, order=1, mode="nearest")
                np.testing.assert_allclose(found[n, channel], expected, rtol=1e-6, atol=1e-6)

    def test_warp_by_whole_pixels_moves_pixels(self):
        image, zero, one = torch.randn(1, 1, 6, 6, dtype=torch.float64), torch.zeros(1).double(), torch.ones(1).double()
        torch.testing.assert_close(warp(image, zero, one, zero, zero), image)
        torch.testing.assert_close(warp(image, zero, -one, zero, zero), image.flip(3))
        turned = warp(image, one * math.pi / 2, one, zero, zero)
        torch.testing.assert_close(turned, image.rot90(-1, (2, 3)))
        moved = warp(image, zero, one, one * 2 / 6, zero)  # one pixel to the right
        torch.testing.assert_close(moved[..., 1:], image[..., :-1])
        torch.testing.assert_close(moved[..., 0], image[..., 0])

    def seen(self, remedy, data, **settings):
        """What the model sees in training and in evaluation."""
        calls = {True: [], False: []}

        class Spy(nn.Module):
            def forward(self, x):
                calls[self.training].append(x.clone())
                return x.flatten(1)

        width = data[0][0].numel()
        trained(nn.Sequential(Spy(), nn.Linear(width, 3)).to(data[0].dtype), remedy, data, **settings)
        return calls

    def test_only_the_training_sees_it_and_each_sample_moves_by_itself(self):
        ramp = torch.arange(10.0, dtype=torch.float64).expand(200, 1, 8, 10).clone()
        calls = self.seen(remedies.Augment(shift=0.2), (ramp, torch.arange(200) % 3), batch_size=200)
        assert all(torch.equal(x, ramp[: len(x)]) for x in calls[False])
        moves = [x[:, 0, 4, 5] - 5 for x in calls[True]]
        assert len(moves) == EPOCHS
        for move in moves:
            assert -2 <= move.min() < -1.5
            assert 1.5 < move.max() <= 2
            assert len(move.unique()) == 200
        assert not torch.equal(moves[0].sort()[0], moves[1].sort()[0])

    def test_flips_are_of_half_of_the_images(self):
        ramp = torch.arange(10.0, dtype=torch.float64).expand(400, 1, 4, 10).clone()
        calls = self.seen(remedies.Augment(flip=True), (ramp, torch.arange(400) % 3), batch_size=400)
        flipped = calls[True][0][:, 0, 0, 0] > 5
        torch.testing.assert_close(calls[True][0][flipped][0], ramp[0].flip(2))
        assert abs(int(flipped.sum()) - 200) < 40  # four standard deviations

    def test_angles_are_uniform_up_to_the_largest(self):
        rows = torch.linspace(-1, 1, 21, dtype=torch.float64)
        plane = rows.view(1, 1, 21, 1).expand(300, 1, 21, 21).clone()
        calls = self.seen(remedies.Augment(rotate=10), (plane, torch.arange(300) % 3), batch_size=300)
        x = calls[True][0][:, 0]
        angle = torch.rad2deg(torch.atan2(x[:, 10, 12] - x[:, 10, 8], x[:, 12, 10] - x[:, 8, 10]))
        assert 9 < angle.max() <= 10.001
        assert -10.001 <= angle.min() < -9

    def test_nothing_named_is_the_papers_recipe(self):
        data = make_data(30, 3, 8, 8)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double()
        named = remedies.Augment(flip=True, rotate=10, shift=0.2)
        assert_same_bits(trained(model, "augment", data).model, trained(model, named, data).model)
        signals = make_data(30, 2, 20)
        model = nn.Sequential(nn.Flatten(), nn.Linear(40, 3)).double()
        assert_same_bits(trained(model, "augment", signals).model, trained(model, "augment:shift=0.2", signals).model)

    def test_flat_samples_are_read_in_the_shape_that_is_named(self):
        images, targets = make_data(30, 1, 4, 6)
        model = nn.Sequential(nn.Flatten(), nn.Linear(24, 3)).double()
        flat = trained(model, "augment:shape=1x4x6", (images.flatten(1), targets))
        assert_same_bits(flat.model, trained(model, "augment", (images, targets)).model)
        signal = trained(model, "augment:shape=24", (images.flatten(1), targets))
        assert_same_bits(signal.model, trained(model, "augment", (images.reshape(30, 1, 24), targets)).model)

    def test_channels_of_a_signal_move_together(self):
        ramp = torch.arange(20.0, dtype=torch.float64).expand(50, 3, 20).clone()
        x = self.seen("augment", (ramp, torch.arange(50) % 3), batch_size=50)[True][0]
        torch.testing.assert_close(x[:, 0], x[:, 1])
        assert len(x[:, 0, 10].unique()) == 50

    def test_half_precision_keeps_its_dtype(self):
        inputs, targets = make_data(20, 1, 6, 6)
        calls = self.seen("augment", (inputs.bfloat16(), targets))
        assert {x.dtype for x in calls[True]} == {torch.bfloat16}

    def test_its_draws_change_no_others(self):
        images = make_data(30, 1, 4, 6)
        model = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(24, 3)).double()
        still = "augment:shift=1e-300"
        assert_close(trained(model, still, images).model, trained(model, (), images).model, 1e-9)


class TestSchedules:
    def plain(self, model, optimizer, inputs, targets, epoch):
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    def test_small_batches_then_large_ones(self):
        model = make_model()
        run = trained(model, remedies.Batches({3: 37, 2: 0.5}), batch_size=5)
        assert [row["batch_size"] for row in run.metrics] == [5, 18, 37]
        assert_close(run.model, by_hand(model, self.plain, sizes=[5, 18, 37]))
        assert run.config["remedies"] == {"batches": {"2": 0.5, "3": 37}}
        assert run.config["batch_size"] == 5
        assert "learning_rate" not in run.metrics[0]
        assert_same_bits(run.model, trained(model, "batches:2=50%,3=100%", batch_size=5).model)

    def test_the_batch_grows_where_the_rate_would_fall_and_the_rate_falls_at_the_limit(self):
        run = trained(make_model(), remedies.Grow(every=2, factor=3, limit=20), batch_size=4, epochs=7)
        assert [row["batch_size"] for row in run.metrics] == [4, 4, 12, 12, 20, 20, 20]
        rates = [row["learning_rate"] / RATE for row in run.metrics]
        assert rates == pytest.approx([1, 1, 1, 1, 20 / 36, 20 / 36, 20 / 108], rel=1e-12)
        noise = [r / row["batch_size"] for r, row in zip(rates, run.metrics, strict=True)]
        assert noise == pytest.approx([1 / 4, 1 / 4, 1 / 12, 1 / 12, 1 / 36, 1 / 36, 1 / 108])

    def test_it_grows_at_named_epochs_and_without_end(self):
        run = trained(make_model(), "grow:at=2/3,limit=100%", batch_size=8)
        assert [row["batch_size"] for row in run.metrics] == [8, 16, 32]
        assert {row["learning_rate"] for row in run.metrics} == {RATE}
        run = trained(make_model(), remedies.Grow(every=1, factor=1e300, limit=20), batch_size=4)
        assert [row["learning_rate"] for row in run.metrics][::2] == [RATE, 0.0]

    def test_linear_rate_with_warm_up(self):
        rates = []

        def step(model, sgd, inputs, targets, epoch):
            done = (epoch - 1 + len(rates) % 4 / 4) / 2  # four batches an epoch, two epochs of warm-up
            rates.append(RATE * (1 + min(1.0, done) * (BATCH / 5 - 1)))
            sgd.param_groups[0]["lr"] = rates[-1]
            self.plain(model, sgd, inputs, targets, epoch)

        model = make_model()
        expected = by_hand(model, step)
        run = trained(model, remedies.LinearRate(reference=5, warmup=2))
        assert_close(run.model, expected)
        assert [row["learning_rate"] for row in run.metrics] == pytest.approx(rates[3::4], rel=1e-12)
        assert rates[0] == RATE
        assert rates[-1] == 2 * RATE

    def test_square_root_rate_is_a_training_with_that_rate(self):
        model = make_model()
        run = trained(model, remedies.SqrtRate(reference=40))
        assert_same_bits(run.model, trained(model, (), learning_rate=RATE * 0.25**0.5).model)
        assert run.config["learning_rate"] == RATE

    def test_the_rate_follows_the_batch(self):
        run = trained(make_model(), ["batches:2=20", "linear-rate:reference=10,warmup=0"])
        assert [row["learning_rate"] / RATE for row in run.metrics] == pytest.approx([1, 2, 2])


class TestGhostBatchNorm:
    def test_parts_are_normalised_apart_and_counted_as_in_the_paper(self):
        model = make_model(norm=True)
        size, momentum = 4, model[1].momentum

        class Manual(nn.BatchNorm1d):  # algorithm 1, from its formulas
            def forward(self, x):
                if not self.training:
                    return super().forward(x)
                parts, out = x.split(size), []
                for part in parts:
                    mean, var = part.mean(0), part.var(0, correction=0)
                    out.append((part - mean) / (var + self.eps).sqrt() * self.weight + self.bias)
                count = len(parts)
                means = torch.stack([part.mean(0) for part in parts]).detach()
                variances = torch.stack([part.var(0) for part in parts]).detach()
                weights = momentum * (1 - momentum) ** torch.arange(count - 1.0, -1.0, -1.0, dtype=torch.float64)
                for running, values in ((self.running_mean, means), (self.running_var, variances)):
                    running.mul_((1 - momentum) ** count).add_(weights @ values)
                self.num_batches_tracked += count
                return torch.cat(out)

        reference = copy.deepcopy(model)
        reference[1].__class__ = Manual

        def step(model, sgd, inputs, targets, epoch):
            F.cross_entropy(model(inputs), targets).backward()
            sgd.step()

        run = trained(model, remedies.GhostBatchNorm(size=size))  # batches of 10 and 7: parts 4, 4, 2 and 4, 3
        assert_close(run.model, by_hand(reference, step))
        assert counted(run) == EPOCHS * (3 * 3 + 2)

    def test_a_part_as_large_as_the_batch_is_plain(self):
        model = make_model(norm=True)
        assert_same_bits(trained(model, "ghost:size=10").model, trained(model, ()).model)

    def test_a_single_sample_joins_and_the_layers_stay_what_they_were(self):
        model = make_model(norm=True)
        run = trained(model, "ghost:size=9")  # batches of 10 and 7
        assert counted(run) == EPOCHS * 4
        assert "forward" not in vars(run.model[1])
        assert type(run.model[1]) is nn.BatchNorm1d

    def test_a_forward_of_ones_own_is_kept(self):
        model = make_model(norm=True)
        calls = []
        model[1].forward = lambda x: calls.append(len(x)) or x
        run = trained(model, "ghost:size=5", epochs=1)
        assert calls == [8, *[5] * 7, 2, 37]  # the check, three batches of 10 and one of 7, the measurement
        assert run.model[1].forward is model[1].forward


class TestSWA:
    def test_the_result_is_the_mean_with_new_statistics(self, tmp_path):
        model, data = make_model(norm=True), make_data()
        run = trained(model, remedies.SWA(start=2, every=2), epochs=5, out=tmp_path, keep_every=1)
        plain = trained(model, (), epochs=5, out=tmp_path / "plain", keep_every=1)
        averaged = AveragedModel(copy.deepcopy(model))
        for _, values in [read_iterates(tmp_path / "plain")[epoch] for epoch in (2, 4)]:
            current = copy.deepcopy(model)
            current.load_state_dict(values)
            averaged.update_parameters(current)
        update_bn([data[0][:10], data[0][10:20], data[0][20:30], data[0][30:]], averaged)
        assert_close(run.model, averaged.module.eval())
        loss = F.cross_entropy(run.model(data[0]), data[1]).item()
        assert run.metrics[-1]["train_loss"] == pytest.approx(loss, rel=1e-12)
        assert [r["train_loss"] for r in run.metrics[:-1]] == [r["train_loss"] for r in plain.metrics[:-1]]

    def test_it_starts_after_a_share_of_the_epochs(self):
        model = make_model()
        runs = [trained(model, remedy, epochs=8) for remedy in ("swa", "swa:start=7", "swa:start=8", ())]
        assert_same_bits(runs[0].model, runs[1].model)
        assert_same_bits(runs[2].model, runs[3].model)
        assert not torch.equal(runs[1].model[0].weight, runs[2].model[0].weight)


class TestDisplacedGradients:
    def test_smoothout_adds_noise_and_takes_it_off(self):
        draws, model = generators(Role.GRADIENT), make_model()

        def step(model, sgd, inputs, targets, epoch):
            with torch.no_grad():
                before = [p.clone() for p in model.parameters()]
                for p in model.parameters():
                    p += torch.empty_like(p).uniform_(-0.3, 0.3, generator=draws[epoch])
            F.cross_entropy(model(inputs), targets).backward()
            with torch.no_grad():
                for p, b in zip(model.parameters(), before, strict=True):
                    p.copy_(b)
            sgd.step()

        assert_close(trained(model, remedies.SmoothOut(radius=0.3)).model, by_hand(model, step))

    @pytest.mark.parametrize("adaptive", [False, True])
    def test_sam_and_asam(self, adaptive):
        model = make_model()

        def step(model, sgd, inputs, targets, epoch):
            F.cross_entropy(model(inputs), targets).backward()
            flat = torch.cat([p.detach().flatten() for p in model.parameters()])
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
            scale = flat.abs() + 0.01 if adaptive else torch.ones_like(flat)
            there = flat + 0.4 * scale**2 * gradient / (scale * gradient).norm()
            sgd.zero_grad()
            nn.utils.vector_to_parameters(there, model.parameters())
            F.cross_entropy(model(inputs), targets).backward()
            nn.utils.vector_to_parameters(flat, model.parameters())
            sgd.step()

        remedy = remedies.ASAM(rho=0.4) if adaptive else remedies.SAM(rho=0.4)
        assert_close(trained(model, remedy).model, by_hand(model, step))

    def test_sam_where_there_is_no_gradient(self):
        model = make_model()
        inputs, targets = make_data()
        data = inputs, F.one_hot(targets, 3) * 0.0  # every term of the loss is zero
        for name in ("sam", "asam"):
            assert_same_bits(trained(model, name, data, loss=nn.CrossEntropyLoss()).model, model)

    @pytest.mark.parametrize("steps", [1, 3])
    def test_robust_climbs_in_the_box_of_the_parameters(self, steps):
        model, epsilon = make_model(), 0.02
        length = epsilon if steps == 1 else 2.5 * epsilon / 3

        def step(model, sgd, inputs, targets, epoch):
            centre = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
            for count in range(steps + 1):
                sgd.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                if count < steps:
                    here = nn.utils.parameters_to_vector(model.parameters()).detach()
                    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
                    there = (here + length * gradient.sign()).clamp(centre - epsilon, centre + epsilon)
                    nn.utils.vector_to_parameters(there, model.parameters())
            nn.utils.vector_to_parameters(centre, model.parameters())
            sgd.step()

        run = trained(model, remedies.Robust(epsilon=epsilon, steps=steps))
        assert_close(run.model, by_hand(model, step))

    @pytest.mark.parametrize("remedy", ["sam", "asam", "robust:epsilon=0.01,steps=2"])
    def test_running_statistics_are_those_of_the_iterates(self, remedy):
        assert counted(trained(make_model(norm=True), remedy)) == 4 * EPOCHS


class TestLosses:
    @pytest.mark.parametrize("weight", [0.5, 0.0])
    def test_fgsm(self, weight):
        model = make_model()

        def step(model, sgd, inputs, targets, epoch):
            leaf = inputs.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), targets), leaf)
            attacked = F.cross_entropy(model(inputs + 0.1 * gradient.sign()), targets)
            (weight * F.cross_entropy(model(inputs), targets) + (1 - weight) * attacked).backward()
            sgd.step()

        run = trained(model, remedies.Adversarial(epsilon=0.1, weight=weight))
        assert_close(run.model, by_hand(model, step))

    def test_pgd_finds_the_maximum_over_the_inputs(self):
        model = nn.Linear(6, 2).double()
        inputs, targets = make_data()
        data, epsilon = (inputs, targets % 2), 0.1

        def step(model, sgd, inputs, targets, epoch):
            apart = (model.weight[1] - model.weight[0]).detach()  # the loss of two classes rises along this, or against
            worst = inputs + epsilon * torch.outer(1 - 2.0 * targets, apart.sign())
            F.cross_entropy(model(worst), targets).backward()
            sgd.step()

        run = trained(model, remedies.Adversarial(epsilon=epsilon, steps=20, weight=0, step_size=0.02), data)
        assert_close(run.model, by_hand(model, step, data))

    def test_stability_compares_with_noisy_inputs(self):
        draws, model = generators(Role.LOSS), make_model()

        def step(model, sgd, inputs, targets, epoch):
            noise = torch.randn(inputs.shape, generator=draws[epoch]).double()
            output, other = model(inputs), model(inputs + 0.2 * noise)
            apart = -(output.softmax(1) * other.log_softmax(1)).sum(1).mean()
            (F.cross_entropy(output, targets) + 0.7 * apart).backward()
            sgd.step()

        assert_close(trained(model, remedies.Stability(alpha=0.7, sigma=0.2)).model, by_hand(model, step))

    def test_stability_of_a_regression_is_a_distance(self):
        draws = generators(Role.LOSS)
        model, inputs = nn.Linear(6, 2).double(), make_data()[0]
        data = inputs, inputs[:, :2].clone()

        def step(model, sgd, inputs, targets, epoch):
            noise = torch.randn(inputs.shape, generator=draws[epoch]).double()
            apart = (model(inputs) - model(inputs + 0.2 * noise)).square().sum(1).sqrt().mean()
            (F.mse_loss(model(inputs), targets) + 0.7 * apart).backward()
            sgd.step()

        run = trained(model, remedies.Stability(alpha=0.7, sigma=0.2), data, loss="mse")
        assert_close(run.model, by_hand(model, step, data))

    @pytest.mark.parametrize("remedy", ["adversarial:epsilon=0.1", "adversarial:epsilon=0.1,steps=3", "stability"])
    def test_running_statistics_are_those_of_clean_inputs(self, remedy):
        assert counted(trained(make_model(norm=True), remedy)) == 4 * EPOCHS
        model = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 3)).double()
        assert_same_bits(trained(model, remedy).model[0], trained(model, ()).model[0])


class TestLocalSGD:
    @pytest.mark.parametrize("adam", [False, True])
    def test_workers_step_by_themselves_and_are_averaged(self, adam):
        workers, steps, model = 3, 2, make_model()
        kind = (lambda p: torch.optim.Adam(p, lr=RATE)) if adam else (lambda p: torch.optim.SGD(p, RATE, momentum=0.9))
        (inputs, targets), crew = make_data(70), [copy.deepcopy(model) for _ in range(workers)]
        optimizers = [kind(one.parameters()) for one in crew]

        def average(count):
            for group in zip(*(one.parameters() for one in crew), strict=True):
                mean = torch.stack([p.detach() for p in group[:count]]).mean(0)
                states = [optimizer.state[p] for optimizer, p in zip(optimizers, group, strict=True)]
                keys = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",)
                moments = {key: torch.stack([state[key] for state in states[:count]]).mean(0) for key in keys}
                for p, state in zip(group, states, strict=True):
                    p.data.copy_(mean)
                    state.update({key: moment.clone() for key, moment in moments.items()})
                    if adam:
                        state["step"] = states[0]["step"].clone()

        for epoch in range(1, EPOCHS + 1):  # seven batches: one round of six, and a seventh for the first worker alone
            for number, index in enumerate(epoch_batches(70, BATCH, SEED, epoch)):
                who = number % workers
                optimizers[who].zero_grad()
                F.cross_entropy(crew[who](inputs[index]), targets[index]).backward()
                optimizers[who].step()
                if number == workers * steps - 1:
                    average(workers)
            average(1)
        name = {"optimizer": "Adam", "optimizer_options": None} if adam else {}
        run = trained(model, remedies.LocalSGD(workers=workers, steps=steps), (inputs, targets), **name)
        assert_close(run.model, crew[0], 1e-9)

    def test_swa_takes_what_the_workers_have_been_averaged_to(self, tmp_path):
        model = make_model()
        given = "local-sgd:workers=3,steps=9"  # never full: averaged at the ends of the epochs alone
        trained(model, given, out=tmp_path, keep_every=1)
        run = trained(model, [given, f"swa:start={EPOCHS - 1}"])
        (_, first), (_, second) = read_iterates(tmp_path)[-2:]
        for name, value in run.model.state_dict().items():
            torch.testing.assert_close(value, (first[name] + second[name]) / 2, rtol=1e-12, atol=1e-12)

    def test_averaging_after_every_step_of_plain_sgd_is_the_large_batch(self):
        data, model = make_data(40), make_model()
        plain = {"optimizer_options": None}
        run = trained(model, "local-sgd:workers=2,steps=1", data, **plain)
        assert_close(run.model, trained(model, (), data, batch_size=2 * BATCH, **plain).model)


class TestTogether:
    NAMES = ("conservative", "batches:2=20", "ghost:size=4", "sqrt-rate", "swa", "sam", "stability")

    def test_their_order_plays_no_part(self):
        model = make_model(norm=True)
        runs = [trained(model, names) for names in (self.NAMES, self.NAMES[::-1])]
        assert_same_bits(runs[0].model, runs[1].model)
        assert runs[0].config == runs[1].config
        assert "remedies: batches, conservative, ghost, sam, sqrt-rate, stability, swa" in str(runs[0])

    def test_no_remedies_leave_no_mark(self):
        run = trained(make_model(), ())
        assert "remedies" not in run.config
        assert run.metrics[-1].keys() == {"epoch", "train_loss", "train_accuracy", "distance", "seconds"}

    def test_the_caller_keeps_his_state(self, caller_state):
        model = make_model(norm=True)
        before, values = caller_state(), copy.deepcopy(model.state_dict())
        trained(model, self.NAMES)
        assert caller_state() == before
        for name, value in model.state_dict().items():
            assert torch.equal(value, values[name])

    @pytest.mark.parametrize(
        "remedy", ["conservative", "sam", "adversarial:epsilon=0.1", "stability", "swa", "local-sgd"]
    )
    def test_models_that_begin_in_place(self, remedy):
        inner = make_model(norm=True)
        pair = [nn.Sequential(nn.ReLU(inplace=flag), copy.deepcopy(inner)) for flag in (True, False)]
        assert_same_bits(*(trained(model, remedy).model for model in pair))

    def test_frozen_and_unused_parameters_stay(self):
        model = make_model()
        model[0].bias.requires_grad_(False)
        model.register_parameter("idle", nn.Parameter(torch.ones(2).double()))
        for remedy in ("conservative", "swa", "sam", "asam", "smoothout:radius=0.1", "robust:epsilon=0.1", "local-sgd"):
            run = trained(model, remedy)
            assert torch.equal(run.model[0].bias, model[0].bias)
            assert torch.equal(run.model.idle, model.idle)
