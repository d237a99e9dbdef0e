"""What a model's predictions are worth: one module for each kind of target.

`add` collects on the device, batch by batch; nothing of a batch is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Scores"]


class Scores(Protocol):
    """Collects batches, and says what they come to."""

    def add(self, logits: Tensor, targets: Tensor) -> None: ...

    def result(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        ...

    def table(self, result: dict[str, Any]) -> str: ...

    def draw(self, result: dict[str, Any], folder: Path, title: str) -> list[Path]:
        """Pictures in a folder, which is made where there are any; their paths."""
        ...
