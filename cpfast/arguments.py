"""Whether arguments are of the types that a signature says; a wrong one is named in one line."""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from cpfast.forms import shown

__all__ = [
    "allocating",
    "check_fields",
    "check_given",
    "check_tensors",
    "check_type",
    "fraction",
    "real",
    "typed",
    "whole",
]

Function = TypeVar("Function", bound=Callable[..., Any])

_WORDS = {int: "an integer", float: "a number", str: "a string", Tensor: "a tensor"}


def typed(function: Function) -> Function:
    """A decorator for what is not called in each step: it checks the arguments by the annotations,
    which costs some microseconds.

    A whole number is what ``operator.index`` takes, a number what ``float`` takes and no string; of
    a sequence each element is looked at; a bool and what is not annotated may be anything.

    Raises:
        TypeError: from the function: for an argument of another type.
    """
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not hints:  # not before: a module may name what it imports later
            hints.update(get_type_hints(function))
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                check_type(name, value, hints.get(name, Any))
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


def check_fields(record: Any) -> None:
    """Checks the fields of a dataclass, as :func:`typed` does arguments.

    Raises:
        TypeError: for a field of another type.
    """
    for name, hint in _hints_of(type(record)).items():  # type: ignore[arg-type]
        check_type(name, getattr(record, name), hint)


def check_given(factory: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Checks what is to be given to a class or function, as :func:`typed` does.

    Raises:
        TypeError: for an argument of another type.
    """
    hints = _hints_of(factory.__init__ if isinstance(factory, type) else factory)  # type: ignore[misc]
    for name, value in given.items():
        check_type(name, value, hints.get(name, Any))


def check_type(name: str, value: Any, hint: Any) -> None:
    """
    Raises:
        TypeError: ``value`` is not as the annotation says.
    """
    if not _is_a(value, hint):
        raise TypeError(f"{name}: expected {_words(hint)}, got {shown(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63 and not _takes(hint, float):
        raise ValueError(f"{name}: expected an integer of 64 bits, got {shown(value)}")


def check_tensors(**arguments: Any) -> None:
    """
    Raises:
        TypeError: naming the first argument that is no tensor.
    """
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {shown(value)}")


def whole(name: str, value: Any, least: int = -(2**63), most: int = 2**63 - 1) -> int:
    """An integer of Python.

    Raises:
        TypeError: for another type.
        ValueError: for one out of range.
    """
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several elements
        raise TypeError(f"{name}: expected an integer, got {shown(value)}") from None
    if number < least and abs(number) < 2**63:
        raise ValueError(f"{name}: expected at least {least}, got {number}")
    if not least <= number <= most:
        raise ValueError(f"{name}: expected an integer up to {most}, got {number}")
    return number


def real(name: str, value: Any) -> float:
    """A number of Python.

    Raises:
        TypeError: for another type.
    """
    if not _is_number(value):
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    return float(value)


def fraction(name: str, value: Any) -> float:
    """A number in [0, 1].

    Raises:
        TypeError: for another type.
        ValueError: for one out of range.
    """
    number = real(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    return number


@contextlib.contextmanager
def allocating(name: str, value: Any, device: Any) -> Iterator[None]:
    """For making tensors whose size is an argument.

    Raises:
        ValueError: where they are more than there is memory; an allocator's own message has many
            lines.
    """
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"{name}: {value} are more than the memory of {device} holds") from error


@functools.cache
def _hints_of(what: Any) -> dict[str, Any]:
    return get_type_hints(what)


def _is_number(value: Any) -> bool:
    if isinstance(value, (str, bytes)):
        return False
    try:
        float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False
    return True


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _takes(hint: Any, kind: type) -> bool:
    return hint in (kind, Any) or kind in get_args(hint)


def _is_a(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_is_a(value, one) for one in get_args(hint))
    if hint is int:
        return _is_whole(value)
    if hint is float:
        return _is_number(value)
    if hint is bool or isinstance(hint, TypeVar) or hint is Any:
        return True
    if hint is type(None):
        return value is None
    if origin is not None and issubclass(origin, Callable):  # type: ignore[arg-type]
        return callable(value)
    if origin is not None and issubclass(origin, Iterable):
        taken = (list, tuple) if origin is tuple else origin  # as files and command lines have them
        if isinstance(value, str) or not isinstance(value, taken):
            return False
        each = get_args(hint)[0]
        # of an iterator nothing is taken, and names of a mapping are its own affair
        return not isinstance(value, (list, tuple)) or all(_is_a(one, each) for one in value)
    if isinstance(value, (str, bytes)):
        return hint in (str, object)  # though it has a length, and is a sequence
    return not isinstance(origin or hint, type) or isinstance(value, origin or hint)


def _words(hint: Any) -> str:
    args = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_words(one) for one in args)
    if hint is type(None):
        return "None"
    if get_origin(hint) is not None and issubclass(get_origin(hint), Callable):  # type: ignore[arg-type]
        return "something to call"
    if get_origin(hint) is not None and args:
        return f"a {get_origin(hint).__name__.lower()} of {_words(args[0])}"
    return _WORDS.get(hint, f"a {getattr(hint, '__name__', hint)}")
