"""cpfast: pay less for training neural networks in PyTorch.

Fused kernels watch how far each layer has rotated from its initialisation and score each sample
in the loss itself; a detector finds the end of the critical learning period; a pruner and recipes
spend less from then on.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from cpfast import ops, recipes, schedules
from cpfast._backend import backend, build_info
from cpfast.detection import CriticalPeriodDetector, criteria
from cpfast.layca import Layca
from cpfast.lm_head import ScoredLMHead
from cpfast.mixing import Mixer
from cpfast.moment import Moment
from cpfast.pruning import DataPruner, policies
from cpfast.recipes import EpochSettings, Recipe, Window, actions
from cpfast.rotation import LayerRotation, is_weight
from cpfast.sampling import IndexedDataset, PrunedSampler

if _TYPE_CHECKING:
    from cpfast.train.trained import TrainedModel, load

# Read from here by pyproject.toml, so that a checkout that is not installed knows it too.
__version__ = "0.2.0.dev0"

__all__ = [
    "CriticalPeriodDetector",
    "DataPruner",
    "EpochSettings",
    "IndexedDataset",
    "Layca",
    "LayerRotation",
    "Mixer",
    "Moment",
    "PrunedSampler",
    "Recipe",
    "ScoredLMHead",
    "TrainedModel",
    "Window",
    "__version__",
    "actions",
    "backend",
    "build_info",
    "criteria",
    "is_weight",
    "load",
    "ops",
    "policies",
    "recipes",
    "schedules",
]

_OF_THE_ENTRYPOINT = ("TrainedModel", "load")


def __getattr__(name: str) -> _Any:
    """The models of finished runs, which nothing else here needs."""
    if name not in _OF_THE_ENTRYPOINT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cpfast.train import trained

    return getattr(trained, name)
