"""The CUDA kernels of layer_statistics, run on the CPU by cuda_emulation."""

import math
import struct

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

# Layers: around the widths of a vector, a warp, a block, its unrolled vectors, and a tile.
SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 255, 256, 257, 1023, 1024, 1025, 2047, 2048, 2049]
SIZES += [4095, 4096, 4097, 8191, 8192, 8193, 12345]


def layer(numel, dtype=torch.float32, ref_dtype=torch.float32, seed=0):
    g = generator(numel, seed)
    ref = torch.randn(numel, generator=g, dtype=torch.float64)
    param = ref + 0.01 * torch.randn(numel, generator=g, dtype=torch.float64)
    return param.to(dtype), ref.to(ref_dtype)


def check_layers(emulated, params, refs, ref_sq_norms=None):
    expected = cpu.layer_statistics(params, refs, ref_sq_norms)
    (actual,) = emulated("layer_statistics", params, refs, ref_sq_norms)
    # The distance is what is left of a difference of float32 sums, which add in another order.
    assert_close(actual[0], expected[0], rtol=3e-5, atol=1e-8)
    assert_close(actual[1:], expected[1:], rtol=1e-6)
    assert is_same(actual[3], expected[3])
    (rotation,) = emulated("layer_rotation", params, refs, ref_sq_norms)
    assert is_same(rotation, actual[0])
    return actual


@pytest.mark.parametrize("ref_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_of_every_size(emulated, dtype, ref_dtype):
    pairs = [layer(n, dtype, ref_dtype) for n in (0, *SIZES, 0)]
    check_layers(emulated, *zip(*[[guarded(t) for t in pair] for pair in pairs], strict=True))


@pytest.mark.parametrize("ref_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_address_of_a_layer_changes_no_bit(emulated, dtype, ref_dtype):
    # Every distance from a multiple of 16 bytes, alike and not.
    starts = [(None, None), *((a, a) for a in range(8)), *((a, (3 * a + 1) % 8) for a in range(8))]
    for numel in (5, 1000, 4099, 9001):
        param, ref = layer(numel, dtype, ref_dtype)
        params, refs = zip(*[(guarded(param, a), guarded(ref, b)) for a, b in starts], strict=True)
        actual = check_layers(emulated, params, refs)
        assert is_same(actual, actual[:, :1].expand_as(actual))


# Layers travel to the kernels 80 at a time.
@pytest.mark.parametrize("count", [1, 80, 81, 161, 400])
def test_many_layers_of_which_some_are_empty_zero_or_not_finite(emulated, count):
    g = generator(count)

    def one_of(choices):
        return choices[torch.randint(len(choices), (), generator=g).item()]

    pairs = []
    for index in range(count):
        numel = one_of([0, 0, 1, 3, 100, 4096, 4097, 9000])
        param, ref = layer(numel, one_of(DTYPES), one_of(DTYPES), seed=index)
        spoil = one_of([None] * 6 + [NAN, INF, "param", "ref", "both"])
        if spoil in ("param", "both"):
            param.zero_()
        if spoil in ("ref", "both"):
            ref.mul_(-0.0)
        if numel and spoil in (NAN, INF):
            param[one_of(range(numel))] = spoil
        pairs.append((guarded(param, one_of(range(4))), guarded(ref, one_of(range(4)))))
    params, refs = zip(*pairs, strict=True)
    actual = check_layers(emulated, params, refs)
    for index in range(0, count, 10):
        pair = params[index : index + 1], refs[index : index + 1]
        (alone,) = emulated.run("layer_statistics", *pair, None)
        assert is_same(actual[:, index : index + 1], alone)
    norms = torch.stack([ref.double().square().sum() for ref in refs])
    check_layers(emulated, params, refs, 4 * norms)


def test_a_thousand_tiny_layers(emulated):
    params, refs = zip(*[layer(index % 40, seed=index) for index in range(1003)], strict=True)
    check_layers(emulated, params, refs)


def test_only_empty_layers(emulated):
    empty = [torch.empty(0)] * 5
    check_layers(emulated, empty, empty)
    check_layers(emulated, empty, empty, torch.tensor([0.0, 1, 0, 2, 0], dtype=torch.float64))


def test_layers_of_any_strides(emulated):
    shape = (8, 16, 5, 5)
    param, ref = (t.reshape(shape) for t in layer(math.prod(shape)))
    last = torch.channels_last
    params = [param.to(memory_format=last), param.to(memory_format=last), param.transpose(0, 3)]
    refs = [ref, ref.to(memory_format=last), ref.transpose(0, 3)]
    check_layers(emulated, [*params, param[:, ::2]], [*refs, ref[:, ::2]])


# A block adds 42 tiles of 4096 elements side by side.
@pytest.mark.parametrize("numel", [41 * 4096, 42 * 4096, 42 * 4096 + 1, 256 * 4096 + 3])
def test_a_layer_of_many_tiles(emulated, numel):
    param, ref = layer(numel)
    check_layers(emulated, [param[:5], param, param[:3]], [ref[:5], ref, ref[:3]])


# From 8 Mi elements on, tiles have 8192.
def test_larger_tiles(emulated):
    param, ref = layer((8 << 20) - 5)
    sizes = [1, 2, 8191, 8192, 8193, 70_001]
    params = [param, *(guarded(param[:n], 1) for n in sizes)]
    refs = [ref, *(guarded(ref[:n], 3) for n in sizes)]
    larger = check_layers(emulated, params, refs)
    aligned = check_layers(
        emulated, [param, *(param[:n] for n in sizes)], [ref, *(ref[:n] for n in sizes)]
    )
    assert is_same(larger, aligned)


def mixed_layers():
    sizes = [0, 5, 4096, 4097, 40_000, 0, 3, 9000, 1, 100_000, 0]
    kinds = [(a, b) for a in DTYPES for b in DTYPES]
    pairs = [layer(n, *kinds[i % len(kinds)], seed=i) for i, n in enumerate(2 * sizes)]
    return zip(*[[guarded(t) for t in pair] for pair in pairs], strict=True)


@pytest.mark.parametrize("given", [False, True])
def test_a_plan_gives_the_same_bits_call_after_call(emulated, given):
    params, refs = mixed_layers()
    norms = torch.stack([r.double().square().sum() for r in refs]) if given else None
    (expected,) = emulated("layer_statistics", params, refs, norms)
    plan, *shape = emulated.run("plan_layers", params, refs)
    plan = guarded(plan, 0)
    # Each call finds the tickets as the one before has left them.
    for seed in range(3):
        (statistics,) = emulated.run("planned_layer_statistics", plan, *shape, norms, seed=seed)
        assert is_same(statistics, expected)
        (rotation,) = emulated.run("planned_layer_rotation", plan, *shape, norms, seed=seed)
        assert is_same(rotation, expected[0])


def test_a_plan_reads_the_weights_of_the_moment(emulated):
    params, refs = mixed_layers()
    plan, *shape = emulated.run("plan_layers", params, refs)
    for param in params[3:5]:
        param.mul_(-1)
    (actual,) = emulated("planned_layer_rotation", plan, *shape, None)
    (expected,) = emulated("layer_rotation", params, refs, None)
    assert is_same(actual, expected)


def test_successive_records_fill_a_ring(emulated):
    params, refs = mixed_layers()
    norms = torch.stack([r.double().square().sum() for r in refs])
    plan, *shape = emulated.run("plan_layers", params, refs)
    ring = guarded(torch.full((3, len(params)), -1.0))
    cursor = guarded(torch.tensor([7]))[0]
    rows = {}
    for call in range(7, 12):
        params[4].mul_(1.5).add_(0.25)
        (rows[call % 3],) = emulated("layer_rotation", params, refs, norms)
        emulated.run("record_layer_rotation", plan, *shape, norms, ring, cursor, seed=call)
        assert cursor.item() == call + 1
        assert all(is_same(ring[row], rows[row]) for row in rows)
        assert (ring[[row for row in range(3) if row not in rows]] == -1).all()


# One layer of many tiles takes two launches; among small ones, its last block goes over it alone.
@pytest.mark.parametrize("small", [0, 12])
@pytest.mark.parametrize("given", [False, True])
def test_further_passes_over_layers_of_many_tiles(emulated, small, given):
    sizes = [40_000, 5, 0, 100_003, 4096, *range(small)]
    params, refs = (list(ts) for ts in zip(*[layer(n, seed=n) for n in sizes], strict=True))
    norms = torch.stack([r.double().square().sum() for r in refs]) if given else None
    plan, *shape = emulated.run("plan_layers", params, refs)
    plan = guarded(plan, 0)
    ring, cursor = guarded(torch.full((3, len(params)), -1.0)), guarded(torch.tensor([0]))[0]
    start = [param.clone() for param in params]
    # The passes: one, with another ratio, in float64, and in float64 with another ratio.
    for call, scale in enumerate((1.0, 0.4, 1e-22, 1e25, 1e-30, 0.0, NAN, 2.0)):
        for index in (0, 1, 3):
            params[index].copy_(scale * start[index])
        expected = check_layers(emulated, params, refs, norms)
        emulated.run("record_layer_rotation", plan, *shape, norms, ring, cursor, seed=call)
        assert cursor.item() == call + 1
        assert is_same(ring[call % 3], expected[0])
        (again,) = emulated.run("planned_layer_statistics", plan, *shape, norms, seed=call)
        assert is_same(again, expected)


@pytest.mark.parametrize("small", [0, 12])
def test_sums_of_layers(emulated, small):
    sizes = [40_000, 5, 0, 100_003, 4096, *range(small)]
    params, refs = (list(ts) for ts in zip(*[layer(n, seed=n) for n in sizes], strict=True))
    params[0].mul_(1e25)
    refs[1].mul_(1e-25)
    plan, *shape = emulated.run("plan_layers", params, refs)
    (rotation,) = emulated("planned_layer_rotation", plan, *shape, None)
    for ratio in (None, torch.linspace(0.5, 3, len(sizes), dtype=torch.float64)):
        (sums,) = emulated("layer_sums", params, refs, ratio)
        assert_close(sums, cpu.layer_sums(params, refs, ratio), rtol=1e-5, atol=1e-2)
        (planned,) = emulated("planned_layer_sums", plan, *shape, ratio)
        assert is_same(planned, sums)
    # The sums leave a plan what it knows of ratios.
    (again,) = emulated("planned_layer_rotation", plan, *shape, None)
    assert is_same(again, rotation)


def hand_made_plan(pairs, tile):
    """A table of tiles of any size: planned, larger ones are for models that fit no test."""
    kinds = {torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}
    table, tiles, elements = b"", [], 0
    for index, (param, ref) in enumerate(pairs):
        places = param.data_ptr(), ref.data_ptr(), param.numel(), len(tiles), elements
        table += struct.pack("<5q2b2xf", *places, kinds[param.dtype], kinds[ref.dtype], 1)
        tiles += [index] * max(1, -(-param.numel() // tile))
        elements += param.numel()
    partials, tickets = bytes(48 * len(tiles)), bytes(4 * (len(pairs) + 1))
    table += partials + struct.pack(f"<{len(tiles)}i", *tiles) + tickets
    plan = torch.frombuffer(bytearray(table), dtype=torch.uint8)
    return plan, len(pairs), len(tiles), tile


@pytest.mark.parametrize("tile", [8192, 16384, 32768, 1 << 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tiles_of_billions_of_elements(emulated, dtype, tile):
    sizes = [2 * tile + 37_856, 0, 5, tile, tile - 1, tile + 1]
    pairs = [layer(n, dtype) for n in sizes]
    arguments = hand_made_plan(pairs, tile)
    (actual,) = emulated("planned_layer_statistics", *arguments, None)
    expected = cpu.layer_statistics(*zip(*pairs, strict=True), None)
    assert_close(actual[0], expected[0], rtol=3e-5, atol=1e-8)
    assert_close(actual[1:], expected[1:], rtol=1e-6)
    exact = torch.stack([param.double().norm() for param, _ in pairs])
    assert_close(actual[2].double(), exact, rtol=1e-6)
    elsewhere = [[guarded(t, 1 + 2 * (t is ref)) for t in (param, ref)] for param, ref in pairs]
    (moved,) = emulated.run("planned_layer_statistics", *hand_made_plan(elsewhere, tile), None)
    assert is_same(moved, actual)


# The share of each of three blocks begins and ends within layers, between them, and in empty ones.
@pytest.mark.parametrize(
    "tiles", [[1], [2], [1, 1], [3], [1, 2], [4], [5], [1, 5, 1], [2, 0, 0, 7]]
)
def test_shares_of_blocks(emulated, tiles):
    pairs = [layer(max(0, 4096 * n - 7), seed=n) for n in tiles]
    check_layers(emulated, *zip(*pairs, strict=True))


def test_a_plan_of_seven_billion_weights_takes_under_one_megabyte(emulated):
    block = [(4096, 4096)] * 4 + [(11008, 4096)] * 3
    shapes = [(32000, 4096), *block * 32, (32000, 4096)]
    # Planning reads no weight: all layers lie in one memory that nobody has touched.
    memory = torch.empty(32000 * 4096, dtype=torch.bfloat16)
    weights = [memory[: math.prod(shape)].view(shape) for shape in shapes]
    assert sum(w.numel() for w in weights) > 6_700_000_000
    plan, layers, tiles, tile = emulated.run("plan_layers", weights, weights)
    assert tiles == sum(-(-w.numel() // tile) for w in weights)
    norms, ring = 8 * layers, 4 * layers * 64
    assert plan.numel() + norms + ring < 1_000_000
