"""Whether settings, data and processes go together, asked before anything is written."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from cpfast.moment import Moment
from cpfast.pruning import Policy, policies
from cpfast.recipes import EpochSettings, StepShape
from cpfast.train import models
from cpfast.train.batches import ImageBatches
from cpfast.train.config import Config
from cpfast.train.data import KINDS, Data, TextData
from cpfast.train.errors import UserError, first_line
from cpfast.train.ranks import Ranks

if TYPE_CHECKING:
    from cpfast.train.loop import Training

__all__ = ["check", "check_sizes"]

_UNCHANGED = EpochSettings()


def check(config: Config, data: Data, ranks: Ranks) -> None:
    """
    Raises:
        UserError: they do not.
    """
    if config.step_size > data.train_size:
        times = f" with --accumulate {config.accumulate}" if config.accumulate > 1 else ""
        raise UserError(
            f"--batch-size {config.batch_size}{times}: there are only {data.train_size} samples to "
            "train on"
        )
    if config.batch_size % ranks.size:
        raise UserError(
            f"--batch-size {config.batch_size}: {ranks.size} processes cannot share it evenly"
        )
    if ranks.size > 1 and "graph" in config.step:
        raise UserError(
            f"--step {config.step}: not for {ranks.size} processes; use eager or compile"
        )
    if config.flip and data.reads != "images":
        raise UserError(f"--flip mirrors images, and {config.data} has none")
    if config.class_weight != "none" and isinstance(data, TextData):
        raise UserError(
            f"--class-weight {config.class_weight}: {config.data} is text, which has no classes"
        )
    if config.guard is not None and ranks.size > 1:
        raise UserError(f"--guard: not for {ranks.size} processes; train in one")
    models.check(config.model, data.reads, config.data)
    _check_recipe(config, data)
    rule = policies.make(config.policy)
    if rule.needs_labels and isinstance(data, TextData):
        raise UserError(f"--policy {config.policy} looks at classes, and {config.data} has none")
    if rule.needs_tokens and not isinstance(data, TextData):
        raise UserError(
            f"--policy {config.policy} selects among the tokens of text, and {config.data} has none"
        )
    _check_reference(config, rule)
    for epoch in range(config.epochs):
        chosen = rule.batch_filter(Moment(epoch, config.epochs), config.keep or rule.keep)
        own = config.batch_size // ranks.size
        if chosen is not None and chosen.kept(own) >= own:
            raise UserError(
                f"--batch-size {config.batch_size}: too few for --policy {config.policy} to leave "
                f"any out{f' of the {own} of each process' if ranks.size > 1 else ''}"
            )


def _check_reference(config: Config, rule: Policy) -> None:
    if config.reference is None:
        return
    if not rule.needs_tokens:
        raise UserError(
            f"--reference goes with a policy that selects among tokens; got --policy "
            f"{config.policy}"
        )
    if config.label_smoothing > 0:
        raise UserError(
            f"--reference: its losses are those of the labels; got --label-smoothing "
            f"{config.label_smoothing:g}"
        )
    if config.labels == "random":
        raise UserError("--reference: its losses are those of the text; got --labels random")


def _check_recipe(config: Config, data: Data) -> None:
    foreign = {
        name: ", ".join(other for other, known in KINDS.items() if name in known.settings)
        for kind in KINDS.values()
        for name in kind.settings
        if name not in KINDS[data.reads].settings
    }
    for settings in config.recipe().possible():
        for name, reads in foreign.items():
            if getattr(settings, name) != getattr(_UNCHANGED, name):
                raise UserError(
                    f"--method {config.method} changes the {name}, of {reads} alone, and "
                    f"{config.data} has none"
                )
        size, samples = settings.batch * config.step_size, settings.repeats * data.train_size
        if settings.batch > 1 and size > samples:
            raise UserError(
                f"--method {config.method}: {settings.batch} batches of {config.step_size} in one "
                f"are more than an epoch's {samples} samples"
            )


def check_sizes(t: Training, shapes: set[StepShape]) -> None:
    """Whether the model runs at each of them, without computing anything.

    Raises:
        UserError: it does not.
    """
    if not isinstance(t.batches, ImageBatches):
        return
    for size in sorted({size for shape in shapes if (size := t.batches.size(shape))}):
        model = copy.deepcopy(t.model).to("meta").eval()
        try:
            model(torch.empty(2, t.data.shape[-1], *size, device="meta"))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"--method {t.config.method}: {t.config.model} cannot run at "
                f"{size[0]}x{size[1]} ({first_line(error)})"
            ) from error
