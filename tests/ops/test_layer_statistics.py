import math

import pytest
import torch
from support.examples import given, st
from torch.library import opcheck

import cpfast
from cpfast import ops, reference
from cpfast.results import LayerSums

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Around the widths of a vector, a block of 128 additions, and both tile sizes.
SIZES = [0, 1, 3, 31, 32, 33, 4095, 4096, 4097, 32769, 100_003]


def statistics64(w, w0):
    """The five statistics in float64, from differences (products would lose small rotations)."""
    a, b = w.double().flatten(), w0.double().flatten()
    d = a - b
    norm, ref_norm = a.norm(), b.norm()
    difference = (2 * (d @ b) + d @ d) / (norm + ref_norm)
    distance = (d @ d - difference**2) / (2 * norm * ref_norm)
    flips = ((a * b) < 0).double().mean()
    return torch.stack([distance, d.norm(), norm, flips, a.abs().mean()])


def pair(size, dtype=torch.float32, ref_dtype=torch.float32, noise=0.1, seed=0):
    g = torch.Generator().manual_seed(seed)
    w0 = torch.randn(size, generator=g, dtype=torch.float64)
    w = w0 + noise * torch.randn(size, generator=g, dtype=torch.float64)
    return w.to(dtype), w0.to(ref_dtype)


def assert_close(actual, expected, rtol=2e-6):
    torch.testing.assert_close(
        actual.cpu().double(), expected.cpu().double(), rtol=rtol, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ref_dtype", DTYPES)
def test_every_pair_of_dtypes_against_float64(device, dtype, ref_dtype):
    pairs = [pair(n, dtype, ref_dtype, seed=n) for n in SIZES if n]
    out = ops.layer_statistics([w.to(device) for w, _ in pairs], [r.to(device) for _, r in pairs])
    expected = torch.stack([statistics64(w, r) for w, r in pairs], dim=1)
    for row, (actual, wanted) in enumerate(zip(out, expected, strict=True)):
        # A layer of one element has not turned: its distance is 0 up to the rounding of its terms.
        assert actual.dtype == torch.float32
        torch.testing.assert_close(
            actual.cpu().double(),
            wanted,
            rtol=2e-6,
            atol=1e-8 if row == 0 else 0,
        )


@pytest.mark.parametrize("size", SIZES)
def test_rotation_is_the_first_statistic_and_the_twin_agrees(device, size):
    w, w0 = (t.to(device) for t in pair(size))
    out = ops.layer_statistics([w], [w0])
    assert torch.equal(ops.layer_rotation([w], [w0]), out.cosine_distance)
    for actual, twin in zip(out, reference.layer_statistics([w], [w0]), strict=True):
        torch.testing.assert_close(actual, twin, rtol=5e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("noise", "rtol"),
    # The noise is near the spacing of float32 at the last one: few bits of it are left in w - w0.
    [(1e-3, 1e-6), (1e-5, 1e-6), (1e-6, 4e-5)],
)
def test_tiny_rotations_keep_their_digits(device, noise, rtol):
    w, w0 = pair(1_000_000, noise=noise)
    distance = ops.layer_rotation([w.to(device)], [w0.to(device)])
    assert_close(distance, statistics64(w, w0)[:1], rtol)
    assert 0.4 * noise**2 < distance.item() < 0.6 * noise**2


@given(st.floats(0, math.pi), st.floats(0.1, 10), st.integers(2, 200))
def test_a_known_angle_at_any_length(angle, length, size):
    w0 = torch.zeros(size, dtype=torch.float64)
    w0[0] = 1
    w = torch.zeros_like(w0)
    w[0], w[-1] = length * math.cos(angle), length * math.sin(angle)
    # 1 - cos in the form that keeps small angles.
    expected = 2 * math.sin(angle / 2) ** 2
    assert ops.layer_rotation([w], [w0]).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_zero_and_empty_layers(device):
    zero, one = torch.zeros(5, device=device), torch.ones(5, device=device)
    empty = torch.empty(0, 3, device=device)
    params = [empty, zero, zero, one, one, empty, empty]
    refs = [empty, zero, one, zero, one, empty, empty]
    out = ops.layer_statistics(params, refs)
    assert out.cosine_distance.tolist() == [0, 0, 1, 1, 0, 0, 0]
    assert out.sign_flips.tolist() == [0] * 7
    assert out.mean_abs.tolist() == [0, 0, 0, 1, 1, 0, 0]
    assert_close(out.l2_distance, torch.tensor([0, 0, 5**0.5, 5**0.5, 0, 0, 0]))


def test_signs_flip_only_between_strictly_opposite_signs(device):
    w = torch.tensor([1.0, -1.0, 0.0, -0.0, 1e-40, -1e-40, 2.0, 0.0], device=device)
    w0 = torch.tensor([-1.0, 1.0, -1.0, 1.0, -1e-40, 1e-40, 3.0, -0.0], device=device)
    assert ops.layer_statistics([w], [w0]).sign_flips.item() == 4 / 8
    zeros = torch.tensor([-0.0, 0.0, 0.0, -0.0], device=device)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], device=device)
    for pair in ((signs, zeros), (zeros, signs)):
        assert ops.layer_statistics(*([t] for t in pair)).sign_flips.item() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ref_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 33, 4097])
def test_a_zero_or_nan_on_either_side_is_no_flip(device, dtype, ref_dtype, size):
    for one, other in [(1.0, -0.0), (-1.0, 0.0), (1.0, -math.nan), (-1.0, math.nan), (0.0, -0.0)]:
        for w, w0 in [(one, other), (other, one)]:
            params = torch.full((size,), w, dtype=dtype, device=device)
            refs = torch.full((size,), w0, dtype=ref_dtype, device=device)
            assert ops.layer_statistics([params], [refs]).sign_flips.item() == 0, (w, w0)


@pytest.mark.parametrize("ref_dtype", [torch.float32, torch.float16])
def test_sums_go_on_in_float64_after_128_additions(ref_dtype):
    # On the CPU 32 lanes share a tile; tiles of 4096 elements would hold but 128 additions each.
    tiles, tile, lanes = 1024, 8192, 32
    assert tiles * tile == 2048 * 4096  # from where on tiles are that large
    # Ones, and numbers so small that their squares, or they, are lost beside one in float32: the
    # first 127 additions of a lane lose them, and the other 128 do not.
    squares = ["ref_squared", "difference_squared", "difference_times_ref"]
    for tiny, power, rows in [
        (2**-13, 2, {"squared": 4, **dict.fromkeys(squares, 1)}),
        (2**-25, 1, {"magnitude": 2}),
    ]:
        values = torch.full((tiles, tile // lanes, lanes), tiny)
        values[:, 0] = 1
        w, w0 = 2 * values.flatten(), values.flatten().to(ref_dtype)
        sums = LayerSums(*ops.layer_sums([w], [w0]))
        for row, factor in rows.items():
            expected = factor * tiles * lanes * (1 + 128 * tiny**power)
            assert getattr(sums, row).item() == expected, row


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_layer_spoils_no_other(device, bad):
    w, w0 = (t.to(device) for t in pair(5000))
    broken = w.clone()
    broken[4321] = bad
    out = ops.layer_statistics([w, broken, w], [w0, w0, w0])
    alone = ops.layer_statistics([w], [w0])
    assert out.cosine_distance[1].isnan()
    assert not out.norm[1].isfinite()
    for statistic, single in zip(out, alone, strict=True):
        assert_close(statistic[[0, 2]], single.expand(2), rtol=0)


def test_elements_are_paired_by_index_whatever_the_strides(device):
    w, w0 = pair((8, 6, 5, 7))
    expected = statistics64(w, w0)
    w, w0 = w.to(device), w0.to(device)
    last = torch.channels_last
    padded = torch.zeros(9, 7, 6, 8, device=device)[1:, 1:, 1:, 1:].copy_(w)
    for a, b in [
        (w.to(memory_format=last), w0),
        (w, w0.to(memory_format=last)),
        (w.to(memory_format=last), w0.to(memory_format=last)),
        (padded, w0),
        (w.transpose(0, 3), w0.transpose(0, 3)),
    ]:
        out = ops.layer_statistics([a], [b])
        assert_close(torch.cat(list(out)), expected)


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_storage_offsets(device, offset, dtype):
    w, w0 = (t.to(device) for t in pair(5001, dtype, dtype))
    out = ops.layer_statistics([w[offset:]], [w0[: 5001 - offset]])
    assert_close(torch.cat(list(out)), statistics64(w[offset:], w0[: 5001 - offset]))


@pytest.mark.not_emulated("5,000 blocks")
def test_thousands_of_layers(device):
    pairs = [pair(1 + i % 7, seed=i) for i in range(5000)]
    out = ops.layer_statistics([w.to(device) for w, _ in pairs], [r.to(device) for _, r in pairs])
    for layer in (0, 1, 2499, 4999):
        assert out.norm[layer].item() == pytest.approx(pairs[layer][0].norm().item(), rel=1e-6)


def test_equal_to_the_bit_on_any_number_of_threads(each_thread_count):
    pairs = [pair(n, seed=n) for n in (100_003, 5, 300_000)]
    one, three = each_thread_count(
        lambda: ops.layer_statistics([w for w, _ in pairs], [r for _, r in pairs])
    )
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_repeated_calls_are_equal_to_the_bit(device):
    w, w0 = (t.to(device) for t in pair(70_001))
    first = torch.stack(ops.layer_statistics([w], [w0]))
    for _ in range(50):
        assert torch.equal(torch.stack(ops.layer_statistics([w], [w0])), first)


def test_given_norms_replace_the_measured_ones(device):
    w, w0 = (t.to(device) for t in pair(5000))
    norms = w0.double().square().sum()[None]
    measured = ops.layer_rotation([w], [w0])
    assert_close(ops.layer_rotation([w], [w0], norms), measured)
    assert_close(ops.layer_rotation([w], [w0], norms.float()), measured)
    # Were it ignored, a wrong one would change nothing.
    assert not torch.allclose(ops.layer_rotation([w], [w0], 4 * norms), measured)


def test_weights_whose_storage_was_swapped(device):
    w, w0 = (t.to(device) for t in pair(100))
    parameter = torch.nn.Parameter(w.clone())
    assert ops.layer_rotation([parameter], [w0]).item() > 0
    parameter.data = w0.clone()
    assert ops.layer_rotation([parameter], [w0]).item() == 0


def test_parameters_need_no_detaching_and_get_no_gradient(device):
    parameter = torch.nn.Parameter(torch.randn(3, 4, device=device))
    out = ops.layer_rotation((p for p in [parameter]), [parameter.detach().clone()])
    assert not out.requires_grad


@pytest.mark.skipif(cpfast.backend() == "reference", reason="there are no kernels")
def test_opcheck(device):
    w, w0 = (t.to(device) for t in pair((4, 5)))
    norms = w0.double().square().sum()[None]
    for arguments in [([w], [w0]), ([w], [w0], norms)]:
        opcheck(torch.ops.cpfast.layer_statistics, arguments)
        opcheck(torch.ops.cpfast.layer_rotation, arguments)


def test_it_compiles_into_one_graph(device):
    w, w0 = (t.to(device) for t in pair(50))
    compiled = torch.compile(
        lambda a, b: ops.layer_statistics([a], [b]).norm * 2, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(w, w0), ops.layer_statistics([w], [w0]).norm * 2)


def test_one_tensor_is_not_taken_for_a_list_of_its_rows():
    with pytest.raises(TypeError, match=r"params: expected a list .* shape \[3\]"):
        ops.layer_rotation(A, A)
    with pytest.raises(TypeError, match="refs: expected a list"):
        ops.layer_rotation([A], A)


A = torch.ones(3)


@pytest.mark.parametrize(
    ("params", "refs", "norms", "message"),
    [
        ([], [], None, "params: expected at least one tensor, got an empty list"),
        ([A], [], None, "refs: expected 1 tensors, as many as params, got 0"),
        ([A], [A, A], None, "refs: expected 1 tensors, as many as params, got 2"),
        ([A, A], [A, A[:2]], None, r"refs\[1\]: expected shape \[3\] as params\[1\], got \[2\]"),
        ([A.long()], [A], None, r"params\[0\]: expected float32, .* got int64"),
        ([A], [A.bool()], None, r"refs\[0\]: expected float32, .* got bool"),
        ([A], [A], torch.ones(2).double(), r"ref_sq_norms: expected shape \[1\], got \[2\]"),
        ([A], [A], torch.ones(1).long(), "ref_sq_norms: expected dtype float64, got int64"),
    ],
)
def test_bad_arguments_are_named(params, refs, norms, message):
    for op in (ops.layer_statistics, ops.layer_rotation):
        with pytest.raises(RuntimeError, match=message):
            op(params, refs, norms)
