"""A graph convolutional network on one graph, of which some nodes are for training.

One graph is one sample, and cannot be cut. `call=` says how it enters the model. The loss is a function of the output
and the graph that returns a sum and what it is divided by, so that the value is the mean over the nodes for training.

    python examples/graph.py

prints the sharpness and the largest eigenvalues of the Hessian.
"""

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

import lbgap

CLASSES, FEATURES = 3, 8


def communities(nodes: int) -> Data:
    """Nodes of three kinds: those of one kind are joined more often, and their features are alike."""
    kinds = torch.arange(nodes) % CLASSES
    joined = torch.rand(nodes, nodes) < torch.where(kinds[:, None] == kinds, 0.3, 0.03)
    joined = (joined | joined.T) & ~torch.eye(nodes, dtype=torch.bool)
    features = torch.randn(CLASSES, FEATURES)[kinds] + torch.randn(nodes, FEATURES)
    return Data(features, joined.nonzero().T.contiguous(), y=kinds, train_mask=torch.rand(nodes) < 0.5)


class GCN(nn.Module):
    """Two layers."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.second = GCNConv(FEATURES, hidden), GCNConv(hidden, CLASSES)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Logits of every node, ``(nodes, classes)``."""
        return self.second(self.first(nodes, edges).relu(), edges)


def loss(output: Tensor, graph: Data) -> tuple[Tensor, Tensor]:
    """The sum over the nodes for training, and their number."""
    mask = graph.train_mask
    return nn.functional.cross_entropy(output[mask], graph.y[mask], reduction="sum"), mask.sum()


def main(nodes: int = 90, steps: int = 100) -> tuple[nn.Module, Data, lbgap.Sharpness]:
    """Train, measure, and print what was found."""
    torch.manual_seed(0)
    graph, model = communities(nodes), GCN(16)
    adam = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    for _ in range(steps):
        adam.zero_grad()
        total, count = loss(model(graph.x, graph.edge_index), graph)
        (total / count).backward()
        adam.step()

    objective = lbgap.Objective(model, graph, loss=loss, call=lambda model, graph: model(graph.x, graph.edge_index))
    found = lbgap.fast_sharpness(objective, epsilon=1e-3)
    print(found)
    print(lbgap.eigenvalues(objective, k=3))
    return model, graph, found


if __name__ == "__main__":
    main()
