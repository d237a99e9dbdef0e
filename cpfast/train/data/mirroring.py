"""Whether a mirrored image may be of another class, as far as the classes' names tell."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORDS = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[^\W\d_]+|\d+")  # of snake_case, CamelCase and names3
_SIDES = {"left", "right", "leftward", "rightward", "clockwise", "anticlockwise"}
_DIGITS = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
# What stands beside a character: digit_3, upper_A
_BESIDE = {
    "digit", "number", "num", "letter", "char", "character", "upper", "lower", "uppercase",
    "lowercase", "capital", "small", "big",
}  # fmt: skip


def have_sides(classes: Iterable[str]) -> bool:
    """Whether a name has a left or a right in it, or most are those of single characters."""
    names = [[word.lower() for word in _WORDS.findall(name)] for name in classes]
    if any(_SIDES.intersection(words) for words in names):
        return True
    return 2 * sum(map(_is_character, names)) > len(names)


def _is_character(words: list[str]) -> bool:
    own = [word for word in words if word not in _BESIDE]
    if len(own) != 1:
        return False
    word = own[0].lstrip("0") or "0"
    return len(word) == 1 or word in _DIGITS
