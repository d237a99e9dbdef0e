"""Accelerate keeps one state for the whole process."""

import sys


def forget_accelerators() -> None:
    """So that the next Accelerator is made as if it were the first."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
