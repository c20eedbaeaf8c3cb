"""Fully connected networks: any, and the paper's F1 and F2."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from lbgap.checks import flag, several, shown, whole
from lbgap.networks.start import Initialisation, Start, norm


def mlp(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    *,
    batch_norm: bool = True,
    seed: int,
    initialisation: Initialisation = "torch",
) -> nn.Sequential:
    """Build a fully connected network: linear, batch-norm, ReLU for each hidden layer, then linear.

    The parameters come from a generator of its own; the global random state is neither read nor changed.

    Args:
        inputs: Number of features of one sample.
        hidden: Widths of the hidden layers; an empty list gives a linear model.
        outputs: Number of classes, or of values to regress.
        batch_norm: Whether a batch-norm stands between each hidden linear layer and its ReLU.
        seed: Seed of the parameters, not negative. The same seed gives the same bits.
        initialisation: ``"torch"``: PyTorch's default for linear layers and convolutions, uniform in
            +-1/sqrt(fan-in) for weights and biases. ``"uniform"``: Glorot uniform weights and zero biases, the
            default of Keras, in which the authors' scripts are written; that the paper's "uniformly distributed"
            starts mean this is an assumption. Batch-norm starts as the identity in both, with PyTorch's
            constants (eps 1e-5, momentum 0.1), not those of Keras.

    Returns:
        The network, float32 on the CPU, in training mode; it maps ``(batch, inputs)`` to logits
        ``(batch, outputs)``, without a softmax.

    Raises:
        ValueError: A size below 1, a negative seed, or an unknown initialisation.
        TypeError: A size, the seed or ``batch_norm`` of the wrong type.
    """
    inner = several(hidden)
    if inner is None:
        raise TypeError(f"hidden must be a list of widths, got {shown(hidden)}: write [512, 512]")
    roles = ["inputs", *["hidden"] * len(inner), "outputs"]
    widths = [whole(role, size, 1) for role, size in zip(roles, [inputs, *inner, outputs], strict=True)]
    start = Start(seed, initialisation)
    batch_norm = flag("batch_norm", batch_norm)
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths[:-1]):
        layers.append(start.linear(width, following))
        if batch_norm:
            layers.append(norm(0, following))
        layers.append(nn.ReLU())
    layers.append(start.linear(*widths[-2:]))
    return nn.Sequential(*layers)


def f1(inputs: int = 784, outputs: int = 10, *, seed: int, initialisation: Initialisation = "torch") -> nn.Sequential:
    """Build F1, the paper's network for MNIST: five hidden layers of 512 with batch-norm.

    Source: Keskar et al., "On Large-Batch Training for Deep Learning", arXiv 1609.04836, appendix. It has
    1,462,794 parameters for 784 inputs and 10 outputs. The softmax is left to the loss.

    Args:
        inputs: Number of features of one sample.
        outputs: Number of classes.
        seed: Seed of the parameters, not negative.
        initialisation: As in :func:`mlp`.

    Returns:
        The network, as :func:`mlp` returns it.

    Raises:
        ValueError: As in :func:`mlp`.
        TypeError: As in :func:`mlp`.
    """
    return mlp(inputs, [512] * 5, outputs, seed=seed, initialisation=initialisation)


def f2(inputs: int = 360, outputs: int = 1973, *, seed: int, initialisation: Initialisation = "torch") -> nn.Sequential:
    """Build F2, the paper's network for TIMIT: seven hidden layers of 512 with batch-norm.

    Source: as :func:`f1`; recalled, not re-read. It has 2,780,085 parameters for 360 inputs and 1973 outputs.
    The softmax is left to the loss.

    Args:
        inputs: Number of features of one sample.
        outputs: Number of classes.
        seed: Seed of the parameters, not negative.
        initialisation: As in :func:`mlp`.

    Returns:
        The network, as :func:`mlp` returns it.

    Raises:
        ValueError: As in :func:`mlp`.
        TypeError: As in :func:`mlp`.
    """
    return mlp(inputs, [512] * 7, outputs, seed=seed, initialisation=initialisation)
