"""The errors a user can cause and mend: shown as one line, without a traceback."""

from __future__ import annotations

import importlib
from types import ModuleType


class UserError(Exception):
    """Wrong input or a missing piece of the environment; the message says what to do."""


class MissingLibrary(UserError):
    """An optional library cannot be imported."""


class Diverged(UserError):
    """Training left the finite numbers."""


def require(module: str, purpose: str, otherwise: str = "") -> ModuleType:
    """Import an optional library where it is used.

    Raises:
        MissingLibrary: it is not installed; names the extra that brings it, and `otherwise`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.split(".")[0]
        raise MissingLibrary(
            f"{purpose} needs {top}, which cannot be imported ({error}): install the extra "
            f"cpfast[train], by pip install '.[train]' in a checkout{otherwise}"
        ) from error


def first_line(error: object) -> str:
    """What a library's error says, without what it adds below."""
    return (str(error).splitlines() or [type(error).__name__])[0]
