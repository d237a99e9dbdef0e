"""What a training spends in each epoch: a list of actions, and nothing that remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpfast.arguments import check_fields, typed
from cpfast.moment import Moment
from cpfast.recipes.action import Action, EpochSettings
from cpfast.registry import Registry

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
        ValueError: for less than one epoch.
    """

    total_epochs: int
    actions: Sequence[Action] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.total_epochs < 1:
            raise ValueError(f"total_epochs: expected at least 1, got {self.total_epochs}")
        object.__setattr__(self, "actions", tuple(self.actions))

    @classmethod
    @typed
    def named(cls, name: str, total_epochs: int, **options: Any) -> Recipe:
        """The recipe of a name in :data:`recipes`.

        Raises:
            ValueError: for an unknown name, or an option that it does not have.
        """
        return recipes.make(name, total_epochs=total_epochs, **options)

    @property
    def uses_detector(self) -> bool:
        """Whether anything changes when the period ends."""
        return any(action.window.phase != "always" for action in self.actions)

    @typed
    def settings(self, moment: Moment) -> EpochSettings:
        """What the epoch of ``moment`` spends.

        Raises:
            ValueError: for an epoch, or a length of the training, that is not this recipe's.
        """
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


recipes: Registry[Recipe] = Registry("recipe", "cpfast.recipes", "cpfast.recipes")
