"""transformers' Trainer with cpfast, compared with loops written by hand and with the Trainer."""

from __future__ import annotations

import copy
import gc
import json
import math
import pathlib
import subprocess
import sys
import warnings
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

import cpfast

if find_spec("transformers") and find_spec("accelerate"):
    from support import toy_transformers as toys
    from support.toy_transformers import EPOCHS, RATE, SIZE
    from transformers import (
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        DataCollatorWithPadding,
        EarlyStoppingCallback,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
        Trainer,
        TrainerCallback,
    )

    from cpfast.integrations.transformers import (
        FILE,
        INDEX,
        CriticalPeriodCallback,
        PrunedTrainer,
        PrunedTrainerMixin,
        _check_hooks,
    )

if find_spec("datasets"):
    import datasets

pytestmark = [
    pytest.mark.needs("transformers"),
    pytest.mark.needs("accelerate"),
    pytest.mark.usefixtures("one_thread"),
]
SUPPORT = pathlib.Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module", autouse=True)
def few_objects():
    """The Trainer collects garbage at each beginning, among all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Rates:
    """The learning rates of a trainer's updates, and what it was asked to log."""

    def __new__(cls):
        class Seen(TrainerCallback):
            def __init__(self):
                self.rates, self.logs = [], []

            def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
                self.rates.append(optimizer.param_groups[0]["lr"])

            def on_log(self, args, state, control, logs=None, **kwargs):
                self.logs.append(dict(logs))

        return Seen()


def trainer(folder, watch=None, model=None, data=None, cls=None, callbacks=(), **options):
    given = {key: options.pop(key) for key in ("data_collator", "eval_dataset", "optimizers",
             "compute_loss_func", "compute_metrics") if key in options}  # fmt: skip
    return (cls or PrunedTrainer)(
        toys.gpt2() if model is None else model,
        toys.arguments(folder, **options),
        train_dataset=toys.texts() if data is None else data,
        callbacks=[*([] if watch is None else [watch]), *callbacks],
        **given,
    )


# --- a training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 4])
def test_it_equals_a_loop_written_by_hand(accumulation, tmp_path):
    seen = Rates()
    watch = toys.callback()
    t = trainer(tmp_path, watch, callbacks=[seen], gradient_accumulation_steps=accumulation)
    out = t.train()
    own = toys.gpt2()
    rotation, pruner, epochs = toys.by_hand(own, toys.texts(), accumulation)
    lengths = [len(plan) for plan, _ in epochs]
    assert lengths[0] == 2 * SIZE and lengths[4] == SIZE  # it shrinks, and grows
    assert all(length < 0.9 * SIZE for length in lengths[1:4])
    assert toys.same(t.model, own)
    assert torch.equal(watch.course.pruner.scores, pruner.scores)
    assert seen.rates == [rate for _, rates in epochs for rate in rates]
    assert out.global_step == t.state.max_steps == len(seen.rates)
    assert t.optimizer.param_groups[0]["lr"] == 0  # the schedule's end
    assert watch.course.pruner.samples_seen == sum(lengths)
    assert t._trained == pytest.approx(sum(lengths))
    logs = [log for log in seen.logs if "cpfast/rotation" in log]
    assert [log["epoch"] for log in logs] == [1, 2, 3, 4, 5]
    assert [log["cpfast/kept"] for log in logs[1:]] == [n / SIZE for n in lengths[1:]]
    assert {k: logs[-1][f"cpfast/rotation/{k}"] for k in rotation.names} == rotation.compute()
    assert [log["cpfast/period_end"] for log in logs] == [1] * 5


@pytest.mark.parametrize("accumulation", [1, 4])
def test_watching_alone_leaves_the_training_as_it_is(accumulation, tmp_path):
    options = {"gradient_accumulation_steps": accumulation, "lr_scheduler_type": "cosine"}
    plain = trainer(tmp_path, model=toys.gpt2(0.1), cls=Trainer, **options)
    out = plain.train()
    detector = cpfast.CriticalPeriodDetector("slope45", EPOCHS)
    watch = CriticalPeriodCallback(detector)
    watched = trainer(tmp_path, watch, model=toys.gpt2(0.1), **options)
    assert watched.train().global_step == out.global_step
    assert toys.same(plain.model, watched.model)
    assert [epoch for epoch, _ in detector.history] == [1, 2, 3, 4, 5]


def test_where_no_epoch_changes_its_length_it_equals_the_trainer(tmp_path):
    """With the same order of samples, dropout, warm-up, and half an epoch at the end."""
    options = {"num_train_epochs": EPOCHS - 0.5, "warmup_steps": 5}
    pruner = cpfast.DataPruner(SIZE, EPOCHS, anneal=0.0)  # always full

    class Ordered(Trainer):
        def _get_train_sampler(self, *args):
            return cpfast.PrunedSampler(cpfast.DataPruner(SIZE, EPOCHS, anneal=0.0, strict=None))

    seen, theirs = Rates(), Rates()
    plain = trainer(tmp_path, model=toys.gpt2(0.1), cls=Ordered, callbacks=[theirs], **options)
    out = plain.train()
    own = trainer(
        tmp_path, CriticalPeriodCallback(pruner=pruner), toys.gpt2(0.1), callbacks=[seen], **options
    )
    assert own.train().global_step == out.global_step
    assert seen.rates == theirs.rates
    for a, b in zip(own.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# --- the samples and their index ----------------------------------------------------------------


class Plain(Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return self.samples[i]


def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[MASK]": 1, **{f"w{i}": i + 2 for i in range(300)}}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", mask_token="[MASK]")


def numbered(size=30):
    """Of different lengths; the last token is the sample's number."""
    return [
        {
            "input_ids": [5] * (1 + i % 4) + [10 + i],
            "attention_mask": [1] * (2 + i % 4),
            "token_type_ids": [0] * (2 + i % 4),
            "note": "x",
        }
        for i in range(size)
    ]


@pytest.mark.parametrize("kind", ["list", "torch", "datasets"])
@pytest.mark.parametrize("collator", ["default", "padding", "causal", "masked"])
@pytest.mark.parametrize("drops_columns", [True, False])
def test_the_index_stays_with_its_sample(kind, collator, drops_columns, tmp_path):
    samples = numbered()
    if collator == "default":  # which does not pad
        samples = [
            {**s, **{k: [v[0]] * 4 + v[-1:] for k, v in s.items() if k != "note"}} for s in samples
        ]
    if not drops_columns:
        samples = [{k: v for k, v in s.items() if k != "note"} for s in samples]
    if collator == "padding":
        samples = [{**s, "label": i % 2} for i, s in enumerate(samples)]
    if kind == "datasets":
        if not find_spec("datasets"):
            pytest.skip("datasets is not installed")
        data = datasets.Dataset.from_list(samples)
    else:
        data = samples if kind == "list" else Plain(samples)
    collate = {
        "padding": lambda: DataCollatorWithPadding(tokenizer()),
        "causal": lambda: DataCollatorForLanguageModeling(tokenizer(), mlm=False),
        "masked": lambda: DataCollatorForLanguageModeling(tokenizer(), mlm_probability=0.5, seed=0),
    }.get(collator, lambda: None)()
    t = trainer(
        tmp_path, CriticalPeriodCallback(pruner=cpfast.DataPruner(30, EPOCHS)), data=data,
        model=toys.bert() if collator == "padding" else toys.gpt2(), data_collator=collate,
        remove_unused_columns=drops_columns,
    )  # fmt: skip
    seen = []
    for batch in t.get_train_dataloader():
        assert "note" not in batch and batch[INDEX].dtype == torch.int64
        ends = [5 if collator == "default" else 2 + i % 4 for i in batch[INDEX].tolist()]
        kept = batch["input_ids"] if collator != "masked" else torch.where(
            batch["labels"] == -100, batch["input_ids"], batch["labels"]
        )  # fmt: skip
        last = kept[torch.arange(len(ends)), torch.tensor(ends) - 1]
        assert last.tolist() == (10 + batch[INDEX]).tolist()
        seen += batch[INDEX].tolist()
    assert sorted(seen) == list(range(30))
    assert t.train_dataset is data  # as it was


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(workers, tmp_path):
    t = trainer(
        tmp_path, toys.callback(), dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
    )  # fmt: skip
    t.train()
    own = toys.gpt2()
    _, pruner, _ = toys.by_hand(own, toys.texts())
    assert toys.same(t.model, own)
    assert torch.equal(t.pruner.scores, pruner.scores)


def test_a_loader_of_ones_own_is_refused_or_prunes(tmp_path):
    class Unprepared(PrunedTrainer):
        def get_train_dataloader(self):
            return DataLoader(self.train_dataset, 8, collate_fn=self.data_collator)

    class WithoutIndex(PrunedTrainer):
        def get_train_dataloader(self):
            super().get_train_dataloader()
            sampler = self.critical_period.course.sampler
            return DataLoader([{k: s[k] for k in ("input_ids", "labels")} for s in toys.texts()],
                              8, sampler=sampler)  # fmt: skip

    class Raw(PrunedTrainer):
        """Nobody calls set_epoch on it."""

        def get_train_dataloader(self):
            loader = super().get_train_dataloader()
            return DataLoader(
                loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn
            )

    with pytest.raises(RuntimeError, match=r"get_train_dataloader: .*would never prune"):
        trainer(tmp_path, toys.callback(), cls=Unprepared).train()
    with pytest.raises(RuntimeError, match="inputs: without 'sample_index'"):
        trainer(tmp_path, toys.callback(), cls=WithoutIndex).train()
    t = trainer(tmp_path, toys.callback(), cls=Raw)
    t.train()
    own = toys.gpt2()
    toys.by_hand(own, toys.texts())
    assert toys.same(t.model, own)


# --- the loss -----------------------------------------------------------------------------------


def gradients(t, model, indices, accumulation, **options):
    """What the Trainer's own methods make of micro-batches of four."""
    data = t.train_dataset
    batches = []
    for number in range(accumulation):
        part = indices[4 * number : 4 * number + 4]
        batch = t.data_collator([
            {k: v for k, v in data[i].items() if k not in ("note", INDEX)} for i in part
        ])  # fmt: skip
        if isinstance(t, PrunedTrainerMixin):
            batch[INDEX] = torch.tensor(part)
        batches.append(batch)
    batches, count = t.get_batch_samples(iter(batches), accumulation, t.args.device)
    t.current_gradient_accumulation_steps = accumulation
    model.zero_grad()
    losses = [float(t.training_step(model, batch, count)) for batch in batches]
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], losses


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=toys.VOCABULARY, hidden_size=16, intermediate_size=32,
                    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    )  # fmt: skip


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("make", ["gpt2", "llama"])
def test_the_gradient_of_a_language_model_is_the_trainers(make, smoothing, accumulation, tmp_path):
    model = toys.gpt2() if make == "gpt2" else llama()
    options = {"label_smoothing_factor": smoothing, "gradient_accumulation_steps": accumulation}
    other = copy.deepcopy(model)
    plain = trainer(tmp_path, model=other, cls=Trainer, **options)
    expected, losses = gradients(plain, other, range(16), accumulation)
    own = trainer(tmp_path, CriticalPeriodCallback(pruner=cpfast.DataPruner(SIZE, EPOCHS)), model,
                  **options)  # fmt: skip
    for epoch in range(2):  # the first batch of an epoch is compared with the model's own loss
        own.critical_period.course.begin(epoch)
        found, own_losses = gradients(own, model, range(16), accumulation)
        assert own_losses == pytest.approx(losses, rel=1e-5)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_of_a_classifier_is_that_of_one_batch(smoothing, accumulation, tmp_path):
    model = toys.bert(num_labels=3)
    options = {"label_smoothing_factor": smoothing, "gradient_accumulation_steps": accumulation}
    data = toys.classes()
    own = trainer(tmp_path, CriticalPeriodCallback(pruner=cpfast.DataPruner(SIZE, EPOCHS)), model,
                  data, **options)  # fmt: skip
    own.critical_period.course.begin(0)
    found, _ = gradients(own, model, range(4 * accumulation), accumulation)
    model.zero_grad()
    batch = data[: 4 * accumulation]
    logits = model(input_ids=torch.stack([s["input_ids"] for s in batch])).logits
    target = torch.tensor([s["label"] for s in batch])
    F.cross_entropy(logits, target, label_smoothing=smoothing).backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    if accumulation == 1:
        plain = trainer(tmp_path, model=model, data=data, cls=Trainer, **options)
        theirs, _ = gradients(plain, model, range(4), 1)
        for a, b in zip(found, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["masked", "translation"])
def test_the_gradient_of_other_models_of_tokens_is_the_trainers(kind, tmp_path):
    """Whose labels are not shifted."""
    if kind == "masked":
        model = toys.bert(BertForMaskedLM)
    else:
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=toys.VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=1,
                     num_heads=2, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0)
        )  # fmt: skip
    other = copy.deepcopy(model)
    plain = trainer(tmp_path, model=other, cls=Trainer)
    expected, losses = gradients(plain, other, range(4), 1)
    pruner = cpfast.DataPruner(SIZE, EPOCHS)
    own = trainer(tmp_path, CriticalPeriodCallback(pruner=pruner), model)
    own.critical_period.course.begin(0)
    for _ in range(2):  # with the comparison, and without it
        found, own_losses = gradients(own, model, range(4), 1)
        assert own_losses == pytest.approx(losses, rel=1e-5)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_weights_multiply_the_loss_of_their_samples(tmp_path):
    model, data = toys.gpt2(), toys.texts()
    own = trainer(tmp_path, CriticalPeriodCallback(pruner=cpfast.DataPruner(SIZE, EPOCHS)), model)
    pruner = own.pruner
    pruner.plan(0)
    pruner.update(torch.arange(SIZE), torch.linspace(0, 1, SIZE))
    pruner.plan(1)
    own.critical_period.course.begin(1)
    found, _ = gradients(own, model, range(8, 24), 4, gradient_accumulation_steps=4)
    weight = pruner.weights(torch.arange(8, 24))
    assert set(weight.tolist()) == {1.0, 2.0}
    model.zero_grad()
    ids, labels = (torch.stack([s[k] for s in data[8:24]]) for k in ("input_ids", "labels"))
    logits = model(input_ids=ids).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
    count = labels.ne(-100).sum()  # GPT-2's Trainer counts them before they are shifted
    ((losses * weight[:, None]).sum() / count).backward()
    for a, p in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-7)
    mean = (losses.sum(1) / labels[:, 1:].ne(-100).sum(1)).detach()
    torch.testing.assert_close(pruner.scores[8:24], mean)


def test_bfloat16(tmp_path):
    options = {"bf16": True}
    model, other = toys.gpt2(), toys.gpt2()
    plain = trainer(tmp_path, model=other, cls=Trainer, **options)
    own = trainer(tmp_path, toys.callback(), model, **options)
    own.train()
    assert own.pruner.scores.isfinite().all()
    assert own.critical_period.course.rotation.device.type == "cpu"
    # a fresh pair, whose forward passes accelerate has wrapped
    model, other = toys.gpt2(), toys.gpt2()
    plain = trainer(tmp_path, model=other, cls=Trainer, **options)
    own = trainer(tmp_path, CriticalPeriodCallback(pruner=cpfast.DataPruner(SIZE, EPOCHS)), model,
                  **options)  # fmt: skip
    own.critical_period.course.begin(0)
    wrapped, other_wrapped = own.accelerator.prepare(model), plain.accelerator.prepare(other)
    expected, _ = gradients(plain, other_wrapped, range(16), 4)
    found, _ = gradients(own, wrapped, range(16), 4)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-4)


def test_evaluation_is_the_trainers_and_records_nothing(tmp_path):
    data = toys.texts()
    scores = []

    class Before(TrainerCallback):
        def on_epoch_end(self, *args, **kwargs):
            scores.append(watch.course.pruner.scores.clone())

        def on_evaluate(self, *args, metrics=None, **kwargs):
            assert torch.equal(watch.course.pruner.scores, scores[-1])

    watch = toys.callback()
    t = trainer(
        tmp_path, watch, callbacks=[Before()], eval_dataset=data, eval_strategy="epoch",
        per_device_eval_batch_size=7,
    )  # fmt: skip
    t.train()
    own = toys.gpt2()
    toys.by_hand(own, data)
    assert toys.same(t.model, own)
    before, seen = t.pruner.scores.clone(), t.pruner.samples_seen
    plain = trainer(tmp_path, model=t.model, cls=Trainer, eval_dataset=data,
                    per_device_eval_batch_size=7)  # fmt: skip
    assert t.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    predicted = t.predict(data[:10])
    assert predicted.predictions.shape == (10, toys.LENGTH, toys.VOCABULARY)
    assert torch.equal(t.pruner.scores, before) and t.pruner.samples_seen == seen
    assert len(scores) == EPOCHS


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)

    def forward(self, x, labels=None):
        return {"logits": self.layer(x)[:, 0]}


def regression_data():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(SIZE, 4, generator=g)
    return [{"x": row, "label": float(row.sum())} for row in x]


def test_a_loss_of_ones_own_is_weighted_by_the_pruner(tmp_path):
    class Squares(PrunedTrainer):
        loss_is_scaled_for_ga = False

        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            index, labels = inputs.pop(INDEX, None), inputs.pop("labels")
            outputs = model(**inputs)
            losses = (outputs["logits"] - labels) ** 2
            loss = losses.mean() if index is None else self.pruner.weighted(losses, index)
            return (loss, outputs) if return_outputs else loss

    watch = CriticalPeriodCallback(pruner=cpfast.DataPruner(SIZE, EPOCHS, anneal=0.8, strict=True))
    options = {"gradient_accumulation_steps": 4, "optim": "sgd", "max_grad_norm": 0.0,
               "lr_scheduler_type": "constant"}  # fmt: skip
    data = regression_data()
    t = trainer(tmp_path, watch, Regression(), data, cls=Squares, **options)
    t.train()

    own = Regression()
    optimizer = torch.optim.SGD(own.parameters(), RATE)
    pruner = cpfast.DataPruner(SIZE, EPOCHS, anneal=0.8)
    for epoch in range(EPOCHS):
        batches = pruner.plan(epoch).split(8)
        for first in range(0, len(batches), 4):
            together = batches[first : first + 4]
            for index in together:
                x = torch.stack([data[i]["x"] for i in index])
                y = torch.tensor([data[i]["label"] for i in index])
                loss = pruner.weighted((own(x)["logits"] - y) ** 2, index) / len(together)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert toys.same(t.model, own)
    assert torch.equal(t.pruner.scores, pruner.scores)

    class Unsaid(Squares):
        loss_is_scaled_for_ga = None

    with pytest.raises(ValueError, match="loss_is_scaled_for_ga: is None, and compute_loss is"):
        watch = CriticalPeriodCallback(pruner=cpfast.DataPruner(SIZE, EPOCHS))
        trainer(tmp_path, watch, Regression(), data, cls=Unsaid, **options).train()


def test_a_model_whose_loss_is_another_is_refused(tmp_path):
    def refused(model, data=None, match="", **options):
        watch = CriticalPeriodCallback(pruner=cpfast.DataPruner(SIZE, EPOCHS))
        with pytest.raises(ValueError, match=match):
            trainer(tmp_path, watch, model, data, **options).train()

    class Auxiliary(type(toys.gpt2())):
        def forward(self, input_ids=None, labels=None, **kwargs):
            outputs = super().forward(input_ids, labels=labels, **kwargs)
            if outputs.loss is not None:
                outputs.loss = outputs.loss + 0.1
            return outputs

    class Fused(type(toys.gpt2())):
        def forward(self, input_ids=None, labels=None, **kwargs):
            outputs = super().forward(input_ids, labels=labels, **kwargs)
            return type(outputs)(loss=outputs.loss)

    refused(Auxiliary(toys.gpt2().config), match="model: its own loss is .* it adds something")
    refused(Fused(toys.gpt2().config), match="model: gives no logits.* fused")
    refused(toys.bert(num_labels=1), regression_data_of_texts(), match="labels: expected classes")
    refused(Regression(), regression_data(), match="labels: expected classes or tokens, got")


def regression_data_of_texts():
    return [{"input_ids": s["input_ids"], "label": 0.5} for s in toys.classes()]


def test_samples_that_a_policy_wants_scored_again_are(tmp_path):
    """Progressive dropout scores all of them after each epoch."""
    data = toys.texts()
    ids, labels = (torch.stack([s[k] for s in data]) for k in ("input_ids", "labels"))
    counted = []

    class AtTheEnd(TrainerCallback):
        def on_epoch_end(self, args, state, control, model=None, **kwargs):
            assert model.training
            if pruner.planned[0] in (0, EPOCHS - 1):  # which are full
                return
            model.eval()
            with torch.no_grad():
                logits = model(input_ids=ids).logits[:, :-1].transpose(1, 2)
            model.train()
            losses = F.cross_entropy(logits, labels[:, 1:], reduction="none").sum(1)
            expected = losses / labels[:, 1:].ne(-100).sum(1)
            torch.testing.assert_close(pruner.scores, expected, rtol=1e-4, atol=1e-5)
            counted.append(len(pruner.plan(pruner.planned[0])))

    pruner = cpfast.DataPruner(SIZE, EPOCHS, "pdd", tau=0.2, anneal=1.0, strict=True)
    watch = CriticalPeriodCallback(pruner=pruner)
    trainer(tmp_path, watch, model=toys.gpt2(0.1), callbacks=[AtTheEnd()]).train()
    assert len(counted) == EPOCHS - 2 and min(counted) < SIZE


# --- the schedule and the number of steps -------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial", "constant_with_warmup"])
def test_a_schedule_ends_with_the_training(kind, tmp_path):
    seen = Rates()
    t = trainer(tmp_path, toys.callback(), callbacks=[seen], lr_scheduler_type=kind, warmup_steps=4)
    t.train()
    end = {"polynomial": 1e-7, "constant_with_warmup": RATE}.get(kind, 0.0)
    assert t.optimizer.param_groups[0]["lr"] == pytest.approx(end, abs=1e-9)
    assert seen.rates[:5] == pytest.approx([0, RATE / 4, RATE / 2, 3 * RATE / 4, RATE])
    assert max(seen.rates) == pytest.approx(RATE)
    falls = [a - b for a, b in zip(seen.rates[4:], seen.rates[5:], strict=False)]
    assert all(fall >= 0 for fall in falls)


def test_a_schedule_by_the_fraction_of_the_training(tmp_path):
    def made():
        model = toys.gpt2()
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        return model, optimizer

    model, optimizer = made()
    schedule = cpfast.schedules.FractionLR(optimizer, cpfast.schedules.cosine())
    seen = Rates()
    t = trainer(tmp_path, toys.callback(), model, callbacks=[seen],
                optimizers=(optimizer, schedule))  # fmt: skip
    t.train()
    assert schedule.fraction == 1 and optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert seen.rates[len(seen.rates) - 11] == pytest.approx(  # the last epoch has eleven updates
        RATE * (1 + math.cos(math.pi * 0.8)) / 2
    )
    model, optimizer = made()
    counting = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 100)
    with pytest.raises(ValueError, match="optimizers: the scheduler LambdaLR counts steps"):
        trainer(tmp_path, toys.callback(), model, optimizers=(optimizer, counting)).train()


def test_max_steps_ends_a_training(tmp_path):
    for steps in (7, 25, 30):
        seen, watch = Rates(), toys.callback()
        t = trainer(tmp_path, watch, callbacks=[seen], max_steps=steps)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert t.train().global_step == steps
        assert len(seen.rates) == steps
        assert t.optimizer.param_groups[0]["lr"] == 0
        # 21 updates in the first epoch, and nine in the second
        whole = {7: 0, 25: 1, 30: 2}[steps]
        assert [e for e, _ in watch.course.detector.history] == list(range(1, whole + 1))


def test_max_steps_beyond_the_epochs_is_said(tmp_path):
    seen = Rates()
    t = trainer(tmp_path, toys.callback(), callbacks=[seen], max_steps=100)
    with pytest.warns(UserWarning, match="max_steps: 100 were asked for, and after 5[0-9]"):
        assert t.train().global_step < 60
    assert t.optimizer.param_groups[0]["lr"] == 0 and seen.rates[0] == RATE
    with pytest.raises(ValueError, match="max_steps: 1000 are more than the 5 epochs"):
        trainer(tmp_path, toys.callback(), max_steps=1000).train()


def test_lengths_that_do_not_agree_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_train_epochs: 3, and the recipe, the detector"):
        trainer(tmp_path, toys.callback(), num_train_epochs=3).train()
    with pytest.raises(ValueError, match="pruner: made for num_epochs=200, and the recipe or"):
        CriticalPeriodCallback(
            cpfast.CriticalPeriodDetector("slope45", 5), pruner=cpfast.DataPruner(8)
        )
    with pytest.raises(ValueError, match="dataset: has 40 samples, and the pruner was made for 83"):
        trainer(tmp_path, toys.callback(), data=toys.texts(40)).train()


def test_a_recipe_without_a_pruner_repeats(tmp_path):
    seen = Rates()
    recipe = cpfast.Recipe(EPOCHS, [cpfast.recipes.Repeats(2, cpfast.Window("during"))])
    detector = cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=2)
    t = trainer(tmp_path, CriticalPeriodCallback(detector, recipe=recipe), callbacks=[seen])
    out = t.train()
    assert out.global_step == 2 * 21 + 3 * 11  # of 83 samples, in batches of 8
    assert t.optimizer.param_groups[0]["lr"] == 0
    with pytest.raises(ValueError, match="recipe: prunes, and there is no pruner"):
        CriticalPeriodCallback(detector, recipe=toys.parts()[2])


def test_what_a_recipe_multiplies_is_multiplied_within_a_step(tmp_path):
    recipe = cpfast.Recipe(EPOCHS, [cpfast.recipes.LearningRate(0.5, cpfast.Window("during"))])
    watch = CriticalPeriodCallback(
        cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=2), recipe=recipe
    )
    seen, inside = Rates(), []

    class Hook(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
            optimizer.optimizer.register_step_pre_hook(
                lambda o, a, k: inside.append(o.param_groups[0]["lr"])
            )

    trainer(tmp_path, watch, callbacks=[seen, Hook()]).train()
    factors = [a / b for a, b in zip(inside, seen.rates, strict=True)]
    assert factors == [0.5] * 22 + [1.0] * 33


# --- checkpoints --------------------------------------------------------------------------------


def measured(watch):
    """What is left of a training, but for the weights."""
    course = watch.course
    return (
        repr(course.detector.state_dict()),
        course.pruner.scores.tolist(),
        (course.pruner.samples_planned, course.pruner.samples_seen),
        course.rotation.compute(),
        course._rotations,
        course._lrs,
        course._diffusion,
    )


def rotations(t):
    return [log for log in t.state.log_history if "cpfast/rotation" in log]


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"save_strategy": "epoch"},
        {"save_strategy": "steps", "save_steps": 3},  # at an epoch's last update, too
        {"save_strategy": "steps", "save_steps": 4, "dataloader_num_workers": 2},
        {"save_strategy": "steps", "save_steps": 6, "num_train_epochs": 4.5},
        {"save_strategy": "steps", "save_steps": 5, "max_steps": 18},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_a_resume_equals_the_undisturbed_training(options, accumulation, tmp_path):
    if accumulation == 1 and "max_steps" in options:
        options = {**options, "save_steps": 13, "max_steps": 40}
    elif accumulation == 1 and "save_steps" in options:
        options = {**options, "save_steps": 7 * options["save_steps"] // 3}
    options = {**options, "gradient_accumulation_steps": accumulation}
    kind = "path_efficiency" if "max_steps" in options else "slope45"
    watch = toys.callback(criterion=kind)
    whole = trainer(tmp_path / "whole", watch, toys.gpt2(0.1), **options)
    whole.train()
    folders = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda f: int(f.name[11:]))
    assert len(folders) >= 3
    for folder in folders[:: len(folders) // 3]:
        again = toys.callback(criterion=kind)
        t = trainer(tmp_path / "again", again, toys.gpt2(0.1), **options)
        t.train(resume_from_checkpoint=str(folder))
        assert t.state.global_step == whole.state.global_step, folder
        assert toys.same(t.model, whole.model), folder
        assert measured(again) == measured(watch), folder
        assert rotations(t) == rotations(whole)
        assert t.state.max_steps == whole.state.max_steps


def test_a_resume_at_an_epochs_very_end_judges_it(tmp_path):
    """A checkpoint of the last update is written before the epoch is measured."""
    watch = toys.callback()
    options = {"save_strategy": "steps", "save_steps": 21}  # the first epoch's updates
    whole = trainer(tmp_path, watch, **options)
    whole.train()
    state = torch.load(tmp_path / "checkpoint-21" / "cpfast.pt", weights_only=True)
    assert state["course"]["detector"]["history"] == [] and not state["clock"]["ended"]
    again = toys.callback()
    t = trainer(tmp_path, again, **options)
    t.train(resume_from_checkpoint=str(tmp_path / "checkpoint-21"))
    assert measured(again) == measured(watch) and toys.same(t.model, whole.model)
    assert rotations(t) == rotations(whole)


def test_ignoring_the_data_skip_begins_the_right_epoch_again(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 26}
    trainer(tmp_path, toys.callback(), **options).train()
    again = toys.callback()
    again.course.pruner.strict = None  # more samples come back than were planned
    seen = Rates()
    t = trainer(tmp_path / "again", again, callbacks=[seen], ignore_data_skip=True, **options)
    t.train(resume_from_checkpoint=str(tmp_path / "checkpoint-26"))
    assert [log["epoch"] for log in rotations(t)] == [1, 2, 3, 4, 5]
    assert [e for e, _ in again.course.detector.history] == [1, 2, 3, 4, 5]
    second = len(range(0, round(rotations(t)[1]["cpfast/kept"] * SIZE), 8))
    assert rotations(t)[1]["step"] == 26 + second  # 21, and five of the second before
    falls = [a - b for a, b in zip(seen.rates, seen.rates[1:], strict=False)]
    assert min(falls) > 0 and t.optimizer.param_groups[0]["lr"] == 0


def test_the_best_model_is_loaded(tmp_path):
    watch = toys.callback()
    t = trainer(
        tmp_path, watch, eval_dataset=toys.texts(20), eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True,
        save_total_limit=1,
    )  # fmt: skip
    t.train()
    own = toys.gpt2()
    toys.by_hand(own, toys.texts())
    assert not toys.same(t.model, own)  # the worst of them is the "best" here: the first epoch's
    best = pathlib.Path(t.state.best_model_checkpoint)
    assert best.name == "checkpoint-21" and (best / "cpfast.pt").exists()
    watch.rotation.update()
    first = rotations(t)[0]
    assert watch.rotation.compute() == {
        k: first[f"cpfast/rotation/{k}"] for k in watch.rotation.names
    }
    assert len([log for log in t.state.log_history if "eval_loss" in log]) == EPOCHS


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    trainer(tmp_path / "plain", cls=Trainer, save_strategy="epoch").train()
    folder = str(next((tmp_path / "plain").glob("checkpoint-*")))
    with pytest.raises(ValueError, match=r"resume_from_checkpoint: .* has no cpfast\.pt"):
        trainer(tmp_path, toys.callback()).train(resume_from_checkpoint=folder)
    trainer(tmp_path / "own", toys.callback(), save_strategy="epoch", save_only_model=True).train()
    folder = next((tmp_path / "own").glob("checkpoint-*"))
    assert not (folder / "cpfast.pt").exists()
    trainer(tmp_path / "own", toys.callback(), save_strategy="epoch").train()
    watch = CriticalPeriodCallback(cpfast.CriticalPeriodDetector("slope45", EPOCHS + 1))
    with pytest.raises(ValueError, match="is of a training of 5 epochs, and this one is of 6"):
        trainer(tmp_path, watch, num_train_epochs=6).train(resume_from_checkpoint=str(folder))
    watch = CriticalPeriodCallback(cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=1))
    with pytest.raises(ValueError, match=r"state_dict\['pruner'\]: is of a training with a pruner"):
        trainer(tmp_path, watch).train(resume_from_checkpoint=str(folder))


def test_a_callback_is_for_one_training(tmp_path):
    watch = toys.callback()
    t = trainer(tmp_path, watch, save_strategy="epoch")
    t.train()
    end = copy.deepcopy(t.model)
    with pytest.raises(RuntimeError, match="has been through a training; a second one"):
        t.train()
    first = min((tmp_path).glob("checkpoint-*"), key=lambda f: int(f.name[11:]))
    t.train(resume_from_checkpoint=str(first))  # which it may go on with
    assert toys.same(t.model, end)


# --- several processes --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = SUPPORT / "distributed_transformers.py"
    out = subprocess.run(
        [*torchrun, f"--nproc-per-node={request.param}", str(script), str(folder)],
        cwd=folder, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-5000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(request.param)]


def test_processes_train_each_planned_sample_once(ranks):
    own = toys.gpt2()
    _, _, epochs = toys.by_hand(own, toys.texts(81), batch=16, least=len(ranks), repeats=1)
    for run in ("whole", "resumed"):
        for rank in ranks:
            assert rank[run]["logs"] == ranks[0][run]["logs"]
            assert rank[run]["steps"] == sum(len(rates) for _, rates in epochs)
    for epoch, (plan, rates) in enumerate(epochs):
        shares = [rank["whole"]["seen"][epoch] for rank in ranks]
        # as many updates, so that none waits
        assert all(len(share) == len(rates) for share in shares)
        for update, parts in enumerate(zip(*shares, strict=True)):
            of_all = plan[16 * update : 16 * update + 16]
            if update + 1 == len(rates):
                of_all = plan[16 * update :]
            assert sorted(sum(parts, [])) == sorted(of_all)
    assert any(len(plan) % 16 == 1 for plan, _ in epochs)  # one would be left over


def test_processes_equal_one_and_a_resume_equals_both(ranks):
    own = toys.gpt2()
    rotation, pruner, _ = toys.by_hand(own, toys.texts(81), batch=16, least=len(ranks), repeats=1)
    for rank in ranks:
        assert rank["whole"] == {**rank["resumed"], "seen": rank["whole"]["seen"]}
        torch.testing.assert_close(
            torch.tensor(rank["whole"]["scores"]), pruner.scores, rtol=2e-3, atol=2e-3
        )
        for name, value in rotation.compute().items():
            assert rank["whole"]["rotation"][name] == pytest.approx(value, rel=1e-3)


# --- what is logged -----------------------------------------------------------------------------


def test_the_trainers_own_log_is_kept(tmp_path):
    seen = Rates()
    t = trainer(tmp_path, toys.callback(), callbacks=[seen], logging_strategy="epoch")
    t.train()
    kinds = [
        "rotation" if "cpfast/rotation" in log else "loss" if "loss" in log else "end"
        for log in seen.logs
    ]
    assert kinds == ["rotation", "loss"] * EPOCHS + ["end"]
    assert json.loads(json.dumps(t.state.log_history)) == t.state.log_history


@pytest.mark.needs("tensorboard")
def test_tensorboard_shows_it(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    watch = toys.callback()
    t = trainer(tmp_path, watch, report_to="tensorboard")
    t.train()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    tags = events.Tags()["scalars"]
    for name in watch.rotation.names:
        values = events.Scalars(f"train/cpfast/rotation/{name}")
        assert len(values) == EPOCHS
        assert values[-1].value == pytest.approx(watch.rotation.compute()[name])
    assert {"train/cpfast/rotation", "train/cpfast/kept", "train/cpfast/period_end"} <= set(tags)
    assert [event.step for event in events.Scalars("train/cpfast/kept")][-1] == t.state.global_step


@pytest.mark.needs("wandb")
def test_wandb_shows_it(tmp_path, monkeypatch):
    import wandb

    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    watch = toys.callback()
    trainer(tmp_path, watch, report_to="wandb").train()
    summary = dict(wandb.run.summary)
    wandb.finish()
    rotation = watch.rotation.compute()
    for name, value in rotation.items():
        assert summary[f"train/cpfast/rotation/{name}"] == pytest.approx(value)
    assert summary["train/cpfast/rotation"] == pytest.approx(sum(rotation.values()) / len(rotation))
    assert summary["train/cpfast/kept"] == 1 and summary["train/cpfast/period_end"] == 1


@pytest.mark.needs("codecarbon")
def test_energy_is_metered_and_goes_on_after_a_resume(tmp_path):
    def new():
        detector = cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=1)
        watch = CriticalPeriodCallback(detector, energy=True)
        seen = Rates()
        return trainer(tmp_path, watch, callbacks=[seen], save_strategy="epoch"), seen

    def used(seen):
        return [log["cpfast/energy_kwh"] for log in seen.logs if "cpfast/energy_kwh" in log]

    t, seen = new()
    t.train()
    assert len(used(seen)) == EPOCHS and 0 < used(seen)[0] <= used(seen)[-1]
    checkpoint = sorted(tmp_path.glob("checkpoint-*"), key=lambda p: int(p.name[11:]))[1]
    path = checkpoint / FILE
    state = torch.load(path, weights_only=True)
    state["course"]["energy"]["components"]["cpu"]["kwh"] += 1.0
    torch.save(state, path)
    t, seen = new()
    t.train(resume_from_checkpoint=str(checkpoint))
    assert len(used(seen)) == EPOCHS - 2 and all(1 < kwh < 1.1 for kwh in used(seen))


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auto_find_batch_size": True}, "auto_find_batch_size: begins a training again"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy: 'group_by"),
        ({"accelerator_config": {"dispatch_batches": True}}, "accelerator_config.dispatch_batches"),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config.split_batches: "),
        ({"compute_loss_func": lambda *args, **kwargs: 0}, "compute_loss_func: is not told whose"),
        ({"use_liger_kernel": True}, "use_liger_kernel: its fused loss gives no logits"),
    ],
)
def test_arguments_that_would_be_wrong_in_silence_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, toys.callback(), **options).train()


def test_policies_and_data_that_do_not_fit_are_refused(tmp_path):
    pruner = cpfast.DataPruner(SIZE, EPOCHS, "selective_backprop")
    with pytest.raises(ValueError, match="'selective_backprop' selects within the batches"):
        trainer(tmp_path, CriticalPeriodCallback(pruner=pruner)).train()

    class Streamed(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(toys.texts())

    watch = CriticalPeriodCallback(pruner=cpfast.DataPruner(SIZE, EPOCHS))
    with pytest.raises(TypeError, match="dataset: expected a map-style data set, got Streamed"):
        trainer(tmp_path, watch, data=Streamed(), max_steps=3).train()

    watch = CriticalPeriodCallback(cpfast.CriticalPeriodDetector("slope45", EPOCHS))
    with pytest.raises(ValueError, match="train_dataset: has no length"):
        trainer(tmp_path, watch, data=Streamed(), max_steps=3).train()

    def flat(samples):
        batch = {key: torch.stack([s[key] for s in samples]).view(1, -1)
                 for key in ("input_ids", "labels")}  # fmt: skip
        return {key: value[:, : 2 * toys.LENGTH] for key, value in batch.items()}

    watch = CriticalPeriodCallback(pruner=cpfast.DataPruner(SIZE, EPOCHS))
    with pytest.raises(ValueError, match="data_collator: makes 1 rows of 8 samples"):
        trainer(tmp_path, watch, data_collator=flat).train()
    watch = CriticalPeriodCallback(pruner=cpfast.DataPruner(SIZE, EPOCHS))
    with pytest.raises(TypeError, match="data_collator: expected a dictionary of it, got list"):
        trainer(tmp_path, watch, data_collator=list).train()


def test_classes_that_do_not_fit_are_refused(tmp_path):
    class Other(Trainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    class Mixed(PrunedTrainerMixin, Other):
        pass

    with pytest.raises(ValueError, match="compute_loss: Other has its own, which would not be"):
        trainer(tmp_path, toys.callback(), cls=Mixed).train()
    with pytest.raises(RuntimeError, match="CriticalPeriodCallback: needs cpfast's PrunedTrainer"):
        trainer(tmp_path, toys.callback(), cls=Trainer).train()
    with pytest.raises(ValueError, match="callbacks: expected one CriticalPeriodCallback, got 0"):
        trainer(tmp_path).train()
    with pytest.raises(ValueError, match="callbacks: expected one CriticalPeriodCallback, got 2"):
        trainer(tmp_path, toys.callback(), callbacks=[toys.callback()]).train()
    with pytest.raises(ValueError, match="expected a detector, a pruner or a recipe"):
        CriticalPeriodCallback()

    class Older:
        def _run_epoch(self, model, epoch):
            pass

    with pytest.raises(RuntimeError, match=r"Older\._finalize_training\(trial, .*is not there"):
        _check_hooks(Older)
    _check_hooks(Trainer)


def test_a_missing_library_names_the_extra():
    code = "import sys; sys.modules['transformers'] = None\nimport cpfast.integrations.transformers"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert "ImportError" in done.stderr
    assert "pip install 'cpfast[transformers]'" in done.stderr.splitlines()[-1]


def test_an_early_stop_ends_without_judging_half_an_epoch(tmp_path):
    watch = toys.callback()
    t = trainer(
        tmp_path, watch, callbacks=[EarlyStoppingCallback(1)], eval_dataset=toys.texts(20),
        eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=4,
        load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True,
    )  # fmt: skip
    out = t.train()
    assert out.global_step == 8  # of 21 in the first epoch
    assert watch.course.detector.history == [] and rotations(t) == []
