"""The CUDA kernels, run on the CPU by cuda_emulation, against the CPU kernels."""

import ctypes
import math
import mmap
import pathlib
import platform
import shutil

import pytest
import torch
from cuda_emulation.build import build

import cpfast

pytestmark = [
    pytest.mark.skipif(cpfast.backend() == "reference", reason="there are no CPU kernels"),
    pytest.mark.skipif(
        (platform.system(), platform.machine()) != ("Linux", "x86_64"),
        reason="the emulation runs on Linux on x86-64 alone",
    ),
    pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation needs g++"),
]

CSRC = pathlib.Path(__file__).resolve().parent.parent / "csrc"
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INF, NAN = math.inf, math.nan
cpu = torch.ops.cpfast


def is_same(a, b):
    """Equal to the bit, NaN and the sign of zero included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(t.contiguous().view(-1).view(torch.uint8) for t in (a, b)))


class Emulation:
    def __init__(self, library):
        torch.ops.load_library(str(library))
        self.library = ctypes.CDLL(str(library))

    def run(self, op, *arguments, seed=0):
        """The outputs of an op. The seed decides which thread goes on when."""
        self.library.emulation_seed(seed)
        try:
            result = getattr(torch.ops.cpfast_emulated, op)(*arguments)
            if isinstance(result, torch.Tensor):
                result = [result]
            outputs = [output.clone() for output in result or []]
        finally:
            damaged = self.library.emulation_free()
        assert damaged == 0, f"{op} wrote past an end of {damaged} tensors"
        return outputs

    def __call__(self, op, *arguments):
        outputs = self.run(op, *arguments)
        again = self.run(op, *arguments, seed=1)
        assert all(map(is_same, outputs, again)), f"{op} depends on the order of its threads"
        return outputs


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    return Emulation(build(CSRC, tmp_path_factory.mktemp("cuda_emulation")))


def guarded(tensor, offset=None):
    """A copy between two pages that nobody may touch: up to the second one, or, given an offset,
    so many elements after the first one."""
    if tensor.numel() == 0:
        return tensor.clone()
    item, page = tensor.element_size(), mmap.PAGESIZE
    size = tensor.numel() * item
    pages = -(-(size + (offset or 0) * item) // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    end = (pages + 1) * page
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for address in (first, first + end):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0) == 0
    begin = end - size if offset is None else page + offset * item
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=begin)
    return copy.view(tensor.shape).copy_(tensor)


def generator(*seed):
    return torch.Generator().manual_seed(hash(seed))


def assert_close(actual, expected, rtol, atol=0.0):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, equal_nan=True)


# Layers: around the widths of a vector, a warp, a block, its unrolled vectors, and a tile.
SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 255, 256, 257, 1023, 1024, 1025, 2047, 2048, 2049]
SIZES += [4095, 4096, 4097, 8191, 8192, 8193, 12345]


def layer(numel, dtype=torch.float32, ref_dtype=torch.float32, seed=0):
    g = generator(numel, seed)
    ref = torch.randn(numel, generator=g, dtype=torch.float64)
    param = ref + 0.01 * torch.randn(numel, generator=g, dtype=torch.float64)
    return param.to(dtype), ref.to(ref_dtype)


def check_layers(emulated, params, refs, ref_sq_norms=None):
    expected = cpu.layer_statistics(params, refs, ref_sq_norms)
    (actual,) = emulated("layer_statistics", params, refs, ref_sq_norms)
    # The distance is what is left of a difference of float32 sums, which add in another order.
    assert_close(actual[0], expected[0], rtol=3e-5, atol=1e-8)
    assert_close(actual[1:], expected[1:], rtol=1e-6)
    assert is_same(actual[3], expected[3])
    (rotation,) = emulated("layer_rotation", params, refs, ref_sq_norms)
    assert is_same(rotation, actual[0])
    return actual


@pytest.mark.parametrize("ref_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_of_every_size(emulated, dtype, ref_dtype):
    pairs = [layer(n, dtype, ref_dtype) for n in (0, *SIZES, 0)]
    check_layers(emulated, *zip(*[[guarded(t) for t in pair] for pair in pairs], strict=True))


@pytest.mark.parametrize("ref_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_address_of_a_layer_changes_no_bit(emulated, dtype, ref_dtype):
    # Every distance from a multiple of 16 bytes, alike and not.
    starts = [(None, None), *((a, a) for a in range(8)), *((a, (3 * a + 1) % 8) for a in range(8))]
    for numel in (5, 1000, 4099, 9001):
        param, ref = layer(numel, dtype, ref_dtype)
        params, refs = zip(*[(guarded(param, a), guarded(ref, b)) for a, b in starts], strict=True)
        actual = check_layers(emulated, params, refs)
        assert is_same(actual, actual[:, :1].expand_as(actual))


# Layers travel to the kernels 96 at a time.
@pytest.mark.parametrize("count", [1, 96, 97, 193, 400])
def test_many_layers_of_which_some_are_empty_zero_or_not_finite(emulated, count):
    g = generator(count)

    def one_of(choices):
        return choices[torch.randint(len(choices), (), generator=g).item()]

    pairs = []
    for index in range(count):
        numel = one_of([0, 0, 1, 3, 100, 4096, 4097, 9000])
        param, ref = layer(numel, one_of(DTYPES), one_of(DTYPES), seed=index)
        spoil = one_of([None] * 6 + [NAN, INF, "param", "ref", "both"])
        if spoil in ("param", "both"):
            param.zero_()
        if spoil in ("ref", "both"):
            ref.mul_(-0.0)
        if numel and spoil in (NAN, INF):
            param[one_of(range(numel))] = spoil
        pairs.append((guarded(param, one_of(range(4))), guarded(ref, one_of(range(4)))))
    params, refs = zip(*pairs, strict=True)
    actual = check_layers(emulated, params, refs)
    for index in range(0, count, 10):
        pair = params[index : index + 1], refs[index : index + 1]
        (alone,) = emulated.run("layer_statistics", *pair, None)
        assert is_same(actual[:, index : index + 1], alone)
    norms = torch.stack([ref.double().square().sum() for ref in refs])
    check_layers(emulated, params, refs, 4 * norms)


def test_a_thousand_tiny_layers(emulated):
    params, refs = zip(*[layer(index % 40, seed=index) for index in range(1003)], strict=True)
    check_layers(emulated, params, refs)


def test_only_empty_layers(emulated):
    empty = [torch.empty(0)] * 5
    check_layers(emulated, empty, empty)
    check_layers(emulated, empty, empty, torch.tensor([0.0, 1, 0, 2, 0], dtype=torch.float64))


def test_layers_of_any_strides(emulated):
    shape = (8, 16, 5, 5)
    param, ref = (t.reshape(shape) for t in layer(math.prod(shape)))
    last = torch.channels_last
    params = [param.to(memory_format=last), param.to(memory_format=last), param.transpose(0, 3)]
    refs = [ref, ref.to(memory_format=last), ref.transpose(0, 3)]
    check_layers(emulated, [*params, param[:, ::2]], [*refs, ref[:, ::2]])


# A warp adds 128 tiles of 4096 elements at a time.
@pytest.mark.parametrize("numel", [127 * 4096, 128 * 4096, 128 * 4096 + 1, 256 * 4096 + 3])
def test_a_layer_of_many_tiles(emulated, numel):
    param, ref = layer(numel)
    check_layers(emulated, [param[:5], param, param[:3]], [ref[:5], ref, ref[:3]])


# From 4 Mi elements on, tiles have 32768.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tiles(emulated, dtype):
    numel = (4 << 20) - 5
    param, ref = layer(numel, dtype, dtype)
    sizes = [1, 2, 32767, 32768, 32769, 70_001]
    params = [param, *(guarded(param[:n], 1) for n in sizes)]
    refs = [ref, *(guarded(ref[:n], 3) for n in sizes)]
    large = check_layers(emulated, params, refs)
    aligned = check_layers(
        emulated, [param, *(param[:n] for n in sizes)], [ref, *(ref[:n] for n in sizes)]
    )
    assert is_same(large, aligned)


# Classes: around the widths of a vector and of what lanes share a row, and several turns of each.
FEW = [1, 2, 3, 7, 8, 9, 10, 15, 16, 17, 31, 33, 63, 64]
SOME = [65, 66, 127, 129, 255, 257, 511, 513, 1000, 1023, 1024]
MANY = [1025, 1026, 2049, 4095, 4097, 5000, 8193, 10_007]
TINY = 1e-30  # float32 of less has few digits


def rows_for(classes):
    """Parts of a block, a block, and more: 32 rows share one, 8 do, or none."""
    return (1, 33) if classes in FEW else (9,) if classes <= 1024 else (2,)


def logits_for(rows, classes, dtype, layout, scale=3.0, seed=0):
    g = generator(rows, classes, seed)
    values = (scale * torch.randn(rows, classes, generator=g, dtype=torch.float64)).to(dtype)
    if layout == "end":
        return guarded(values)
    if layout == "start":
        return guarded(values, (classes + rows) % 9)
    # The last row ends before its padding, the first one starts after some.
    pad = 1 + classes % 8
    wide = guarded(torch.zeros(rows, classes + pad, dtype=dtype), rows % 9)
    return wide[:, pad // 2 : pad // 2 + classes].copy_(values)


def check_rows(emulated, logits, target, weight=None, smoothing=0.0, ignored=-100):
    options = (weight, smoothing, ignored)
    expected = cpu.scored_cross_entropy(logits, target, *options)
    actual = emulated("scored_cross_entropy", logits, target, *options)
    loss, el2n, margin, correct, stats = actual
    is_double = logits.dtype == torch.float64
    # 1e-6 measured: the exp of one, and the order of float32 additions of the other.
    rtol = 1e-12 if is_double else 4e-6
    assert_close(loss, expected[0], rtol, TINY)
    assert_close(el2n, expected[1], 4e-6, TINY)
    assert_close(margin, expected[2], rtol=0)
    assert_close(correct, expected[3], rtol=0)
    finite = ~loss.isnan()
    assert_close(stats[finite, 0], expected[4][finite, 0], rtol=0)
    assert_close(stats[finite, 1], expected[4][finite, 1], rtol, TINY)

    g = generator(*logits.shape)
    grad_loss = torch.randn(len(target), generator=g, dtype=torch.float64).to(loss.dtype)
    arguments = (grad_loss, logits, target, expected[4], *options)
    (grad,) = emulated("scored_cross_entropy_backward", *arguments)
    # One rounding to the dtype more or less, and with smoothing a difference of two terms.
    eps = torch.finfo(logits.dtype).eps
    scale = grad_loss.abs().max().item() if smoothing else 0.0
    assert_close(
        grad,
        cpu.scored_cross_entropy_backward(*arguments),
        rtol=1e-12 if is_double else max(1.01 * eps, 4e-6),
        atol=max(
            6e-8 if logits.dtype == torch.float16 else TINY, scale * (1e-15 if is_double else 2e-7)
        ),
    )
    return [*actual, grad]


@pytest.mark.parametrize("layout", ["end", "start", "padded"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", FEW + SOME + MANY)
def test_rows_of_every_size(emulated, classes, dtype, layout):
    for rows in rows_for(classes):
        g = generator(rows, classes)
        target = torch.randint(classes, (rows,), generator=g)
        target[0] = classes - 1
        target[-1] = 0
        target[rows // 2 :: 7] = -100
        weight = torch.rand(rows, generator=g, dtype=torch.float64)
        weight = weight.to(torch.float64 if dtype == torch.float64 else torch.float32)
        for scale, options in [
            (0.1, {}),
            (3.0, {"smoothing": 0.1, "weight": guarded(weight)}),
            (20.0, {"smoothing": 1.0}),
        ]:
            logits = logits_for(rows, classes, dtype, layout, scale)
            check_rows(emulated, logits, guarded(target), **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 64, 65, 300, 1024, 1025, 5000])
def test_rows_that_are_not_finite(emulated, classes, dtype):
    g = generator(classes)
    rows = 24
    for smoothing, ignored in [(0.0, -100), (0.1, 1)]:
        logits = logits_for(rows, classes, dtype, "padded")
        target = torch.randint(classes, (rows,), generator=g)
        at = torch.randint(classes, (rows,), generator=g)
        for row in range(0, rows, 12):
            logits[row, at[row]] = NAN
            logits[row + 1, at[row + 1]] = INF
            logits[row + 2, at[row + 2]] = -INF
            logits[row + 3] = -INF
            logits[row + 4] = -INF
            logits[row + 4, at[row + 4]] = 1
            logits[row + 5] = NAN
            logits[row + 6] = 0
            logits[row + 7, target[row + 7]] = -INF
            logits[row + 8, target[row + 8]] = logits[row + 8].max()
            logits[row + 9, target[row + 9]] = INF
            logits[row + 10, target[row + 10]] = NAN
        check_rows(emulated, logits, target, None, smoothing, ignored)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [3, 64, 65, 1000, 1025, 5000])
def test_a_target_out_of_range_makes_its_row_nan_and_no_other(emulated, classes, dtype):
    logits = logits_for(6, classes, dtype, "padded")
    target = torch.tensor([0, classes, -1, 2**40, -100, classes - 1])
    is_good = torch.tensor([True, False, False, False, True, True])
    good = torch.where(is_good, target, 0)
    *forward, stats = emulated("scored_cross_entropy", logits, target, None, 0.1, -100)
    ones = torch.ones(6, dtype=stats.dtype)
    options = (None, 0.1, -100)
    backward = emulated("scored_cross_entropy_backward", ones, logits, target, stats, *options)
    wanted = emulated("scored_cross_entropy", logits, good, *options)
    wanted += emulated("scored_cross_entropy_backward", ones, logits, good, wanted[4], *options)
    for a, b in zip([*forward, stats, *backward], wanted, strict=True):
        assert is_same(a[is_good], b[is_good])
    loss, el2n, margin, correct = (score[~is_good] for score in forward)
    assert torch.stack([loss, el2n, margin]).isnan().all()
    assert (correct == 0).all()
    assert backward[0][~is_good].isnan().all()
    assert (backward[0][4] == 0).all()


@pytest.mark.parametrize("classes", [10, 64, 65, 1000, 1025, 20_000])
def test_confident_rising_and_far_rows(emulated, classes):
    target = torch.tensor([0, classes - 1, classes // 2, 1])
    for gap in (18.0, 40.0, 70.0):
        logits = torch.zeros(4, classes)
        logits[torch.arange(4), target] = gap
        check_rows(emulated, logits, target)
    rising = torch.linspace(0, 60, classes).repeat(4, 1)
    check_rows(emulated, rising, target)
    check_rows(emulated, rising.flip(1), target)
    far = logits_for(4, classes, torch.float64, "end") + 1e4
    check_rows(emulated, far, target, None, 0.3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [3, 10, 63, 64, 65, 130, 1000, 1025, 5003])
def test_the_address_of_a_row_changes_no_bit(emulated, classes, dtype):
    values = logits_for(5, classes, dtype, "end")
    target = torch.randint(classes, (5,), generator=generator(classes))
    first = None
    for pad in range(9):
        wide = guarded(torch.zeros(5, classes + pad, dtype=dtype), pad % 4)
        logits = wide[:, pad // 2 : pad // 2 + classes].copy_(values)
        outputs = check_rows(emulated, logits, target, None, 0.1)
        first = first or outputs
        assert all(map(is_same, outputs, first))


@pytest.mark.parametrize("classes", [5, 100, 2000])
def test_no_rows_and_rows_of_columns(emulated, classes):
    none = (torch.zeros(0, classes), torch.zeros(0, dtype=torch.int64))
    outputs = emulated("scored_cross_entropy", *none, None, 0.0, -100)
    assert all(output.shape[0] == 0 for output in outputs)
    (grad,) = emulated(
        "scored_cross_entropy_backward", outputs[0], *none, outputs[4], None, 0.0, -100
    )
    assert grad.shape == (0, classes)
    columns = logits_for(9, classes, torch.float32, "end").t().contiguous().t()
    check_rows(emulated, columns, torch.randint(classes, (9,), generator=generator(classes)))


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


# Up to 4096, a warp looks through the later positions of the batch; beyond, there are two passes.
BATCHES = [0, 1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1000, 4095, 4096, 4097, 6145]


def check_record(emulated, samples, index):
    g = generator(samples, len(index))
    scores, values = torch.randn(samples, generator=g), torch.randn(len(index), generator=g)
    expected = scores.clone()
    cpu.record_scores(expected, index, values)
    for seed, offset in enumerate([None, 1, 2]):
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
