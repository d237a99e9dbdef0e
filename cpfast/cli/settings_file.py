"""Settings of a run in a TOML file: what --config reads, and the config.toml that a run writes."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cpfast.cli.options import Parser
from cpfast.recipes import RecipeFile
from cpfast.train.config import Config
from cpfast.train.errors import UserError
from cpfast.train.files import write_atomically

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["CONFIG", "merged", "read", "text_of", "write"]

CONFIG = "config.toml"
_NOT_IN_A_FILE = ("help", "config", "resume")
_RECIPE = "recipe_text"  # what --recipe names a file of
# Of a Config: what is no setting of `cpfast train`.
_NO_OPTIONS = ("detect", "extended_from")
_OF_IMAGES = ("augment",)


def read(path: str, parser: Parser) -> dict[str, Any]:
    """The settings in a file, as `parser` has them from a command line.

    Keys are the long options, with - or _; a switch is true or false, also by the name of what it
    switches (`plot = false` is `no-plot = true`).

    Raises:
        UserError: it cannot be read, has a key that is no option, or a value that the option does
            not take; names the file.
    """
    where = f"--config {path}"
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{where}: no TOML ({' '.join(str(error).split())})") from error
    known = _actions(parser)
    text = table.pop(_RECIPE, table.pop(_RECIPE.replace("_", "-"), None))
    method = table.pop("method", None) if text is not None else None
    arguments: list[str] = []
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{where}: no setting {key!r}{hint} (see {parser.prog} --help)")
        arguments += _argument(where, name, value, known[name])
    try:
        options = vars(parser.parse_args(arguments))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if text is not None:
        options |= _recipe(where, text, method)
    return {key: value for key, value in options.items() if value != parser.get_default(key)}


def merged(options: Mapping[str, Any], file: Mapping[str, Any], parser: Parser) -> dict[str, Any]:
    """Those of the command line, and of the file what it does not say."""
    given = {key for key, value in options.items() if value != parser.get_default(key)}
    spent = {"method", "recipe", _RECIPE}  # of which one replaces the others
    kept = {k: v for k, v in file.items() if k not in (given | spent if given & spent else given)}
    return {**options, **kept}


def write(config: Config, folder: Path, reads: str) -> None:
    """config.toml in the folder of a run on data of a kind."""
    content = text_of(config, reads).encode("utf-8", "replace")  # names of files may be anything
    write_atomically(folder / CONFIG, lambda file: file.write(content))


def text_of(config: Config, reads: str) -> str:
    """All settings, so that the run comes again with `--config`, whatever the defaults are then."""
    head = [
        "# cpfast train --config config.toml trains this run again.",
        "# What is not set here has no value, as by the preset.",
    ]
    if config.extended_from is not None:
        head.append(
            f"# This one was extended ({config.extended_from}): trained again, it follows the "
            f"schedule of {config.epochs} epochs from its beginning."
        )
    left_out = _NO_OPTIONS if reads == "images" else (*_NO_OPTIONS, *_OF_IMAGES)
    values = {
        name: value
        for name, value in config.to_dict().items()
        if value is not None and name not in left_out
    }
    lines = [f"{name.replace('_', '-')} = {_toml(value)}" for name, value in values.items()]
    return "\n".join([*head, 'preset = "paper"', *lines]) + "\n"


def _actions(parser: Parser) -> dict[str, argparse.Action]:
    """By the names of the long options, and of what switches switch."""
    named: dict[str, argparse.Action] = {}
    for action in parser._actions:
        names = [name.removeprefix("--") for name in action.option_strings if name[:2] == "--"]
        if not set(names) & set(_NOT_IN_A_FILE):
            named |= dict.fromkeys(names, action)
            named.setdefault(action.dest.replace("_", "-"), action)
    return named


def _argument(where: str, name: str, value: Any, action: argparse.Action) -> Iterable[str]:
    """As the command line would have it."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UserError(f"{where}: {name}: expected true or false, got {value!r}")
        if isinstance(action, argparse.BooleanOptionalAction):
            is_on = value != name.startswith("no-")
            return [f"--{'' if is_on else 'no-'}{name.removeprefix('no-')}"]
        is_option = f"--{name}" in action.option_strings
        return action.option_strings[-1:] if value == is_option else []
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"{where}: {name}: expected a string or a number, got {value!r}")
    return [f"--{name}={value}"]


def _recipe(where: str, text: Any, method: Any) -> dict[str, Any]:
    if not isinstance(text, str) or not isinstance(method, str):
        raise UserError(f"{where}: {_RECIPE}: expected a recipe's text, and its name as method")
    try:
        RecipeFile.parse(text, f"{where}: {_RECIPE}", method)
    except ValueError as error:
        raise UserError(str(error)) from error
    return {_RECIPE: text, "method": method}


def _toml(value: Any) -> str:
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for what it leaves as it is
        lines = [json.dumps(line, ensure_ascii=False)[1:-1] for line in value.split("\n")]
        text = "\n".join(lines).replace("\x7f", "\\u007f")
        return f'"""\n{text}"""' if len(lines) > 1 else f'"{text}"'
    return str(value).lower() if isinstance(value, bool) else repr(value)
