"""Recipes: what each epoch of a training spends, as pure functions of the moment."""

from cpfast.recipes.action import ALWAYS, Action, EpochSettings, Window, actions
from cpfast.recipes.freeze import Freeze
from cpfast.recipes.prune import Prune
from cpfast.recipes.recipe import Recipe, recipes
from cpfast.recipes.regularise import Augment, WeightDecay
from cpfast.recipes.repeats import Repeats

__all__ = [
    "ALWAYS",
    "Action",
    "Augment",
    "EpochSettings",
    "Freeze",
    "Prune",
    "Recipe",
    "Repeats",
    "WeightDecay",
    "Window",
    "actions",
    "recipes",
]
