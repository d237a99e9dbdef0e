"""The progress bar of a run."""

from __future__ import annotations

from typing import Any

from cpfast.train.errors import require


class ProgressBar:
    """A bar over epochs that moves within them; nothing where stderr is no terminal."""

    def __init__(self, epochs: int, done: int = 0, label: str = "training") -> None:
        tqdm = require("tqdm", "the progress bar").tqdm
        self._bar = tqdm(
            total=epochs,
            initial=done,
            desc=label,
            leave=False,
            disable=None,
            bar_format="{desc} {percentage:3.0f} %|{bar}| epoch {n:.1f}/{total} "
            "[{elapsed}<{remaining}{postfix}]",
        )
        self._accuracy: float | None = None

    def step(self, epochs: float) -> None:
        self._bar.update(epochs)

    def epoch(self, metrics: dict[str, Any]) -> None:
        self._bar.n = metrics["epoch"]  # sums of fractions drift
        shown = [f"loss {metrics['train_loss']:.3f}"]
        if metrics["test_accuracy"] is not None:
            self._accuracy = metrics["test_accuracy"]
        if self._accuracy is not None:
            shown.append(f"test {100 * self._accuracy:.1f} %")
        shown.append(f"k {metrics['repeats']}")
        if metrics["period_end"] is not None:
            shown.append(f"period ended at {metrics['period_end']}")
        self._bar.set_postfix_str(", ".join(shown))

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
