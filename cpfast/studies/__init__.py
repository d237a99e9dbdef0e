"""Studies: many runs, and what may be concluded from them; one folder a study.

    study (what is to be run) -> runner (runs what is missing) -> store (results.json)
                                                                     -> document, show

A study is a folder here that registers a `Study`: its runs, options, table and pictures. Nothing
outside of it knows of it.
"""

from cpfast.studies.document import Document, Table, document
from cpfast.studies.runner import Branch, Runner, run
from cpfast.studies.statistics import Estimate, interval
from cpfast.studies.store import Entry, Results, find, read_results
from cpfast.studies.study import Study, configured, studies

__all__ = [
    "Branch",
    "Document",
    "Entry",
    "Estimate",
    "Results",
    "Runner",
    "Study",
    "Table",
    "configured",
    "document",
    "find",
    "interval",
    "read_results",
    "run",
    "studies",
]
