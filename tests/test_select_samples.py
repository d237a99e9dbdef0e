import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

from cpfast import ops, reference

SIZES = [0, 1, 2, 3, 63, 64, 65, 1000, 4095, 4096, 4097, 50_000]
DRAW = {"keep": 0.5, "seed": 0, "epoch": 0}


def random_scores(size, seed=0):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def kept(selection):
    return selection.indices[: int(selection.count)]


def assert_same(a, b):
    assert all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("keep", [0.3, 1.0])
def test_the_twin_selects_the_same(device, size, shuffle, keep):
    scores = random_scores(size)
    draw = {"keep": keep, "seed": 2**63 - 1, "epoch": 5, "stream": 2, "shuffle": shuffle}
    actual = ops.select_samples(scores.to(device), **draw)
    assert actual.indices.device.type == actual.count.device.type == device.type
    assert_same(actual, reference.select_samples(scores, **draw))


@given(
    st.lists(
        st.floats(-100, 100, width=32) | st.sampled_from([math.nan, math.inf, -math.inf]),
        min_size=1,
        max_size=300,
    ),
    st.floats(0.01, 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_infobatch_rule(values, keep, seed, epoch, shuffle):
    scores = torch.tensor(values)
    selection = ops.select_samples(scores, keep=keep, seed=seed, epoch=epoch, shuffle=shuffle)
    indices, count = kept(selection), int(selection.count)
    finite = scores[scores.isfinite()].double()
    below = scores.double() < (finite.mean() if len(finite) else -math.inf)
    assert count == (~below).sum() + math.floor(keep * int(below.sum()))
    assert len(set(indices.tolist())) == count
    assert set((~below).nonzero()[:, 0].tolist()) <= set(indices.tolist())
    expected = torch.where(below[indices], 1 / keep, 1.0)
    torch.testing.assert_close(selection.weights[:count], expected)
    assert (selection.indices[count:] == -1).all()
    assert (selection.weights[count:] == 0).all()
    if not shuffle:
        assert torch.equal(indices, indices.sort().values)


def test_equal_scores_are_below_no_mean(device):
    for value in (0.0, 0.1, -3.3):
        scores = torch.full((10_001,), value, device=device)
        assert int(ops.select_samples(scores, **DRAW).count) == 10_001


def test_nan_and_inf_are_kept_and_leave_the_mean_alone(device):
    scores = torch.tensor([1.0, 2.0, 3.0, math.nan, math.inf], device=device)
    for epoch in range(20):
        selection = ops.select_samples(scores, keep=0.9, seed=0, epoch=epoch)
        assert kept(selection).tolist() == [1, 2, 3, 4]
    broken = torch.full((3,), math.nan, device=device)
    assert int(ops.select_samples(broken, **DRAW).count) == 3


def test_the_expected_weight_of_every_sample_is_one(device):
    # 20 samples are below the mean, so that a quarter of them is a whole number.
    scores = torch.arange(40.0, device=device)
    total = torch.zeros(40, device=device)
    epochs = 4000
    for epoch in range(epochs):
        selection = ops.select_samples(scores, keep=0.25, seed=1, epoch=epoch)
        total[kept(selection)] += selection.weights[: int(selection.count)]
    # The standard deviation of a mean of 4000 draws of 4 with probability 1/4 is 0.027.
    assert (total / epochs - 1).abs().max() < 5 * 0.027


def test_every_size_up_to_4096_is_shuffled_into_a_permutation():
    for size in range(1, 4097):
        selection = ops.select_samples(torch.zeros(size), **DRAW, shuffle=True)
        assert int(selection.count) == size
        assert torch.equal(selection.indices.sort().values, torch.arange(size))


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_all_orders_of_a_few_samples_are_equally_likely(size):
    orders = {order: 0 for order in itertools.permutations(range(size))}
    draws = 100 * len(orders)
    for epoch in range(draws):
        order = ops.select_samples(torch.zeros(size), keep=1.0, seed=7, epoch=epoch, shuffle=True)
        orders[tuple(order.indices.tolist())] += 1
    chi_square = sum((n - 100) ** 2 / 100 for n in orders.values())
    freedom = len(orders) - 1
    # Five standard deviations of a chi-square of that many degrees of freedom.
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [50, 64, 100])
def test_every_sample_is_equally_likely_at_every_position(size):
    table = torch.zeros(size, size)
    epochs = 20 * size
    for epoch in range(epochs):
        order = ops.select_samples(torch.zeros(size), keep=1.0, seed=3, epoch=epoch, shuffle=True)
        table[torch.arange(size), order.indices] += 1
    chi_square = ((table - 20) ** 2 / 20).sum().item()
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_neighbours_do_not_stay_neighbours():
    order = ops.select_samples(torch.zeros(100_000), keep=1.0, seed=0, epoch=0, shuffle=True)
    steps = order.indices.diff()
    # A uniform order has some 2 steps of 1; an order with structure has many equal steps.
    assert (steps.abs() == 1).sum() < 15
    assert steps.unique(return_counts=True)[1].max() < 15


def test_each_seed_epoch_and_stream_is_a_draw_of_its_own():
    scores = random_scores(1000)
    draws = [
        tuple(kept(ops.select_samples(scores, keep=0.5, seed=s, epoch=e, stream=r)).tolist())
        for s, e, r in itertools.product(range(3), repeat=3)
    ]
    assert len(set(draws)) == 27


def test_equal_on_any_number_of_threads(each_thread_count):
    scores = random_scores(100_003)
    one, three = each_thread_count(lambda: ops.select_samples(scores, **DRAW, shuffle=True))
    assert_same(one, three)


def test_opcheck(device):
    scores = random_scores(100).to(device)
    opcheck(torch.ops.cpfast.select_samples, (scores, 0.5, 1, 2, 0, True))


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (torch.zeros(2, 2), {}, r"scores: expected shape \[N\], got \[2, 2\]"),
        (torch.zeros(3).double(), {}, "scores: expected dtype float32, got float64"),
        (torch.zeros(6)[::2], {}, "scores: expected a contiguous tensor, got stride 2"),
        (torch.zeros(3), {"keep": 0.0}, r"keep: expected a share in \(0, 1\], got 0"),
        (torch.zeros(3), {"keep": 1.1}, r"keep: expected a share in \(0, 1\], got 1.1"),
        (torch.zeros(3), {"keep": math.nan}, r"keep: .* got nan"),
    ],
)
def test_bad_arguments_are_named(scores, options, message):
    with pytest.raises(RuntimeError, match=message):
        ops.select_samples(scores, **{**DRAW, **options})
