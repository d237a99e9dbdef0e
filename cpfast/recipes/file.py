"""Recipes as TOML files: what options they take, and a list of actions."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpfast.arguments import typed
from cpfast.recipes.action import Window, actions
from cpfast.recipes.recipe import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["RecipeFile"]

_FILE = ("summary", "source", "options", "actions")
_OPTION = ("default", "help")
_ACTION = ("action", "when", "unless")  # and the action's own
_WINDOW = ("phase", "begin", "end", "until", "ramp")


@dataclass(frozen=True)
class RecipeFile:
    """A recipe's file::

        summary = "k passes until the critical period has ended, then one."
        source = "arXiv 2506.15954"

        [options.repeats]
        default = 3
        help = "passes over the data"

        [[actions]]
        action = "repeats"
        repeats = "$repeats"

        [[actions]]
        action = "repeats"
        repeats = 1
        window = { phase = "after" }

    ``"$name"`` stands for an option; what refers to one that was not given, and has no default, is
    left out. ``when = "name"`` and ``unless = "name"`` keep an action to where an option is given,
    or is not. The actions are those that ``cpfast list actions`` shows, in the order in which they
    are applied; a ``window`` has the arguments of :class:`cpfast.Window`.

    Attributes:
        name: in messages.
        options: the default of each, or None.
    """

    name: str
    summary: str
    source: str
    options: Mapping[str, Any]
    tables: tuple[Mapping[str, Any], ...]

    @classmethod
    @typed
    def read(cls, path: Path) -> RecipeFile:
        """
        Raises:
            OSError: it cannot be read.
            ValueError: it is no recipe; names the place.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: no text in UTF-8") from error
        return cls.parse(text, str(path), path.stem)

    @classmethod
    @typed
    def parse(cls, text: str, where: str, name: str) -> RecipeFile:
        """
        Args:
            where: what messages begin with.

        Raises:
            ValueError: it is no recipe; names the place.
        """
        try:
            table = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ValueError(f"{where}: {' '.join(str(error).split())}") from error
        _check_keys(where, table, _FILE)
        options = {}
        for option, described in _table(f"{where}: options", table.get("options", {})).items():
            place = f"{where}: options.{option}"
            _check_keys(place, _table(place, described), _OPTION)
            options[option] = described.get("default")
            if option == "total_epochs":
                raise ValueError(f"{place}: is the length of the training, and always there")
        listed = table.get("actions", [])
        if not isinstance(listed, list):
            raise ValueError(f"{where}: actions: expected [[actions]], got {listed!r}")
        tables = tuple(_table(f"{where}: actions[{i}]", one) for i, one in enumerate(listed))
        made = cls(name, str(table.get("summary", name)), str(table.get("source", where)),
                   options, tables)  # fmt: skip
        for number, one in enumerate(tables):
            made._check_action(f"{where}: actions[{number}]", one)
        return made

    @typed
    def make(self, total_epochs: int, **options: Any) -> Recipe:
        """
        Raises:
            TypeError, ValueError: what the actions refuse.
        """
        values = {**self.options, **{k: v for k, v in options.items() if v is not None}}
        made = []
        for number, table in enumerate(self.tables):
            when, unless = table.get("when"), table.get("unless")
            is_out = when is not None and values[when] is None
            if is_out or (unless is not None and values[unless] is not None):
                continue
            fields = {key: value for key, value in table.items() if key not in _ACTION}
            fields = _filled(fields, values)
            try:
                if "window" in fields:
                    fields["window"] = Window(**_filled(fields["window"], values))
                made.append(actions.make(table["action"], **fields))
            except (TypeError, ValueError) as error:
                raise type(error)(f"{self.name}: actions[{number}]: {error}") from error
        return Recipe(total_epochs, made)

    def factory(self) -> Callable[..., Recipe]:
        """What a registry takes: a function with the recipe's options."""

        def recipe(total_epochs: int, **options: Any) -> Recipe:
            return self.make(total_epochs, **options)

        hints = {name: _hint(default) for name, default in self.options.items()}
        parameters = [
            inspect.Parameter("total_epochs", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(
                inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
                for name, default in self.options.items()
            ),
        ]
        recipe.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        recipe.__annotations__ = {"total_epochs": int, **hints}
        recipe.__doc__ = self.summary
        return recipe

    def _check_action(self, where: str, table: Mapping[str, Any]) -> None:
        if "action" not in table:
            raise ValueError(f"{where}: no action")
        try:
            entry = actions[str(table["action"])]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        known = tuple(inspect.signature(entry.factory).parameters)
        _check_keys(where, table, (*_ACTION, *known))
        window = _table(f"{where}.window", table.get("window", {}))
        _check_keys(f"{where}.window", window, _WINDOW)
        named = [table[key] for key in ("when", "unless") if key in table]
        values = (*table.values(), *window.values())
        named += [value[1:] for value in values if _is_reference(value)]
        for name in named:
            if name not in self.options:
                raise ValueError(
                    f"{where}: expected one of the options {', '.join(self.options) or '(none)'}, "
                    f"got {name!r}"
                )


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("$")


def _filled(table: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    filled = {
        key: options[value[1:]] if _is_reference(value) else value for key, value in table.items()
    }
    return {key: value for key, value in filled.items() if value is not None}


def _hint(default: Any) -> Any:
    return type(default) if isinstance(default, (int, str)) else float | None


def _table(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a table, got {value!r}")
    return value


def _check_keys(where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{where}: expected {', '.join(known)}, got {key!r}{hint}")
