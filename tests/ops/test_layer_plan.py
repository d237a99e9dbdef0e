import copy
import gc
import math
import pickle

import pytest
import torch
from torch import nn

import cpfast
from cpfast import ops, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Empty layers in front, in between and at the end; around a vector, a block and both tiles.
SIZES = [0, 1, 3, 31, 33, 0, 4095, 4097, 9001, 0, 0]
reference_backend = cpfast.backend() == "reference"


def pairs(sizes, dtypes=(torch.float32,), ref_dtypes=(torch.float32,), device="cpu", noise=0.1):
    params, refs = [], []
    for index, size in enumerate(sizes):
        g = torch.Generator().manual_seed(index)
        ref = torch.randn(size, generator=g, dtype=torch.float64)
        param = ref + noise * torch.randn(size, generator=g, dtype=torch.float64)
        params.append(param.to(device, dtypes[index % len(dtypes)]))
        refs.append(ref.to(device, ref_dtypes[index // len(dtypes) % len(ref_dtypes)]))
    return params, refs


def square_norms(refs):
    return torch.stack([r.double().square().sum() for r in refs])


def assert_same(plan, params, refs, norms=None):
    """Equal to the bit with the functions, NaN included."""
    expected = torch.stack(ops.layer_statistics(params, refs, norms))
    actual = torch.stack(plan.layer_statistics())
    assert torch.equal(actual.view(torch.int32), expected.view(torch.int32))
    rotation = plan.layer_rotation()
    assert torch.equal(rotation.view(torch.int32), expected[0].view(torch.int32))
    assert not rotation.requires_grad
    return actual


@pytest.mark.parametrize("given", [False, True])
def test_equal_to_the_functions_for_every_pair_of_dtypes(device, given):
    params, refs = pairs(SIZES * 8, DTYPES, DTYPES, device)
    norms = 4 * square_norms(refs) if given else None
    plan = ops.LayerPlan(params, refs, norms)
    assert len(plan) == len(params)
    actual = assert_same(plan, params, refs, norms)
    twin = torch.stack(reference.layer_statistics(params, refs, norms))
    torch.testing.assert_close(actual, twin, rtol=5e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ref_dtype", DTYPES)
def test_every_pair_of_dtypes_against_float64(device, dtype, ref_dtype):
    params, refs = pairs([100_003], [dtype], [ref_dtype], device)
    w, w0 = params[0].double(), refs[0].double()
    expected = (w - w0).square().sum() - (w.norm() - w0.norm()).square()
    expected = expected / (2 * w.norm() * w0.norm())
    plan = ops.LayerPlan(params, refs, square_norms(refs))
    torch.testing.assert_close(plan.layer_rotation()[0].double(), expected, rtol=2e-6, atol=0)


@pytest.mark.not_emulated("20,000 blocks")
def test_thousands_of_layers(device):
    params, refs = pairs([i % 9 for i in range(5000)], device=device)
    assert_same(ops.LayerPlan(params, refs), params, refs)


def test_zero_layers_signs_and_what_is_not_finite(device):
    zero, one = torch.zeros(5, device=device), torch.ones(5, device=device)
    bad = [torch.tensor([1.0, b, 2.0], device=device) for b in (math.nan, math.inf, -math.inf)]
    signs = torch.tensor([1.0, -1.0, 0.0, -0.0], device=device)
    params = [zero, zero, one, *bad, signs, one]
    refs = [zero, one, zero, *[torch.ones(3, device=device)] * 3, -signs, one]
    actual = assert_same(ops.LayerPlan(params, refs), params, refs)
    assert actual[0, :3].tolist() == [0, 1, 1]
    assert actual[0, 3:6].isnan().all()
    assert actual[3, 6].item() == 2 / 4
    assert actual[:, 7].tolist() == [0, 0, pytest.approx(5**0.5), 0, 1]


def test_elements_are_paired_by_index_whatever_the_strides(device):
    (w,), (w0,) = pairs([(8, 6, 5, 7)], device=device)
    last = torch.channels_last
    padded = torch.zeros(9, 7, 6, 8, device=device)[1:, 1:, 1:, 1:].copy_(w)
    row = w[:1, :1, :1]
    cases = [
        (w.to(memory_format=last), w0),
        (w, w0.to(memory_format=last)),
        (w.to(memory_format=last), w0.to(memory_format=last)),
        (padded, w0),
        (padded, w0.to(memory_format=last)),
        (w.transpose(0, 3), w0.transpose(0, 3)),
        (w.flatten()[3:], w0.flatten()[3:]),
        (row.expand(8, 6, 5, 7), w0),
    ]
    params, refs = zip(*cases, strict=True)
    assert_same(ops.LayerPlan(params, refs), params, refs)
    for norm in ops.LayerPlan(params[:6], refs[:6]).layer_statistics().norm:
        assert norm.item() == pytest.approx(w.norm().item(), rel=1e-6)


def test_what_changes_in_place_is_measured_anew(device):
    params, refs = pairs([50, (4, 6)], device=device)
    params[1] = torch.zeros(4, 12, device=device)[:, ::2].copy_(params[1])  # copied at each call
    plan = ops.LayerPlan(params, refs)
    before = plan.layer_rotation().clone()
    for param, ref in zip(params, refs, strict=True):
        param.copy_(-ref)
    assert plan.is_current()
    assert torch.allclose(plan.layer_rotation(), torch.full_like(before, 2.0))
    assert (before < 1).all()


@pytest.mark.not_emulated("200 calls of 20 blocks")
def test_many_calls_are_equal_to_the_bit_and_return_new_tensors(device):
    params, refs = pairs([70_001, 3, 0], device=device)
    plan = ops.LayerPlan(params, refs)
    first = plan.layer_rotation()
    kept = first.clone()
    for _ in range(200):
        again = plan.layer_rotation()
        assert again.data_ptr() != first.data_ptr()
        assert torch.equal(again, first)
    assert torch.equal(first, kept)


@pytest.mark.skipif(reference_backend, reason="torch's sums depend on the threads")
def test_equal_to_the_bit_on_any_number_of_threads(each_thread_count):
    params, refs = pairs([100_003, 5, 0, 300_000])
    plan = ops.LayerPlan(params, refs, square_norms(refs))
    one, three = each_thread_count(lambda: torch.stack(plan.layer_statistics()))
    assert torch.equal(one, three)


def test_a_plan_knows_whether_its_tensors_have_moved(device):
    def fresh():
        params, refs = pairs([(3, 4), (4, 4)], device=device)
        return [nn.Parameter(p) for p in params], refs

    def swap(params, refs):
        params[1].data = params[1].data.clone()

    def recast(params, refs):
        params[0].data = params[0].data.bfloat16()

    def transpose(params, refs):
        params[1].data = params[1].data.t()  # at the same address

    def reinterpret(params, refs):
        refs[0].data = refs[0].data.view(torch.int32)  # at the same address

    def shorten(params, refs):
        params[0].data = params[0].data[:2]

    def move_a_ref(params, refs):
        refs[0].data = refs[0].clone()

    for change in (swap, recast, transpose, reinterpret, shorten, move_a_ref):
        params, refs = fresh()
        plan = ops.LayerPlan(params, refs)
        assert plan.is_current()
        assert plan.is_current(params)
        change(params, refs)
        assert not plan.is_current(), change.__name__
        of_a_ref = change in (reinterpret, move_a_ref)
        assert plan.is_current(params) == of_a_ref, change.__name__


def test_a_plan_holds_the_storage_of_a_weight_that_was_swapped(device):
    (w,), refs = pairs([100_000], device=device)
    parameter = nn.Parameter(w.clone())
    plan = ops.LayerPlan([parameter], refs)
    before = plan.layer_rotation()
    parameter.data = torch.zeros(100_000, device=device)
    gc.collect()
    fill = [torch.zeros(100_000, device=device) for _ in range(4)]
    assert torch.equal(plan.layer_rotation(), before)
    assert len(fill) == 4


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_copy_plans_its_own_tensors(duplicate):
    params, refs = pairs([100, 7])
    plan = ops.LayerPlan(params, refs, square_norms(refs))
    twin = duplicate(plan)
    before = plan.layer_rotation()
    assert torch.equal(twin.layer_rotation(), before)
    params[0].neg_()
    assert torch.equal(twin.layer_rotation(), before)
    assert plan.layer_rotation()[0] > 1


def test_a_ring_takes_successive_rotations(device):
    params, refs = pairs([100, 0, 5000], device=device)
    plan = ops.LayerPlan(params, refs, square_norms(refs))
    ring = torch.full((3, 3), -1.0, device=device)
    cursor = torch.zeros((), dtype=torch.int64, device=device)
    rows = []
    for step in range(5):
        params[0].mul_(-1)
        plan.record(ring, cursor)
        rows.append(plan.layer_rotation())
        assert cursor.item() == step + 1
        if step == 0:
            assert (ring[1:] == -1).all()
    assert torch.equal(ring, torch.stack([rows[3], rows[4], rows[2]]))


@pytest.mark.parametrize("start", [-1, -3, -(2**63), 2**63 - 1, 2**62 + 1])
def test_a_ring_is_never_left_whatever_the_cursor(device, start):
    params, refs = pairs([100, 5000], device=device)
    plan = ops.LayerPlan(params, refs)
    memory = torch.full((5, 2), -1.0, device=device)
    cursor = torch.tensor(start, device=device)
    try:
        plan.record(memory[1:4], cursor)
    except RuntimeError as error:
        assert f"cursor: expected 0 or more, and less than 2^63 - 1, got {start}" in str(error)
        assert cursor.item() == start
        assert (memory == -1).all()
    else:
        rotation = plan.layer_rotation()
        assert (memory[[0, 4]] == -1).all()
        assert sum(torch.equal(row, rotation) for row in memory[1:4]) == 1


@pytest.mark.parametrize("start", [-1, -(2**63), 2**63 - 1])
def test_a_cursor_out_of_range_is_refused_on_the_cpu(start):
    cursor = torch.tensor(start)
    with pytest.raises(RuntimeError, match=f"cursor: expected 0 or more.*got {start}$"):
        ops.LayerPlan([A], [A]).record(torch.zeros(3, 1), cursor)
    assert cursor.item() == start


@pytest.mark.not_emulated("the op of the CPU asks for itself")
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("which", ["params", "refs"])
@pytest.mark.parametrize("size", [0, 1 << 22])
def test_a_storage_that_was_resized_is_refused_by_every_call(device, which, layer, size):
    params, refs = pairs([100, 70_000], device=device)
    params[0] = torch.zeros(200, device=device)[::2].copy_(params[0])  # copied at every call
    plan = ops.LayerPlan(params, refs)
    plan.layer_rotation()
    {"params": params, "refs": refs}[which][layer].untyped_storage().resize_(size)
    ring, cursor = torch.zeros(3, 2, device=device), torch.tensor(0, device=device)
    calls = [plan.layer_rotation, plan.layer_statistics, plan.layer_sums]
    for call in [*calls, lambda: plan.record(ring, cursor)]:
        with pytest.raises(RuntimeError, match=rf"{which}\[{layer}\]: its storage was resized"):
            call()
    assert cursor.item() == 0


def test_what_is_lazily_negated_is_copied_at_every_call(device):
    params, refs = pairs([5000, 33, 7], device=device)
    lazy = [torch._neg_view(params[0]), params[1], torch._neg_view(params[2])]
    lazy_refs = [refs[0], torch._neg_view(refs[1]), torch._neg_view(refs[2])]
    plan = ops.LayerPlan(lazy, lazy_refs)
    for _ in range(2):
        gc.collect()
        negated = [-params[0], params[1], -params[2]], [refs[0], -refs[1], -refs[2]]
        assert_same(plan, *negated)
        params[0].mul_(-1)
        params[2].add_(1)


CURSOR = torch.zeros((), dtype=torch.int64)


@pytest.mark.skipif(reference_backend, reason="the twin checks nothing")
@pytest.mark.parametrize(
    ("history", "cursor", "message"),
    [
        (
            torch.zeros(0, 2),
            CURSOR,
            r"history: .* got float32 \[0, 2\]",
        ),
        (
            torch.zeros(4, 3),
            CURSOR,
            r"history: .* got float32 \[4, 3\]",
        ),
        (torch.zeros(4, 2).double(), CURSOR, "history: .* got float64"),
        (torch.zeros(2, 4).t(), CURSOR, "history: expected contiguous"),
        (torch.zeros(4, 2), torch.zeros(1, dtype=torch.int64), r"cursor: .* got int64 \[1\]"),
        (torch.zeros(4, 2), torch.zeros(()), r"cursor: expected int64 \[\], got float32"),
    ],
)
def test_a_ring_that_does_not_fit_is_refused(history, cursor, message):
    plan = ops.LayerPlan(*pairs([3, 4]))
    with pytest.raises(RuntimeError, match=message):
        plan.record(history, cursor)


A = torch.ones(3)


@pytest.mark.skipif(reference_backend, reason="the twin checks less")
@pytest.mark.parametrize(
    ("params", "refs", "norms", "message"),
    [
        ([], [], None, "params: expected at least one tensor, got an empty list"),
        ([A], [A, A], None, "refs: expected 1 tensors, as many as params, got 2"),
        ([A, A], [A, A[:2]], None, r"refs\[1\]: expected shape \[3\] as params\[1\], got \[2\]"),
        ([A.long()], [A], None, r"params\[0\]: expected float32, .* got int64"),
        ([A], [A.bool()], None, r"refs\[0\]: expected float32, .* got bool"),
        ([A], [A], torch.ones(2).double(), r"ref_sq_norms: expected shape \[1\], got \[2\]"),
    ],
)
def test_bad_arguments_are_named(params, refs, norms, message):
    with pytest.raises(RuntimeError, match=message):
        ops.LayerPlan(params, refs, norms).layer_rotation()


@pytest.mark.skipif(reference_backend, reason="there are no compiled ops")
def test_the_compiled_ops_refuse_what_was_not_planned():
    plan, layers, tiles, tile = torch.ops.cpfast.plan_layers([A], [A])
    with pytest.raises(RuntimeError, match="plan: expected 528 bytes or more, got 96"):
        torch.ops.cpfast.planned_layer_rotation(plan, 10 * layers, tiles, tile)
    with pytest.raises(RuntimeError, match=r"plan: expected \[bytes\] uint8 .* got float32"):
        torch.ops.cpfast.planned_layer_rotation(plan.float(), layers, tiles, tile)
    with pytest.raises(RuntimeError, match="expected dense tensors of equal strides, got 1 pairs"):
        torch.ops.cpfast.plan_layers([torch.ones(4)[::2]], [torch.ones(2)])


@pytest.mark.skipif(reference_backend, reason="there are no compiled ops")
@pytest.mark.parametrize(
    ("total", "tile"),
    [
        (0, 4096),
        ((4 << 20) - 1, 4096),
        ((8 << 20) - 1, 4096),
        (8 << 20, 8192),
        ((16 << 20) - 1, 8192),
        (16 << 20, 16384),
        ((32 << 20) - 1, 16384),
        (32 << 20, 32768),
        (16385 * 32768 - 1, 32768),
        (16385 * 32768, 65536),
        (1 << 31, 131072),
    ],
)
def test_tiles_grow_so_that_they_stay_few(total, tile):
    weights = torch.empty(total, dtype=torch.bfloat16)  # only its size is read
    _, layers, tiles, planned = torch.ops.cpfast.plan_layers([weights], [weights])
    assert (layers, tiles, planned) == (1, max(1, -(-total // tile)), tile)
    assert tiles <= 16386


@pytest.mark.skipif(reference_backend, reason="plain PyTorch is compiled as it is")
def test_it_breaks_a_compiled_graph_rather_than_being_traced():
    params, refs = pairs([50])
    plan = ops.LayerPlan(params, refs)

    def step(x):
        params[0].add_(x)  # what the addresses hide from the compiler
        return plan.layer_rotation() * 2

    got = torch.compile(step, backend="aot_eager")(torch.ones(()))
    assert torch.equal(got, ops.layer_rotation(params, refs) * 2)


@pytest.mark.cuda
def test_replays_of_a_graph_are_equal_to_the_bit_and_fill_the_ring():
    params, refs = pairs([70_001, 3, 0, 9000], device="cuda")
    plan = ops.LayerPlan(params, refs, square_norms(refs))
    # Loads the kernels of all three calls below, and asks how many of their blocks fit the device:
    # a capture is no place for either.
    expected = plan.layer_rotation()
    ring = torch.zeros(7, 4, device="cuda")
    cursor = torch.zeros((), dtype=torch.int64, device="cuda")
    plan.record(ring, cursor)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.record(ring, cursor)
        rotation = plan.layer_rotation()
        functional = ops.layer_rotation(params, refs, plan._ref_sq_norms)
    ring.zero_()
    cursor.zero_()
    for _ in range(1000):
        graph.replay()
    assert cursor.item() == 1000
    assert torch.equal(ring, expected.expand_as(ring))
    assert torch.equal(rotation, expected)
    assert torch.equal(functional, expected)


@pytest.mark.cuda
def test_plans_on_two_streams_do_not_disturb_each_other():
    sizes = [[300_001, 5, 70_000], [123_457, 0, 9]]
    plans = [ops.LayerPlan(*pairs(s, device="cuda")) for s in sizes]
    expected = [plan.layer_rotation() for plan in plans]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in plans]
    results = [[], []]
    for _ in range(200):
        for plan, stream, result in zip(plans, streams, results, strict=True):
            with torch.cuda.stream(stream):
                result.append(plan.layer_rotation())
    torch.cuda.synchronize()
    for result, wanted in zip(results, expected, strict=True):
        assert all(torch.equal(rotation, wanted) for rotation in result)


@pytest.mark.cuda
def test_planned_calls_do_not_synchronise():
    params, refs = pairs([1000, 20], device="cuda")
    plan = ops.LayerPlan(params, refs)
    ring = torch.zeros(4, 2, device="cuda")
    cursor = torch.zeros((), dtype=torch.int64, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        plan.layer_statistics()
        plan.record(ring, cursor)
        assert plan.is_current()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert cursor.item() == 1


@pytest.mark.cuda
@pytest.mark.huge
def test_more_than_two_to_the_31_elements():
    numel = 2**31 + 4097
    if torch.cuda.mem_get_info()[0] < 5 * numel:
        pytest.skip("too little memory on this GPU")
    ref = torch.ones(numel, dtype=torch.bfloat16, device="cuda")
    param = ref.clone()
    param[-1] = -1
    param[2**31 - 1] = -1
    out = ops.LayerPlan([param], [ref]).layer_statistics()
    assert out.norm.item() == pytest.approx(math.sqrt(numel), rel=1e-6)
    assert out.l2_distance.item() == pytest.approx(math.sqrt(8), rel=1e-6)
    assert out.sign_flips.item() == pytest.approx(2 / numel, rel=1e-6)
