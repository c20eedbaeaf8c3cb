"""A small BERT, with a collator that masks at random.

The collator masks other tokens whenever the loader is read. A loss that changes by itself has no minimum, so the data
are frozen as one reading finds them, and a note in the result says so. `loss="model"` is the model's own `.loss`.

    python examples/masked_lm.py

prints the sharpness, in full and by the layers of the encoder.
"""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling, PreTrainedTokenizerFast

import lbgap

WORDS = ["[PAD]", "[MASK]", "the", "a", "cat", "dog", "bird", "sees", "hears", "small", "old", "."]


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", mask_token="[MASK]")


def sentence() -> str:
    """Such as "the old cat sees a small bird ."."""

    def one(*words: str) -> str:
        return words[int(torch.randint(len(words), ()))]

    def thing() -> str:
        return f"{one('the', 'a')} {one('', 'small', 'old')} {one('cat', 'dog', 'bird')}"

    return f"{thing()} {one('sees', 'hears')} {thing()} ."


def main(count: int = 200, epochs: int = 10) -> tuple[BertForMaskedLM, DataLoader, lbgap.Sharpness]:
    """Train, measure, and print what was found."""
    torch.manual_seed(0)
    words = tokenizer()
    samples = [words(sentence(), padding="max_length", max_length=9) for _ in range(count)]
    collator = DataCollatorForLanguageModeling(words, mlm_probability=0.3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes))
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in DataLoader(samples, batch_size=16, shuffle=True, collate_fn=collator):
            adam.zero_grad()
            model(**batch).loss.backward()
            adam.step()

    loader = DataLoader(samples, batch_size=50, collate_fn=collator)
    objective = lbgap.Objective(model, loader, loss="model")
    found = lbgap.fast_sharpness(objective, epsilon=1e-3)
    print(found)
    layers = {f"layer {number}": f"bert.encoder.layer.{number}" for number in range(2)}
    for name, module in layers.items():
        part = lbgap.fast_sharpness(model, loader, loss="model", parameters=[module], epsilon=1e-3)
        print(f"{name} alone: {part.value:.3f} %")
    return model, loader, found


if __name__ == "__main__":
    main()
