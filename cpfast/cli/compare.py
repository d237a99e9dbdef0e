"""`cpfast compare`: the study of that name, which most people want."""

from __future__ import annotations

from typing import Any

from cpfast.cli.study import add_study
from cpfast.studies import studies

DESCRIPTION = """\
What do methods save, and at what accuracy? Each way to train (an arm) is trained with several
seeds, and held against full: k augmented passes over the data in every epoch (--repeats, by
default 3), throughout. Controls that anyone could train without detecting anything run beside them.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="methods against each other and against plain training, over several seeds",
        description=DESCRIPTION,
    )
    add_study(parser, studies["compare"])
