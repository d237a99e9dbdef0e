"""Scores of predicted classes: accuracy, cross-entropy, each class by itself, and calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cpfast.train.plots.classes import draw_calibration, draw_confusion
from cpfast.train.report import text_table

BINS = 15  # of confidence, as 1706.04599 has them
TOP = 5
MOST_ROWS = 50  # of a table; beyond that the classes that are recognised worst
WORST = 20


class ClassScores:
    """Of logits [N, C] and targets int64 [N].

    The expected calibration error is that of Guo et al. (1706.04599, equation 3): the mean distance
    between accuracy and confidence, the probability of the predicted class, over `BINS` bins of
    equal width, weighted by their samples.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self._sums: dict[str, Tensor] = {}

    def add(self, logits: Tensor, targets: Tensor) -> None:
        logits = logits.float()
        outputs = len(self.classes)
        confidence, predicted = logits.softmax(1).max(1)
        hit = predicted == targets
        # a bin is open below and closed above
        place = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)

        def binned(values: Tensor) -> Tensor:
            return values.new_zeros(BINS, dtype=torch.float64).index_add(0, place, values.double())

        top = logits.topk(min(TOP, outputs)).indices == targets[:, None]
        pairs = torch.bincount(targets * outputs + predicted, minlength=outputs * outputs)
        self._add("loss", F.cross_entropy(logits, targets, reduction="sum").double())
        self._add("confusion", pairs)
        self._add("top", top.sum())
        self._add("samples", binned(torch.ones_like(confidence)))
        self._add("confidence", binned(confidence))
        self._add("hits", binned(hit))

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0) + value

    def result(self) -> dict[str, Any]:
        """
        "samples", "accuracy", "top5" (None up to five classes), "balanced_accuracy" (the mean
        recall of the classes that have samples), "cross_entropy", "calibration_error";
        "classes", each with "name", "samples", "precision", "recall" and "f1" (None where there is
        nothing to count); "confusion", a row for each true class, a column for each predicted one;
        "calibration", each bin with its upper "limit", "samples", "confidence" and "accuracy".
        """
        sums = {name: value.cpu() for name, value in self._sums.items()}
        outputs = len(self.classes)
        confusion = sums["confusion"].view(outputs, outputs)
        total = int(confusion.sum())
        classes = [
            _of_class(name, int(hits), int(true), int(predicted))
            for name, hits, true, predicted in zip(
                self.classes, confusion.diagonal(), confusion.sum(1), confusion.sum(0), strict=True
            )
        ]
        recalls = [one["recall"] for one in classes if one["recall"] is not None]
        bins = [
            {
                "limit": number / BINS,
                "samples": int(samples),
                "confidence": _share(float(confidence), int(samples)),
                "accuracy": _share(float(hits), int(samples)),
            }
            for number, samples, confidence, hits in zip(
                range(1, BINS + 1), sums["samples"], sums["confidence"], sums["hits"], strict=True
            )
        ]
        apart = (sums["hits"] - sums["confidence"]).abs().sum()
        return {
            "samples": total,
            "accuracy": int(confusion.diagonal().sum()) / total,
            "top5": int(sums["top"]) / total if outputs > TOP else None,
            "balanced_accuracy": sum(recalls) / len(recalls),
            "cross_entropy": float(sums["loss"]) / total,
            "calibration_error": float(apart) / total,
            "classes": classes,
            "confusion": confusion.tolist(),
            "calibration": bins,
        }

    def table(self, result: dict[str, Any]) -> str:
        rows = [("accuracy", f"{_percent(result['accuracy'])} of {result['samples']:,} samples")]
        if result["top5"] is not None:
            rows.append(("top-5 accuracy", _percent(result["top5"])))
        rows += [
            ("balanced accuracy", f"{_percent(result['balanced_accuracy'])}, the mean recall"),
            ("cross-entropy", f"{result['cross_entropy']:.4f}"),
            (
                "calibration error",
                f"{_percent(result['calibration_error'])}, expected, over {BINS} bins",
            ),
        ]
        width = max(len(name) for name, _ in rows)
        classes, note = result["classes"], ""
        if len(classes) > MOST_ROWS:
            seen = [one for one in classes if one["recall"] is not None]
            classes = sorted(seen, key=lambda one: one["recall"])[:WORST]
            note = (
                f"\nThe {len(classes)} of {len(self.classes)} classes of the lowest recall; "
                "--json gives all."
            )
        table = text_table(
            ("class", "samples", "precision", "recall", "F1"),
            [
                (
                    one["name"],
                    f"{one['samples']:,}",
                    *(_percent(one[key]) for key in ("precision", "recall", "f1")),
                )
                for one in classes
            ],
        )
        head = "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
        return f"{head}\n\n{table}{note}"

    def draw(self, result: dict[str, Any], folder: Path, title: str) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        confusion, calibration = folder / "confusion.png", folder / "calibration.png"
        draw_confusion(result, confusion, title)
        draw_calibration(result, calibration, title)
        return [confusion, calibration]


def _of_class(name: str, hits: int, true: int, predicted: int) -> dict[str, Any]:
    return {
        "name": name,
        "samples": true,
        "precision": _share(hits, predicted),
        "recall": _share(hits, true),
        "f1": _share(2 * hits, true + predicted),
    }


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
