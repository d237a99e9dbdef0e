"""Recipes: what each epoch of a training spends, as pure functions of the moment."""

from cpfast.recipes.action import ALWAYS, Action, EpochSettings, Window, actions
from cpfast.recipes.freeze import Freeze
from cpfast.recipes.prune import Prune
from cpfast.recipes.recipe import Recipe, recipes
from cpfast.recipes.repeats import Repeats
from cpfast.recipes.scale import Augment, LearningRate, WeightDecay

__all__ = [
    "ALWAYS",
    "Action",
    "Augment",
    "EpochSettings",
    "Freeze",
    "LearningRate",
    "Prune",
    "Recipe",
    "Repeats",
    "WeightDecay",
    "Window",
    "actions",
    "recipes",
]
