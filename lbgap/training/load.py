"""From a run folder back to the model that was trained."""

from __future__ import annotations

from torch import nn

from lbgap import networks
from lbgap.training.run import SavedRun
from lbgap.weights import fill


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
    return fill(model, run.weights, str(run.folder)).eval()
