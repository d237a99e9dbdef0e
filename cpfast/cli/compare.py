"""`cpfast compare`: the study of that name, which most people want."""

from __future__ import annotations

from typing import Any

from cpfast.cli.study import add_study
from cpfast.studies import studies


def add(commands: Any) -> None:
    parser = commands.add_parser("compare", help="arms over seeds, with the fair controls")
    add_study(parser, studies["compare"])
