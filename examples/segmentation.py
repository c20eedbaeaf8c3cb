"""A small U-Net with batch normalisation, and pixels that do not count.

A loss of torch is taken with its options, such as `ignore_index=255` for pixels without a label. The value is the mean
over all pixels that have one, whichever batches they are in.

    python examples/segmentation.py

prints the sharpness with running statistics, and with those of each batch, which are two functions.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lbgap

CLASSES, SIZE, NO_LABEL = 3, 16, 255


def block(inputs: int, outputs: int) -> nn.Sequential:
    """A convolution that keeps the size."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Two levels, with a connection across."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.low, self.up = block(1, width), block(width, 2 * width), block(3 * width, width)
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits, ``(batch, classes, height, width)``."""
        fine = self.down(image)
        low = nn.functional.interpolate(self.low(nn.functional.max_pool2d(fine, 2)), scale_factor=2)
        return self.head(self.up(torch.cat([fine, low], 1)))


def squares(count: int) -> TensorDataset:
    """Squares of two kinds on a dark ground; the labels of their borders are not known."""
    images, labels = torch.zeros(count, 1, SIZE, SIZE), torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    for image, label in zip(images, labels, strict=True):
        top, left, kind = int(torch.randint(8, ())), int(torch.randint(8, ())), int(torch.randint(1, CLASSES, ()))
        label[top : top + 8, left : left + 8] = NO_LABEL
        label[top + 1 : top + 7, left + 1 : left + 7] = kind
        image[0, top : top + 8, left : left + 8] = kind / 2
    return TensorDataset(images + 0.2 * torch.randn_like(images), labels)


def main(count: int = 96, epochs: int = 6, width: int = 8) -> tuple[nn.Module, DataLoader, lbgap.Sharpness]:
    """Train, measure, and print what was found."""
    torch.manual_seed(0)
    loader = DataLoader(squares(count), batch_size=16, shuffle=True)
    model, loss = UNet(width), nn.CrossEntropyLoss(ignore_index=NO_LABEL)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for images, labels in loader:
            adam.zero_grad()
            loss(model(images), labels).backward()
            adam.step()

    found = lbgap.fast_sharpness(model, loader, loss=loss, epsilon=1e-3)
    print(found)
    batch = lbgap.fast_sharpness(model, loader, loss=loss, epsilon=1e-3, batch_norm="batch", batch_size=32)
    print(f"with the statistics of each batch: {batch.value:.3f} %")
    return model, loader, found


if __name__ == "__main__":
    main()
