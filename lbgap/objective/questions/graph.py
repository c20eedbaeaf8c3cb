"""The graph that autograd differentiates an output by: which tensors it begins at, and what it shares with another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


class Graph:
    """The graph of an output; as long as this is held, its nodes can be told from those of another.

    Attributes:
        leaves: Id to tensor: those that gradients would be accumulated in.
    """

    def __init__(self, output: Any) -> None:
        """Walk through the graph; nothing is differentiated.

        Args:
            output: A tensor, or tensors in containers.
        """
        self.leaves: dict[int, Tensor] = {}
        self._nodes: dict[int, Any] = {}  # held, for another node may have the id of one that is gone
        waiting: list[Any] = []
        for part in tree_leaves(output):
            if isinstance(part, Tensor) and part.requires_grad:
                if part.grad_fn is None:
                    self.leaves[id(part)] = part
                else:
                    waiting.append(part.grad_fn)
        while waiting:
            node = waiting.pop()
            if node is None or id(node) in self._nodes:
                continue
            self._nodes[id(node)] = node
            variable = getattr(node, "variable", None)
            if isinstance(variable, Tensor):
                self.leaves[id(variable)] = variable
            waiting.extend(following for following, _ in node.next_functions)

    def shares(self, other: Graph) -> bool:
        """Whether something that was computed in one pass is used in the other, too."""
        common = self._nodes.keys() & other._nodes.keys()
        return any(getattr(self._nodes[key], "variable", None) is None for key in common)

    def outside(self, other: Graph, inside: Iterable[Tensor]) -> list[Tensor]:
        """Leaves that are none of some tensors, and that another pass has, too.

        What a pass made itself, for instance to differentiate inside of it, is not there in the next one.
        """
        known = {id(tensor) for tensor in inside}
        return [leaf for key, leaf in self.leaves.items() if key in other.leaves and key not in known]
