"""The CUDA kernels of record_scores, run on the CPU by cuda_emulation."""

import pytest
import torch
from cuda_emulation.harness import (
    cpu,
    emulated_only,
    generator,
    guarded,
    is_same,
)

pytestmark = emulated_only

# Up to 4096, a warp looks through the later positions of the batch; beyond, positions claim places.
BATCHES = [0, 1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1000, 4095, 4096, 4097, 6145]


def check_record(emulated, samples, index):
    g = generator(samples, len(index))
    scores, values = torch.randn(samples, generator=g), torch.randn(len(index), generator=g)
    expected = scores.clone()
    cpu.record_scores(expected, index, values)
    for seed, offset in enumerate([None, 1, 2]):
        index = index.to([torch.int64, torch.int32][seed % 2])
        actual = guarded(scores, offset)
        emulated.run(
            "record_scores", actual, guarded(index, offset), guarded(values, offset), seed=seed
        )
        assert is_same(actual, expected)


@pytest.mark.parametrize("batch", BATCHES)
def test_recorded_scores_of_every_batch_size(emulated, batch):
    for samples in (1, 2, 10, 1000, 100_000):
        index = torch.randint(samples, (batch,), generator=generator(batch, samples))
        check_record(emulated, samples, index)


@pytest.mark.parametrize("batch", [100, 4096, 5000])
def test_recorded_scores_of_equal_indices(emulated, batch):
    order = torch.arange(batch)
    for index in (order.flip(0), order // 2, order % (batch // 2), torch.zeros_like(order)):
        check_record(emulated, batch, index)


@pytest.mark.parametrize(
    ("batch", "bad"), [(10, -1), (10, 50), (4096, 50), (5000, 50), (5000, -7), (5000, 2**40)]
)
def test_an_index_out_of_range_traps(emulated, batch, bad):
    index = torch.zeros(batch, dtype=torch.int64)
    index[batch // 2] = bad
    with pytest.raises(RuntimeError, match="trap: .*record_scores: index out of range"):
        emulated.run("record_scores", guarded(torch.zeros(50)), index, torch.zeros(batch))


def test_no_score_is_taken_for_a_claim(emulated):
    # Of each sample, the batch has two positions; the first one's claim is the last one's score.
    batch = 6000
    bits = 0xFF800001 + torch.arange(batch) // 2 - 2**32
    values = bits.to(torch.int32).view(torch.float32)
    scores = values.clone()
    emulated.run("record_scores", scores, torch.arange(batch) // 2, values)
    quiet = (bits[1::2] | 0x400000).to(torch.int32)
    assert torch.equal(scores[: batch // 2].view(torch.int32), quiet)


def test_a_batch_of_more_positions_than_claims(emulated):
    samples, batch = 1000, 2**21 + 5000
    check = torch.randint(samples, (batch,), generator=generator(0))
    values = torch.randn(batch, generator=generator(1))
    actual, expected = torch.zeros(samples), torch.zeros(samples)
    emulated.run("record_scores", actual, check, values)
    cpu.record_scores(expected, check, values)
    assert is_same(actual, expected)
