"""The networks of the paper, built from a seed or a run's configuration, and the user's own by path."""

from __future__ import annotations

import difflib
import importlib
import inspect
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

Initialisation: TypeAlias = Literal["torch", "uniform"]


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
        initialisation: ``"torch"``: PyTorch's default for linear layers, uniform in +-1/sqrt(fan-in) for
            weights and biases. ``"uniform"``: Glorot uniform weights and zero biases, the default of
            Keras, in which the authors' scripts are written; that the paper's "uniformly distributed"
            starts mean this is an assumption. Batch-norm starts as the identity in both, with PyTorch's
            constants (eps 1e-5, momentum 0.1), not those of Keras.

    Returns:
        The network, float32 on the CPU, in training mode; it maps ``(batch, inputs)`` to logits
        ``(batch, outputs)``, without a softmax.

    Raises:
        ValueError: A size below 1, a negative seed, or an unknown initialisation.
        TypeError: A size, the seed or ``batch_norm`` of the wrong type.
    """
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise TypeError(f"hidden must be a list of widths, got {hidden!r}: write [512, 512]")
    widths = [inputs, *hidden, outputs]
    for role, size in zip(["inputs", *["hidden"] * len(hidden), "outputs"], widths, strict=True):
        _check_integer(role, size, 1)
    _check_integer("seed", seed, 0)
    if not isinstance(batch_norm, bool):
        raise TypeError(f"batch_norm must be true or false, got {batch_norm!r}")
    if initialisation not in get_args(Initialisation):
        raise ValueError(f"initialisation must be 'torch' or 'uniform', got {initialisation!r}")
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths[:-1]):
        layers.append(_linear(width, following, generator, initialisation))
        if batch_norm:
            layers.append(nn.BatchNorm1d(following, device="cpu", dtype=torch.float32))
        layers.append(nn.ReLU())
    layers.append(_linear(widths[-2], outputs, generator, initialisation))
    return nn.Sequential(*layers)


def _check_integer(role: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{role} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{role} must be at least {least}, got {value}")


def _linear(inputs: int, outputs: int, generator: torch.Generator, initialisation: str) -> nn.Linear:
    # On "meta" the layer's own initialisation draws nothing.
    layer = nn.Linear(inputs, outputs, device="meta", dtype=torch.float32).to_empty(device="cpu")
    with torch.no_grad():
        if initialisation == "uniform":
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            layer.bias.zero_()
        else:  # the draws of nn.Linear.reset_parameters, in its order
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(inputs)
            layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


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


NETWORKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType({"f1": f1, "mlp": mlp})
"""The networks that :func:`build` knows, by name."""


def build(spec: Mapping[str, Any]) -> nn.Module:
    """Build a network from what a run recorded about it.

    Args:
        spec: ``name``, a key of :data:`NETWORKS`, and the arguments of that function, all of which JSON can
            hold: ``{"name": "mlp", "inputs": 40, "hidden": [128, 128], "outputs": 10, "seed": 0}``.

    Returns:
        The network; the same specification gives the same parameters.

    Raises:
        ValueError: No name or an unknown one, an unknown or missing argument, or a value out of range.
        TypeError: A value of the wrong type.
    """
    if not isinstance(spec, Mapping):
        raise TypeError(f"a network is specified by a mapping with 'name', got {type(spec).__name__}")
    arguments = dict(spec)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in NETWORKS:
        raise ValueError(f"name must be one of {', '.join(NETWORKS)}, got {name!r}{_hint(str(name), NETWORKS)}")
    parameters = inspect.signature(NETWORKS[name]).parameters
    for key in arguments:
        if key not in parameters:
            raise ValueError(f"{name} takes {', '.join(parameters)}, got {key!r}{_hint(str(key), parameters)}")
    required = {key for key, parameter in parameters.items() if parameter.default is parameter.empty}
    if missing := sorted(required - set(arguments)):
        raise ValueError(f"{name} needs {', '.join(sorted(required))}, missing {', '.join(missing)}")
    return NETWORKS[name](**arguments)


def _hint(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f": did you mean {close[0]!r}?" if close else ""


def from_path(path: str) -> nn.Module:
    """Take a network from the user's own code.

    The module is imported, and so run, with the current directory first on the import path; the path is
    restored before this returns. What the module or the callable raises is passed on.

    Args:
        path: ``"package.module:name"``, where ``name`` is a ``torch.nn.Module`` or a callable without
            required arguments that returns one.

    Returns:
        The network.

    Raises:
        ValueError: A malformed path, or a module or name that does not exist, or a callable that needs
            arguments.
        TypeError: The name, or what it returns, is not a ``torch.nn.Module``.
    """
    module_name, _, attribute = path.partition(":")
    well_formed = all(part.isidentifier() for part in [*module_name.split("."), attribute])
    if not well_formed or module_name.endswith(".py"):
        raise ValueError(f"a model must be given as 'package.module:name', got {path!r}")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A module that the user's own code lacks is that code's error, not the path's.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise ValueError(
                f"no module {error.name!r} in {here} or installed, wanted for {path!r}: "
                "run in the directory that holds it"
            ) from error
        return _network(module, attribute, path)
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _network(module: object, attribute: str, path: str) -> nn.Module:
    if not hasattr(module, attribute):
        raise ValueError(f"no {attribute!r} in the module of {path!r}{_hint(attribute, vars(module))}")
    found = getattr(module, attribute)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise TypeError(
            f"{path!r} must be a torch.nn.Module or a callable that returns one, got {type(found).__name__}"
        )
    try:
        signature = inspect.signature(found)
    except ValueError:  # a builtin without a signature: try it
        signature = inspect.Signature()
    try:
        signature.bind()
    except TypeError as error:
        raise ValueError(
            f"{path!r} must be callable without arguments ({error}): wrap it in a function that fills them in"
        ) from error
    network = found()
    if not isinstance(network, nn.Module):
        raise TypeError(f"{path!r} must return a torch.nn.Module, got {type(network).__name__}")
    return network
