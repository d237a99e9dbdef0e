import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import cpfast
from cpfast import layers
from cpfast.train import models


def names(model, **options):
    return [layer.name for layer in layers.layers_of(model, **options)]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(2, 3, 3), ["weight"]),
        (nn.ConvTranspose1d(2, 3, 3), ["weight"]),
        (nn.Linear(2, 1), ["weight"]),
        (nn.Bilinear(2, 3, 4), ["weight"]),
        (nn.Embedding(5, 4), ["weight"]),
        (nn.EmbeddingBag(5, 4), ["weight"]),
        (nn.LSTM(2, 3), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.GRUCell(2, 3), ["weight_ih", "weight_hh"]),
        (nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
        (
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
            ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
        ),
        (nn.LayerNorm([3, 4, 5]), []),
        (nn.BatchNorm2d(3), []),
        (nn.GroupNorm(1, 3), []),
        (nn.RMSNorm([3, 4]), []),
        (nn.PReLU(3), []),
    ],
)
def test_the_modules_type_decides_where_it_is_known(module, expected):
    assert names(module) == expected


def test_names_decide_elsewhere():
    module = nn.Module()
    for name in ("layer_scale", "logit_scale", "A_log", "registers", "prompts", "gamma", "mixing"):
        setattr(module, name, nn.Parameter(torch.ones(2, 3)))
    assert names(module) == ["mixing"]


@pytest.mark.parametrize(
    "name", ["cnn", "resnet8", "vit-tiny", "transformer", "efficientnet-b0", "wrn28-10"]
)
def test_weight_decay_and_rotation_mean_the_same_layers(name):
    shape, outputs = ((16,), 30) if name == "transformer" else ((32, 32, 3), 10)
    model = models.build(name, shape, outputs, seed=0)
    watched = layers.layers_of(model)
    assert {id(model.get_parameter(layer.name)) for layer in watched} == {
        id(parameter) for parameter in layers.kernels(model)
    }
    # as the rule by dimensions and names has them, for networks without exceptions
    by_name = [n for n, p in model.named_parameters() if cpfast.is_weight(n, p)]
    assert [layer.name for layer in watched] == by_name


def test_shared_weights_are_watched_once():
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    model["head"].weight = model["embedding"].weight
    assert names(model) == ["embedding.weight"]


def expected_rotation(before, now):
    before, now = before.detach().double().flatten(), now.detach().double().flatten()
    return float(1 - before @ now / (before.norm() * now.norm()))


def weight_normed(old):
    layer = nn.Linear(6, 4)
    if old:
        with pytest.warns(FutureWarning):
            return nn.utils.weight_norm(layer)
    return parametrizations.weight_norm(layer)


@pytest.mark.parametrize("old", [True, False])
def test_a_weight_normalised_layer_is_measured_by_its_weight(old):
    torch.manual_seed(0)
    layer = weight_normed(old)
    rotation = cpfast.LayerRotation(nn.Sequential(layer))
    assert rotation.names == ["0.weight"]
    before = layer(torch.eye(6)).T - layer.bias[:, None]  # what it computes with
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    now = layer(torch.eye(6)).T - layer.bias[:, None]
    measured = rotation.update()
    assert float(measured) == pytest.approx(expected_rotation(before, now), rel=1e-4)
    assert torch.equal(rotation.update(), measured)
    rotation.reset()
    assert float(rotation.update()) == 0


def test_a_spectrally_normalised_layer_is_measured_by_its_weight():
    torch.manual_seed(0)
    layer = nn.utils.spectral_norm(nn.Linear(6, 4))
    layer(torch.randn(2, 6))
    layer.eval()
    rotation = cpfast.LayerRotation(layer)
    assert rotation.names == ["weight"]
    layer(torch.randn(2, 6))
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight_orig += 0.3 * torch.randn_like(layer.weight_orig)
    layer(torch.randn(2, 6))
    expected = expected_rotation(before, layer.weight)
    assert float(rotation.update()) == pytest.approx(expected, rel=1e-4)


def test_any_parametrisation_is_measured_by_what_it_gives():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight.triu()

    model = nn.Sequential(nn.Linear(5, 5))
    parametrize.register_parametrization(model[0], "weight", Doubled())
    rotation = cpfast.LayerRotation(model)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].parametrizations.weight.original += torch.randn(5, 5)
    expected = expected_rotation(before, model[0].weight)
    assert rotation.names == ["0.weight"]
    assert float(rotation.update()) == pytest.approx(expected, rel=1e-5)


class LowRank(nn.Module):
    """An adapter as PEFT's are: a base layer, and tables of two factors."""

    def __init__(self, base_layer, rank=2):
        super().__init__()
        self.base_layer = base_layer
        base_layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"one": nn.Linear(base_layer.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"one": nn.Linear(rank, base_layer.out_features, bias=False)})
        nn.init.zeros_(self.lora_B["one"].weight)
        self.merged, self.disable_adapters, self.active_adapters = False, False, ["one"]

    def get_delta_weight(self, adapter):
        return 0.5 * self.lora_B[adapter].weight @ self.lora_A[adapter].weight


def test_adapters_are_measured_with_what_they_adapt():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    rotation = cpfast.LayerRotation(model)
    before = model[0].weight.detach().clone()
    model[0] = LowRank(model[0])  # after the snapshot
    assert names(model) == ["0.weight", "2.weight"]
    assert rotation.update().tolist() == [0, 0]
    with torch.no_grad():
        model[0].lora_B["one"].weight += 1.0
    now = before + model[0].get_delta_weight("one")
    assert float(rotation.update()[0]) == pytest.approx(expected_rotation(before, now), rel=1e-4)


def test_frozen_layers_leave_the_mean():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    rotation = cpfast.LayerRotation(model)
    with torch.no_grad():
        model[1].weight += torch.randn(4, 4)
    measured = rotation.update()
    assert measured[0] == 0 < measured[1] == rotation.mean()
    assert cpfast.LayerRotation(model, trainable_only=True).names == ["1.weight"]
    model[1].requires_grad_(False)
    rotation.update()
    assert rotation.mean() == measured.mean()  # all are frozen


def test_a_layer_that_was_replaced_is_measured_as_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    rotation = cpfast.LayerRotation(model)
    before = model[2].weight.detach().clone()
    model[2] = nn.Linear(8, 4)
    expected = expected_rotation(before, model[2].weight)
    assert float(rotation.update()[1]) == pytest.approx(expected, rel=1e-5)
    model[2] = nn.Linear(8, 5)
    with pytest.raises(
        RuntimeError, match=r"2\.weight: the snapshot is of shape \[4, 8\].*\[5, 8\]"
    ):
        rotation.update()
    model[2] = nn.ReLU()
    with pytest.raises(RuntimeError, match="ReLU has no 'weight' any more"):
        rotation.update()
    del model[2]
    with pytest.raises(RuntimeError, match=r"layer '2\.weight' is gone"):
        rotation.update()


def test_a_copied_model_is_measured_by_its_copied_rotation():
    model = nn.Sequential(nn.Linear(4, 4))
    model.rotation = rotation = cpfast.LayerRotation(model)
    other = copy.deepcopy(model)
    alone = copy.deepcopy(rotation)
    with torch.no_grad():
        other[0].weight += torch.randn(4, 4)
    assert other.rotation.update()[0] > 0
    assert rotation.update()[0] == alone.update()[0] == 0
    with torch.no_grad():
        model[0].weight += torch.randn(4, 4)
    assert torch.equal(rotation.update(), alone.update())


def compiled(model):
    return torch.compile(model, backend="eager")


def checkpointed(model):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    for name, child in model.named_children():
        setattr(model, name, checkpoint_wrapper(child))
    return model


@pytest.mark.parametrize("first", [nn.Sequential, compiled, nn.DataParallel, checkpointed])
@pytest.mark.parametrize("second", [nn.Sequential, compiled, nn.DataParallel, checkpointed])
def test_states_fit_with_and_without_wrappers(first, second):
    def make(wrap):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        return model if wrap is nn.Sequential else wrap(model)

    rotation = cpfast.LayerRotation(make(first))
    assert rotation.names == ["0.weight", "2.weight"]
    other = cpfast.LayerRotation(make(second))
    other.load_state_dict(rotation.state_dict())
    assert other.update().tolist() == [0, 0]


def test_a_wrapper_that_came_after_the_snapshot():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    rotation = cpfast.LayerRotation(model)
    checkpointed(model)
    assert rotation.update().tolist() == [0, 0]


def test_states_of_earlier_versions_with_prefixes_fit():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    state = cpfast.LayerRotation(model).state_dict()
    for prefix in ("_orig_mod.", "module."):
        names = [prefix + name for name in state["names"]]
        cpfast.LayerRotation(model).load_state_dict({**state, "names": names})


def test_a_model_on_the_meta_device_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match=r"model: 0\.weight is on the meta device.*to_empty"):
        cpfast.LayerRotation(model)


def test_its_state_keeps_its_names_and_shapes():
    def shapes(state):
        return {
            key: [(v.shape, v.dtype) for v in (value if key == "refs" else [value])]
            if key not in ("names", "recorded")
            else type(value)
            for key, value in state.items()
        }

    model = nn.Sequential(nn.Linear(4, 4))
    rotation = cpfast.LayerRotation(model, history=3)
    before = shapes(rotation.state_dict())
    for _ in range(5):
        rotation.record()
        rotation.update()
        assert shapes(rotation.state_dict()) == before
    file = io.BytesIO()
    torch.save(rotation.state_dict(), file)
    file.seek(0)
    fresh = cpfast.LayerRotation(model, history=3)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.history(), rotation.history())


def test_made_in_inference_mode_it_goes_on():
    model = nn.Linear(4, 4)
    with torch.inference_mode():
        rotation = cpfast.LayerRotation(model, history=2)
        rotation.update()
        rotation.record()
        rotation.load_state_dict(rotation.state_dict())
    rotation.reset()
    rotation.record()
    assert rotation.update().tolist() == [0]
