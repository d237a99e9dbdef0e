"""scored_binary_cross_entropy and scored_mse: what they share is tested of both."""

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

BCE, MSE = "scored_binary_cross_entropy", "scored_mse"
BOTH = pytest.mark.parametrize("name", [BCE, MSE])
# Relative to the largest entry: forward sums are float32 or better, gradients round to the dtype.
TOLERANCE = {
    torch.float64: (1e-6, 1e-13),  # scores are float32
    torch.float32: (1e-6, 1e-6),
    torch.bfloat16: (1e-6, 8e-3),
    torch.float16: (1e-6, 1e-3),
}
# One element, few, and around a vector, a lane's rows, a block's row and the parts of a long one.
SHAPES = [(1,), (37,), (3, 1), (33, 2), (5, 10), (9, 3, 4), (17, 32), (5, 33), (3, 65), (4, 1000)]
LONG = [(2, 70_001), (1, 3, 45_000)]
SCORES = {BCE: ["loss", "el2n", "margin", "correct"], MSE: ["loss", "el2n"]}


def batch(name, shape, dtype=torch.float32, seed=0, scale=4.0):
    g = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(shape, generator=g, dtype=torch.float64)
    t = torch.rand(shape, generator=g, dtype=torch.float64)
    # of labels most are hard
    t = torch.where(t < 0.8, (t < 0.3).double(), t) if name == BCE else 8 * t - 4
    return x.to(dtype), t.to(dtype), torch.rand(shape[0], generator=g)


def torch_losses(name, x, t, **options):
    """A sample's mean of torch's losses of its elements."""
    loss = F.binary_cross_entropy_with_logits if name == BCE else F.mse_loss
    return loss(x, t, reduction="none", **options).flatten(1).mean(1) if x.dim() > 1 else loss(
        x, t, reduction="none", **options
    )  # fmt: skip


def loss_and_gradient(op, x, *others, upstream=None, **options):
    x = x.detach().clone().requires_grad_()
    out = op(x, *others, **options)
    if upstream is None:
        upstream = torch.linspace(-1, 1, max(1, out.loss.numel()))[: out.loss.numel()]
    out.loss.backward(upstream.to(out.loss).view(out.loss.shape))
    return out, x.grad


def assert_near(actual, expected, tolerance):
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    finite = expected[expected.isfinite()]
    scale = max(1e-30, finite.abs().max().item() if finite.numel() else 1.0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale, equal_nan=True)


@BOTH
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [*SHAPES, *LONG], ids=str)
@pytest.mark.parametrize("gradient", ["backward", "forward"])
def test_against_float64(device, name, dtype, shape, gradient):
    if dtype == torch.float16 and gradient == "forward":
        pytest.skip("refused")
    x, t, w = batch(name, shape, dtype)
    for reduction in ("none", "mean", "sum"):
        upstream = torch.rand(shape[0]) if reduction == "none" else torch.tensor(1.5)
        expected, expected_grad = loss_and_gradient(
            getattr(reference, name), x.double(), t.double(), weight=w.double(),
            reduction=reduction, upstream=upstream,
        )  # fmt: skip
        found, grad = loss_and_gradient(
            getattr(ops, name), x.to(device), t.to(device), weight=w.to(device),
            reduction=reduction, gradient=gradient, upstream=upstream.to(device),
        )  # fmt: skip
        forward, backward = TOLERANCE[dtype]
        assert found.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert found.loss.shape == (shape[:1] if reduction == "none" else ())
        assert grad.dtype == dtype
        assert grad.shape == x.shape
        assert_near(found.loss, expected.loss, 1e-13 if dtype == torch.float64 else forward)
        for a, e in zip(found[1:], expected[1:], strict=True):
            assert a.dtype == torch.float32
            assert_near(a, e, forward)
        # Rounded once more where the upstream gradient comes later; float16 ends at 6e-8.
        small = 6e-8 if dtype == torch.float16 else 0
        limit = 2 * backward * expected_grad.abs().max().item() + small
        torch.testing.assert_close(grad.cpu().double(), expected_grad, rtol=0, atol=limit)


@BOTH
@pytest.mark.parametrize("shape", [(6,), (5, 7), (4, 3, 5), (0, 3)], ids=str)
def test_twins_are_torch_s_losses(name, shape):
    x, t, w = batch(name, shape, torch.float64)
    options = {"pos_weight": torch.rand(shape[1:], dtype=torch.float64)} if name == BCE else {}
    twin = getattr(reference, name)
    losses = torch_losses(name, x, t, **options)
    torch.testing.assert_close(twin(x, t, **options).loss, losses)
    weighted = twin(x, t, weight=w[:, None], reduction="mean", **options)
    torch.testing.assert_close(weighted.loss, (w * losses).mean(), equal_nan=True)
    if shape[0]:
        mean = twin(x, t, reduction="mean", **options).loss
        plain = (F.binary_cross_entropy_with_logits if name == BCE else F.mse_loss)(x, t, **options)
        torch.testing.assert_close(mean, plain)


@BOTH
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("target", [*TOLERANCE, torch.bool, torch.uint8, torch.int64])
def test_targets_of_every_dtype(device, name, dtype, target):
    if name == MSE and not target.is_floating_point:
        pytest.skip("refused")
    x, t, _ = batch(name, (6, 11), dtype)
    t = t.round().to(target)
    expected, expected_grad = loss_and_gradient(getattr(reference, name), x.double(), t.double())
    found, grad = loss_and_gradient(getattr(ops, name), x.to(device), t.to(device))
    assert_near(found.loss, expected.loss, TOLERANCE[dtype][0])
    assert_near(grad, expected_grad, 2 * TOLERANCE[dtype][1])


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 40), (4, 3, 5), (2, 70_001)], ids=str)
def test_positive_weights_are_as_torch_has_them(device, shape):
    x, t, _ = batch(BCE, shape, torch.float64)
    g = torch.Generator().manual_seed(1)
    whole = 5 * torch.rand(shape[1:], generator=g, dtype=torch.float64)
    given = [whole, whole[None]]
    if len(shape) > 1:
        given += [whole[..., :1], whole.flatten()[0]]
    for pos_weight in given:
        expected = torch_losses(BCE, x, t, pos_weight=pos_weight)
        found, grad = loss_and_gradient(
            ops.scored_binary_cross_entropy, x.to(device), t.to(device),
            pos_weight=pos_weight.to(device),
        )  # fmt: skip
        torch.testing.assert_close(found.loss.detach().cpu(), expected)
        leaf = x.clone().requires_grad_()
        torch_losses(BCE, leaf, t, pos_weight=pos_weight).backward(
            torch.linspace(-1, 1, shape[0]).double()
        )
        torch.testing.assert_close(grad.cpu(), leaf.grad)


@pytest.mark.parametrize("labels", [1, 3, 50])
@pytest.mark.parametrize("size", [20.0, 60.0, 80.0])
def test_confident_labels_keep_their_digits(device, labels, size):
    x = torch.full((2, labels), size, device=device)
    x[1] = -size
    t = (x > 0).float()
    out, grad = loss_and_gradient(ops.scored_binary_cross_entropy, x, t, upstream=torch.ones(2))
    assert out.loss.tolist() == pytest.approx([math.exp(-size)] * 2, rel=1e-6)
    assert out.el2n.tolist() == pytest.approx([math.exp(-size) * labels**0.5] * 2, rel=1e-6)
    assert out.margin.tolist() == [size] * 2
    expected = math.exp(-size) / labels
    assert grad[0].tolist() == pytest.approx([-expected] * labels, rel=1e-6)
    assert grad[1].tolist() == pytest.approx([expected] * labels, rel=1e-6)


@pytest.mark.parametrize("labels", [3, 50])
def test_labels_on_the_wrong_side(device, labels):
    x = torch.ones(5, labels, device=device)
    t = torch.ones(5, labels, device=device)
    x[1, 2] = -0.5
    x[2, 1] = 0.0  # the side of no label
    t[3, 0], x[3, 0] = 0.4, 0.25
    t[4], x[4] = 0.0, 0.0
    out = ops.scored_binary_cross_entropy(x, t)
    assert out.correct.tolist() == [1, 0, 0, 0, 1]
    assert out.margin.tolist() == [1, -0.5, 0, -0.25, 0]


@pytest.mark.parametrize("labels", [1, 40])
def test_logits_that_are_not_finite(device, labels):
    inf, nan = math.inf, math.nan
    x = torch.zeros(5, labels, device=device)
    x[:, 0] = torch.tensor([inf, -inf, inf, -inf, nan])
    t = torch.zeros(5, labels, device=device)
    t[:, 0] = torch.tensor([1.0, 0.0, 0.0, 0.5, 1.0])
    out, grad = loss_and_gradient(
        ops.scored_binary_cross_entropy, x, t, upstream=torch.full((5,), float(labels))
    )
    others = (labels - 1) * math.log(2) / labels
    assert out.loss[:2].tolist() == pytest.approx([others] * 2, abs=1e-6)
    assert out.loss[2:4].tolist() == [inf, inf]
    assert all(score[4].isnan() for score in out[:3])
    assert out.correct[4] == 0
    assert grad[:4, 0].tolist() == [0, 0, 1, -0.5]
    assert grad[4, 0].isnan()
    expected = reference.scored_binary_cross_entropy(x, t)
    for actual, wanted in zip(out, expected, strict=True):
        assert_near(actual, wanted, 1e-6)
    found = ops.scored_mse(x, t)
    assert found.loss.tolist() == [inf] * 4 + [pytest.approx(nan, nan_ok=True)]
    assert found.el2n[4].isnan()


@pytest.mark.parametrize("labels", [4, 500])
def test_a_loss_that_float32_holds_is_finite(device, labels):
    x = torch.full((2, labels), 3e38, device=device)
    out = ops.scored_binary_cross_entropy(x, torch.zeros_like(x))
    assert out.loss.tolist() == pytest.approx([3e38] * 2, rel=1e-6)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("elements", [1, 10, 33, 130])
def test_any_strides(device, name, dtype, elements):
    x, t, w = (v.to(device) for v in batch(name, (21, elements), dtype))
    op = getattr(ops, name)
    expected, expected_grad = loss_and_gradient(op, x, t, weight=w[:, None])
    layouts = [
        lambda v: torch.zeros(21, elements + 5, dtype=v.dtype, device=device)[:, 3:-2].copy_(v),
        lambda v: v.t().contiguous().t(),
        lambda v: torch.zeros(21, 2 * elements, dtype=v.dtype, device=device)[:, ::2].copy_(v),
    ]
    for of_input in layouts:
        for of_target in layouts:
            leaf = of_input(x).detach().requires_grad_()
            out = op(leaf, of_target(t), weight=w.repeat_interleave(2)[::2][:, None])
            upstream = torch.linspace(-1, 1, 21, device=device)
            (grad,) = torch.autograd.grad(out.loss, leaf, upstream)
            assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
            assert torch.equal(grad, expected_grad)


@BOTH
def test_more_elements_than_int32_can_count(name):
    # Rows of stride 0 cost no memory.
    x = torch.linspace(-3, 3, 60_000).to(torch.bfloat16)
    t = torch.full((60_000,), 0.25, dtype=torch.bfloat16)
    out = getattr(ops, name)(x.expand(36_000, -1), t.expand(36_000, -1))
    expected = torch_losses(name, x[None].double(), t[None].double())
    assert (out.loss == out.loss[0]).all()
    assert out.loss[0].item() == pytest.approx(expected.item(), rel=1e-6)


@BOTH
def test_gradcheck(device, name):
    x, t, w = (v.to(device) for v in batch(name, (6, 7), torch.float64))
    x.requires_grad_()
    options = {"pos_weight": torch.rand(7, device=device).double()} if name == BCE else {}
    for reduction in ("none", "mean"):
        assert torch.autograd.gradcheck(
            lambda x, r=reduction: (
                getattr(ops, name)(x, t, weight=w.double(), reduction=r, **options).loss
            ),
            x,
        )


@BOTH
def test_the_graph_can_be_walked_twice_but_not_differentiated_twice(device, name):
    x, t, _ = (v.to(device) for v in batch(name, (4, 5)))
    x.requires_grad_()
    loss = getattr(ops, name)(x, t).loss.sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x, create_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match=f"{name}: its second derivative is not implemented"):
        torch.autograd.grad(second.sum(), x)


@BOTH
def test_a_gradient_of_the_forward_pass_is_used_once(device, name):
    x, t, _ = (v.to(device) for v in batch(name, (4, 5)))
    x.requires_grad_()
    options = {"reduction": "mean", "gradient": "forward"}
    loss = getattr(ops, name)(2 * x, t, **options).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward pass: .* use gradient='backward'"):
        loss.backward()
    loss = getattr(ops, name)(2 * x, t, **options).loss
    with pytest.raises(RuntimeError, match="second derivative is not implemented"):
        torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="gradient: 'forward' is refused for a float16 input"):
        getattr(ops, name)(x.half(), t, gradient="forward")
    # nothing is kept for a backward pass that never comes
    getattr(ops, name)(x.detach().half(), t, gradient="forward")


@BOTH
def test_the_gradient_costs_no_second_buffer_of_the_input_s_size(name):
    x, t, _ = batch(name, (64, 5000))
    size = x.numel() * 4

    def peak(gradient):
        leaf = x.clone().requires_grad_()
        with torch.profiler.profile(profile_memory=True) as profile:
            getattr(ops, name)(leaf, t, reduction="mean", gradient=gradient)
        return sum(max(0, event.self_cpu_memory_usage) for event in profile.events())

    assert peak("backward") < size / 100
    assert size <= peak("forward") < 1.01 * size


@BOTH
@pytest.mark.parametrize("constant", ["target", "weight", "pos_weight"])
def test_only_the_input_has_a_gradient(device, name, constant):
    if name == MSE and constant == "pos_weight":
        pytest.skip("it has none")
    x, t, w = (v.to(device) for v in batch(name, (4, 5)))
    out = getattr(ops, name)(x.requires_grad_(), t)
    assert out.loss.requires_grad
    assert not any(score.requires_grad for score in out[1:])
    given = {"target": t, "weight": w}
    given |= {"pos_weight": w[0].clone()} if name == BCE else {}
    given[constant] = given[constant].requires_grad_()
    with pytest.raises(RuntimeError, match=f"{constant}: requires a gradient.*detach"):
        getattr(ops, name)(x, **given)


@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 5), st.floats(0, 30))
def test_properties(rows, labels, seed, scale):
    x, t, _ = batch(BCE, (rows, labels), torch.float64, seed, scale)
    out, grad = loss_and_gradient(ops.scored_binary_cross_entropy, x, t, upstream=torch.ones(rows))
    mirrored = ops.scored_binary_cross_entropy(-x, 1 - t)
    assert_near(mirrored.loss, out.loss, 1e-12)
    assert_near(mirrored.el2n, out.el2n, 1e-6)
    assert (out.loss >= 0).all()
    # The gradient is the residual over L, whose norm is el2n.
    torch.testing.assert_close(grad.norm(dim=1) * labels, out.el2n.double(), rtol=1e-6, atol=1e-12)
    assert (out.correct >= (out.margin > 0)).all()


@BOTH
def test_equal_to_the_bit_on_any_number_of_threads(each_thread_count, name):
    for shape in [(40_000, 1), (2000, 10), (400, 333), (2, 200_003)]:
        x, t, _ = batch(name, shape)
        (one, grad_one), (three, grad_three) = each_thread_count(
            lambda x=x, t=t: loss_and_gradient(getattr(ops, name), x, t)
        )
        assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
        assert torch.equal(grad_one, grad_three)


@BOTH
@pytest.mark.parametrize("gradient", ["backward", "forward"])
def test_no_samples(device, name, gradient):
    for shape in [(0,), (0, 3)]:
        x = torch.empty(shape, device=device, requires_grad=True)
        for reduction, expected in (("mean", math.nan), ("sum", 0.0)):
            out = getattr(ops, name)(x, x.detach(), reduction=reduction, gradient=gradient)
            assert out.loss.item() == pytest.approx(expected, nan_ok=True)
            out.loss.backward()
        out = getattr(ops, name)(x, x.detach(), gradient=gradient)
        out.loss.sum().backward()
        assert all(value.shape == (0,) for value in out)
        assert x.grad.shape == shape


@BOTH
def test_opcheck(device, name):
    x, t, w = (v.to(device) for v in batch(name, (5, 12)))
    table, index = torch.zeros(9, device=device), torch.arange(5, device=device)
    op, extra = getattr(torch.ops.cpfast, name), [torch.rand(12, device=device)]
    extra = extra if name == BCE else []
    opcheck(op, (x, t))
    opcheck(op, (x, t, w, *extra, 1, torch.zeros_like(x), table, index, 1))
    opcheck(op, (x, t.double().float(), w, *extra, 2))
    backward = getattr(torch.ops.cpfast, f"{name}_backward")
    none = [None] if name == BCE else []
    opcheck(backward, (w, x, t, w, *extra, 0))
    opcheck(backward, (w[0].clone(), x, t, None, *none, 1))


@BOTH
@pytest.mark.parametrize("gradient", ["backward", "forward"])
def test_it_compiles_into_one_graph(device, name, gradient):
    x, t, _ = (v.to(device) for v in batch(name, (5, 12)))
    index = torch.tensor([6, 1, 4, 1, 0], device=device)

    def loss(x, table):
        options = {"table": table, "index": index, "reduction": "mean", "gradient": gradient}
        return getattr(ops, name)(2 * x, t, **options).loss

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x.requires_grad_()
    table, expected_table = torch.zeros(2, 8, device=device)
    (grad,) = torch.autograd.grad(compiled(x, table), x)
    (expected,) = torch.autograd.grad(loss(x, expected_table), x)
    assert torch.equal(grad, expected)
    assert torch.equal(table, expected_table)
    assert table.count_nonzero() == 4


@BOTH
def test_under_autocast_it_computes_in_float32(device, name):
    x, t, _ = (v.to(device) for v in batch(name, (5, 12), torch.bfloat16))
    plain, grad = loss_and_gradient(getattr(ops, name), x, t)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out, found = loss_and_gradient(getattr(ops, name), x, t)
    assert torch.equal(out.loss, plain.loss)
    assert torch.equal(found, grad)


@BOTH
@pytest.mark.parametrize("shape", [(9,), (9, 10), (9, 7, 30), (5000, 2)], ids=str)
def test_scores_reach_the_table(device, name, shape):
    x, t, w = batch(name, shape)
    rows = shape[0]
    g = torch.Generator().manual_seed(1)
    index = torch.randint(rows, (rows,), generator=g)  # some stand there more than once
    for score in SCORES[name]:
        for kind in (torch.int64, torch.int32):
            tables = [torch.full((rows + 3,), -7.0) for _ in range(2)]
            given = index.to(kind)
            getattr(reference, name)(
                x.double(), t.double(), weight=w, table=tables[0], index=given, score=score
            )
            table, weight = tables[1].to(device), w.to(device)
            version = table._version
            getattr(ops, name)(
                x.to(device), t.to(device), weight=weight, table=table, index=given.to(device),
                score=score,
            )  # fmt: skip
            assert table._version > version
            assert_near(table, tables[0], 1e-6)
            assert torch.equal(table.cpu() == -7, tables[0] == -7)


@BOTH
def test_an_index_out_of_range_writes_nothing(name):
    table = torch.zeros(5)
    with pytest.raises(RuntimeError, match=r"index\[2\]: expected a sample in \[0, 5\), got -1"):
        getattr(ops, name)(X + 1, X, table=table, index=torch.tensor([0, 1, -1]))
    assert (table == 0).all()


@pytest.mark.parametrize("value", [-0.1, 1.5, 2, math.nan, math.inf])
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 20), (2, 70_000)], ids=str)
def test_a_target_out_of_range_is_named_and_writes_nothing(value, shape):
    x, t, _ = batch(BCE, shape)
    at = tuple(size - 1 for size in shape)
    t[at] = value
    table = torch.zeros(6)
    where = ", ".join(map(str, at))
    with pytest.raises(
        RuntimeError, match=rf"target\[{where}\]: expected a number in \[0, 1\], got"
    ):
        ops.scored_binary_cross_entropy(x, t, table=table, index=torch.arange(shape[0]))
    assert (table == 0).all()


@pytest.mark.parametrize("device", [CUDA, EMULATED], indirect=True)
def test_a_target_out_of_range_makes_its_sample_nan_on_cuda(device):
    x = torch.zeros(4, 3, device=device)
    t = torch.zeros(4, 3, device=device)
    t[1, 2], t[2, 0], t[3, 1] = 1.5, -0.5, math.nan
    out, grad = loss_and_gradient(ops.scored_binary_cross_entropy, x, t)
    for values in out[:3]:
        assert values.isnan().tolist() == [False, True, True, True]
    assert out.correct.tolist() == [1, 0, 0, 0]
    assert torch.equal(grad.isnan(), (t < 0) | (t > 1) | t.isnan())


X, T, Y = torch.zeros(3, 4), torch.zeros(5), torch.zeros(3, dtype=torch.int64)


@BOTH
@pytest.mark.parametrize(
    ("input", "target", "options", "message"),
    [
        (X[0, 0], X[0, 0], {}, r"input: expected shape \[N, ...\], got \[\]"),
        (X[:, :0], X[:, :0], {}, r"input: expected at least one element .* got shape \[3, 0\]"),
        (X.long(), X, {}, "input: expected float32, .* got int64"),
        (X, X[:2], {}, r"target: expected shape \[3, 4\] as input, got \[2, 4\]"),
        (X, X[:, 0], {}, r"target: expected shape \[3, 4\] as input, got \[3\]"),
        (X, X.to(torch.complex64), {}, "target: expected dtype float32.*got complex64"),
        (X, X, {"weight": torch.ones(4)}, r"weight: expected shape \[3\] or \[3, 1\], got \[4\]"),
        (X, X, {"weight": X}, r"weight: expected shape \[3\] or \[3, 1\], got \[3, 4\]"),
        (X[:, :3], X[:, :3], {"weight": T[:3]}, r"weight: of shape \[3\] .*weight\[:, None\]"),
        (X, X, {"reduction": "avg"}, "reduction: expected one of .*'mean'.*, got 'avg'"),
        (X, X, {"gradient": "inplace"}, "gradient: expected one of .*'forward'.*, got 'inplace'"),
        (X, X, {"table": T, "index": Y, "score": "aum"}, "score: expected one of .*, got 'aum'"),
        (X, X, {"table": T}, "index: expected one, as table is given"),
        (X, X, {"index": Y}, "table: expected one, as index is given"),
        (X, X, {"table": T.double(), "index": Y}, "table: expected dtype float32, got float64"),
        (X, X, {"table": T[None], "index": Y}, r"table: expected shape \[M\], got \[1, 5\]"),
        (X, X, {"table": T[::2], "index": Y}, "table: expected a contiguous tensor, got stride 2"),
        (X, X, {"table": T, "index": Y[:2]}, r"index: expected shape \[3\], got \[2\]"),
        (X, X, {"table": T, "index": Y + 5}, r"index\[0\]: expected a sample in \[0, 5\), got 5"),
        (X, X.to("meta"), {}, "one device, got input on cpu, target on meta"),
    ],
)
def test_bad_arguments_are_named(name, input, target, options, message):
    with pytest.raises(RuntimeError, match=f"^cpfast::{name}: .*{message}") as caught:
        getattr(ops, name)(input, target, **options)
    assert "\n" not in str(caught.value)


def test_what_only_one_of_them_has_is_named():
    with pytest.raises(RuntimeError, match=r"score: expected one of \('loss', 'el2n'\), got 'mar"):
        ops.scored_mse(X, X, table=T, index=Y, score="margin")
    with pytest.raises(RuntimeError, match="target: expected dtype float32.*got int64"):
        ops.scored_mse(X, X.long())
    for shape in [(3,), (4, 1), (3, 1, 4)]:
        with pytest.raises(RuntimeError, match=r"pos_weight: expected what broadcasts to .*\[4\]"):
            ops.scored_binary_cross_entropy(X, X, pos_weight=torch.ones(shape))


def test_memory_that_is_written_lies_apart():
    memory = torch.zeros(40)
    x, index = memory[:12].view(3, 4), torch.arange(3)
    for place in ("input", "target", "weight"):
        given = {"input": X, "target": X, "weight": T[:3]}
        given[place] = x if place != "weight" else memory[4:7]
        with pytest.raises(RuntimeError, match=f"{place}: shares memory with table"):
            ops.scored_mse(**given, table=memory[4:20], index=index)


@BOTH
@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_functional_transforms_are_refused(name, transform):
    x, t, _ = batch(name, (3, 4))
    target = torch.zeros(4, 3) if transform == "vmap" else t

    def loss(x):
        return getattr(ops, name)(x, target).loss.sum()

    match = "forward-mode derivatives" if transform == "jvp" else r"torch\.func.*torch\.nn\.func"
    with pytest.raises(RuntimeError, match=f"{name}: input: .*{match}"):
        if transform == "grad":
            torch.func.grad(loss)(x)
        elif transform == "jvp":
            torch.func.jvp(loss, (x,), (x,))
        else:
            torch.vmap(loss)(torch.randn(2, 4, 3))


@pytest.mark.cuda
@BOTH
@pytest.mark.parametrize("shape", [(16, 1), (16, 10), (4, 1000), (2, 50_257)])
@pytest.mark.parametrize("gradient", ["forward", "backward"])
def test_a_first_call_may_be_captured(name, shape, gradient):
    """In a process of its own, where no kernel has been loaded yet."""
    program = f"""
import torch
from cpfast import ops
x = torch.randn({shape}, device="cuda", requires_grad=True)
t = torch.rand({shape}, device="cuda")
table, index = torch.zeros(2, 64, device="cuda"), torch.arange({shape[0]}, device="cuda")
torch.autograd.grad((2 * x).sum(), x)  # starts the thread that walks graphs
torch.cuda.synchronize()
options = dict(reduction="mean", gradient={gradient!r}, index=index)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    loss = ops.{name}(x, t, table=table[0], **options).loss
    (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
graph.replay()
again = ops.{name}(x, t, table=table[1], **options).loss
assert torch.equal(loss, again)
assert torch.equal(table[0], table[1])
assert torch.equal(grad, torch.autograd.grad(again, x)[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
