import itertools
import math

import pytest
import torch
from torch.library import opcheck

from cpfast import ops, reference

KEY = {"seed": 5, "epoch": 3, "stream": 1}


def selection_of(size, device="cpu", **options):
    scores = torch.rand(size, generator=torch.Generator().manual_seed(size)).to(device)
    return ops.select_samples(scores, keep=0.5, **KEY, **options)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 1000, 4097, 50_001])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("batch", [1000, 4096, 50_001])
def test_slices_are_the_shuffled_selection(device, size, dtype, batch):
    indices, _, count = selection_of(size, device, dtype=dtype)
    whole = selection_of(size, device, dtype=dtype, shuffle=True).indices
    slices = [
        ops.shuffled_slice(indices, count, start, min(batch, size - start), **KEY)
        for start in range(0, size, batch)
    ]
    # -1 from count on in both.
    assert torch.equal(torch.cat(slices), whole)


def test_the_twin_slices_the_same(device):
    for size, (start, length) in itertools.product(
        [1, 5, 64, 1000, 5000], [(0, 10), (3, 0), (60, 5000), (10**6, 7), (2**62, 7)]
    ):
        indices, _, count = selection_of(size)
        actual = ops.shuffled_slice(indices.to(device), count.to(device), start, length, **KEY)
        expected = reference.shuffled_slice(indices, count, start, length, **KEY)
        assert actual.dtype == torch.int64
        assert torch.equal(actual.cpu(), expected)


def test_a_cursor_on_the_device_says_where_to_start(device):
    indices, _, count = selection_of(1000, device)
    cursor = torch.zeros((), dtype=torch.int64, device=device)
    whole = selection_of(1000, device, shuffle=True).indices
    for start in range(0, 1000, 64):
        batch = ops.shuffled_slice(indices, count, cursor, 64, **KEY)
        length = min(64, 1000 - start)
        assert torch.equal(batch[:length], whole[start : start + 64])
        assert (batch[length:] == -1).all()
        cursor += 64
    batch = ops.shuffled_slice(indices, count, cursor.fill_(-5), 8, **KEY)
    assert batch.tolist() == [-1] * 5 + whole[:3].tolist()
    assert (ops.shuffled_slice(indices, count, cursor, 4, **KEY) == -1).all()


@pytest.mark.cuda
def test_a_cuda_graph_replays_batch_after_batch():
    indices, _, count = selection_of(1000, "cuda")
    cursor = torch.zeros((), dtype=torch.int64, device="cuda")
    ops.shuffled_slice(indices, count, cursor, 100, **KEY)  # loads the kernel outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch = ops.shuffled_slice(indices, count, cursor, 100, **KEY)
        cursor += 100
    batches = []
    for _ in range(10):
        graph.replay()
        batches.append(batch.clone())
    assert torch.equal(torch.cat(batches), selection_of(1000, "cuda", shuffle=True).indices)


def test_every_count_up_to_4096_is_permuted():
    indices = torch.arange(4096)
    for count in range(1, 4097):
        batch = ops.shuffled_slice(indices, torch.tensor(count), 0, count, **KEY)
        assert torch.equal(batch.sort().values, indices[:count])


@pytest.mark.parametrize("count", [3, 7, 50, 100])
def test_every_sample_is_equally_likely_at_every_position(count):
    indices, epochs = torch.arange(count), 20 * count
    table = torch.zeros(count, count)
    for epoch in range(epochs):
        order = ops.shuffled_slice(indices, torch.tensor(count), 0, count, seed=3, epoch=epoch)
        table[indices, order] += 1
    chi_square = ((table - 20) ** 2 / 20).sum().item()
    freedom = (count - 1) ** 2
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_equal_on_any_number_of_threads(each_thread_count):
    indices, _, count = selection_of(100_003)
    one, three = each_thread_count(lambda: ops.shuffled_slice(indices, count, 5, 100_000, **KEY))
    assert torch.equal(one, three)


def test_opcheck(device):
    indices, _, count = selection_of(100, device)
    cursor = torch.tensor(3, device=device)
    opcheck(torch.ops.cpfast.shuffled_slice, (indices, count, 1, 20, 5, 3))
    opcheck(torch.ops.cpfast.shuffled_slice, (indices, count, 1, 20, 5, 3, 1, cursor))


INDICES, COUNT = torch.arange(5), torch.tensor(5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((INDICES[None], COUNT, 0, 2), r"indices: expected shape \[N\], got \[1, 5\]"),
        ((INDICES.float(), COUNT, 0, 2), "indices: expected dtype int64, got float32"),
        ((INDICES[::2], COUNT, 0, 2), "indices: expected a contiguous tensor, got stride 2"),
        ((INDICES, INDICES, 0, 2), r"count: expected shape \[\], got \[5\]"),
        ((INDICES, COUNT.int(), 0, 2), "count: expected dtype int64, got int32"),
        ((INDICES, COUNT, -1, 2), "start: expected a position from 0 on, got -1"),
        ((INDICES, COUNT, 0, -2), "size: expected a number from 0 on, got -2"),
        ((INDICES, COUNT, COUNT.float(), 2), "cursor: expected dtype int64, got float32"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        ops.shuffled_slice(*arguments, **KEY)
