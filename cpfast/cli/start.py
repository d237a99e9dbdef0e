"""What the commands that train do before they begin, and say when they are stopped."""

from __future__ import annotations

import torch

import cpfast
from cpfast.cli.options import counted
from cpfast.train import energy, process
from cpfast.train.config import Config
from cpfast.train.data import ImageData, TextData
from cpfast.train.errors import require


class Interrupted(Exception):
    """Ctrl-C, with a line that says how to go on."""


def prepare(config: Config) -> None:
    """Fail for a missing library before anything is read or written; set up the process."""
    require("tqdm", "the progress bar")
    if config.energy:
        energy.grams_per_kwh(config.country)
    if config.plot:
        require("matplotlib", "a picture", ", or pass --no-plot")
    process.prepare(config)


def header(config: Config, data: ImageData | TextData, parameters: int) -> str:
    threads = f" ({counted(torch.get_num_threads(), 'thread')})" if config.device == "cpu" else ""
    return (
        f"{data.describe()}\n"
        f"{config.model}, {parameters:,} parameters; {config.epochs} epochs; "
        f"{config.precision} on {config.device}{threads}; ops: {cpfast.backend()}"
    )
