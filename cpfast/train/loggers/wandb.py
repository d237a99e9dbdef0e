"""Weights & Biases."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpfast.train.errors import UserError, first_line
from cpfast.train.files import write_atomically
from cpfast.train.loggers import Logger, Values, loggers

__all__ = ["WandbLogger"]

ID = "wandb-id.txt"
PROJECT = "cpfast"


@loggers.register("wandb", source="wandb.ai")
class WandbLogger(Logger):
    """A run of Weights & Biases, kept in the run's folder, under wandb/, until it is sent.

    Its variables hold: WANDB_MODE=offline sends nothing, WANDB_PROJECT replaces the project's name,
    "cpfast". A resumed run goes on with the same one, whose steps are the epochs.
    """

    LIBRARY = ("wandb", "wandb")

    def __init__(self, folder: Path, settings: Mapping[str, Any], past: Sequence[Values]) -> None:
        import wandb

        source = folder / ID
        is_new = not source.exists()
        if is_new:
            text = uuid.uuid4().hex
            write_atomically(source, lambda file: file.write(text.encode()))
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                dir=str(folder),
                id=source.read_text(encoding="ascii"),
                name=folder.name,
                resume="allow",
                config=dict(settings),
                settings=wandb.Settings(console="off", quiet=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"--log wandb: {first_line(error)}; log in by `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        if is_new:
            for epoch, values in enumerate(past, 1):
                self.log(epoch, values)

    def log(self, epoch: int, values: Values) -> None:
        self._run.log({tag: v for tag, v in values.items() if v is not None}, step=epoch)

    def close(self) -> None:
        self._run.finish()
