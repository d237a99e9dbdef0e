"""Recipes: what each epoch of a training spends, as pure functions of the moment."""

from cpfast.recipes.action import (
    ALWAYS,
    Action,
    EpochSettings,
    StepShape,
    Window,
    actions,
)
from cpfast.recipes.augment import Augment
from cpfast.recipes.batch import Batch
from cpfast.recipes.cutmix import Cutmix
from cpfast.recipes.file import RecipeFile
from cpfast.recipes.freeze import Freeze
from cpfast.recipes.learning_rate import LearningRate
from cpfast.recipes.length import Length
from cpfast.recipes.mixup import Mixup
from cpfast.recipes.prune import Prune
from cpfast.recipes.recipe import Recipe, recipes
from cpfast.recipes.repeats import Repeats
from cpfast.recipes.resolution import Resolution
from cpfast.recipes.volume import Volume
from cpfast.recipes.weight_decay import WeightDecay

__all__ = [
    "ALWAYS",
    "Action",
    "Augment",
    "Batch",
    "Cutmix",
    "EpochSettings",
    "Freeze",
    "LearningRate",
    "Length",
    "Mixup",
    "Prune",
    "Recipe",
    "RecipeFile",
    "Repeats",
    "Resolution",
    "StepShape",
    "Volume",
    "WeightDecay",
    "Window",
    "actions",
    "recipes",
]
