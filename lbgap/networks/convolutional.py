"""The paper's convolutional networks C1 to C4, and smaller ones of their kind for signals of one dimension.

Layers and their order are those of the authors' scripts (``network_zoo.py`` of ``keskarnitish/large-batch-training``).
Their max-pooling with border mode "same" gives ceil(n / 2) positions; where its windows lie depends on what Keras runs
on:

- 3 wide, stride 2: the scripts run on Theano, where the first window begins one position before the image; so it does
  here. On TensorFlow "same" is asymmetric for even n: the first window begins with the image, and the last one ends one
  position behind it.
- 2 wide, stride 2: here, as on TensorFlow, the first window begins with the image, and for odd n the last one has one
  position. Keras 1 on Theano begins one position before the image, so that its last row and column are never seen. The
  paper speaks of none of this; here nothing of the image is lost.

No parameter depends on this. Convolutions of odd width are padded alike on both sides everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from lbgap.checks import several, shown, whole
from lbgap.networks.start import Initialisation, Start, norm

CIFAR = (3, 32, 32)
DEEP_STACKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def c1(
    inputs: Sequence[int] = CIFAR, outputs: int = 10, *, seed: int, initialisation: Initialisation = "torch"
) -> nn.Sequential:
    """Build C1, the paper's shallow convolutional network for CIFAR-10, after AlexNet.

    Twice: convolution with 64 filters 5x5, batch-norm, ReLU, max-pooling 3x3 with stride 2. Then two linear layers of
    384 and 192, each with batch-norm, ReLU and dropout 0.5, and a linear one. It has 1,757,834 parameters for CIFAR-10.
    The softmax is left to the loss.

    Source: Keskar et al., "On Large-Batch Training for Deep Learning", arXiv 1609.04836, appendix, and the authors'
    scripts.

    Args:
        inputs: Channels, height and width of one image.
        outputs: Number of classes.
        seed: Seed of the parameters, not negative. Dropout draws from torch's own generator, as
            :func:`lbgap.train` sets it.
        initialisation: As in :func:`lbgap.networks.mlp`.

    Returns:
        The network, float32 on the CPU, in training mode; it maps ``(batch, *inputs)`` to logits
        ``(batch, outputs)``.

    Raises:
        ValueError: A size below 1, another number of sizes than three, a negative seed, or an unknown
            initialisation.
        TypeError: A size or the seed of the wrong type.
    """
    return nn.Sequential(*_shallow(_image(inputs), outputs, Start(seed, initialisation)))


def c2(
    inputs: Sequence[int] = CIFAR, outputs: int = 10, *, seed: int, initialisation: Initialisation = "torch"
) -> nn.Sequential:
    """Build C2, the paper's deep convolutional network for CIFAR-10, after VGG.

    Five stacks of convolutions 3x3 (64 filters twice, 128 twice, 256, 512 and 512 three times each), each with
    batch-norm and ReLU, a dropout between them (0.3 in the first stack, 0.4 later), and max-pooling 2x2 at the end.
    Then dropout 0.5, a linear layer of 512 with batch-norm, ReLU and dropout 0.5, and a linear one. It has 14,991,946
    parameters for CIFAR-10. The softmax is left to the loss.

    Source: as :func:`c1`.

    Args:
        inputs: Channels, height and width of one image.
        outputs: Number of classes.
        seed: As in :func:`c1`.
        initialisation: As in :func:`lbgap.networks.mlp`.

    Returns:
        The network, as :func:`c1` returns it.

    Raises:
        ValueError: As in :func:`c1`.
        TypeError: As in :func:`c1`.
    """
    return nn.Sequential(*_deep(_image(inputs), outputs, Start(seed, initialisation)))


def c3(
    inputs: Sequence[int] = CIFAR, outputs: int = 100, *, seed: int, initialisation: Initialisation = "torch"
) -> nn.Sequential:
    """Build C3: C1 for CIFAR-100, with 1,775,204 parameters.

    Args:
        inputs: As in :func:`c1`.
        outputs: Number of classes.
        seed: As in :func:`c1`.
        initialisation: As in :func:`lbgap.networks.mlp`.

    Returns:
        The network, as :func:`c1` returns it.

    Raises:
        ValueError: As in :func:`c1`.
        TypeError: As in :func:`c1`.
    """
    return c1(inputs, outputs, seed=seed, initialisation=initialisation)


def c4(
    inputs: Sequence[int] = CIFAR, outputs: int = 100, *, seed: int, initialisation: Initialisation = "torch"
) -> nn.Sequential:
    """Build C4: C2 for CIFAR-100, with 15,038,116 parameters.

    Args:
        inputs: As in :func:`c1`.
        outputs: Number of classes.
        seed: As in :func:`c1`.
        initialisation: As in :func:`lbgap.networks.mlp`.

    Returns:
        The network, as :func:`c1` returns it.

    Raises:
        ValueError: As in :func:`c1`.
        TypeError: As in :func:`c1`.
    """
    return c2(inputs, outputs, seed=seed, initialisation=initialisation)


def c1_1d(inputs: int = 40, outputs: int = 10, *, seed: int, initialisation: Initialisation = "torch") -> nn.Sequential:
    """Build C1 for signals of one dimension such as MNIST-1D: half of C1's widths, windows of 5 and 3 positions.

    It is not in the paper. It has 87,178 parameters for 40 inputs and 10 outputs.

    Args:
        inputs: Length of a signal.
        outputs: Number of classes.
        seed: As in :func:`c1`.
        initialisation: As in :func:`lbgap.networks.mlp`.

    Returns:
        The network, as :func:`c1` returns it, but it maps flat samples ``(batch, inputs)``, to which it gives their one
        channel itself.

    Raises:
        ValueError: As in :func:`c1`.
        TypeError: As in :func:`c1`.
    """
    inputs = whole("inputs", inputs, 1)
    return nn.Sequential(
        nn.Unflatten(1, (1, inputs)), *_shallow((1, inputs), outputs, Start(seed, initialisation), narrower=2)
    )


def c2_1d(inputs: int = 40, outputs: int = 10, *, seed: int, initialisation: Initialisation = "torch") -> nn.Sequential:
    """Build C2 for signals of one dimension such as MNIST-1D: three of its stacks, a quarter of their widths.

    Windows are of 3 and 2 positions. All five stacks would halve 40 positions to 2, and train more slowly. It is not
    in the paper. It has 79,642 parameters for 40 inputs and 10 outputs.

    Args:
        inputs: Length of a signal.
        outputs: Number of classes.
        seed: As in :func:`c1`.
        initialisation: As in :func:`lbgap.networks.mlp`.

    Returns:
        The network, as :func:`c1_1d` returns it.

    Raises:
        ValueError: As in :func:`c1`.
        TypeError: As in :func:`c1`.
    """
    inputs = whole("inputs", inputs, 1)
    return nn.Sequential(
        nn.Unflatten(1, (1, inputs)),
        *_deep((1, inputs), outputs, Start(seed, initialisation), DEEP_STACKS[:3], narrower=4),
    )


def _image(inputs: Sequence[int]) -> tuple[int, ...]:
    listed = several(inputs)
    if listed is None:
        raise TypeError(f"inputs must be channels, height and width, got {shown(inputs)}: write [3, 32, 32]")
    sizes = tuple(whole("inputs", size, 1) for size in listed)
    if len(sizes) != 3:
        raise ValueError(f"inputs must be channels, height and width, got {listed}: write [3, 32, 32]")
    return sizes


def _shallow(shape: tuple[int, ...], outputs: int, start: Start, narrower: int = 1) -> list[nn.Module]:
    outputs = whole("outputs", outputs, 1)
    filters, dimensions, places = 64 // narrower, len(shape) - 1, shape[1:]
    layers: list[nn.Module] = []
    for channels in (shape[0], filters):
        layers += [start.convolution(dimensions, channels, filters, 5), norm(dimensions, filters), nn.ReLU()]
        layers.append(nn.MaxPool2d(3, 2, padding=1) if dimensions == 2 else nn.MaxPool1d(3, 2, padding=1))
        places = tuple(-(-size // 2) for size in places)
    width = filters * math.prod(places)
    layers.append(nn.Flatten())
    for following in (384 // narrower, 192 // narrower):
        layers += [start.linear(width, following), norm(0, following), nn.ReLU(), nn.Dropout(0.5)]
        width = following
    return [*layers, start.linear(width, outputs)]


def _deep(
    shape: tuple[int, ...],
    outputs: int,
    start: Start,
    stacks: Sequence[tuple[int, ...]] = DEEP_STACKS,
    narrower: int = 1,
) -> list[nn.Module]:
    outputs = whole("outputs", outputs, 1)
    dimensions, channels, places = len(shape) - 1, shape[0], shape[1:]
    layers: list[nn.Module] = []
    for place, stack in enumerate(stacks):
        for number, wide in enumerate(stack):
            if number:
                layers.append(nn.Dropout(0.4 if place else 0.3))
            filters = wide // narrower
            layers += [start.convolution(dimensions, channels, filters, 3), norm(dimensions, filters), nn.ReLU()]
            channels = filters
        layers.append(nn.MaxPool2d(2, ceil_mode=True) if dimensions == 2 else nn.MaxPool1d(2, ceil_mode=True))
        places = tuple(-(-size // 2) for size in places)
    width, hidden = channels * math.prod(places), 512 // narrower
    layers += [nn.Flatten(), nn.Dropout(0.5), start.linear(width, hidden), norm(0, hidden), nn.ReLU(), nn.Dropout(0.5)]
    return [*layers, start.linear(hidden, outputs)]
