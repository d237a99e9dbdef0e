"""`--budget`: a training for a share of its cost, with what is known to do well at such a share.

That is ordinary training, one pass an epoch over all data, in fewer epochs, and `RULES` on top of
it. The first is the literature's, a learning rate that falls on a line to 0 at the end of whatever
budget there is (Li, Yumer & Ramanan, "Budgeted Training", arXiv 1905.04753). The others are what
`cpfast study frontier` has shown on CIFAR-10's subset, MNIST and digits (docs/results.md): of few
epochs augmentation is worth nothing yet, of more it is worth most if the last are without; and
images that grow to full size buy more epochs than they blur. What all of them lose to settings that
are tuned is the regret of the frontier's arm `autopilot`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from cpfast.recipes import recipes
from cpfast.train import planned
from cpfast.train.errors import UserError

__all__ = ["RULES", "Rule", "within"]

ORDINARY = ("fast", "full")
_ROUNDING = 1e-9


class Rule(NamedTuple):
    """What changes of a training that is to cost a share of itself.

    Attributes:
        settings: in place of the preset's; a method is a recipe, of one pass an epoch.
        most: percent, the largest budget that it is for.
        passes: from how many over the data it is for, and up to how many, of the whole ones that
            the budget allows.
        side: of images alone, whose shorter side has at least so many pixels; None: of all data.
        models: how the names of those begin that it is for.
    """

    settings: Mapping[str, Any]
    most: float = 100
    passes: tuple[float, float] = (0, math.inf)
    side: int | None = None
    models: tuple[str, ...] = ("",)

    def is_for(self, budget: float, passes: float, side: int | None, model: str) -> bool:
        of_these_data = self.side is None or (side is not None and side >= self.side)
        least, most = self.passes
        in_range = budget <= self.most and least <= math.floor(passes) <= most
        return of_these_data and in_range and model.startswith(self.models)


RULES = (
    Rule({"schedule": "linear"}),
    Rule({"augment": "none"}, passes=(0, 8), side=1),
    Rule({"method": "clean-finish"}, passes=(9, math.inf), side=1),
    # From four epochs on: of fewer, those of full size are too few. Networks that run at any size.
    Rule(
        {"method": "growing-resolution"},
        most=40,
        passes=(4, math.inf),
        side=28,
        models=("cnn", "resnet", "wrn"),
    ),
)
"""Each that is for a training changes it."""


def within(
    settings: Mapping[str, Any], asked: Collection[str], budget: float, side: int | None = None
) -> dict[str, Any]:
    """The settings of a run that costs a share of ordinary training.

    Args:
        settings: of that training, as a preset has filled them in.
        asked: the names of those that somebody gave, which stay.
        budget: percent of one pass in each of the epochs.
        side: of images, the pixels of the shorter side; None: of other data, or not known yet.

    Raises:
        UserError: it is out of range, less than an epoch, or a method was given that is not
            ordinary training.
    """
    if not 1 <= budget <= 100:
        raise UserError(f"--budget must be in 1 .. 100 (percent), got {budget:g}")
    if "recipe_text" in asked or ("method" in asked and settings["method"] not in ORDINARY):
        option = "--recipe" if "recipe_text" in asked else "--method"
        raise UserError(f"--budget has a method of its own: not with {option} {settings['method']}")
    if "repeats" in asked and settings["repeats"] != 1:
        raise UserError(
            f"--budget makes one pass an epoch: not with --repeats {settings['repeats']}"
        )
    passes = round(settings["epochs"] * budget / 100, 9)
    if passes < 1:
        raise UserError(
            f"--budget {budget:g} is less than one of {settings['epochs']} epochs (--epochs)"
        )
    chosen: dict[str, Any] = {"method": "full"}
    for rule in RULES:
        if rule.is_for(budget, passes, side, settings.get("model", "")):
            chosen |= {name: value for name, value in rule.settings.items() if name not in asked}
    epochs = _affordable(chosen["method"], passes)
    return {**settings, **chosen, "repeats": 1, "epochs": epochs}


def _affordable(method: str, passes: float) -> int:
    """The most epochs by a recipe that cost so many passes over the data at full size."""

    def cost(epochs: int) -> float:
        recipe = recipes.make(method, total_epochs=epochs, repeats=1)
        return epochs * planned.of_an_epoch(recipe, epochs)

    epochs = math.floor(passes)  # for no epoch costs more than one pass
    while cost(epochs + 1) <= passes + _ROUNDING:
        epochs += 1
    return epochs
