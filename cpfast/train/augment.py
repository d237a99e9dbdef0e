"""Random rotation, shift and flip of a batch: the paper's Keras pipeline (2506.15954) in torch.

An output pixel at offset (r, c) from the centre (n - 1)/2 shows the input at R(theta) ((r, c) + t),
bilinear, with the nearest edge pixel outside; the flip comes last.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor
from torch.nn import functional as F

ROTATION_DEGREES = 15.0
SHIFT = 0.1  # of the height and of the width


def draw(count: int, *, seed: int, epoch: int, flip: bool) -> Tensor:
    """Random parameters for the samples of one epoch: float32 [count, 4] on the CPU.

    Columns: angle in radians, shift down and shift right as fractions of the size, and the sign
    of the column axis (-1 flips). They depend on (seed, epoch) alone, so a resumed run needs no
    generator state and every device draws the same.
    """
    generator = torch.Generator().manual_seed(_mix(seed, epoch))
    uniform = torch.rand(count, 4, generator=generator)
    signed = 2 * uniform - 1
    angle = signed[:, 0] * math.radians(ROTATION_DEGREES)
    sign = torch.where(uniform[:, 3] < 0.5, -1.0, 1.0) if flip else torch.ones(count)
    return torch.stack([angle, SHIFT * signed[:, 1], SHIFT * signed[:, 2], sign], 1)


def apply(images: Tensor, parameters: Tensor) -> Tensor:
    """Warp each image by its own parameters.

    Args:
        images: float [N, C, H, W].
        parameters: [N, 4] from `draw`, on the same device.

    Returns:
        Like images.
    """
    height, width = images.shape[2:]
    angle, down, right, sign = parameters.unbind(1)
    cos, sin = angle.cos(), angle.sin()
    down, right = down * height, right * width
    # affine_grid wants (x, y) in units of half a width and half a height.
    to_x = torch.stack(
        [cos * sign, sin * (height / width), (sin * down + cos * right) * (2 / width)], 1
    )
    to_y = torch.stack(
        [-sin * sign * (width / height), cos, (cos * down - sin * right) * (2 / height)], 1
    )
    grid = F.affine_grid(
        torch.stack([to_x, to_y], 1), [len(images), 1, height, width], align_corners=False
    )
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _mix(seed: int, epoch: int) -> int:
    """A 32-bit seed: neighbouring (seed, epoch) must not give related streams."""
    digest = hashlib.blake2b(f"augment {seed} {epoch}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
