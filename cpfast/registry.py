"""Names for what can be exchanged: criteria, policies, actions, recipes, models, data, studies.

A registry knows what the modules of one package register, and what other installed packages offer
under an entry point. A file put into that package is all that a new name takes::

    from cpfast import policies

    @policies.register("newest", source="this paper, equation 3")
    class Newest:
        \"\"\"Keeps the samples that were seen last.\"\"\"
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Generic, TypeVar

from cpfast.arguments import check_given

__all__ = ["Entry", "Registry", "UnknownName"]

T = TypeVar("T")
Factory = TypeVar("Factory", bound=Callable[..., Any])


class UnknownName(ValueError):
    """A name that nobody has registered; the message lists the near ones."""


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A name with what makes it."""

    name: str
    factory: Callable[..., T]
    source: str
    """Paper and equation, or repository."""
    line: str
    """What it does, in one line: the first of its docstring."""

    def make(self, **options: Any) -> T:
        """Call the factory.

        Raises:
            TypeError: for an option of another type.
            ValueError: for an option that it does not have, and what it refuses itself.
        """
        known = options_of(self.factory)
        for option, value in options.items():
            if option not in known:
                raise ValueError(
                    f"{option}: expected {' or '.join(known) or 'no option'}, "
                    f"got {value!r} for {self.name!r}"
                )
        for option, is_needed in known.items():
            if is_needed and option not in options:
                raise ValueError(f"{option}: {self.name!r} needs one, got None")
        check_given(self.factory, options)
        return self.factory(**options)


class Registry(Mapping[str, Entry[T]]):
    """A mapping from names to entries, in the order of the names.

    Args:
        kind: of what, in the singular, for messages.
        package: whose modules register; imported when the registry is first asked.
        group: of entry points: each loads an object that registers itself when it is imported.
    """

    def __init__(self, kind: str, package: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._package = package
        self._entries: dict[str, Entry[T]] = {}
        self._is_complete = False

    def register(
        self, name: str, *, source: str, line: str | None = None
    ) -> Callable[[Factory], Factory]:
        """A decorator of the class or function that makes it; its arguments are the options.

        Args:
            source: paper and equation, or repository.
            line: what it does; None: the first line of the docstring.

        Raises:
            ValueError: for a name that another one has, or where there is no line.
        """

        def add(factory: Factory) -> Factory:
            text = line or (inspect.getdoc(factory) or "").partition("\n")[0].replace("``", "")
            if not text:
                raise ValueError(f"{self.kind} {name!r}: no docstring, and no line")
            known = self._entries.get(name)
            if known is not None and not _is_same(known.factory, factory):
                raise ValueError(f"{self.kind} {name!r}: registered already, by {known.factory}")
            self._entries[name] = Entry(name, factory, source, text)
            return factory

        return add

    def make(self, name: str, **options: Any) -> T:
        """What `name` stands for.

        Raises:
            UnknownName: there is no such name.
            ValueError: for a wrong option.
        """
        return self[name].make(**options)

    def __getitem__(self, name: str) -> Entry[T]:
        if name not in self._entries:
            self._complete()
        try:
            return self._entries[name]
        except KeyError:
            near = difflib.get_close_matches(str(name), self._entries, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UnknownName(
                f"{self.kind}: expected one of {tuple(self)}, got {name!r}"
                + (f"; {hint.strip()}" if hint else "")
            ) from None

    def __contains__(self, name: object) -> bool:
        self._complete()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._complete()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._complete()
        return len(self._entries)

    def _complete(self) -> None:
        if self._is_complete:
            return
        self._is_complete = True  # before: what is imported may ask
        try:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            for point in metadata.entry_points(group=self.group):
                point.load()
        except BaseException:
            self._is_complete = False  # or the next question would be answered with half of them
            raise


def options_of(factory: Callable[..., Any]) -> dict[str, bool]:
    """The names of a factory's arguments, and whether each must be given."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter.default is inspect.Parameter.empty
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind in kinds
    }


def _is_same(one: Any, other: Any) -> bool:
    """A module that is reloaded registers again, with the same names. Those of closures tell
    nothing of what they hold, and a partial has none."""
    names = [(getattr(x, "__module__", ""), getattr(x, "__qualname__", "")) for x in (one, other)]
    is_told_by_name = names[0][1] and "<" not in names[0][1]
    return one is other or bool(is_told_by_name and names[0] == names[1])
