"""From a run folder back to the model that was trained."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lbgap import networks
from lbgap.system import files
from lbgap.training.run import SavedRun


def load_model(run: SavedRun, model: nn.Module | None = None) -> nn.Module:
    """Rebuild the network of a run with its trained weights.

    Args:
        run: What :func:`lbgap.training.read_run` found.
        model: The network, for a run that does not record how to build it; its weights are overwritten.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: The run does not say how to build its network and none was given, or the weights do not fit.
    """
    spec = run.config.get("extra", {}).get("network")
    if model is None and spec is None:
        raise ValueError(
            f"{run.folder} was trained on a model of your own, which it cannot rebuild: pass it with "
            "--model package.module:callable (or model= in Python)"
        )
    model = networks.build(spec) if model is None else model
    load_weights(model, run.weights, str(run.folder))
    model.eval()
    return model


def read_weights(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load a ``.safetensors`` file into a model.

    Args:
        model: The network; its weights are overwritten.
        path: The file.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or its tensors do not fit the model.
    """
    load_weights(model, files.read_safetensors(path)[0], str(path))
    model.eval()
    return model


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy named tensors into a model that has exactly those.

    Args:
        model: The network.
        weights: A ``state_dict``.
        source: Where the tensors come from, for the message.

    Raises:
        ValueError: A tensor is missing, left over or of another shape, or the model's shapes are not known yet.
    """
    own = model.state_dict()
    for name, value in own.items():
        if is_lazy(value):
            raise ValueError(f"parameter {name!r} of the model has no shape yet: run one batch through the model first")
    problems = [f"{name!r} is missing" for name in own if name not in weights]
    problems += [f"{name!r} is not in the model" for name in weights if name not in own]
    problems += [
        f"{name!r} has shape {tuple(weights[name].shape)}, the model needs {tuple(own[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"the weights of {source} do not fit the model: {', '.join(problems[:3])}{more}")
    model.load_state_dict(dict(weights))
