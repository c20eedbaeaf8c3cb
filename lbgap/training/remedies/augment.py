"""Random flips, rotations and shifts of the inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lbgap.checks import flag, several, whole
from lbgap.training.remedies.base import Remedy, Role, Task

PAPER = {"flip": True, "rotate": 10.0, "shift": 0.2}


@dataclass(frozen=True)
class Augment(Remedy):
    """Data augmentation (Keskar et al. 2016, appendix): each sample anew in each epoch, by one bilinear interpolation.

    What is named is done and nothing else; with nothing named, the paper's three for images and its shift for signals.
    Beyond the edge the nearest value goes on.

    Attributes:
        flip: Mirror half of the images, left to right.
        rotate: Turn images by an angle uniform in [-rotate, rotate], in degrees; at most 180.
        shift: Move each axis by a share of its size, uniform in [-shift, shift]; at most 1.
        shape: How to read flat samples: ``(channels, height, width)`` of an image, or ``(length,)`` of a signal. By
            default ``(n, C, H, W)`` are images and ``(n, C, L)`` signals.
    """

    flip: bool | None = None
    rotate: float | None = None
    shift: float | None = None
    shape: tuple[int, ...] | None = None

    name: ClassVar[str] = "augment"
    roles: ClassVar[tuple[Role, ...]] = (Role.INPUTS,)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TypeError: One of them is of the wrong kind.
            ValueError: One of them is out of range, or none does anything.
        """
        if self.flip is not None:
            object.__setattr__(self, "flip", flag("flip of augment", self.flip))
        for key, most in (("rotate", 180), ("shift", 1)):
            if getattr(self, key) is not None and (value := self._real(key, positive=False)) > most:
                unit = "degrees" if key == "rotate" else "the whole size"
                raise ValueError(f"{key} of augment must be at most {most} ({unit}), got {value:g}")
        named = [self.flip, self.rotate, self.shift]
        if not any(named) and any(value is not None for value in named):
            raise ValueError(
                "augment does nothing with what is named: give flip, rotate or shift a value, or leave out"
            )
        if self.shape is not None:
            shape = several(self.shape)
            if shape is None or len(shape) not in (1, 3):
                raise ValueError(
                    "shape of augment must be (channels, height, width) of an image or (length,) of a signal, got "
                    f"{self.shape!r}"
                )
            object.__setattr__(self, "shape", tuple(whole("shape of augment", size, 1) for size in shape))

    @classmethod
    def from_text(cls, options: Mapping[str, Any]) -> Self:
        """As :meth:`Remedy.from_text`; a shape is written ``1x28x28``."""
        shape = options.get("shape")
        if shape is None or isinstance(shape, tuple):
            return cls(**options)
        try:
            sizes = tuple(int(size) for size in str(shape).split("x"))
        except ValueError:
            raise ValueError(f"shape of augment must be like 1x28x28 or 40, got {shape!r}") from None
        return cls(**{**options, "shape": sizes})

    def check(self, task: Task) -> None:
        """As :meth:`Remedy.check`."""
        inputs = task.train.inputs
        if not inputs.is_floating_point():
            raise TypeError(f"augment interpolates, which needs floating-point inputs, got {inputs.dtype}")
        shape = tuple(inputs.shape[1:])
        if self.shape is not None and math.prod(shape) != math.prod(self.shape):
            raise ValueError(f"shape of augment is {self.shape}, but a sample has {math.prod(shape)} values, {shape}")
        if self.shape is None and len(shape) not in (2, 3):
            raise ValueError(
                f"augment cannot tell whether samples of shape {shape} are images or signals: pass its shape, as "
                "(1, 28, 28) of an image or (40,) of a signal (--remedy augment:shape=1x28x28)"
            )
        if not self._image(inputs) and (self.flip or self.rotate):
            raise ValueError("augment only shifts signals: leave out flip and rotate, or pass the shape of the images")

    def _image(self, inputs: Tensor) -> bool:
        return len(self.shape or inputs.shape[1:]) == 3

    def inputs(self, task: Task, inputs: Tensor) -> Tensor:
        """As :meth:`Remedy.inputs`."""
        named = {"flip": self.flip, "rotate": self.rotate, "shift": self.shift}
        wanted: Mapping[str, Any] = named if any(named.values()) else PAPER
        image = self._image(inputs)
        shape = self.shape or inputs.shape[1:]
        images = inputs.reshape(-1, *shape) if image else inputs.reshape(len(inputs), -1, 1, shape[-1])
        generator = task.generator(Role.INPUTS)
        draws = torch.rand(4, len(inputs), generator=generator, dtype=torch.float64, device=task.device)
        angle = (2 * draws[0] - 1) * math.radians((wanted["rotate"] or 0.0) if image else 0.0)
        mirror = torch.ones_like(angle)
        if image and wanted["flip"]:
            mirror.masked_fill_(draws[1] < 0.5, -1.0)
        moves = 2 * (2 * draws[2:] - 1) * (wanted["shift"] or 0.0)  # affine_grid counts from -1 to 1
        return warp(images, angle, mirror, moves[0], moves[1] if image else torch.zeros_like(angle)).reshape_as(inputs)


def warp(images: Tensor, angle: Tensor, mirror: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Turn, mirror and move images by one bilinear interpolation.

    Args:
        images: ``(n, C, H, W)``.
        angle: In radians, ``(n,)`` like the others.
        mirror: -1 to flip left to right, else 1.
        right: Shift in half widths.
        down: Shift in half heights.

    Returns:
        The images; in the dtype in which they came.
    """
    height, width = images.shape[2:]
    cos, sin, aspect, dtype = angle.cos(), angle.sin(), height / width, images.dtype
    # From a place in the result to one in the image, both from -1 to 1: undo the shift, turn (in pixels, which height
    # and width bring to one scale), undo the mirror.
    rows = [
        torch.stack([mirror * cos, mirror * sin * aspect, -mirror * (cos * right + sin * aspect * down)], 1),
        torch.stack([-sin / aspect, cos, sin / aspect * right - cos * down], 1),
    ]
    half = dtype in (torch.float16, torch.bfloat16)
    work = images.float() if half else images
    grid = F.affine_grid(torch.stack(rows, 1).to(work.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(work, grid, mode="bilinear", padding_mode="border", align_corners=False).to(dtype)
