"""`cpfast list`: all that has a name, with its source."""

from __future__ import annotations

from typing import Any

from cpfast.detection import criteria
from cpfast.pruning import policies
from cpfast.recipes import actions, recipes
from cpfast.registry import Registry
from cpfast.studies import studies
from cpfast.train.data import datasets, layouts
from cpfast.train.loggers import loggers
from cpfast.train.models import models

KINDS: dict[str, Registry[Any]] = {
    "criteria": criteria, "policies": policies, "actions": actions, "recipes": recipes,
    "models": models, "datasets": datasets, "layouts": layouts, "loggers": loggers,
    "studies": studies,
}  # fmt: skip


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "list",
        help="what can be named: data sets, models, methods (recipes), policies, criteria, studies",
        description="Print what can be named in options, with a line and the source of each; of "
        "packages of yours as well.",
    )
    parser.set_defaults(run=_run)
    parser.add_argument(
        "kind", nargs="?", choices=tuple(KINDS), metavar="KIND", help=f"one of {', '.join(KINDS)}"
    )


def _run(options: dict[str, Any], arguments: list[str]) -> None:
    kinds = KINDS if options["kind"] is None else {options["kind"]: KINDS[options["kind"]]}
    width = max(len(name) for registry in kinds.values() for name in registry)
    for number, (kind, registry) in enumerate(kinds.items()):
        if number:
            print()
        print(kind)
        for name, entry in registry.items():
            print(f"  {name:<{width}}  {entry.line.rstrip('.')} ({entry.source})")
