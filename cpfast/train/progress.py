"""Progress bars, and the end of a run by Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from cpfast.train.errors import MissingLibrary, require
from cpfast.train.metrics import EpochMetrics


class Interrupt:
    """Ctrl-C within the block raises KeyboardInterrupt at the next `check`, or at the block's end.

    Raised at any moment, it may come within a finaliser or a callback, where Python drops it.
    Pressed once more, it is raised at once.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._before: Any = None

    def check(self) -> None:
        if self._pressed:
            self._pressed = False
            raise KeyboardInterrupt

    def __enter__(self) -> Interrupt:
        # Only the main thread may set handlers; and what runs in the background ignores Ctrl-C.
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        ):
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if kind is None:
            self.check()

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True


class _NoBar:
    """What stands for tqdm's bar where that is not installed."""

    n = 0.0

    def update(self, n: float = 1) -> None:
        pass

    def set_postfix_str(self, text: str) -> None:
        pass

    def write(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def bar(label: str, shown: bool = True, **options: Any) -> Any:
    """A bar of tqdm's that goes when it is done; nothing where stderr is no terminal."""
    try:
        tqdm = require("tqdm", "the progress bar").tqdm
    except MissingLibrary:
        return _NoBar()
    return tqdm(desc=label, leave=False, disable=None if shown else True, **options)


class ProgressBar:
    """A bar over epochs that moves within them; where stderr is no terminal nothing, or with
    `lines` a line an epoch on stdout."""

    def __init__(
        self,
        epochs: int,
        done: int = 0,
        label: str = "training",
        *,
        shown: bool = True,
        lines: bool = False,
    ) -> None:
        self._bar = bar(
            label,
            shown,
            total=epochs,
            initial=done,
            bar_format="{desc} {percentage:3.0f} %|{bar}| epoch {n:.1f}/{total} "
            "[{elapsed}<{remaining}{postfix}]",
        )
        self._epochs = epochs
        self._shown = shown
        self._lines = lines and shown and not sys.stderr.isatty()
        self._accuracy: float | None = None
        self._interrupt = Interrupt()

    def step(self, epochs: float) -> None:
        self._interrupt.check()
        self._bar.update(epochs)

    def epoch(self, metrics: EpochMetrics) -> None:
        self._bar.n = metrics["epoch"]  # sums of fractions drift
        loss = metrics["train_loss"]
        shown = [] if loss is None else [f"loss {loss:.3f}"]
        if metrics["test_accuracy"] is not None:
            self._accuracy = metrics["test_accuracy"]
        if self._accuracy is not None:
            shown.append(f"test {100 * self._accuracy:.1f} %")
        shown.append(f"k {metrics['repeats']}")
        if metrics["period_end"] is not None:
            censored = " (censored)" * metrics["censored"]
            shown.append(f"period ended at {metrics['period_end']}{censored}")
        self._bar.set_postfix_str(", ".join(shown))
        if self._lines:
            shown += [f"lr {metrics['lr']:.3g}", f"{metrics['backward_samples']:,} samples"]
            shown.append(f"{metrics['seconds']['train']:.2g} s")
            print(f"epoch {metrics['epoch']} of {self._epochs}: {', '.join(shown)}", flush=True)

    def say(self, text: str) -> None:
        """A line on stdout, above the bar."""
        if self._shown:
            self._bar.write(text)
            sys.stdout.flush()

    def __enter__(self) -> ProgressBar:
        self._interrupt.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        self._interrupt.__exit__(kind)
