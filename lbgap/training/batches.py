"""Which samples an epoch visits together, and the random draws that belong to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lbgap.checks import Amount, amount, counted

ORDER, NOISE, REMEDY = 0, 1, 3
"""Streams of random numbers of an epoch: the order of the samples, dropout and the like, and from 3 on those of the
remedies, one a role. (2 is that of the places on a trained path.)"""


def resolve_batch_size(batch_size: Amount, samples: int) -> int:
    """Turn what the user passed as ``batch_size`` into a number of samples.

    Args:
        batch_size: As :func:`lbgap.checks.amount` takes it; 0.1, or ``"10%"``, is the paper's large batch.
        samples: The size of the training set.

    Returns:
        A number of samples in 1..samples.

    Raises:
        TypeError: It is neither a number nor a percentage.
        ValueError: It is less than one sample, more than there are, or a share outside (0, 1].
    """
    count = counted(amount("batch_size", batch_size), samples)
    if count > samples:
        raise ValueError(f"batch_size must be at most the {samples} training samples, got {count}: pass 1.0 for all")
    return count


def epoch_batches(samples: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Deal the samples into the batches of one epoch.

    Every sample comes once. The last batch holds what is left; if that is a single sample, which
    batch-norm cannot train on, it joins the batch before.

    Args:
        samples: The size of the training set.
        batch_size: Samples in a batch.
        seed: The seed of the training.
        epoch: The epoch, from 1; with ``seed`` it determines the order.

    Returns:
        Sample indices, int64 on the CPU, one tensor a batch.
    """
    generator = torch.Generator(device="cpu").manual_seed(derive_seed(seed, epoch, ORDER))
    order = torch.randperm(samples, generator=generator, dtype=torch.int64, device="cpu")
    return split_batches(order, batch_size)


def split_batches(samples: Tensor, batch_size: int) -> list[Tensor]:
    """Split samples into batches, none of them a single sample that was left over.

    Args:
        samples: ``(n, ...)``.
        batch_size: Samples in a batch.

    Returns:
        The batches; the last one may be smaller, or larger by one.
    """
    batches = list(torch.split(samples, batch_size))
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def derive_seed(seed: int, epoch: int, stream: int) -> int:
    """Mix the seed of a training, an epoch and a stream into a seed of their own.

    Args:
        seed: The seed of the training, not negative.
        epoch: The epoch.
        stream: :data:`ORDER`, :data:`NOISE`, or another number, not negative.

    Returns:
        64 bits; neighbouring arguments give unrelated values.
    """
    mixed = np.random.SeedSequence(seed, spawn_key=(epoch, stream)).generate_state(1, np.uint64)
    return int(mixed[0])


@contextmanager
def private_rng(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of one device, and put their states back at the end.

    Args:
        device: ``cpu``, or a ``cuda`` device with its index.
        seed: 64 bits.
    """
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        # Not torch.manual_seed, which would reseed the GPUs that are not ours as well.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield
