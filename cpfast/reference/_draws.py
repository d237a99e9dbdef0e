"""The random numbers and permutations that the compiled ops draw."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WORD = 0xFFFFFFFF


LONG = 0xFFFFFFFFFFFFFFFF


SUBSET, SHUFFLE, BERNOULLI = 1, 2, 3


AUGMENT = int.from_bytes(b"augment", "big")


def mix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & LONG
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & LONG
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & LONG
    return x ^ (x >> 31)


def draw_key(seed: int, epoch: int, stream: int, purpose: int) -> int:
    key = mix64(seed & LONG)
    for word in (epoch, stream, purpose):
        key = mix64(key ^ (word & LONG))
    return key


def _round(x: Tensor) -> Tensor:
    # 32-bit words in int64: products wrap modulo 2^64, so their low 32 bits are right.
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & WORD
    return x ^ (x >> 16)


def permute(
    positions: Tensor, n: int, *, seed: int, epoch: int, stream: int, purpose: int
) -> Tensor:
    """The keyed permutation of [0, n) of ``csrc/permutation.h`` at some positions ([B] int64)."""
    bits = max(6, (n - 1).bit_length())
    left_bits, right_bits = bits // 2, bits - bits // 2
    state = draw_key(seed, epoch, stream, purpose)
    keys = []
    for _ in range(8):
        state = mix64(state)
        keys.append(state >> 32)

    x = positions
    walking = torch.ones_like(x, dtype=torch.bool)
    while bool(walking.any()):
        left, right = x >> right_bits, x & ((1 << right_bits) - 1)
        for i in range(0, 8, 2):
            left = left ^ (_round(right ^ keys[i]) & ((1 << left_bits) - 1))
            right = right ^ (_round(left ^ keys[i + 1]) & ((1 << right_bits) - 1))
        x = torch.where(walking, (left << right_bits) | right, x)
        walking = x >= n
    return x


def philox4x32(counter: Sequence[Tensor | int], key: int) -> list[Tensor]:
    """Philox4x32-10 of ``csrc/philox.h``: 4 counters, 32-bit words in int64, to 4 random words."""
    x, y, z, w = (torch.as_tensor(word) for word in counter)
    low, high = key & WORD, (key >> 32) & WORD
    for _ in range(10):
        # Products wrap modulo 2^64; the mask undoes the sign that the shift carries down.
        a, b = x * 0xD2511F53, z * 0xCD9E8D57
        x, y = ((b >> 32) & WORD) ^ y ^ low, b & WORD
        z, w = ((a >> 32) & WORD) ^ w ^ high, a & WORD
        low, high = (low + 0x9E3779B9) & WORD, (high + 0xBB67AE85) & WORD
    return [x, y, z, w]


def numbers(samples: Tensor, *, seed: int, epoch: int, stream: int, purpose: int) -> Tensor:
    """The 32-bit numbers of ``csrc/select_samples.h`` for sample ids: [B] int64."""
    counter = samples // 128 * 32 + samples % 32
    words = philox4x32(
        (counter & WORD, counter >> 32, torch.zeros_like(counter), torch.zeros_like(counter)),
        draw_key(seed, epoch, stream, purpose),
    )
    return torch.stack(words).gather(0, (samples // 32 % 4)[None])[0]
