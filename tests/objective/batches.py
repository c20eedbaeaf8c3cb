"""Batches as people have them, models that take them, and what their loss is by a loop of one's own."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap.problem.pieces import Pieces
from lbgap.problem.stored import Table
from lbgap.problem.stream import Stream

SAMPLES, WORDS, CLASSES = 41, 9, 3
SIZES = (9, 9, 9, 9, 5)


def draw(seed):
    return torch.Generator().manual_seed(seed)


LENGTHS = torch.randint(2, 8, (SAMPLES,), generator=draw(0))
for _start, _longest in zip(range(0, SAMPLES, 9), (4, 7, 3, 6, 5), strict=True):  # a width of its own for each batch
    LENGTHS[_start : _start + 9].clamp_(max=_longest)
IDS = torch.randint(1, WORDS, (SAMPLES, 7), generator=draw(1)) * (torch.arange(7) < LENGTHS[:, None])
MASK = (IDS > 0).float()
LABELS = torch.randint(0, CLASSES, (SAMPLES,), generator=draw(2))
TAGS = torch.where(IDS > 0, IDS % CLASSES, -100)
X, Z = torch.randn(SAMPLES, 4, generator=draw(3)), torch.randn(SAMPLES, 2, generator=draw(4))


def rows():
    """The indices of each batch."""
    return torch.arange(SAMPLES).split(SIZES)


def batch(chosen, width=None):
    """Texts as a collating function makes them: no wider than the longest of the batch."""
    width = int(LENGTHS[chosen].max()) if width is None else width
    parts = {"input_ids": IDS, "attention_mask": MASK, "tags": TAGS}
    found = {name: part[chosen, :width] for name, part in parts.items()}
    return {**found, "labels": LABELS[chosen]}


def padded():
    return map(batch, rows())


def equal():
    return (batch(chosen, 7) for chosen in rows())


class Text(nn.Module):
    """A mean over the words that are not padding, and two layers."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden, self.out = nn.Embedding(WORDS, 3), nn.Linear(3, 3), nn.Linear(3, CLASSES)

    def forward(self, input_ids, attention_mask):
        words = self.words(input_ids) * attention_mask[..., None]
        return self.out(self.hidden(words.sum(1) / attention_mask.sum(1)[:, None]).tanh())


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


class Dataclass(Text):
    def forward(self, input_ids, attention_mask):
        logits = super().forward(input_ids, attention_mask)
        return Output(logits, logits * 2)


class Tags(nn.Module):
    """Logits for each word, and the hidden states beside them."""

    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(WORDS, 3), nn.Linear(3, CLASSES)

    def forward(self, input_ids):
        hidden = self.words(input_ids).tanh()
        return {"logits": self.out(hidden), "hidden": hidden}


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.out = nn.Linear(4, 4), nn.Linear(2, 4), nn.Linear(4, CLASSES)

    def forward(self, x, z):
        return self.out((self.one(x) + self.other(z)).tanh())


class Graph:
    """Some graphs in one: nodes, edges, which graph a node is of, and a class of each graph."""

    def __init__(self, chosen):
        nodes = LENGTHS[chosen]
        self.x = torch.cat([IDS[row, :count] for row, count in zip(chosen, nodes, strict=True)])
        self.batch = torch.arange(len(chosen)).repeat_interleave(nodes)
        self.y, self.num_graphs = LABELS[chosen], len(chosen)

    def apply(self, function):
        self.x, self.batch, self.y = map(function, (self.x, self.batch, self.y))
        return self

    def to(self, device):
        return self.apply(lambda part: part.to(device))


class OfGraphs(nn.Module):
    def __init__(self):
        super().__init__()
        self.nodes, self.out = nn.Embedding(WORDS, 3), nn.Linear(3, CLASSES)

    def forward(self, graph):
        pooled = torch.zeros(graph.num_graphs, 3, dtype=self.nodes.weight.dtype)
        return self.out(pooled.index_add(0, graph.batch, self.nodes(graph.x)).tanh())


def graphs():
    return map(Graph, rows())


# What each objective is compared with: the mean over all samples by a loop that knows nothing of batches.


def of_text(run):
    return F.cross_entropy(run(IDS, MASK.double()), LABELS)


def of_output(run):
    return F.cross_entropy(run(IDS, MASK.double()).logits, LABELS)


def of_tags(run):
    found = run(IDS)
    return F.cross_entropy(found["logits"].flatten(0, 1), TAGS.flatten()) + found["hidden"][IDS > 0].square().mean()


def tags_loss(output, batch):
    kept = batch["tags"] != -100
    each = F.cross_entropy(output["logits"].flatten(0, 1), batch["tags"].flatten(), reduction="none").reshape(
        kept.shape
    )
    each = each + output["hidden"].square().mean(2)
    return (each * kept).sum(), kept.sum()


def of_two(run):
    return F.cross_entropy(run(X.double(), Z.double()), LABELS)


def of_graphs(run):
    return F.cross_entropy(run(Graph(torch.arange(SAMPLES))), LABELS)


def whole():
    return batch(torch.arange(SAMPLES))


def own(output, batch):
    return F.cross_entropy(output, batch["labels"])


def own_logits(output, batch):
    return F.cross_entropy(output.logits, batch["labels"])


def of_y(output, graph):
    return F.cross_entropy(output, graph.y)


# name: model, data, exact value, options, kind of samples
CASES = {
    "a dict": (Text, whole, of_text, {}, Table),
    "a dict and a loss of one's own": (Text, whole, of_text, {"loss": own}, Table),
    "a dict beside the target": (Text, lambda: (whole(), LABELS), of_text, {}, Table),
    "a call": (Text, whole, of_text, {"call": lambda m, b: m(b["input_ids"], b["attention_mask"])}, Table),
    "outputs in a dataclass": (Dataclass, whole, of_output, {}, Table),
    "a loss of a dataclass": (Dataclass, whole, of_output, {"loss": own_logits}, Table),
    "two inputs": (Two, lambda: (X, Z, LABELS), of_two, {}, Table),
    "two inputs in a pair": (Two, lambda: ((X, Z), LABELS), of_two, {"batch_size": 7}, Table),
    "tags": (Tags, whole, of_tags, {"loss": tags_loss}, Table),
    "padded": (Text, lambda: padded, of_text, {}, Pieces),
    "padded, small batches": (Text, lambda: padded, of_text, {"batch_size": 4}, Pieces),
    "padded and a loss of one's own": (Text, lambda: padded, of_text, {"loss": own}, Pieces),
    "padded tags": (Tags, lambda: padded, of_tags, {"loss": tags_loss}, Pieces),
    "padded outputs in a dataclass": (Dataclass, lambda: padded, of_output, {}, Pieces),
    "equal batches": (Text, lambda: equal, of_text, {}, Table),
    "a stream": (Text, lambda: equal, of_text, {"batch_size": 6}, Stream),
    "a padded stream": (Text, lambda: padded, of_text, {"batch_size": 6}, Stream),
    "a padded stream of tags": (Tags, lambda: padded, of_tags, {"loss": tags_loss}, Stream),
    "graphs": (OfGraphs, lambda: graphs, of_graphs, {}, Pieces),
    "graphs and a loss of one's own": (OfGraphs, lambda: graphs, of_graphs, {"loss": of_y}, Pieces),
    "graphs in a stream": (OfGraphs, lambda: graphs, of_graphs, {"loss": of_y}, Stream),
}
RAW = ("a loss of a dataclass", "tags", "padded tags", "a padded stream of tags")  # no one tensor


def seeded(build, seed=0):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return build()


def near(theta, count, seed=0):
    steps = torch.randn(count, len(theta), dtype=torch.float64, generator=draw(seed))
    return theta + 0.3 * steps.to(theta.dtype)


everywhere = pytest.mark.parametrize("case", CASES, indirect=True)


def some(*names):
    return pytest.mark.parametrize("case", names, indirect=True)


def refused(error, message, function, *args, **options):
    with pytest.raises(error, match=message) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
