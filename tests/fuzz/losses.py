"""One random call of each loss, compared with its reference."""

from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

from cpfast import ops
from cpfast.ops import _logit_chunks

from . import references
from .draws import (
    CLASSES,
    FLOATS,
    INTEGERS,
    LOOKS_AT_VALUES,
    ROUNDING,
    SMALLEST,
    SUMS,
    Draws,
    Wrong,
    check,
    exact,
    refused,
)

SCORES = ("loss", "el2n", "margin", "correct")
REDUCTIONS = ("none", "mean", "sum")
# exp and log1p of float32 differences of logits, which rounding moves by up to 90 * 2^-24, summed
# up by 128 before they go on in float64.
EXPONENTIALS = {torch.float64: 1e-11, torch.float32: 2e-5}
# Scores are float32, whatever the logits are.
OF_SCORES = 2e-7
# Two roundings, and what is lost where a sum of two is smaller than they are.
DIGITS = {torch.float64: 2**-51, torch.float32: 2**-22}
# Half a unit in the last place of what matrix products are given and give; their sums are float32
# but of float64. float16 is computed in float32 on a CPU, and so may bfloat16 be.
PRODUCTS = {torch.float64: 2**-53, torch.bfloat16: 2**-9}
FLOAT32 = 2**-24


def wide_of(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- rows of logits


class Expected(NamedTuple):
    """Of N rows of logits that count, and how far off that may be."""

    columns: np.ndarray  # [N, 4], loss without weight and z_loss, EL2N, margin, correct
    columns_off: np.ndarray
    losses: np.ndarray  # [N], without weight
    losses_off: np.ndarray
    grads: np.ndarray  # [N, C], of those
    grads_off: np.ndarray


def expected_of(ref: references.CrossEntropy, wide, z_loss, is_soft, logits_off=0.0, loss_off=0.0):
    """The tolerances come from what is subtracted from what, and so from the digits that are lost.

    Args:
        is_soft: whether the EL2N of each class is squared as it is: of less than 1e-19 that has no
            digits in float32.
        logits_off: [N], how far off each logit of a row may be: then p and 1 - p are by a factor
            of exp(2 logits_off) at most, and so is every gradient on the way there.
        loss_off: [N], what is known of the digits of the loss besides.
    """
    rtol, of_scores = EXPONENTIALS[wide], max(EXPONENTIALS[wide], OF_SCORES)
    tiny = SMALLEST.get(wide, 1e-37)
    with np.errstate(all="ignore"):
        logits_off = np.broadcast_to(logits_off, ref.loss.shape)
        growth = np.expm1(2 * logits_off)
        smaller = np.minimum(ref.p, ref.q)
        off = rtol * np.abs(ref.loss) + loss_off
        off = off + (1 + growth) * logits_off * ref.grad_terms.sum(1)
        least = 1e-19 * ref.p.shape[1] ** 0.5 if is_soft else 0.0
        columns = np.stack([ref.loss, ref.el2n, ref.margin, ref.correct], 1)
        columns_off = np.stack(
            [
                off,
                of_scores * ref.el2n_terms + growth * references.norms(smaller) + least,
                of_scores * np.abs(ref.margin) + 2 * logits_off,
                np.abs(ref.margin) <= 2 * logits_off if np.any(logits_off) else 0 * ref.p[:, 0],
            ],
            1,
        )
        # Exponentials that float32 has no digits of are 0, and so are their gradients.
        grads_off = rtol * ref.grad_terms + (ref.total * tiny)[:, None]
        grads_off = grads_off + (growth * ref.total)[:, None] * smaller
        losses, grads = ref.loss, ref.grad
        if z_loss > 0:
            # The sum, whose largest term is 1, is rounded before its logarithm is taken.
            lse_off = DIGITS[wide] * (1 + np.abs(ref.top)) + rtol * (ref.lse - ref.top) + logits_off
            losses = losses + z_loss * ref.lse**2
            off = off + z_loss * lse_off * (2 * np.abs(ref.lse) + lse_off)
            by = 2 * z_loss * ref.lse[:, None]
            grads = grads + by * ref.p
            by_off = 2 * z_loss * lse_off[:, None]
            grads_off = grads_off + by_off * ref.p + np.abs(by) * tiny
            grads_off = grads_off + (np.abs(by) + by_off) * (rtol + growth[:, None]) * ref.p
        off = off + DIGITS[wide] * np.abs(losses) + tiny
    return Expected(
        columns, np.nan_to_num(np.maximum(columns_off, 1e-37)),
        losses, np.nan_to_num(off), grads, np.nan_to_num(grads_off),
    )  # fmt: skip


def check_rows(found, expected: Expected, shape, counts, weight, reduction, counted, wide):
    """Losses and scores, of that shape; counts and weight are [N].

    Returns:
        [N], what the gradient of each row is multiplied by.
    """
    with np.errstate(all="ignore"):
        losses = np.where(counts, expected.losses * weight, 0.0)
        off = np.where(counts, np.nan_to_num(np.abs(expected.losses_off * weight)), 0.0)
        factor = np.float64(1) / counted if reduction == "mean" else np.float64(1)
        if reduction == "none":
            check("loss", found.loss, losses.reshape(shape), 0.0, off.reshape(shape))
        elif counted == 0 and counts.any() and reduction == "mean":
            if found.loss.isfinite():
                raise Wrong(f"loss: expected a mean over nothing, got {found.loss.item()}")
        else:
            # The sum has roundings of its own.
            off = (off + EXPONENTIALS[wide] * np.nan_to_num(np.abs(losses))).sum() * factor
            check("loss", found.loss, losses.sum() * factor, 0.0, np.nan_to_num(off))
        columns = np.where(counts[:, None], expected.columns, 0.0)
        for i, name in enumerate(SCORES[1:], 1):
            limits = expected.columns_off[:, i].reshape(shape)
            check(name, getattr(found, name), columns[:, i].reshape(shape), 0.0, limits)
        return np.where(counts, weight * factor, 0.0)


def check_table(table, index, before, expected: Expected, counts, score):
    """Of samples, the means of their rows that count."""
    column = SCORES.index(score)
    values, off, limits = before.copy(), np.zeros_like(before), np.zeros_like(before)
    samples = len(index)
    shape = (samples, len(counts) // max(samples, 1))
    counts = counts.reshape(shape)
    ours, ours_off = (
        whole[:, column].reshape(shape) for whole in (expected.columns, expected.columns_off)
    )
    with np.errstate(all="ignore"):
        for i, sample in enumerate(index.tolist()):
            if counts[i].any():
                values[sample] = ours[i, counts[i]].mean()
                off[sample] = ours_off[i, counts[i]].mean()
                limits[sample] = OF_SCORES * np.nan_to_num(np.abs(ours[i, counts[i]]).mean())
        check("table", table, values, 0.0, off + limits)


def upstream_of(r: Draws, loss):
    choices = [np.ones(loss.shape), r.numpy.uniform(-2, 2, loss.shape), np.zeros(loss.shape)]
    return torch.as_tensor(r.one_of(choices)).to(loss.dtype)


def table_of(r: Draws, samples):
    """Arguments that have a table written, and what is in it."""
    table = r.written(r.normal(1 + r.below(40)), torch.float32)
    index = r.tensor(r.numpy.integers(len(table), size=samples), r.one_of(INTEGERS))
    return {"table": table, "index": index, "score": r.one_of(SCORES)}, exact(table)


def weights_of(r: Draws, rows, classes=0):
    """A weight, and what each row is multiplied by, [N]."""
    if r.chance(0.5):
        return None, np.ones(int(np.prod(rows)))
    shapes = [tuple(rows)] if len(rows) != 1 else []
    if rows:
        shapes.append((rows[0], 1))
        if not rows[0] == classes > 1:  # which may be one a class
            shapes.append((rows[0],))
    values = r.numpy.random(r.one_of(shapes))
    if r.chance(0.3):
        values = np.round(values)  # zeros and ones
    weight = r.tensor(values, r.one_of(FLOATS), strided=True)
    w = exact(weight)
    if w.shape != tuple(rows):
        w = np.broadcast_to(w.reshape(rows[0], *[1] * (len(rows) - 1)), rows)
    return weight, w.reshape(-1)


def class_weight_of(r: Draws, classes):
    values = r.one_of([1.0, 3.0]) * r.numpy.random(classes)
    if r.chance(0.2):
        values = np.round(values)
    return r.tensor(values, r.one_of(FLOATS), strided=True)


def classes_of(r: Draws, rows, classes):
    """Classes, which of them count, the index of those that do not, and a dtype that holds them."""
    y = r.numpy.integers(classes, size=rows)
    ignore_index = r.one_of([-100, -(2**63), r.below(classes), 2**31 - 1])
    if ignore_index > -(2**63) and r.chance(0.5):
        y = np.where(r.numpy.random(rows) < 0.4, ignore_index, y)
    least, most = (y.min(), y.max()) if y.size else (0, 0)
    fitting = [d for d in CLASSES if torch.iinfo(d).min <= least and most <= torch.iinfo(d).max]
    target = r.tensor(y, r.one_of(fitting), strided=True)
    return target, y, y != ignore_index, ignore_index


def at_targets(ref: references.CrossEntropy, y, smoothing):
    """The same, with the digits at the classes [N] that 1 - p has there, though p had more: where
    much is smoothed and little is expected."""
    rows = np.arange(len(y))
    ref.grad_terms[rows, y] = ref.total * (smoothing * (1 - 1 / ref.p.shape[1]) + ref.q[rows, y])
    return ref


# ---- scored_cross_entropy


def scored_cross_entropy(r: Draws):
    classes = max(1, r.size(r.one_of([64, 300, 5000])))
    rows = r.one_of([
        [], [r.size(20)], [r.size(20)], [r.size(20), r.size(9)], [r.size(6), r.size(5), r.size(7)]
    ])  # fmt: skip
    class_dim = r.one_of([-1, -1, min(1, len(rows)), r.below(2 * len(rows) + 2) - len(rows) - 1])
    dtype = r.one_of(FLOATS)
    wide = wide_of(dtype)
    gradient = r.one_of(["backward", "forward", "inplace"])
    if dtype == torch.float16 or 0 in rows:
        gradient = "backward"
    options = {"class_dim": class_dim, "label_smoothing": r.one_of([0.0, 0.0, 0.1, 1.0])}
    is_huge = dtype in (torch.float32, torch.bfloat16) and r.chance(0.05)
    has_classes, class_weight, by_class = is_huge or r.chance(0.7), None, np.ones(classes)
    # Their sums and squares have no room in float32.
    if not is_huge:
        options["z_loss"] = r.one_of([0.0, 0.0, 1e-4, 0.1, 1.0])
        if r.chance(0.4):
            class_weight = options["class_weight"] = class_weight_of(r, classes)
            by_class = exact(class_weight)
    x = huge_logits_of(r, [*rows, classes]) if is_huge else logits_of(r, [*rows, classes])
    if has_classes:
        target, y, counts, ignore_index = classes_of(r, rows, classes)
        own = np.where(counts, y, 0)
        # A class that is asked for is not masked.
        x_y = np.take_along_axis(x, own[..., None], -1)
        np.put_along_axis(x, own[..., None], np.where(x_y == -np.inf, 0.0, x_y), -1)
        own, counts = own.reshape(-1), counts.reshape(-1)
        asked = np.arange(classes) == own[:, None]
    else:
        ignore_index = r.one_of([-100, -(2**63)])
        given = np.moveaxis(distributions_of(r, [*rows, classes]), -1, class_dim)
        target = r.tensor(given, r.one_of(FLOATS), strided=True)
        asked = np.moveaxis(exact(target.to(wide)), class_dim, -1).reshape(-1, classes)
        own, counts = asked.argmax(1), np.ones(len(asked), bool)
    options["ignore_index"] = ignore_index

    if gradient != "inplace":
        leaf = r.tensor(np.moveaxis(x, -1, class_dim), dtype, strided=True)
    elif r.chance(0.5):
        leaf = r.written(np.moveaxis(x, -1, class_dim), dtype)
    else:
        leaf = r.written(x, dtype, rows=True).movedim(-1, class_dim)
    x = np.moveaxis(exact(leaf), class_dim, -1).reshape(-1, classes)  # as rounded
    leaf.requires_grad_(gradient == "inplace" or r.chance(0.8))
    logits = leaf.view_as(leaf) if gradient == "inplace" else leaf
    options["weight"], weight = weights_of(r, rows, classes)
    reduction = r.one_of(REDUCTIONS)
    table = None
    if r.chance(0.5):
        placed, before = table_of(r, rows[0] if rows else 1)
        options |= placed
        table = placed["table"]

    found = ops.scored_cross_entropy(
        logits, target, reduction=reduction, gradient=gradient, **options
    )

    smoothing, z_loss = options["label_smoothing"], options.get("z_loss", 0.0)
    ref = references.cross_entropy_of(x, asked, own, smoothing, by_class)
    is_soft = not has_classes or (class_weight is not None and smoothing > 0)
    if not is_soft:
        ref = at_targets(ref, own, smoothing)
    # Smoothing alone subtracts the mean logit, which has the digits of the largest.
    magnitude = np.where(np.isfinite(x), np.abs(x), 0.0).max(1, initial=0.0)
    subtracts = smoothing > 0 and not is_soft
    loss_off = smoothing * 0.1 * EXPONENTIALS[wide] * magnitude if subtracts else 0.0
    expected = expected_of(ref, wide, z_loss, is_soft, loss_off=loss_off)
    counted = by_class[own[counts]].sum() if has_classes else len(own)
    factors = check_rows(found, expected, rows, counts, weight, reduction, counted, wide)
    if table is not None:
        check_table(table, options["index"], before, expected, counts, options["score"])
    if leaf.requires_grad:
        upstream = upstream_of(r, found.loss)
        (grad,) = torch.autograd.grad(found.loss, leaf, upstream)
        if np.isfinite(factors).all():
            rounding = 1 if gradient == "backward" else 2
            check_logits_gradient(
                grad.movedim(class_dim, -1), expected, exact(upstream).reshape(-1) * factors,
                counts, rounding * ROUNDING.get(dtype, 0.0),
            )  # fmt: skip
    r.check_kept()
    if LOOKS_AT_VALUES and has_classes and counts.any() and r.chance(0.05):
        wrong = own.copy()
        wrong[~counts] = ignore_index
        wrong[np.argmax(counts)] = r.one_of([classes, -1, 2**31 - 2])
        if (wrong != ignore_index)[counts].all():
            refused(
                lambda: ops.scored_cross_entropy(
                    logits, torch.tensor(wrong.reshape(rows)), **options
                ),
                "cpfast::scored_cross_entropy: target[",
            )


def logits_of(r: Draws, shape):
    x = r.normal(shape, r.one_of([0.0, 1e-3, 1.0, 1.0, 5.0, 30.0, 1000.0]))
    kind = r.below(15)
    if kind == 1:
        x = np.round(x)  # ties
    elif kind == 2:
        x = np.where(r.numpy.random(shape) < 0.3, -np.inf, x)  # masked classes
    elif kind == 3:
        x = np.where(r.numpy.random(shape) < 0.01, r.one_of([np.nan, np.inf]), x)
    return x


def huge_logits_of(r: Draws, shape):
    return r.numpy.uniform(-1.6e38, 1.6e38, shape)


def distributions_of(r: Draws, shape):
    classes, kind = shape[-1], r.below(4)
    if kind == 0:  # of one class
        return np.eye(classes)[r.numpy.integers(classes, size=shape[:-1])]
    values = r.numpy.random(shape)
    if kind == 1:  # of two, as mixup has them
        values = np.where(np.arange(classes) == values.argmax(-1)[..., None], values, 0.0)
        other = np.eye(classes)[r.numpy.integers(classes, size=shape[:-1])]
        return values + (1 - values.sum(-1, keepdims=True)) * other
    if kind == 2:  # of any sum
        return np.round(values) if r.chance(0.3) else values
    logits = r.normal(shape, r.one_of([0.1, 3.0, 30.0]))
    values = np.exp(logits - logits.max(-1, keepdims=True))
    return values / values.sum(-1, keepdims=True)


def check_logits_gradient(grad, expected: Expected, scale, counts, rounding):
    """[..., C] against [N, C] times scale, [N] or one."""
    with np.errstate(all="ignore"):
        scale = np.where(counts, scale, 0.0)[:, None]
        values = np.where(counts[:, None], expected.grads * scale, 0.0)
        limits = np.nan_to_num(np.abs(scale)) * expected.grads_off
        limits += rounding * np.nan_to_num(np.abs(values)) + SMALLEST.get(grad.dtype, 1e-37)
    check("gradient", grad, values.reshape(grad.shape), 0.0, limits.reshape(grad.shape))


# ---- scored_linear_cross_entropy


def scored_linear_cross_entropy(r: Draws):
    # As on CUDA, where the host looks at no value, or as on the CPU.
    is_blind = not LOOKS_AT_VALUES or r.chance(0.2)
    with mock.patch.object(_logit_chunks, "_is_blind", lambda _: is_blind):
        linear_call(r, is_blind)


def linear_call(r: Draws, is_blind):
    classes, width = max(1, r.size(r.one_of([64, 300]))), r.size(40)
    rows = [r.size(40)] if r.chance(0.6) else [r.size(9), r.size(9)]
    size = int(np.prod(rows))
    dtype = r.one_of(FLOATS)
    autocast = dtype != torch.float64 and r.chance(0.1)
    computed = torch.bfloat16 if autocast else dtype
    wide = wide_of(dtype)
    h = r.normal([*rows, width], r.one_of([0.0, 0.1, 1.0, 3.0]))
    w = r.normal([classes, width], r.one_of([0.3, 1.0, 5.0]) / max(width, 1) ** 0.5)
    target, y, counts, ignore_index = classes_of(r, rows, classes)
    y, counts = np.where(counts, y, 0).reshape(-1), counts.reshape(-1)
    sample_weight, weight = weights_of(r, rows)
    if sample_weight is None and counts.any() and r.chance(0.05) and width:
        h.reshape(size, width)[np.argmax(counts), r.below(width)] = np.nan
    leaves = [r.tensor(values, dtype, strided=True) for values in (h, w)]
    if r.chance(0.5):
        leaves.append(r.tensor(r.normal(classes), dtype, strided=True))
    for leaf in leaves:
        leaf.requires_grad_(r.chance(0.8))
    hidden, matrix, bias = [*leaves, None][:3]
    options = {
        "bias": bias, "sample_weight": sample_weight, "ignore_index": ignore_index,
        "label_smoothing": r.one_of([0.0, 0.0, 0.1, 1.0]),
        "z_loss": r.one_of([0.0, 0.0, 1e-4, 0.1, 1.0]),
        "reduction": r.one_of(REDUCTIONS),
        "logit_scale": r.one_of([1.0, 1.0, 0.125, 3.7]),
        "softcap": r.one_of([None, None, 1.0, 5.0, 30.0]),
        "chunk": r.one_of([None, 1, 1 + r.below(size + 3)]),
        "max_rows": r.one_of([None, max(1, int(counts.sum())) + r.below(3)]),
    }  # fmt: skip
    options["gradient"] = r.one_of([None, "backward", "forward"])
    if options["reduction"] == "none" and options["gradient"] == "forward":
        options["gradient"] = None
    by_class, class_weight = np.ones(classes), None
    if r.chance(0.4):
        class_weight = options["class_weight"] = class_weight_of(r, classes)
        by_class = exact(class_weight.to(wide))
    table = None
    if r.chance(0.5):
        placed, before = table_of(r, rows[0])
        options |= placed
        table = placed["table"]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = ops.scored_linear_cross_entropy(hidden, matrix, target, **options)

    operands = [exact(leaf.to(computed)) for leaf in leaves]
    product = LinearRows(operands, options, computed, size)
    smoothing, z_loss = options["label_smoothing"], options["z_loss"]
    asked = np.arange(classes) == y[:, None]
    ref = references.cross_entropy_of(product.logits, asked, y, smoothing, by_class)
    is_soft = class_weight is not None and smoothing > 0
    if not is_soft:
        ref = at_targets(ref, y, smoothing)
    subtracts = smoothing > 0 and not is_soft
    magnitude = np.nan_to_num(np.abs(product.logits).max(1, initial=0.0))
    loss_off = smoothing * 0.1 * EXPONENTIALS[wide] * magnitude if subtracts else 0.0
    expected = expected_of(ref, wide, z_loss, is_soft, product.off, loss_off)
    counted = by_class[y[counts]].sum()
    factors = check_rows(found, expected, rows, counts, weight, options["reduction"], counted, wide)
    if table is not None:
        check_table(table, options["index"], before, expected, counts, options["score"])
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if wanted and np.isfinite(factors).all():
        upstream = upstream_of(r, found.loss)
        if np.isnan(operands[0]).any():
            upstream = torch.ones_like(upstream)
        grads = torch.autograd.grad(found.loss, wanted, upstream)
        scale = np.where(counts, exact(upstream).reshape(-1) * factors, 0.0)
        for name, leaf, values, limits in zip(
            ("hidden", "weight", "bias"), leaves, *product.gradients(expected, scale, counts),
            strict=False,
        ):  # fmt: skip
            if leaf.requires_grad:
                limits += SMALLEST.get(dtype, 1e-37)
                limits += 2 * ROUNDING.get(computed, 0.0) * np.nan_to_num(np.abs(values))
                check(f"gradient of {name}", grads[0], values.reshape(leaf.shape), 0.0,
                      limits.reshape(leaf.shape))  # fmt: skip
                grads = grads[1:]
    r.check_kept()
    if LOOKS_AT_VALUES and not is_blind and counts.sum() > 1 and r.chance(0.1):
        options["max_rows"] = int(counts.sum()) - 1
        refused(
            lambda: ops.scored_linear_cross_entropy(hidden, matrix, target, **options),
            "cpfast::scored_linear_cross_entropy: max_rows: expected at least",
        )


class LinearRows:
    """Logits of a linear layer, scaled and capped, and how far off they may be.

    A sum of n products has n roundings at most of its float32, or float64, and each step that is
    computed in the operands' dtype has one of that: both relative to the sum of magnitudes.
    """

    def __init__(self, operands, options, dtype, size):
        self.hidden, self.weight, *bias = operands
        self.hidden = self.hidden.reshape(size, self.weight.shape[1])
        self.unit = PRODUCTS.get(dtype, FLOAT32)
        self.sum_unit = min(self.unit, FLOAT32)
        self.scale, self.cap = options["logit_scale"], options["softcap"]
        logits = self.scale * self.hidden @ self.weight.T
        sizes = self.scale * np.abs(self.hidden) @ np.abs(self.weight).T
        if bias:
            logits, sizes = logits + bias[0], sizes + np.abs(bias[0])
        off = self._off(self.weight.shape[1]) * sizes
        self.slope, self.slope_off = 1.0, 0.0
        if self.cap is not None:
            t = np.tanh(logits / self.cap)
            logits, self.slope = self.cap * t, 1 - t**2
            t_off = off / self.cap + 2 * self.unit * np.abs(t)
            self.slope_off = 2 * t_off + t_off**2 + 2 * self.unit
            off = off + 3 * self.unit * np.abs(logits)
        self.logits, self.off = logits, off.max(1, initial=0.0)

    def _off(self, terms):
        return terms * self.sum_unit + 4 * self.unit

    def gradients(self, expected: Expected, scale, counts):
        """Of hidden, weight and bias: values, and how far off they may be; scale is [N]."""
        with np.errstate(all="ignore"):
            grads = np.abs(expected.grads)
            dz = np.where(counts[:, None], expected.grads * self.slope, 0.0)
            off = expected.grads_off + self.unit * grads
            off = off * (self.slope + self.slope_off) + grads * self.slope_off
            off = np.where(counts[:, None], np.nan_to_num(off), 0.0) + self.unit * np.abs(dz)

            def factors(of_rows, scale):
                scaled = scale[:, None] * of_rows
                return self.scale * scaled, self.scale * scaled.T, scaled.T

            others = self.weight, self.hidden, np.ones((len(dz), 1))
            values = [a @ b for a, b in zip(factors(dz, scale), others, strict=True)]
            limits = [
                np.nan_to_num((a + self._off(len(b)) * size) @ np.abs(b))
                for a, size, b in zip(
                    factors(off, np.abs(scale)), factors(np.abs(dz), np.abs(scale)), others,
                    strict=True,
                )
            ]  # fmt: skip
        return values, limits


# ---- means over the elements of a sample


def elementwise_loss(r: Draws, name):
    """A call of a loss that is a mean over the elements of a sample."""
    is_mse = name == "scored_mse"
    most = r.one_of([20, 300, 200_000 if r.chance(0.05) else 3000])
    inner = [max(1, r.size(most))] if r.chance(0.7) else [max(1, r.size(9)), max(1, r.size(40))]
    shape = [r.size(40), *(inner if r.chance(0.9) else [])]
    dtype = r.one_of(FLOATS)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    gradient = "backward" if dtype == torch.float16 else r.one_of(["backward", "forward"])
    x = r.normal(shape, r.one_of([0.0, 1e-3, 1.0, 5.0, 30.0]))
    t = r.numpy.random(shape) if r.chance(0.5) else np.round(r.numpy.random(shape))
    if r.chance(0.1):
        x[r.numpy.random(shape) < 0.1] = np.nan
    if r.chance(0.1) and not is_mse:
        infinite = r.numpy.random(shape) < 0.2
        x[infinite], t = np.inf, np.round(t)
        x = np.where(infinite & (t == 0), -x, x)
    leaf = r.tensor(x, dtype, strided=True)
    target = r.tensor(t, r.one_of([dtype, wide]), strided=True)
    x, t = exact(leaf), exact(target)
    leaf.requires_grad_(r.chance(0.8))
    options = {"reduction": r.one_of(["none", "mean", "sum"]), "gradient": gradient}
    w = np.ones(shape[0])
    if r.chance(0.5):
        one = (shape[0], 1) if len(shape) > 1 or r.chance(0.5) else (shape[0],)
        options["weight"] = r.tensor(r.numpy.random(one), r.one_of(FLOATS), strided=True)
        w = exact(options["weight"]).reshape(-1)
    positive = np.ones(shape[1:])
    if not is_mse and r.chance(0.5):
        options["pos_weight"] = r.tensor(3 * r.numpy.random(shape[1:]), r.one_of(FLOATS))
        positive = exact(options["pos_weight"].to(wide))
    scores = ["loss", "el2n", *([] if is_mse else ["margin", "correct"])]
    score, table = r.one_of(scores), None
    if r.chance(0.5):
        before = r.normal(1 + r.below(40))
        table = r.written(before, torch.float32)
        index = r.tensor(r.numpy.integers(before.size, size=shape[0]), r.one_of(INTEGERS))
        before = exact(table)
        options |= {"table": table, "index": index, "score": score}
    found = getattr(ops, name)(leaf, target, **options)

    flat = (shape[0], max(1, int(np.prod(shape[1:]))))
    each = references.mse_of if is_mse else references.binary_cross_entropy_of
    columns, grads, sizes, off = each(x.reshape(flat), t.reshape(flat), positive.reshape(-1))
    rtol, small = 1e-11 if dtype == torch.float64 else SUMS, SMALLEST.get(wide, 1e-37)
    losses = columns[:, 0] * w
    with np.errstate(all="ignore"):
        factor = np.float64(1) / shape[0] if options["reduction"] == "mean" else 1.0
        if options["reduction"] == "none":
            check("loss", found.loss, losses, rtol, small)
        else:
            bound = np.nan_to_num(np.abs(losses).sum() * factor * rtol) + small
            check("loss", found.loss, losses.sum() * factor, 0.0, bound)
    # Squares of less than 1e-19 have no digits in float32.
    least = 1e-20 * flat[1] ** 0.5 if is_mse else 1e-37
    rtol = max(rtol, 2e-7)
    atol = {name: np.full(len(w), least) for name in scores}
    atol["el2n"] += np.nan_to_num(off) * rtol
    for i, column in enumerate(found[1:], 1):
        check(scores[i], column, columns[:, i], rtol, atol[scores[i]])
    if table is not None:
        expected, limits = before.copy(), np.zeros_like(before)
        for i, sample in enumerate(index.tolist()):
            expected[sample] = columns[i, scores.index(score)]
            limits[sample] = np.nan_to_num(abs(expected[sample])) * rtol + atol[score][i]
        check("table", table, expected, 1e-7, limits)
    if leaf.requires_grad:
        upstream = torch.as_tensor(r.numpy.uniform(-2, 2, found.loss.shape)).to(found.loss.dtype)
        if r.chance(0.3):
            upstream = torch.ones_like(upstream)
        (grad,) = torch.autograd.grad(found.loss, leaf, upstream)
        scale = (exact(upstream) * w * factor / flat[1]).reshape(-1, 1)
        expected = (grads * scale).reshape(shape)
        limits = SMALLEST.get(dtype, 1e-37) + np.nan_to_num(np.abs(sizes * scale)) * rtol
        rounding = 2 * ROUNDING.get(dtype, 0.0)
        check("gradient", grad, expected, rtol + rounding, limits.reshape(shape))
    r.check_kept()
    if LOOKS_AT_VALUES and not is_mse and x.size and r.chance(0.05):
        wrong = t.copy()
        wrong.flat[r.below(t.size)] = r.one_of([-0.5, 1.01, np.nan, np.inf])
        refused(
            lambda: ops.scored_binary_cross_entropy(leaf, torch.tensor(wrong)),
            "cpfast::scored_binary_cross_entropy: target[",
        )


def scored_binary_cross_entropy(r: Draws):
    elementwise_loss(r, "scored_binary_cross_entropy")


def scored_mse(r: Draws):
    elementwise_loss(r, "scored_mse")
