"""Networks by name, as the command line asks for them and a run's configuration records them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn

from lbgap.checks import hint, is_whole, several
from lbgap.networks.convolutional import c1, c1_1d, c2, c2_1d, c3, c4
from lbgap.networks.dense import f1, f2, mlp

NETWORKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"f1": f1, "f2": f2, "c1": c1, "c2": c2, "c3": c3, "c4": c4, "c1_1d": c1_1d, "c2_1d": c2_1d, "mlp": mlp}
)
"""The networks that :func:`build` knows, by name."""

IMAGES = ("c1", "c2", "c3", "c4")  # what takes (channels, height, width); the others take flat samples


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
    name = known(name)
    parameters = inspect.signature(NETWORKS[name]).parameters
    for key in arguments:
        if key not in parameters:
            raise ValueError(f"{name} takes {', '.join(parameters)}, got {key!r}{hint(str(key), parameters)}")
    required = {key for key, parameter in parameters.items() if parameter.default is parameter.empty}
    if missing := sorted(required - set(arguments)):
        raise ValueError(f"{name} needs {', '.join(sorted(required))}, missing {', '.join(missing)}")
    return NETWORKS[name](**arguments)


def specify(
    name: str,
    features: Sequence[int],
    outputs: int,
    *,
    seed: int,
    hidden: Sequence[int] | None = None,
    initialisation: str = "torch",
) -> dict[str, Any]:
    """Say what :func:`build` needs for a network that fits some data.

    Args:
        name: A key of :data:`NETWORKS`.
        features: The shape of one sample: ``(n,)`` for most networks, ``(channels, height, width)`` for
            ``"c1"`` to ``"c4"``.
        outputs: Number of classes, or of values to regress.
        seed: Seed of the parameters, not negative.
        hidden: Widths of the hidden layers, for ``"mlp"`` alone.
        initialisation: ``"torch"`` or ``"uniform"``, as in :func:`lbgap.networks.mlp`.

    Returns:
        The specification, of values that JSON can hold.

    Raises:
        ValueError: An unknown name, or a network that takes samples of another shape.
    """
    name = known(name)
    images, shape = name in IMAGES, list(features)
    if len(shape) != (3 if images else 1):
        takes = "images (channels, height, width)" if images else "flat samples (n,)"
        fitting = ", ".join(other for other in NETWORKS if (other in IMAGES) != images)
        raise ValueError(
            f"network {name} takes {takes}, the samples have shape {tuple(shape)}: "
            + (f"use {fitting}, or --model" if len(shape) in (1, 3) else "use --model")
        )
    outputs, seed = (int(value) if is_whole(value) else value for value in (outputs, seed))
    spec: dict[str, Any] = {"name": name, "inputs": shape if images else shape[0], "outputs": outputs, "seed": seed}
    if name == "mlp":
        widths = [] if hidden is None else several(hidden)
        spec["hidden"] = hidden if widths is None else [int(size) if is_whole(size) else size for size in widths]
    if initialisation != "torch":
        spec["initialisation"] = initialisation
    return spec


def known(name: object) -> str:
    """Refuse a name that is not one of :data:`NETWORKS`.

    Args:
        name: Anything.

    Returns:
        The name.

    Raises:
        ValueError: It is not known.
    """
    if not isinstance(name, str) or name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}{hint(str(name), NETWORKS)}")
    return name
