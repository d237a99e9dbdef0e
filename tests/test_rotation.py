import copy
import math

import pytest
import torch
from torch import nn

import cpfast


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
    )


def turn(model, amount=0.1):
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += amount * torch.randn(p.shape, generator=g).to(p.device, p.dtype)


def test_kernels_are_watched_and_biases_and_norms_are_not():
    rotation = cpfast.LayerRotation(small_model())
    assert rotation.names == ["0.weight", "4.weight"]
    every = cpfast.LayerRotation(small_model(), include=lambda name, p: True)
    assert len(every.names) == 6


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blocks.0.attn.qkv.weight", True), ("attn.in_proj_weight", True), ("wte.weight", True),
        ("experts.gate_up_proj", True), ("parametrizations.weight.original1", True),
        ("proposal", True), ("tokens.weight", True), ("compositional", True),
        ("pos_embed", False), ("encoder.position_embeddings", False), ("positions", False),
        ("positional_embedding", False), ("class_token", False), ("cls_token", False),
        ("register_tokens", False), ("attn.relative_position_bias_table", False),
        ("attention_biases", False),
    ],
)  # fmt: skip
def test_what_is_added_to_the_input_is_no_weight(name, expected):
    assert cpfast.is_weight(name, torch.zeros(2, 3)) is expected
    assert not cpfast.is_weight(name, torch.zeros(3))


def test_against_scipy_on_each_layer(device):
    distance = pytest.importorskip("scipy.spatial.distance")
    model = small_model().to(device)
    before = copy.deepcopy(model)
    rotation = cpfast.LayerRotation(model)
    turn(model)
    measured = rotation.update()
    assert measured.shape == (2,)
    assert measured.device.type == device.type
    expected = {
        name: distance.cosine(
            before.get_parameter(name).detach().cpu().double().flatten(),
            model.get_parameter(name).detach().cpu().double().flatten(),
        )
        for name in rotation.names
    }
    assert rotation.compute() == pytest.approx(expected, rel=1e-6)
    assert rotation.mean().item() == pytest.approx(sum(expected.values()) / 2, rel=1e-6)


def test_it_reports_the_last_update_until_reset(device):
    model = small_model().to(device)
    rotation = cpfast.LayerRotation(model)
    assert rotation.mean().item() == 0
    rotation.update()
    turn(model)
    assert rotation.mean().item() == 0
    rotation.update()
    assert rotation.mean().item() > 0
    rotation.reset()
    assert rotation.compute() == {"0.weight": 0, "4.weight": 0}


def test_the_snapshot_is_float32_whatever_the_weights_become(device):
    model = small_model().to(device)
    rotation = cpfast.LayerRotation(model)
    model.to(torch.bfloat16)
    # Rounding to bfloat16 turns weights by about 1e-6.
    assert 0 < rotation.update().max().item() < 1e-5
    assert math.isfinite(cpfast.LayerRotation(model.double()).mean().item())


def test_memory_is_the_snapshot_alone():
    model = small_model().to(memory_format=torch.channels_last)
    rotation = cpfast.LayerRotation(model)
    snapshot = sum(r.untyped_storage().nbytes() for r in rotation.state_dict()["refs"])
    assert snapshot == sum(4 * model.get_parameter(n).numel() for n in rotation.names)


def test_saved_and_loaded_it_measures_the_same(device):
    model = small_model().to(device)
    rotation = cpfast.LayerRotation(model)
    turn(model)
    rotation.update()
    saved = copy.deepcopy(rotation.state_dict())

    resumed = cpfast.LayerRotation(copy.deepcopy(model))
    resumed.load_state_dict(saved)
    assert torch.equal(resumed.mean(), rotation.mean())
    assert torch.equal(resumed.update(), rotation.update())


def test_a_foreign_snapshot_is_refused_and_changes_nothing():
    rotation = cpfast.LayerRotation(small_model())
    before = rotation.state_dict()
    other = cpfast.LayerRotation(nn.Linear(3, 2)).state_dict()
    with pytest.raises(ValueError, match="names.*snapshot of 1 layers"):
        rotation.load_state_dict(other)
    wrong = copy.deepcopy(before)
    wrong["refs"][1] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"4.weight: expected shape \(5, 16\), got \(2, 2\)"):
        rotation.load_state_dict(wrong)
    assert all(map(torch.equal, rotation.state_dict()["refs"], before["refs"]))


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="include chooses none of the 2 parameters of BatchNorm1d"):
        cpfast.LayerRotation(nn.BatchNorm1d(3))


def test_it_follows_weights_that_are_replaced():
    model = small_model()
    rotation = cpfast.LayerRotation(model)
    turned = copy.deepcopy(model)
    turn(turned)
    model.load_state_dict(turned.state_dict(), assign=True)
    assert rotation.update().min().item() > 0


def test_a_state_with_too_few_layers_is_refused():
    rotation = cpfast.LayerRotation(small_model())
    with pytest.raises(ValueError, match=r"refs'\]: expected 2 tensors, got 0"):
        rotation.load_state_dict({**rotation.state_dict(), "refs": []})


def test_the_snapshot_lies_in_one_arena_aligned_with_the_strides_of_the_weights(device):
    model = small_model().to(device, memory_format=torch.channels_last)
    model.append(nn.Linear(3, 3, device=device).double())
    rotation = cpfast.LayerRotation(model)
    refs, params = rotation._refs, rotation._params()
    assert len({r.untyped_storage().data_ptr() for r in refs}) == 1
    assert all(r.data_ptr() % 128 == 0 for r in refs)
    assert [r.stride() for r in refs] == [p.stride() for p in params]
    assert [r.dtype for r in refs] == [torch.float32, torch.float32, torch.float64]
    assert all(map(torch.equal, refs, params))


def test_a_bfloat16_snapshot_halves_the_memory_and_has_an_error_floor(device):
    torch.manual_seed(0)
    model = nn.Linear(1000, 1000).to(device)
    exact = cpfast.LayerRotation(model)
    rounded = cpfast.LayerRotation(model, snapshot_dtype=torch.bfloat16)
    arenas = [r._refs[0].untyped_storage().nbytes() for r in (exact, rounded)]
    assert [size // 1_000_000 for size in arenas] == [4, 2]
    assert exact.update().item() == 0
    floor = rounded.update().item()
    assert 1e-6 < floor < 2e-6

    g = torch.Generator().manual_seed(1)
    noise = torch.randn(1000, 1000, generator=g).to(device)
    with torch.no_grad():
        model.weight += 1e-6 * noise
    # Rotations below the floor are lost in it; those well above are right to it.
    assert 0 < exact.update().item() < 1e-8
    assert rounded.update().item() == pytest.approx(floor, rel=0.01)
    with torch.no_grad():
        model.weight += 1e-2 * noise
    distance = exact.update().item()
    assert rounded.update().item() == pytest.approx(distance, abs=2 * (floor * distance) ** 0.5)
    assert rounded.update().item() == pytest.approx(distance, rel=1e-3)


def weights_swapped(model):
    for p in model.parameters():
        p.data = p.data.clone()


def weights_recast(model):
    model.to(torch.bfloat16)


def weights_restrided(model):
    model.to(memory_format=torch.channels_last)
    model[4].weight.data = model[4].weight.data.t().contiguous().t()


def weights_replaced(model):
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def weights_renewed(model):
    model[4].weight = nn.Parameter(model[4].weight.detach().clone())


CHANGES = [weights_swapped, weights_recast, weights_restrided, weights_replaced, weights_renewed]


@pytest.mark.parametrize("change", CHANGES)
def test_an_update_sees_weights_that_lie_elsewhere(device, change):
    model = small_model().to(device)
    rotation = cpfast.LayerRotation(model, history=2)
    refs = [p.detach().clone() for p in rotation._params()]
    rotation.update()
    change(model)
    turn(model, 0.3)
    plan = rotation._plan
    expected = cpfast.ops.layer_rotation(rotation._params(), refs)
    torch.testing.assert_close(rotation.update(), expected, rtol=1e-6, atol=0)
    assert rotation._plan is not plan
    plan = rotation._plan
    rotation.update()
    assert rotation._plan is plan


def test_a_record_follows_after_a_refresh(device):
    model = small_model().to(device)
    rotation = cpfast.LayerRotation(model, history=4)
    weights_swapped(model)
    turn(model)
    rotation.record()
    rotation.refresh()
    rotation.record()
    before, after = rotation.history()
    assert (before == 0).all()
    assert torch.equal(after, rotation.update())


def test_the_history_holds_the_last_records_the_oldest_first(device):
    model = small_model().to(device)
    rotation = cpfast.LayerRotation(model, history=3)
    assert rotation.history().shape == (0, 2)
    rows = []
    for count in range(1, 8):
        turn(model)
        rotation.record()
        rows.append(rotation.update())
        assert torch.equal(rotation.history(), torch.stack(rows[-3:]))
        assert len(rotation.history()) == min(count, 3)
    rotation.reset()
    assert len(rotation.history()) == 0


def test_without_a_history_there_is_nothing_to_record():
    rotation = cpfast.LayerRotation(small_model())
    for call in (rotation.record, rotation.history):
        with pytest.raises(RuntimeError, match="no history is kept: give it history=R"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshot_dtype": torch.float16}, "snapshot_dtype: .* got torch.float16"),
        ({"history": -1}, "history: expected 0 or more measurements, got -1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        cpfast.LayerRotation(small_model(), **options)


@pytest.mark.parametrize("snapshot_dtype", [None, torch.bfloat16])
def test_saved_half_way_it_goes_on_to_the_bit(device, snapshot_dtype):
    def steps(model, rotation, count):
        for _ in range(count):
            turn(model)
            rotation.record()
        rotation.update()

    options = {"snapshot_dtype": snapshot_dtype, "history": 3}
    model = small_model().to(device)
    rotation = cpfast.LayerRotation(model, **options)
    steps(model, rotation, 4)
    weights = copy.deepcopy(model.state_dict())
    saved = copy.deepcopy(rotation.state_dict())
    steps(model, rotation, 2)

    model = small_model(seed=5).to(device)
    model.load_state_dict(weights)
    resumed = cpfast.LayerRotation(model, **options)
    plan = resumed._plan
    resumed.load_state_dict(saved)
    assert resumed._plan is plan
    steps(model, resumed, 2)
    assert torch.equal(resumed.history(), rotation.history())
    assert torch.equal(resumed.mean(), rotation.mean())
    for one, other in zip(resumed.state_dict()["refs"], rotation.state_dict()["refs"], strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_a_state_of_before_there_were_histories_loads():
    model = small_model()
    rotation = cpfast.LayerRotation(model, history=2)
    rotation.record()
    state = rotation.state_dict()
    del state["history"]
    turn(model)
    rotation.load_state_dict(state)
    assert len(rotation.history()) == 0
    assert rotation.update().min().item() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latest": torch.zeros(3)}, r"latest'\]: expected shape \(2,\), got \(3,\)"),
        ({"history": torch.zeros(3, 2)}, r"at most 2 rows of 2 layers, got shape \(3, 2\)"),
        ({"history": torch.zeros(1, 3)}, r"at most 2 rows of 2 layers, got shape \(1, 3\)"),
    ],
)
def test_states_that_do_not_fit_change_nothing(change, message):
    model = small_model()
    rotation = cpfast.LayerRotation(model, history=2)
    turn(model)
    rotation.record()
    before, history = rotation.update(), rotation.history()
    with pytest.raises(ValueError, match=message):
        rotation.load_state_dict({**rotation.state_dict(), **change})
    assert torch.equal(rotation.history(), history)
    assert torch.equal(rotation.update(), before)


def test_a_snapshot_that_would_be_rounded_is_refused():
    model = small_model()
    exact = cpfast.LayerRotation(model)
    rounded = cpfast.LayerRotation(model, snapshot_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="0.weight: expected torch.bfloat16, .* got torch.float32"):
        rounded.load_state_dict(exact.state_dict())
    exact.load_state_dict(rounded.state_dict())
    assert torch.equal(exact.update(), rounded.update())


def test_a_copy_measures_the_weights_of_the_copied_model():
    model = small_model()
    rotation = cpfast.LayerRotation(model, history=2)
    copied, of_the_copy = copy.deepcopy((model, rotation))
    turn(copied)
    of_the_copy.record()
    assert rotation.update().max().item() == 0
    assert torch.equal(of_the_copy.history()[0], of_the_copy.update())
    assert of_the_copy.update().min().item() > 0


@pytest.mark.cuda
def test_a_graph_of_training_steps_records_by_itself():
    model = small_model().cuda()
    rotation = cpfast.LayerRotation(model, history=100)
    weight = model[4].weight

    def step():
        weight.mul_(-0.5).add_(0.01)
        rotation.record()

    with torch.no_grad():
        step()  # loads the kernels, and asks how many of their blocks fit, outside the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(1000):
                graph.replay()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert int(rotation._cursor) == 1001
    assert torch.equal(rotation.history()[-1], rotation.update())


def test_a_reset_keeps_its_memory_while_the_weights_keep_theirs(device):
    model = torch.nn.Linear(5, 3).to(device)
    rotation = cpfast.LayerRotation(model, history=2)
    tensors = [*rotation._refs, rotation._sq_norms, rotation._ring, rotation._cursor]
    plan, places = rotation._plan, [t.data_ptr() for t in tensors]
    with torch.no_grad():
        model.weight.add_(1)
    rotation.record()
    assert rotation.history()[0, 0] > 0
    rotation.reset()
    after = [*rotation._refs, rotation._sq_norms, rotation._ring, rotation._cursor]
    assert rotation._plan is plan
    assert [t.data_ptr() for t in after] == places
    assert rotation.update().item() == 0
    assert len(rotation.history()) == 0
    model.double()
    rotation.reset()
    assert rotation._refs[0].dtype == torch.float64
    assert rotation.update().item() == 0


def test_another_default_dtype_changes_nothing(device):
    torch.set_default_dtype(torch.float64)
    try:
        model = torch.nn.Linear(5, 3, dtype=torch.float32).to(device)
        rotation = cpfast.LayerRotation(model, history=2)
        rotation.record()
        pruner = cpfast.DataPruner(4, device=device)
        logits = torch.zeros(2, 3, dtype=torch.float32, device=device)
        index = torch.tensor([1, 2], device=device)
        assert pruner.loss(logits, index, index).dtype == torch.float32
        assert rotation.history().dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
