"""Batches with sparse tensors, which cannot be cut: a graph network on its adjacency."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap.problem import hold, trees

NODES = 40


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x, adjacency):
        return adjacency @ self.last((adjacency @ self.first(x)).relu())


def graph():
    generator = torch.Generator().manual_seed(0)
    links = torch.rand(NODES, NODES, generator=generator) < 0.1
    dense = (links | links.T | torch.eye(NODES, dtype=torch.bool)).float()
    labels = torch.randint(0, 3, (NODES,), generator=generator)
    labels[torch.rand(NODES, generator=generator) < 0.5] = -100
    return torch.randn(NODES, 5, generator=generator), dense / dense.sum(1, keepdim=True), labels


def model():
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        return Graph()


FORMS = {
    "coo": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_sparse_adjacency_is_one_batch(form, streams, monkeypatch):
    x, dense, labels = graph()
    data = (x, FORMS[form](dense), labels)
    if streams:
        monkeypatch.setattr(hold, "budget", lambda: 0.0)
        data = lambda: iter([(x, FORMS[form](dense), labels)])  # noqa: E731
    objective = lbgap.Objective(model(), data, loss=nn.CrossEntropyLoss(), precision="float64")
    expected = F.cross_entropy(model().double()(x.double(), dense.double()), labels)
    assert float(objective.loss(objective.theta)) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert objective.settings()["judged"]["additive"] == "not judged: batches that cannot be cut"
    assert len(objective.digest()) == 64


def test_a_dense_adjacency_is_that_of_all_samples():
    x, dense, labels = graph()
    with pytest.raises(
        ValueError, match=f"runs on all {NODES} samples together, but not on .*batch_size={NODES} if they"
    ):
        lbgap.Objective(model(), (x, dense, labels), loss=nn.CrossEntropyLoss())
    objective = lbgap.Objective(model(), (x, dense, labels), loss=nn.CrossEntropyLoss(), coupled=True, batch_size=NODES)
    expected = F.cross_entropy(model()(x, dense), labels)
    assert float(objective.loss(objective.theta)) == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("form", FORMS)
def test_values_of_sparse_tensors_are_judged_and_counted(form):
    x, dense, labels = graph()
    sparse = FORMS[form](dense)
    assert trees.size((x, sparse)) is None
    assert trees.nbytes(sparse) == sum(part.nbytes for part in trees.stored(sparse))
    dense[3, 3] = torch.nan
    with pytest.raises(ValueError, match="expected finite inputs"):
        lbgap.Objective(model(), (x, FORMS[form](dense), labels), loss=nn.CrossEntropyLoss())


class Means(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return torch.stack([self.layer(part).mean(0) for part in x.unbind()])


def nested(layout):
    generator = torch.Generator().manual_seed(0)
    return torch.nested.nested_tensor([torch.randn(n, 4, generator=generator) for n in (3, 5, 2, 6)], layout=layout)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors():
    x, y = nested(torch.jagged), torch.tensor([0, 1, 2, 0])
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        model = Means()
    objective = lbgap.Objective(model, (x, y))
    expected = F.cross_entropy(model(x), y)
    assert float(objective.loss(objective.theta)) == pytest.approx(float(expected.detach()), rel=1e-6)
    with pytest.raises(TypeError, match=r"expected nested tensors of layout=torch.jagged, got one of torch.strided"):
        lbgap.Objective(model, (nested(torch.strided), y))
