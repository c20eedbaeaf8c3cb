"""Passes over dict batches: loss and gradient of a small transformer, against a bare loop over the same batches.

Each batch is a dict with token ids, a mask and labels, padded for itself, so that batches differ in length and none can
be joined. The bare loop accumulates in ``.grad`` what :meth:`lbgap.Objective.loss_and_gradient` returns, from the same
batches, which lie in memory. The loss is that of causal language models: a mean over the tokens that count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lbgap import Objective
from lbgap.problem import hold

ROWS = ("torch", "resident", "streamed")
TARGETS = {"resident": (("faster", "torch", 0.97),)}
VOCABULARY, WIDTH, HEADS, LAYERS, BATCH = 512, 128, 4, 2, 16
IGNORED = -100

DictBatch = dict[str, Tensor]


class Block(nn.Module):
    """A layer of attention and a feed-forward layer, both behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Transform ``(batch, tokens, WIDTH)``; ``mask`` says which pairs of tokens see each other."""
        shape = (*x.shape[:2], HEADS, WIDTH // HEADS)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(x.shape))
        out: Tensor = x + self.feed(self.norms[1](x))
        return out


class Language(nn.Module):
    """A causal language model that takes its inputs as keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(256, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``(batch, tokens, VOCABULARY)``."""
        length = input_ids.shape[1]
        x = self.tokens(input_ids) + self.places(torch.arange(length, device=input_ids.device))
        causal = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
        mask = causal & (attention_mask[:, None, None, :] != 0)
        for block in self.blocks:
            x = block(x, mask)
        logits: Tensor = self.head(x)
        return logits


@pytest.fixture(scope="module")
def model(device: torch.device) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        return Language().to(device).eval()


@pytest.fixture(scope="module")
def batches(quick: bool, device: torch.device) -> list[DictBatch]:
    generator, made = torch.Generator().manual_seed(0), []
    for _ in range(4 if quick else 40):
        lengths = torch.randint(24, 64, (BATCH,), generator=generator)
        ids = torch.randint(VOCABULARY, (BATCH, int(lengths.max())), generator=generator)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        batch = {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.where(mask, IGNORED)}
        made.append({name: part.to(device) for name, part in batch.items()})
    return made


def bare(model: nn.Module, batches: list[DictBatch]) -> Callable[[], Tensor]:
    """The loop that a researcher writes."""
    parameters = list(model.parameters())
    weight = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)

    def loop() -> Tensor:
        model.zero_grad()
        total = 0.0
        for batch in batches:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
            (loss / weight).backward()
            total += float(loss.detach())
        return torch.cat([part.grad.flatten() for part in parameters if part.grad is not None])

    return loop


@pytest.mark.parametrize("backend", ROWS)
def test_dict_batches(
    backend: str,
    model: nn.Module,
    batches: list[DictBatch],
    quick: bool,
    operations: Callable[[nn.Module, int, bool], float],
    monkeypatch: pytest.MonkeyPatch,
    measure: Callable[..., None],
) -> None:
    loop = bare(model, batches)

    def read() -> Iterator[DictBatch]:
        return iter(batches)

    if backend == "streamed":
        monkeypatch.setattr(hold, "budget", lambda: 0.0)
    call = loop
    if backend != "torch":
        objective = Objective(model, read, loss="causal_lm", batch_size=BATCH)
        assert objective.settings()["data"].startswith(backend)
        theta, out = objective.theta, objective.theta
        call = lambda: objective.loss_and_gradient(theta, out=out)[1]  # noqa: E731
    expected = loop()
    assert float((call() - expected).norm() / expected.norm()) < 1e-4
    tokens = sum(batch["input_ids"].numel() for batch in batches)
    measure(
        call,
        group="dict batches, causal language model",
        backend=backend,
        rounds=3 if quick else 9,
        work={"float32": operations(model, tokens, True)},
        targets=TARGETS.get(backend, ()),
        n=sum(part.numel() for part in model.parameters()),
        samples=BATCH * len(batches),
    )
