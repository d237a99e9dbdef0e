import pytest
import torch
from torch.library import opcheck

from cpfast import ops, reference


def test_only_the_given_samples_are_written(device):
    scores = torch.arange(6.0, device=device)
    index = torch.tensor([4, 1], device=device)
    ops.record_scores(scores, index, torch.tensor([9.0, 8.0], device=device))
    assert scores.tolist() == [0, 8, 2, 3, 9, 5]


@pytest.mark.parametrize("batch", [0, 1, 33, 1000, 70_000])
def test_of_equal_indices_the_last_wins(device, batch):
    g = torch.Generator().manual_seed(batch)
    index = torch.randint(500, (batch,), generator=g)
    values = torch.randn(batch, generator=g)
    scores = torch.zeros(500, device=device)
    ops.record_scores(scores, index.to(device), values.to(device))
    expected = dict(zip(index.tolist(), values.tolist(), strict=True))
    assert scores.tolist() == [expected.get(i, 0.0) for i in range(500)]
    twin = torch.zeros(500)
    reference.record_scores(twin, index, values)
    assert torch.equal(scores.cpu(), twin)


def test_int32_indices_record_the_same(device):
    g = torch.Generator().manual_seed(0)
    index, values = torch.randint(500, (5000,), generator=g), torch.randn(5000, generator=g)
    wide, narrow = torch.zeros(500, device=device), torch.zeros(500, device=device)
    ops.record_scores(wide, index.to(device), values.to(device))
    ops.record_scores(narrow, index.int().to(device), values.to(device))
    assert torch.equal(narrow, wide)


def test_values_are_converted_and_detached(device):
    scores = torch.zeros(3, device=device)
    values = torch.tensor([1.5, 2.5], dtype=torch.bfloat16, device=device, requires_grad=True)
    ops.record_scores(scores, torch.tensor([2, 0], device=device), values)
    assert scores.tolist() == [2.5, 0, 1.5]
    assert not scores.requires_grad


def test_opcheck(device):
    scores = torch.zeros(5, device=device)
    index = torch.tensor([1, 3], device=device)
    opcheck(torch.ops.cpfast.record_scores, (scores, index, torch.ones(2, device=device)))


SCORES, INDEX, VALUES = torch.zeros(4), torch.tensor([0, 1]), torch.ones(2)


@pytest.mark.parametrize(
    ("scores", "index", "values", "message"),
    [
        (SCORES.double(), INDEX, VALUES, "scores: expected dtype float32, got float64"),
        (SCORES[None], INDEX, VALUES, r"scores: expected shape \[N\], got \[1, 4\]"),
        (SCORES, INDEX.short(), VALUES, "index: expected dtype int64, got int16"),
        (SCORES, INDEX[None], VALUES, r"index: expected shape \[B\], got \[1, 2\]"),
        (SCORES, INDEX, VALUES[:1], r"values: expected shape \[2\], got \[1\]"),
        (SCORES, torch.tensor([0, 4]), VALUES, r"index\[1\]: expected .* in \[0, 4\), got 4"),
        (SCORES, torch.tensor([-1, 0]), VALUES, r"index\[0\]: expected .* in \[0, 4\), got -1"),
        (SCORES, torch.tensor([-1, 0]).int(), VALUES, r"index\[0\]: .* in \[0, 4\), got -1"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(scores, index, values, message):
    before = scores.clone()
    with pytest.raises(RuntimeError, match=message):
        ops.record_scores(scores, index, values)
    assert torch.equal(scores, before)
