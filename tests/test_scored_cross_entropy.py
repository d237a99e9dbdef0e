import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

from cpfast import ops, reference

# Relative to the largest entry: forward sums are float32 or better, gradients round to the dtype.
TOLERANCE = {
    torch.float64: (1e-6, 1e-13),
    torch.float32: (2e-6, 1e-6),
    torch.bfloat16: (2e-6, 8e-3),
    torch.float16: (2e-6, 1e-3),
}
# One row, part of a vector of rows, more than one; one class, few, and around each boundary.
SHAPES = [(1, 1), (3, 2), (16, 10), (33, 10), (17, 63), (5, 64), (5, 65), (4, 1000), (2, 50257)]


def batch(rows, classes, dtype=torch.float32, seed=0, scale=4.0):
    g = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(rows, classes, generator=g, dtype=torch.float64)).to(dtype)
    return logits, torch.randint(classes, (rows,), generator=g), torch.rand(rows, generator=g)


def loss_and_gradient(op, logits, target, **options):
    logits = logits.detach().clone().requires_grad_()
    out = op(logits, target, **options)
    g = torch.linspace(-1, 1, len(target), dtype=out.loss.dtype, device=logits.device)
    out.loss.backward(g)
    return out, logits.grad


def assert_near(actual, expected, tolerance):
    actual, expected = actual.cpu().double(), expected.cpu().double()
    finite = expected[expected.isfinite()]
    scale = max(1.0, finite.abs().max().item() if finite.numel() else 1.0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale, equal_nan=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_against_float64(device, dtype, shape, smoothing):
    logits, target, weight = batch(*shape, dtype)
    target[-1] = -100 if shape[0] > 1 else target[-1]
    expected, expected_grad = loss_and_gradient(
        reference.scored_cross_entropy,
        logits.double(),
        target,
        weight=weight.double(),
        label_smoothing=smoothing,
    )
    actual, grad = loss_and_gradient(
        ops.scored_cross_entropy,
        logits.to(device),
        target.to(device),
        weight=weight.to(device),
        label_smoothing=smoothing,
    )
    forward, backward = TOLERANCE[dtype]
    assert actual.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype
    assert torch.equal(actual.correct.cpu(), expected.correct)
    for a, e in zip(actual[:3], expected[:3], strict=True):
        assert_near(a.detach(), e.detach(), forward)
    assert_near(grad, expected_grad, backward)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("gap", [5.0, 18.0, 60.0, 80.0])
def test_confident_rows_keep_their_digits(device, classes, gap):
    logits = torch.zeros(1, classes, device=device)
    logits[0, 3] = gap
    target = torch.tensor([3], device=device)
    out, grad = loss_and_gradient(ops.scored_cross_entropy, logits, target)
    others = (classes - 1) * math.exp(-gap)
    p_others = others / (1 + others)
    assert out.loss.item() == pytest.approx(math.log1p(others), rel=1e-6)
    expected_el2n = math.sqrt(p_others**2 + p_others**2 / (classes - 1))
    assert out.el2n.item() == pytest.approx(expected_el2n, rel=1e-6)
    assert grad[0, 3].item() == pytest.approx(p_others, rel=1e-6)  # times the gradient -1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_large_offset_costs_no_accuracy(device, smoothing):
    logits, target, _ = batch(8, 100)
    shifted = (logits.round(decimals=0) + 4096).to(device)
    out, grad = loss_and_gradient(
        ops.scored_cross_entropy, shifted, target.to(device), label_smoothing=smoothing
    )
    expected, expected_grad = loss_and_gradient(
        reference.scored_cross_entropy,
        logits.round(decimals=0).double(),
        target,
        label_smoothing=smoothing,
    )
    assert_near(out.loss.detach(), expected.loss.detach(), 1e-6)
    assert_near(grad, expected_grad, 1e-6)


@pytest.mark.parametrize("classes", [3, 10, 70, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_that_are_not_finite_are_as_in_torch(device, classes, smoothing):
    inf, nan = math.inf, math.nan
    logits = torch.zeros(9, classes, device=device)
    logits[0, 1] = -inf  # a masked class
    logits[1, 0] = -inf  # a masked target
    logits[2] = -inf
    logits[3, 1] = inf
    logits[4, 0] = inf
    logits[5, 2] = nan
    logits[6, 0] = nan
    target = torch.zeros(9, dtype=torch.int64, device=device)
    target[7] = -100
    logits[7] = nan  # ignored all the same
    out, grad = loss_and_gradient(
        ops.scored_cross_entropy, logits, target, label_smoothing=smoothing
    )
    expected, expected_grad = loss_and_gradient(
        reference.scored_cross_entropy, logits.double(), target, label_smoothing=smoothing
    )
    for actual, wanted in zip(out, expected, strict=True):
        assert_near(actual.detach(), wanted.detach(), 1e-6)
    assert out.loss[1].item() == inf
    assert out.loss[2:7].isnan().all()
    # torch multiplies by 0, and so passes on the NaN of an ignored row.
    others = [0, 1, 2, 3, 4, 5, 6, 8]
    assert_near(grad[others], expected_grad[others], 1e-6)
    assert (grad[7] == 0).all()


def test_half_precision_at_the_end_of_its_range(device):
    logits = torch.tensor([[65504.0, -65504.0, 0.0]], dtype=torch.float16, device=device)
    for y, loss in [(0, 0.0), (1, 131008.0), (2, 65504.0)]:
        out, grad = loss_and_gradient(
            ops.scored_cross_entropy, logits, torch.tensor([y], device=device)
        )
        assert out.loss.item() == loss
        assert grad.isfinite().all()


def test_ignored_rows(device):
    logits, target, _ = batch(20, 10)
    target[:] = 7
    out, grad = loss_and_gradient(
        ops.scored_cross_entropy, logits.to(device), target.to(device), ignore_index=7
    )
    assert all((score == 0).all() for score in out)
    assert (grad == 0).all()
    negative = torch.full_like(target, -1)
    out = ops.scored_cross_entropy(logits.to(device), negative.to(device), ignore_index=-1)
    assert (out.loss == 0).all()


@pytest.mark.parametrize("classes", [4, 80])
def test_the_first_of_equal_logits_is_the_prediction(device, classes):
    logits = torch.zeros(3, classes, device=device)
    logits[:, [1, 3]] = 2.0
    out = ops.scored_cross_entropy(logits, torch.tensor([0, 1, 3], device=device))
    assert out.correct.tolist() == [0, 1, 0]
    assert out.margin.tolist() == [-2, 0, 0]


def test_one_class(device):
    out = ops.scored_cross_entropy(
        torch.randn(3, 1, device=device), torch.zeros(3, dtype=torch.int64, device=device)
    )
    assert out.loss.tolist() == [0, 0, 0]
    assert out.el2n.tolist() == [0, 0, 0]
    assert out.margin.tolist() == [math.inf] * 3
    assert out.correct.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [10, 130])
def test_any_strides(device, dtype, classes):
    logits, target, _ = batch(21, classes, dtype)
    logits, target = logits.to(device), target.to(device)
    expected, expected_grad = loss_and_gradient(ops.scored_cross_entropy, logits, target)
    wide = torch.zeros(21, classes + 5, dtype=dtype, device=device)[:, 3:-2].copy_(logits)
    columns = logits.t().contiguous().t()
    every_other = torch.zeros(42, dtype=torch.int64, device=device)[::2].copy_(target)
    for x in (wide, columns):
        x = x.detach().requires_grad_()
        out = ops.scored_cross_entropy(x, every_other)
        (grad,) = torch.autograd.grad(
            out.loss, x, torch.linspace(-1, 1, 21, device=device, dtype=out.loss.dtype)
        )
        assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
        assert torch.equal(grad, expected_grad)


def test_more_logits_than_int32_can_count():
    # Rows of stride 0 cost no memory.
    row = torch.linspace(-3, 3, 60_000).to(torch.bfloat16)
    logits = row.expand(36_000, -1)
    target = torch.full((36_000,), 59_999)
    out = ops.scored_cross_entropy(logits, target)
    expected = F.cross_entropy(row[None].double(), target[:1])
    assert (out.loss == out.loss[0]).all()
    assert out.loss[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_gradcheck(device):
    logits, target, weight = batch(6, 7, torch.float64)
    target[2] = -100
    logits = logits.to(device).requires_grad_()
    target, weight = target.to(device), weight.double().to(device)
    for smoothing in (0.0, 0.3):
        assert torch.autograd.gradcheck(
            lambda x, s=smoothing: (
                ops.scored_cross_entropy(x, target, weight=weight, label_smoothing=s).loss
            ),
            logits,
        )


def test_the_graph_can_be_walked_twice_but_not_differentiated_twice(device):
    logits, target, _ = batch(4, 5)
    logits = logits.to(device).requires_grad_()
    loss = ops.scored_cross_entropy(logits, target.to(device)).loss.sum()
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(loss, logits, create_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second derivative is not implemented"):
        torch.autograd.grad(second.sum(), logits)


def test_scores_carry_no_gradient_and_weights_that_want_one_are_refused(device):
    logits, target, weight = batch(4, 5)
    logits, target = logits.to(device).requires_grad_(), target.to(device)
    out = ops.scored_cross_entropy(logits, target)
    assert out.loss.requires_grad
    assert not any(score.requires_grad for score in out[1:])
    with pytest.raises(RuntimeError, match="weight: requires a gradient"):
        ops.scored_cross_entropy(logits, target, weight=weight.to(device).requires_grad_())


@given(
    st.integers(1, 40), st.integers(2, 90), st.floats(-50, 50), st.integers(0, 5), st.floats(0, 30)
)
def test_properties(rows, classes, shift, seed, scale):
    logits, target, _ = batch(rows, classes, torch.float64, seed, scale)
    out, grad = loss_and_gradient(ops.scored_cross_entropy, logits, target)
    shifted = ops.scored_cross_entropy(logits + shift, target)
    assert_near(shifted.loss, out.loss.detach(), 1e-12)
    assert (out.loss >= 0).all()
    assert ((out.el2n >= 0) & (out.el2n <= math.sqrt(2) * (1 + 1e-6))).all()
    assert torch.equal(out.margin > 0, (logits.argmax(1) == target) & (out.margin != 0))
    assert_near(grad.sum(1), torch.zeros(rows), 1e-13)


def test_forward_mode_derivatives_are_refused():
    logits, target, _ = batch(4, 5)
    with pytest.raises(RuntimeError, match="input: forward-mode derivatives"):
        torch.func.jvp(
            lambda x: ops.scored_cross_entropy(x, target).loss.sum(), (logits,), (logits,)
        )


def test_a_meta_tensor_among_others_is_refused():
    logits, target, weight = batch(4, 5)
    with pytest.raises(RuntimeError, match="one device, got input on cpu, target on meta"):
        ops.scored_cross_entropy(logits, target.to("meta"))
    with pytest.raises(RuntimeError, match="weight on meta"):
        ops.scored_cross_entropy(logits, target, weight=weight.to("meta"))
    with pytest.raises(RuntimeError, match=r"got params\[0\] on cpu, refs\[0\] on meta"):
        ops.layer_rotation([logits], [logits.to("meta")])
    with pytest.raises(RuntimeError, match="index on meta"):
        ops.record_scores(weight, target.to("meta"), weight)


def test_equal_to_the_bit_on_any_number_of_threads(each_thread_count):
    for shape in [(2000, 10), (40, 3000)]:
        logits, target, _ = batch(*shape)
        (one, grad_one), (three, grad_three) = each_thread_count(
            lambda x=logits, y=target: loss_and_gradient(ops.scored_cross_entropy, x, y)
        )
        assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
        assert torch.equal(grad_one, grad_three)


def test_no_rows(device):
    logits = torch.empty(0, 10, device=device, requires_grad=True)
    out = ops.scored_cross_entropy(logits, torch.empty(0, dtype=torch.int64, device=device))
    out.loss.sum().backward()
    assert all(score.shape == (0,) for score in out)
    assert logits.grad.shape == (0, 10)


def test_opcheck(device):
    logits, target, weight = batch(5, 12)
    logits = logits.to(device).requires_grad_()
    target, weight = target.to(device), weight.to(device)
    opcheck(torch.ops.cpfast.scored_cross_entropy, (logits, target))
    opcheck(torch.ops.cpfast.scored_cross_entropy, (logits, target, weight, 0.1, 3))


def test_it_compiles_into_one_graph(device):
    logits, target, _ = batch(5, 12)
    target = target.to(device)
    compiled = torch.compile(
        lambda x: ops.scored_cross_entropy(2 * x, target).loss.mean(),
        fullgraph=True,
        backend="aot_eager",
    )
    x = logits.to(device).requires_grad_()
    (grad,) = torch.autograd.grad(compiled(x), x)
    (expected,) = torch.autograd.grad(ops.scored_cross_entropy(2 * x, target).loss.mean(), x)
    assert torch.equal(grad, expected)


X, Y = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("input", "target", "options", "message"),
    [
        (X[0], Y, {}, r"input: expected logits of shape \[N, C\], got \[4\]"),
        (X[:, :0], Y, {}, r"input: expected at least one class, got shape \[3, 0\]"),
        (X.long(), Y, {}, "input: expected float32, .* got int64"),
        (X, Y[:2], {}, r"target: expected shape \[3\], got \[2\]"),
        (X, Y.int(), {}, "target: expected dtype int64, got int32"),
        (X, Y.float(), {}, "target: expected dtype int64, got float32"),
        (X, torch.tensor([0, 4, 0]), {}, r"target\[1\]: expected a class in \[0, 4\) .* got 4"),
        (X, torch.tensor([0, 0, -1]), {}, r"target\[2\]: .* ignore_index -100, got -1"),
        (X, Y, {"weight": torch.ones(4)}, r"weight: expected shape \[3\], got \[4\]"),
        (X, Y, {"label_smoothing": 1.5}, r"label_smoothing: expected .* \[0, 1\], got 1.5"),
        (X, Y, {"label_smoothing": math.nan}, "label_smoothing: .* got nan"),
    ],
)
def test_bad_arguments_are_named(input, target, options, message):
    with pytest.raises(RuntimeError, match=message):
        ops.scored_cross_entropy(input, target, **options)


@pytest.mark.cuda
def test_a_target_out_of_range_makes_its_row_nan_on_cuda():
    target = torch.tensor([0, 4, -1], device="cuda")
    out, grad = loss_and_gradient(ops.scored_cross_entropy, X.cuda(), target)
    assert out.loss.isnan().tolist() == [False, True, True]
    assert out.correct[1:].tolist() == [0, 0]
    assert grad.isnan().all(dim=1).tolist() == [False, True, True]
