"""One random call of each op, compared with its reference."""

import numpy as np
import torch

from cpfast import ops

from . import references
from .draws import (
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
from .losses import (
    scored_binary_cross_entropy,
    scored_cross_entropy,
    scored_linear_cross_entropy,
    scored_mse,
)

# |w| / |w0|, and sizes of the weights: whatever float32 holds.
NORM_RATIOS = (1e-6, 1e6)
SIZES = (1e-42, 1e36)
NOT_NUMBERS = (np.nan, np.inf, -np.inf)
# What is promised of rotations.
ROTATION = {"rtol": 1e-4, "atol": 1e-9}


def layer(r: Draws):
    shape = [r.size(40) for _ in range(r.below(4))] if r.chance(0.7) else [r.size(40000)]
    dtype = r.one_of(FLOATS)
    ref_dtype = dtype if r.chance(0.6) else r.one_of(FLOATS)
    narrow = torch.float16 in (dtype, ref_dtype)
    size = 1.0 if narrow or r.chance(0.5) else np.exp(r.numpy.uniform(*np.log(SIZES)))
    w0 = r.normal(shape, size)
    w = w0.copy()
    if r.chance(0.5):
        most = np.log(NORM_RATIOS) * r.one_of([0.01, 0.1, 0.1 if narrow else 1.0])
        ratio = np.exp(r.numpy.uniform(*most))
        w, size = w * ratio, size * ratio
    noise = r.one_of([0.0, 1e-6, 1e-3, 0.1])
    w = w + noise * r.normal(shape, size)
    kind = r.below(20)
    if kind == 0:
        w = w * 0
    elif kind == 1:
        w0 = w0 * -0.0
    elif kind == 2:
        w = -w
    elif kind == 3 and w.size:
        r.one_of([w, w0]).flat[r.below(w.size)] = r.one_of(NOT_NUMBERS)
    return (r.tensor(w, dtype, strided=True), r.tensor(w0, ref_dtype, strided=True))


def layers(r: Draws):
    params, refs = zip(*(layer(r) for _ in range(1 + r.below(4))), strict=True)
    flat = [(exact(w).ravel(), exact(w0).ravel()) for w, w0 in zip(params, refs, strict=True)]
    norms = None
    if r.chance(0.3):
        sums = [np.sum(w0**2) for _, w0 in flat]
        fits = all(2.0**-100 < square < 2.0**120 for square in sums)
        norms = r.tensor(np.array(sums), r.one_of(FLOATS[:2]) if fits else torch.float64)
    return params, refs, flat, norms


def check_rotations(rotations, flat):
    for i, (w, w0) in enumerate(flat):
        check(f"cosine_distance[{i}]", rotations[i], references.cosine_distance(w, w0), **ROTATION)


def layer_rotation(r: Draws):
    params, refs, flat, norms = layers(r)
    rotations = ops.layer_rotation(params, refs, norms)
    check_rotations(rotations, flat)
    plan = ops.LayerPlan(params, refs, norms)
    check("LayerPlan.layer_rotation", plan.layer_rotation(), exact(rotations))
    rows = 1 + r.below(4)
    first = r.one_of([0, 1, 5, 2**62])
    history = r.written(np.full((rows, len(params)), 7.0), torch.float32)
    cursor = r.written(np.array(first))
    plan.record(history, cursor)
    expected = np.full((rows, len(params)), 7.0)
    expected[first % rows] = exact(rotations)
    check("history", history, expected)
    check("cursor", cursor, first + 1)


def layer_statistics(r: Draws):
    params, refs, flat, norms = layers(r)
    found = ops.layer_statistics(params, refs, norms)
    check_rotations(found.cosine_distance, flat)
    check_statistics(found, flat)
    planned = ops.LayerPlan(params, refs, norms).layer_statistics()
    for name, one, other in zip(found._fields, found, planned, strict=True):
        check(f"LayerPlan.layer_statistics.{name}", other, exact(one))


def check_statistics(found, flat):
    expected = np.array([references.statistics_of(w, w0) for w, w0 in flat])
    finite = np.isfinite(expected[:, 0])
    for i, name in enumerate(("l2_distance", "norm", "sign_flips", "mean_abs"), 1):
        # Differences below 1e-9 of the norm may be lost in the distance.
        atol = 1e-45 + (expected[:, 2] * 1e-9 if i == 1 else 0.0)
        actual, atol = getattr(found, name)[torch.from_numpy(finite)], (atol + 0 * finite)[finite]
        check(name, actual, expected[finite, i], SUMS, atol)


def layer_sums(r: Draws):
    """Of whole layers, and of two parts of each, which add up to them."""
    params, refs, flat, _ = layers(r)
    count = len(params)
    given = [None, np.ones(count), np.exp(r.numpy.uniform(-1, 1, count))]
    ratio = r.one_of(given)
    if ratio is not None:
        ratio = r.tensor(ratio, r.one_of(FLOATS[:2]))
    sums = ops.layer_sums(params, refs, ratio)
    check("LayerPlan.layer_sums", ops.LayerPlan(params, refs).layer_sums(ratio), exact(sums))
    check_sums(sums, flat, np.ones(count) if ratio is None else exact(ratio))

    cuts = [r.below(len(w) + 1) for w, _ in flat]
    tensors = [[t.reshape(-1) for t in pair] for pair in zip(params, refs, strict=True)]
    lists = [
        [[pair[i][part(cut)] for pair, cut in zip(tensors, cuts, strict=True)] for i in (0, 1)]
        for part in (lambda cut: slice(cut), lambda cut: slice(cut, None))
    ]
    both = sum(ops.layer_sums(*parts) for parts in lists)
    best = ops.ratio_of_sums(both)
    rotations = ops.rotation_of_sums(sum(ops.layer_sums(*parts, best) for parts in lists), best)
    check_rotations(rotations, flat)
    numel = torch.tensor([len(w) for w, _ in flat])
    again = ops.layer_sums(params, refs, best)
    found = ops.statistics_of_sums(again, numel, best)
    check_rotations(found.cosine_distance, flat)
    check_statistics(found, flat)


def check_sums(sums, flat, ratios):
    for i, ((w, w0), ratio) in enumerate(zip(flat, ratios, strict=True)):
        if not (np.isfinite(w).all() and np.isfinite(w0).all()):
            continue
        with np.errstate(over="ignore", under="ignore"):
            d = w - references.six_bits(ratio) * w0
            terms = [d * d, d * w0, w * w, w0 * w0, np.abs(w), np.sign(w) * np.sign(w0) < 0]
            expected = np.array([term.sum(dtype=np.float64) for term in terms])
            # Each difference is off by the rounding of what it is of.
            off = 2.0**-22 * np.sqrt(expected[2] + ratio**2 * expected[3])
            atol = np.zeros(6)
            atol[0] = off * (2 * np.sqrt(expected[0]) + off)
            atol[1] = off * np.sqrt(expected[3]) + SUMS * np.abs(terms[1]).sum()
        check(f"sums[:, {i}]", sums[:, i], expected, SUMS, atol + 1e-300)


def select_samples(r: Draws):
    n = r.size(r.one_of([200, 9000]))
    scores = r.normal(n, r.one_of([1.0, 1e-30, 1e37])).astype(np.float32)
    kind = r.below(8)
    if kind == 0:
        scores = np.full(n, np.float32(r.numpy.random()))
    elif kind == 1:
        scores = np.round(scores)
    elif kind == 2:
        scores[r.numpy.random(n) < 0.2] = r.one_of([np.nan, np.inf, -np.inf])
    elif kind == 3:
        scores[:] = r.one_of([np.nan, np.inf])
    keep = r.one_of([1.0, 0.5, 1e-300, 2**-32, float(1 - r.numpy.random())])
    numbers = {name: r.number() for name in ("seed", "epoch", "stream")}
    shuffle, subset = r.chance(0.5), r.one_of([None, "exact", "bernoulli"])
    dtype = r.one_of(INTEGERS)
    tensor = r.tensor(scores)
    found = ops.select_samples(
        tensor, keep=keep, **numbers, shuffle=shuffle, subset=subset, dtype=dtype
    )
    kept, weights = references.selection(
        scores, keep, *numbers.values(), shuffle, subset != "bernoulli"
    )
    check("count", found.count, kept.size)
    check("indices", found.indices, np.pad(kept, (0, n - kept.size), constant_values=-1))
    check("weights", found.weights, np.pad(weights, (0, n - kept.size)), 1e-7)
    if found.indices.dtype != dtype:
        raise Wrong(f"indices: expected {dtype}, got {found.indices.dtype}")


def shuffled_slice(r: Draws):
    n = r.size(r.one_of([100, 6000]))
    values = r.numpy.integers(2**31, size=n)
    indices = r.tensor(values, r.one_of(INTEGERS))
    # A count of more than there are is that of all, and a negative one of none.
    count = r.one_of([n, r.below(n + 1), 0, n + 1 + r.below(9), 2**63 - 1, -1, -(2**63)])
    count_tensor = r.tensor(np.array(count))
    size = r.size(r.one_of([20, 6000]))
    start = r.one_of([0, r.below(n + 1), n, 2**63 - 1, 2**63 - size, 2**32])
    start = min(start, 2**63 - 1)
    as_tensor = r.chance(0.5)
    if as_tensor and r.chance(0.3):
        start = r.one_of([-1, -size, -size - 1, -(2**63), -r.below(n + 1)])
    numbers = {name: r.number() for name in ("seed", "epoch", "stream")}
    given = r.tensor(np.array(start)) if as_tensor else start
    found = ops.shuffled_slice(indices, count_tensor, given, size, **numbers)
    expected = references.slice_of(values, count, start, size, tuple(numbers.values()))
    check("slice", found, np.array(expected, np.int64).reshape(size))
    if r.chance(0.1):
        refused(
            lambda: ops.shuffled_slice(indices, count_tensor, -1 - r.below(9), size, **numbers),
            "cpfast::shuffled_slice: start: expected",
        )


def record_scores(r: Draws):
    n, batch = 1 + r.size(400), r.size(200)
    table = r.written(r.normal(n), torch.float32)
    expected = exact(table)
    at = r.numpy.integers(n, size=batch)
    values = r.normal(batch, r.one_of([1.0, 1e-42, 1e38]))
    if batch and r.chance(0.2):
        values[r.below(batch)] = r.one_of([np.nan, np.inf, -np.inf, -0.0])
    index = r.tensor(at, r.one_of(INTEGERS), strided=True)
    given = r.tensor(values, r.one_of(FLOATS), strided=True)
    ops.record_scores(table, index, given)
    for i, value in zip(at, given.float().tolist(), strict=True):
        expected[i] = value
    check("scores", table, expected)
    if LOOKS_AT_VALUES and batch and r.chance(0.2):
        at[r.below(batch)] = r.one_of([n, -1, 2**31 - 1, -(2**31)])
        wrong = r.tensor(at, r.one_of(INTEGERS), strided=True)
        refused(lambda: ops.record_scores(table, wrong, given), "cpfast::record_scores: index[")
        check("scores after a refused index", table, expected)


def augment_batch(r: Draws):
    n, height, width = 1 + r.below(5), 1 + r.size(40), 1 + r.size(40)
    channels, batch = 1 + r.below(4), r.size(20)
    pixels = r.numpy.integers(256, size=(n, height, width, channels)).astype(np.uint8)
    images = r.tensor(pixels)
    at = r.numpy.integers(n, size=batch)
    index = r.tensor(at, r.one_of(INTEGERS), strided=True)
    key = {"seed": r.number(), "epoch": r.number()}
    repeats = r.numpy.integers(2**31, size=batch)
    if r.chance(0.5):
        repeat = r.tensor(repeats, r.one_of(INTEGERS), strided=True)
    else:
        repeat = r.one_of([0, 1, 2**32 - 1])
        repeats = np.full(batch, repeat)
    warps = r.chance(0.5)
    crop = r.one_of([0, r.below(min(height, width))])
    geometry = {
        "flip": r.chance(0.5),
        "shift": r.one_of([0.0, 0.1, 1.0]) if warps else 0.0,
        "rotation": r.one_of([0.0, 15.0, 180.0]) if warps else 0.0,
        "crop": crop,
        "cutout": r.one_of([0, r.below(max(height, width) + 1)]),
    }
    mean = std = None
    mean_image, deviation = np.zeros(channels), np.ones(channels)
    if r.chance(0.6):
        mean = mean_image = r.numpy.random(channels)
        if r.chance(0.4):
            mean = r.tensor(r.numpy.random((height, width, channels)), torch.float32)
            mean_image = exact(mean)
    if r.chance(0.6):
        deviation = 0.01 + r.numpy.random(channels)
        std = r.one_of([deviation.tolist(), torch.tensor(deviation)])
    dtype = r.one_of([torch.float32, torch.float16, torch.bfloat16])
    size = r.one_of([None, (1 + r.below(height), 1 + r.below(width))])
    found = ops.augment_batch(
        images, index, **key, repeat=repeat, **geometry, mean=mean, std=std, dtype=dtype, size=size
    )
    if not found.is_contiguous(memory_format=torch.channels_last) and found.numel():
        raise Wrong("the result is not channels last in memory")
    # Float32 sums of a value and a mean, each divided by the deviation.
    atol = ((1.0 + np.abs(mean_image)) / deviation).max() * (2e-6 if warps else 4e-7)
    for i, (sample, times) in enumerate(zip(at.tolist(), repeats.tolist(), strict=True)):
        shown, hole = references.augmented(
            pixels[sample], sample, times, tuple(key.values()), **geometry
        )
        expected = np.where(hole, 0.0, (shown / 255 - mean_image) / deviation)
        sums = 0.0
        if size is not None:
            # Half a unit in the last place for each addition, of a column and then of a row.
            additions = sum(2 + -(-n // m) for n, m in zip((height, width), size, strict=True))
            sums = additions * 2.0**-24 * np.abs(expected).max()
            expected = references.area_means(expected, size)
        smallest = SMALLEST.get(dtype, 1e-37)
        check(
            f"image {i}", found[i].permute(1, 2, 0), expected, ROUNDING.get(dtype, 0.0),
            atol + sums + smallest,
        )  # fmt: skip
    if LOOKS_AT_VALUES and batch and r.chance(0.1):
        at[r.below(batch)] = r.one_of([n, -1, 2**31 - 1, -(2**31)])
        refused(
            lambda: ops.augment_batch(images, torch.tensor(at), **key),
            "cpfast::augment_batch: index[",
        )


CALLS = {
    call.__name__: call
    for call in (
        layer_rotation,
        layer_statistics,
        layer_sums,
        scored_binary_cross_entropy,
        scored_cross_entropy,
        scored_linear_cross_entropy,
        scored_mse,
        select_samples,
        shuffled_slice,
        record_scores,
        augment_batch,
    )
}
