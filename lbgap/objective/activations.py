"""How many bytes of activations a forward pass keeps for its gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lbgap.system.device import SavedBytes


def recorded(module: nn.Module, inputs: Tensor, again: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Run a module with a graph, and add up what autograd saves.

    By hooks on what is saved; ``torch.func`` inside a forward pass refuses these, and then the graph is searched.

    Args:
        module: What is run.
        inputs: ``(batch, ...)``.
        again: Gives a fresh copy of them.

    Returns:
        The output with its graph, and bytes.
    """
    constant = [*module.parameters(), *module.buffers()]
    saved = SavedBytes(constant)
    with torch.enable_grad():
        try:
            with torch.autograd.graph.saved_tensors_hooks(saved.note, lambda tensor: tensor):
                return module(inputs), saved.total()
        except torch.OutOfMemoryError:
            raise
        except Exception:  # of the hooks, or of the model itself, then here again
            output = module(again())
    saved = SavedBytes(constant)
    for tensor in _saved(output):
        with contextlib.suppress(RuntimeError):  # of a tensor of torch.func, which has no storage of its own
            saved.note(tensor)
    return output, saved.total()


def _saved(output: object) -> Iterator[Tensor]:
    """The tensors in the graph of an output."""
    waiting, seen = [getattr(output, "grad_fn", None)], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        for name in dir(node):
            if name == "saved_tensors" or name.startswith("_saved_"):
                held = getattr(node, name)
                yield from (x for x in (held if isinstance(held, tuple | list) else (held,)) if isinstance(x, Tensor))
