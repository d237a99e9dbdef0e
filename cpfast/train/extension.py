"""A run that goes on for more epochs than it began with.

From there on it is as a run of so many epochs is at that epoch: learning rate, recipe and pruning
are functions of the share of the training that is done, which falls back when there is more to do.
What was decided before stays as it was decided. The settings say so: `Config.extended_from` has how
many epochs there were to be, and after which epoch there were to be more, as "100@80".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from cpfast import schedules
from cpfast.train.errors import UserError

if TYPE_CHECKING:  # which asks this module whether its own is right
    from cpfast.train.config import Config
    from cpfast.train.runfolder import RunFolder

__all__ = ["adopted", "check_form", "describe", "extend", "extended", "total_at"]


class _Plan(NamedTuple):
    total: int
    """Of epochs that there were to be."""
    until: int
    """Epochs completed when there were to be more."""


def check_form(extended_from: str | None) -> None:
    """
    Raises:
        UserError: it is of another form.
    """
    if extended_from is not None and not re.fullmatch(r"\d+@\d+(,\d+@\d+)*", extended_from):
        raise UserError(f"extended_from: expected TOTAL@EPOCH, got {extended_from!r}")


def extended(config: Config, epochs: int, done: int) -> Config:
    """The settings from here on.

    Args:
        epochs: how many there are to be.
        done: how many are.

    Raises:
        UserError: fewer than there were to be.
    """
    if epochs == config.epochs:
        return config
    if epochs < config.epochs:
        trained = f", of which {done} are trained" if done else ""
        raise UserError(
            f"--epochs {epochs}: the run has {config.epochs}{trained}; --resume can give it more, "
            "not fewer"
        )
    if config.warp is not None:
        raise UserError(
            f"--epochs {epochs}: the run's --warp {config.warp} is of a schedule of "
            f"{config.epochs} epochs, which cannot be made longer"
        )
    plans = [*_plans(config.extended_from), _Plan(config.epochs, done)]
    return config.replace(epochs=epochs, extended_from=_text(plans))


def extend(folder: RunFolder, config: Config) -> str:
    """Have the run in the folder be as long as `config`, in one write; says what becomes of the
    learning rate."""
    before = folder.config()
    folder.replace_config(before.replace(epochs=config.epochs, extended_from=config.extended_from))
    done = _plans(config.extended_from)[-1].until
    rates = [one.lr * _schedule(one)(done / one.epochs) for one in (before, config)]
    return (
        f"extended from {before.epochs} to {config.epochs} epochs after epoch {done}: all that "
        f"depends on the share of the training done goes on as in {config.epochs} epochs; the "
        f"learning rate goes from {rates[0]:.3g} to {rates[1]:.3g}"
    )


def describe(config: Config) -> str:
    """For a header; empty where it is as it began."""
    plans = [f"{plan.total} after epoch {plan.until}" for plan in _plans(config.extended_from)]
    return f" (extended from {', from '.join(plans)})" if plans else ""


def total_at(config: Config, epoch: int) -> int:
    """How many there were to be when epoch `epoch`, from 0, was trained."""
    plans = _plans(config.extended_from)
    return next((plan.total for plan in plans if epoch < plan.until), config.epochs)


def adopted(state: dict[str, Any], config: Config) -> dict[str, Any]:
    """A checkpoint of before the run was extended, as one of after it; any other as it is.

    The checkpoint is not written anew until an epoch is trained, so that no stop can come between
    two writes.
    """
    saved, plans = state["config"], _plans(config.extended_from)
    for number, plan in enumerate(plans):
        then = {"epochs": plan.total, "extended_from": _text(plans[:number])}
        if {name: saved.get(name) for name in then} == then and state["epoch"] <= plan.until:
            now = {"epochs": config.epochs, "extended_from": config.extended_from}
            pruner = {**state["pruner"], "num_epochs": config.epochs}
            return {**state, "config": {**saved, **now}, "pruner": pruner}
    return state


def _schedule(config: Config) -> schedules.Schedule:
    from cpfast.train import optimizers  # which has the settings

    return optimizers.schedule(config)


def _plans(text: str | None) -> list[_Plan]:
    parts = () if text is None else text.split(",")
    return [_Plan(*(int(number) for number in part.split("@"))) for part in parts]


def _text(plans: list[_Plan]) -> str | None:
    return ",".join(f"{plan.total}@{plan.until}" for plan in plans) or None
