import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from cuda_emulation.harness import CUDA, EMULATED
from support.examples import given, st
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
        if x.stride(1) == 1:
            assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
            assert torch.equal(grad, expected_grad)
        else:  # a row a lane or thread, which adds in another order
            for a, b in zip((*out, grad), (*expected, expected_grad), strict=True):
                assert_near(a.detach(), b.detach(), TOLERANCE[a.dtype][1])


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


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (2, 0, 5), (2, 5, 0)])
def test_a_gradient_of_nothing_is_rescaled(device, shape):
    for factor in (torch.ones(()), 2 * torch.ones(())):
        torch.ops.cpfast.rescale_gradient(torch.empty(shape, device=device), factor.to(device))


def test_opcheck(device):
    logits, target, weight = (t.to(device) for t in batch(5, 12))
    table, index = torch.zeros(9, device=device), torch.arange(5, device=device)
    opcheck(torch.ops.cpfast.scored_cross_entropy, (logits, target))
    opcheck(torch.ops.cpfast.scored_cross_entropy, (logits, target, weight, 0.1, 3, 1))
    grad = torch.zeros_like(logits)
    options = (0.1, 3, 1, grad, table, index, 1)
    opcheck(torch.ops.cpfast.scored_cross_entropy, (logits, target, weight, *options))
    opcheck(torch.ops.cpfast.rescale_gradient, (grad, weight))


@pytest.mark.parametrize("gradient", ["backward", "forward", "inplace"])
def test_it_compiles_into_one_graph(device, gradient):
    logits, target, _ = batch(5, 12)
    target, index = target.to(device), torch.tensor([6, 1, 4, 1, 0], device=device)

    def loss(x, table):
        options = {"table": table, "index": index, "reduction": "mean", "gradient": gradient}
        return ops.scored_cross_entropy(2 * x, target, **options).loss

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x = logits.to(device).requires_grad_()
    table, expected_table = torch.zeros(2, 8, device=device)
    (grad,) = torch.autograd.grad(compiled(x, table), x)
    (expected,) = torch.autograd.grad(loss(x, expected_table), x)
    assert torch.equal(grad, expected)
    assert torch.equal(table, expected_table)
    assert table.count_nonzero() == 4


X, Y, T = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(5)


@pytest.mark.parametrize(
    ("input", "target", "options", "message"),
    [
        (X[0], Y, {}, r"target: expected shape \[\], one class for 4 logits .* got \[3\]"),
        (X[0, 0], Y, {}, "input: expected at least one dimension, of C logits"),
        (X[:, :0], Y, {}, r"input: expected at least one class, got shape \[3, 0\]"),
        (X.long(), Y, {}, "input: expected float32, .* got int64"),
        (X, Y[:2], {}, r"target: expected shape \[3\], got \[2\]"),
        (X, Y.bool(), {}, "target: expected classes .* or distributions .* got bool"),
        (X, Y.float(), {}, r"target: expected distributions of shape \[3, 4\], got \[3\]"),
        (X, X[:2], {}, r"target: expected distributions of shape \[3, 4\], got \[2, 4\]"),
        (X, X, {"ignore_index": 1}, "ignore_index: expected none for distributions.* got 1"),
        (X, Y, {"class_weight": torch.ones(3)}, r"class_weight: expected shape \[4\], got \[3\]"),
        (X, Y, {"z_loss": -1.0}, "z_loss: expected a finite number of at least 0, got -1"),
        (X, Y, {"z_loss": math.inf}, "z_loss: expected a finite number of at least 0, got inf"),
        (X, Y, {"class_dim": 2}, r"class_dim: expected a dimension of input, .*, got 2"),
        (X, Y, {"class_dim": 0}, r"target: expected shape \[4\], .*class_dim 0.*, got \[3\]"),
        (X.view(3, 2, 2, 1), Y, {}, r"target: expected shape \[3, 2, 2\], .* got \[3\]"),
        (
            torch.zeros(3, 4, 2, 2),
            torch.zeros(3, 2, 2, dtype=torch.int64),
            {"class_dim": 1, "weight": torch.ones(5)},
            r"weight: expected shape \[3, 2, 2\], or one a sample, got \[5\]",
        ),
        (X, torch.tensor([0, 4, 0]), {}, r"target\[1\]: expected a class in \[0, 4\) .* got 4"),
        (X, torch.tensor([0, 0, -1]), {}, r"target\[2\]: .* ignore_index -100, got -1"),
        (X, Y, {"weight": torch.ones(4)}, r"weight: expected shape \[3\], or .* got \[4\]"),
        (X, Y, {"label_smoothing": 1.5}, r"label_smoothing: expected .* \[0, 1\], got 1.5"),
        (X, Y, {"label_smoothing": math.nan}, "label_smoothing: .* got nan"),
        (X, Y, {"reduction": "avg"}, "reduction: expected one of .*'mean'.*, got 'avg'"),
        (X, Y, {"gradient": "now"}, "gradient: expected one of .*'forward'.*, got 'now'"),
        (X, Y, {"table": T, "index": Y, "score": "aum"}, "score: expected one of .*, got 'aum'"),
        (X, Y, {"table": T}, "index: expected one, as table is given"),
        (X, Y, {"index": Y}, "table: expected one, as index is given"),
        (X, Y, {"table": T.double(), "index": Y}, "table: expected dtype float32, got float64"),
        (X, Y, {"table": T[None], "index": Y}, r"table: expected shape \[M\], got \[1, 5\]"),
        (X, Y, {"table": T[::2], "index": Y}, "table: expected a contiguous tensor, got stride 2"),
        (X, Y, {"table": T, "index": Y[:2]}, r"index: expected shape \[3\], got \[2\]"),
        (X, Y, {"table": T, "index": Y + 5}, r"index\[0\]: expected a sample in \[0, 5\), got 5"),
        (X[None], Y, {}, r"target: expected shape \[1, 3\], got \[3\]"),
        (X[None], Y[None], {"table": T, "index": Y}, r"index: expected shape \[1\], got \[3\]"),
    ],
)
def test_bad_arguments_are_named(input, target, options, message):
    with pytest.raises(RuntimeError, match=message):
        ops.scored_cross_entropy(input, target, **options)


@pytest.mark.parametrize("device", [CUDA, EMULATED], indirect=True)
def test_a_target_out_of_range_makes_its_row_nan_on_cuda(device):
    target = torch.tensor([0, 4, -1], device=device)
    out, grad = loss_and_gradient(ops.scored_cross_entropy, X.to(device), target)
    assert out.loss.isnan().tolist() == [False, True, True]
    assert out.correct[1:].tolist() == [0, 0]
    assert grad.isnan().all(dim=1).tolist() == [False, True, True]


# The gradient with the loss, reductions, tables and tokens.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("gradient", ["backward", "forward", "inplace"])
def test_reductions_and_gradients_against_float64(device, dtype, shape, reduction, gradient):
    logits, target, weight = batch(*shape, dtype)
    if shape[0] > 1:
        target[-1] = -100
        logits[-1] = math.nan  # ignored all the same
    upstream = torch.rand(shape[0]) if reduction == "none" else torch.tensor(1.5)
    options = {"reduction": reduction, "label_smoothing": 0.1}

    def both(op, x, y, w, g, **more):
        x = x.clone().requires_grad_()
        out = op(x.clone(), y, weight=w, **options, **more)
        out.loss.backward(g.to(out.loss.dtype))
        return out, x.grad

    # torch's smoothing passes on the NaN of an ignored row
    expected, expected_grad = both(
        reference.scored_cross_entropy,
        logits.double().nan_to_num(),
        target,
        weight.double(),
        upstream,
    )
    inputs = [t.to(device) for t in (logits, target, weight, upstream)]
    actual, grad = both(ops.scored_cross_entropy, *inputs, gradient=gradient)
    forward, backward = TOLERANCE[dtype]
    assert actual.loss.shape == (() if reduction != "none" else target.shape)
    # A sum over rows has their errors.
    assert_near(actual.loss.detach(), expected.loss.detach(), 3 * forward)
    for a, e in zip(actual[1:], expected[1:], strict=True):
        assert_near(a, e, forward)
    # bfloat16 is rounded once more where the upstream gradient comes later.
    assert_near(grad, expected_grad, 2 * backward)


@pytest.mark.parametrize("gradient", ["backward", "forward", "inplace"])
def test_an_upstream_gradient_of_one_changes_no_bit(device, gradient):
    for shape in [(7, 10), (7, 100)]:
        logits, target, _ = (t.to(device) for t in batch(*shape))
        x = logits.clone().requires_grad_()
        out = ops.scored_cross_entropy(x.clone(), target, reduction="sum", gradient=gradient)
        out.loss.backward()
        y = logits.clone().requires_grad_()
        ops.scored_cross_entropy(y.clone(), target, gradient=gradient).loss.sum().backward()
        assert torch.equal(x.grad, y.grad)


def test_the_mean_of_no_rows_is_nan_as_in_torch(device):
    logits = torch.zeros(2, 5, device=device, requires_grad=True)
    target = torch.full((2,), -100, device=device)
    for gradient in ("backward", "forward"):
        out = ops.scored_cross_entropy(logits, target, reduction="mean", gradient=gradient)
        assert out.loss.isnan()
        (grad,) = torch.autograd.grad(out.loss, logits)
        assert (grad == 0).all()


@pytest.mark.parametrize("gradient", ["forward", "inplace"])
def test_a_gradient_of_the_forward_pass_is_used_once(device, gradient):
    logits, target, _ = (t.to(device) for t in batch(4, 5))
    x = logits.requires_grad_()
    loss = ops.scored_cross_entropy(2 * x, target, reduction="mean", gradient=gradient).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward pass: .* use gradient='backward'"):
        loss.backward()
    loss = ops.scored_cross_entropy(2 * x, target, reduction="mean", gradient=gradient).loss
    with pytest.raises(RuntimeError, match="second derivative is not implemented"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_logits_that_were_written_over_are_missed_by_autograd(device):
    logits, target, _ = (t.to(device) for t in batch(4, 5))
    x = logits.requires_grad_()
    y = x.exp()  # its backward pass needs its output
    loss = ops.scored_cross_entropy(y, target, reduction="mean", gradient="inplace").loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_where_they_cannot_go_are_refused(device):
    target = torch.zeros(4, dtype=torch.int64, device=device)
    logits = torch.zeros(4, 5, device=device, requires_grad=True)
    for gradient in ("forward", "inplace"):
        with pytest.raises(RuntimeError, match=f"gradient: '{gradient}' is refused for float16"):
            ops.scored_cross_entropy(logits.half(), target, gradient=gradient)
    for rows in (logits.repeat(2, 2)[::2, ::2], (logits[:1] * 1).expand(4, 5)):
        with pytest.raises(RuntimeError, match="grad: expected rows side by side"):
            ops.scored_cross_entropy(rows, target, gradient="inplace")
    with pytest.raises(RuntimeError, match="gradient: 'inplace' is refused for logits that are"):
        ops.scored_cross_entropy(logits, target, gradient="inplace")
    # nothing is kept for a backward pass that never comes
    ops.scored_cross_entropy(logits.detach().half(), target, gradient="forward")


@pytest.mark.parametrize("name", ["loss", "el2n", "margin", "correct"])
@pytest.mark.parametrize("shape", [(9, 10), (9, 100), (9, 7, 10), (9, 7, 100)])
def test_scores_reach_the_table(device, name, shape):
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(shape, generator=g)
    target = torch.randint(shape[-1], shape[:-1], generator=g)
    target[[4, 7]] = -100  # whole sequences, of which one is the second of a sample
    if len(shape) == 3:
        target[2, 3:] = -100
    index = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5])
    weight = torch.rand(target.shape, generator=g)
    tables = [torch.full((12,), -7.0) for _ in range(2)]
    options = {"score": name, "label_smoothing": 0.1}
    reference.scored_cross_entropy(
        logits.double(), target, weight=weight, table=tables[0], index=index, **options
    )
    table = tables[1].to(device)
    ops.scored_cross_entropy(
        logits.to(device),
        target.to(device),
        weight=weight.to(device),
        table=table,
        index=index.to(device),
        **options,
    )
    assert_near(table, tables[0], 1e-6)
    assert (table.cpu() == -7).nonzero().flatten().tolist() == [0, 6, 7, 8, 10, 11]


def test_an_index_out_of_range_writes_nothing():
    table = torch.zeros(5)
    with pytest.raises(RuntimeError, match=r"index\[2\]: expected a sample in \[0, 5\), got -1"):
        ops.scored_cross_entropy(X + 1, Y, table=table, index=torch.tensor([0, 1, -1]))
    assert (table == 0).all()


def test_writing_to_the_table_is_seen_by_autograd(device):
    table = torch.zeros(5, device=device)
    version = table._version
    ops.scored_cross_entropy(X.to(device), Y.to(device), table=table, index=Y.to(device))
    assert table._version > version


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("gradient", ["backward", "forward", "inplace"])
def test_tokens_are_rows_wherever_they_lie(device, classes, gradient):
    g = torch.Generator().manual_seed(0)
    whole = torch.randn(3, 6, classes, generator=g).to(device)
    target = torch.randint(classes, (3, 6), generator=g).to(device)
    target[1, 2:4] = -100
    weight = torch.rand(3, generator=g).to(device)
    rows = whole[:, :-1].reshape(-1, classes).clone().requires_grad_()
    options = {"reduction": "mean", "label_smoothing": 0.1}
    expected = ops.scored_cross_entropy(
        rows, target[:, 1:].flatten(), weight=weight.repeat_interleave(5), **options
    )
    expected.loss.backward()

    x = whole.clone().requires_grad_()
    transposed = whole.transpose(0, 1).contiguous().requires_grad_()
    for leaf, logits in [
        (x, (x * 1)[:, :-1]),
        (transposed, (transposed * 1).transpose(0, 1)[:, :-1]),
    ]:
        out = ops.scored_cross_entropy(
            logits, target[:, 1:].int(), weight=weight, gradient=gradient, **options
        )
        out.loss.backward()
        assert torch.equal(out.loss, expected.loss)
        assert all(torch.equal(a, b.view(3, 5)) for a, b in zip(out[1:], expected[1:], strict=True))
        grad = leaf.grad if leaf is x else leaf.grad.transpose(0, 1)
        assert_near(grad[:, :-1].reshape(-1, classes), rows.grad, 1e-6)
        assert (grad[:, -1] == 0).all()


def test_the_gradient_costs_no_second_buffer_of_the_logits_size():
    logits = torch.randn(64, 5000).requires_grad_()
    target = torch.zeros(64, dtype=torch.int64)
    size = logits.numel() * 4

    def peak(gradient):
        x = logits.detach().clone().requires_grad_() * 1
        with torch.profiler.profile(profile_memory=True) as profile:
            ops.scored_cross_entropy(x, target, reduction="mean", gradient=gradient)
        return sum(max(0, event.self_cpu_memory_usage) for event in profile.events())

    assert peak("backward") < size / 100
    assert size <= peak("forward") < 1.01 * size
    assert peak("inplace") < size / 100


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [(16, 10), (4, 1000), (2, 50257), (70, 50257)])
@pytest.mark.parametrize("gradient", ["forward", "backward"])
def test_a_first_call_may_be_captured(shape, gradient):
    """In a process of its own, where no kernel has been loaded yet."""
    program = f"""
import torch
from cpfast import ops
x = torch.randn({shape}, device="cuda", requires_grad=True)
y = torch.zeros({shape[0]}, dtype=torch.int64, device="cuda")
torch.autograd.grad((2 * x).sum(), x)  # starts the thread that walks graphs
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    loss = ops.scored_cross_entropy(x, y, reduction="mean", gradient={gradient!r}).loss
    (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
graph.replay()
again = ops.scored_cross_entropy(x, y, reduction="mean", gradient={gradient!r}).loss
assert torch.equal(loss, again)
assert torch.equal(grad, torch.autograd.grad(again, x)[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
