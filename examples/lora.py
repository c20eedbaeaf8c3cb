"""Low-rank adapters of PEFT on a small GPT-2: only they move.

Parameters that do not require a gradient stay where they are, so that the sharpness is that of the fine-tuning.

    python examples/lora.py

prints how many parameters move, and how sharp the minimizer is in all of them and in those of one layer at a time.
"""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

import lbgap

VOCABULARY, LENGTH = 20, 10


def counting(count: int, step: int) -> list[dict[str, torch.Tensor]]:
    """Sentences that count by a step, from a random number on, and go on at zero; one number in eight is wrong."""
    tokens = (torch.randint(VOCABULARY, (count, 1)) + step * torch.arange(LENGTH)) % VOCABULARY
    tokens = torch.where(torch.rand(tokens.shape) < 1 / 8, torch.randint(VOCABULARY, tokens.shape), tokens)
    return [{"input_ids": sentence, "labels": sentence} for sentence in tokens]


def train(model: torch.nn.Module, samples: list[dict[str, torch.Tensor]], epochs: int) -> None:
    """Train whatever requires a gradient."""
    adam = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
    for _ in range(epochs):
        for batch in DataLoader(samples, batch_size=16, shuffle=True):
            adam.zero_grad()
            model(**batch).loss.backward()
            adam.step()


def main(count: int = 128, epochs: int = 10) -> tuple[PeftModel, DataLoader, lbgap.Sharpness]:
    """Train the model to count by ones and the adapters by twos, measure, and print what was found."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": LENGTH, "vocab_size": VOCABULARY}
    base = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    train(base, counting(count, step=1), epochs)
    config = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model, samples = get_peft_model(base, config), counting(count, step=2)
    train(model, samples, epochs)

    loader = DataLoader(samples, batch_size=64)
    objective = lbgap.Objective(model, loader, loss="causal_lm")
    found = lbgap.fast_sharpness(objective, epsilon=1e-3)
    print(f"{objective.n} parameters move, of {model.num_parameters()}")
    print(found)
    print(lbgap.layer_sharpness(objective, epsilon=1e-3))
    return model, loader, found


if __name__ == "__main__":
    main()
