"""Several labels for each sample, with `loss="bce"`: logits and zeros and ones of one shape.

    python examples/multi_label.py

prints the sharpness in a box and in a ball, and how the first grows with the size of the box.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lbgap

FEATURES, LABELS = 20, 6


def samples(count: int) -> TensorDataset:
    """Each label depends on a sum of features of its own."""
    inputs = torch.randn(count, FEATURES)
    return TensorDataset(inputs, (inputs @ torch.randn(FEATURES, LABELS) > 1).float())


def main(count: int = 300, epochs: int = 15) -> tuple[nn.Module, DataLoader, lbgap.Sharpness]:
    """Train, measure, and print what was found."""
    torch.manual_seed(0)
    loader = DataLoader(samples(count), batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, LABELS))
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for inputs, labels in loader:
            adam.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(inputs), labels).backward()
            adam.step()

    objective = lbgap.Objective(model, loader, loss="bce")
    found = lbgap.fast_sharpness(objective, epsilon=1e-3)
    print(found)
    print(lbgap.ball_sharpness(objective, radius=0.1))
    curve = lbgap.sharpness_curve(objective, epsilons=[1e-4, 1e-3, 1e-2])
    print(curve)
    return model, loader, found


if __name__ == "__main__":
    main()
