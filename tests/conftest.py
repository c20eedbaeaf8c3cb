"""What several test files share: small trained networks, made once a session."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is there: processes that share the cores have one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model that is not there is an error, and is not fetched

import random
import signal
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lbgap.cli.app import main
from lbgap.datasets import mnist1d
from lbgap.networks import mlp
from lbgap.system import processes
from tests import pairs, torchvision_operators

# A shell ignores Ctrl-C in what it starts in the background, and its children inherit that: tests send it on purpose.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torchvision_operators.declare()


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="every combination of parameters, not every pair of values")


def pytest_generate_tests(metafunc):
    pairs.generate(metafunc)


@pytest.fixture(scope="module")
def one_thread():
    """Tensors this small gain nothing from a second thread, and lose much where other processes compete."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def same_draws():
    """Networks that a test builds without a seed are the same in every run."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        yield


class _OneProcess:
    """Stands in for a pool of processes: works where the test runs, one piece after the other."""

    def __init__(self, *_, **__):
        pass

    def submit(self, function, work):
        return SimpleNamespace(result=lambda: function(work))

    def shutdown(self, **_):
        pass


@pytest.fixture
def no_processes(monkeypatch):
    """A function after which experiments start no further processes."""
    return lambda: monkeypatch.setattr(processes, "ProcessPoolExecutor", _OneProcess)


@pytest.fixture
def caller_state():
    """A function that says all that a call might change in its caller's process."""

    def state():
        places = (torch.backends, torch.backends.mkldnn.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
        return {
            "torch": torch.get_rng_state().tolist(),
            "numpy": str(np.random.get_state()),  # noqa: NPY002
            "python": random.getstate(),
            "dtype": torch.get_default_dtype(),
            "threads": torch.get_num_threads(),
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
            "matmul": torch.get_float32_matmul_precision(),
            "products": [place.fp32_precision for place in places],
            "tf32": torch.backends.cudnn.allow_tf32,
            "attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()),
            "filters": list(warnings.filters),
        }

    return state


@pytest.fixture
def lbgap_command(monkeypatch, capsys):
    """Run the command line with some arguments; returns its exit status, standard output and standard error."""

    def command(*arguments):
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "argv", ["lbgap", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return command


@pytest.fixture(scope="session")
def mnist1d_train():
    """The 2,000 training samples that the networks below are trained on."""
    return mnist1d(samples=2500, seed=0).train


@pytest.fixture(scope="session")
def minimizers(mnist1d_train):
    """Two minimizers of one network with batch-norm: ``"SB"`` (batches of 32) and ``"LB"`` (10 %)."""
    return {name: _train(mnist1d_train, batch) for name, batch in (("SB", 32), ("LB", 200))}


def _train(data, batch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = mlp(40, [48, 48], 10, seed=1)
    adam = torch.optim.Adam(model.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        for chosen in torch.randperm(len(data.inputs), generator=generator).split(batch):
            adam.zero_grad()
            F.cross_entropy(model(data.inputs[chosen]), data.targets[chosen]).backward()
            adam.step()
    torch.set_num_threads(threads)
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()
