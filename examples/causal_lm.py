"""A small GPT-2: how sharp are its minimizers from small and from large batches, and what lies between them?

Sentences of different lengths come from a DataLoader as dicts of `input_ids`, `attention_mask` and `labels`, in which
-100 marks the padding. `loss="causal_lm"` is the mean over the tokens that have a label, however they are batched.

    python examples/causal_lm.py

prints loss, sharpness and the largest eigenvalues of the Hessian of both, and what lies on the line between them.
"""

import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

import lbgap

VOCABULARY, LENGTH, PADDING = 24, 12, 0


def sentences(count: int) -> list[dict[str, torch.Tensor]]:
    """Walks through an alphabet, by one or two letters at a time, of 5 to 12 letters."""
    samples = []
    for length in torch.randint(5, LENGTH + 1, (count,)).tolist():
        tokens = 1 + torch.randint(1, 3, (length,)).cumsum(0) % (VOCABULARY - 1)
        padded = torch.nn.functional.pad(tokens, (0, LENGTH - length), value=PADDING)
        mask = (torch.arange(LENGTH) < length).long()
        samples.append({"input_ids": padded, "attention_mask": mask, "labels": padded.masked_fill(mask == 0, -100)})
    return samples


def train(samples: list[dict[str, torch.Tensor]], batch_size: int, epochs: int) -> GPT2LMHeadModel:
    """Train from a start that is the same for each batch size."""
    torch.manual_seed(1)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": LENGTH}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": PADDING, "eos_token_id": PADDING}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **tokens))
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in DataLoader(samples, batch_size, shuffle=True):
            adam.zero_grad()
            model(**batch).loss.backward()
            adam.step()
    return model.eval()


def main(count: int = 128, epochs: int = 12) -> tuple[list[GPT2LMHeadModel], DataLoader, list[lbgap.Sharpness]]:
    """Train both, measure both, and print what was found."""
    torch.manual_seed(0)
    samples = sentences(count)
    loader = DataLoader(samples, batch_size=64)
    models = [train(samples, 8, epochs), train(samples, count // 2, 4 * epochs)]
    found = []
    for name, model in zip(("small batches", "large batches"), models, strict=True):
        objective = lbgap.Objective(model, loader, loss="causal_lm")
        found.append(lbgap.fast_sharpness(objective, epsilon=1e-3))
        spectrum = lbgap.eigenvalues(objective, k=3, tolerance=0.01)
        print(f"{name}: loss {found[-1].base_loss:.4f}, sharpness {found[-1].value:.3f} %")
        print("  largest eigenvalues", *(f"{value:.3g}" for value in spectrum.values))
    print(lbgap.line(*models, loader, loss="causal_lm", points=13))
    return models, loader, found


if __name__ == "__main__":
    main()
