"""From text to sequences of tokens, a token a character."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch

from cpfast.train.data.sets import TextData
from cpfast.train.data.split import some
from cpfast.train.errors import UserError

LENGTH = 128  # tokens that are predicted in a sequence
MOST = 256  # different tokens
UNKNOWN = "\ufffd"


def vocabulary_of(texts: Iterable[str]) -> str:
    """The characters found, in their order; where they are more than `MOST`, the most frequent and
    `UNKNOWN`, which stands for the rest."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    if len(counts) <= MOST:
        return "".join(sorted(counts))
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    return "".join(sorted({*ranked[: MOST - 1], UNKNOWN}))


def tokens_of(text: str, vocabulary: str) -> tuple[np.ndarray, int]:
    """uint8 [len(text)], and how many characters are none of the vocabulary: `UNKNOWN`, where it
    has that, else its first."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    known = np.array(sorted(map(ord, vocabulary)), dtype=np.uint32)
    places = {ord(character): place for place, character in enumerate(vocabulary)}
    order = np.array([places[code] for code in known.tolist()], dtype=np.uint8)
    nearest = np.searchsorted(known, codes).clip(0, len(known) - 1)
    is_known = known[nearest] == codes
    tokens = np.where(is_known, order[nearest], max(vocabulary.find(UNKNOWN), 0))
    return tokens.astype(np.uint8), int((~is_known).sum())


def text_data(
    source: str,
    train: str,
    test: str,
    *,
    limit: int | None = None,
    length: int = LENGTH,
    name: str,
    notes: Iterable[str] = (),
) -> TextData:
    """Sequences of `length` + 1 characters, each starting at the last one of that before it.

    Args:
        source: for messages.
        train, test: as they lie; what is left at the end of each is dropped.

    Raises:
        UserError: one of them is shorter than a sequence, or there are fewer than `limit`.
    """
    vocabulary = vocabulary_of((train, test))
    notes = list(notes)
    cut, unknown = [], 0
    for part, text in (("training", train), ("test", test)):
        if len(text) <= length:
            raise UserError(
                f"{source}: {len(text)} characters of {part} text; a sequence takes {length + 1}"
            )
        tokens, others = tokens_of(text, vocabulary)
        unknown += others
        windows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)
        cut.append(windows[::length].copy())
    if unknown:
        notes.append(f"{unknown:,} characters of the rarest kinds are read as {UNKNOWN}")
    sequences = cut[0][some(len(cut[0]), limit)]
    return TextData(
        torch.from_numpy(sequences), torch.from_numpy(cut[1]), vocabulary, name, "; ".join(notes)
    )
