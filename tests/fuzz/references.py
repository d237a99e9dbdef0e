"""What the ops compute, in numpy's float64 and integers, from what their documentation says."""

from typing import NamedTuple

import numpy as np

M64 = (1 << 64) - 1

# ---- layers


def statistics_of(w, w0):
    """cosine_distance, l2_distance, norm, sign_flips, mean_abs of two flat arrays of float64."""
    with np.errstate(all="ignore"):
        flips = np.mean(np.sign(w) * np.sign(w0) < 0) if w.size else 0.0
        magnitude = np.mean(np.abs(w)) if w.size else 0.0
        return cosine_distance(w, w0), norm(w - w0), norm(w), flips, magnitude


def norm(values):
    largest = np.max(np.abs(values), initial=0.0)
    if largest == 0 or not np.isfinite(largest):
        return largest
    return largest * np.sqrt(np.sum((values / largest) ** 2))


def norms(rows):
    """Of each row of [N, L]; the squares of small numbers do not underflow."""
    largest = np.abs(rows).max(1, initial=0.0)[:, None]
    scaled = np.divide(rows, largest, out=np.zeros_like(rows), where=largest > 0)
    return largest[:, 0] * np.sqrt((scaled**2).sum(1))


def cosine_distance(w, w0):
    """Half the squared distance of the two unit vectors, which nothing cancels in."""
    a, b = norm(w), norm(w0)
    if not np.isfinite(a + b):
        return np.nan
    if a == 0 or b == 0:
        return 0.0 if a == b else 1.0
    return 0.5 * np.sum((w / a - w0 / b) ** 2)


def six_bits(ratio):
    """Rounded to six significant bits, halves away from zero."""
    mantissa, exponent = np.frexp(ratio)
    return np.ldexp(np.floor(mantissa * 64 + 0.5) / 64, exponent)


# ---- cross-entropy


class CrossEntropy(NamedTuple):
    """Of rows of logits [N, C], what is computed, and what its digits are those of."""

    loss: np.ndarray  # [N], without z_loss
    el2n: np.ndarray
    margin: np.ndarray
    correct: np.ndarray
    lse: np.ndarray  # the log of the sum of the exponentials
    top: np.ndarray  # the largest logit
    p: np.ndarray  # [N, C], and 1 - p, which keeps its digits so
    q: np.ndarray
    share: np.ndarray  # [N, C], what the target asks of each class, and all classes' together
    total: np.ndarray
    grad: np.ndarray  # [N, C], d loss / d x
    grad_terms: np.ndarray  # [N, C], how large the two are that it is the difference of
    el2n_terms: np.ndarray  # [N], the norm of those of p - asked


def cross_entropy_of(x, asked, y, smoothing, class_weight) -> CrossEntropy:
    """Of logits and distributions [N, C], classes [N] and weights [C]."""
    rows, best = np.arange(len(x)), np.argmax(x, 1)
    with np.errstate(all="ignore"):
        top = x[rows, best]
        below = top[:, None] - x
        others = np.exp(-below)
        others[rows, best] = 0.0
        sum_of_others = others.sum(1)
        rest = np.log1p(sum_of_others)
        p = others / (1 + sum_of_others)[:, None]
        p[rows, best] = 1 / (1 + sum_of_others)
        q = 1 - p
        q[rows, best] = sum_of_others / (1 + sum_of_others)

        share = class_weight * ((1 - smoothing) * asked + smoothing / x.shape[1])
        total = share.sum(1)
        nll = below + rest[:, None]
        # What nobody asks for costs nothing, though it be infinitely far.
        loss = np.where(share == 0, 0.0, share * nll).sum(1)
        # Where the share is almost all, the rest of it has digits of its own.
        unasked, remaining = 1 - asked, total[:, None] - share
        share_of_best, share[rows, best] = share[rows, best], 0.0
        remaining[rows, best] = share.sum(1)
        share[rows, best] = share_of_best
        # (p - asked) and (total p - share), of the smaller parts.
        parts = p, asked, unasked, q
        is_small = parts[0] + parts[1] < parts[2] + parts[3]
        residual = np.where(is_small, p - asked, unasked - q)
        residual_terms = np.where(is_small, p + asked, np.abs(unasked) + q)
        parts = total[:, None] * p, share, remaining, total[:, None] * q
        is_small = parts[0] + parts[1] < parts[2] + parts[3]
        grad = np.where(is_small, parts[0] - parts[1], parts[2] - parts[3])
        grad_terms = np.where(is_small, parts[0] + parts[1], parts[2] + parts[3])

        masked = x.copy()
        masked[rows, y] = -np.inf
        margin = x[rows, y] - masked.max(1)
        is_nan = ~np.isfinite(top)
        columns = [loss, norms(residual), margin]
        return CrossEntropy(
            *(np.where(is_nan, np.nan, column) for column in columns),
            np.where(is_nan, 0.0, best == y),
            np.where(is_nan, np.nan, top + rest), top, p, q, share, total,
            np.where(is_nan[:, None], np.nan, grad), grad_terms, norms(residual_terms),
        )  # fmt: skip


def binary_cross_entropy_of(x, t, positive):
    """loss, el2n, margin and correct of each row of [N, L], L times d loss / d x, and the sizes
    of what that and el2n are of differences of."""
    with np.errstate(all="ignore"):
        softplus = [np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))) for z in (x, -x)]
        parts = [1 - t, positive * t]
        each = sum(np.where(a == 0, 0.0, a * b) for a, b in zip(parts, softplus, strict=True))
        each = np.where(np.isnan(x), np.nan, each)
        p, q = (np.exp(-np.maximum(-z, 0)) / (1 + np.exp(-np.abs(z))) for z in (x, -x))
        residual = (1 - t) * p - t * q
        loss, el2n = each.mean(1), np.sqrt(np.sum(residual**2, 1))
        margin = np.where(t >= 0.5, x, -x).min(1)
        correct = ((t >= 0.5) == (x > 0)).all(1) & ~np.isnan(loss)
        terms = parts[0] * p, parts[1] * q
        off = np.sqrt(np.sum(((1 - t) * p + t * q) ** 2, 1))
        columns = np.stack([loss, el2n, margin, correct], 1)
        return columns, terms[0] - terms[1], sum(terms), off


def mse_of(x, t, _):
    """loss and el2n of each row of [N, L], L times d loss / d x, and their sizes."""
    squares = np.sum((x - t) ** 2, 1)
    grads = 2 * (x - t)
    columns = np.stack([squares / x.shape[1], np.sqrt(squares)], 1)
    return columns, grads, np.abs(grads), columns[:, 1]


# ---- random numbers, by their definitions in csrc/permutation.h and csrc/philox.h


def mix64(x):
    x = (x + 0x9E3779B97F4A7C15) & M64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M64
    return x ^ (x >> 31)


def key_of(*numbers):
    key = 0
    for number in numbers:
        key = mix64(key ^ (number & M64))
    return key


def philox(counters, key):
    """Philox4x32-10 of [..., 4] counters."""
    mask = np.uint64(0xFFFFFFFF)
    x, y, z, w = (counters[..., i].astype(np.uint64) for i in range(4))
    first, second = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = x * np.uint64(0xD2511F53), z * np.uint64(0xCD9E8D57)
        high = np.uint64(32)
        x, z = (b >> high) ^ y ^ np.uint64(first), (a >> high) ^ w ^ np.uint64(second)
        y, w = b & mask, a & mask
        first, second = (first + 0x9E3779B9) & 0xFFFFFFFF, (second + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([x, y, z, w], -1).astype(np.int64)


def permutation(n, key):
    """pi(0), ... pi(n - 1) of the keyed permutation of [0, n)."""
    bits = 6 if n <= 64 else (n - 1).bit_length()
    left_bits, right_bits = bits // 2, bits - bits // 2
    words = []
    for _ in range(8):
        key = mix64(key)
        words.append(key >> 32)

    def mixed(x):
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
        return x ^ (x >> 16)

    def step(x):
        left, right = x >> right_bits, x & ((1 << right_bits) - 1)
        for i in range(0, 8, 2):
            left = left ^ (mixed(right ^ words[i]) & ((1 << left_bits) - 1))
            right = right ^ (mixed(left ^ words[i + 1]) & ((1 << right_bits) - 1))
        return (left << right_bits) | right

    x = step(np.arange(n, dtype=np.uint64))
    while (out := x >= n).any():
        x[out] = step(x[out])
    return x.astype(np.int64)


# ---- samples

SUBSET, SHUFFLE, BERNOULLI = 1, 2, 3


def selection(scores, keep, seed, epoch, stream, shuffle, is_exact):
    """Indices and weights of what is kept."""
    scores = scores.astype(np.float64)
    finite = scores[np.isfinite(scores)]
    with np.errstate(invalid="ignore"):
        is_below = scores < (np.mean(finite) if finite.size else -np.inf)
    below = np.flatnonzero(is_below)
    key = (seed, epoch, stream)
    if is_exact:
        chosen = permutation(below.size, key_of(*key, SUBSET)) < np.floor(keep * below.size)
    else:
        counters = np.zeros((below.size, 4), np.uint64)
        counters[:, 0] = below // 128 * 32 + below % 32
        words = philox(counters, key_of(*key, BERNOULLI))
        words = words[np.arange(below.size), below // 32 % 4]
        chosen = words < np.ceil(keep * 2**32)
    kept = np.sort(np.concatenate([np.flatnonzero(~is_below), below[chosen]]))
    if shuffle:
        kept = kept[permutation(kept.size, key_of(*key, SHUFFLE))]
    return kept, np.where(is_below[kept], 1 / keep, 1.0)


def slice_of(indices, count, start, size, key):
    count = min(max(count, 0), len(indices))
    order = np.asarray(indices)[permutation(count, key_of(*key, SHUFFLE))]
    return [int(order[p]) if 0 <= p < count else -1 for p in range(start, start + size)]


# ---- images


def augmented(image, sample, repeat, key, flip, shift, rotation, crop, cutout):
    """One sample before its numbers, [H, W, C] float64 in [0, 255], and where it is cut out."""
    height, width, _ = image.shape
    counters = np.array([[sample & 0xFFFFFFFF, sample >> 32, repeat, b] for b in (0, 1)])
    first, second = philox(counters, key_of(*key, 0x6175676D656E74)).tolist()
    if crop > 0:
        rows = second[0] * (2 * crop + 1) >> 32, second[1] * (2 * crop + 1) >> 32
        padded = np.pad(image, ((crop, crop), (crop, crop), (0, 0)), mode="reflect")
        image = padded[rows[0] : rows[0] + height, rows[1] : rows[1] + width]
    pixels = image.astype(np.float64)
    if shift > 0 or rotation > 0:
        angle, down, right = ((word + 0.5) / 2**31 - 1 for word in first[:3])
        pixels = warped(pixels, np.radians(rotation) * angle, shift * down, shift * right)
    if flip and first[3] >> 31:
        pixels = pixels[:, ::-1]
    hole = np.zeros((height, width, 1), bool)
    if cutout > 0:
        row = (second[2] * height >> 32) - cutout // 2
        column = (second[3] * width >> 32) - cutout // 2
        hole[max(0, row) : max(0, row + cutout), max(0, column) : max(0, column + cutout)] = True
    return pixels, hole


def area_means(image, size):
    """Means over equal areas, which cut pixels too: of each pixel as many times as makes them
    whole."""
    for axis, n in enumerate(size):
        pixels = np.moveaxis(image, axis, 0)
        fine = np.repeat(pixels, n, 0)
        means = fine.reshape(n, len(pixels), *pixels.shape[1:]).mean(1)
        image = np.moveaxis(means, 0, axis)
    return image


def warped(image, angle, down, right):
    height, width, _ = image.shape
    r, c = np.mgrid[:height, :width].astype(np.float64)
    r += down * height - (height - 1) / 2
    c += right * width - (width - 1) / 2
    row = np.cos(angle) * r - np.sin(angle) * c + (height - 1) / 2
    column = np.sin(angle) * r + np.cos(angle) * c + (width - 1) / 2
    row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    bottom, beside = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    v, u = (row - top)[..., None], (column - left)[..., None]
    above = image[top, left] * (1 - u) + image[top, beside] * u
    return above * (1 - v) + (image[bottom, left] * (1 - u) + image[bottom, beside] * u) * v
