"""What several test files share: small trained networks, made once a session."""

import signal

import pytest
import torch
import torch.nn.functional as F

from lbgap.datasets import mnist1d
from lbgap.networks import mlp

# A shell ignores Ctrl-C in what it starts in the background, and its children inherit that: tests send it on purpose.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_thread():
    """Tensors this small gain nothing from a second thread, and lose much where other processes compete."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
