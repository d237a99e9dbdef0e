"""The CUDA kernels of select_samples, run on the CPU by cuda_emulation."""

import itertools

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
KEEPS = [1e-9, 0.1, 0.37, 0.5, 0.99, 1.0]
TILE, SUM_TILE = 4096, 16384
# Up to here, one block does it all.
ONE_BLOCK = 2 * TILE
SHUFFLE_AND_EXACT = list(itertools.product([False, True], [True, False]))


def check_selection(emulated, scores, *draw):
    expected = cpu.select_samples(scores, *draw)
    actual = emulated("select_samples", scores, *draw)
    assert all(map(is_same, actual, expected))


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(("shuffle", "exact"), SHUFFLE_AND_EXACT)
def test_selections_by_one_block(emulated, kind, shuffle, exact):
    sizes = [0, 1, 3, 4, 8, 31, 32, 33, 127, 256, 1023, 1025, TILE - 1, TILE + 1, 8191, ONE_BLOCK]
    for place, size in enumerate(sizes):
        scores = guarded(SCORES[kind](size, generator(size)), [None, 1, 2, 3][place % 4])
        seed = (-1) ** place * (2**63 - 1 - place)
        dtype = [torch.int64, torch.int32][place % 2]
        draw = (KEEPS[place % 6], seed, place, place % 3, shuffle, exact, dtype)
        check_selection(emulated, scores, *draw)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(
    "size",
    [ONE_BLOCK - 1, ONE_BLOCK, ONE_BLOCK + 1, SUM_TILE, 50_000, 4 * SUM_TILE, 5 * SUM_TILE + 4097],
)
def test_selections_about_the_size_of_one_block(emulated, kind, size):
    place = list(SCORES).index(kind)
    scores = guarded(SCORES[kind](size, generator(size)), [None, 1, 0][place % 3])
    dtype = [torch.int64, torch.int32][place % 2]
    draw = (KEEPS[2 + place % 4], place, 1, 0, *SHUFFLE_AND_EXACT[place % 4], dtype)
    check_selection(emulated, scores, *draw)


@pytest.mark.parametrize(("shuffle", "exact"), SHUFFLE_AND_EXACT)
@pytest.mark.parametrize("size", [13 * TILE - 1, 13 * TILE, 13 * TILE + 1])
def test_selections_by_blocks_that_wait_for_each_other(emulated, shuffle, exact, size):
    scores = guarded(SCORES["extreme"](size, generator(size)))
    check_selection(emulated, scores, 0.37, size, 0, 0, shuffle, exact)


# A sanitizer grows kernels, so that fewer blocks fit than were promised.
@pytest.mark.parametrize(("shuffle", "exact"), SHUFFLE_AND_EXACT)
@pytest.mark.parametrize("size", [ONE_BLOCK + 1, 13 * TILE - 1])
def test_a_refused_grid_is_halved_until_it_fits(emulated, shuffle, exact, size):
    scores = guarded(SCORES["extreme"](size, generator(size)))
    with emulated.refusing_beyond(1):
        check_selection(emulated, scores, 0.37, size, 0, 0, shuffle, exact)
    with emulated.refusing_beyond(0), pytest.raises(RuntimeError, match="a single block that is"):
        emulated.run("select_samples", scores, 0.37, size, 0, 0, shuffle, exact)


def test_selections_of_few_samples(emulated):
    for size in range(1, 67):
        check_selection(emulated, SCORES["normal"](size, generator(size)), 0.5, size, 0, 0, True)


# The sums of so many tiles have several addends in a lane.
def test_a_selection_from_more_tiles_than_lanes(emulated):
    scores = SCORES["exponential"](1025 * SUM_TILE + 1, generator(0))
    draw = (0.5, 7, 3, 1, False, False)
    actual = emulated.run("select_samples", scores, *draw)
    assert all(map(is_same, actual, cpu.select_samples(scores, *draw)))


@pytest.mark.parametrize("size", [1000, ONE_BLOCK, ONE_BLOCK + 1, 50_000, 1_000_000])
@pytest.mark.parametrize(("dtype", "outputs"), [(torch.int64, 12), (torch.int32, 8)])
def test_memory_is_that_of_the_outputs(emulated, size, dtype, outputs):
    scores = SCORES["normal"](size, generator(size))
    emulated.run("select_samples", scores, 0.5, 0, 0, 0, True, True, dtype)
    assert outputs * size < emulated.allocated < (outputs + 0.01) * size + 64


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_slices(emulated, dtype):
    for size in (1, 2, 64, 65, 1000, 5000):
        scores = SCORES["normal"](size, generator(size))
        indices, _, count = cpu.select_samples(scores, 0.5, 3, 1, 0, False, True, dtype)
        for start, length in [(0, size), (size // 3, 257), (0, 0), (2 * size, 5), (2**62, 3)]:
            for cursor in (None, torch.tensor(0), torch.tensor(size // 5), torch.tensor(-7)):
                arguments = (guarded(indices), count, start, length, 3, 1, 0, cursor)
                actual = emulated("shuffled_slice", *arguments)
                assert is_same(actual[0], cpu.shuffled_slice(*arguments))
