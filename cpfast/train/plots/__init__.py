"""Pictures of runs and of comparisons."""

from cpfast.train.plots.comparison import draw_comparison, draw_rotation
from cpfast.train.plots.falsify import draw_falsification
from cpfast.train.plots.oracle import draw_oracle
from cpfast.train.plots.run import draw_run

__all__ = ["draw_comparison", "draw_falsification", "draw_oracle", "draw_rotation", "draw_run"]
