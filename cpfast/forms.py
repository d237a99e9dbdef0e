"""What a value that comes from a file, or a state, must look like.

A form is an example, whose type counts (of a tensor its shape and dtype, of a dict its names); a
type; or one of the classes below. A check goes no deeper than its form, however deep the value is.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Finite", "Maybe", "Open", "Plain", "Rows", "Several", "Table", "check", "shown"]


@dataclass(frozen=True)
class Maybe:
    """None, or as `form`."""

    form: Any


@dataclass(frozen=True)
class Several:
    """A list or a tuple of any length, each as `form`."""

    form: Any


@dataclass(frozen=True)
class Table:
    """A dict of any names, each as `form`."""

    form: Any


@dataclass(frozen=True)
class Rows:
    """A tensor as `form` but for its length."""

    form: Tensor


@dataclass(frozen=True)
class Open:
    """A dict of these names; of the optional ones some may be missing, and others stand in it."""

    forms: Mapping[str, Any]
    optional: Mapping[str, Any] = field(default_factory=dict)


class Finite:
    """A number that is neither NaN nor infinite."""


class Plain:
    """None, a bool, a number or a string: an option's value."""


def check(value: Any, form: Any, name: str) -> None:
    """
    Raises:
        ValueError: `value` is not as `form`; names the place in it, in one line.
    """
    if isinstance(form, Maybe):
        if value is not None:
            check(value, form.form, name)
    elif isinstance(form, (Several, list, tuple)):
        _check_sequence(value, form, name)
    elif isinstance(form, (Table, Open, dict)):
        _check_dict(value, form, name)
    elif isinstance(form, (Rows, Tensor)):
        _check_tensor(value, form, name)
    else:
        wanted = form if isinstance(form, type) else type(form)
        if not _is_a(value, wanted):
            raise ValueError(f"{name}: expected {wanted.__name__.lower()}, got {shown(value)}")


def shown(value: Any) -> str:
    """A short form of any value, in one line."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} {value.dtype} on {value.device}"
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    return _shortened.repr(value)


class _Shortened(reprlib.Repr):
    def repr_instance(self, x: Any, level: int) -> str:
        return f"a {type(x).__name__}"


_shortened = _Shortened()
_shortened.maxlevel = 2


def _is_a(value: Any, wanted: type) -> bool:
    """A bool is no number here, and an integer of more than 64 bits is none either."""
    if wanted is object:
        return True
    if type(value) is int and not -(2**63) <= value < 2**63:
        return False
    if wanted is Tensor:
        return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    if wanted is Plain:
        return value is None or type(value) in (bool, int, float, str)
    if wanted is Finite:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is wanted or (wanted is float and type(value) is int)


def _check_sequence(value: Any, form: Any, name: str) -> None:
    if type(value) not in (list, tuple):
        raise ValueError(f"{name}: expected a list, got {shown(value)}")
    forms = [form.form] * len(value) if isinstance(form, Several) else form
    if len(value) != len(forms):
        raise ValueError(f"{name}: expected {len(forms)} values, got {len(value)}")
    for number, (one, its) in enumerate(zip(value, forms, strict=True)):
        check(one, its, f"{name}[{number}]")


def _check_dict(value: Any, form: Any, name: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected names and values, got {shown(value)}")
    if isinstance(form, Open):
        present = {key: its for key, its in form.optional.items() if key in value}
        forms = {**form.forms, **present}
        value = {key: value[key] for key in forms if key in value}
    else:
        forms = dict.fromkeys(value, form.form) if isinstance(form, Table) else form
    if value.keys() != forms.keys() or not all(isinstance(key, str) for key in value):
        missing = [key for key in forms if key not in value]
        foreign = [key for key in value if key not in forms or not isinstance(key, str)]
        fault = f"no {missing[0]!r}" if missing else f"a foreign {shown(foreign[0])}"
        raise ValueError(f"{name}: {fault}")
    for key, its in forms.items():
        check(value[key], its, f"{name}[{key!r}]")


def _check_tensor(value: Any, form: Rows | Tensor, name: str) -> None:
    like = form.form if isinstance(form, Rows) else form
    same = (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and value.dtype == like.dtype
        and value.dim() == like.dim()
    )
    free = 1 if isinstance(form, Rows) else 0
    if not same or value.shape[free:] != like.shape[free:]:
        shape = ["any"] * free + list(like.shape[free:])
        raise ValueError(f"{name}: expected a tensor {shape} {like.dtype}, got {shown(value)}")
