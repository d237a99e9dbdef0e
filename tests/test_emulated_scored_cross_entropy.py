"""The CUDA kernels of scored_cross_entropy, run on the CPU by cuda_emulation."""

import pytest
import torch
from cuda_emulation.harness import (
    DTYPES,
    INF,
    NAN,
    assert_close,
    cpu,
    emulated_only,
    generator,
    guarded,
    is_same,
)

pytestmark = emulated_only

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
