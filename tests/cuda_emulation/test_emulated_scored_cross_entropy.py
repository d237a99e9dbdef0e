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
    loss, scores, stats = emulated("scored_cross_entropy", logits, target, *options)
    is_double = logits.dtype == torch.float64
    # 1e-6 measured: the exp of one, and the order of float32 additions of the other.
    rtol = 1e-12 if is_double else 4e-6
    # A difference of two terms, if it is smoothed.
    assert_close(loss, expected[0], rtol, 1e-6 if smoothing and not is_double else TINY)
    assert_close(scores[0], expected[1][0], 4e-6, TINY)
    assert_close(scores[1:], expected[1][1:], rtol=0)
    finite = ~loss.isnan()
    stats, expected_stats = stats[:-1][finite], expected[2][:-1][finite]
    assert_close(stats[:, 0], expected_stats[:, 0], rtol=0)
    assert_close(stats[:, 1], expected_stats[:, 1], rtol, TINY)

    g = generator(*logits.shape)
    grad_loss = torch.randn(len(target), generator=g, dtype=torch.float64).to(loss.dtype)
    arguments = (grad_loss, logits, target, expected[2], *options, 0)
    (backward,) = emulated("scored_cross_entropy_backward", *arguments)
    assert_gradients(backward, cpu.scored_cross_entropy_backward(*arguments), grad_loss, smoothing)

    # The gradient with the loss: beside the logits, and over them.
    outputs = [loss, scores, backward]
    expected_grad = torch.empty(logits.shape, dtype=logits.dtype)
    cpu.scored_cross_entropy(logits, target, *options, 2, expected_grad)
    for grad in (guarded(torch.full(logits.shape, NAN, dtype=logits.dtype)), None):
        place = grad if grad is not None else cloned(logits)
        source = logits if grad is not None else place
        total, again, _ = run_with_gradient(emulated, source, target, options, place)
        if source.stride() == logits.stride():
            assert is_same(again, scores)
        else:  # rows of columns are added in another order
            assert_close(again, scores, 4e-6, TINY)
        if finite.all():
            assert_close(total, loss.sum(), 1e-5, 1e-5)
        assert_gradients(place, expected_grad, torch.ones_like(grad_loss), smoothing)
        outputs += [total, place.clone()]
    return outputs


def cloned(logits):
    """A copy with the strides of the logits, padding included."""
    pad = logits.stride(0) - logits.shape[1] if len(logits) > 1 else 0
    if pad < 0 or (logits.shape[1] > 1 and logits.stride(1) != 1):
        return guarded(logits)
    wide = guarded(torch.zeros(len(logits), logits.shape[1] + pad, dtype=logits.dtype), 3)
    return wide[:, : logits.shape[1]].copy_(logits)


def run_with_gradient(emulated, logits, target, options, grad):
    """Twice, in other orders of the threads, with the same results."""
    before = logits.clone()
    results = []
    for seed in (0, 1):
        logits.copy_(before)
        outputs = emulated.run("scored_cross_entropy", logits, target, *options, 2, grad, seed=seed)
        results.append([*outputs, grad.clone()])
    assert all(map(is_same, *results))
    return results[0][:3]


def assert_gradients(actual, expected, upstream, smoothing):
    # One rounding to the dtype more or less, and with smoothing a difference of two terms.
    is_double = actual.dtype == torch.float64
    eps = torch.finfo(actual.dtype).eps
    scale = upstream.abs().max().item() if smoothing else 0.0
    assert_close(
        actual,
        expected,
        rtol=1e-12 if is_double else max(1.01 * eps, 6e-6),
        atol=max(
            6e-8 if actual.dtype == torch.float16 else TINY, scale * (1e-15 if is_double else 2e-7)
        ),
    )


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
    options = (None, 0.1, -100)

    def all_of(target):
        loss, scores, stats = emulated("scored_cross_entropy", logits, target, *options)
        ones = torch.ones(6, dtype=stats.dtype)
        backward = emulated(
            "scored_cross_entropy_backward", ones, logits, target, stats, *options, 0
        )
        grad = torch.zeros_like(logits)
        total, *_ = run_with_gradient(emulated, logits, target, options, grad)
        return loss, *scores, stats[:-1], *backward, grad, total

    *actual, total = all_of(target)
    *wanted, wanted_total = all_of(good)
    for a, b in zip(actual, wanted, strict=True):
        assert is_same(a[is_good], b[is_good])
    loss, el2n, margin, correct, _, *gradients = (each[~is_good] for each in actual)
    assert torch.stack([loss, el2n, margin]).isnan().all()
    assert total.isnan()
    assert wanted_total.isfinite()
    assert (correct == 0).all()
    for gradient in gradients:
        assert gradient.isnan().all()


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
    assert [list(output.shape) for output in outputs] == [[0], [3, 0], [1, 2]]
    (grad,) = emulated(
        "scored_cross_entropy_backward", outputs[0], *none, outputs[2], None, 0.0, -100, 0
    )
    assert grad.shape == (0, classes)
    assert emulated("scored_cross_entropy", *none, None, 0.0, -100, 1)[0].isnan()
    assert emulated("scored_cross_entropy", *none, None, 0.0, -100, 2)[0] == 0
    columns = logits_for(9, classes, torch.float32, "end").t().contiguous().t()
    check_rows(emulated, columns, torch.randint(classes, (9,), generator=generator(classes)))


# Rows that share a block, that lanes hold, that blocks share (in teams, of which one has room here,
# or launch by launch), that stream (in bfloat16), and that are counted before.
SHAPES = [(70, 3), (33, 10), (9, 1000), (3, 8000), (2, 16_384), (65, 16_400), (2, 40_000)]
SHAPES += [(5000, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_gradient", [False, True])
def test_means(emulated, shape, with_gradient):
    logits = logits_for(*shape, torch.float32, "start")
    g = generator(*shape)
    target = torch.randint(shape[1], shape[:1], generator=g)
    target[1::4] = -100
    weight = torch.rand(shape[0], generator=g)
    for ignored in (-100, -(2**63)):
        y = target if ignored == -100 else target.clamp(min=0)
        grads = [torch.full_like(logits, NAN) if with_gradient else None for _ in range(2)]
        expected = cpu.scored_cross_entropy(logits, y, weight, 0.1, ignored, 1, grads[0])
        actual = emulated.run("scored_cross_entropy", logits, y, weight, 0.1, ignored, 1, grads[1])
        assert_close(actual[0], expected[0], 4e-6)
        if with_gradient:
            assert_close(grads[1], grads[0], 1e-5, 1e-8)
            continue
        assert_close(actual[2][-1, 0], expected[2][-1, 0], 1e-6)
        arguments = (logits, y, expected[2], weight, 0.1, ignored)
        for reduction in (1, 2):
            inputs = (torch.tensor(0.3), *arguments, reduction)
            (grad,) = emulated("scored_cross_entropy_backward", *inputs)
            assert_close(grad, cpu.scored_cross_entropy_backward(*inputs), 1e-5, 1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES[:-1], pytest.param(SHAPES[-1], marks=pytest.mark.slow)])
def test_no_bit_of_the_loss_depends_on_where_the_gradient_is_computed(emulated, shape, dtype):
    rows, classes = shape
    logits = logits_for(*shape, dtype, "start")
    target = torch.randint(classes, (rows,), generator=generator(*shape))
    weight = torch.rand(rows, generator=generator(rows), dtype=torch.float64)
    weight = weight if dtype == torch.float64 else weight.float()
    for ignored in range(min(rows - 1, 8 if classes <= 1000 else 2)):
        y = target.clone()
        y[:ignored] = -100
        for ignore_index in (-100, -(2**63)) if ignored == 0 else (-100,):
            options = (y, weight, 0.1, ignore_index, 1)
            losses = [
                emulated.run("scored_cross_entropy", x, *options, grad)[0]
                for x, grad in [(logits, None), (logits, guarded(logits)), [cloned(logits)] * 2]
            ]
            assert is_same(losses[0], losses[1])
            assert is_same(losses[0], losses[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (7, 10), (5, 77), (3, 1027), (2, 16_421), (65, 16_395)])
def test_no_byte_beside_the_logits_is_read(emulated, shape, dtype):
    target = torch.randint(shape[1], shape[:1], generator=generator(*shape))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    for offset in [None, *range(9)] if shape[0] < 65 else [None, 1]:
        logits = guarded(torch.randn(shape, generator=generator(*shape)).to(dtype), offset)
        _, _, stats = emulated.run("scored_cross_entropy", logits, target)
        options = (logits, target, stats, None, 0.0, -100, 0)
        emulated.run("scored_cross_entropy_backward", torch.ones(shape[0], dtype=real), *options)
        emulated.run("scored_cross_entropy", logits, target, None, 0.0, -100, 1, logits)
        emulated.run("rescale_gradient", logits, torch.tensor(0.5, dtype=real))


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_reach_the_table(emulated, shape, kind):
    g = generator(*shape)
    logits = logits_for(*shape, torch.float32, "end")
    target = torch.randint(shape[1], shape[:1], generator=g)
    target[1::5] = -100
    table = torch.randn(60, generator=g)
    for index in (torch.randint(60, shape[:1], generator=g), torch.zeros_like(target)):
        tables = [table.clone(), guarded(table, kind % 3), guarded(table)]
        arguments = (logits, target, None, 0.0, -100, 0, None)
        cpu.scored_cross_entropy(*arguments, tables[0], index, kind)
        for seed in (0, 1):
            emulated.run(
                "scored_cross_entropy", *arguments, tables[1 + seed], index, kind, seed=seed
            )
        assert_close(tables[1], tables[0], 4e-6)
        assert is_same(tables[1], tables[2])


@pytest.mark.parametrize("classes", [10, 300, 17_000])
@pytest.mark.parametrize("tokens", [1, 2, 37])
def test_tokens_of_sequences(emulated, tokens, classes):
    g = generator(tokens, classes)
    wide = torch.randn(5, tokens + 1, classes + 3, generator=g)
    logits = guarded(wide, 1)[:, :-1, 1:-2]
    target = torch.randint(classes, (5, tokens), generator=g)
    target[1] = -100
    target[2, tokens // 2 :] = -100
    index = torch.tensor([3, 2, 6, 3, 0])
    results = []
    for run in (cpu.scored_cross_entropy, lambda *a: emulated.run("scored_cross_entropy", *a)):
        table, x = torch.full((7,), -5.0), wide.clone()[:, :-1, 1:-2]
        loss, scores, _ = run(x, target, None, 0.1, -100, 1, x, table, index, 0)
        results.append((loss, scores, x, table))
    for actual, expected in zip(results[1], results[0], strict=True):
        assert_close(actual, expected, 4e-6, 1e-7)
    loss, *_ = emulated("scored_cross_entropy", logits, target)
    assert loss.shape == target.shape
    expected = cpu.scored_cross_entropy(logits, target)
    assert_close(loss, expected[0], 4e-6)
    inputs = (torch.ones_like(loss), logits, target, expected[2], None, 0.0, -100, 0)
    (grad,) = emulated("scored_cross_entropy_backward", *inputs)
    assert_close(grad, cpu.scored_cross_entropy_backward(*inputs), 6e-6, 1e-30)


# From 32,768 rows on, the table is written by kernels of its own.
@pytest.mark.parametrize("shape", [(40_000, 2), (9, 4000, 2)])
def test_tables_of_large_batches(emulated, shape):
    g = generator(*shape)
    logits = torch.randn(shape, generator=g)
    target = torch.randint(2, shape[:-1], generator=g)
    target[3:5] = -100
    index = torch.randint(30_000 if len(shape) == 2 else 5, shape[:1], generator=g)
    before = torch.randn(30_000, generator=g)
    results = []
    for run in (cpu.scored_cross_entropy, lambda *a: emulated.run("scored_cross_entropy", *a)):
        table = before.clone()
        loss, *_ = run(logits, target, None, 0.0, -100, 1, None, table, index, 0)
        results.append((loss, table))
    for actual, expected in zip(results[1], results[0], strict=True):
        assert_close(actual, expected, 4e-6, 1e-7)


def test_an_index_out_of_range_traps_before_anything_is_written(emulated):
    logits, target = torch.zeros(300, 4), torch.zeros(300, dtype=torch.int64)
    for bad in (-1, 50, 2**40):
        table, index = torch.zeros(50), torch.zeros(300, dtype=torch.int64)
        index[299] = bad
        with pytest.raises(RuntimeError, match="trap: .*index out of range"):
            emulated.run(
                "scored_cross_entropy", logits, target, None, 0.0, -100, 0, None, table, index, 1
            )
        assert (table == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [3, 64, 65, 1000, 9000])
def test_rescaled_gradients(emulated, classes, dtype):
    grad = logits_for(7, classes, dtype, "padded")
    real = torch.float64 if dtype == torch.float64 else torch.float32
    for factor in (torch.tensor(1.0), torch.tensor(-0.37), torch.tensor([1, 0, 2, 1, 3.5, -1, 1])):
        expected, actual = grad.clone(), cloned(grad)
        cpu.rescale_gradient(expected, factor.to(real))
        emulated.run("rescale_gradient", actual, factor.to(real))
        assert is_same(actual, expected)
