"""A causal language model whose logits are never formed, beside itself."""

import copy
from importlib.util import find_spec

import pytest
import torch

import cpfast

pytestmark = [pytest.mark.needs("transformers"), pytest.mark.needs("accelerate")]
if not (find_spec("transformers") and find_spec("accelerate")):
    pytest.skip("transformers is not installed", allow_module_level=True)
else:
    import transformers
    from support.toy_transformers import LENGTH, VOCABULARY, bert, gpt2, texts
    from transformers import TrainingArguments

    from cpfast.integrations.transformers import (
        CriticalPeriodCallback,
        PrunedTrainer,
        fuse_lm_head,
    )

SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2 * LENGTH,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "Llama": {},
    "Gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "Qwen3": {"head_dim": 8, "tie_word_embeddings": True},
}


def make(family):
    torch.manual_seed(0)
    if family == "GPT2":
        return gpt2()
    config = getattr(transformers, f"{family}Config")(**SMALL, **FAMILIES[family])
    return getattr(transformers, f"{family}ForCausalLM")(config)


def batch(rows=6):
    samples = texts(rows)
    return {key: torch.stack([s[key] for s in samples]) for key in ("input_ids", "labels")}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["GPT2", *FAMILIES])
@pytest.mark.parametrize("options", [{}, {"num_items_in_batch": torch.tensor(50)}], ids=str)
def test_losses_and_gradients_are_those_of_the_model(family, options):
    model = make(family).train()
    with torch.no_grad():  # so that a cap and a scale matter
        model.get_output_embeddings().weight.mul_(8)
    twin = copy.deepcopy(model)
    assert fuse_lm_head(model) is model
    assert model.training
    expected, actual = twin(**batch(), **options), model(**batch(), **options)
    assert actual.logits is None and "logits" not in actual and actual[0] is actual.loss
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-5, atol=1e-5)
    wanted, found = gradients(twin, expected.loss), gradients(model, actual.loss)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-5, msg=name)


def test_all_but_training_with_labels_is_as_before(tmp_path):
    model = gpt2().train()
    expected = copy.deepcopy(model)
    fuse_lm_head(model)
    inputs = batch()
    without = {"input_ids": inputs["input_ids"]}
    assert torch.equal(model(**without).logits, expected(**without).logits)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected(**inputs).logits)
    model.eval(), expected.eval()
    a, b = model(**inputs), expected(**inputs)
    assert torch.equal(a.logits, b.logits) and torch.equal(a.loss, b.loss)
    assert torch.equal(model.generate(**without), expected.generate(**without))
    assert model.state_dict().keys() == expected.state_dict().keys()
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(expected)
    assert all(
        torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True)
    )
    assert fuse_lm_head(model) is model  # once more changes nothing
    assert model.lm_head.weight is model.transformer.wte.weight
    copied = copy.deepcopy(model).train()
    copied(**inputs).loss.backward()
    assert copied.lm_head.weight.grad is not None and model.lm_head.weight.grad is None


def test_a_tuple_where_one_is_wanted():
    model = gpt2().train()
    expected = copy.deepcopy(model)
    fuse_lm_head(model)
    loss = expected(**batch()).loss
    torch.testing.assert_close(model(**batch(), return_dict=False)[0], loss)


def test_under_gradient_checkpointing_and_autocast():
    model = make("Llama").train()
    twin = copy.deepcopy(model)
    fuse_lm_head(model).gradient_checkpointing_enable()
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = model(**batch()).loss, twin(**batch()).loss
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)
    found, wanted = gradients(model, actual), gradients(twin, expected)
    for name, grad in wanted.items():
        assert (found[name] - grad).norm() <= 0.05 * grad.norm() + 1e-6, name


class Doubled(transformers.GPT2LMHeadModel):
    """Does to its logits what nobody is told of."""

    def forward(self, *args, labels=None, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = 2 * outputs.logits
        if labels is not None:
            outputs.loss = self.loss_function(outputs.logits, labels, self.config.vocab_size)
        return outputs


def test_what_cannot_be_followed_is_refused_and_left_as_it_was():
    model = Doubled(gpt2().config)
    head, before = model.lm_head, copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="model: Doubled does to its logits what is not known"):
        fuse_lm_head(model)
    assert model.lm_head is head and "forward" not in vars(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(TypeError, match="expected a causal language model, got BertForSeq"):
        fuse_lm_head(bert())
    with pytest.raises(TypeError, match="model: expected a PreTrainedModel of transformers"):
        fuse_lm_head(torch.nn.Linear(2, 2))
    with torch.device("meta"):
        empty = gpt2()
    with pytest.raises(RuntimeError, match="model: has no weights yet"):
        fuse_lm_head(empty)


@pytest.mark.needs("peft")
def test_adapters_of_other_layers_go_on_top_and_of_the_head_are_refused():
    peft = pytest.importorskip("peft")

    def adapted(targets):
        config = peft.LoraConfig(target_modules=targets, init_lora_weights=False)
        return peft.get_peft_model(fuse_lm_head(make("Llama")), config).train()

    model = adapted(["q_proj"])
    found = gradients(model, model(**batch()).loss)
    assert found and all("lora" in name for name in found)
    with pytest.raises(RuntimeError, match="its fused head has been replaced"):
        adapted(["lm_head"])(**batch())


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_pruned_training_is_that_of_the_logits(tmp_path, accumulation):
    results = []
    for fuse in (False, True):
        model = make("Llama")
        model = fuse_lm_head(model) if fuse else model
        pruner = cpfast.DataPruner(83, num_epochs=3, anneal=1.0)
        trainer = PrunedTrainer(
            model=model,
            args=TrainingArguments(
                tmp_path / str(fuse), num_train_epochs=3, per_device_train_batch_size=8, seed=1,
                gradient_accumulation_steps=accumulation, learning_rate=1e-2, report_to=[],
                save_strategy="no", use_cpu=True, label_smoothing_factor=0.1,
            ),
            train_dataset=texts(),
            callbacks=[CriticalPeriodCallback(pruner=pruner)],
        )  # fmt: skip
        trainer.train()
        results.append((pruner, {n: p.detach() for n, p in model.named_parameters()}))
    (whole, weights), (fused, others) = results
    assert fused.samples_saved == whole.samples_saved > 0
    torch.testing.assert_close(fused.scores, whole.scores, rtol=1e-3, atol=1e-3)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-3, msg=name)
