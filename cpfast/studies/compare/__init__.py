"""Arms over seeds, with the fair controls."""

from cpfast.studies.compare.study import Comparison

__all__ = ["Comparison"]
