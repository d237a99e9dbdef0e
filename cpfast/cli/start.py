"""What the commands that train do before they begin, and say when they are stopped."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

import cpfast
from cpfast.cli.options import counted
from cpfast.train import energy, process
from cpfast.train.config import Config
from cpfast.train.data import ImageData, TextData
from cpfast.train.errors import MissingLibrary, require


class Interrupted(Exception):
    """Ctrl-C, with a line that says how to go on."""


def prepare(config: Config, options: Mapping[str, Any]) -> Config:
    """Set up the process, and leave out what needs a library that is missing, unless it is asked
    for: then fail before anything is read or written.
    """
    if config.energy:
        try:
            energy.grams_per_kwh(config.country)
        except MissingLibrary as error:
            if options["country"] is not None or options["price_kwh"] is not None:
                raise
            note(f"energy is not metered: {error}")
            config = config.replace(energy=False)
    if config.plot and not can_draw():
        config = config.replace(plot=False)
    process.prepare(config)
    return config


def can_draw() -> bool:
    try:
        require("matplotlib", "a picture", ", or pass --no-plot")
    except MissingLibrary as error:
        note(f"nothing is drawn: {error}")
        return False
    return True


def note(message: str) -> None:
    print(f"cpfast: note: {message}", file=sys.stderr)


def header(config: Config, data: ImageData | TextData, parameters: int) -> str:
    threads = f" ({counted(torch.get_num_threads(), 'thread')})" if config.device == "cpu" else ""
    return (
        f"{data.describe()}\n"
        f"{config.model}, {parameters:,} parameters; {config.epochs} epochs; "
        f"{config.precision} on {config.device}{threads}; ops: {cpfast.backend()}"
    )
