"""An LSTM on sequences of different lengths, from a loader that pads each batch for itself.

Batches `((sequences, lengths), classes)` enter the model as `model(sequences, lengths)`. They are padded to different
lengths, so that they are kept as the loader makes them.

    python examples/lstm.py

prints the sharpness, and how far one may go against the gradient before the loss rises.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader

import lbgap

Sample = tuple[Tensor, int]


class Classifier(nn.Module):
    """The class of a sequence, from the last state."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 2)

    def forward(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """Logits, ``(batch, 2)``."""
        packed = pack_padded_sequence(sequences, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (state, _) = self.lstm(packed)
        return self.head(state[-1])


def waves(count: int) -> list[Sample]:
    """Slow and fast ones, of 8 to 24 steps, with noise."""
    samples = []
    for length, fast in zip(torch.randint(8, 25, (count,)).tolist(), torch.randint(2, (count,)).tolist(), strict=True):
        wave = torch.sin((0.5 + 0.5 * fast) * torch.arange(length) + 6.28 * torch.rand(()))
        samples.append(((wave + 0.2 * torch.randn(length))[:, None], fast))
    return samples


def collate(samples: list[Sample]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Pad the sequences of one batch to the longest of them."""
    sequences, classes = zip(*samples, strict=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return (pad_sequence(sequences, batch_first=True), lengths), torch.tensor(classes)


def main(count: int = 160, epochs: int = 10, hidden: int = 16) -> tuple[nn.Module, DataLoader, lbgap.Sharpness]:
    """Train, measure, and print what was found."""
    torch.manual_seed(0)
    samples, model = waves(count), Classifier(hidden)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for (sequences, lengths), classes in DataLoader(samples, 16, shuffle=True, collate_fn=collate):
            adam.zero_grad()
            nn.functional.cross_entropy(model(sequences, lengths), classes).backward()
            adam.step()

    loader = DataLoader(samples, batch_size=40, collate_fn=collate)
    objective = lbgap.Objective(model, loader)
    found = lbgap.fast_sharpness(objective, epsilon=1e-3)
    print(found)
    print(lbgap.critical_sharpness(objective))
    return model, loader, found


if __name__ == "__main__":
    main()
