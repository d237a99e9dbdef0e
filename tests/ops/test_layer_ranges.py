"""Layers of any length, and of any ratio to their reference."""

import math

import numpy as np
import pytest
import torch

import cpfast
from cpfast import ops, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
RATIOS = [1e-6, 1e-3, 0.1, 0.5, 0.9, 0.97, 1.0, 1.03, 1.5, 10.0, 1e3, 1e6]
DISTANCES = [0, 1e-9, 1e-6, 1e-3, 0.5, 1, 2]
SMALLEST, LARGEST = 1.4e-45, torch.finfo(torch.float32).max


def exact(w, w0):
    """Distance, |w - w0|, |w| and mean |w| in extended precision, of what the tensors hold."""
    a, b = (t.detach().cpu().double().numpy().astype(np.longdouble).ravel() for t in (w, w0))
    norm, ref_norm = np.sqrt(a @ a), np.sqrt(b @ b)
    turned = a / norm - b / ref_norm
    return [
        float(x) for x in (turned @ turned / 2, np.sqrt((a - b) @ (a - b)), norm, abs(a).mean())
    ]


def at_distance(distance, numel=5000):
    """Two float64 vectors of norm sqrt(numel), so that their elements are around 1."""
    g = torch.Generator().manual_seed(numel)
    ref, other = torch.randn(2, numel, generator=g, dtype=torch.float64)
    ref /= ref.norm()
    other -= other @ ref * ref
    other /= other.norm()
    sine = math.sqrt(distance * (2 - distance))
    return ((1 - distance) * ref + sine * other) * numel**0.5, ref * numel**0.5


def assert_right(statistics, params, refs, rtol=1e-4, atol=1e-9):
    wanted = torch.tensor([exact(*pair) for pair in zip(params, refs, strict=True)]).T
    rows = statistics.cosine_distance, statistics.l2_distance, statistics.norm, statistics.mean_abs
    actual = [row.cpu().double() for row in rows]
    torch.testing.assert_close(actual[0], wanted[0].double(), rtol=rtol, atol=atol)
    for row, expected in zip(actual[1:], wanted[1:].double(), strict=True):
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-45)


def every_way(params, refs):
    """The statistics of the functions and of plans, which are equal to the bit, and the twin's."""
    statistics = ops.layer_statistics(params, refs)
    plan = ops.LayerPlan(params, refs)
    same = [
        ops.layer_rotation(params, refs),
        *(plan.layer_rotation() for _ in range(3)),
        plan.layer_statistics().cosine_distance,
    ]
    wanted = statistics.cosine_distance.view(torch.int32)
    assert all(torch.equal(rotation.view(torch.int32), wanted) for rotation in same)
    again = torch.stack(plan.layer_statistics()).view(torch.int32)
    assert torch.equal(again, torch.stack(statistics).view(torch.int32))
    return statistics, reference.layer_statistics(params, refs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ref_dtype", DTYPES)
def test_any_ratio_of_norms_at_any_distance(device, dtype, ref_dtype):
    params, refs = [], []
    for ratio in RATIOS:
        # Around 1 if it can be: float16 ends at 65,504 and has few digits below 1e-4.
        scale = ratio**0.5
        for distance in DISTANCES:
            w, w0 = at_distance(distance)
            params.append((w * scale).to(device, dtype))
            refs.append((w0 / scale).to(device, ref_dtype))
    for statistics in every_way(params, refs):
        assert_right(statistics, params, refs)


@pytest.mark.parametrize("ratio", [1 - 1 / 32, 1 + 1 / 32, 63 / 64, 65 / 64, 127 / 128 * 0.7])
def test_what_is_constant_rounds_alike_and_is_right_all_the_same(device, ratio):
    # Every addition errs the same way: the worst case of float32 sums.
    w0 = torch.full((100_003,), 1.1, device=device)
    w = ratio * w0
    w[::1000] += 1e-4
    for statistics in every_way([w], [w0]):
        assert_right(statistics, [w], [w0])


@pytest.mark.parametrize("ref_scale", [1e-38, 1e-23, 1e-21, 1e-10, 1.0, 1e10, 1e19, 1e30, 1e37])
@pytest.mark.parametrize("scale", [1e-38, 1e-23, 1e-21, 1e-10, 1.0, 1e10, 1e19, 1e30, 1e37])
def test_every_finite_float32(device, scale, ref_scale):
    pairs = [at_distance(distance, 700) for distance in (0, 1e-3, 0.5, 2)]
    params = [(w * scale).float().to(device) for w, _ in pairs]
    refs = [(w0 * ref_scale).float().to(device) for _, w0 in pairs]
    params += [refs[0].clone(), -refs[0]]
    refs += [refs[0], refs[0]]
    for statistics in every_way(params, refs):
        assert_right(statistics, params, refs)


def test_the_ends_of_float32(device):
    def full(value, numel=64):
        return torch.full((numel,), value, device=device)

    one = full(0.0)
    one[3] = 1e-30
    pairs = [
        (full(1e20), full(1e20)),
        (full(1e38), -full(1e38)),
        (full(LARGEST, 1), -full(LARGEST / 2, 1)),
        (full(SMALLEST), full(SMALLEST)),
        (full(SMALLEST), -full(SMALLEST)),
        (full(SMALLEST), full(1e37)),
        (full(1e37), full(SMALLEST)),
        (one, full(1.0)),
        (full(1e20, 300_000), full(1.0, 300_000)),
    ]
    params, refs = zip(*pairs, strict=True)
    for statistics in every_way(params, refs):
        assert_right(statistics, params, refs)


def test_zeros_of_one_side_among_extremes(device):
    zero, tiny = torch.zeros(5, device=device), torch.full((5,), 1e-30, device=device)
    params, refs = [zero, tiny, zero, -zero], [tiny, zero, zero, zero]
    for statistics in every_way(params, refs):
        assert statistics.cosine_distance.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_against_anything(device, bad, given):
    broken = torch.ones(70, device=device)
    broken[7] = bad
    others = [torch.full((70,), value, device=device) for value in (0.0, 1.0, 1e-30, 1e30)]
    params, refs = [broken] * 4, others
    if not given:
        params, refs = [*params, *others], [*refs, *[broken] * 4]
    norms = torch.stack([r.double().square().sum() for r in refs]) if given else None
    for of in (ops, reference):
        assert of.layer_rotation(params, refs, norms).isnan().all()
    plan = ops.LayerPlan(params, refs, norms)
    assert plan.layer_rotation().isnan().all()
    assert plan.layer_statistics().cosine_distance.isnan().all()


def test_a_plan_forgets_what_it_measured_before(device):
    w, ref = at_distance(0.01, 9001)
    params, refs = [w.float().to(device)], [ref.float().to(device)]
    plan, start = ops.LayerPlan(params, refs), params[0].clone()
    for scale in (1.0, 0.5, 1e-25, 3.0, 1e25, 0.0, math.nan, 1e-4, 1.0):
        params[0].copy_(scale * start)
        for _ in range(2):
            expected = ops.layer_rotation(params, refs).view(torch.int32)
            assert torch.equal(plan.layer_rotation().view(torch.int32), expected)


def test_given_norms_at_any_ratio(device):
    pairs = [at_distance(1e-3, 3000) for _ in RATIOS]
    params = [(ratio * w).float().to(device) for ratio, (w, _) in zip(RATIOS, pairs, strict=True)]
    refs = [w0.float().to(device) for _, w0 in pairs]
    norms = torch.stack([r.double().square().sum() for r in refs])
    for of in (ops, reference):
        assert_right(of.layer_statistics(params, refs, norms), params, refs)


def pieces(tensors):
    return [
        [part for part in t.split(n)] for t, n in zip(tensors, (1, 700, 4097, 33_333), strict=True)
    ]


def test_sums_of_pieces_are_those_of_the_whole(device):
    drawn = [at_distance(d, n) for d, n in ((0.5, 3), (1e-6, 5000), (1e-3, 9001), (1, 100_003))]
    scales = [1.0, 0.3, 1e20, 1e-22]
    params = [(s * w).float().to(device) for s, (w, _) in zip(scales, drawn, strict=True)]
    refs = [w0.float().to(device) for _, w0 in drawn]

    def sums_of_pieces(ratio):
        columns = []
        for layer, parts in enumerate(zip(pieces(params), pieces(refs), strict=True)):
            own = None if ratio is None else ratio[layer].expand(len(parts[0])).contiguous()
            columns.append(ops.layer_sums(*parts, own).sum(1))
        return torch.stack(columns, dim=1)

    whole, first = ops.layer_sums(params, refs), sums_of_pieces(None)
    torch.testing.assert_close(first[2:], whole[2:], rtol=1e-6, atol=0)
    ratio = ops.ratio_of_sums(first)
    assert torch.equal(ratio, ops.ratio_of_sums(whole))
    assert torch.equal(ratio, ops.ratio_of_sums(ops.layer_sums(params, refs, ratio)))
    sums, numel = sums_of_pieces(ratio), torch.tensor([p.numel() for p in params], device=device)
    wanted = ops.layer_statistics(params, refs)
    rotation = ops.rotation_of_sums(sums, ratio)
    torch.testing.assert_close(rotation, wanted.cosine_distance, rtol=1e-6, atol=1e-11)
    for actual, expected in zip(ops.statistics_of_sums(sums, numel, ratio), wanted, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-11)


def test_rows_of_sums_have_names_and_a_plan_gives_the_same(device):
    params, refs = [torch.tensor([1.0, -2, 0], device=device)], [torch.ones(3, device=device)]
    ratio = torch.tensor([2.0], dtype=torch.float64, device=device)
    plan = ops.LayerPlan(params, refs)
    for given, d in ((None, [0, -3, -1]), (ratio, [-1, -4, -2]), (ratio.float(), [-1, -4, -2])):
        sums = ops.layer_sums(params, refs, given)
        assert ops.LayerSums(*sums.flatten().tolist()) == ops.LayerSums(
            difference_squared=sum(x * x for x in d),
            difference_times_ref=sum(d),
            squared=5,
            ref_squared=3,
            magnitude=3,
            sign_flips=1,
        )
        assert torch.equal(plan.layer_sums(given), sums)
        assert torch.equal(reference.layer_sums(params, refs, given), sums)
        own = None if given is None else given.double()
        before = plan.layer_rotation()
        torch.testing.assert_close(ops.rotation_of_sums(sums, own), before)


def test_any_ratio_will_do_for_sums(device):
    w, w0 = (t.float().to(device) for t in at_distance(0.3, 4321))
    for ratio in (1e-3, 0.123456789, 0.9, 7.0, 1e30, 1e-30):
        given = torch.tensor([ratio], dtype=torch.float64, device=device)
        sums, twin = (of.layer_sums([w], [w0], given) for of in (ops, reference))
        torch.testing.assert_close(sums, twin, rtol=1e-5, atol=1e-3)
    for ratio in (math.nan, math.inf, 0.0, -1.0):
        given = torch.tensor([ratio], dtype=torch.float64, device=device)
        assert ops.layer_sums([w], [w0], given).shape == (6, 1)


def test_sums_of_another_shape_are_refused():
    sums = ops.layer_sums([torch.ones(3)] * 2, [torch.ones(3)] * 2)
    message = r"sums: expected float64 \[6, L\] of layer_sums, got float64 \[2, 6\]"
    with pytest.raises(RuntimeError, match=message):
        ops.rotation_of_sums(sums.T)
    with pytest.raises(RuntimeError, match="sums: .* got float32"):
        ops.ratio_of_sums(sums.float())
    with pytest.raises(RuntimeError, match=r"ratio: expected shape \[2\], got \[1\]"):
        ops.rotation_of_sums(sums, torch.ones(1))
    with pytest.raises(TypeError, match="ratio: expected a tensor, got 1"):
        ops.layer_sums([torch.ones(3)], [torch.ones(3)], 1)
    with pytest.raises(TypeError, match="sums: expected a tensor"):
        ops.ratio_of_sums([1.0])


@pytest.mark.skipif(cpfast.backend() == "reference", reason="the twin checks nothing")
def test_a_ratio_of_another_shape_is_refused():
    with pytest.raises(RuntimeError, match=r"ratio: expected shape \[1\], got \[2\]"):
        ops.layer_sums([torch.ones(3)], [torch.ones(3)], torch.ones(2))
    with pytest.raises(RuntimeError, match="ratio: expected dtype float64, got int64"):
        ops.layer_sums([torch.ones(3)], [torch.ones(3)], torch.ones(1, dtype=torch.int64))


def test_norms_whose_squares_have_no_quotient(device):
    w, w0 = (torch.tensor(x, dtype=torch.float64, device=device) for x in ([3.0, 4.0], [4.0, 3.0]))
    for up, down in ((1e150, 1e-150), (1e-150, 1e150)):
        found = ops.layer_rotation([w * up], [w0 * down])
        torch.testing.assert_close(found.cpu(), torch.tensor([0.04]), rtol=1e-5, atol=0)
