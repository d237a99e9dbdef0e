"""What happens in the first iterations, and which of it has to stay?"""

from cpfast.studies.early_phase.study import EarlyPhase

__all__ = ["EarlyPhase"]
