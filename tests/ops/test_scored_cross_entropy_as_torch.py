"""What F.cross_entropy takes, against F.cross_entropy in float64, and what it does not: z_loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from cpfast import ops

TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 1e-2}
WEIGHTS = [(None, 0.0), (None, 0.2), ("classes", 0.0), ("classes", 0.2)]


def images(classes, dtype=torch.float32, seed=0, shape=(3, 5, 7)):
    """Logits [B, C, H, W], classes [B, H, W], distributions like the logits, weights [C]."""
    g = torch.Generator().manual_seed(seed)
    batch, *rest = shape
    logits = 4 * torch.randn(batch, classes, *rest, generator=g, dtype=torch.float64)
    shares = (2 * torch.randn(batch, classes, *rest, generator=g, dtype=torch.float64)).softmax(1)
    return (
        logits.to(dtype),
        torch.randint(classes, shape, generator=g),
        shares,
        0.2 + torch.rand(classes, generator=g),
    )


def gradient(loss, logits, upstream=1.0):
    loss.backward(torch.full_like(loss, upstream))
    return logits.grad


def assert_near(actual, expected, tolerance):
    actual, expected = actual.detach().cpu().double(), expected.detach().double()
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("classes", [1, 2, 10, 64, 65, 150, 1500])
@pytest.mark.parametrize(("weights", "smoothing"), WEIGHTS)
@pytest.mark.parametrize("kind", ["classes", "distributions"])
@pytest.mark.parametrize("when", ["backward", "forward", "inplace"])
def test_images_rows_and_their_gradients(device, dtype, classes, weights, smoothing, kind, when):
    logits, target, shares, by_class = images(classes, dtype)
    if kind == "distributions":
        target = shares
    else:
        target[1, 2:] = -100
    options = {"label_smoothing": smoothing}
    wide = logits.double().requires_grad_()
    expected = F.cross_entropy(
        wide, target, weight=by_class.double() if weights else None, **options
    )
    expected_grad = gradient(expected, wide, 0.5)
    x = logits.to(device).requires_grad_()
    loss = ops.scored_cross_entropy(
        x * 1 if when == "inplace" else x,
        target.to(device),
        class_weight=by_class.to(device) if weights else None,
        class_dim=1,
        reduction="mean",
        gradient=when,
        **options,
    ).loss
    assert_near(loss, expected, 4e-6 if dtype != torch.float64 else 1e-12)
    grad = gradient(loss, x, 0.5)
    if kind == "classes" and not (weights and smoothing) and classes > 1:
        assert grad.stride() == logits.stride()
    assert_near(grad, expected_grad, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", ["classes", "distributions"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(("weights", "smoothing"), WEIGHTS)
def test_reductions(device, kind, reduction, weights, smoothing):
    logits, target, shares, by_class = images(12)
    target[0, 0, 0] = -100
    target = target if kind == "classes" else shares.float()
    expected = F.cross_entropy(
        logits, target, by_class if weights else None, reduction=reduction,
        label_smoothing=smoothing,
    )  # fmt: skip
    loss = ops.scored_cross_entropy(
        logits.to(device), target.to(device), reduction=reduction, label_smoothing=smoothing,
        class_weight=by_class.to(device) if weights else None, class_dim=1,
    ).loss  # fmt: skip
    assert loss.shape == expected.shape
    assert_near(loss, expected, 4e-6)


@pytest.mark.parametrize("kind", ["classes", "distributions"])
@pytest.mark.parametrize("classes", [10, 80])
def test_where_the_classes_are_changes_no_result(device, kind, classes):
    logits, target, shares, _ = images(classes)
    last = logits.movedim(1, -1).contiguous().to(device)
    goal = target.to(device) if kind == "classes" else shares.movedim(1, -1).to(device)
    table, index = torch.zeros(2, 9, device=device), torch.tensor([4, 0, 4], device=device)
    rows = ops.scored_cross_entropy(last, goal, table=table[0], index=index, score="el2n")
    goal = target.to(device) if kind == "classes" else shares.to(device)
    for x in (logits.to(device), logits.to(device).contiguous(memory_format=torch.channels_last)):
        result = ops.scored_cross_entropy(
            x, goal, class_dim=1, table=table[1], index=index, score="el2n"
        )
        for a, b in zip(result, rows, strict=True):
            assert a.shape == (3, 5, 7)
            assert_near(a, b.cpu(), 2e-6)
        assert_near(table[1], table[0].cpu(), 2e-6)
        # Of equal indices the last, each the mean over its pixels.
        assert_near(table[1][4], result.el2n[2].mean().cpu(), 2e-6)
        assert table[1].count_nonzero() == 2


@pytest.mark.parametrize("size", [31, 36])
@pytest.mark.parametrize("kind", ["classes", "weighted", "distributions"])
def test_many_pixels(device, size, kind):
    """More rows than one block of a GPU counts and records, in long sequences and in short ones."""
    logits, target, shares, by_class = images(3, shape=(5, size, size))
    target[1, :, 3:] = -100
    target[4] = -100
    goal = shares.float() if kind == "distributions" else target
    options = {"class_weight": by_class.to(device)} if kind == "weighted" else {}
    table, index = torch.full((7,), -7.0), torch.tensor([4, 0, 4, 2, 1])
    own = table.to(device)
    x = logits.to(device).requires_grad_()
    loss = ops.scored_cross_entropy(
        x, goal.to(device), class_dim=1, reduction="mean", gradient="forward", table=own,
        index=index.to(device), **options,
    ).loss  # fmt: skip
    other = logits.detach().clone().requires_grad_()
    weight = by_class if kind == "weighted" else None
    expected = F.cross_entropy(other, goal, weight)
    assert_near(loss, expected, 4e-6)
    torch.testing.assert_close(
        gradient(loss, x).cpu(), gradient(expected, other), rtol=1e-4, atol=1e-8
    )
    each = F.cross_entropy(logits.detach(), goal, weight, reduction="none").double()
    counts = torch.ones_like(each) if kind == "distributions" else (target != -100).double()
    means = (each.flatten(1).sum(1) / counts.flatten(1).sum(1)).float()
    for sample, place in enumerate(index.tolist()):
        if means[sample].isfinite():
            table[place] = means[sample]
    assert_near(own, table, 4e-6)


def test_one_sample_alone(device):
    logits, target = torch.randn(6, device=device), torch.tensor(4, device=device)
    alone = logits.clone().requires_grad_()
    result = ops.scored_cross_entropy(alone, target)
    expected = F.cross_entropy(logits.cpu(), target.cpu())
    assert all(x.shape == () for x in result)
    assert_near(result.loss, expected, 1e-6)
    result.loss.backward()
    assert_near(alone.grad, logits.softmax(0).cpu() - F.one_hot(target.cpu(), 6), 1e-6)
    shares = torch.rand(6, device=device)
    soft = ops.scored_cross_entropy(logits, shares).loss
    assert_near(soft, F.cross_entropy(logits.cpu(), shares.cpu()), 1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_every_dtype_of_classes(device, dtype):
    logits, target = torch.randn(9, 7, device=device), torch.arange(9, device=device) % 7
    target[3] = 255 if dtype == torch.uint8 else -100
    ignored = int(target[3])
    loss = ops.scored_cross_entropy(logits, target.to(dtype), ignore_index=ignored).loss
    expected = F.cross_entropy(logits, target, reduction="none", ignore_index=ignored)
    assert_near(loss, expected.cpu(), 1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3, 2), (2, 5, 0, 2), (4, 1), (2, 1, 3, 3)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("kind", ["classes", "distributions"])
def test_no_rows_and_one_class(device, shape, reduction, kind):
    logits = torch.randn(shape)
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
    if kind == "distributions":
        target = torch.full(shape, 0.5)
    x = logits.to(device).requires_grad_()
    loss = ops.scored_cross_entropy(x, target.to(device), class_dim=1, reduction=reduction).loss
    expected = F.cross_entropy(logits, target, reduction=reduction)
    torch.testing.assert_close(loss.detach().cpu(), expected, equal_nan=True)
    loss.sum().backward()
    assert x.grad.shape == shape
    assert not x.grad.any()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("classes", [10, 80, 1100])
@pytest.mark.parametrize("kind", ["classes", "weighted", "distributions"])
@pytest.mark.parametrize("when", ["backward", "forward"])
def test_z_loss(device, dtype, classes, kind, when):
    logits, target, shares, by_class = images(classes, dtype, shape=(11,))
    weight = torch.linspace(0.2, 2.0, 11)
    target[4] = -100
    goal = shares if kind == "distributions" else target
    options = {"label_smoothing": 0.1} if kind == "weighted" else {}
    wide = logits.double().requires_grad_()
    each = F.cross_entropy(
        wide, goal, weight=by_class.double() if kind == "weighted" else None,
        reduction="none", **options,
    )  # fmt: skip
    counts = torch.ones(11) if kind == "distributions" else (target != -100)
    total = weight * (each + 0.01 * counts * wide.logsumexp(1) ** 2)
    expected_grad = gradient(total.sum(), wide)
    x = logits.to(device).requires_grad_()
    table, index = torch.zeros(11, device=device), torch.arange(11, device=device)
    loss = ops.scored_cross_entropy(
        x, goal.to(device), weight=weight.to(device), z_loss=0.01, reduction="sum", gradient=when,
        class_weight=by_class.to(device) if kind == "weighted" else None, table=table, index=index,
        **options,
    ).loss  # fmt: skip
    assert_near(loss, total.sum(), 4e-6)
    assert_near(gradient(loss, x), expected_grad, TOLERANCE[dtype])
    assert_near(table, each, 4e-6)  # neither weighted, nor with the z_loss


@pytest.mark.parametrize("classes", [10, 80])
@pytest.mark.parametrize("when", ["backward", "forward"])
def test_z_loss_reaches_a_target_that_is_far_off(device, classes, when):
    """1 - p of the others would have no digits there."""
    logits = torch.zeros(5, classes, device=device)
    logits[:, 1] = 30.0
    weight = torch.ones(classes, device=device)
    weight[0] = 0.0  # so that nothing else is asked for
    x = logits.requires_grad_()
    loss = ops.scored_cross_entropy(
        x, torch.zeros(5, dtype=torch.int64, device=device), class_weight=weight, z_loss=0.5,
        gradient=when,
    ).loss  # fmt: skip
    expected = torch.full((5,), 30 * math.exp(-30.0))
    torch.testing.assert_close(gradient(loss, x)[:, 0].cpu(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("classes", [3, 100, 1500])
def test_scores_of_distributions(device, classes):
    logits, _, shares, _ = images(classes, torch.float64, shape=(17,))
    out = ops.scored_cross_entropy(logits.to(device), shares.to(device))
    p, y = logits.softmax(1), shares.argmax(1)
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -math.inf).amax(1)
    assert_near(out.el2n, (p - shares).norm(dim=1), 1e-6)
    assert_near(out.margin, own - others, 1e-6)
    assert torch.equal(out.correct.cpu(), (logits.argmax(1) == y).float())


@pytest.mark.parametrize("classes", [10, 100, 1500])
@pytest.mark.parametrize("when", ["backward", "forward"])
def test_a_distribution_of_one_class_is_that_class_to_the_last_digits(device, classes, when):
    logits, target = torch.zeros(2, classes), torch.tensor([3, 5])
    logits[0, 3], logits[1, 4] = 20.0, 20.0  # confident, right and wrong
    results = []
    for goal in (target, F.one_hot(target, classes).float()):
        x = logits.to(device).requires_grad_()
        out = ops.scored_cross_entropy(x, goal.to(device), reduction="sum", gradient=when)
        results.append((*out[1:], gradient(out.loss, x)))
        each = ops.scored_cross_entropy(x, goal.to(device))
        results[-1] += tuple(each.loss.detach())
    for hard, soft in zip(*results, strict=True):
        torch.testing.assert_close(soft, hard, rtol=2e-6, atol=0)


@pytest.mark.parametrize("classes", [10, 1500])
@pytest.mark.parametrize("kind", ["distributions", "weighted"])
@pytest.mark.parametrize("when", ["backward", "forward"])
def test_gradients_of_even_rows_keep_their_digits_at_the_largest_logit(device, classes, kind, when):
    logits, target, _, by_class = images(classes, shape=(23,))
    logits, options = 0.1 * logits, {"label_smoothing": 0.1}
    weight = None
    if kind == "distributions":
        target = 0.7 * F.one_hot(target, classes) + 0.3 * F.one_hot(target.roll(1), classes)
    else:
        weight = by_class
    wide = logits.double().requires_grad_()
    goal, wide_weight = (t if t is None or t.dtype == torch.int64 else t.double()
                         for t in (target, weight))  # fmt: skip
    expected = F.cross_entropy(wide, goal, wide_weight, reduction="sum", **options)
    x = logits.to(device).requires_grad_()
    loss = ops.scored_cross_entropy(
        x, target.to(device), class_weight=None if weight is None else weight.to(device),
        reduction="sum", gradient=when, **options,
    ).loss  # fmt: skip
    best = logits.argmax(1, keepdim=True)
    actual, expected = (g.cpu().double().gather(1, best) for g in
                        (gradient(loss, x), gradient(expected, wide)))  # fmt: skip
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("classes", [4, 100])
@pytest.mark.parametrize("kind", ["distribution", "weighted"])
def test_rows_that_are_not_finite_are_nan_and_masked_classes_cost_nothing(device, classes, kind):
    inf = math.inf
    logits = torch.randn(5, classes, generator=torch.Generator().manual_seed(0))
    logits[0, 1] = math.nan
    logits[1, 2] = inf
    logits[2] = -inf
    logits[3, 3] = -inf
    target = torch.zeros(5, dtype=torch.int64)
    options = {}
    if kind == "weighted":
        weight = torch.ones(classes)
        weight[3] = 0
        options = {"class_weight": weight.to(device), "label_smoothing": 0.1}
        goal = target
    else:
        goal = F.one_hot(target, classes).float()
    out = ops.scored_cross_entropy(logits.to(device), goal.to(device), **options)
    assert out.loss.isnan().tolist() == [True, True, True, False, False]
    assert out.margin.isnan().tolist() == [True, True, True, False, False]
    assert not out.correct[:3].any()
    assert out.loss[3:].isfinite().all()
    # Asked for what is masked, the loss is infinite.
    goal = F.one_hot(target + 3, classes).float()
    assert ops.scored_cross_entropy(logits[3:4].to(device), goal[3:4].to(device)).loss.item() == inf


@pytest.mark.parametrize("kind", ["classes", "distributions"])
@pytest.mark.parametrize(("weights", "smoothing"), WEIGHTS)
def test_gradcheck(device, kind, weights, smoothing):
    logits, target, shares, by_class = images(5, torch.float64, shape=(2, 3))
    goal = target if kind == "classes" else shares
    x = logits.to(device).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: (
            ops.scored_cross_entropy(
                x,
                goal.to(device),
                class_weight=by_class.double().to(device) if weights else None,
                label_smoothing=smoothing,
                z_loss=0.1,
                class_dim=1,
            ).loss
        ),
        x,
    )


def test_opcheck(device):
    logits, target, shares, by_class = (x.to(device) for x in images(6, shape=(2, 3)))
    rows, shares = logits.transpose(1, 2), shares.float().transpose(1, 2).contiguous()
    op = torch.ops.cpfast.scored_cross_entropy
    opcheck(op, (rows, target, None, 0.1, -100, 1, None, None, None, 0, None, 0.1))
    opcheck(op, (rows, shares, None, 0.1, -100, 1, None, None, None, 0, by_class, 0.1))
    loss, _, stats = op(rows, target, None, 0.0, -100, 1, None, None, None, 0, by_class, 0.1)
    opcheck(
        torch.ops.cpfast.scored_cross_entropy_backward,
        (loss, rows, target, stats, None, 0.0, -100, 1, by_class, 0.1),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("kind", ["classes", "distributions"])
@pytest.mark.parametrize("when", ["backward", "forward", "inplace"])
def test_it_compiles_into_one_graph(device, kind, when):
    logits, target, shares, by_class = (x.to(device) for x in images(6))
    goal = target if kind == "classes" else shares

    def loss(x):
        return ops.scored_cross_entropy(
            2 * x, goal, class_weight=by_class, z_loss=0.1, class_dim=1, reduction="mean",
            gradient=when,
        ).loss  # fmt: skip

    x = logits.clone().requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(x), x)
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(grad, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("shape", "class_dim"), [((5,), -1), ((3, 5, 4), 1), ((5, 4), 0)])
def test_the_gradient_of_a_leaf_shares_no_memory_with_it(shape, class_dim):
    """Wherever its classes are: what is written over may be a view of it."""
    logits = torch.randn(shape).requires_grad_()
    before = logits.detach().clone()
    target = torch.zeros(logits.movedim(class_dim, -1).shape[:-1], dtype=torch.int64)
    with pytest.raises(RuntimeError, match="gradient: 'inplace' is refused for logits that are"):
        ops.scored_cross_entropy(logits, target, class_dim=class_dim, gradient="inplace")
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("class_dim", [0, 1, 2, -1, -2, -3])
def test_a_weight_of_as_many_samples_as_classes_is_asked_about(class_dim):
    for samples, classes in ((4, 4), (4, 6)):
        logits, target = torch.randn(samples, 6, classes), torch.zeros(samples, 6).long()
        weight, moved = torch.rand(samples), logits.movedim(-1, class_dim)
        if samples == classes:
            with pytest.raises(RuntimeError, match=r"that is class_weight; .* of shape \[4, 1\]"):
                ops.scored_cross_entropy(moved, target, weight=weight, class_dim=class_dim)
        else:
            ops.scored_cross_entropy(moved, target, weight=weight, class_dim=class_dim)
        ops.scored_cross_entropy(moved, target, weight=weight[:, None], class_dim=class_dim)
    with pytest.raises(RuntimeError, match="class_dim: expected a dimension of input"):
        ops.scored_cross_entropy(torch.randn(4, 4), target[:, 0], weight=weight, class_dim=2)


@pytest.mark.parametrize("name", ["target", "class_weight"])
def test_what_wants_a_gradient_and_gets_none_is_refused(name):
    logits, _, shares, by_class = images(6, shape=(4,))
    given = {"target": shares, "class_weight": by_class}
    given[name].requires_grad_()
    with pytest.raises(RuntimeError, match=rf"{name}: requires a gradient.*{name}\.detach"):
        ops.scored_cross_entropy(logits, **given)
    with torch.no_grad():
        ops.scored_cross_entropy(logits, **given)


def test_the_mean_of_rows_whose_classes_weigh_nothing_is_nan_as_in_torch(device):
    logits, target = torch.randn(3, 4, device=device), torch.ones(3, dtype=torch.int64)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0])
    expected = F.cross_entropy(logits.cpu(), target, weight)
    loss = ops.scored_cross_entropy(
        logits, target.to(device), class_weight=weight.to(device), reduction="mean"
    ).loss
    assert expected.isnan()
    assert loss.isnan()
