"""Scores of predicted characters: cross-entropy, perplexity, accuracy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class NextTokenScores:
    """Of logits [N, T, V] and targets int64 [N, T]."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, logits: Tensor, targets: Tensor) -> None:
        logits, targets = logits.float().flatten(0, -2), targets.flatten()
        loss = F.cross_entropy(logits, targets, reduction="sum").double()
        hits = (logits.argmax(1) == targets).sum()
        sums = torch.stack([loss, hits.double(), loss.new_tensor(len(targets))])
        self._sums = sums if self._sums is None else self._sums + sums

    def result(self) -> dict[str, Any]:
        """ "samples" (characters), "accuracy", "cross_entropy" (nats a character), "perplexity"."""
        if self._sums is None:
            raise ValueError("nothing was added")
        loss, hits, count = self._sums.tolist()
        mean = loss / count
        return {
            "samples": int(count),
            "accuracy": hits / count,
            "cross_entropy": mean,
            "perplexity": math.exp(mean) if mean < 700 else None,
        }

    def table(self, result: dict[str, Any]) -> str:
        perplexity = result["perplexity"]
        rows = [
            ("accuracy", f"{100 * result['accuracy']:.2f} % of {result['samples']:,} characters"),
            ("cross-entropy", f"{result['cross_entropy']:.4f} nats a character"),
            ("perplexity", "-" if perplexity is None else f"{perplexity:.3f} a character"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def draw(self, result: dict[str, Any], folder: Path, title: str) -> list[Path]:
        return []
