"""Options, the limits of the machine, and the one way in which every row is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lbgap import _extension, datasets
from lbgap.result import versions
from lbgap.system import device as hardware

LIMITS = pytest.StashKey[dict[str, float]]()
PROBE_REPEATS = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lbgap")
    group.addoption("--quick", action="store_true", help="small sizes: every row takes about a second at most")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where the rows run")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: this PyTorch sees no GPU")


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Keep beside the rows what they are divided by."""
    place = config.getoption("device")
    output_json["lbgap"] = {
        "quick": config.getoption("quick"),
        "device": torch.cuda.get_device_name() if place == "cuda" else place,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "limits": config.stash.get(LIMITS, {}),
    }


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether sizes are small."""
    return bool(request.config.getoption("quick"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the rows run."""
    return torch.device(request.config.getoption("device"))


@pytest.fixture(scope="session")
def need(device: torch.device) -> Callable[[str], None]:
    """Skip, with the reason, a row that this machine cannot run: ``"native"`` ops or ``"bfloat16"`` products."""

    def skip_without(what: str) -> None:
        if what == "native" and device.type not in _extension.NATIVE_DEVICES:
            pytest.skip(f"no compiled lbgap library serves {device.type}")
        if what == "bfloat16" and not hardware.bfloat16_products(device.type):
            pytest.skip(f"no bfloat16 matrix products on this {device.type}")

    return skip_without


@pytest.fixture(scope="session")
def limits(request: pytest.FixtureRequest, device: torch.device, quick: bool) -> Iterator[dict[str, float]]:
    """Bytes a second of a copy, operations a second of matrix products, the best of both ends of the run."""
    found = probe(device, quick)
    yield found
    again = probe(device, quick)
    request.config.stash[LIMITS] = {name: max(rate, again[name]) for name, rate in found.items()}


def probe(device: torch.device, quick: bool) -> dict[str, float]:
    """Measure what the machine can do."""
    size, bytes_ = (1024, 2**26) if quick else (2048, 2**28)
    if device.type == "cuda":
        size, bytes_ = 4 * size, 4 * bytes_
    found = {}
    if device.type == "cpu" and _extension.host is not None:
        found["copy"] = _extension.host.copy_bandwidth(bytes_, torch.get_num_threads(), PROBE_REPEATS)
    else:
        source = torch.ones(bytes_, dtype=torch.uint8, device=device)
        target = torch.zeros_like(source)
        found["copy"] = 2 * bytes_ / best(lambda: target.copy_(source), device)
    kinds = [torch.float32, *([torch.bfloat16] if hardware.bfloat16_products(device.type) else [])]
    for dtype in kinds:
        a, b, c = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(3))
        name = str(dtype).removeprefix("torch.")
        found[name] = 2 * size**3 / best(lambda a=a, b=b, c=c: torch.mm(a, b, out=c), device)
    return found


def best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few repeats, after one that warms up."""
    seconds = []
    for _ in range(PROBE_REPEATS + 1):
        began = perf_counter()
        work()
        synchronise(device)
        seconds.append(perf_counter() - began)
    return min(seconds[1:])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@pytest.fixture
def measure(benchmark: Any, device: torch.device, limits: dict[str, float]) -> Callable[..., None]:
    """Time one row: warm up, then a fixed number of rounds of one call each, synchronised.

    A row goes into a ``group`` with its opponents, under the name of its ``backend``. ``work`` is what it does, in
    the units of the limits: bytes under ``"copy"``, operations under the dtype. ``targets`` are what it must reach,
    as ``(kind, against, factor)``: ``"faster"`` and ``"value"`` against a backend of the group, ``"limit"``
    against the machine, ``"most"`` for a further fact that may not be larger. All of it, and any further fact, is
    stored with the timing.
    """

    def run(
        call: Callable[[], object],
        *,
        group: str,
        backend: str,
        rounds: int,
        work: dict[str, float],
        targets: tuple[tuple[str, str, float], ...] = (),
        **facts: Any,
    ) -> None:
        def synchronised() -> None:
            call()
            synchronise(device)

        benchmark.group = group
        benchmark.extra_info.update(backend=backend, work=work, targets=targets, **facts)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        benchmark.pedantic(synchronised, rounds=rounds, warmup_rounds=1)
        if device.type == "cuda":
            benchmark.extra_info["peak_bytes"] = torch.cuda.max_memory_allocated(device)

    return run


@pytest.fixture(scope="session")
def operations() -> Callable[[nn.Module, int, bool], float]:
    """Count the operations of the matrix products in one pass over some samples."""

    def count(model: nn.Module, samples: int, gradient: bool) -> float:
        sizes = [2.0 * layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear)]
        # Backwards each layer has two products, but the first needs no gradient of its inputs.
        return samples * (sum(sizes) + (2 * sum(sizes) - sizes[0] if gradient else 0))

    return count


@pytest.fixture(scope="session")
def wide_series() -> Callable[[int], tuple[Tensor, Tensor]]:
    """MNIST-1D, each series of 40 points interpolated linearly to 784: the size of MNIST without a download."""

    def build(samples: int) -> tuple[Tensor, Tensor]:
        inputs, targets = datasets.mnist1d(samples * 5 // 4).train
        return F.interpolate(inputs[:, None], size=784, mode="linear", align_corners=True)[:, 0], targets

    return build
