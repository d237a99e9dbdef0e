"""Tiny models and data for transformers' Trainer, and a training loop written by hand."""

import math

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    TrainingArguments,
)

import cpfast
from cpfast.integrations.transformers import CriticalPeriodCallback
from cpfast.recipes import Prune, Repeats

VOCABULARY, LENGTH, EPOCHS, BATCH, RATE = 24, 12, 5, 8, 1e-2
SIZE = 83


def gpt2(dropout=0.0):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=2 * LENGTH, n_embd=16, n_layer=1, n_head=2,
            resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


def bert(cls=BertForSequenceClassification, dropout=0.0, **options):
    torch.manual_seed(0)
    return cls(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=2 * LENGTH, pad_token_id=0,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **options,
        )
    )  # fmt: skip


def texts(size=SIZE):
    """Sequences, of which some have a prompt that is not trained on."""
    g = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(size):
        ids = torch.randint(1, VOCABULARY, (LENGTH,), generator=g)
        ids[1::2] = ids[::2]  # something to learn
        labels = ids.clone()
        labels[: int(torch.randint(0, 5, (), generator=g))] = -100
        samples.append({"input_ids": ids, "labels": labels, "note": "not for the model"})
    return samples


def classes(size=SIZE, number=3):
    g = torch.Generator().manual_seed(2)
    samples = []
    for _ in range(size):
        ids = torch.randint(1, VOCABULARY, (LENGTH,), generator=g)
        samples.append({"input_ids": ids, "label": int(ids[0] % number)})
    return samples


def arguments(folder, **options):
    settings = dict(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True,
        num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, learning_rate=RATE,
        save_strategy="no", logging_strategy="no", eval_strategy="no",
    )  # fmt: skip
    return TrainingArguments(**{**settings, **options})


def parts(size=SIZE, policy="infobatch", criterion="fixed", repeats=2, **options):
    """A detector, a pruner, and a recipe whose epochs shrink, and grow again."""
    if criterion == "fixed":
        options["at"] = 1
    detector = cpfast.CriticalPeriodDetector(criterion, EPOCHS, **options)
    pruner = cpfast.DataPruner(size, EPOCHS, policy, anneal=0.8, strict=True)
    after = cpfast.Window("after")
    recipe = cpfast.Recipe(EPOCHS, [Repeats(repeats, cpfast.Window("during")), Prune(window=after)])
    return detector, pruner, recipe


def callback(size=SIZE, **options):
    detector, pruner, recipe = parts(size, **options)
    return CriticalPeriodCallback(detector, pruner=pruner, recipe=recipe)


def by_hand(model, data, accumulation=1, batch=BATCH, least=1, repeats=2):
    """What a Trainer of these parts is to do; returns the rotation, the pruner, and for each epoch
    its plan and the learning rates of its updates. What would be a batch of fewer samples than
    ``least`` joins the one before."""
    detector, pruner, recipe = parts(len(data), repeats=repeats)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others}], RATE, weight_decay=0.0, fused=True
    )
    rotation = cpfast.LayerRotation(model)
    sampler = cpfast.PrunedSampler(pruner, recipe=recipe, detector=detector)
    epochs = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        plan, rates = list(sampler), []
        batches = [plan[i : i + batch] for i in range(0, len(plan), batch)]
        if len(batches[-1]) < least:
            batches[-2:] = [batches[-2] + batches[-1]]
        updates = math.ceil(len(batches) / accumulation)
        if epoch == 0:
            first = updates
        for update in range(updates):
            place = epoch * first + update * (first / updates)
            rates.append(RATE * max(0.0, (first * EPOCHS - place) / (first * EPOCHS)))
            for group in optimizer.param_groups:
                group["lr"] = rates[-1]
            together = batches[update * accumulation : (update + 1) * accumulation]
            count = sum((data[i]["labels"] != -100).sum() for part in together for i in part)
            for part in together:
                ids, labels = (
                    torch.stack([data[i][name] for i in part]) for name in ("input_ids", "labels")
                )
                logits = model(input_ids=ids).logits[:, :-1]
                pruner.loss(logits, labels[:, 1:], torch.tensor(part), num_tokens=count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        rotation.update()
        detector.step(rotation.mean(), epoch + 1)
        epochs.append((plan, rates))
    return rotation, pruner, epochs


def same(one, other):
    """Whether two models are equal to the bit."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
