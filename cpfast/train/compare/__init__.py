"""Comparisons: arms over seeds, the falsification of a rule, the oracle sweep of switch epochs."""

from cpfast.train.compare.comparison import Comparison
from cpfast.train.compare.environment import notes as environment_notes
from cpfast.train.compare.falsify import Falsification
from cpfast.train.compare.oracle import Oracle
from cpfast.train.compare.plan import Plan
from cpfast.train.compare.results import (
    check_folder,
    default_folder,
    open_results,
    plan_of,
    read_results,
    run,
)
from cpfast.train.compare.runner import RESULTS, Entry, find
from cpfast.train.compare.statistics import interval
from cpfast.train.compare.tables import Document, document, entry_line

__all__ = [
    "RESULTS", "Comparison", "Document", "Entry", "Falsification", "Oracle", "Plan",
    "check_folder", "default_folder", "document", "entry_line", "environment_notes",
    "find", "interval", "open_results", "plan_of",
    "read_results", "run",
]  # fmt: skip
