"""The CUDA kernels of select_samples, run on the CPU by cuda_emulation."""

import pytest
import torch
from cuda_emulation.harness import (
    INF,
    NAN,
    cpu,
    emulated_only,
    generator,
    guarded,
    is_same,
)

pytestmark = emulated_only

# Scores, in the ways that matter to a mean and to comparisons with it.
SCORES = {
    "normal": lambda n, g: torch.randn(n, generator=g),
    "exponential": lambda n, g: torch.empty(n).exponential_(generator=g),
    "equal": lambda n, g: torch.full((n,), 0.1),
    "binary": lambda n, g: torch.randint(2, (n,), generator=g).float(),
    "some NaN": lambda n, g: torch.where(
        torch.rand(n, generator=g) < 0.3, NAN, 1.0 * torch.arange(n)
    ),
    "extreme": lambda n, g: torch.tensor([INF, -INF, NAN, 1e30, -1e30, 1e-42, -0.0, 0.5])[
        torch.randint(8, (n,), generator=g)
    ],
    "all NaN": lambda n, g: torch.full((n,), NAN),
    "all inf": lambda n, g: torch.full((n,), INF),
    "denormal": lambda n, g: torch.rand(n, generator=g) * 1e-42,
    "huge": lambda n, g: torch.full((n,), 3.4028234e38),
    "neighbours": lambda n, g: torch.tensor([1.0, 1.0000001, 0.99999994])[
        torch.randint(3, (n,), generator=g)
    ],
}
TILE = 4096


def check_selection(emulated, scores, *draw):
    expected = cpu.select_samples(scores, *draw)
    actual = emulated("select_samples", scores, *draw)
    assert all(map(is_same, actual, expected))


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("shuffle", [False, True])
def test_selections_of_every_size(emulated, kind, shuffle):
    sizes = [0, 1, 3, 4, 8, 31, 32, 33, 256, 1023, 1025]
    sizes += [TILE - 1, TILE, TILE + 1, 2 * TILE - 1, 3 * TILE + 1]
    for place, size in enumerate(sizes):
        scores = SCORES[kind](size, generator(size))
        keep = [1e-9, 0.1, 0.37, 0.5, 0.99, 1.0][place % 6]
        draw = (keep, (-1) ** place * (2**63 - 1 - place), place, place % 3, shuffle)
        check_selection(emulated, guarded(scores), *draw)
        check_selection(emulated, guarded(scores, 1 + place % 3), *draw)


def test_selections_of_few_samples(emulated):
    for size in range(1, 67):
        check_selection(emulated, SCORES["normal"](size, generator(size)), 0.5, size, 0, 0, True)


# One block scans the counts of 1024 tiles at a time.
def test_a_selection_from_more_tiles_than_one_scan_takes(emulated):
    scores = SCORES["exponential"](1025 * TILE + 1, generator(0))
    draw = (0.5, 7, 3, 1, True)
    actual = emulated.run("select_samples", scores, *draw)
    assert all(map(is_same, actual, cpu.select_samples(scores, *draw)))
