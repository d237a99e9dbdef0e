"""What several families share."""

from __future__ import annotations

from torch import nn

# Up to this many pixels a side the first layers of ImageNet's networks keep the resolution.
SMALL = 64


def is_small(shape: tuple[int, ...]) -> bool:
    """Of the images, by their height and width."""
    return max(shape[:2]) <= SMALL


def conv(channels: int, width: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Padded so that stride 1 keeps the size; without bias, as a normalisation follows."""
    return nn.Conv2d(channels, width, size, stride, size // 2, groups=groups, bias=False)


def paper_norm(width: int) -> nn.BatchNorm2d:
    """With the momentum and eps of 2506.15954: torch's .01 is Keras' .99."""
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


def init_he(model: nn.Module) -> None:
    """He-normal kernels of convolutions and dense layers, zero biases (1502.01852)."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_fan_out(model: nn.Module) -> None:
    """He-normal convolutions by their outputs, as the networks of ImageNet have it (1512.03385).

    A dense layer, the head, keeps torch's uniform kernel.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
