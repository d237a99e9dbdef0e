"""TensorBoard, through torch.utils.tensorboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpfast.train.loggers import Logger, Values, loggers

__all__ = ["TensorBoardLogger"]

FOLDER = "tensorboard"


@loggers.register("tensorboard", source="torch.utils.tensorboard")
class TensorBoardLogger(Logger):
    """Event files in the run's folder, under tensorboard/: `tensorboard --logdir RUN`.

    A resumed run adds a file, and TensorBoard forgets what the earlier ones have of the epochs that
    are trained again.
    """

    LIBRARY = ("torch.utils.tensorboard", "tensorboard")

    def __init__(self, folder: Path, settings: Mapping[str, Any], past: Sequence[Values]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / FOLDER
        is_new = not any(path.glob("events.*"))
        purged = None if is_new else len(past) + 1
        self._writer = SummaryWriter(str(path), purge_step=purged)
        if is_new:
            lines = "\n".join(f"    {name} = {value}" for name, value in settings.items())
            self._writer.add_text("settings", lines)
            for epoch, values in enumerate(past, 1):
                self.log(epoch, values)

    def log(self, epoch: int, values: Values) -> None:
        for tag, value in values.items():
            if value is not None:
                self._writer.add_scalar(tag, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
