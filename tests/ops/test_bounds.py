"""No op reads or writes a byte beside its tensors, takes what overlaps, or leaves its range."""

import math

import numpy as np
import pytest
import torch
from cuda_emulation.harness import guarded

from cpfast import ops

KEY = {"seed": 1, "epoch": 2}


SMALL = [(2, 1, 1, 1), (5, 1, 1, 1), (3, 2, 1, 1), (1, 2, 2, 1), (2, 1, 2, 3), (9, 1, 1, 1)]


@pytest.mark.parametrize("shape", [*SMALL, (2, 3, 3, 4), (1, 1, 1, 2)])
@pytest.mark.parametrize("options", [{"shift": 0.3}, {"rotation": 40.0, "flip": True}])
def test_augmenting_reads_no_byte_past_the_images(shape, options):
    images = torch.arange(math.prod(shape), dtype=torch.uint8).view(shape)
    index = torch.arange(shape[0])
    expected = ops.augment_batch(images.repeat(2, 1, 1, 1), index, **KEY, **options)
    assert torch.equal(ops.augment_batch(guarded(images), index, **KEY, **options), expected)


@pytest.mark.parametrize("classes", [3, 70, 5000])
@pytest.mark.parametrize("wrong", [10**6, -1, -(10**9)])
def test_a_target_that_changed_after_the_forward_pass_is_refused(classes, wrong):
    logits = torch.randn(4, classes, requires_grad=True)
    target = torch.zeros(4, dtype=torch.int64)
    loss = ops.scored_cross_entropy(logits, target).loss.sum()
    target.numpy()[1] = wrong  # which no version counter sees
    with pytest.raises(RuntimeError, match=rf"target\[1\]: expected a class .*, got {wrong}"):
        loss.backward()


@pytest.mark.parametrize("start", [2**63 - 1, 2**62])
@pytest.mark.parametrize("cursor", [2**63 - 1, 2**62, 1])
def test_positions_past_all_numbers_hold_no_sample(device, start, cursor):
    indices = torch.arange(10, device=device)
    count = torch.tensor(10, device=device)
    assert ops.shuffled_slice(indices, count, start, 5, **KEY).tolist() == [-1] * 5
    if device.type == "cpu":  # both, which only the op itself takes
        cursor = torch.tensor(cursor)
        out = torch.ops.cpfast.shuffled_slice(indices, count, start, 5, 1, 2, 0, cursor)
        assert out.tolist() == [-1] * 5


def test_scores_that_share_memory_with_the_table_are_refused():
    scores = torch.rand(9)
    for values in (scores[:3], scores[4:7]):
        with pytest.raises(RuntimeError, match="values: shares memory with scores"):
            ops.record_scores(scores, torch.tensor([3, 4, 5]), values)
    ops.record_scores(scores[:3], torch.tensor([0, 1]), scores[7:])


def test_what_the_loss_writes_shares_no_memory_with_what_it_reads():
    memory = torch.rand(40)
    logits, target = memory[:12].view(4, 3), torch.tensor([0, 1, 2, 0])
    index = torch.arange(4)
    with pytest.raises(RuntimeError, match="input: shares memory with table"):
        ops.scored_cross_entropy(logits, target, table=memory[8:], index=index)
    with pytest.raises(RuntimeError, match="weight: shares memory with table"):
        ops.scored_cross_entropy(
            logits, target, weight=memory[20:24], table=memory[12:], index=index
        )
    ops.scored_cross_entropy(logits, target, weight=memory[12:16], table=memory[16:], index=index)


@pytest.mark.parametrize("classes", [2, 10, 64, 65, 1000])
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_a_smoothed_loss_that_float32_holds_is_finite(device, classes, smoothing):
    g = torch.Generator().manual_seed(classes)
    logits = (torch.rand(16, classes, generator=g) * 2 - 1) * 1.6e38
    target = torch.randint(classes, (16,), generator=g)
    wide = logits.double()
    lse = wide.logsumexp(1)
    nll = lse - wide.gather(1, target[:, None])[:, 0]
    expected = (1 - smoothing) * nll + smoothing * (lse - wide.mean(1))
    loss = ops.scored_cross_entropy(
        logits.to(device), target.to(device), label_smoothing=smoothing
    ).loss
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-5, atol=1e30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": [1e-43]}, r"std\[0\]: expected a positive number, got 1e-43, out of"),
        ({"mean": [1e39]}, r"mean\[0\]: expected a finite number"),
        ({"mean": [1e38], "std": [1e-3]}, "std: 1 / std and mean / std"),
    ],
)
def test_numbers_that_leave_float32_are_refused(options, message):
    images = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=message):
        ops.augment_batch(images, torch.tensor([0]), **KEY, **options)


def test_empty_logits_take_any_gradient():
    for columns in (torch.zeros(0, 5), torch.zeros(0, 10)[:, ::2]):
        logits = columns.requires_grad_() * 1
        loss = ops.scored_cross_entropy(
            logits, torch.zeros(0, dtype=torch.int64), reduction="sum", gradient="inplace"
        ).loss
        loss.backward()
        assert loss == np.float32(0)
