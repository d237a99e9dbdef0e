"""People's own functions, named on the command line as `module:function`."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpfast.train.errors import UserError, first_line

__all__ = ["call", "function", "is_own"]

_NAME = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


def is_own(source: str) -> bool:
    """Whether it names a function, and not a path that is there."""
    return _NAME.fullmatch(source) is not None and not Path(source).exists()


def function(option: str, source: str) -> Callable[..., Any]:
    """Import it, from the current folder too.

    Raises:
        UserError: there is no such module or function, or importing it fails.
    """
    module, _, name = source.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    # whatever the module's own code raises
    except Exception as error:
        raise UserError(f"{option} {source}: cannot import {module} ({_told(error)})") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UserError(f"{option} {source}: {module} has no function {name}")
    return found


def call(option: str, source: str, *arguments: Any) -> Any:
    """What the function returns.

    Raises:
        UserError: it cannot be imported, or raises an error, which is told with its line.
    """
    made = function(option, source)
    try:
        return made(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{option} {source}: {_told(error)}") from error


def _told(error: Exception) -> str:
    """In a line: the error, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename]
    where = f", {own[-1].filename}:{own[-1].lineno}" if len(own) > 1 else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"
