"""Pictures of runs, and what all pictures share."""

from cpfast.train.plots.run import draw_run

__all__ = ["draw_run"]
