"""Is it a loss to begin with what was trained on less?"""

from cpfast.studies.warm_start.study import WarmStart

__all__ = ["WarmStart"]
