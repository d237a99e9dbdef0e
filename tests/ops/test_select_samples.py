import itertools
import math
import subprocess
import sys

import pytest
import torch
from support.examples import given, st
from torch.library import opcheck

import cpfast
from cpfast import ops, reference

SIZES = [0, 1, 2, 3, 63, 64, 65, 1000, 4095, 4096, 4097, 8192, 8193, 50_000]
DRAW = {"keep": 0.5, "seed": 0, "epoch": 0}


def random_scores(size, seed=0):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def kept(selection):
    return selection.indices[: int(selection.count)]


def assert_same(a, b):
    assert all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("keep", [1e-9, 0.3, 1.0])
@pytest.mark.parametrize("subset", ["exact", "bernoulli"])
def test_the_twin_selects_the_same(device, size, shuffle, keep, subset):
    scores = random_scores(size)
    draw = {"keep": keep, "seed": 2**63 - 1, "epoch": 5, "stream": 2, "shuffle": shuffle}
    actual = ops.select_samples(scores.to(device), **draw, subset=subset)
    assert actual.indices.device.type == actual.count.device.type == device.type
    assert_same(actual, reference.select_samples(scores, **draw, subset=subset))


@pytest.mark.parametrize("size", [0, 1, 5000, 8193, 50_001])
@pytest.mark.parametrize("shuffle", [False, True])
def test_int32_indices_are_the_same(device, size, shuffle):
    scores = random_scores(size).to(device)
    wide = ops.select_samples(scores, **DRAW, shuffle=shuffle)
    narrow = ops.select_samples(scores, **DRAW, shuffle=shuffle, dtype=torch.int32)
    assert narrow.indices.dtype == torch.int32
    assert_same(narrow._replace(indices=narrow.indices.long()), wide)


def test_the_subset_is_exact_up_to_64_million_samples():
    assert reference.is_exact(None, 64_000_000)
    assert not reference.is_exact(None, 64_000_001)
    assert reference.is_exact("exact", 10**9)
    assert not reference.is_exact("bernoulli", 1)
    scores = random_scores(1000)
    assert_same(
        ops.select_samples(scores, **DRAW), ops.select_samples(scores, **DRAW, subset="exact")
    )


def test_numbers_are_those_that_the_authors_of_philox_publish(monkeypatch):
    # Random123's kat_vectors: counter 0, key 0.
    monkeypatch.setattr("cpfast.reference._draws.draw_key", lambda *_: 0)
    samples = torch.tensor([0, 32, 64, 96])
    numbers = reference.numbers(samples, seed=0, epoch=0, stream=0, purpose=0)
    assert numbers.tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_bernoulli_draws_its_share_independently(keep):
    # Of 100,000 samples all but one are below the mean.
    size, epochs = 100_000, 20
    scores = torch.zeros(size)
    scores[-1] = 1
    drawn = torch.zeros(epochs, size, dtype=torch.bool)
    for epoch in range(epochs):
        selection = ops.select_samples(scores, keep=keep, seed=4, epoch=epoch, subset="bernoulli")
        drawn[epoch, kept(selection)] = True
    drawn = drawn[:, :-1]

    def excess(counts, probabilities):
        """A chi-square, in its standard deviations above what is expected."""
        expected = probabilities / probabilities.sum() * counts.sum()
        freedom = len(counts) - 1
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        return abs(chi_square - freedom) / math.sqrt(2 * freedom)

    share = drawn.double().mean().item()
    assert abs(share - keep) < 5 * math.sqrt(keep * (1 - keep) / drawn.numel())
    p = torch.tensor([1 - keep, keep]).double()
    # Neighbours in the rows that Philox makes at once, and one sample in successive epochs.
    for apart in (1, 2, 32, 96, 128):
        pairs = 2 * drawn[:, :-apart].long() + drawn[:, apart:]
        assert (
            excess(pairs.flatten().bincount(minlength=4).double(), torch.outer(p, p).flatten()) < 5
        )
    pairs = 2 * drawn[:-1].long() + drawn[1:]
    assert excess(pairs.flatten().bincount(minlength=4).double(), torch.outer(p, p).flatten()) < 5
    # How often each sample was drawn: binomial.
    times = drawn.sum(0)
    binomial = torch.tensor(
        [math.comb(epochs, k) * keep**k * (1 - keep) ** (epochs - k) for k in range(epochs + 1)]
    ).double()
    likely = binomial * len(times) > 10
    assert excess(times.bincount(minlength=epochs + 1)[likely].double(), binomial[likely]) < 5


def test_bernoulli_keeps_all_at_keep_1_and_the_others_always(device):
    scores = random_scores(10_000).to(device)
    draw = {"seed": 3, "epoch": 2, "subset": "bernoulli"}
    assert int(ops.select_samples(scores, keep=1.0, **draw).count) == 10_000
    few = kept(ops.select_samples(scores, keep=1e-9, **draw))
    assert set((scores.double() >= scores.double().mean()).nonzero()[:, 0].tolist()) <= set(
        few.tolist()
    )


# The peak of a process that selects from 32 million samples: marks of all would be 4 MB.
PEAK = """
import re, torch
from cpfast import ops
def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
n = 32 << 20
scores = torch.arange(n, dtype=torch.float32)
options = dict(keep=0.5, seed=0, epoch=0, shuffle={shuffle}, subset={subset!r}, dtype={dtype})
ops.select_samples(scores[: 1 << 20], **options)
before = kilobytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
selection = ops.select_samples(scores, **options)
print((kilobytes("VmHWM") - before) * 1024 / n)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(cpfast.backend() == "reference", reason="the twin is not frugal")
@pytest.mark.parametrize(
    ("shuffle", "subset", "dtype", "outputs"),
    [
        (False, "exact", "torch.int64", 12),
        (True, "bernoulli", "torch.int64", 12),
        (False, "bernoulli", "torch.int32", 8),
    ],
)
def test_memory_is_that_of_the_outputs(shuffle, subset, dtype, outputs):
    program = PEAK.format(shuffle=shuffle, subset=subset, dtype=dtype)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert outputs - 0.05 < float(done.stdout) < outputs + 0.05


# The first calls load the kernels, and ask once how many of their blocks fit the device. That is
# nothing for a capture, where drivers before CUDA 12.3 do not load.
@pytest.mark.cuda
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("subset", ["exact", "bernoulli"])
def test_a_cuda_graph_selects_by_one_block_and_by_a_cooperative_grid(subset, shuffle):
    sizes = [8192, 100_003]
    options = {**DRAW, "subset": subset, "shuffle": shuffle}
    scores = [random_scores(size).cuda() for size in sizes]
    for s in scores:
        ops.select_samples(s, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [ops.select_samples(s, **options) for s in scores]
    # Each replay finds the counters as the one before has left them.
    for seed in range(1, 5):
        for s in scores:
            s.copy_(random_scores(len(s), seed))
        graph.replay()
        for s, selection in zip(scores, captured, strict=True):
            assert_same(selection, ops.select_samples(s.cpu(), **options))


@pytest.mark.cuda
@pytest.mark.huge
@pytest.mark.parametrize("subset", ["exact", "bernoulli"])
def test_more_samples_than_2_to_the_31(subset):
    size = 2**31 + 4097
    if torch.cuda.mem_get_info()[0] < 20 * size:
        pytest.skip("not enough memory on the GPU")
    scores = torch.zeros(size, device="cuda")
    scores[1::2] = 1  # half of all, less one
    with pytest.raises(RuntimeError, match="int32 cannot index"):
        ops.select_samples(scores, **DRAW, dtype=torch.int32)
    indices, weights, count = ops.select_samples(scores, **DRAW, subset=subset)
    below = size - size // 2
    drawn = int(count) - size // 2
    if subset == "exact":
        assert drawn == below // 2
    else:
        assert abs(drawn - below / 2) < 5 * math.sqrt(below / 4)
    del scores
    indices, weights = indices[: int(count)], weights[: int(count)]
    for part in range(0, int(count) - 1, 1 << 28):
        here = indices[part : part + (1 << 28) + 1]
        assert bool((here[1:] > here[:-1]).all())
        assert bool((weights[part : part + len(here)] == torch.where(here % 2 == 0, 2, 1)).all())
    assert int(indices[-1]) >= 2**31
    slices = ops.shuffled_slice(indices, count, int(count) - 1000, 2000, seed=0, epoch=0)
    assert (slices[1000:] == -1).all()
    assert len(slices[:1000].unique()) == 1000


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


@pytest.mark.not_emulated("4,000 calls")
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
    for shuffle, subset in itertools.product([False, True], ["exact", "bernoulli"]):
        options = {**DRAW, "shuffle": shuffle, "subset": subset}
        one, three = each_thread_count(
            lambda options=options: ops.select_samples(scores, **options)
        )
        assert_same(one, three)


def test_opcheck(device):
    scores = random_scores(100).to(device)
    opcheck(torch.ops.cpfast.select_samples, (scores, 0.5, 1, 2, 0, True))
    opcheck(torch.ops.cpfast.select_samples, (scores, 0.5, 1, 2, 0, False, False, torch.int32))


@pytest.mark.skipif(cpfast.backend() == "reference", reason="the twin's loops cannot be compiled")
def test_compiled():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def batch(scores):
        indices, _, count = ops.select_samples(scores, **DRAW, dtype=torch.int32)
        return ops.shuffled_slice(indices, count, 3, 20, seed=0, epoch=0)

    scores = random_scores(100)
    expected = ops.select_samples(scores, **DRAW, shuffle=True).indices[3:23].int()
    assert torch.equal(batch(scores), expected)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (torch.zeros(2, 2), {}, r"scores: expected shape \[N\], got \[2, 2\]"),
        (torch.zeros(3).double(), {}, "scores: expected dtype float32, got float64"),
        (torch.zeros(6)[::2], {}, "scores: expected a contiguous tensor, got stride 2"),
        (torch.zeros(3), {"keep": 0.0}, r"keep: expected a share in \(0, 1\], got 0"),
        (torch.zeros(3), {"keep": 1.1}, r"keep: expected a share in \(0, 1\], got 1.1"),
        (torch.zeros(3), {"keep": math.nan}, r"keep: .* got nan"),
        (torch.zeros(3), {"subset": "all"}, r"subset: .* got 'all'"),
        (torch.zeros(3), {"dtype": torch.int16}, "dtype: expected int64 or int32, got int16"),
    ],
)
def test_bad_arguments_are_named(scores, options, message):
    with pytest.raises(RuntimeError, match=message):
        ops.select_samples(scores, **{**DRAW, **options})


def test_int32_is_refused_where_it_cannot_index(tmp_path):
    # Of a file without blocks, for nothing of it is read.
    size = 2**31
    path = tmp_path / "scores"
    with path.open("wb") as file:
        file.truncate(4 * size)
    scores = torch.from_file(str(path), shared=True, size=size)
    with pytest.raises(RuntimeError, match=f"dtype: int32 cannot index {size} samples"):
        ops.select_samples(scores, **DRAW, dtype=torch.int32)
