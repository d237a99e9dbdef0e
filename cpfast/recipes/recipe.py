"""What a training spends in each epoch: a list of actions, and nothing that remembers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpfast.arguments import check_fields, check_type, typed
from cpfast.moment import Moment
from cpfast.recipes.action import Action, EpochSettings
from cpfast.registry import Entry, Registry

__all__ = ["Recipe", "recipes"]


@dataclass(frozen=True)
class Recipe:
    """A plan for a training of ``total_epochs`` epochs. It has no state: nothing needs saving.

    Args:
        total_epochs: T.
        actions: applied one after the other, to one full pass over the data at the schedule's
            learning rate.

    Raises:
        TypeError: for something that is no action.
        ValueError: for less than one epoch, or actions that contradict each other: two of a kind
            in the same window, or both ways of mixing in an epoch.
    """

    total_epochs: int
    actions: Sequence[Action] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        _check_contradictions(self.actions)
        if self.total_epochs < 1:
            raise ValueError(f"total_epochs: expected at least 1, got {self.total_epochs}")
        object.__setattr__(self, "actions", tuple(self.actions))
        for settings in self.possible():
            if settings.mixup > 0 and settings.cutmix > 0:
                raise ValueError(
                    "actions: mixup and cutmix contradict each other, got alpha "
                    f"{settings.mixup:g} and {settings.cutmix:g} in one epoch"
                )

    @classmethod
    @typed
    def named(cls, name: str, total_epochs: int, **options: Any) -> Recipe:
        """The recipe of a name in :data:`recipes`.

        Raises:
            ValueError: for an unknown name, or an option that it does not have.
        """
        return recipes.make(name, total_epochs=total_epochs, **options)

    @classmethod
    @typed
    def read(cls, path: str | os.PathLike[str], total_epochs: int, **options: Any) -> Recipe:
        """The recipe of a TOML file, see :class:`cpfast.recipes.RecipeFile`.

        Raises:
            OSError: it cannot be read.
            TypeError, ValueError: it is no recipe, or what its actions refuse; names the place.
        """
        from cpfast.recipes.file import RecipeFile  # which makes recipes

        file = RecipeFile.read(Path(path))
        return Entry(file.name, file.factory(), file.source, file.summary).make(
            total_epochs=total_epochs, **options
        )

    @property
    def uses_detector(self) -> bool:
        """Whether anything changes when the period ends."""
        return any(action.window.phase != "always" for action in self.actions)

    def settings(self, moment: Moment) -> EpochSettings:
        """What the epoch of ``moment`` spends.

        Raises:
            ValueError: for an epoch, or a length of the training, that is not this recipe's.
        """
        check_type("moment", moment, Moment)
        if moment.total_epochs != self.total_epochs:
            raise ValueError(
                f"moment: expected one of {self.total_epochs} epochs, got {moment.total_epochs}"
            )
        if not 0 <= moment.epoch < self.total_epochs:
            raise ValueError(
                f"epoch: expected one of 0..{self.total_epochs - 1}, got {moment.epoch}"
            )
        settings = EpochSettings()
        for action in self.actions:
            amount = action.window.amount(moment)
            if amount > 0:
                settings = action.apply(settings, amount, moment)
        return settings

    def possible(self) -> frozenset[EpochSettings]:
        """The settings that epochs may have, whenever the period ends, as far as they do not depend
        on measurements: for nine ends and none, of some hundred epochs, among which are those where
        windows begin and end, and each eighth of their ramps."""
        total = self.total_epochs
        ends = {None, *(1 + (total - 1) * eighth // 8 for eighth in range(9))}
        return frozenset(
            self.settings(Moment(epoch, total, end)) for end in ends for epoch in self._marks(end)
        )

    def _marks(self, end: int | None) -> set[int]:
        total = self.total_epochs
        marks = set(range(0, total, math.ceil(total / 128)))
        for epoch in (0, total - 1):
            for window in (action.window for action in self.actions):
                span, ramp = window.span(Moment(epoch, total, end)), math.ceil(total * window.ramp)
                marks |= {span.start, span.stop - 1}
                marks |= {span.start + math.ceil(ramp * n / 8) - 1 for n in range(1, 9)}
        return {epoch for epoch in marks if 0 <= epoch < total}


def _check_contradictions(actions: Sequence[Action]) -> None:
    for number, action in enumerate(actions):
        for earlier, other in enumerate(actions[:number]):
            if type(action) is type(other) and action.window == other.window:
                raise ValueError(
                    f"actions[{number}]: contradicts actions[{earlier}], of the same kind in the "
                    f"same window, got {action} after {other}"
                )


recipes: Registry[Recipe] = Registry("recipe", "cpfast.recipes", "cpfast.recipes")
