"""Training: the loop of `lbgap.train` against a bare PyTorch loop over the same model, batches and optimiser.

`torch` takes the steps and nothing else, `steps` is lbgap's own loop without its measurements. `torch, measured` and
`lbgap` measure loss and accuracy over all training and test samples after each epoch besides, as a curve of both needs:
a tenth to half as much as the steps. Every loop ends at the same parameters, to rounding.

Five seeds: `lbgap.train` for each, or all `together` as one batched model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lbgap
from lbgap import datasets
from lbgap.networks import f1, mlp
from lbgap.problem.loss import resolve_loss
from lbgap.problem.samples import Split
from lbgap.training.batches import ORDER, derive_seed
from lbgap.training.checkpoint import State
from lbgap.training.descent import Descent
from lbgap.training.loop import EVALUATION_BATCH, Loop
from lbgap.training.optimizers import make_optimizer
from lbgap.training.progress import Reporter

WORKS = {  # name: batch, epochs
    "MNIST-1D MLP, batch 32": (32, 10),
    "MNIST-1D MLP, batch 400": (400, 60),
    "F1, batch 256": (256, 3),
}
SEEDS = range(5)
TARGETS = {"steps": (("faster", "torch", 0.95),), "lbgap": (("faster", "torch, measured", 0.95),)}
OPTIONS = {"fused": True}
# Of the norm of the way from the start: ADAM divides by gradients that rounding alone keeps from zero.
TOLERANCE = 1e-2
SAME = 1e-6  # the same in float64

Sets = tuple[Split, Split]  # training and test samples


@pytest.fixture(scope="module")
def works(
    quick: bool, device: torch.device, wide_series: Callable[[int], tuple[Tensor, Tensor]]
) -> dict[str, tuple[nn.Module, Sets]]:
    """The start and the data of each row."""
    short, wide = datasets.mnist1d(1_000 if quick else 5_000).train, Split(*wide_series(1_024 if quick else 8_192))
    found = {}
    for name in WORKS:
        inputs, targets = (part.to(device) for part in (wide if name.startswith("F1") else short))
        network = f1(seed=0) if name.startswith("F1") else mlp(40, [128] * 4, 10, seed=0)
        tested = len(inputs) // 6  # as many as MNIST has to its training samples
        found[name] = network.to(device), (Split(inputs, targets), Split(inputs[:tested], targets[:tested]))
    return found


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """For the small networks, as lbgap's own experiments train them: a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if request.node.callspec.params.get("name", "").startswith("F1") else 1)
    yield
    torch.set_num_threads(threads)


def bare(model: nn.Module, data: Sets, batch: int, epochs: int, measured: bool) -> nn.Module:
    """What a researcher writes."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), **OPTIONS)
    inputs, targets = data[0]
    for epoch in range(1, epochs + 1):
        model.train()
        generator = torch.Generator().manual_seed(derive_seed(0, epoch, ORDER))  # lbgap's order of the samples
        for samples in torch.randperm(len(inputs), generator=generator).split(batch):
            index = samples.to(inputs.device)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[index]), targets[index]).backward()
            optimizer.step()
        if measured:
            model.eval()
            with torch.no_grad():
                for split in data:
                    loss, correct = 0.0, 0
                    for some, wanted in zip(*(part.split(EVALUATION_BATCH) for part in split), strict=True):
                        output = model(some)
                        loss += float(F.cross_entropy(output, wanted, reduction="sum"))
                        correct += int((output.argmax(1) == wanted).sum())
    return model


def steps(model: nn.Module, data: Sets, batch: int, epochs: int) -> nn.Module:
    """The steps of lbgap's loop alone."""
    model, loss = copy.deepcopy(model), resolve_loss("cross_entropy")
    state = State(model, make_optimizer("Adam", model.parameters(), 1e-3, OPTIONS), {})
    loop = Loop(state, loss, data[0], None, Descent(state, loss, batch), 0, data[0].inputs.device)
    for epoch in range(1, epochs + 1):
        loop.descend(epoch, Reporter())
    return model


def settings(data: Sets, batch: int, epochs: int) -> dict[str, Any]:
    return {"test_data": data[1], "batch_size": batch, "epochs": epochs, "optimizer_options": OPTIONS}


def trained(model: nn.Module, data: Sets, batch: int, epochs: int) -> nn.Module:
    """The whole call."""
    return lbgap.train(model, data[0], **settings(data, batch, epochs)).model


BACKENDS: dict[str, Callable[[nn.Module, Sets, int, int], nn.Module]] = {
    "torch": lambda *work: bare(*work, measured=False),
    "steps": steps,
    "torch, measured": lambda *work: bare(*work, measured=True),
    "lbgap": trained,
}


def vector(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", WORKS)
def test_training(
    name: str,
    backend: str,
    works: dict[str, tuple[nn.Module, Sets]],
    quick: bool,
    operations: Callable[[nn.Module, int, bool], float],
    measure: Callable[..., None],
) -> None:
    (start, data), (batch, epochs) = works[name], WORKS[name]
    way = vector(bare(start, data, batch, 1, False)) - vector(start)
    error = float((vector(BACKENDS[backend](start, data, batch, 1)) - vector(start) - way).norm() / way.norm())
    assert error < TOLERANCE
    epochs = 1 if quick else epochs
    samples = len(data[0].inputs)
    passes = operations(start, samples, True)
    if backend in ("torch, measured", "lbgap"):
        passes += operations(start, samples + len(data[1].inputs), False)
    measure(
        lambda: BACKENDS[backend](start, data, batch, epochs),
        group=f"training, {name}",
        backend=backend,
        rounds=3 if quick else 9,
        work={"float32": epochs * passes},
        targets=TARGETS.get(backend, ()),
        n=way.numel(),
        samples=samples,
        batch_size=batch,
        epochs=epochs,
        relative_error=error,
        threads=torch.get_num_threads(),
    )


def seeds_apart(starts: list[nn.Module], data: Sets, batch: int, epochs: int) -> list[nn.Module]:
    options = settings(data, batch, epochs)
    return [lbgap.train(start, data[0], seed=seed, **options).model for start, seed in zip(starts, SEEDS, strict=True)]


def seeds_together(starts: list[nn.Module], data: Sets, batch: int, epochs: int) -> list[nn.Module]:
    options = settings(data, batch, epochs)
    return [run.model for run in lbgap.train_together(starts, data[0], seeds=SEEDS, **options)]


@pytest.mark.parametrize("backend", ["one by one", "together"])
@pytest.mark.parametrize("batch", [32, 128, 400])
def test_five_seeds(
    batch: int,
    backend: str,
    works: dict[str, tuple[nn.Module, Sets]],
    quick: bool,
    device: torch.device,
    operations: Callable[[nn.Module, int, bool], float],
    measure: Callable[..., None],
) -> None:
    _, data = works["MNIST-1D MLP, batch 32"]
    starts: list[nn.Module] = [mlp(40, [128] * 4, 10, seed=seed).to(device) for seed in SEEDS]
    run = seeds_apart if backend == "one by one" else seeds_together
    # In float64, for in float32 two orders of summation are far apart after an epoch.
    exact = [copy.deepcopy(start).double() for start in starts]
    error = 0.0
    for start, one, other in zip(exact, seeds_apart(exact, data, batch, 1), run(exact, data, batch, 1), strict=True):
        way = vector(one) - vector(start)
        error = max(error, float((vector(other) - vector(start) - way).norm() / way.norm()))
    assert error < SAME
    epochs = 1 if quick else 4
    samples, tested = len(data[0].inputs), len(data[1].inputs)
    passes = operations(starts[0], samples, True) + operations(starts[0], samples + tested, False)
    measure(
        lambda: run(starts, data, batch, epochs),
        group=f"five seeds, MNIST-1D MLP, batch {batch}",
        backend=backend,
        rounds=3 if quick else 11,
        work={"float32": len(SEEDS) * epochs * passes},
        targets=(("faster", "one by one", 1.5),) if backend == "together" and batch == 32 else (),
        n=way.numel(),
        samples=samples,
        batch_size=batch,
        epochs=epochs,
        relative_error=error,
        threads=torch.get_num_threads(),
    )
