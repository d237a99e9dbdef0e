"""The rotation of layers with PEFT's adapters, against float64 references in numpy."""

from __future__ import annotations

import gc
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

import cpfast
from cpfast.integrations.course import Course
from cpfast.recipes import Freeze

if find_spec("transformers") and find_spec("accelerate") and find_spec("peft"):
    from peft import (
        AdaLoraConfig,
        IA3Config,
        LoHaConfig,
        LoKrConfig,
        LoraConfig,
        OFTConfig,
        VeraConfig,
        get_peft_model,
    )
    from support import toy_transformers as toys
    from support.toy_transformers import EPOCHS, SIZE

    from cpfast.integrations.transformers import CriticalPeriodCallback, PrunedTrainer

pytestmark = [
    pytest.mark.needs("transformers"),
    pytest.mark.needs("accelerate"),
    pytest.mark.needs("peft"),
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
ATTENTION = "transformer.h.0.attn.c_attn"
MLP = "transformer.h.0.mlp.c_fc"


@pytest.fixture(scope="module", autouse=True)
def few_objects():
    """The Trainer collects garbage at each beginning, among all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def lora(**options):
    return LoraConfig(
        **{"target_modules": ["c_attn"], "r": 3, "lora_alpha": 6, "fan_in_fan_out": True, **options}
    )


def moved(model, scale=0.3, seed=5):
    """As a training would: what has a gradient moves."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=g)


def numpy_of(tensor):
    return tensor.detach().double().numpy().copy()


def rotation_of(before, now):
    return 1 - (before * now).sum() / (np.linalg.norm(before) * np.linalg.norm(now))


def change(layer, adapter="default"):
    """s B A of a layer of GPT-2's, which keep their weights transposed."""
    a, b = (numpy_of(getattr(layer, name)[adapter].weight) for name in ("lora_A", "lora_B"))
    return layer.lora_alpha[adapter] / layer.r[adapter] * (b @ a).T


def weight_of(model, name=ATTENTION):
    return numpy_of(model.get_submodule(name).weight)


def only(rotation, name):
    """The rotation of a layer, where no other has turned."""
    measured = rotation.compute()
    others = [value for key, value in measured.items() if not key.endswith(name)]
    assert set(others) <= {0.0}
    (value,) = (value for key, value in measured.items() if key.endswith(name))
    return value


# --- merged -------------------------------------------------------------------------------------


def test_a_layer_turns_by_w0_and_s_b_a():
    base = toys.gpt2()
    before, w0 = cpfast.LayerRotation(base), weight_of(base)
    model = get_peft_model(base, lora())
    after = cpfast.LayerRotation(model)
    assert set(before.update().tolist()) == set(after.update().tolist()) == {0.0}
    for scale in (1e-6, 1e-3, 0.3):
        moved(model, scale)
        layer = base.get_submodule(ATTENTION)
        expected = rotation_of(w0, w0 + change(layer))
        for rotation in (before, after):
            rotation.update()
            assert only(rotation, f"{ATTENTION}.weight") == pytest.approx(expected, rel=2e-3)
    assert float(after.mean()) == pytest.approx(expected, rel=1e-5)  # the others are frozen


def merged_rotations(model, start):
    """Of the model that peft makes of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = model.merge_and_unload()
    return {
        name: rotation_of(start[name], numpy_of(parameter))
        for name, parameter in plain.named_parameters()
        if name in start and parameter.dim() > 1
    }


@pytest.mark.parametrize(
    "kind",
    ["lora", "rslora", "dora", "pissa", "embedding", "tokens", "adalora", "ia3", "oft", "loha",
     "lokr", "vera"],
)  # fmt: skip
def test_each_kind_of_adapter_is_measured_as_peft_merges_it(kind):
    linear = {"target_modules": ["query", "dense"]}
    config = {
        "lora": lambda: lora(),
        "rslora": lambda: lora(use_rslora=True),
        "dora": lambda: lora(use_dora=True),
        "pissa": lambda: lora(init_lora_weights="pissa"),
        "embedding": lambda: lora(target_modules=["wpe", "c_attn"]),
        "tokens": lambda: lora(trainable_token_indices=[1, 2]),
        "adalora": lambda: AdaLoraConfig(
            target_modules=["c_attn"], total_step=9, fan_in_fan_out=True
        ),
        "ia3": lambda: IA3Config(
            target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True
        ),
        "oft": lambda: OFTConfig(oft_block_size=4, **linear),
        "loha": lambda: LoHaConfig(r=2, **linear),
        "lokr": lambda: LoKrConfig(r=2, **linear),
        "vera": lambda: VeraConfig(r=4, target_modules=["query"]),
    }[kind]()
    base = toys.bert(num_labels=3) if kind in ("oft", "loha", "lokr", "vera") else toys.gpt2()
    start = {name: numpy_of(p) for name, p in base.named_parameters()}
    before = cpfast.LayerRotation(base)
    model = get_peft_model(base, config)
    after = cpfast.LayerRotation(model)
    if kind != "pissa":  # which takes a part of the weight into the adapter, and loses some bits
        assert max(before.update()) < 1e-6
    moved(model)
    found, own = (dict(r.compute()) for r in (before, after) if r.update() is not None)
    state = {name: p.clone() for name, p in model.state_dict().items()}
    assert state.keys() == model.state_dict().keys()
    expected = merged_rotations(model, start)
    assert any(value > 0.01 for value in expected.values())
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=1e-4, abs=1e-7), name
        assert own[f"base_model.model.{name}"] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_measuring_leaves_the_adapters_as_they_are():
    model = get_peft_model(toys.gpt2(), lora(use_dora=True))
    rotation = cpfast.LayerRotation(model)
    moved(model)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    ids = torch.arange(8)[None]
    logits = model(input_ids=ids).logits
    for _ in range(2):
        rotation.update()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert torch.equal(model(input_ids=ids).logits, logits)
    assert all(p.grad is None for p in model.parameters())


def test_it_follows_what_is_done_with_the_adapters():
    base = toys.gpt2()
    rotation, w0 = cpfast.LayerRotation(base), weight_of(base)

    def measured():
        rotation.update()
        return only(rotation, f"{ATTENTION}.weight")

    model = get_peft_model(base, lora(), adapter_name="a")
    moved(model)
    layer = base.get_submodule(ATTENTION)
    first = change(layer, "a")
    assert measured() == pytest.approx(rotation_of(w0, w0 + first), rel=1e-5)
    model.add_adapter("b", lora(r=2))
    assert measured() == pytest.approx(rotation_of(w0, w0 + first), rel=1e-5)
    model.set_adapter("b")
    assert measured() == 0  # its B is zero
    moved(model, seed=6)
    second = change(layer, "b")
    assert measured() == pytest.approx(rotation_of(w0, w0 + second), rel=1e-5)
    model.base_model.set_adapter(["a", "b"])
    both = rotation_of(w0, w0 + first + second)
    assert measured() == pytest.approx(both, rel=1e-5)
    with model.disable_adapter():
        assert measured() == 0
    assert measured() == pytest.approx(both, rel=1e-5)
    model.merge_adapter()
    assert measured() == pytest.approx(both, rel=1e-5)
    model.unmerge_adapter()
    model.delete_adapter("b")
    model.set_adapter("a")
    assert measured() == pytest.approx(rotation_of(w0, w0 + first), rel=1e-4)
    plain = model.merge_and_unload()
    assert plain is base and not hasattr(base.get_submodule(ATTENTION), "lora_A")
    assert measured() == pytest.approx(rotation_of(w0, w0 + first), rel=1e-4)


def test_what_was_made_of_the_adapted_model_follows_too():
    model = get_peft_model(toys.gpt2(), lora())
    rotation = cpfast.LayerRotation(model)
    w0 = weight_of(model.get_base_model())
    moved(model)
    now = change(model.get_base_model().get_submodule(ATTENTION))
    model.unload()
    rotation.update()
    assert set(rotation.compute().values()) == {0.0}
    model = get_peft_model(toys.gpt2(), lora())
    rotation = cpfast.LayerRotation(model)
    moved(model)
    model.merge_and_unload()
    rotation.update()
    expected = rotation_of(w0, w0 + now)
    assert only(rotation, f"{ATTENTION}.weight") == pytest.approx(expected, rel=1e-4)


def test_an_adapter_of_half_precision_weights_is_not_rounded_away():
    base = toys.gpt2().to(torch.bfloat16)
    rotation, w0 = cpfast.LayerRotation(base), weight_of(base)
    model = get_peft_model(base, lora(), autocast_adapter_dtype=True)  # adapters are float32
    moved(model, 1e-3)
    layer = base.get_submodule(ATTENTION)
    assert layer.lora_A["default"].weight.dtype == torch.float32
    expected = rotation_of(w0, w0 + change(layer))
    assert 0 < expected < 1e-3
    rotation.update()
    assert only(rotation, f"{ATTENTION}.weight") == pytest.approx(expected, rel=1e-3)


def test_of_a_module_that_is_saved_beside_the_original_the_copy_is_measured():
    base = toys.bert(num_labels=3)
    before = cpfast.LayerRotation(base)
    w0 = weight_of(base, "classifier")
    config = lora(target_modules=["query"], modules_to_save=["classifier"], fan_in_fan_out=False)
    model = get_peft_model(base, config)
    after = cpfast.LayerRotation(model)
    assert [n for n in after.names if "classifier" in n] == ["base_model.model.classifier.weight"]
    moved(model)
    now = numpy_of(base.classifier.modules_to_save["default"].weight)
    for rotation in (before, after):
        rotation.update()
        values = {name[-17:]: value for name, value in rotation.compute().items()}
        assert values["classifier.weight"] == pytest.approx(rotation_of(w0, now), rel=1e-5)
        assert len(rotation._live) == 2  # the query and the classifier
    with model.disable_adapter():
        before.update()
        assert set(before.compute().values()) == {0.0}


def test_states_fit_with_and_without_adapters():
    base = toys.gpt2()
    w0 = weight_of(base)
    state = cpfast.LayerRotation(base).state_dict()
    model = get_peft_model(toys.gpt2(), lora())
    moved(model)
    rotation = cpfast.LayerRotation(model)
    rotation.load_state_dict(state)
    rotation.update()
    layer = model.get_base_model().get_submodule(ATTENTION)
    expected = rotation_of(w0, w0 + change(layer))
    assert only(rotation, f"{ATTENTION}.weight") == pytest.approx(expected, rel=1e-5)


def test_adapters_of_layers_without_one_weight_are_refused():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "out": nn.Linear(8, 4)})
    rotation = cpfast.LayerRotation(model)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["attention"]))
    for measure in (rotation.update, lambda: cpfast.LayerRotation(wrapped)):
        with pytest.raises(RuntimeError, match="adapters of a MultiheadAttention, which has not"):
            measure()


# --- each ---------------------------------------------------------------------------------------


def test_each_adapters_change_turns_by_itself():
    model = get_peft_model(toys.gpt2(), lora(target_modules=["c_attn", "c_fc"]), adapter_name="a")
    model.add_adapter("b", lora(target_modules=["c_attn", "c_fc"], init_lora_weights=False))
    rotation = cpfast.LayerRotation(model, adapters="each")
    base = model.get_base_model()
    names = [f"base_model.model.{layer}.{a}" for layer in (ATTENTION, MLP) for a in "ab"]
    assert [name for name in rotation.names if not name.endswith(".weight")] == names
    assert f"base_model.model.{ATTENTION}.weight" not in rotation.names
    assert set(rotation.update().tolist()) == {0.0} and float(rotation.mean()) == 0
    b = {layer: change(base.get_submodule(layer), "b") for layer in (ATTENTION, MLP)}

    moved(model, seed=1)  # "a" is the one that is trained
    assert set(rotation.update().tolist()) == {0.0}  # the first of its directions
    first = {layer: change(base.get_submodule(layer), "a") for layer in (ATTENTION, MLP)}
    moved(model, seed=2)
    rotation.update()
    for layer in (ATTENTION, MLP):
        expected = rotation_of(first[layer], change(base.get_submodule(layer), "a"))
        found = rotation.compute()
        assert found[f"base_model.model.{layer}.a"] == pytest.approx(expected, rel=1e-5)
        assert found[f"base_model.model.{layer}.b"] == 0
    only_a = [found[name] for name in names if name.endswith(".a")]
    assert float(rotation.mean()) == pytest.approx(sum(only_a) / 2, rel=1e-6)

    model.set_adapter("b")
    moved(model, seed=3)
    rotation.update()
    expected = rotation_of(b[MLP], change(base.get_submodule(MLP), "b"))
    assert rotation.compute()[f"base_model.model.{MLP}.b"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_each_resumes(after):
    def made():
        model = get_peft_model(toys.gpt2(), lora())
        return model, cpfast.LayerRotation(model, adapters="each", history=4)

    model, rotation = made()
    other, resumed = made()
    for step in range(3):
        if step == after:
            resumed.load_state_dict(rotation.state_dict())
        for net in (model, other):
            moved(net, seed=step)
        rotation.record()
        if step >= after:
            resumed.record()
    assert torch.equal(rotation.update(), resumed.update())
    assert torch.equal(rotation.history(), resumed.history())
    assert rotation.history()[0].tolist() == [0.0] * len(rotation.names)
    assert float(rotation.history()[-1].max()) > 0.1


def test_adapters_that_come_or_go_are_said():
    def made(**options):
        model = get_peft_model(toys.gpt2(), lora(**options))
        return model, cpfast.LayerRotation(model, adapters="each")

    model, rotation = made()
    model.add_adapter("b", lora())
    with pytest.raises(
        RuntimeError, match=r"c_attn were \['default'\], and are \['default', 'b'\]"
    ):
        rotation.update()
    model, rotation = made()
    model.add_adapter("b", lora(target_modules=["c_fc"]))
    with pytest.raises(RuntimeError, match=r"c_fc were \[\], and are \['b'\] now"):
        rotation.update()
    model, rotation = made()
    model.merge_and_unload()
    with pytest.raises(RuntimeError, match=r"c_attn were \['default'\], and are \[\] now"):
        rotation.update()
    with pytest.raises(ValueError, match="adapters: 'each', but Linear's 'default' is none that"):
        made(use_dora=True)
    with pytest.raises(ValueError, match="adapters: 'each', and GPT2LMHeadModel has none"):
        cpfast.LayerRotation(toys.gpt2(), adapters="each")
    with pytest.raises(ValueError, match="adapters: expected 'merged' or 'each', got 'all'"):
        cpfast.LayerRotation(toys.gpt2(), adapters="all")


# --- in a training ------------------------------------------------------------------------------


def test_transformers_trainer_measures_and_resumes_adapters(tmp_path):
    def trained(folder, checkpoint=None):
        model = get_peft_model(toys.gpt2(), lora(lora_dropout=0.1))
        start = weight_of(model.get_base_model())
        watch = toys.callback()
        t = PrunedTrainer(
            model, toys.arguments(folder, save_strategy="epoch", learning_rate=0.1),
            train_dataset=toys.texts(), callbacks=[watch],
        )  # fmt: skip
        t.train(resume_from_checkpoint=checkpoint)
        layer = model.get_base_model().get_submodule(ATTENTION)
        expected = rotation_of(start, start + change(layer))
        assert only(watch.rotation, f"{ATTENTION}.weight") == pytest.approx(expected, rel=1e-5)
        assert t.state.log_history[-2]["cpfast/rotation"] == pytest.approx(expected, rel=1e-5)
        assert watch.course.pruner.samples_saved > 0
        return t

    whole = trained(tmp_path / "whole")
    folders = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda f: int(f.name[11:]))
    again = trained(tmp_path / "again", str(folders[1]))
    assert toys.same(whole.model, again.model)
    assert torch.equal(whole.pruner.scores, again.pruner.scores)


def test_layers_with_adapters_are_not_frozen_by_a_recipe(tmp_path):
    recipe = cpfast.Recipe(EPOCHS, [Freeze(below=0.9, epochs=1)])
    detector = cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=2)
    model = get_peft_model(toys.gpt2(), lora())
    with pytest.raises(
        RuntimeError, match="recipe: freezes layers, and .*c_attn.* is no parameter"
    ):
        Course(detector, recipe=recipe).attach(model)
    pruner = cpfast.DataPruner(SIZE, EPOCHS)
    watch = CriticalPeriodCallback(detector, pruner=pruner, recipe=recipe)
    with pytest.raises(RuntimeError, match="recipe: freezes layers"):
        PrunedTrainer(model, toys.arguments(tmp_path), train_dataset=toys.texts(),
                      callbacks=[watch]).train()  # fmt: skip
