"""How many bytes of activations a forward pass keeps for its gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lbgap.flat import FlatModule
from lbgap.problem import trees
from lbgap.problem.trees import Tree
from lbgap.system.device import SavedBytes


def recorded(flat: FlatModule, inputs: Tree, again: Callable[[], Tree]) -> tuple[Any, int]:
    """Run a replica with a graph, and add up what autograd saves.

    By hooks on what is saved; ``torch.func`` inside a forward pass refuses these, and then the graph is searched.

    Args:
        flat: What is run.
        inputs: Of a batch.
        again: Gives a fresh copy of them.

    Returns:
        The output with its graph, and bytes.
    """
    constant = [*flat.module.parameters(), *flat.module.buffers()]
    saved = SavedBytes(constant)
    with torch.enable_grad():
        try:
            with torch.autograd.graph.saved_tensors_hooks(saved.note, lambda tensor: tensor):
                return flat.run(inputs), saved.total()
        except torch.OutOfMemoryError:
            raise
        except Exception:  # of the hooks, or of the model itself, then here again
            output = flat.run(again())
    saved = SavedBytes(constant)
    for tensor in _saved(output):
        with contextlib.suppress(RuntimeError):  # of a tensor of torch.func, which has no storage of its own
            saved.note(tensor)
    return output, saved.total()


def _saved(output: object) -> Iterator[Tensor]:
    """The tensors in the graph of an output."""
    waiting, seen = [part.grad_fn for part in trees.observed(output)], set()
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
