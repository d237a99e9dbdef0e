"""A tiny GPT-2 learns Python's documentation, byte by byte: under a minute on two CPU cores."""

import math
import tempfile
from pydoc_data.topics import topics

import torch
import transformers

EPOCHS, LENGTH = 8, 48

text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
rows = torch.tensor(list(text[: 1100 * LENGTH])).view(-1, LENGTH)
samples = [{"input_ids": row, "labels": row} for row in rows]
train, test = samples[:1000], samples[1000:]

torch.manual_seed(0)
size = {"n_positions": LENGTH, "n_embd": 48, "n_layer": 2, "n_head": 4}
no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
config = transformers.GPT2Config(
    vocab_size=256, bos_token_id=0, eos_token_id=0, **size, **no_dropout
)
model = transformers.GPT2LMHeadModel(config)

args = transformers.TrainingArguments(
    tempfile.mkdtemp(),
    num_train_epochs=EPOCHS,
    per_device_train_batch_size=16,
    learning_rate=2e-3,
    warmup_steps=20,
    logging_strategy="epoch",
    save_strategy="no",
    report_to="none",
    use_cpu=True,
)
trainer = transformers.Trainer(model, args, train_dataset=train, eval_dataset=test)
trainer.train()
print(f"{trainer.evaluate()['eval_loss'] / math.log(2):.2f} bits a byte")
