"""What the commands that train do before they begin, and say when they are stopped."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import torch

import cpfast
from cpfast.cli.options import counted
from cpfast.train import balance, energy, extension, process, ranks
from cpfast.train.augmentations import AUGMENTATIONS
from cpfast.train.config import Config
from cpfast.train.data import Data, ImageData, datasets
from cpfast.train.data.mirroring import have_sides
from cpfast.train.errors import MissingLibrary, require


class Interrupted(Exception):
    """Ctrl-C, with a line that says how to go on."""


def prepare(config: Config, options: Mapping[str, Any]) -> Config:
    """Set up the process, and leave out what needs a library that is missing, unless it is asked
    for: then fail before anything is read or written.
    """
    if config.energy and ranks.machines() > 1:
        note(f"the energy metered is that of one of {ranks.machines()} machines")
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
    if not ranks.is_speaker():  # one meters and draws
        config = config.replace(energy=False, plot=False)
    return config


def can_draw() -> bool:
    try:
        require("matplotlib", "a picture", ", or pass --no-plot")
    except MissingLibrary as error:
        note(f"nothing is drawn: {error}")
        return False
    return True


def note(message: str) -> None:
    if ranks.is_speaker():
        print(f"cpfast: note: {message}", file=sys.stderr)


@contextmanager
def together(device: str) -> Iterator[ranks.Ranks]:
    """With the other processes of torchrun, where there are any; rank 0 alone speaks."""
    joined = ranks.join(device)
    silence = nullcontext() if joined.is_first else redirect_stdout(io.StringIO())
    with silence:
        yield joined
    ranks.leave()


def header(config: Config, data: Data, parameters: int) -> str:
    threads = f" ({counted(torch.get_num_threads(), 'thread')})" if config.device == "cpu" else ""
    size = ranks.Ranks().size
    processes = f" in {size} processes" if size > 1 else ""
    return (
        f"{data.describe()}{_mirroring(config, data)}{_balance(config, data)}\n"
        f"{config.model}, {parameters:,} parameters; {config.epochs} epochs"
        f"{extension.describe(config)}; {config.precision} on {config.device}{threads}{processes}; "
        f"ops: {cpfast.backend()}\n"
        f"{training(config, data.reads)}"
    )


def training(config: Config, reads: str) -> str:
    """How it is trained on such data, in a line."""
    momentum = f" with momentum {config.momentum:g}" if config.optimizer == "sgd" else ""
    warmup = f" after a warm-up of {100 * config.warmup:g} %" if config.warmup > 0 else ""
    smoothing = config.label_smoothing
    power = f" of power {config.decay_power:g}" if config.decay_power != 1 else ""
    parts = [
        f"{config.optimizer}{momentum}, lr {config.lr:.3g}, {config.schedule}{power}{warmup}",
        *([f"schedule warped by {config.warp}"] if config.warp else []),
        f"batch {config.batch_size}" + _steps(config),
        f"weight decay {config.weight_decay:g}",
        *([f"gradients clipped at {config.clip:g}"] if config.clip is not None else []),
        *([f"label smoothing {smoothing:g}"] if smoothing > 0 else []),
        *([f"tokens chosen against {config.reference}"] if config.reference else []),
        *([f"evaluated by the moving average of decay {config.ema:g}"] if config.ema else []),
    ]
    if reads == "images":
        parts.append(AUGMENTATIONS[config.augment].describe(flip=config.flip))
        parts += [f"{name} {alpha:g}" for name, alpha in config.mixing() if alpha > 0]
    return "; ".join(parts)


def _steps(config: Config) -> str:
    times = config.accumulate
    return f" x {times} = {config.step_size} samples a step" if times > 1 else ""


def _balance(config: Config, data: Data) -> str:
    uneven = balance.describe(data)
    if not uneven:
        return ""
    hint = "weighed alike" if config.class_weight == "balanced" else "see --class-weight balanced"
    return f"; {uneven} ({hint})"


def _mirroring(config: Config, data: Data) -> str:
    """Of images by their path, whose default follows from what they are called."""
    if not isinstance(data, ImageData) or config.data in datasets:
        return ""
    if not AUGMENTATIONS[config.augment].mirrors:
        return ""
    if config.flip:
        return "; mirrored at random (not with --no-flip)"
    if have_sides(data.classes):
        return "; not mirrored, as classes are named after characters or sides (--flip mirrors)"
    return ""
