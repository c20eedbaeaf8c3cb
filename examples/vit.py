"""A vision transformer of timm, measured on the loader that it was trained with.

A loader that shuffles is read in the order of its data set: the mean over all samples knows no order.

    python examples/vit.py

prints the sharpness, that of the attention alone, and the trace of the Hessian.
"""

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lbgap

CLASSES, SIZE = 4, 16


def images(count: int) -> TensorDataset:
    """Stripes in four directions, with noise."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    stripes = torch.stack([x, y, x + y, x - y]).mul(0.8).sin()
    labels = torch.randint(CLASSES, (count,))
    return TensorDataset((stripes[labels, None] + torch.randn(count, 3, SIZE, SIZE)), labels)


def main(count: int = 200, epochs: int = 10) -> tuple[nn.Module, DataLoader, lbgap.Sharpness]:
    """Train, measure, and print what was found."""
    torch.manual_seed(0)
    loader = DataLoader(images(count), batch_size=32, shuffle=True)
    sizes = {"img_size": SIZE, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=CLASSES, **sizes)
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for inputs, labels in loader:
            adam.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            adam.step()

    found = lbgap.fast_sharpness(model, loader, epsilon=1e-3)
    print(found)
    attention = lbgap.fast_sharpness(model, loader, parameters=["blocks.*.attn"], epsilon=1e-3)
    print(f"attention alone: {attention.value:.3f} %")
    print(lbgap.hessian_trace(model, loader, relative_error=0.1, seed=0))
    return model, loader, found


if __name__ == "__main__":
    main()
