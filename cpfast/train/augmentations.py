"""How training images are augmented, by name."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["AUGMENTATIONS", "Augmentation"]


class Augmentation(NamedTuple):
    """Ranges that are drawn from uniformly, for each image in each pass.

    Attributes:
        rotation: in degrees, to either side.
        shift: share of the height and of the width, to either side.
        mirrors: whether mirroring goes with it, where the data allow it.
        layers: operations of RandAugment that follow, for each image its own.
        magnitude: of these, of 30.
    """

    rotation: float
    shift: float
    mirrors: bool = True
    layers: int = 0
    magnitude: int = 0

    @property
    def can_capture(self) -> bool:
        """Whether the host reads nothing of it."""
        return self.layers == 0

    def describe(self, *, flip: bool) -> str:
        parts = [
            *([f"turns of {self.rotation:g} degrees"] if self.rotation > 0 else []),
            *([f"shifts of {100 * self.shift:g} %"] if self.shift > 0 else []),
            *(["mirroring"] if flip and self.mirrors else []),
            *([f"RandAugment (n {self.layers}, m {self.magnitude})"] if self.layers else []),
        ]
        return f"augmented by {', '.join(parts)}" if parts else "not augmented"


AUGMENTATIONS = {
    "paper": Augmentation(15.0, 0.1),  # 2506.15954
    "crop-flip": Augmentation(0.0, 0.125),  # 4 pixels of CIFAR's 32 (1512.03385)
    "randaugment": Augmentation(0.0, 0.125, layers=2, magnitude=9),  # 1909.13719
    "none": Augmentation(0.0, 0.0, mirrors=False),
}
