"""Detection of the critical period's end: criteria, the probe they measure by, the detector."""

from cpfast.detection.criterion import Criterion, Gradients, Measured, Paths, Probe, criteria
from cpfast.detection.detector import CriticalPeriodDetector

__all__ = [
    "Criterion",
    "CriticalPeriodDetector",
    "Gradients",
    "Measured",
    "Paths",
    "Probe",
    "criteria",
]
